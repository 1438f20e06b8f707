//! Commands of `admin`, as the mediator's own are called.

use std::{path::PathBuf, time::Duration};

use adit_runtime::{cli::CertificateArg, config::parse_some_duration};
use clap::{Args, Subcommand};

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum AdminCommand {
    /// Show as whom and by which rules you act
    #[command(after_help = "Example:\n  console-tunnel admin me")]
    Me,
    /// Partners
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin partner list")]
    Partner(Partner),
    /// Clients
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin client add acme/berlin")]
    Client(Client),
    /// Certificates of what was erased; `mediator certificate verify` checks one without any server
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin certificate list --json")]
    Certificate(Certificate),
    /// Computers, their names, groups and tags
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin computer list --online")]
    Computer(Computer),
    /// Users, their second factors and logins
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin user disable jane")]
    User(User),
    /// Technicians' devices
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin device list")]
    Device(Device),
    /// Roles and to whom they are bound
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin role list")]
    Role(Role),
    /// Requests for access
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin request list --pending")]
    Request(Request),
    /// Open sessions
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin session list")]
    Session(Session),
    /// Enrolment tokens
    #[command(
        subcommand,
        after_help = "Example:\n  console-tunnel admin token agent --client acme/berlin"
    )]
    Token(Token),
    /// Relays
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin relay list")]
    Relay(Relay),
    /// Keys for programs that use the HTTPS API
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin api-key list")]
    ApiKey(ApiKey),
    /// Identity providers (OpenID Connect) with which users log in on the page
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin oidc list")]
    Oidc(Oidc),
    /// What the audit log keeps, and how far its receivers are
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin audit retention show")]
    Audit(Audit),
    /// Keys over stored secrets
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin vault rotate")]
    Vault(Vault),
    /// Take a copy of the mediator's database, sealed for recipients
    #[command(after_help = "Example:
  console-tunnel admin backup adit-2026-03-01.age --recipient age1…

mediator backup-key makes a key and prints its recipient (age-keygen does, too). The copy is put
back on the mediator's machine: mediator restore FILE --identity KEY.")]
    Backup(Backup),
    /// Rewrite the mediator's database without traces of what was deleted
    #[command(after_help = "Example:\n  console-tunnel admin compact")]
    Compact,
    /// How much is connected to the mediator
    #[command(after_help = "Example:\n  console-tunnel admin status --json")]
    Status,
    /// Which rule lets a user open a redirector, or does not
    #[command(
        after_help = "Example:\n  console-tunnel admin explain jane acme/berlin/web01 rdp --at 24h"
    )]
    Explain(Explain),
    /// Send any request to the HTTPS API
    #[command(after_help = "Examples:
  console-tunnel admin call GET /api/v1/roles
  console-tunnel admin call POST /api/v1/users --data '{\"user\":\"jane\"}'")]
    Call {
        /// GET, POST, PUT or DELETE
        method: String,
        /// Path with query, from /api/v1 on
        path: String,
        /// Body, JSON
        #[arg(long)]
        data: Option<String>,
    },
}

/// Partners.
#[derive(Debug, Clone, Subcommand)]
pub enum Partner {
    /// List them
    #[command(after_help = "Example:\n  console-tunnel admin partner list --json")]
    List,
    /// Add one with its first user, whose password is shown once
    #[command(after_help = "Example:\n  console-tunnel admin partner add acme --owner ann")]
    Add {
        /// Name
        partner: String,
        /// Name of its owner
        #[arg(long)]
        owner: String,
    },
    /// Erase your own with its clients, computers, users and credentials, yourself included
    #[command(
        after_help = "Example:\n  console-tunnel admin partner erase acme --certificate erased.json\n\n\
        On a terminal its name is asked for once more; elsewhere give --yes. What comes back is \
        the certificate of destruction."
    )]
    Erase {
        /// Name
        partner: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Where the certificate goes.
        #[command(flatten)]
        certificate: CertificateArg,
    },
}

