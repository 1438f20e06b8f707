//! Options that every command of every program takes.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::error::CliError;
use crate::logging::LogFormat;
use crate::output::Output;

/// One of the four programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// As the user types it: `mediator`, `agent-tunnel`.
    pub name: &'static str,
}

impl Program {
    /// Where its state is when nobody says otherwise.
    pub fn default_data_dir(&self) -> Result<PathBuf, CliError> {
        super::paths::default_data_dir(self.name).ok_or_else(|| {
            CliError::usage(
                "data_dir_unknown",
                "there is no default data directory: no home directory",
            )
            .hint("give --data-dir or set ADIT_DATA_DIR")
        })
    }

    /// A command of this program for the data directory `dir`, as somebody would type it there.
    pub fn command_line(&self, words: &str, dir: &Path) -> String {
        match self.default_data_dir() {
            Ok(default) if default == dir => format!("{} {words}", self.name),
            _ => format!("{} {words} --data-dir {}", self.name, shell_word(dir)),
        }
    }

    /// Prefix of its configuration variables: `ADIT_AGENT_TUNNEL_`.
    pub fn env_prefix(&self) -> String {
        format!("ADIT_{}_", self.name.to_ascii_uppercase().replace('-', "_"))
    }
}

/// Where help lists these, behind what a command has of its own.
const HEADING: &str = "Global options";

// Global options, to be flattened into a program's arguments.
#[derive(Clone, Default, Args)]
#[expect(missing_docs, reason = "clap would show it as the program's description")]
pub struct GlobalArgs {
    /// Directory with all state of this program
    #[arg(long, global = true, help_heading = HEADING, env = "ADIT_DATA_DIR", value_name = "DIR", hide_env_values = true)]
    pub data_dir: Option<PathBuf>,
    /// Configuration file [default: DIR/PROGRAM.toml]
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON, one object per line
    #[arg(long, global = true, help_heading = HEADING)]
    pub json: bool,
    /// Log level: error, warn, info, debug, trace, or filter directives
    #[arg(long, global = true, help_heading = HEADING, env = "ADIT_LOG", value_name = "LEVEL", hide_env_values = true)]
    pub log_level: Option<String>,
    /// Log format [default: human on a terminal, else json]
    #[arg(long, global = true, help_heading = HEADING, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Proxy for every TCP connection, e.g. http://proxy:3128 or socks5://proxy:1080
    #[arg(long, global = true, help_heading = HEADING, value_name = "URL")]
    pub proxy: Option<String>,
}

impl GlobalArgs {
    /// The data directory: `--data-dir`, `ADIT_DATA_DIR`, or the program's default.
    pub fn data_dir(&self, program: &Program) -> Result<PathBuf, CliError> {
        match &self.data_dir {
            Some(directory) => Ok(directory.clone()),
            None => program.default_data_dir(),
        }
    }

    /// Where this command's output goes.
    pub fn output(&self) -> Output {
        Output::new(self.json)
    }
}

/// A proxy URL may carry a password.
impl fmt::Debug for GlobalArgs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("GlobalArgs")
            .field("data_dir", &self.data_dir)
            .field("config", &self.config)
            .field("json", &self.json)
            .field("log_level", &self.log_level)
            .field("log_format", &self.log_format)
            .field("proxy", &self.proxy.as_ref().map(|_| "…"))
            .finish()
    }
}

/// A path as one word of a shell's line.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-:\\~+@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_a_data_directory_that_is_not_the_default() {
        let program = Program { name: "relay" };
        let there = program.command_line("serve", Path::new("/srv/relay"));
        assert_eq!(there, "relay serve --data-dir /srv/relay");
        let there = program.command_line("serve", Path::new("/srv/my relay"));
        assert_eq!(there, "relay serve --data-dir '/srv/my relay'");
        if let Ok(default) = program.default_data_dir() {
            assert_eq!(program.command_line("serve", &default), "relay serve");
        }
    }
}
