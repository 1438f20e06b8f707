//! Hidden commands for packagers: shell completions and man pages.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use super::error::CliError;
use super::parse::command;
use crate::output::write_stdout;

// To be flattened into a program's commands: `#[command(flatten)] Generate(Generate)`.
#[derive(Debug, Clone, Subcommand)]
#[expect(missing_docs, reason = "clap would show it as the program's description")]
pub enum Generate {
    /// Print the completion script of a shell
    #[command(hide = true)]
    Completions {
        /// Shell to complete for
        shell: Shell,
    },
    /// Print the man page, or write one page per command into a directory
    #[command(hide = true)]
    Man {
        /// Directory to write into
        dir: Option<PathBuf>,
    },
}

impl Generate {
    /// Does it for the program whose parser is `T`.
    pub fn run<T: CommandFactory>(&self) -> Result<(), CliError> {
        let mut bytes = Vec::new();
        match self {
            Self::Completions { shell } => write_completions::<T>(*shell, &mut bytes)?,
            Self::Man { dir: None } => write_man::<T>(&mut bytes)?,
            Self::Man { dir: Some(dir) } => return write_man_pages::<T>(dir),
        }
        write_stdout(&bytes)
    }
}

/// Writes the completion script for `shell`.
pub fn write_completions<T: CommandFactory>(
    shell: Shell,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut command = command::<T>();
    let name = command.get_name().to_owned();
    // The generator panics when a write fails, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script).map_err(|error| failed(&error))
}

/// Writes the man page of the program itself.
pub fn write_man<T: CommandFactory>(out: &mut dyn Write) -> Result<(), CliError> {
    clap_mangen::Man::new(command::<T>()).render(out).map_err(|error| failed(&error))
}

/// Writes a man page for the program and each of its commands into `directory`.
pub fn write_man_pages<T: CommandFactory>(directory: &Path) -> Result<(), CliError> {
    std::fs::create_dir_all(directory).map_err(|error| failed(&error))?;
    clap_mangen::generate_to(command::<T>(), directory).map_err(|error| failed(&error))
}

fn failed(error: &std::io::Error) -> CliError {
    CliError::failed("output_failed", format!("cannot write: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    #[command(name = "relay")]
    struct Cli {
        #[command(subcommand)]
        _command: Generate,
    }

    #[test]
    fn completions_and_man_pages_are_made() {
        let mut script = Vec::new();
        write_completions::<Cli>(Shell::Bash, &mut script).unwrap();
        assert!(String::from_utf8(script).unwrap().contains("_relay"));
        let directory = tempfile::tempdir().unwrap();
        write_man_pages::<Cli>(directory.path()).unwrap();
        assert!(directory.path().join("relay.1").exists());
    }
}
