//! The one way out over TCP: directly or through the configured proxy.
//!
//! Every outbound TCP connection of a program goes through its [`Dialer`], so that a proxy
//! setting holds for all of them or the connection fails; nothing goes around it silently.

mod connect;
mod host;
#[cfg(test)]
mod tests;

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    client::{
        legacy::connect::proxy::{SocksV5, Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower_service::Service;

use connect::{ConnectFailed, DirectConnector};
pub use host::{InvalidHostPort, format_host_port, parse_host_port};

/// Addresses of one name for which a proxy is asked.
const MAX_PROXIED: usize = 4;

/// Where the proxy setting comes from.
#[derive(Clone, Default)]
pub struct ProxyConfig {
    /// A proxy's URL, from a flag or a configuration file; goes before the environment.
    pub explicit: Option<String>,
    /// Whether `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` count.
    pub from_env: bool,
}

impl fmt::Debug for ProxyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("ProxyConfig")
            .field("explicit", &self.explicit.is_some())
            .field("from_env", &self.from_env)
            .finish()
    }
}

/// The proxy setting cannot be used. The URL is not repeated: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "proxy setting from {0} cannot be used: it must be like http://proxy.example:3128, \
     http://user:password@proxy.example:3128 or socks5://proxy.example:1080"
)]
pub struct InvalidProxy(&'static str);

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name does not resolve.
    #[error("\"{0}\" cannot be resolved")]
    NameNotFound(String),
    /// Nobody listens there.
    #[error("connection refused by {0}")]
    Refused(String),
    /// No route.
    #[error("{0} cannot be reached")]
    Unreachable(String),
    /// The name does not resolve here, and the proxy, which could, may not choose the address.
    #[error(
        "\"{0}\" cannot be resolved on this machine, and where it leads must be known before a \
         proxy is asked to connect there"
    )]
    NotResolvedHere(String),
    /// Neither a name nor an address as they are written today.
    #[error("\"{0}\" is no name, and not the usual spelling of an address")]
    OddHost(String),
    /// An address to which this program does not connect.
    #[error("{0} is an address to which a mediator may not send this computer")]
    Forbidden(String),
    /// No answer in time.
    #[error("{0} did not answer in time")]
    Timeout(String),
    /// The proxy wants a user and password, or others.
    #[error("proxy {0} demands a user and password: set them in the proxy url")]
    ProxyAuth(String),
    /// The proxy does not connect us.
    #[error("proxy {proxy} refused the connection: {reason}")]
    ProxyRefused {
        /// Proxy's host and port.
        proxy: String,
        /// What the proxy protocol said.
        reason: String,
    },
    /// The proxy itself could not be reached.
    #[error("proxy cannot be used: {0}")]
    Proxy(Box<DialError>),
    /// Another failure of the system.
    #[error("cannot connect to {host}: {error}")]
    Io {
        /// Host and port.
        host: String,
        /// Why.
        error: io::Error,
    },
}

/// A TCP connection and how it came about.
#[derive(Debug)]
pub struct Dialed {
    /// The connection, as if made directly: `TCP_NODELAY` and keepalive are set.
    pub stream: TcpStream,
    /// Whether a proxy is in between.
    pub via_proxy: bool,
    /// The target's address; unknown where a proxy resolved it.
    pub remote: Option<SocketAddr>,
}

/// Makes outbound TCP connections.
#[derive(Clone)]
pub struct Dialer {
    matcher: Arc<Matcher>,
    proxied: bool,
}

impl Dialer {
    /// Reads the setting once.
    pub fn new(config: &ProxyConfig) -> Result<Self, InvalidProxy> {
        let env = |names: [&str; 2]| {
            let value = names.into_iter().find_map(|n| std::env::var(n).ok());
            value.filter(|v| config.from_env && !v.is_empty())
        };
        let (proxy, origin) = if let Some(url) = &config.explicit {
            (Some(url.clone()), "the configuration")
        } else if let Some(url) = env(["HTTPS_PROXY", "https_proxy"]) {
            (Some(url), "HTTPS_PROXY")
        } else {
            (env(["ALL_PROXY", "all_proxy"]), "ALL_PROXY")
        };
        let Some(url) = proxy else { return Ok(Self::direct()) };
        let no_proxy = env(["NO_PROXY", "no_proxy"]).unwrap_or_default();
        let dialer = Self::with(url.clone(), no_proxy);
        // The matcher drops what it cannot read, and everything would go around the proxy.
        let explicit_scheme = url.contains("://");
        let probe = Matcher::builder().all(url).build();
        let usable = http::Uri::try_from("https://host.invalid:1/").ok().and_then(|probe_uri| {
            let proxy = probe.intercept(&probe_uri)?;
            let scheme = proxy.uri().scheme_str()?;
            let host = proxy.uri().host().filter(|host| is_host(host))?;
            // A lone word is read as a host of that name; who means one says so or gives a port.
            let authority = proxy.uri().authority()?.as_str();
            let without_port = authority.ends_with(host) && explicit_scheme;
            let meant = proxy.uri().port_u16().map_or(without_port, |port| port != 0);
            (meant && !host.is_empty() && matches!(scheme, "http" | "socks5" | "socks5h"))
                .then_some(())
        });
        usable.map(|()| dialer).ok_or(InvalidProxy(origin))
    }

