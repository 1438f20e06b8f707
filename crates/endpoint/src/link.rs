//! The control connection as sessions see it: there, or not there just now.

use std::net::SocketAddr;

use adit_control::{MediatorClock, Peer, client::MediatorKeys};
use tokio::sync::watch;

/// A control connection that is up.
#[derive(Debug, Clone)]
pub struct Link {
    /// For requests.
    pub peer: Peer,
    /// The mediator's certified keys.
    pub keys: MediatorKeys,
    /// The mediator's time.
    pub clock: MediatorClock,
    /// Its address, unless a proxy hides it.
    pub remote: Option<SocketAddr>,
    /// Its name.
    pub host: String,
    /// UDP ports on which it answers STUN.
    pub stun_ports: Vec<u16>,
    /// Further STUN servers.
    pub stun_addrs: Vec<SocketAddr>,
}

/// The control connection, whether up or down. Clones share it.
#[derive(Debug, Clone)]
pub struct ControlLink {
    link: watch::Sender<Option<Link>>,
    /// Keys and clock outlive the connection.
    last: watch::Sender<Option<(MediatorKeys, MediatorClock)>>,
}

impl Default for ControlLink {
    fn default() -> Self {
        Self::new()
    }
}

impl ControlLink {
    /// Not up yet.
    pub fn new() -> Self {
        Self { link: watch::Sender::new(None), last: watch::Sender::new(None) }
    }

    /// The connection is up.
    pub fn set_up(&self, link: Link) {
        self.last.send_replace(Some((link.keys, link.clock)));
        self.link.send_replace(Some(link));
    }

    /// The connection is lost.
    pub fn set_down(&self) {
        self.link.send_replace(None);
    }

    /// For requests, if it is up.
    pub fn peer(&self) -> Option<Peer> {
        self.link.borrow().as_ref().map(|l| l.peer.clone())
    }

    /// All that is known of it, if it is up.
    pub fn current(&self) -> Option<Link> {
        self.link.borrow().clone()
    }

    /// The mediator's keys and clock as last learnt.
    pub(crate) fn last(&self) -> Option<(MediatorKeys, MediatorClock)> {
        *self.last.borrow()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Link>> {
        self.link.subscribe()
    }
}
