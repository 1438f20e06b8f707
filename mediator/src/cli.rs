//! The command line.

mod access;
mod accounts;
mod audit;
mod clients;
mod credentials;
mod erasure;
mod receipts;
mod relays;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_runtime::{
    cli::{CliError, Generate, GlobalArgs, parse, report},
    config::{Config, ConfigCommand, Sources, parse_some_duration},
    datadir::{FileLock, Part},
    interrupt,
    local::{LocalClient, LocalError, socket_path},
    people, secretio,
};
use clap::{Parser, Subcommand};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    admin::{AdminContext, AdminRequest, Secret, accounts::AccountAct, handle},
    age::Identity,
    config::{KEYS, PROGRAM, Settings},
    init::{self, InitOptions},
    place::{MediatorDir, store_error},
    roles::role::TECHNICIAN,
    serve,
    store::{Mode, Writer},
    vault::{Vault, tenant::TenantKeys},
};

/// Time for a server that was just started to listen on its local socket.
const STARTING: Duration = Duration::from_secs(5);
/// How often that is looked at.
const STARTING_LOOK: Duration = Duration::from_millis(100);

/// Authorises and audits sessions, and brokers them between console and agent
#[derive(Parser)]
#[command(
    name = "mediator",
    arg_required_else_help = true,
    after_help = "Example: mediator init --host adit.example.com, then mediator serve"
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set up a mediator: keys, certificate, database, first partner and administrator
    #[command(after_help = "Example: mediator init --data-dir /srv/adit --host adit.example.com")]
    Init(InitArgs),
    /// Run the mediator
    #[command(after_help = "Example: mediator serve --data-dir /srv/adit")]
    Serve,
    /// Clients of partners
    #[command(subcommand, after_help = "Example: mediator client add acme/headquarters")]
    Client(clients::ClientCommand),
    /// Partners
    #[command(subcommand, after_help = "Example: mediator partner erase acme --yes")]
    Partner(erasure::PartnerCommand),
    /// Certificates of destruction
    #[command(
        subcommand,
        after_help = "Example: mediator certificate verify erased.json --key sha256:…"
    )]
    Certificate(erasure::CertificateCommand),
    /// Enrolment tokens
    #[command(subcommand, after_help = "Example: mediator token agent --client acme/headquarters")]
    Token(TokenCommand),
    /// Technicians and administrators
    #[command(subcommand, after_help = "Example: mediator user add jane")]
    User(UserCommand),
    /// Technicians' devices
    #[command(subcommand, after_help = "Example: mediator device list")]
    Device(accounts::DeviceCommand),
    /// Relays: list, drain, disable
    #[command(subcommand, after_help = "Example: mediator relay list")]
    Relay(relays::RelayCommand),
    /// Credentials of clients
    #[command(subcommand, after_help = "Example: mediator credential list --client acme/berlin")]
    Credential(credentials::CredentialCommand),
    /// Keys over stored secrets
    #[command(subcommand, after_help = "Example: mediator vault rotate")]
    Vault(accounts::VaultCommand),
    /// Identity providers (OpenID Connect) with which users log in on the page
    #[command(subcommand, after_help = "Example: mediator oidc list")]
    Oidc(accounts::OidcCommand),
    /// Roles and to whom they are bound
    #[command(subcommand, after_help = "Example: mediator role list")]
    Role(access::RoleCommand),
    /// Computers, their groups and tags
    #[command(subcommand, after_help = "Example: mediator computer list")]
    Computer(access::ComputerCommand),
    /// Requests for access
    #[command(subcommand, after_help = "Example: mediator request list --pending")]
    Request(access::RequestCommand),
    /// Which rule lets a user open a redirector, or does not
    #[command(after_help = "Example: mediator explain jane acme/headquarters/pc-1 rdp --at 24h")]
    Explain(access::ExplainArgs),
    /// Open sessions
    #[command(subcommand, after_help = "Example: mediator session list")]
    Session(SessionCommand),
    /// The audit log
    #[command(subcommand, after_help = "Example: mediator audit export --format jsonl")]
    Audit(audit::AuditCommand),
    /// Copy the database to a new file, without keys
    #[command(
        after_help = "Example: mediator backup /backup/adit-2026-03-01.db\n\nThe key files of \
        the data directory are not in it: keep a copy of root.key elsewhere.\n\n\
        With --recipient it is sealed, in the format of age, and nobody else can read it."
    )]
    Backup {
        /// File to write; must not exist
        file: PathBuf,
        /// Seal it for this recipient: age1…, as `mediator backup-key` prints it; may be repeated
        #[arg(long = "recipient", value_name = "RECIPIENT")]
        recipients: Vec<String>,
    },
    /// Make a key that opens sealed backups, and print the recipient to seal them for
    #[command(
        after_help = "Example: mediator backup-key backup.key\n\nKeep the file where backups are \
        not, and not on the mediator's machine: it is needed for mediator restore alone."
    )]
    BackupKey {
        /// File to write; must not exist
        file: PathBuf,
    },
    /// Rewrite the database without traces of what was deleted
    #[command(
        after_help = "Example: mediator compact\n\nA running mediator rewrites up to 512 MiB: \
        stop it for larger ones."
    )]
    Compact,
    /// Put a backup in the place of the database; the mediator must be stopped
    #[command(after_help = "Examples: mediator restore /backup/adit-2026-03-01.db\n\
        mediator restore /backup/adit-2026-03-01.age --identity backup.key")]
    Restore {
        /// File that `backup` wrote
        file: PathBuf,
        /// Key that opens a sealed one, as `mediator backup-key` made it
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
    },
    /// Whether it runs, and how much is connected
    #[command(after_help = "Example: mediator status --json")]
    Status,
    /// The configuration
    #[command(subcommand, after_help = "Example: mediator config show")]
    Config(ConfigCommand),
    #[command(flatten)]
    Generate(Generate),
}

