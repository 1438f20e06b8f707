//! The relay's commands.

mod enrol;
mod local;
mod serve;

use adit_net::identity::{DeviceIdentity, IDENTITY_FILE};
use adit_runtime::{
    cli::{CliError, Generate, GlobalArgs},
    config::{Config, ConfigCommand, Sources},
    datadir::DataDir,
};
use clap::{Parser, Subcommand};

use crate::{
    config::{KEYS, PROGRAM, Settings},
    errors::identity_error,
};

pub use enrol::JoinArgs;
pub use local::DrainArgs;
pub use serve::ServeArgs;

/// Blind relay for sessions that cannot go directly: checks a ticket, pairs two connections,
/// copies ciphertext
#[derive(Debug, Parser)]
#[command(
    name = "relay",
    after_help = "Examples:\n  \
        echo \"$TOKEN\" | relay join - --advertise relay.example:443 --region eu\n  \
        relay serve\n  \
        relay status --json"
)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join an installation with a token from "mediator token relay"
    Join(JoinArgs),
    /// Relay sessions until stopped
    Serve(ServeArgs),
    /// Take no new joins and wait for the running relay's pairs to end; until resume or a restart
    Drain(DrainArgs),
    /// Take new joins again after drain
    #[command(
        after_help = "Examples:\n  relay resume\n  relay resume --data-dir /srv/relay --json\n\n\
        A drain that an operator began at the mediator ends there: console-tunnel admin relay \
        resume, or mediator relay resume."
    )]
    Resume,
    /// Tell what the running relay does
    #[command(
        after_help = "Examples:\n  relay status\n  relay status --json --data-dir /srv/relay"
    )]
    Status,
    /// Check or show the configuration
    #[command(
        subcommand,
        after_help = "Examples:\n  relay config check\n  relay config show --json"
    )]
    Config(ConfigCommand),
    #[command(flatten)]
    Generate(Generate),
}

impl Cli {
    /// Is the output to be JSON?
    pub fn json(&self) -> bool {
        self.global.json
    }

    /// Does it run until it is stopped?
    pub fn serves(&self) -> bool {
        matches!(self.command, Command::Serve(_))
    }

    /// Does what was asked.
    pub fn run(self) -> Result<(), CliError> {
        let Self { global, command } = self;
        match command {
            Command::Generate(generate) => generate.run::<Self>(),
            Command::Config(config) => {
                let (sources, output) = (sources(&global, None)?, global.output());
                let check = |config: &Config| Settings::read(config).map(drop);
                config.run_checked(&PROGRAM, KEYS, &sources, output, check)
            }
            Command::Join(args) => block_on(enrol::run(&global, &args)),
            Command::Serve(args) => block_on(serve::run(&global, &args)),
            Command::Drain(args) => block_on(local::drain(&global, &args)),
            Command::Resume => block_on(local::resume(&global)),
            Command::Status => block_on(local::status(&global)),
        }
    }
}

/// The keys of a relay that has joined; without them it is not the one that the mediator knows.
fn own_identity(dir: &DataDir) -> Result<DeviceIdentity, CliError> {
    let identity = DeviceIdentity::load(dir.path()).map_err(|error| identity_error(&error))?;
    identity.ok_or_else(|| {
        let message = format!("{} is missing", dir.path().join(IDENTITY_FILE).display());
        CliError::failed("identity_damaged", message).hint(
            "restore identity.key and noise.key from a backup, or join again in another directory",
        )
    })
}

/// Where the configuration comes from.
fn sources(global: &GlobalArgs, listen: Option<&str>) -> Result<Sources, CliError> {
    let dir = global.data_dir(&PROGRAM)?;
    Ok(Sources::new(global.config.as_deref(), &dir)
        .flag("relay.listen", "--listen", listen)
        .flag("log.level", "--log-level", global.log_level.as_deref())
        .flag("proxy.url", "--proxy", global.proxy.as_deref()))
}

fn block_on(work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failed("internal", format!("cannot start: {e}")))?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent_and_every_command_has_examples() {
        let command = adit_runtime::cli::command::<Cli>();
        command.clone().debug_assert();
        every_command_has_examples(&command);
    }

    fn every_command_has_examples(command: &clap::Command) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.starts_with("Examples:"), "{}", command.get_name());
        let visible = command.get_subcommands().filter(|c| !c.is_hide_set());
        visible.for_each(every_command_has_examples);
    }
}
