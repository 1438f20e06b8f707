//! Configuration of the console: `console-tunnel.toml`, environment, flags.

use std::time::Duration;

use adit_net::proxy::{Dialer, ProxyConfig};
use adit_protocol::limits::{OFFLINE_GRACE, RESUME_WINDOW};
use adit_runtime::{
    cli::{CliError, GlobalArgs, Program},
    config::{Config, Key, Kind, Sources},
    datadir::DataDir,
};

use crate::{forward::Users, viewer};

/// This program.
pub const PROGRAM: Program = Program { name: "console-tunnel" };

/// Everything that can be configured.
pub const KEYS: &[Key] = &[
    Key {
        path: "log.level",
        kind: Kind::String,
        // A certificate that the system does not know is a case that `login` handles itself.
        default: Some("warn,rustls_platform_verifier=off"),
        secret: false,
        help: "error, warn, info, debug, trace, or filter directives",
    },
    Key {
        path: "proxy.url",
        kind: Kind::String,
        default: None,
        // It may hold a password.
        secret: true,
        help: "proxy for every TCP connection",
    },
    Key {
        path: "session.direct",
        kind: Kind::Bool,
        default: Some("true"),
        secret: false,
        help: "whether sessions may use UDP",
    },
    Key {
        path: "session.resume_window",
        kind: Kind::Duration,
        default: Some("10m"),
        secret: false,
        help: "how long a session waits without any network",
    },
    Key {
        path: "session.offline_grace",
        kind: Kind::Duration,
        default: Some("15m"),
        secret: false,
        help: "how long a session lasts without the mediator",
    },
    Key {
        path: "local.users",
        kind: Kind::String,
        default: Some("own"),
        secret: false,
        help: "whose programs on this computer may use local ports: own, or any (Linux)",
    },
    Key {
        path: "local.hosts",
        kind: Kind::StringList,
        default: None,
        secret: false,
        help: "names by which browsers may call redirected web services, beside localhost",
    },
    viewer_key("viewers.rdp.command"),
    viewer_key("viewers.vnc.command"),
    viewer_key("viewers.ssh.command"),
    viewer_key("viewers.browser.command"),
];

const fn viewer_key(path: &'static str) -> Key {
    Key {
        path,
        kind: Kind::StringList,
        default: None,
        secret: false,
        help: "program and arguments, with {host}, {port}, {user}, {url}",
    }
}

/// The one way out, by configuration and environment. A setting that is no proxy's is wrong usage,
/// also for commands that connect nowhere.
pub fn dialer(config: &Config) -> Result<Dialer, CliError> {
    let explicit = config.opt_string("proxy.url")?;
    Dialer::new(&ProxyConfig { explicit, from_env: true })
        .map_err(|error| CliError::usage("proxy_invalid", error.to_string()))
}

/// Values that only this program can judge.
pub fn check(config: &Config) -> Result<(), CliError> {
    config.parsed::<Users>("local.users")?;
    viewer::check_config(config)
}

/// What every command starts with.
pub struct Context {
    /// Options of the command line.
    pub global: GlobalArgs,
    /// Effective configuration.
    pub config: Config,
    /// State of this console.
    pub directory: DataDir,
    /// The one way out.
    pub dialer: Dialer,
}

/// Where the configuration comes from.
pub fn sources(global: &GlobalArgs) -> Result<Sources, CliError> {
    let directory = global.data_dir(&PROGRAM)?;
    Ok(Sources::new(global.config.as_deref(), &directory)
        .flag("log.level", "--log-level", global.log_level.as_deref())
        .flag("proxy.url", "--proxy", global.proxy.as_deref()))
}

impl Context {
    /// Loads configuration and data directory and starts logging.
    pub fn load(global: GlobalArgs) -> Result<Self, CliError> {
        let config = Config::load(&PROGRAM, KEYS, &sources(&global)?)?;
        check(&config)?;
        let dialer = dialer(&config)?;
        adit_runtime::logging::init(&config.string("log.level")?, global.log_format)?;
        let directory = DataDir::open(global.data_dir(&PROGRAM)?)?;
        Ok(Self { global, config, directory, dialer })
    }

    /// Whose programs local ends serve.
    pub fn local_users(&self) -> Result<Users, CliError> {
        self.config.parsed("local.users")
    }

    /// By which names browsers may call redirected web services.
    pub fn local_hosts(&self) -> Result<Vec<String>, CliError> {
        Ok(self.config.list("local.hosts")?.iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// How long a session waits without any carrier.
    pub fn resume_window(&self) -> Result<Duration, CliError> {
        Ok(self.config.duration("session.resume_window")?.min(RESUME_WINDOW))
    }

    /// How long a session lasts without the mediator.
    pub fn offline_grace(&self) -> Result<Duration, CliError> {
        Ok(self.config.duration("session.offline_grace")?.min(OFFLINE_GRACE))
    }
}