/// Clients.
#[derive(Debug, Clone, Subcommand)]
pub enum Client {
    /// List them
    #[command(after_help = "Example:\n  console-tunnel admin client list --json")]
    List,
    /// Add one
    #[command(after_help = "Example:\n  console-tunnel admin client add acme/berlin")]
    Add {
        /// PARTNER/CLIENT
        path: String,
    },
    /// Lock one down: live sessions end, none can be opened
    #[command(
        after_help = "Example:\n  console-tunnel admin client lockdown acme/berlin --reason 'incident 7'"
    )]
    Lockdown {
        /// PARTNER/CLIENT
        path: String,
        /// Why; for the audit record
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// End a lockdown
    #[command(after_help = "Example:\n  console-tunnel admin client unlock acme/berlin")]
    Unlock {
        /// PARTNER/CLIENT
        path: String,
    },
    /// Delete one with its computers and personal data
    #[command(
        after_help = "Example:\n  console-tunnel admin client erase acme/berlin --yes --certificate erased.json\n\n\
        What comes back is the certificate of destruction."
    )]
    Erase {
        /// PARTNER/CLIENT
        path: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Where the certificate goes.
        #[command(flatten)]
        certificate: CertificateArg,
    },
}

/// Certificates.
#[derive(Debug, Clone, Subcommand)]
pub enum Certificate {
    /// List erasures; with --json each has its certificate
    #[command(after_help = "Example:\n  console-tunnel admin certificate list --json")]
    List,
    /// Print one
    #[command(
        after_help = "Example:\n  console-tunnel admin certificate show 0190a0a0-… > erased.json"
    )]
    Show {
        /// Id of the erasure, as `list` prints it
        erasure: String,
    },
}

/// Computers.
#[derive(Debug, Clone, Subcommand)]
pub enum Computer {
    /// List them with their groups and tags
    #[command(after_help = "Example:\n  console-tunnel admin computer list web --tag site=berlin")]
    List {
        /// Part of a name or id
        #[arg(default_value = "", hide_default_value = true)]
        query: String,
        /// Of this client: PARTNER/CLIENT
        #[arg(long)]
        client: Option<String>,
        /// Of this group
        #[arg(long)]
        group: Option<String>,
        /// With this tag: KEY=VALUE
        #[arg(long)]
        tag: Option<String>,
        /// Only those that are online
        #[arg(long)]
        online: bool,
    },
    /// Put one into a group
    #[command(after_help = "Example:\n  console-tunnel admin computer group web01 servers")]
    Group {
        /// Name, id or PARTNER/CLIENT/COMPUTER
        computer: String,
        /// Name of the group
        group: String,
        /// Take it out
        #[arg(long)]
        remove: bool,
    },
    /// Give one a tag
    #[command(after_help = "Example:\n  console-tunnel admin computer tag web01 site=berlin")]
    Tag {
        /// Name, id or PARTNER/CLIENT/COMPUTER
        computer: String,
        /// KEY=VALUE
        tag: String,
        /// Take it away
        #[arg(long)]
        remove: bool,
    },
    /// Give one another name; rights, key and live sessions stay
    #[command(
        after_help = "Example:\n  console-tunnel admin computer rename acme/berlin/pc-7 web01"
    )]
    Rename {
        /// Name, id or PARTNER/CLIENT/COMPUTER
        computer: String,
        /// Its new name
        name: String,
    },
    /// Remove one: its sessions end, its agent is refused until it is enrolled again
    #[command(
        after_help = "Example:\n  console-tunnel admin computer remove acme/berlin/pc-7 --yes"
    )]
    Remove {
        /// Name, id or PARTNER/CLIENT/COMPUTER
        computer: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Users.
#[derive(Debug, Clone, Subcommand)]
pub enum User {
    /// List them
    #[command(after_help = "Example:\n  console-tunnel admin user list --json")]
    List,
    /// Show one
    #[command(after_help = "Example:\n  console-tunnel admin user show jane")]
    Show {
        /// Name
        user: String,
    },
    /// Add one; without --password-stdin a password is generated and shown once
    #[command(after_help = "Example:\n  console-tunnel admin user add jane --role technician")]
    Add {
        /// Name to log in with
        user: String,
        /// Role on the whole partner; none: bind one later with `admin role bind`
        #[arg(long, default_value = "technician")]
        role: String,
        /// Require a second factor from the first login on
        #[arg(long)]
        mfa: bool,
        /// Read the password from stdin
        #[arg(long)]
        password_stdin: bool,
    },
    /// Disable one; logins and live sessions end
    #[command(after_help = "Example:\n  console-tunnel admin user disable jane")]
    Disable {
        /// Name
        user: String,
    },
    /// Enable a disabled one
    #[command(after_help = "Example:\n  console-tunnel admin user enable jane")]
    Enable {
        /// Name
        user: String,
    },
    /// Put one into a group
    #[command(after_help = "Example:\n  console-tunnel admin user group jane night-shift")]
    Group {
        /// Name
        user: String,
        /// Name of the group
        group: String,
        /// Take the user out
        #[arg(long)]
        remove: bool,
    },
    /// Set a password, or generate one and show it once
    #[command(after_help = "Example:\n  console-tunnel admin user password jane")]
    Password {
        /// Name
        user: String,
        /// Read the password from stdin
        #[arg(long)]
        password_stdin: bool,
    },
    /// List the logins and live sessions of one
    #[command(after_help = "Example:\n  console-tunnel admin user sessions jane --json")]
    Sessions {
        /// Name
        user: String,
    },
    /// End all logins and live sessions of one
    #[command(after_help = "Example:\n  console-tunnel admin user logout jane")]
    Logout {
        /// Name
        user: String,
    },
    /// The second factor of one
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin user mfa reset jane")]
    Mfa(Mfa),
}

/// Second factors.
#[derive(Debug, Clone, Subcommand)]
pub enum Mfa {
    /// Show them, without secrets
    #[command(after_help = "Example:\n  console-tunnel admin user mfa status jane")]
    Status {
        /// Name
        user: String,
    },
    /// Require one before there is one
    #[command(after_help = "Example:\n  console-tunnel admin user mfa require jane")]
    Require {
        /// Name
        user: String,
        /// Only a security key, or a provider that asks for one
        #[arg(long)]
        phishing_resistant: bool,
    },
    /// Ask for one only once it is set up
    #[command(after_help = "Example:\n  console-tunnel admin user mfa optional jane")]
    Optional {
        /// Name
        user: String,
    },
    /// Remove all of them; logins and live sessions end
    #[command(after_help = "Example:\n  console-tunnel admin user mfa reset jane")]
    Reset {
        /// Name
        user: String,
    },
}

/// Devices.
#[derive(Debug, Clone, Subcommand)]
pub enum Device {
    /// List those with which somebody logged in, and those that are switched off
    #[command(after_help = "Example:\n  console-tunnel admin device list")]
    List,
    /// Switch one off; its logins and live sessions end
    #[command(
        after_help = "Example:\n  console-tunnel admin device disable sha256:9f86… --reason lost"
    )]
    Disable {
        /// Fingerprint
        device: String,
        /// Why; for the audit record
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
        /// For the users of all partners; takes the permission on the installation
        #[arg(long)]
        everybody: bool,
    },
    /// Switch one on again
    #[command(after_help = "Example:\n  console-tunnel admin device enable sha256:9f86…")]
    Enable {
        /// Fingerprint
        device: String,
        /// Undo what was done for all partners
        #[arg(long)]
        everybody: bool,
    },
}