#[derive(clap::Args)]
struct InitArgs {
    /// Names and addresses by which it is reached, comma-separated
    #[arg(long, value_name = "NAME_OR_IP", value_delimiter = ',', required = true)]
    host: Vec<String>,
    /// TCP port; 0: any free one
    #[arg(long, default_value_t = 443)]
    port: u16,
    /// UDP port for STUN, and the next one; 0: any free pair
    #[arg(long, default_value_t = 3478, value_parser = clap::value_parser!(u16).range(0..65535))]
    stun_port: u16,
    /// Name of the first administrator
    #[arg(long, default_value = "admin")]
    admin: String,
    /// Name of the first partner
    #[arg(long, default_value = "main")]
    partner: String,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// A token that enrols agents of a client
    #[command(
        after_help = "Example: mediator token agent --client acme/headquarters --uses 20\n\n\
        Whoever has the token enrols computers of that client: hand it over like a password."
    )]
    Agent {
        /// PARTNER/CLIENT
        #[arg(long)]
        client: String,
        /// How many agents it enrols
        #[arg(long, default_value_t = 1)]
        uses: u64,
        /// How long it is good
        #[arg(long, default_value = "24h", value_parser = parse_some_duration)]
        ttl: std::time::Duration,
    },
    /// A token that enrols a relay
    #[command(after_help = "Example: mediator token relay --region eu-west")]
    Relay {
        /// Region of the relay
        #[arg(long, default_value = "")]
        region: String,
        /// How many relays it enrols
        #[arg(long, default_value_t = 1)]
        uses: u64,
        /// How long it is good
        #[arg(long, default_value = "1h", value_parser = parse_some_duration)]
        ttl: std::time::Duration,
    },
}

