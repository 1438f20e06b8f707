//! What can be configured, and its checked form.

use std::net::{IpAddr, SocketAddr};

use adit_runtime::{
    cli::{CliError, Program},
    config::{Config, Key, Kind},
};
use zeroize::Zeroizing;

use crate::{
    audit::settings::AuditSettings, roles::conditions::Network, vault::wrap::WRAPPING_KEY,
};

/// The program.
pub(crate) const PROGRAM: Program = Program { name: "mediator" };

const fn key(
    path: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> Key {
    Key { path, kind, default, secret: false, help }
}

/// Every key of `mediator.toml`.
pub(crate) const KEYS: &[Key] = &[
    key("server.hosts", Kind::StringList, None, "names and addresses by which it is reached"),
    key("server.port", Kind::Integer, Some("443"), "TCP port; 0: any free one"),
    key("server.listen", Kind::StringList, None, "addresses to listen on [default: all]"),
    key("server.stun_port", Kind::Integer, Some("3478"), "UDP port, and the next one; 0: any"),
    key("server.stun_443", Kind::Bool, Some("false"), "answer STUN on UDP port 443, too"),
    key("server.certificate", Kind::String, None, "PEM chain for web pages instead of its own"),
    key("server.private_key", Kind::String, None, "PEM key of that certificate"),
    key("limits.connections", Kind::Integer, Some("16000"), "connections at a time"),
    key("limits.half_open", Kind::Integer, Some("4096"), "not yet authenticated connections"),
    key("limits.half_open_per_source", Kind::Integer, Some("512"), "of one source address"),
    key(
        "limits.logins",
        Kind::Integer,
        Some("2"),
        "passwords checked at the same time, at most by half of the processors",
    ),
    key(
        "accounts.mfa",
        Kind::String,
        Some("required"),
        "second factor: once_set_up, required, phishing-resistant",
    ),
    key("accounts.session_life", Kind::Duration, Some("12h"), "longest login, at most 24h"),
    key("accounts.session_idle", Kind::Duration, Some("1h"), "unused login ends after, at most 1h"),
    Key {
        path: WRAPPING_KEY,
        kind: Kind::String,
        default: None,
        secret: true,
        help: "key over stored secrets, 64 hexadecimal digits, instead of wrapping.keys",
    },
    key("web.origin", Kind::String, None, "https address of the pages [default: the first host]"),
    key("sources.consoles", Kind::StringList, None, "networks of consoles [default: all]"),
    key("sources.agents", Kind::StringList, None, "networks of agents, also to enrol"),
    key("sources.relays", Kind::StringList, None, "networks of relays"),
    key("sources.web", Kind::StringList, None, "networks of browsers and API clients"),
    key("relays.confirm", Kind::Bool, Some("true"), "list only addresses where the relay answers"),
    key("control.check_in", Kind::Duration, Some("1m"), "how often agents report their status"),
    key("metrics.listen", Kind::String, None, "address of /metrics, e.g. 127.0.0.1:9464"),
    key("log.level", Kind::String, Some("info"), "error, warn, info, debug, trace"),
    key("audit.retention", Kind::Duration, Some("120d"), "how long contents are kept, at least"),
    key("audit.syslog", Kind::String, None, "HOST[:6514] of a syslog receiver over TLS"),
    key("audit.syslog_ca", Kind::String, None, "PEM file of its authority [default: the system's]"),
    key(
        "audit.syslog_confirm",
        Kind::String,
        Some("close_notify"),
        "what confirms: close_notify (cannot be forged), close (rsyslog's gtls driver)",
    ),
    key("audit.syslog_format", Kind::String, Some("json"), "json (hashes can be checked), cef"),
    key("audit.webhook", Kind::String, None, "https URL that entries are posted to"),
    key("audit.webhook_ca", Kind::String, None, "PEM file of its authority"),
    key("audit.webhook_secret", Kind::String, None, "file with the secret that it shares"),
    key("audit.webhook_auth", Kind::String, Some("hmac"), "hmac (a signature), bearer"),
    key("audit.export_dir", Kind::String, None, "directory for periodic exports"),
    key("audit.export_every", Kind::Duration, Some("24h"), "time between them"),
    Key {
        path: "network.proxy",
        kind: Kind::String,
        default: None,
        secret: true,
        help: "http:// or socks5:// proxy for connections to audit receivers",
    },
];

/// Largest number of host names in tokens and certificates.
const MAX_HOSTS: usize = 16;

/// Longest life of a login, milliseconds (NIST SP 800-63B-4 §2.2.3).
const MAX_LIFE_MS: u64 = 24 * 3_600_000;
/// Longest time without use, milliseconds (the same).
const MAX_IDLE_MS: u64 = 3_600_000;
/// Shorter ones are slips of the pen.
const MIN_LOGIN_MS: u64 = 1_000;

/// Which second factor a login takes. Ordered by strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MfaRule {
    /// None, until one is set up.
    OnceSetUp,
    /// One; without it a login is good for setting one up only.
    Required,
    /// One that holds against a page that looks like ours.
    PhishingResistant,
}

/// Networks from which each kind of peer may come; empty: any.
#[derive(Clone, Debug, Default)]
pub(crate) struct AllowedSources {
    pub(crate) consoles: Vec<Network>,
    pub(crate) agents: Vec<Network>,
    pub(crate) relays: Vec<Network>,
    pub(crate) web: Vec<Network>,
}

/// May somebody come from there?
pub(crate) fn is_allowed(networks: &[Network], ip: IpAddr) -> bool {
    networks.is_empty() || networks.iter().any(|network| network.contains(ip))
}