/// Identity providers.
#[derive(Debug, Clone, Subcommand)]
pub enum Oidc {
    /// Add one; users link their accounts with it on their page
    #[command(after_help = "Example:
  console-tunnel admin oidc add Directory --issuer https://id.example \\
    --client-id adit --secret-stdin --mfa-amr mfa < secret

Register https://HOST/login/oidc/callback/directory there, the name in small letters. Without
policy.manage on the installation its address must be one that everybody can reach.
Without --mfa-acr and --mfa-amr its logins count as a password: a second factor is asked for here.")]
    Add(Box<NewProvider>),
    /// List them
    #[command(after_help = "Example:\n  console-tunnel admin oidc list --json")]
    List,
    /// Remove one and all links with it
    #[command(after_help = "Example:\n  console-tunnel admin oidc remove Directory")]
    Remove {
        /// Name
        name: String,
    },
    /// Link a user with a subject of one
    #[command(after_help = "Example:\n  console-tunnel admin oidc link jane Directory 7f3c…")]
    Link {
        /// Name of the user
        user: String,
        /// Name of the provider
        provider: String,
        /// Who that is there: the claim sub
        subject: String,
    },
    /// End a user's links with one
    #[command(after_help = "Example:\n  console-tunnel admin oidc unlink jane Directory")]
    Unlink {
        /// Name of the user
        user: String,
        /// Name of the provider
        provider: String,
    },
}

