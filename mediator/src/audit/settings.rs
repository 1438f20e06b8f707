//! What `mediator.toml` says about the audit log: retention, receivers, periodic exports.
//!
//! Receivers are set here only, by whoever administers the machine: no request from the network
//! can make the mediator connect anywhere. Must never send to what is not TLS.

use std::{path::PathBuf, time::Duration};

use adit_net::proxy::{Dialer, ProxyConfig, parse_host_port};
use adit_runtime::{cli::CliError, config::Config};
use http::Uri;

use super::retention::{DAY_MS, MAX_DAYS, MIN_DAYS};

/// Syslog's port over TLS (RFC 5425 §4.1).
const SYSLOG_PORT: u16 = 6514;
const HTTPS_PORT: u16 = 443;
/// Shortest time between exports.
const MIN_EVERY: Duration = Duration::from_secs(1);

/// Form of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// The line of the log: its leaf hash can be checked.
    Json,
    Cef,
}

/// What shows that a receiver has read a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confirm {
    /// The end of TLS, which only the receiver can tell.
    CloseNotify,
    /// The end of the connection: for receivers that never say more. Whoever is on the way can
    /// tell it, too.
    Close,
}

/// A syslog receiver.
#[derive(Clone, Debug)]
pub(crate) struct SyslogTarget {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) payload: Payload,
    pub(crate) confirm: Confirm,
}

/// How a webhook knows us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WebhookAuth {
    Hmac,
    Bearer,
}

/// A webhook.
#[derive(Clone, Debug)]
pub(crate) struct WebhookTarget {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `host[:port]` as in the URL.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) secret: PathBuf,
    pub(crate) auth: WebhookAuth,
}

/// All of it, checked.
#[derive(Clone)]
pub(crate) struct AuditSettings {
    pub(crate) retention_ms: u64,
    pub(crate) syslog: Option<SyslogTarget>,
    pub(crate) webhook: Option<WebhookTarget>,
    pub(crate) export: Option<(PathBuf, Duration)>,
    pub(crate) dialer: Dialer,
}

impl std::fmt::Debug for AuditSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditSettings")
            .field("retention_ms", &self.retention_ms)
            .field("syslog", &self.syslog)
            .field("webhook", &self.webhook)
            .field("export", &self.export)
            .finish_non_exhaustive()
    }
}

impl AuditSettings {
    /// Checks the configuration.
    pub(crate) fn of(config: &Config) -> Result<Self, CliError> {
        let retention = config.duration("audit.retention")?.as_millis();
        let retention_ms = u64::try_from(retention)
            .ok()
            .filter(|ms| (MIN_DAYS * DAY_MS..=MAX_DAYS * DAY_MS).contains(ms))
            .ok_or_else(|| {
                let text = format!("{MIN_DAYS}d to {MAX_DAYS}d is expected");
                config.invalid("audit.retention", &text)
            })?;
        let explicit = config.opt_secret("network.proxy")?.map(|url| url.as_str().to_owned());
        let dialer = Dialer::new(&ProxyConfig { explicit, from_env: true })
            .map_err(|error| config.invalid("network.proxy", &error.to_string()))?;
        let export = match config.opt_string("audit.export_dir")? {
            None => None,
            Some(dir) => {
                let every = config.duration("audit.export_every")?;
                if every < MIN_EVERY {
                    return Err(config.invalid("audit.export_every", "1s or more is expected"));
                }
                Some((PathBuf::from(dir), every))
            }
        };
        let (syslog, webhook) = (syslog(config)?, webhook(config)?);
        Ok(Self { retention_ms, syslog, webhook, export, dialer })
    }

    /// Names of the receivers that are set, by which their cursors go.
    pub(crate) fn targets(&self) -> Vec<&'static str> {
        let syslog = self.syslog.is_some().then_some(super::forward::SYSLOG);
        let webhook = self.webhook.is_some().then_some(super::forward::WEBHOOK);
        syslog.into_iter().chain(webhook).collect()
    }
}

fn syslog(config: &Config) -> Result<Option<SyslogTarget>, CliError> {
    let Some(text) = config.opt_string("audit.syslog")? else { return Ok(None) };
    let (host, port) = parse_host_port(&text, SYSLOG_PORT)
        .map_err(|error| config.invalid("audit.syslog", &error.to_string()))?;
    let payload = match config.string("audit.syslog_format")?.as_str() {
        "json" => Payload::Json,
        "cef" => Payload::Cef,
        _ => return Err(config.invalid("audit.syslog_format", "json or cef is expected")),
    };
    let confirm = match config.string("audit.syslog_confirm")?.as_str() {
        "close_notify" => Confirm::CloseNotify,
        "close" => Confirm::Close,
        _ => {
            return Err(config.invalid("audit.syslog_confirm", "close_notify or close is expected"));
        }
    };
    let ca = config.opt_string("audit.syslog_ca")?.map(PathBuf::from);
    Ok(Some(SyslogTarget { host, port, ca, payload, confirm }))
}

fn webhook(config: &Config) -> Result<Option<WebhookTarget>, CliError> {
    let Some(text) = config.opt_string("audit.webhook")? else { return Ok(None) };
    let bad = |reason: &str| config.invalid("audit.webhook", reason);
    let uri: Uri = text.parse().map_err(|_| bad("a URL is expected"))?;
    if uri.scheme_str() != Some("https") {
        return Err(bad("it must begin with https://"));
    }
    let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
    if authority.as_str().contains('@') {
        return Err(bad("it must not contain a user or password; use audit.webhook_secret"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let auth = match config.string("audit.webhook_auth")?.as_str() {
        "hmac" => WebhookAuth::Hmac,
        "bearer" => WebhookAuth::Bearer,
        _ => return Err(config.invalid("audit.webhook_auth", "hmac or bearer is expected")),
    };
    let secret =
        config.opt_string("audit.webhook_secret")?.map(PathBuf::from).ok_or_else(|| {
            config.invalid("audit.webhook_secret", "a webhook needs a secret that it shares")
        })?;
    Ok(Some(WebhookTarget {
        host,
        port: authority.port_u16().unwrap_or(HTTPS_PORT),
        authority: authority.as_str().to_owned(),
        path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        ca: config.opt_string("audit.webhook_ca")?.map(PathBuf::from),
        secret,
        auth,
    }))
}
