//! The agent's configuration: `agent-tunnel.toml`, environment, flags. What consoles may reach
//! is not configuration but the owner's policy, and lives in a file of its own.

use std::{net::SocketAddr, path::Path, time::Duration};

use adit_net::proxy::{Dialer, ProxyConfig};
use adit_protocol::limits::RESUME_WINDOW;
use adit_runtime::{
    cli::{CliError, GlobalArgs, Program},
    config::{Config, Key, Kind, Sources, format_duration},
    logging::DEFAULT_LEVEL,
};

use crate::consent::read_command;

/// This program.
pub const PROGRAM: Program = Program { name: "agent-tunnel" };

/// Configuration keys.
pub const KEYS: &[Key] = &[
    Key {
        path: "network.proxy",
        kind: Kind::String,
        default: None,
        secret: true,
        help: "proxy for every TCP connection",
    },
    Key {
        path: "network.direct",
        kind: Kind::Bool,
        default: Some("true"),
        secret: false,
        help: "whether sessions may use UDP; without it they stay relayed",
    },
    Key {
        path: "session.resume_window",
        kind: Kind::Duration,
        default: Some("10m"),
        secret: false,
        help: "how long a session waits without any path, at most 10m",
    },
    Key {
        path: "consent.command",
        kind: Kind::StringList,
        default: None,
        secret: false,
        help: "program that asks the person at the computer, with its arguments",
    },
    Key {
        path: "log.level",
        kind: Kind::String,
        default: None,
        secret: false,
        help: "error, warn, info, debug, trace, or filter directives",
    },
    Key {
        path: "metrics.listen",
        kind: Kind::String,
        default: None,
        secret: false,
        help: "address of /metrics, /healthz and /readyz, e.g. 127.0.0.1:9464",
    },
];

/// Where a proxy may have been set.
const PROXY_HINT: &str = "correct --proxy, network.proxy in agent-tunnel.toml, or HTTPS_PROXY; NO_PROXY names exceptions";

/// Settings of a running agent.
#[derive(Clone)]
pub struct Settings {
    /// Whether UDP may be used.
    pub direct: bool,
    /// How long sessions wait without any path.
    pub resume_window: Duration,
    /// Program that asks for consent, with its arguments; empty if only the local command does.
    pub consent: Vec<String>,
    /// Log level or directives.
    pub log_level: String,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The way out, if configured by flag, file or variable.
    proxy: Option<String>,
}

/// Where the configuration comes from.
pub fn sources(global: &GlobalArgs, data_dir: &Path) -> Sources {
    Sources::new(global.config.as_deref(), data_dir)
        .flag("network.proxy", "--proxy", global.proxy.as_ref())
        .flag("log.level", "--log-level", global.log_level.as_ref())
}

impl Settings {
    /// Reads and checks all sources.
    pub fn load(global: &GlobalArgs, data_dir: &Path) -> Result<Self, CliError> {
        Self::read(&Config::load(&PROGRAM, KEYS, &sources(global, data_dir))?)
    }

    /// Checks what types do not say.
    pub fn read(config: &Config) -> Result<Self, CliError> {
        let resume_window = config.duration("session.resume_window")?;
        if resume_window > RESUME_WINDOW {
            let most = format_duration(RESUME_WINDOW);
            return Err(config.invalid("session.resume_window", &format!("is at most {most}")));
        }
        let proxy = config.opt_secret("network.proxy")?.map(|url| url.as_str().to_owned());
        // Before anything is dialled: a wrong proxy must not look like a network that is down.
        dialer(proxy.clone())?;
        Ok(Self {
            direct: config.bool("network.direct")?,
            resume_window,
            consent: read_command(config)?,
            log_level: config.opt_string("log.level")?.unwrap_or_else(|| DEFAULT_LEVEL.to_owned()),
            metrics: config.opt_parsed("metrics.listen")?,
            proxy,
        })
    }

    /// The configured proxy.
    pub fn proxy(&self) -> Option<String> {
        self.proxy.clone()
    }

    /// The way out: what is configured, else what was given at enrolment, else the environment.
    pub fn dialer(&self, enrolled: Option<&str>) -> Result<Dialer, CliError> {
        let explicit = self.proxy.clone().or_else(|| enrolled.map(str::to_owned));
        dialer(explicit)
    }
}

/// A dialer with this proxy, else the environment's.
pub fn dialer(explicit: Option<String>) -> Result<Dialer, CliError> {
    Dialer::new(&ProxyConfig { explicit, from_env: true })
        .map_err(|error| CliError::usage("proxy_invalid", error.to_string()).hint(PROXY_HINT))
}