#[derive(Subcommand)]
enum UserCommand {
    /// Add a user; without --password-stdin a password is generated and shown once
    #[command(after_help = "Example: mediator user add jane --role technician")]
    Add {
        /// Name to log in with
        user: String,
        /// Partner the user belongs to [default: the first one]
        #[arg(long)]
        partner: Option<String>,
        /// Role on the whole partner; none: bind one later with `mediator role bind`
        #[arg(long, default_value = TECHNICIAN)]
        role: String,
        /// Require a second factor from the first login on; the password may then be shorter
        #[arg(long)]
        mfa: bool,
        /// Read the password from stdin
        #[arg(long)]
        password_stdin: bool,
    },
    /// List users
    #[command(after_help = "Example: mediator user list --json")]
    List,
    /// Disable a user; sessions end
    #[command(after_help = "Example: mediator user disable jane")]
    Disable {
        /// Name
        user: String,
    },
    /// Enable a disabled user
    #[command(after_help = "Example: mediator user enable jane")]
    Enable {
        /// Name
        user: String,
    },
    /// Put a user into a group
    #[command(after_help = "Example: mediator user group jane night-shift")]
    Group {
        /// Name
        user: String,
        /// Name of the group
        group: String,
        /// Take the user out
        #[arg(long)]
        remove: bool,
    },
    /// The second factor of a user
    #[command(subcommand, after_help = "Example: mediator user mfa reset jane")]
    Mfa(accounts::MfaCommand),
    /// List the logins and live sessions of a user
    #[command(after_help = "Example: mediator user sessions jane --json")]
    Sessions {
        /// Name
        user: String,
    },
    /// End all logins and live sessions of a user
    #[command(after_help = "Example: mediator user logout jane")]
    Logout {
        /// Name
        user: String,
    },
    /// Set a password, or generate one and show it once
    #[command(after_help = "Example: mediator user password jane")]
    Password {
        /// Name
        user: String,
        /// Read the password from stdin
        #[arg(long)]
        password_stdin: bool,
    },
}

#[derive(Subcommand)]
enum SessionCommand {
    /// List open sessions
    #[command(after_help = "Example: mediator session list --json")]
    List,
    /// End a session
    #[command(after_help = "Example: mediator session end 0190a0a0-0000-7000-8000-000000000000")]
    End {
        /// Session id
        session: String,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    interrupt::from_the_start();
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let json = cli.global.json;
    let serves = matches!(cli.command, Command::Serve);
    let work = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let failed = |error: std::io::Error| CliError::failed("runtime_failed", error.to_string());
        runtime.map_err(failed)?.block_on(run(cli))
    };
    // The server stops in its own way.
    if serves { report(work(), json) } else { interrupt::run(json, |_| work()) }
}

async fn run(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    match cli.command {
        Command::Init(args) => {
            let InitArgs { host, port, stun_port, admin, partner } = args;
            init::run(global, InitOptions { hosts: host, port, stun_port, admin, partner }).await
        }
        Command::Serve => serve::run(global).await,
        Command::Client(command) => clients::run(global, command).await,
        Command::Token(command) => token(global, command).await,
        Command::User(command) => user(global, command).await,
        Command::Device(command) => ask(global, AdminRequest::Accounts(command.into())).await,
        Command::Relay(command) => ask(global, AdminRequest::Relays(command.into())).await,
        Command::Partner(command) => erasure::partner(global, command).await,
        Command::Certificate(command) => erasure::certificate(global, command).await,
        Command::Credential(command) => credentials::run(global, command).await,
        Command::Oidc(command) => ask(global, AdminRequest::Oidc(command.into())).await,
        Command::Vault(command) => ask(global, AdminRequest::Accounts(command.into())).await,
        Command::Role(command) => access::role(global, command).await,
        Command::Computer(command) => access::computer(global, command).await,
        Command::Request(command) => access::request(global, command).await,
        Command::Explain(args) => access::explain(global, args).await,
        Command::Session(SessionCommand::List) => ask(global, AdminRequest::SessionList).await,
        Command::Session(SessionCommand::End { session }) => {
            ask(global, AdminRequest::SessionEnd { session }).await
        }
        Command::Audit(command) => audit::run(global, command).await,
        Command::Backup { file, recipients } => {
            let file = std::path::absolute(&file)
                .ok()
                .and_then(|path| path.to_str().map(str::to_owned))
                .ok_or_else(|| CliError::usage("usage", "the path of the backup is no text"))?;
            ask(global, AdminRequest::Backup { file, recipients }).await
        }
        Command::BackupKey { file } => backup_key(global, &file),
        Command::Compact => ask(global, AdminRequest::Compact).await,
        Command::Restore { file, identity } => {
            crate::restore::run(global, &file, identity.as_deref()).await
        }
        Command::Status => status(global).await,
        Command::Config(command) => {
            let data_dir = global.data_dir(&PROGRAM)?;
            let sources = Sources::new(global.config.as_deref(), &data_dir);
            let check = |config: &Config| Settings::of(config).map(|_| ());
            command.run_checked(&PROGRAM, KEYS, &sources, global.output(), check)
        }
        Command::Generate(generate) => generate.run::<Cli>(),
    }
}

