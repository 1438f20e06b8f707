//! `relay.toml`: its keys, and what they mean to the rest of the relay.

use std::{net::SocketAddr, time::Duration};

use adit_net::proxy::{Dialer, ProxyConfig, format_host_port, parse_host_port};
use adit_protocol::{
    limits::{RELAY_UNJOINED, RELAY_UNPAIRED},
    target::{Target, Transport},
};
use adit_runtime::{
    cli::{CliError, Program},
    config::{Config, Key, Kind},
};

use crate::core::pairing::Limits;

/// This program.
pub const PROGRAM: Program = Program { name: "relay" };
/// Port of a relay unless another is given.
pub const DEFAULT_PORT: u16 = 443;
/// Addresses that are listened on or advertised at most.
const MAX_ADDRESSES: usize = 16;
/// Bounds of the time limits: shorter would hurt honest sessions, longer means never.
const TIMES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(30 * 86_400));

const fn key(
    path: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> Key {
    Key { path, kind, default, secret: false, help }
}

/// All keys.
pub static KEYS: &[Key] = &[
    key(
        "relay.listen",
        Kind::StringList,
        Some("0.0.0.0:443,[::]:443"),
        "addresses to listen on; port 0 means any free one",
    ),
    key(
        "relay.advertise",
        Kind::StringList,
        None,
        "host:port under which agents and consoles reach this relay; default: given to join, \
         else the listening addresses",
    ),
    key("relay.region", Kind::String, None, "region name; default: given to join"),
    key(
        "limits.max_pairs",
        Kind::Integer,
        Some("20000"),
        "pairs, waiting joins included; the last eighth for partners with few",
    ),
    key("limits.max_unjoined", Kind::Integer, Some("4096"), "connections that have not joined"),
    key(
        "limits.max_unjoined_per_source",
        Kind::Integer,
        Some("256"),
        "connections without a valid ticket from one IPv4 address or IPv6 /64",
    ),
    key("limits.idle", Kind::Duration, Some("2h"), "a pair without a byte for so long ends"),
    key("limits.lifetime", Kind::Duration, Some("24h"), "every pair ends after so long"),
    key("metrics.listen", Kind::String, None, "address of /metrics, /healthz and /readyz"),
    key("log.level", Kind::String, Some("info"), "log level or filter directives"),
    Key {
        path: "proxy.url",
        kind: Kind::String,
        default: None,
        secret: true,
        help: "proxy for the connection to the mediator",
    },
];

/// The configuration, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// The user chose where; otherwise a family that the machine does not have is left out.
    pub listen_chosen: bool,
    /// What to advertise, `host:port`; empty: see the enrolment.
    pub advertise: Vec<String>,
    /// Region; none: see the enrolment.
    pub region: Option<String>,
    /// Of the pairing machine.
    pub limits: Limits,
    /// Of metrics and health.
    pub metrics: Option<SocketAddr>,
    /// Log level.
    pub log_level: String,
    /// Proxy, if configured.
    pub proxy: Option<String>,
}

