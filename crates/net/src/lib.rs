//! Sockets, STUN, TLS, QUIC, Noise streams, proxies and interfaces: what programs do to networks.

mod congestion;
pub mod identity;
pub mod interfaces;
pub mod noise;
pub mod portmap;
pub mod proxy;
pub mod quic;
pub mod stun;
pub mod tls;
pub mod udp;
