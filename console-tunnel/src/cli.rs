//! The command line: commands, options, help with examples.

use std::{path::PathBuf, time::Duration};

use adit_protocol::keys::Fingerprint;
use adit_runtime::{
    cli::{Generate, GlobalArgs},
    config::{ConfigCommand, parse_some_duration},
};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    admin::AdminCommand,
    commands::{credentials::CredentialsCommand, mfa::MfaCommand},
    forward::spec::{ForwardSpec, ListenSpec},
    viewer::UserName,
};
use std::net::SocketAddr;

/// Longest reason or ticket on the command line, bytes.
const MAX_TEXT: usize = adit_protocol::limits::MAX_TEXT;
/// Longest time `explain` waits.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// Open remote desktops, shells and ports of computers where an Adit agent runs
#[derive(Debug, Parser)]
#[command(
    name = "console-tunnel",
    after_help = "Examples:
  console-tunnel login mediator.example --user ann
  console-tunnel computers web
  console-tunnel open web01 rdp
  console-tunnel forward web01 -L 8080:127.0.0.1:80"
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Log in to a mediator
    Login(LoginArgs),
    /// Log out
    #[command(after_help = "Example:\n  console-tunnel logout")]
    Logout,
    /// Show who is logged in, and where
    #[command(after_help = "Example:\n  console-tunnel whoami --json")]
    Whoami,
    /// Second factors: set up, confirm, remove
    #[command(subcommand, after_help = "Example:\n  console-tunnel mfa totp enroll")]
    Mfa(MfaCommand),
    /// List computers
    Computers(ComputersArgs),
    /// Trust a key of a computer's agent: before first contact, or after it changed
    #[command(after_help = "Examples:
  console-tunnel trust acme/berlin/web01 sha256:9f86…
  console-tunnel trust 3f2a…-… sha256:9f86…

The fingerprint is what `agent-tunnel enroll` and `agent-tunnel status` show on that computer.")]
    Trust {
        /// Id, name, or client/name
        computer: String,
        /// Fingerprint of the agent's key
        fingerprint: Fingerprint,
    },
    /// Open a redirector of a computer and its viewer
    Open(OpenArgs),
    /// Forward ports to a computer or the hosts that it reaches
    Forward(ForwardArgs),
    /// List live sessions, or end one
    Sessions(SessionsArgs),
    /// Check what this network lets through
    Netcheck(NetcheckArgs),
    /// Find out why connections to a computer take the path they take
    Explain(ExplainArgs),
    /// Ask for access that needs somebody's approval, or decide such requests
    #[command(
        subcommand,
        after_help = "Examples:
  console-tunnel requests make web01 rdp --reason 'disk full' --ticket T-17 --for 2h
  console-tunnel requests list --pending
  console-tunnel requests approve 3f2a…"
    )]
    Requests(RequestsCommand),
    /// Search and export the audit log, verify an export
    #[command(
        subcommand,
        after_help = "Examples:
  console-tunnel audit search --computer web01 --since 24h
  console-tunnel audit verify audit.jsonl --key sha256:9f86…"
    )]
    Audit(AuditCommand),
    /// Stored credentials: list, add, change, show, delete
    #[command(
        subcommand,
        after_help = "Examples:
  console-tunnel credentials list --client acme/berlin
  console-tunnel open web01 rdp --credential admin"
    )]
    Credentials(CredentialsCommand),
    /// Administer the mediator: users, roles, clients, tokens, sessions, keys
    #[command(
        subcommand,
        after_help = "Examples:
  console-tunnel admin user add jane --role technician
  console-tunnel admin role bind technician --user jane --client acme/berlin
  console-tunnel admin explain jane acme/berlin/web01 rdp"
    )]
    Admin(AdminCommand),
    /// Show what this console signed of its sessions, and what the other ends did
    #[command(
        subcommand,
        after_help = "Example:\n  console-tunnel receipts export > receipts.jsonl"
    )]
    Receipts(ReceiptsCommand),
    /// Show the heads of audit logs that this console saw, and what alarmed it
    #[command(subcommand, after_help = "Example:\n  console-tunnel witness show > heads.jsonl")]
    Witness(WitnessCommand),
    /// Check or show the configuration
    #[command(subcommand, after_help = "Example:\n  console-tunnel config show")]
    Config(ConfigCommand),
    /// For packagers.
    #[command(flatten)]
    Generate(Generate),
}