/// An identity provider to be added.
#[derive(Debug, Clone, Args)]
pub struct NewProvider {
    /// Name, as the page shows it
    pub name: String,
    /// Address of the provider: https://…
    #[arg(long)]
    pub issuer: String,
    /// The mediator's id there
    #[arg(long)]
    pub client_id: String,
    /// File here with the mediator's secret there
    #[arg(long, value_name = "FILE", conflicts_with = "secret_stdin")]
    pub secret_file: Option<PathBuf>,
    /// Read the mediator's secret there from stdin
    #[arg(long)]
    pub secret_stdin: bool,
    /// PEM file here with the provider's own authority, beside the system's
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Value of the claim acr that says that a second factor was asked for
    #[arg(long, value_name = "VALUE")]
    pub mfa_acr: Vec<String>,
    /// Value of the claim amr that says so
    #[arg(long, value_name = "VALUE")]
    pub mfa_amr: Vec<String>,
    /// What is asked for then resists phishing
    #[arg(long)]
    pub mfa_phishing_resistant: bool,
}

/// The audit log's settings.
#[derive(Debug, Clone, Subcommand)]
pub enum Audit {
    /// How long contents of your partner's log are kept
    #[command(subcommand, after_help = "Example:\n  console-tunnel admin audit retention show")]
    Retention(Retention),
    /// Up to which level events of a user are kept: 0 to 5; security events always are
    #[command(after_help = "Example:\n  console-tunnel admin audit level jane 5")]
    Level {
        /// Name
        user: String,
        /// 0 nothing, 1 critical, 2 significant, 3 informational, 4 normal, 5 everything
        #[arg(value_parser = clap::value_parser!(u8).range(0..=5))]
        level: u8,
    },
    /// How far receivers of the log are
    #[command(after_help = "Example:\n  console-tunnel admin audit forwarding --json")]
    Forwarding,
}

/// How long the log is kept.
#[derive(Debug, Clone, Subcommand)]
pub enum Retention {
    /// Show it
    #[command(after_help = "Example:\n  console-tunnel admin audit retention show --json")]
    Show,
    /// Keep it for so many days
    #[command(after_help = "Example:\n  console-tunnel admin audit retention set --days 365")]
    Set {
        /// Days, 120 or more; without it: as configured
        #[arg(long)]
        days: Option<u64>,
    },
    /// Delete and erase nothing until this hold, and each other one, is released
    #[command(
        after_help = "Example:\n  console-tunnel admin audit retention hold --reason 'case 7'\n\n\
        Each case has a hold of its own; the answer names it."
    )]
    Hold {
        /// Why: which case; shown by `show`, and for the audit record
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// End one legal hold
    #[command(
        after_help = "Example:\n  console-tunnel admin audit retention release HOLD\n\nWhere there \
        is only one, it need not be named."
    )]
    Release {
        /// Id of the hold, as `console-tunnel admin audit retention show` lists it
        hold: Option<String>,
    },
}

/// Keys over stored secrets.
#[derive(Debug, Clone, Subcommand)]
pub enum Vault {
    /// Make a new key and seal all secrets with it; waits for its end
    #[command(after_help = "Example:\n  console-tunnel admin vault rotate --data-keys")]
    Rotate {
        /// Also make new keys over the credentials of each client
        #[arg(long)]
        data_keys: bool,
    },
    /// How far the rotation is that runs, or ran last
    #[command(after_help = "Example:\n  console-tunnel admin vault status --json")]
    Status,
}

/// A backup to be taken.
#[derive(Debug, Clone, Args)]
pub struct Backup {
    /// File to write; must not exist
    pub file: PathBuf,
    /// Who can read it: age1…; may be repeated
    #[arg(long = "recipient", value_name = "RECIPIENT", required = true)]
    pub recipients: Vec<String>,
}

/// Where a role holds; nothing: the whole partner.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = false)]
pub struct Scope {
    /// The whole installation
    #[arg(long)]
    pub installation: bool,
    /// A client: PARTNER/CLIENT
    #[arg(long)]
    pub client: Option<String>,
    /// A group of computers
    #[arg(long, value_name = "GROUP")]
    pub computers: Option<String>,
    /// Computers with this tag: KEY=VALUE
    #[arg(long)]
    pub tag: Option<String>,
    /// A computer: name, id or PARTNER/CLIENT/COMPUTER
    #[arg(long)]
    pub computer: Option<String>,
}

