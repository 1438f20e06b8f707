//! The command line. Doc comments of commands are help texts.

use std::path::PathBuf;

use adit_runtime::{
    cli::{CliError, Generate, GlobalArgs, evidence},
    config::ConfigCommand,
    datadir::DataDir,
    logging,
};
use clap::{Parser, Subcommand};

use crate::{
    commands, enroll, run,
    service::{self, ServiceCommand},
    settings::{self, KEYS, PROGRAM, Settings},
};

/// Log level of commands that end by themselves.
const COMMAND_LOG_LEVEL: &str = "warn";

// The agent's command line.
#[derive(Debug, Parser)]
#[command(
    name = "agent-tunnel",
    about = "Lets authorised technicians reach this computer, within its owner's policy",
    after_help = "Examples:\n  agent-tunnel enroll - < token.txt\n  agent-tunnel run\n  \
                  agent-tunnel status\n  agent-tunnel lock"
)]
#[expect(missing_docs, reason = "clap would show it as the program's description")]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enrol this computer with a token from the mediator's administrator
    #[command(after_help = "Examples:\n  agent-tunnel enroll adit1-…\n  \
                            agent-tunnel enroll - --name till-3 --tag site=berlin < token.txt\n  \
                            ADIT_TOKEN=adit1-… agent-tunnel enroll --proxy http://proxy:3128")]
    Enroll {
        /// The token, or - to read it from stdin [default: ADIT_TOKEN]
        token: Option<String>,
        /// Name for this computer [default: its host name]
        #[arg(long)]
        name: Option<String>,
        /// Tag for searching, can be repeated
        #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = enroll::parse_tag)]
        tags: Vec<(String, String)>,
    },
    /// Run the agent until Ctrl-C
    #[command(after_help = "Examples:\n  agent-tunnel run\n  \
                            agent-tunnel run --data-dir /var/lib/adit/agent-tunnel --json")]
    Run,
    /// Show what the running agent does
    #[command(after_help = "Examples:\n  agent-tunnel status\n  agent-tunnel status --json")]
    Status,
    /// Show or check the endpoint owner's policy
    #[command(
        subcommand,
        after_help = "Examples:\n  agent-tunnel policy show\n  \
                                        agent-tunnel policy check new-policy.toml"
    )]
    Policy(PolicyCommand),
    /// Turn on the kill switch: end all sessions and refuse new ones, until unlock
    #[command(after_help = "Examples:\n  agent-tunnel lock")]
    Lock,
    /// Turn off the kill switch
    #[command(after_help = "Examples:\n  agent-tunnel unlock")]
    Unlock,
    /// List technicians who wait for your consent, allow or deny them
    #[command(after_help = "Examples:\n  agent-tunnel consent\n  agent-tunnel consent allow 3\n  \
                      agent-tunnel consent deny 3")]
    Consent {
        /// The answer; without one, list what waits
        #[command(subcommand)]
        answer: Option<ConsentCommand>,
    },
    /// Show what this agent signed of its sessions, and what the other ends did
    #[command(
        subcommand,
        after_help = "Examples:\n  agent-tunnel receipts export > receipts.jsonl"
    )]
    Receipts(ReceiptsCommand),
    /// Show the heads of the audit log that this agent saw, and what alarmed it
    #[command(
        subcommand,
        after_help = "Examples:\n  agent-tunnel witness show\n  agent-tunnel witness accept"
    )]
    Witness(WitnessCommand),
    /// Run the agent as a service of the system
    #[command(
        subcommand,
        after_help = "Examples:\n  agent-tunnel service install\n  \
                                        agent-tunnel service start"
    )]
    Service(ServiceCommand),
    /// Check or show the configuration
    #[command(
        subcommand,
        after_help = "Examples:\n  agent-tunnel config check\n  agent-tunnel config show"
    )]
    Config(ConfigCommand),
    #[command(flatten)]
    #[expect(missing_docs, reason = "hidden commands of the runtime")]
    Generate(Generate),
}

/// Answer a question
#[derive(Debug, Subcommand)]
pub enum ConsentCommand {
    /// Let the technician reach what they asked for, in this session
    #[command(after_help = "Examples:\n  agent-tunnel consent allow 3")]
    Allow {
        /// Number from the list
        id: u64,
    },
    /// Refuse it, for this session
    #[command(after_help = "Examples:\n  agent-tunnel consent deny 3")]
    Deny {
        /// Number from the list
        id: u64,
    },
}