// Arguments of `login`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  console-tunnel login https://mediator.example --user ann
  console-tunnel login 192.0.2.7:8443 --user ann --fingerprint sha256:9f86…
  pass adit | console-tunnel login mediator.example --user ann --password-stdin
  console-tunnel login mediator.example --web

Without a user, or with --web, the login happens on the mediator's web page: with a security key, an
identity provider, or a password.")]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct LoginArgs {
    #[arg(help = "Mediator: https://HOST[:PORT] or HOST[:PORT]")]
    pub url: String,
    /// User; with --web nobody else may have logged in
    #[arg(long)]
    pub user: Option<String>,
    /// Read the password from the first line of stdin
    #[arg(long, conflicts_with_all = ["password_file", "web"], requires = "user")]
    pub password_stdin: bool,
    /// Read the password from the first line of a file
    #[arg(long, value_name = "FILE", conflicts_with = "web", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// Read the one-time code from stdin, after the password if that comes from there too
    #[arg(long, conflicts_with = "web", requires = "user")]
    pub totp_stdin: bool,
    /// Log in on the mediator's web page
    #[arg(long)]
    pub web: bool,
    /// Only show the page's address and the code; do not open a browser
    #[arg(long)]
    pub no_browser: bool,
    /// Fingerprint of the installation's root key, as `mediator init` printed it
    #[arg(long)]
    pub fingerprint: Option<Fingerprint>,
}

// Arguments of `computers`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  console-tunnel computers
  console-tunnel computers web --online
  console-tunnel computers berlin/web
  console-tunnel computers --client acme/berlin --json")]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct ComputersArgs {
    /// Part of a name or id, or of PARTNER/CLIENT/NAME
    #[arg(default_value = "", hide_default_value = true)]
    pub query: String,
    /// Only those of this client: PARTNER/CLIENT
    #[arg(long, value_name = "P/C", default_value = "", hide_default_value = true)]
    pub client: String,
    /// Only those that are online
    #[arg(long)]
    pub online: bool,
}

/// Which carriers a session may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Carrier {
    /// Both; the best one is used.
    Auto,
    /// Only UDP between the two ends.
    Direct,
    /// Only through a relay.
    Relayed,
}

// Options of `open` and `forward`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct SessionArgs {
    /// Why; for the audit record
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = text)]
    pub reason: String,
    /// Ticket number; for the audit record
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true, value_parser = text)]
    pub ticket: String,
    /// Which carriers to use
    #[arg(long, value_enum, default_value_t = Carrier::Auto)]
    pub carrier: Carrier,
}

// Arguments of `open`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  console-tunnel open web01 rdp
  console-tunnel open acme/berlin/web01 ssh --user root --reason 'disk full' --ticket T-17
  console-tunnel open web01 rdp --credential admin
  console-tunnel open web01 http --no-launch --local 127.0.0.1:8080

Runs until the viewer exits, Ctrl-C, or the end of the grant. Viewers are configured in
console-tunnel.toml: [viewers.rdp] command = [\"program\", \"/v:{host}:{port}\"]")]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct OpenArgs {
    /// Id, name, or client/name
    pub computer: String,
    /// rdp, vnc, ssh, http, https, or another one of the computer
    pub redirector: String,
    /// Local address to listen on; port 0 means any free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    pub local: SocketAddr,
    /// Do not start a viewer
    #[arg(long)]
    pub no_launch: bool,
    /// Stay open after the viewer exits
    #[arg(long)]
    pub keep: bool,
    /// User at the computer, given to the viewer
    #[arg(long)]
    pub user: Option<UserName>,
    /// Give the viewer this stored credential, without showing it
    #[arg(long, value_name = "NAME", value_parser = text)]
    pub credential: Option<String>,
    /// Give the viewer no stored credential, not even one that is used by itself
    #[arg(long, conflicts_with = "credential")]
    pub no_credential: bool,
    #[command(flatten)]
    pub session: SessionArgs,
}

// Arguments of `forward`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  console-tunnel forward web01 -L 8080:127.0.0.1:80
  console-tunnel forward web01 -L 0:db.lab.example:5432 -L '[::1]:2222:[fd00::7]:22'
  console-tunnel forward web01 -U 5353:192.168.7.1:53
  console-tunnel forward web01 -D 1080")]