/// What holds for all accounts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccountSettings {
    /// For everybody whose account does not say otherwise.
    pub(crate) mfa: MfaRule,
    pub(crate) life_ms: u64,
    pub(crate) idle_ms: u64,
}

impl AccountSettings {
    fn of(config: &Config) -> Result<Self, CliError> {
        let mfa = match config.string("accounts.mfa")?.as_str() {
            "once_set_up" => MfaRule::OnceSetUp,
            "required" => MfaRule::Required,
            "phishing-resistant" => MfaRule::PhishingResistant,
            _ => {
                let text = "once_set_up, required or phishing-resistant is expected";
                return Err(config.invalid("accounts.mfa", text));
            }
        };
        let duration = |key: &'static str, max: u64| {
            let ms = u64::try_from(config.duration(key)?.as_millis()).unwrap_or(u64::MAX);
            if (MIN_LOGIN_MS..=max).contains(&ms) {
                return Ok(ms);
            }
            Err(config.invalid(key, &format!("1s to {}h is expected", max / 3_600_000)))
        };
        Ok(Self {
            mfa,
            life_ms: duration("accounts.session_life", MAX_LIFE_MS)?,
            idle_ms: duration("accounts.session_idle", MAX_IDLE_MS)?,
        })
    }
}

/// Checked configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) hosts: Vec<String>,
    pub(crate) port: u16,
    pub(crate) listen: Vec<IpAddr>,
    pub(crate) stun_port: u16,
    /// Restrictive networks often let UDP 443 pass, for QUIC.
    pub(crate) stun_443: bool,
    pub(crate) certificate: Option<(String, String)>,
    pub(crate) connections: usize,
    pub(crate) half_open: usize,
    pub(crate) half_open_per_source: usize,
    pub(crate) logins: usize,
    pub(crate) accounts: AccountSettings,
    pub(crate) sources: AllowedSources,
    /// `https://host[:port]` of the pages, if it is not the first host.
    pub(crate) web_origin: Option<String>,
    pub(crate) wrapping_key: Option<Zeroizing<String>>,
    /// Are relays' addresses told only if the relay answers there?
    pub(crate) confirm_relays: bool,
    pub(crate) check_in_ms: u32,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) log_level: String,
    pub(crate) audit: AuditSettings,
}

impl Settings {
    /// Checks the configuration as a whole.
    pub(crate) fn of(config: &Config) -> Result<Self, CliError> {
        let hosts = config.list("server.hosts")?;
        if hosts.is_empty() {
            return Err(CliError::usage("config_missing", "server.hosts is not set")
                .hint("set it in mediator.toml, or run mediator init"));
        }
        check_hosts(&hosts).map_err(|reason| config.invalid("server.hosts", &reason))?;
        let certificate = config.opt_string("server.certificate")?;
        let certificate = match (certificate, config.opt_string("server.private_key")?) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            _ => {
                let reason = "certificate and private_key belong together";
                return Err(config.invalid("server.certificate", reason));
            }
        };
        let check_in = config.duration("control.check_in")?.as_millis();
        let check_in_ms = u32::try_from(check_in)
            .ok()
            .filter(|ms| (1_000..=86_400_000).contains(ms))
            .ok_or_else(|| config.invalid("control.check_in", "1s to 24h is expected"))?;
        Ok(Self {
            hosts,
            port: config.integer_in("server.port", 0..=u16::MAX)?,
            listen: config.parsed_list("server.listen")?,
            stun_port: config.integer_in("server.stun_port", 0..=u16::MAX - 1)?,
            stun_443: config.bool("server.stun_443")?,
            certificate,
            connections: config.integer_in("limits.connections", 16..=1_000_000_u32)? as usize,
            half_open: config.integer_in("limits.half_open", 16..=1_000_000_u32)? as usize,
            half_open_per_source: config
                .integer_in("limits.half_open_per_source", 4..=1_000_000_u32)?
                as usize,
            logins: config.integer_in("limits.logins", 1..=64_u32)? as usize,
            accounts: AccountSettings::of(config)?,
            sources: AllowedSources {
                consoles: config.parsed_list("sources.consoles")?,
                agents: config.parsed_list("sources.agents")?,
                relays: config.parsed_list("sources.relays")?,
                web: config.parsed_list("sources.web")?,
            },
            web_origin: config.opt_string("web.origin")?,
            wrapping_key: config.opt_string(WRAPPING_KEY)?.map(Zeroizing::new),
            confirm_relays: config.bool("relays.confirm")?,
            check_in_ms,
            metrics: config.opt_parsed("metrics.listen")?,
            log_level: config.string("log.level")?,
            audit: AuditSettings::of(config)?,
        })
    }
}

/// Names and addresses that can stand in a certificate and in a token.
pub(crate) fn check_hosts(hosts: &[String]) -> Result<(), String> {
    if hosts.len() > MAX_HOSTS {
        return Err(format!("more than {MAX_HOSTS} names"));
    }
    for host in hosts {
        if host.parse::<IpAddr>().is_ok() {
            continue;
        }
        let probe =
            adit_protocol::target::Target::new(host, 1, adit_protocol::target::Transport::Tcp);
        let plain = rustls::pki_types::DnsName::try_from(host.as_str()).is_ok();
        if probe.is_err() || !plain {
            return Err(format!("\"{host}\" is neither a host name nor an address"));
        }
    }
    Ok(())
}

/// `host:port` as tokens carry it.
pub(crate) fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