/// Receipts
#[derive(Debug, Subcommand)]
pub enum ReceiptsCommand {
    /// Write all receipts that are kept, a JSON line for each
    #[command(after_help = "Examples:\n  agent-tunnel receipts export > receipts.jsonl\n  \
                      mediator audit verify --receipts receipts.jsonl")]
    Export,
}

/// Heads of the audit log
#[derive(Debug, Subcommand)]
pub enum WitnessCommand {
    /// Print the signed heads, as mediator audit verify --head takes them, and alerts
    #[command(after_help = "Examples:\n  agent-tunnel witness show\n  \
                      agent-tunnel witness show > heads.jsonl")]
    Show,
    /// Believe the next head shown, after a backup was restored on purpose; stop the agent first
    #[command(after_help = "Examples:\n  agent-tunnel witness accept")]
    Accept,
}

/// Show or check the endpoint owner's policy
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the policy in force and where it comes from
    #[command(after_help = "Examples:\n  agent-tunnel policy show\n  \
                            agent-tunnel policy show --json")]
    Show,
    /// Check policy.toml, or another file before putting it there
    #[command(after_help = "Examples:\n  agent-tunnel policy check\n  \
                            agent-tunnel policy check new-policy.toml")]
    Check {
        /// File to check [default: policy.toml of the data directory]
        file: Option<PathBuf>,
    },
}

/// Does what the command line says.
pub fn execute(cli: Cli) -> Result<(), CliError> {
    let Cli { global, command } = cli;
    if let Command::Generate(generate) = &command {
        return generate.run::<Cli>();
    }
    let output = global.output();
    let path = global.data_dir(&PROGRAM)?;
    let level = match &command {
        // The level of a running agent can be configured; a wrong configuration ends it here.
        Command::Run => Settings::load(&global, &path)?.log_level,
        _ => global.log_level.clone().unwrap_or_else(|| COMMAND_LOG_LEVEL.to_owned()),
    };
    let log = logging::init(&level, global.log_format)?;
    match command {
        Command::Enroll { token, name, tags } => {
            let dir = DataDir::open(path)?;
            let proxy = Settings::load(&global, dir.path())?.proxy();
            let request = enroll::Request { token, name, tags, proxy };
            block_on(enroll::run(dir, request, output))
        }
        Command::Run => block_on(run::run(DataDir::open_existing(path)?, &global, log, output)),
        Command::Status => block_on(commands::status(DataDir::open_existing(path)?, output)),
        Command::Policy(PolicyCommand::Show) => {
            commands::policy_show(DataDir::open_existing(path)?, output)
        }
        Command::Policy(PolicyCommand::Check { file }) => {
            commands::policy_check(path, file.as_deref(), output)
        }
        Command::Lock => block_on(commands::lock(DataDir::open_existing(path)?, true, output)),
        Command::Unlock => block_on(commands::lock(DataDir::open_existing(path)?, false, output)),
        Command::Consent { answer } => {
            let dir = DataDir::open_existing(path)?;
            match answer {
                None => block_on(commands::consent_list(dir, output)),
                Some(ConsentCommand::Allow { id }) => {
                    block_on(commands::consent_answer(dir, id, true, output))
                }
                Some(ConsentCommand::Deny { id }) => {
                    block_on(commands::consent_answer(dir, id, false, output))
                }
            }
        }
        Command::Receipts(ReceiptsCommand::Export) => {
            let dir = DataDir::open_existing(path)?;
            evidence::receipts_export(|line| adit_endpoint::export_receipts(dir.path(), line))
        }
        Command::Witness(WitnessCommand::Show) => {
            let dir = DataDir::open_existing(path)?;
            evidence::witness_show(adit_endpoint::read_witness(dir.path()))
        }
        Command::Witness(WitnessCommand::Accept) => {
            commands::witness_accept(&DataDir::open_existing(path)?, output)
        }
        Command::Service(command) => service::run(&command, &path, output),
        Command::Config(command) => {
            let sources = settings::sources(&global, &path);
            command.run_checked(&PROGRAM, KEYS, &sources, output, |c| Settings::read(c).map(drop))
        }
        Command::Generate(_) => Ok(()),
    }
}

/// One thread: sessions are few on one computer, and a byte that need not change threads
/// arrives sooner.
fn block_on(task: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        CliError::failed("runtime_failed", format!("cannot start the runtime: {error}"))
    })?;
    let result = runtime.block_on(task);
    // A name that is still being resolved must not hold up the end.
    runtime.shutdown_background();
    result
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

    #[test]
    fn tags_need_a_key() {
        assert_eq!(enroll::parse_tag("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(enroll::parse_tag("=b").is_err() && enroll::parse_tag("a").is_err());
    }
}