#[group(id = "forwards", required = true, multiple = true, args = ["tcp", "udp", "socks"])]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct ForwardArgs {
    /// Id, name, or client/name
    pub computer: String,
    /// Forward a local TCP port to a host and port as the computer reaches them
    #[arg(short = 'L', value_name = "[ADDR:]PORT:HOST:PORT")]
    pub tcp: Vec<ForwardSpec>,
    /// Forward a local UDP port
    #[arg(short = 'U', value_name = "[ADDR:]PORT:HOST:PORT")]
    pub udp: Vec<ForwardSpec>,
    /// Run a local SOCKS5 server
    #[arg(short = 'D', value_name = "[ADDR:]PORT")]
    pub socks: Vec<ListenSpec>,
    #[command(flatten)]
    pub session: SessionArgs,
}

// Arguments of `sessions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  console-tunnel sessions --json
  console-tunnel sessions end 3f2a…-…")]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct SessionsArgs {
    #[command(subcommand)]
    pub command: Option<SessionsCommand>,
}

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub enum SessionsCommand {
    /// End a session
    #[command(after_help = "Examples:
  console-tunnel sessions end 3f2a…-…
  console-tunnel sessions end 3f2a…-… --reason 'maintenance is over'")]
    End {
        /// Id of the session
        id: adit_protocol::ids::SessionId,
        /// Why; for the audit record
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = text)]
        reason: String,
    },
}

// Arguments of `netcheck`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  console-tunnel netcheck
  console-tunnel netcheck --json
  console-tunnel netcheck --mediator mediator.example

Needs no login. Exit status 5: no path at all, or the mediator cannot be reached.")]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct NetcheckArgs {
    #[arg(
        long,
        value_name = "URL",
        help = "Mediator to ask, if not that of the last login: https://HOST[:PORT] or HOST[:PORT]"
    )]
    pub mediator: Option<String>,
}

// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  console-tunnel explain web01
  console-tunnel explain acme/berlin/web01 --wait 30s --json
  console-tunnel explain web01 --redirector ssh --reason 'slow since noon'

Opens a session, audited as any other, carries nothing over it, and ends it.")]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct ExplainArgs {
    /// Id, name, or client/name
    pub computer: String,
    /// Redirector to open the session for; without it, the first that is permitted
    #[arg(long, value_name = "REDIRECTOR")]
    pub redirector: Option<String>,
    /// How long to wait for a direct path at most
    #[arg(long, value_name = "TIME", default_value = "12s", value_parser = wait)]
    pub wait: Duration,
    /// Why; for the audit record
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = text)]
    pub reason: String,
    /// Ticket number; for the audit record
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true, value_parser = text)]
    pub ticket: String,
}

/// What to do with requests for access.
#[derive(Debug, Subcommand)]
pub enum RequestsCommand {
    /// Ask for access to a computer
    #[command(after_help = "Examples:
  console-tunnel requests make web01 rdp --reason 'disk full'
  console-tunnel requests make acme/berlin/web01 ssh --reason upgrade --ticket T-17 --for 2h --json")]
    Make {
        /// Id, name, or client/name
        computer: String,
        /// rdp, vnc, ssh, http, https, tcp, udp or socks
        redirector: String,
        /// Why; whoever decides reads it
        #[arg(long, value_name = "TEXT", value_parser = text)]
        reason: String,
        /// Ticket number
        #[arg(long, value_name = "ID", default_value = "", hide_default_value = true, value_parser = text)]
        ticket: String,
        /// For how long, from the approval on; the mediator's default without it
        #[arg(long = "for", value_name = "TIME", value_parser = parse_some_duration)]
        length: Option<Duration>,
    },
    /// List own requests, and those that you may decide
    #[command(after_help = "Examples:
  console-tunnel requests list
  console-tunnel requests list --pending --json")]
    List {
        /// Only those that nobody has decided
        #[arg(long)]
        pending: bool,
    },
    /// Approve a request
    #[command(after_help = "Examples:
  console-tunnel requests approve 3f2a…
  console-tunnel requests approve 3f2a… --for 30m --note 'only the update'")]
    Approve {
        /// Id of the request
        id: String,
        /// For how long, if less than was asked for
        #[arg(long = "for", value_name = "TIME", value_parser = parse_some_duration)]
        length: Option<Duration>,
        /// For the audit record
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = text)]
        note: String,
    },
    /// Deny a request, or take back an approval or an own request
    #[command(after_help = "Examples:
  console-tunnel requests deny 3f2a…
  console-tunnel requests deny 3f2a… --note 'not today'")]
    Deny {
        /// Id of the request
        id: String,
        /// For the audit record
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = text)]
        note: String,
    },
}