/// A key that opens sealed backups; needs no mediator.
fn backup_key(global: &GlobalArgs, file: &std::path::Path) -> Result<(), CliError> {
    let failed = |what: &dyn std::fmt::Display| {
        CliError::failed("output_failed", format!("cannot write {}: {what}", file.display()))
    };
    if file.exists() {
        return Err(failed(&"it exists").hint("the backups sealed for it could not be opened"));
    }
    let (identity, secret) = Identity::generate()
        .map_err(|error| CliError::failed("crypto_failed", error.to_string()))?;
    let recipient = identity.recipient().to_string();
    let text = Zeroizing::new(format!("# recipient: {recipient}\n{}\n", secret.as_str()));
    let mut part = Part::create(file).map_err(|error| failed(&error))?;
    let written = part.write(text.as_bytes()).and_then(|()| part.finish());
    written.map_err(|error| failed(&error))?;
    let output = global.output();
    output
        .emit(&serde_json::json!({"file": file.display().to_string(), "recipient": recipient}))?;
    // The recipient alone, so that a script can take it.
    output.human(recipient)
}

/// Whether it runs, and how much is connected.
async fn status(global: &GlobalArgs) -> Result<(), CliError> {
    let output = global.output();
    let status = call(global, AdminRequest::Status).await?.pop().unwrap_or_default();
    output.emit(&status)?;
    people::one(output, &status)?;
    match status.get("state").and_then(Value::as_str) {
        // As the other programs say it.
        Some("stopped") => Err(CliError::not_there("not_running", "the mediator does not run")
            .hint("start it with mediator serve")),
        _ => Ok(()),
    }
}

async fn token(global: &GlobalArgs, command: TokenCommand) -> Result<(), CliError> {
    let ms = |ttl: std::time::Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let request = match command {
        TokenCommand::Agent { client, uses, ttl } => {
            AdminRequest::TokenAgent { client, uses, ttl_ms: ms(ttl) }
        }
        TokenCommand::Relay { region, uses, ttl } => {
            AdminRequest::TokenRelay { region, uses, ttl_ms: ms(ttl) }
        }
    };
    let output = global.output();
    for reply in call(global, request).await? {
        output.emit(&reply)?;
        // The token alone, so that a script can take it.
        output.human(reply.get("token").and_then(Value::as_str).unwrap_or_default())?;
    }
    Ok(())
}

async fn user(global: &GlobalArgs, command: UserCommand) -> Result<(), CliError> {
    let secret = |from_stdin: bool| {
        let text = from_stdin.then(|| secretio::from_stdin("password")).transpose();
        text.map(|text| text.map(Secret::new))
    };
    let request = match command {
        UserCommand::Add { user, partner, role, mfa, password_stdin } => {
            AdminRequest::UserAdd { user, partner, role, mfa, password: secret(password_stdin)? }
        }
        UserCommand::Mfa(command) => AdminRequest::Accounts(command.into()),
        UserCommand::Sessions { user } => AdminRequest::Accounts(AccountAct::Logins { user }),
        UserCommand::Logout { user } => AdminRequest::Accounts(AccountAct::Logout { user }),
        UserCommand::List => AdminRequest::UserList { only: None },
        UserCommand::Disable { user } => AdminRequest::UserDisable { user, disabled: true },
        UserCommand::Enable { user } => AdminRequest::UserDisable { user, disabled: false },
        UserCommand::Group { user, group, remove } => {
            let act = crate::admin::access::AccessAct::UserGroup { user, group, remove };
            AdminRequest::Access(act)
        }
        UserCommand::Password { user, password_stdin } => {
            AdminRequest::UserPassword { user, password: secret(password_stdin)? }
        }
    };
    ask(global, request).await
}