/// Conditions.
#[derive(Debug, Clone, Default, Args)]
pub struct Conditions {
    /// What must be there: reason, ticket, approval
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = ["reason", "ticket", "approval"])]
    pub require: Vec<String>,
    /// Time window, e.g. "mon-fri 07:00-19:00 Europe/Berlin"
    #[arg(long)]
    pub hours: Option<String>,
    /// A second factor at most this old
    #[arg(long, value_parser = parse_some_duration)]
    pub mfa_within: Option<Duration>,
    /// Networks to come from, e.g. 192.0.2.0/24
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub from: Vec<String>,
    /// Longest session
    #[arg(long, value_parser = parse_some_duration)]
    pub max_length: Option<Duration>,
}

/// Roles.
#[derive(Debug, Clone, Subcommand)]
pub enum Role {
    /// List them with their permissions
    #[command(after_help = "Example:\n  console-tunnel admin role list --json")]
    List,
    /// List what can be permitted
    #[command(after_help = "Example:\n  console-tunnel admin role permissions")]
    Permissions,
    /// List to whom roles are bound
    #[command(after_help = "Example:\n  console-tunnel admin role bindings")]
    Bindings,
    /// Show one
    #[command(after_help = "Example:\n  console-tunnel admin role show technician")]
    Show {
        /// Name
        role: String,
    },
    /// Make one
    #[command(
        after_help = "Example:\n  console-tunnel admin role create ssh-only --permission launch --redirector ssh"
    )]
    Create {
        /// Name
        role: String,
        /// What it permits: see `admin role permissions`
        #[arg(long = "permission", value_name = "PERMISSION", required = true)]
        permissions: Vec<String>,
        /// The only redirectors that it may launch [default: all]
        #[arg(long = "redirector", value_name = "NAME")]
        redirectors: Vec<String>,
        /// On which conditions.
        #[command(flatten)]
        conditions: Conditions,
        /// Put it in the place of the role of this name; live sessions are judged anew
        #[arg(long)]
        replace: bool,
    },
    /// Delete one and its bindings; what rests on them ends
    #[command(after_help = "Example:\n  console-tunnel admin role delete ssh-only")]
    Delete {
        /// Name
        role: String,
    },
    /// Bind one, within what you hold yourself
    #[command(
        after_help = "Example:\n  console-tunnel admin role bind technician --user jane --client acme/berlin"
    )]
    Bind(Box<Bind>),
    /// End a binding; what rests on it ends
    #[command(after_help = "Example:\n  console-tunnel admin role unbind 0190a0a0-…")]
    Unbind {
        /// Id of the binding
        binding: String,
    },
}

/// A binding to be made.
#[derive(Debug, Clone, Args)]
pub struct Bind {
    /// Name of the role
    pub role: String,
    /// User to bind it to
    #[arg(long, conflicts_with_all = ["user_group", "key"])]
    pub user: Option<String>,
    /// Group of users to bind it to
    #[arg(long, conflicts_with = "key")]
    pub user_group: Option<String>,
    /// API key to bind it to, by id
    #[arg(long)]
    pub key: Option<String>,
    /// Where it holds.
    #[command(flatten)]
    pub scope: Scope,
    /// On which conditions.
    #[command(flatten)]
    pub conditions: Conditions,
    /// End it at this time: RFC 3339
    #[arg(long)]
    pub until: Option<String>,
}

/// Requests.
#[derive(Debug, Clone, Subcommand)]
pub enum Request {
    /// List yours, and those you may decide
    #[command(after_help = "Example:\n  console-tunnel admin request list --pending")]
    List {
        /// Only those that nobody has decided
        #[arg(long)]
        pending: bool,
    },
    /// Approve one
    #[command(after_help = "Example:\n  console-tunnel admin request approve 0190a0a0-… --for 1h")]
    Approve {
        /// Id
        request: String,
        /// For how long, at most what was asked for
        #[arg(long = "for", value_parser = parse_some_duration)]
        length: Option<Duration>,
        /// For the log
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
    },
    /// Deny one, or take an approval back; what rests on it ends
    #[command(after_help = "Example:\n  console-tunnel admin request deny 0190a0a0-…")]
    Deny {
        /// Id
        request: String,
        /// For the log
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
    },
}

