//! Options that every command of every program takes.

use std::fmt;
use std::path::PathBuf;

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

    /// Prefix of its configuration variables: `ADIT_AGENT_TUNNEL_`.
    pub fn env_prefix(&self) -> String {
        format!("ADIT_{}_", self.name.to_ascii_uppercase().replace('-', "_"))
    }
}

// Global options, to be flattened into a program's arguments.
#[derive(Clone, Default, Args)]
#[expect(missing_docs, reason = "clap would show it as the program's description")]
pub struct GlobalArgs {
    /// Directory with all state of this program
    #[arg(long, global = true, env = "ADIT_DATA_DIR", value_name = "DIR", hide_env_values = true)]
    pub data_dir: Option<PathBuf>,
    /// Configuration file [default: DIR/PROGRAM.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    pub json: bool,
    /// Log level: error, warn, info, debug, trace, or filter directives
    #[arg(long, global = true, env = "ADIT_LOG", value_name = "LEVEL", hide_env_values = true)]
    pub log_level: Option<String>,
    /// Log format [default: human on a terminal, else json]
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Proxy for every TCP connection, e.g. http://proxy:3128 or socks5://proxy:1080
    #[arg(long, global = true, value_name = "URL")]
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