/// Asks and prints the replies: a list as a table for people, one thing as lines.
async fn ask(global: &GlobalArgs, request: AdminRequest) -> Result<(), CliError> {
    let (output, lists) = (global.output(), lists(&request));
    let replies = call(global, request).await?;
    for reply in &replies {
        output.emit(reply)?;
    }
    if lists {
        return people::list(output, &replies, &[]);
    }
    replies.iter().try_for_each(|reply| people::one(output, reply))
}

/// Whether the answer is a list, however many are in it.
fn lists(request: &AdminRequest) -> bool {
    use crate::admin::{
        access::AccessAct, credentials::CredentialAct, oidc::OidcAct, relays::RelayAct,
    };
    matches!(
        request,
        AdminRequest::ClientList
            | AdminRequest::PartnerList
            | AdminRequest::UserList { .. }
            | AdminRequest::SessionList
            | AdminRequest::Relays(RelayAct::List)
            | AdminRequest::Oidc(OidcAct::List)
            | AdminRequest::Credentials(CredentialAct::List { .. })
            | AdminRequest::Accounts(AccountAct::DeviceList | AccountAct::Logins { .. })
            | AdminRequest::Access(
                AccessAct::RoleList { .. }
                    | AccessAct::ComputerList { .. }
                    | AccessAct::RequestList { .. }
            )
    )
}

/// Through the running server, or under the lock when none runs.
async fn call(global: &GlobalArgs, request: AdminRequest) -> Result<Vec<Value>, CliError> {
    let place = MediatorDir::open(global)?;
    let value = serde_json::to_value(&request)
        .map_err(|error| CliError::failed("internal", error.to_string()))?;
    let socket = socket_path(place.dir.path(), PROGRAM.name);
    let deadline = Instant::now() + STARTING;
    loop {
        match LocalClient::call(&socket, value.clone()).await {
            Err(LocalError::NotRunning(_)) => {}
            answer => return answer.map_err(CliError::from),
        }
        match place.dir.lock(PROGRAM.name) {
            Ok(lock) => return directly(&place, request, lock).await,
            // Somebody holds the lock and does not listen yet: the server is just starting.
            Err(error) if error.code == "already_running" && Instant::now() < deadline => {
                tokio::time::sleep(STARTING_LOOK).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn directly(
    place: &MediatorDir,
    request: AdminRequest,
    _lock: FileLock,
) -> Result<Vec<Value>, CliError> {
    let installation = place.installation()?;
    let store = place.store(Mode::Write).await?;
    let stop = tokio_util::sync::CancellationToken::new();
    let signer = installation.log_signer();
    let (writer, task) = Writer::start(&store, signer, stop.clone()).await.map_err(store_error)?;
    let keys = place.wrapping_keys()?;
    let context = Arc::new(AdminContext {
        store: store.clone(),
        writer: writer.clone(),
        root: installation.root().fingerprint(),
        hosts: place.settings.hosts.clone(),
        port: place.public_port(),
        broker: None,
        rules: Default::default(),
        accounts: place.settings.accounts,
        retention_ms: place.settings.audit.retention_ms,
        export_dir: place.settings.audit.export.clone().map(|(dir, _)| dir),
        signer: installation.log_signer(),
        vault: Vault {
            store: store.clone(),
            writer,
            keys: TenantKeys::new(keys.clone(), place.dir.clone()),
        },
        keys,
        dir: place.dir.clone(),
        refusals: Default::default(),
        rotation: Default::default(),
        erasing: Default::default(),
    });
    let (done, ()) = tokio::join!(
        async {
            let done = handle(context, crate::admin::actor::Actor::Local, request).await;
            stop.cancel();
            done
        },
        task
    );
    store.close().await;
    done
}