/// Sessions.
#[derive(Debug, Clone, Subcommand)]
pub enum Session {
    /// List yours, and those you may see
    #[command(after_help = "Example:\n  console-tunnel admin session list --json")]
    List,
    /// End one
    #[command(after_help = "Example:\n  console-tunnel admin session end 0190a0a0-…")]
    End {
        /// Id
        session: String,
    },
}

/// Tokens.
#[derive(Debug, Clone, Subcommand)]
pub enum Token {
    /// List those that are good, without their secrets
    #[command(after_help = "Example:\n  console-tunnel admin token list")]
    List,
    /// Make one that enrols agents of a client
    #[command(
        after_help = "Example:\n  console-tunnel admin token agent --client acme/berlin --uses 20"
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
        ttl: Duration,
    },
    /// Make one that enrols a relay
    #[command(after_help = "Example:\n  console-tunnel admin token relay --region eu-west")]
    Relay {
        /// Region of the relay
        #[arg(long, default_value = "", hide_default_value = true)]
        region: String,
        /// How many relays it enrols
        #[arg(long, default_value_t = 1)]
        uses: u64,
        /// How long it is good
        #[arg(long, default_value = "1h", value_parser = parse_some_duration)]
        ttl: Duration,
    },
    /// Make one worthless
    #[command(after_help = "Example:\n  console-tunnel admin token revoke 0190a0a0-…")]
    Revoke {
        /// Id
        token: String,
    },
}

/// Relays.
#[derive(Debug, Clone, Subcommand)]
pub enum Relay {
    /// List them
    #[command(after_help = "Example:\n  console-tunnel admin relay list --json")]
    List,
    /// Give one nothing new
    #[command(after_help = "Example:\n  console-tunnel admin relay drain frankfurt-1")]
    Drain {
        /// Id or name
        relay: String,
    },
    /// Use one again; a drain that began on its own machine ends there: relay resume
    #[command(after_help = "Example:\n  console-tunnel admin relay resume frankfurt-1")]
    Resume {
        /// Id or name
        relay: String,
    },
    /// Let one not connect any more
    #[command(after_help = "Example:\n  console-tunnel admin relay disable frankfurt-1")]
    Disable {
        /// Id or name
        relay: String,
    },
    /// Let one connect again
    #[command(after_help = "Example:\n  console-tunnel admin relay enable frankfurt-1")]
    Enable {
        /// Id or name
        relay: String,
    },
}

/// API keys.
#[derive(Debug, Clone, Subcommand)]
pub enum ApiKey {
    /// List those that were not revoked
    #[command(after_help = "Example:\n  console-tunnel admin api-key list --json")]
    List,
    /// Register one with its first role; the key pair is made here unless the file is there
    #[command(
        after_help = "Example:\n  console-tunnel admin api-key create inventory --key-file inventory.pem --role auditor"
    )]
    Create {
        /// Name
        name: String,
        /// Ed25519 private key in PKCS #8, PEM; stays here
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        /// Its first role
        #[arg(long)]
        role: String,
        /// Where it holds.
        #[command(flatten)]
        scope: Scope,
        /// Networks to come from, e.g. 192.0.2.0/24
        #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
        from: Vec<String>,
        /// How long it is good
        #[arg(long, default_value = "90d", value_parser = parse_some_duration)]
        ttl: Duration,
    },
    /// Revoke one for ever
    #[command(after_help = "Example:\n  console-tunnel admin api-key revoke 0190a0a0-…")]
    Revoke {
        /// Id
        key: String,
    },
}

/// May this user open that redirector there?
#[derive(Debug, Clone, Args)]
pub struct Explain {
    /// User
    pub user: String,
    /// Name, id or PARTNER/CLIENT/COMPUTER
    pub computer: String,
    /// Redirector, e.g. ssh; tcp, udp or socks for forwards
    pub redirector: String,
    /// At this past time: RFC 3339, or how long ago, e.g. 24h
    #[arg(long)]
    pub at: Option<String>,
    /// As if a reason were given
    #[arg(long)]
    pub reason: bool,
    /// As if a ticket number were given
    #[arg(long)]
    pub ticket: bool,
    /// As if the user came from this address
    #[arg(long, value_name = "ADDRESS")]
    pub source: Option<std::net::IpAddr>,
}