/// What to do with receipts.
#[derive(Debug, Subcommand)]
pub enum ReceiptsCommand {
    /// Write all receipts that are kept, a JSON line for each
    #[command(after_help = "Example:
  console-tunnel receipts export > receipts.jsonl

For mediator audit verify --receipts. Each line is signed by the end that it speaks for.")]
    Export,
}

/// What to do with heads of audit logs.
#[derive(Debug, Subcommand)]
pub enum WitnessCommand {
    /// Print the signed heads, as audit verify --head takes them, and alerts
    #[command(after_help = "Example:\n  console-tunnel witness show > heads.jsonl")]
    Show,
    /// Believe the next head shown, after a backup was restored on purpose
    #[command(after_help = "Example:\n  console-tunnel witness accept")]
    Accept,
}

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Find entries, newest first, within what your roles cover
    #[command(after_help = "Examples:
  console-tunnel audit search --user jane --since 24h
  console-tunnel audit search --event login.failed,session.refused --since 30m
  console-tunnel audit search --computer web01 --event session.granted --json

Several values of one filter mean any of them, several filters all of them.")]
    Search {
        /// Which entries
        #[command(flatten)]
        filter: AuditFilter,
        /// At most so many entries
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Write the log, or a part of it, to stdout or a file; needs a fresh login
    #[command(after_help = "Examples:
  console-tunnel audit export --output audit.jsonl
  console-tunnel audit export --format csv --client acme/berlin --since 30d --output berlin.csv
  console-tunnel audit export --client acme/berlin --head heads.jsonl --output berlin.jsonl

Password and, if there is one, second factor must have been shown within ten minutes:
console-tunnel mfa verify.

With jsonl, hashes stand for what is left out, so that the rest can still be verified.")]
    Export {
        /// jsonl can be verified; csv, cef and ocsf are for other programs
        #[arg(long, value_parser = ["jsonl", "csv", "cef", "ocsf"], default_value = "jsonl")]
        format: String,
        /// Which entries
        #[command(flatten)]
        filter: AuditFilter,
        /// File with heads seen earlier, of witness show or an export: to verify a part against them
        #[arg(long, value_name = "HEAD")]
        head: Vec<PathBuf>,
        /// File to write
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Verify an export without any server
    #[command(after_help = "Examples:
  console-tunnel audit verify audit.jsonl --key sha256:9f86…
  console-tunnel audit verify --file audit.jsonl --head heads.jsonl
  console-tunnel audit verify audit.jsonl --key sha256:9f86… --receipts receipts.jsonl

Without --key or --head it can only say that the export is consistent in itself.")]
    Verify(VerifyArgs),
}

// What is verified, and against what.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct VerifyArgs {
    /// The export
    #[arg(required_unless_present = "export")]
    pub file: Option<PathBuf>,
    /// The same, as mediator audit verify takes it
    #[arg(long = "file", value_name = "FILE", conflicts_with = "file")]
    pub export: Option<PathBuf>,
    /// Fingerprint of the root or log key
    #[arg(long)]
    pub key: Vec<Fingerprint>,
    /// File with heads seen earlier: of witness show, or an export
    #[arg(long, value_name = "HEAD")]
    pub head: Vec<PathBuf>,
    /// File with receipts of an end (receipts export), to compare with the log; repeatable
    #[arg(long, value_name = "RECEIPTS")]
    pub receipts: Vec<PathBuf>,
    /// Refuse exports that leave entries out
    #[arg(long)]
    pub complete: bool,
}

// Which entries.
#[derive(Debug, Clone, Default, Args)]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct AuditFilter {
    /// Who acted, or whom it was about
    #[arg(long, visible_alias = "user", value_delimiter = ',', value_parser = value)]
    pub person: Vec<String>,
    /// Name or id
    #[arg(long, value_delimiter = ',', value_parser = value)]
    pub computer: Vec<String>,
    /// Only this client's
    #[arg(long, value_name = "P/C", value_delimiter = ',', value_parser = value)]
    pub client: Vec<String>,
    /// Like rdp, ssh or tcp
    #[arg(long, value_delimiter = ',', value_parser = value)]
    pub redirector: Vec<String>,
    /// Id of a session
    #[arg(long, value_delimiter = ',', value_parser = value)]
    pub session: Vec<String>,
    /// Like session.granted
    #[arg(long, value_delimiter = ',', value_parser = event)]
    pub event: Vec<String>,
    /// A time (RFC 3339), or how long ago: 24h, 30d
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// A time (RFC 3339), or how long ago
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