    /// Without any proxy.
    pub fn direct() -> Self {
        Self { matcher: Arc::new(Matcher::builder().build()), proxied: false }
    }

    fn with(url: String, no_proxy: String) -> Self {
        let matcher = Arc::new(Matcher::builder().all(url).no(no_proxy).build());
        Self { matcher, proxied: true }
    }

    /// Whether there is a proxy setting, for whatever destinations.
    pub fn has_proxy(&self) -> bool {
        self.proxied
    }

    /// Whether connections to this host go through a proxy.
    pub fn uses_proxy(&self, host: &str, port: u16) -> bool {
        target_uri(host, port).is_some_and(|uri| self.matcher.intercept(&uri).is_some())
    }

    /// The proxy through which connections to this host go, without its credentials.
    pub fn proxy_of(&self, host: &str, port: u16) -> Option<String> {
        let proxy = self.matcher.intercept(&target_uri(host, port)?)?;
        let (scheme, host) = (proxy.uri().scheme_str()?, proxy.uri().host()?);
        let port = proxy.uri().port_u16().map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{scheme}://{host}{port}"))
    }

    /// Connects to a host (a name or an address, IPv6 with or without brackets).
    pub async fn dial(
        &self,
        host: &str,
        port: u16,
        deadline: Duration,
    ) -> Result<Dialed, DialError> {
        self.dial_where(host, port, deadline, &|_| true).await
    }

    /// As [`Self::dial`], but only to addresses that `admits` lets through, whatever a name
    /// resolves to. Through a proxy the proxy resolves, and has rules of its own; an address
    /// given as such is asked about all the same. For hosts that strangers name there is
    /// [`Self::dial_resolved`].
    pub async fn dial_where(
        &self,
        host: &str,
        port: u16,
        deadline: Duration,
        admits: &(dyn Fn(SocketAddr) -> bool + Send + Sync),
    ) -> Result<Dialed, DialError> {
        self.dial_by(Resolver::Proxy, host, port, deadline, admits).await
    }

    /// As [`Self::dial_where`], but `admits` holds through a proxy as well: the name is resolved
    /// here, and the proxy is asked for an address that was admitted, never for a name. So it
    /// fails where only the proxy resolves names.
    pub async fn dial_resolved(
        &self,
        host: &str,
        port: u16,
        deadline: Duration,
        admits: &(dyn Fn(SocketAddr) -> bool + Send + Sync),
    ) -> Result<Dialed, DialError> {
        self.dial_by(Resolver::Here, host, port, deadline, admits).await
    }

    async fn dial_by(
        &self,
        resolver: Resolver,
        host: &str,
        port: u16,
        deadline: Duration,
        admits: &(dyn Fn(SocketAddr) -> bool + Send + Sync),
    ) -> Result<Dialed, DialError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let shown = format_host_port(host, port);
        if resolver == Resolver::Here && is_legacy_address(host) {
            return Err(DialError::OddHost(host.to_owned()));
        }
        let attempt = async {
            let uri =
                target_uri(host, port).ok_or_else(|| DialError::NameNotFound(host.to_owned()))?;
            // NO_PROXY is about the host as it was named.
            let Some(proxy) = self.matcher.intercept(&uri) else {
                let stream = connect::connect_where(host, port, admits).await?;
                let remote = stream.peer_addr().ok();
                return Ok(Dialed { stream, via_proxy: false, remote });
            };
            if resolver == Resolver::Proxy {
                if host.parse().is_ok_and(|ip| !admits(SocketAddr::new(ip, port))) {
                    return Err(DialError::Forbidden(shown.clone()));
                }
                let stream = through(&proxy, uri).await?;
                return Ok(Dialed { stream, via_proxy: true, remote: None });
            }
            let addresses = connect::resolve_where(host, port, admits).await;
            let addresses = addresses.map_err(|error| match error {
                DialError::NameNotFound(host) => DialError::NotResolvedHere(host),
                other => other,
            })?;
            through_to(&proxy, addresses.into_iter().take(MAX_PROXIED).collect(), deadline).await
        };
        tokio::time::timeout(deadline, attempt).await.map_err(|_| DialError::Timeout(shown))?
    }
}

