//! QUIC endpoints for sessions: quinn on a [`DemuxSocket`].
//!
//! One connection is one validated pair of addresses: no migration, no tickets, no early data,
//! and not a packet to or for an address that was not admitted. A new path is a new connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use adit_protocol::limits::MAX_CHANNELS_PER_SESSION;
use quinn::{
    ClientConfig, Connecting, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig,
    ServerConfig, TokioRuntime, TransportConfig, ValidationTokenConfig, VarInt,
};
use tokio::time::timeout;

use crate::{
    congestion::GentleConfig,
    udp::{DemuxSocket, normalise},
};

/// Receive window of a stream: 640 Mbit/s at 100 ms.
pub const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
/// Receive window of a connection.
pub const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// Bytes written and not acknowledged, over all streams of a connection.
pub const SEND_WINDOW: u64 = 16 * 1024 * 1024;
/// Datagrams received and not read, bytes.
pub const DATAGRAM_RECEIVE_BUFFER: usize = 1024 * 1024;
/// Datagrams waiting to be sent, bytes; the oldest are dropped first.
pub const DATAGRAM_SEND_BUFFER: usize = 256 * 1024;
/// A connection without any packet ends after this long. Short, because nothing is lost with it:
/// channels go on elsewhere, and a path that comes back is dialled anew; but a session whose
/// carriers are all dead should know it.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Three of these fit into the idle timeout; it also keeps NAT mappings, which live 30 s and
/// longer (RFC 4787 §4.3 asks for 2 min, few give it).
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// First guess, before a packet was acknowledged.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Every QUIC path carries this (RFC 9000 §14); discovery goes up from here.
pub const INITIAL_MTU: u16 = 1_200;
/// Handshakes under way at once; each is from an admitted address.
const MAX_INCOMING: usize = 256;
/// Bytes kept for handshakes that wait for `accept`.
const INCOMING_BUFFER: u64 = 4 * 1024 * 1024;

/// Why a connection was not begun.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Its answers would be dropped.
    #[error("{0} is not admitted: check the path first")]
    NotAdmitted(SocketAddr),
    /// quinn refused.
    #[error("cannot dial")]
    Connect(#[from] quinn::ConnectError),
}

/// What both ends of a direct carrier use, and what a comparison with bare quinn should use too.
pub fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    let streams = u32::try_from(MAX_CHANNELS_PER_SESSION).unwrap_or(u32::MAX);
    config
        // One stream for each channel, and the carrier's own.
        .max_concurrent_bidi_streams(VarInt::from_u32(streams.saturating_add(1)))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(INITIAL_MTU)
        .min_mtu(INITIAL_MTU)
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        .congestion_controller_factory(Arc::new(GentleConfig))
        .enable_segmentation_offload(true)
        // The spin bit would tell the network the round trip time.
        .allow_spin(false);
    config
}

/// Settings of an endpoint that shares its socket with STUN (RFC 9443).
pub fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false).supported_versions(vec![QUIC_V1]);
    config
}

/// RFC 9000 §15.
const QUIC_V1: u32 = 1;

/// quinn on a socket of ours. Dropping it closes its connections at once.
#[derive(Debug)]
pub struct QuicEndpoint {
    endpoint: quinn::Endpoint,
    socket: Arc<DemuxSocket>,
    transport: Arc<TransportConfig>,
}

impl QuicEndpoint {
    /// An endpoint that dials, and accepts if `server` says with which keys. Must be called
    /// within a tokio runtime.
    pub fn new(socket: Arc<DemuxSocket>, server: Option<ServerConfig>) -> std::io::Result<Self> {
        let transport = Arc::new(transport_config());
        let server = server.map(|config| restrict(config, transport.clone()));
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            endpoint_config(),
            server,
            socket.clone(),
            Arc::new(TokioRuntime),
        )?;
        Ok(Self { endpoint, socket, transport })
    }

    /// The socket, to admit addresses and to send STUN.
    pub fn socket(&self) -> &Arc<DemuxSocket> {
        &self.socket
    }

    /// Dials an admitted address. The peer is known by its key, so no name is sent.
    pub fn dial(
        &self,
        addr: SocketAddr,
        mut config: ClientConfig,
    ) -> Result<Connecting, DialError> {
        let addr = normalise(addr);
        if !self.socket.is_admitted(addr) {
            return Err(DialError::NotAdmitted(addr));
        }
        config.transport_config(self.transport.clone());
        Ok(self.endpoint.connect_with(config, addr, SERVER_NAME)?)
    }

    /// The next handshake; `None` once the endpoint is closed. quinn's own answer to strangers
    /// does not matter here: they do not get this far.
    pub async fn accept(&self) -> Option<Incoming> {
        self.endpoint.accept().await
    }

    /// Replaces the keys for handshakes to come; `None` ends accepting.
    pub fn set_server_config(&self, server: Option<ServerConfig>) {
        let server = server.map(|config| restrict(config, self.transport.clone()));
        self.endpoint.set_server_config(server);
    }

    /// Connections open or closing.
    pub fn open_connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Closes all connections at once and tells the peers why.
    pub fn close(&self, code: VarInt, reason: &[u8]) {
        self.endpoint.close(code, reason);
    }

    /// Closes, and waits until the peers know or `deadline` has passed.
    pub async fn shutdown(&self, code: VarInt, reason: &[u8], deadline: Duration) {
        self.close(code, reason);
        // What is not delivered by then, the peer's idle timeout tells it.
        let _ = timeout(deadline, self.endpoint.wait_idle()).await;
    }
}

impl Drop for QuicEndpoint {
    fn drop(&mut self) {
        self.endpoint.close(VarInt::from_u32(0), b"");
    }
}

/// For the SNI field, which TLS for QUIC cannot leave out and nobody reads: agents are known by
/// key. A reserved name (RFC 2606 §2).
const SERVER_NAME: &str = "adit.invalid";

fn restrict(mut config: ServerConfig, transport: Arc<TransportConfig>) -> ServerConfig {
    // Address tokens have no use where addresses are proved before the first packet.
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    config
        .validation_token_config(tokens)
        .transport_config(transport)
        .migration(false)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size_total(INCOMING_BUFFER);
    config
}

#[cfg(test)]
#[path = "quic_tests.rs"]
mod tests;
