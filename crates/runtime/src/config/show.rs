//! `config check` and `config show`.

use serde_json::json;

use super::{Config, Key, Sources};
use crate::cli::{CliError, Program, escape_text};
use crate::output::Output;

/// Shown instead of a secret.
pub(super) const MASK: &str = "********";

/// Check or show the configuration
#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration file and environment
    Check,
    /// Print the effective configuration and where each value comes from
    Show,
}

impl ConfigCommand {
    /// Loads the configuration and tells about it.
    pub fn run(
        self,
        program: &Program,
        keys: &'static [Key],
        sources: &Sources,
        output: Output,
    ) -> Result<(), CliError> {
        self.run_checked(program, keys, sources, output, |_| Ok(()))
    }

    /// [`Self::run`] for a program that knows more about its values than their types.
    pub fn run_checked(
        self,
        program: &Program,
        keys: &'static [Key],
        sources: &Sources,
        output: Output,
        check: impl FnOnce(&Config) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        if matches!(self, Self::Check) {
            sources.check_data_dir(program)?;
        }
        let config = Config::load(program, keys, sources)?;
        match self {
            Self::Show => config.show(output),
            Self::Check => {
                check(&config)?;
                let file = sources.file(program).filter(|path| path.exists());
                let file = file.map(|path| path.display().to_string());
                output.emit(&json!({"valid": true, "file": file}))?;
                let file = file.unwrap_or_else(|| "no file".to_owned());
                output.human(format_args!("configuration is valid ({})", escape_text(&file)))
            }
        }
    }
}

impl Config {
    /// Prints each key with its value and origin; secrets masked.
    pub fn show(&self, output: Output) -> Result<(), CliError> {
        for key in self.keys {
            let entry = self.entries.get(key.path);
            let value = entry.map(|entry| match key.secret {
                true => MASK.into(),
                false => entry.value.to_json(),
            });
            let origin = entry.map_or("not set".to_owned(), |entry| entry.origin.to_string());
            output.emit(&json!({"key": key.path, "value": value, "origin": origin}))?;
            let line = match value {
                Some(value) => format!("{} = {value}    # {origin}", key.path),
                None => format!("# {} is not set: {}", key.path, key.help),
            };
            output.human(escape_text(&line))?;
        }
        Ok(())
    }
}