fn value(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("a value is empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// Which names there are, the mediator knows; what none can be is refused here.
fn event(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    // Codes of failures, such as login_failed, are taken for names of events.
    let code = text.contains('_') && !text.contains('.');
    match !text.is_empty() && text.chars().all(fits) && !code {
        true => Ok(text.to_owned()),
        false => Err("events have names like session.granted or login.failed".to_owned()),
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    let time = parse_some_duration(text)?;
    if time > MAX_WAIT { Err("more than ten minutes".to_owned()) } else { Ok(time) }
}

fn text(text: &str) -> Result<String, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("longer than {MAX_TEXT} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("control characters are not allowed".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn command_line_is_consistent_and_every_command_has_an_example() {
        let mut command = adit_runtime::cli::command::<Cli>();
        command.clone().debug_assert();
        command.build();
        let mut left = vec![&command];
        while let Some(command) = left.pop() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("  console-tunnel "), "{}", command.get_name());
            let visible = |c: &&clap::Command| !c.is_hide_set() && c.get_name() != "help";
            left.extend(command.get_subcommands().filter(visible));
        }
    }

    #[test]
    fn lines_of_the_contract_are_understood() {
        let fingerprint = format!("sha256:{}", "0a".repeat(32));
        for line in [
            "console-tunnel",
            "console-tunnel login https://h:1 --user u --password-stdin --totp-stdin --data-dir d",
            &format!("console-tunnel login h --user u --fingerprint {fingerprint}"),
            "console-tunnel logout",
            "console-tunnel whoami",
            "console-tunnel mfa status --json",
            "console-tunnel mfa totp enroll --name phone",
            "console-tunnel mfa totp confirm --totp-stdin",
            "console-tunnel mfa verify --password-stdin --totp-stdin",
            "console-tunnel computers",
            "console-tunnel computers web --client p/c --online --json",
            &format!("console-tunnel trust c/pc {fingerprint}"),
            "console-tunnel open pc rdp --local 127.0.0.1:0 --no-launch --reason x --ticket y --json",
            "console-tunnel open pc rdp --carrier relayed --keep",
            "console-tunnel forward pc -L 0:127.0.0.1:80 -L 1:[::1]:80 -U 0:a:53 -D 0 --carrier direct",
            "console-tunnel forward pc -D [::1]:1080 --json",
            "console-tunnel sessions --json",
            "console-tunnel sessions end 01010101-0101-0101-0101-010101010101",
            "console-tunnel netcheck --json",
            "console-tunnel netcheck --mediator https://m.example",
            "console-tunnel explain pc --json --wait 30s --redirector ssh",
            "console-tunnel requests make pc rdp --reason x --ticket y --for 2h --json",
            "console-tunnel requests list --pending",
            "console-tunnel requests approve 1 --for 30m --note x",
            "console-tunnel requests deny 1",
            &format!("console-tunnel audit verify f --key {fingerprint}"),
            &format!("console-tunnel audit verify --file f --key {fingerprint}"),
            "console-tunnel audit search --user jane,ann --event login.failed,session.refused",
            "console-tunnel audit search --event login.failed --event logout",
            "console-tunnel audit search --person jane --since 24h --limit 5 --json",
            "console-tunnel audit export --format csv --client p/c --output f",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [
            "console-tunnel login",
            "console-tunnel audit export --format xml",
            "console-tunnel audit verify",
            "console-tunnel audit verify f --file f",
            "console-tunnel audit search --event login_failed",
            "console-tunnel audit search --event login.failed,",
            "console-tunnel forward pc",
            "console-tunnel forward pc -L 80",
            "console-tunnel forward pc -D host:1",
            "console-tunnel open pc",
            "console-tunnel open pc rdp --local 80",
            "console-tunnel open pc rdp --carrier tcp",
            "console-tunnel open pc rdp --user=-x",
            "console-tunnel trust pc sha256:12",
            "console-tunnel sessions end x",
            "console-tunnel explain",
            "console-tunnel explain pc --wait 0s",
            "console-tunnel requests make pc rdp",
            "console-tunnel requests make pc rdp --reason x --for never",
            "console-tunnel requests make pc rdp --reason x --for 0s",
            "console-tunnel requests approve 1 --for 0s",
            "console-tunnel admin request approve 1 --for 0s",
            "console-tunnel admin role create r --permission launch --max-length 0s",
            "console-tunnel admin role bind r --user u --mfa-within 0",
            "console-tunnel admin token agent --client p/c --ttl 0s",
            "console-tunnel admin api-key create k --key-file f --role r --ttl 0s",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
