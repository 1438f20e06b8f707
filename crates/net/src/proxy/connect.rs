//! Direct connections: all addresses of a name, a new one every 250 ms until one answers
//! (RFC 8305 §5), so that a broken address family costs a blink and not a timeout.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tower_service::Service;

use super::{DialError, format_host_port};

/// Connection attempt delay (RFC 8305 §8).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;
/// Largest segment, both ways: fits into the 1,280 bytes that every IPv6 path carries (RFC 8200
/// §5). Larger ones disappear without a word on paths that swallow ICMP, and a connection that
/// could be made stands still with its first full segment.
#[cfg(unix)]
const MAX_SEGMENT: u32 = 1280 - 60;
/// Silence after which the system probes a connection.
const KEEPALIVE: Duration = Duration::from_secs(60);

pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, DialError> {
    connect_where(host, port, &|_| true).await
}

/// Only to addresses that `admits` lets through.
pub(super) async fn connect_where(
    host: &str,
    port: u16,
    admits: &(dyn Fn(SocketAddr) -> bool + Send + Sync),
) -> Result<TcpStream, DialError> {
    let shown = format_host_port(host, port);
    let mut waiting = resolve_where(host, port, admits).await?;
    let mut running = FuturesUnordered::new();
    let mut first_error = None;
    loop {
        if let Some(address) = waiting.pop_front() {
            running.push(connect_one(address));
        }
        let stagger = async {
            if waiting.is_empty() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(STAGGER).await;
        };
        tokio::select! {
            result = running.next() => match result {
                Some(Ok(stream)) => return prepared(stream, shown),
                Some(Err(error)) => { first_error.get_or_insert(error); }
                None => break,
            },
            () = stagger => {}
        }
        if running.is_empty() && waiting.is_empty() {
            break;
        }
    }
    let error = first_error.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
    Err(explain(shown, error))
}

/// The addresses of a host that `admits` lets through, in the order in which they are tried; there
/// is at least one.
pub(super) async fn resolve_where(
    host: &str,
    port: u16,
    admits: &(dyn Fn(SocketAddr) -> bool + Send + Sync),
) -> Result<VecDeque<SocketAddr>, DialError> {
    let addresses = match host.parse() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => tokio::net::lookup_host((host, port))
            .await
            .map_err(|_| DialError::NameNotFound(host.to_owned()))?
            .collect(),
    };
    let (addresses, forbidden): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| admits(*address));
    if addresses.is_empty() && !forbidden.is_empty() {
        return Err(DialError::Forbidden(format_host_port(host, port)));
    }
    let addresses = interleave(addresses);
    if addresses.is_empty() {
        return Err(DialError::NameNotFound(host.to_owned()));
    }
    Ok(addresses)
}

async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Elsewhere, and where the system refuses, connections work as well as others do.
    #[cfg(unix)]
    let _ = SockRef::from(&socket).set_tcp_mss(MAX_SEGMENT);
    socket.connect(address).await
}

/// IPv6 first, then in turns (RFC 8305 §4); within a family as the resolver ordered them.
pub(super) fn interleave(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut out = VecDeque::new();
    while out.len() < MAX_ADDRESSES {
        let pair = [v6.next(), v4.next()];
        if pair == [None, None] {
            break;
        }
        out.extend(pair.into_iter().flatten());
    }
    out.truncate(MAX_ADDRESSES);
    out
}

fn prepared(stream: TcpStream, shown: String) -> Result<TcpStream, DialError> {
    // A keystroke must not wait for the last one's acknowledgement.
    stream.set_nodelay(true).map_err(|error| DialError::Io { host: shown, error })?;
    // Without keepalive the connection still works: nothing to report.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    Ok(stream)
}

fn explain(host: String, error: io::Error) -> DialError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => DialError::Refused(host),
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable => DialError::Unreachable(host),
        io::ErrorKind::TimedOut => DialError::Timeout(host),
        _ => DialError::Io { host, error },
    }
}

/// Marks a failure to reach the proxy itself, so that it is found again in error chains.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct ConnectFailed(pub(super) DialError);

/// Our direct connections as the proxy library wants them.
#[derive(Clone)]
pub(super) struct DirectConnector {
    default_port: u16,
}

impl DirectConnector {
    pub(super) fn new(default_port: u16) -> Self {
        Self { default_port }
    }
}

impl Service<http::Uri> for DirectConnector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectFailed;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let port = uri.port_u16().unwrap_or(self.default_port);
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Box::pin(async move { connect(&host, port).await.map(TokioIo::new).map_err(ConnectFailed) })
    }
}
