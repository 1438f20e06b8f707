//! The technician's console: finds a computer, opens a redirector on it, starts the viewer.
//!
//! `console-tunnel open web01 rdp` binds a local port, asks the mediator for a session, proves
//! itself to the agent end to end, and carries the viewer's bytes. This crate is the command
//! line; sessions live in `adit-endpoint`.
//!
//! - [`cli`], [`config`]: arguments and configuration
//! - [`commands`]: what is over quickly; [`open`]: `open` and `forward`
//! - [`link`]: the control connection; [`session`]: sessions, the only user of the endpoint
//! - [`learning`]: what is learnt by the way, for the next session
//! - [`admin`]: what administrators do; [`api`]: the HTTPS API
//! - [`picker`]: what `console-tunnel` alone shows on a terminal
//! - [`explain`]: why a session's path is what it is; [`advice`]: in words
//! - [`forward`]: local ports and SOCKS; [`viewer`]: programs that show a redirector
//! - [`credentials`]: what a viewer is given without anybody reading it
//! - [`state`]: account, known agents, computers
//! - [`events`], [`writer`], [`failure`]: what is told, and how
//!
//! Invariants: no session with an agent whose key is not the known one; programs that are
//! started come from the build or this console's configuration, never from a server; nothing but
//! the asked-for output on stdout.

pub mod admin;
pub mod advice;
pub mod api;
pub mod cli;
pub mod commands;
pub mod config;
pub mod credentials;
pub mod events;
pub mod explain;
pub mod failure;
pub mod forward;
pub mod learning;
pub mod link;
pub mod open;
pub mod picker;
pub mod session;
pub mod state;
pub mod viewer;
pub mod writer;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use adit_runtime::{
    cli::{CliError, GlobalArgs, evidence, parse, report},
    datadir::DataDir,
    interrupt,
    shutdown::Shutdown,
};
use tokio_util::sync::CancellationToken;

use cli::{AuditCommand, Cli, Command, ReceiptsCommand, SessionsCommand, WitnessCommand};
use config::{Context, KEYS, PROGRAM, sources};

/// Time for what still runs in the background, such as a name being resolved, when we are done.
const BACKGROUND: Duration = Duration::from_millis(50);

/// Runs the program with this process's arguments.
pub fn run() -> ExitCode {
    // Started by a viewer of ours, to be told a password.
    #[cfg(unix)]
    if let Some(code) = viewer::handover::run_askpass() {
        return code;
    }
    let started = Instant::now();
    interrupt::from_the_start();
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let json = cli.global.json;
    match &cli.command {
        // What has sessions ends them first.
        None | Some(Command::Open(_) | Command::Forward(_) | Command::Explain(_)) => {
            report(dispatch(cli, started, &CancellationToken::new()), json)
        }
        Some(_) => interrupt::run(json, |stop| dispatch(cli, started, stop)),
    }
}

/// `stop`: an end was asked for; heard by what is over quickly.
fn dispatch(cli: Cli, started: Instant, stop: &CancellationToken) -> Result<(), CliError> {
    let Cli { global, command } = cli;
    match command {
        None if picker::is_possible(&global) => with_picker(global),
        None => Err(CliError::usage("usage", "a command is expected").hint("see --help")),
        Some(Command::Generate(generate)) => generate.run::<Cli>(),
        Some(Command::Config(command)) => {
            let sources = sources(&global)?;
            let config = adit_runtime::config::Config::load(&PROGRAM, KEYS, &sources)?;
            config::check(&config)?;
            config::dialer(&config)?;
            command.run(&PROGRAM, KEYS, &sources, global.output())
        }
        Some(Command::Audit(AuditCommand::Verify(args))) => {
            commands::audit::run(global.output(), args)
        }
        Some(Command::Receipts(ReceiptsCommand::Export)) => {
            let dir = own_directory(&global)?;
            evidence::receipts_export(|line| adit_endpoint::export_receipts(dir.path(), line))
        }
        Some(Command::Witness(WitnessCommand::Show)) => {
            evidence::witness_show(adit_endpoint::read_witness(own_directory(&global)?.path()))
        }
        Some(Command::Witness(WitnessCommand::Accept)) => {
            commands::receipts::witness_accept(&own_directory(&global)?, global.output())
        }
        Some(command) => {
            let context = Context::load(global)?;
            block_on(execute(&context, command, started, stop))
        }
    }
}

/// The data directory, without asking for anything else of the configuration.
fn own_directory(global: &GlobalArgs) -> Result<DataDir, CliError> {
    DataDir::open_existing(global.data_dir(&PROGRAM)?)
}

/// Nothing was asked for, on a terminal.
fn with_picker(global: GlobalArgs) -> Result<(), CliError> {
    let context = Context::load(global)?;
    block_on(async {
        let shutdown = Shutdown::install()?;
        picker::run(&context, &shutdown).await
    })
}

fn block_on(work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        CliError::failed("runtime_failed", format!("cannot start the runtime: {error}"))
    })?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(BACKGROUND);
    result
}

async fn execute(
    context: &Context,
    command: Command,
    started: Instant,
    stop: &CancellationToken,
) -> Result<(), CliError> {
    match command {
        Command::Open(args) => open::open(context, &args, &Shutdown::install()?, started).await,
        Command::Forward(args) => {
            open::forward(context, &args, &Shutdown::install()?, started).await
        }
        Command::Explain(args) => open::explain::run(context, &args, &Shutdown::install()?).await,
        quick => tokio::select! {
            result = quickly(context, quick) => result,
            () = stop.cancelled() => Err(CliError::interrupted()),
        },
    }
}

async fn quickly(context: &Context, command: Command) -> Result<(), CliError> {
    match command {
        Command::Login(args) => commands::login::login(context, args).await,
        Command::Logout => commands::login::logout(context).await,
        Command::Whoami => commands::login::whoami(context).await,
        Command::Mfa(command) => commands::mfa::run(context, command).await,
        Command::Computers(args) => commands::computers::list(context, &args).await,
        Command::Trust { computer, fingerprint } => {
            commands::trust::trust(context, &computer, fingerprint).await
        }
        Command::Audit(AuditCommand::Search { filter, limit }) => {
            commands::log::search(context, &filter, limit).await
        }
        Command::Audit(AuditCommand::Export { format, filter, head, output }) => {
            commands::log::export(context, (&format, &filter, &head), output.as_deref()).await
        }
        Command::Netcheck(args) => commands::netcheck::run(context, &args).await,
        Command::Credentials(command) => commands::credentials::run(context, command).await,
        Command::Admin(command) => admin::run(context, command).await,
        Command::Requests(command) => commands::requests::run(context, command).await,
        Command::Sessions(args) => match args.command {
            None => commands::sessions::list(context).await,
            Some(SessionsCommand::End { id, reason }) => {
                commands::sessions::end(context, id, &reason).await
            }
        },
        // INVARIANT: these were handled before; see `dispatch` and `execute`.
        Command::Open(_)
        | Command::Forward(_)
        | Command::Explain(_)
        | Command::Audit(_)
        | Command::Receipts(_)
        | Command::Witness(_)
        | Command::Config(_)
        | Command::Generate(_) => Err(CliError::failed("internal", "command in the wrong place")),
    }
}