impl Settings {
    /// Reads and checks every key.
    pub fn read(config: &Config) -> Result<Self, CliError> {
        let listen: Vec<SocketAddr> = config.parsed_list("relay.listen")?;
        if listen.is_empty() || listen.len() > MAX_ADDRESSES {
            return Err(config.invalid("relay.listen", "1 to 16 addresses are expected"));
        }
        let advertise = read_advertise(&config.list("relay.advertise")?)
            .map_err(|reason| config.invalid("relay.advertise", &reason))?;
        let time = |path| {
            let time = config.duration(path)?;
            if (TIMES.0..=TIMES.1).contains(&time) {
                Ok(time)
            } else {
                Err(config.invalid(path, "must be between 10s and 30d"))
            }
        };
        let settings = Self {
            listen,
            listen_chosen: !matches!(
                config.origin("relay.listen"),
                Some(adit_runtime::config::Origin::Default)
            ),
            advertise,
            region: config.opt_string("relay.region")?,
            limits: Limits {
                max_unjoined: config.integer_in("limits.max_unjoined", 16..=1_000_000)?,
                max_unjoined_per_source: config
                    .integer_in("limits.max_unjoined_per_source", 1..=1_000_000)?,
                max_pairs: config.integer_in("limits.max_pairs", 1..=10_000_000)?,
                unjoined: RELAY_UNJOINED,
                unpaired: RELAY_UNPAIRED,
                idle: time("limits.idle")?,
                lifetime: time("limits.lifetime")?,
            },
            metrics: config.opt_parsed("metrics.listen")?,
            log_level: config.string("log.level")?,
            proxy: config.opt_secret("proxy.url")?.map(|url| url.as_str().to_owned()),
        };
        // Before anything is dialled: a wrong proxy must not look like a network that is down.
        settings.dialer()?;
        Ok(settings)
    }

    /// The way out.
    pub fn dialer(&self) -> Result<Dialer, CliError> {
        let proxy = ProxyConfig { explicit: self.proxy.clone(), from_env: true };
        Dialer::new(&proxy).map_err(|error| {
            CliError::usage("proxy_invalid", error.to_string()).hint(
                "correct --proxy, proxy.url in relay.toml, or HTTPS_PROXY; NO_PROXY names \
                 exceptions",
            )
        })
    }
}

/// Checks addresses to advertise and completes their ports.
pub fn read_advertise(texts: &[String]) -> Result<Vec<String>, String> {
    if texts.len() > MAX_ADDRESSES {
        return Err(format!("at most {MAX_ADDRESSES} addresses are expected"));
    }
    let read = texts.iter().map(|text| {
        let (host, port) = parse_host_port(text, DEFAULT_PORT).map_err(|e| e.to_string())?;
        let nobody = |why| Err(format!("\"{text}\": nobody can connect to {why}"));
        if port == 0 {
            return nobody("port 0");
        }
        let Ok(target) = Target::new(&host, port, Transport::Tcp) else {
            return Err(format!("\"{text}\": \"{host}\" is neither a host name nor an address"));
        };
        match target.ip() {
            Some(ip) if ip.is_unspecified() => return nobody("an unspecified address"),
            Some(ip) if ip.is_multicast() => return nobody("a multicast address"),
            _ => {}
        }
        Ok(format_host_port(target.host(), port))
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use adit_runtime::config::{Flag, Sources};

    use super::*;

    fn read(path: &'static str, value: &str) -> Result<Settings, CliError> {
        let flags = vec![Flag { path, name: "--x", value: value.into() }];
        let sources = Sources { flags, ..Sources::default() };
        Settings::read(&Config::load(&PROGRAM, KEYS, &sources)?)
    }

    #[test]
    fn defaults_are_valid_and_nonsense_is_refused() {
        let settings = read("log.level", "debug").unwrap();
        assert_eq!(settings.listen.len(), 2);
        assert!(!settings.listen_chosen);
        for (path, value) in [
            ("relay.listen", "example.com"),
            ("relay.listen", ""),
            ("relay.advertise", "a:b:c"),
            ("relay.advertise", "a:0"),
            ("relay.advertise", "bad host"),
            ("relay.advertise", "rel!ay.example:443"),
            ("relay.advertise", "-relay.example"),
            ("relay.advertise", "999.1.1.1:443"),
            ("relay.advertise", "0.0.0.0:443"),
            ("relay.advertise", "[::]:443"),
            ("limits.idle", "1s"),
            ("limits.max_pairs", "0"),
        ] {
            let error = read(path, value).unwrap_err();
            assert_eq!(error.code, "config_invalid", "{path}={value}");
        }
        let settings = read("relay.advertise", "relay.example, [2001:db8::1]:8443").unwrap();
        assert_eq!(settings.advertise, ["relay.example:443", "[2001:db8::1]:8443"]);
    }
}
