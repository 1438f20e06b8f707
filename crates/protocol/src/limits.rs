//! Every bound that both ends of a connection must agree on or that protects one from the other.

use std::time::Duration;

/// Largest control message, bytes. An Offer with two relays and 32 candidates is under 8 KiB;
/// audit chunks are the largest.
pub const MAX_CONTROL_FRAME: usize = 256 * 1024;
/// Requests a control peer may have under way.
pub const MAX_CONTROL_IN_FLIGHT: usize = 256;
/// Noise message size on the wire (Noise specification §3).
pub const MAX_NOISE_MESSAGE: usize = 65_535;
/// AEAD tag, bytes.
pub const NOISE_TAG: usize = 16;
/// Plaintext in one record of a relayed carrier.
pub const MAX_NOISE_PAYLOAD: usize = MAX_NOISE_MESSAGE - NOISE_TAG;
/// A relayed carrier's direction rekeys after exactly this many records.
pub const REKEY_RECORDS: u64 = 1 << 20;
/// Bytes a record header may take, target name included.
pub const MAX_RECORD_HEADER: usize = 512;
/// Longest host name of a target (RFC 1035 §2.3.4).
pub const MAX_HOST_LEN: usize = 253;
/// Candidates of one end.
pub const MAX_CANDIDATES: usize = 32;
/// Channels open at once in a session.
pub const MAX_CHANNELS_PER_SESSION: usize = 1024;
/// Targets named in one grant.
pub const MAX_TARGETS_PER_GRANT: usize = 64;
/// First receive window of a channel, bytes.
pub const INITIAL_WINDOW: u64 = 256 * 1024;
/// Largest receive window of a channel, bytes.
pub const MAX_CHANNEL_WINDOW: u64 = 8 * 1024 * 1024;
/// Largest sum of receive windows of a session, bytes.
pub const MAX_SESSION_WINDOW: u64 = 64 * 1024 * 1024;
/// What the sessions of one process may let their windows grow to together, bytes.
pub const MAX_PROCESS_WINDOW: u64 = 512 * 1024 * 1024;
/// An `Ack` is due after a quarter window or this long.
pub const ACK_DELAY: Duration = Duration::from_millis(25);
/// Quantum that a channel may send on a shared carrier before the next one's turn.
pub const FAIR_QUANTUM: usize = 16 * 1024;
/// Carriers of one session.
pub const MAX_CARRIERS: usize = 8;
/// Connection slots of one session at one relay: 0 interactive, 1 bulk.
pub const MAX_RELAY_SLOTS: u32 = 2;
/// How long a session waits without any carrier.
pub const RESUME_WINDOW: Duration = Duration::from_secs(600);
/// Life of a grant or lease.
pub const LEASE: Duration = Duration::from_secs(300);
/// How long a session may last without the mediator (policy may lower it).
pub const OFFLINE_GRACE: Duration = Duration::from_secs(900);
/// Life of a relay ticket.
pub const TICKET_LIFE: Duration = Duration::from_secs(600);
/// Control keepalive while sessions live.
pub const KEEPALIVE_BUSY: Duration = Duration::from_secs(2);
/// Control keepalive otherwise.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(45);
/// Time for a whole end-to-end handshake through the mediator.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Free text from users: reasons, tickets, names.
pub const MAX_TEXT: usize = 512;
/// Bytes a relay reads from a connection that has not joined.
pub const RELAY_UNJOINED_BYTES: usize = 1024;
/// Time a relay gives a connection to join.
pub const RELAY_UNJOINED: Duration = Duration::from_secs(5);
/// Time a relay lets a join wait for its other end.
pub const RELAY_UNPAIRED: Duration = Duration::from_secs(15);
/// Size of a UDP datagram carried by a channel (RFC 768: length is 16 bits).
pub const MAX_DATAGRAM: usize = 65_507;
/// Pieces a datagram may be split into.
pub const MAX_DATAGRAM_PIECES: u8 = 64;
/// Time to reassemble a split datagram.
pub const DATAGRAM_REASSEMBLY: Duration = Duration::from_millis(500);
/// A UDP flow without datagrams ends after this long (RFC 4787 §4.3 asks for at least 2 min).
pub const UDP_IDLE: Duration = Duration::from_secs(120);
