//! Local ends of a session: where programs on this machine connect.
//!
//! Bound before anything is asked of the mediator, so that a port in use costs nothing; nobody is
//! served before the grant.

mod caller;
pub mod socks;
pub mod spec;
mod tcp;
mod udp;
mod web;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use adit_protocol::target::Target;
use adit_runtime::cli::CliError;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use caller::Callers;
pub use caller::Users;

use crate::session::SessionHandle;

/// What kind of forward, and so which redirector it counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// `-L`, and the listener of `open`.
    Tcp,
    /// `-U`.
    Udp,
    /// `-D`.
    Socks,
}

impl Protocol {
    /// The redirector that a forward counts as.
    pub fn redirector(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Socks => "socks",
        }
    }

    /// In the `listening` event.
    pub fn event_name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Socks => "socks5",
        }
    }
}

/// A bound local end.
#[derive(Debug)]
pub struct Local {
    socket: Socket,
    address: SocketAddr,
    target: Option<Target>,
    door: Door,
}

/// Who is served at a local end.
#[derive(Debug, Clone, Default)]
struct Door {
    callers: Arc<Callers>,
    /// It leads to a web service: what it may be called beside its addresses.
    web: Option<Vec<String>>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Local {
    /// Listens for TCP connections: to one target, or as a SOCKS server without one.
    pub async fn tcp(listen: SocketAddr, target: Option<Target>) -> Result<Self, CliError> {
        let failed = |error| CliError::bind(listen, &error);
        let socket = TcpListener::bind(listen).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket: Socket::Tcp(socket), address, target, door: Door::default() })
    }

    /// Receives datagrams for one target.
    pub async fn udp(listen: SocketAddr, target: Target) -> Result<Self, CliError> {
        let failed = |error| CliError::bind(listen, &error);
        let socket = UdpSocket::bind(listen).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let (socket, target) = (Socket::Udp(socket), Some(target));
        Ok(Self { socket, address, target, door: Door::default() })
    }

    /// What kind it is.
    pub fn protocol(&self) -> Protocol {
        match (&self.socket, &self.target) {
            (Socket::Udp(_), _) => Protocol::Udp,
            (Socket::Tcp(_), Some(_)) => Protocol::Tcp,
            (Socket::Tcp(_), None) => Protocol::Socks,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it leads; `None` for SOCKS.
    pub fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// The same listener, now that it is known where it leads.
    #[must_use]
    pub fn leading_to(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// The same, serving the programs of these users of this computer.
    #[must_use]
    pub fn serving(mut self, users: Users) -> Self {
        self.door.callers = Arc::new(Callers::of(users));
        self
    }

    /// The same, known to lead to a web service, which may be called so: pages of other sites do
    /// not get there.
    #[must_use]
    pub fn leading_to_web(mut self, mut names: Vec<String>) -> Self {
        names.extend(self.target.as_ref().map(|target| target.host().to_owned()));
        self.door.web = Some(names);
        self
    }

    /// Where a program on this machine connects to.
    pub fn connect_address(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }

    /// Whether others than this machine can connect.
    pub fn is_open_to_others(&self) -> bool {
        !self.address.ip().to_canonical().is_loopback()
    }

    /// Serves until the session or `stop` ends it.
    pub async fn serve(self, session: SessionHandle, stop: CancellationToken) {
        let serve = async {
            match (self.socket, self.target) {
                (Socket::Tcp(listener), target) => {
                    tcp::serve(listener, target, self.door, &session).await;
                }
                (Socket::Udp(socket), Some(target)) => {
                    udp::serve(socket, &target, (self.door, self.address), &session).await;
                }
                // INVARIANT: `Local::udp` always has a target.
                (Socket::Udp(_), None) => {}
            }
        };
        tokio::select! {
            () = serve => {}
            () = session.ended() => {}
            () = stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adit_protocol::target::Transport;

    #[tokio::test]
    async fn a_port_in_use_is_an_error_with_its_own_code() {
        let target = Target::parse("web:80", Transport::Tcp).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let first = Local::tcp(any, Some(target.clone())).await.unwrap();
        assert_ne!(first.address().port(), 0);
        let again = Local::tcp(first.address(), None).await.unwrap_err();
        assert_eq!((again.code, again.exit.code()), ("port_in_use", 1));
        let udp = Local::udp(any, target.clone()).await.unwrap();
        assert_eq!(Local::udp(udp.address(), target).await.unwrap_err().code, "port_in_use");
        assert_eq!((first.protocol(), udp.protocol()), (Protocol::Tcp, Protocol::Udp));
    }

    #[tokio::test]
    async fn programs_connect_to_loopback_of_an_unspecified_address() {
        let local = Local::tcp("0.0.0.0:0".parse().unwrap(), None).await.unwrap();
        assert!(local.is_open_to_others());
        assert!(local.connect_address().ip().is_loopback());
        assert_eq!(local.protocol(), Protocol::Socks);
    }
}