/// Who turns a name into addresses where a proxy connects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resolver {
    Proxy,
    Here,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

/// Could this be a host: an address, or a name of letters, digits, `-` and `_` (RFC 1123 §2.1)?
fn is_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(fits)
    };
    bare.parse::<std::net::IpAddr>().is_ok()
        || bare.strip_suffix('.').unwrap_or(bare).split('.').all(label)
}

fn target_uri(host: &str, port: u16) -> Option<http::Uri> {
    http::Uri::try_from(format!("https://{}/", format_host_port(host, port))).ok()
}

/// Is this an IPv4 address as C libraries have read it since 4.2BSD: `127.1`, `0x7f.1`,
/// `2130706433`? Whoever asks "is this an address?" before a proxy does has been told no. As
/// browsers decide it: the last label is a number (WHATWG URL, "ends in a number").
fn is_legacy_address(host: &str) -> bool {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return false;
    }
    let last = host.strip_suffix('.').unwrap_or(host).rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let digits = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    digits || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// To the first of these that the proxy reaches; what is wrong with the proxy is wrong for all.
async fn through_to(
    proxy: &Intercept,
    addresses: Vec<SocketAddr>,
    deadline: Duration,
) -> Result<Dialed, DialError> {
    let share = deadline / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut failed = None;
    for address in addresses {
        let shown = address.to_string();
        let Some(uri) = target_uri(&address.ip().to_string(), address.port()) else { continue };
        // A proxy without one address family must leave time for the other.
        let error = match tokio::time::timeout(share, through(proxy, uri)).await {
            Ok(Ok(stream)) => return Ok(Dialed { stream, via_proxy: true, remote: Some(address) }),
            Ok(Err(error)) => error,
            Err(_) => DialError::Timeout(shown),
        };
        if !matches!(error, DialError::ProxyRefused { .. } | DialError::Timeout(_)) {
            return Err(error);
        }
        failed.get_or_insert(error);
    }
    Err(failed.unwrap_or_else(|| DialError::NameNotFound(String::new())))
}

async fn through(proxy: &Intercept, target: http::Uri) -> Result<TcpStream, DialError> {
    let shown = proxy.uri().authority().map(ToString::to_string).unwrap_or_default();
    let socks = proxy.uri().scheme_str().is_some_and(|s| s.starts_with("socks5"));
    let result: Result<TokioIo<TcpStream>, Box<dyn std::error::Error + Send + Sync>> = if socks {
        let mut service = SocksV5::new(proxy.uri().clone(), DirectConnector::new(1080));
        if let Some((user, password)) = proxy.raw_auth() {
            service = service.with_auth(user.to_owned(), password.to_owned());
        }
        service.call(target).await.map_err(Into::into)
    } else {
        let mut service = Tunnel::new(proxy.uri().clone(), DirectConnector::new(80));
        if let Some(auth) = proxy.basic_auth() {
            service = service.with_auth(auth.clone());
        }
        service.call(target).await.map_err(Into::into)
    };
    result.map(TokioIo::into_inner).map_err(|error| explain(shown, error.as_ref()))
}

/// The library's error types are private; what tells them apart is source and text.
fn explain(proxy: String, error: &(dyn std::error::Error + 'static)) -> DialError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(ConnectFailed(dial)) = error.downcast_ref::<ConnectFailed>() {
            return DialError::Proxy(Box::new(dial.copy()));
        }
        cause = error.source();
    }
    let text = error.to_string();
    if text.to_lowercase().contains("auth") {
        return DialError::ProxyAuth(proxy);
    }
    DialError::ProxyRefused { proxy, reason: text }
}

impl DialError {
    fn copy(&self) -> Self {
        match self {
            Self::NameNotFound(h) => Self::NameNotFound(h.clone()),
            Self::Refused(h) => Self::Refused(h.clone()),
            Self::NotResolvedHere(h) => Self::NotResolvedHere(h.clone()),
            Self::OddHost(h) => Self::OddHost(h.clone()),
            Self::Forbidden(h) => Self::Forbidden(h.clone()),
            Self::Unreachable(h) => Self::Unreachable(h.clone()),
            Self::Timeout(h) => Self::Timeout(h.clone()),
            Self::ProxyAuth(p) => Self::ProxyAuth(p.clone()),
            Self::ProxyRefused { proxy, reason } => {
                Self::ProxyRefused { proxy: proxy.clone(), reason: reason.clone() }
            }
            Self::Proxy(inner) => Self::Proxy(Box::new(inner.copy())),
            Self::Io { host, error } => Self::Io {
                host: host.clone(),
                error: io::Error::new(error.kind(), error.to_string()),
            },
        }
    }
}
