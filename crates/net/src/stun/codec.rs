//! STUN messages as bytes: what we send, and what we read of what others send.
//!
//! Decoding never panics, never allocates more than a message's worth, and refuses whatever is
//! larger than [`MAX_STUN`]. It says nothing about who sent a message.

use std::net::SocketAddr;

use enumflags2::BitFlags;
use stun_rs::{
    MessageClass, MessageDecoderBuilder, MessageEncoderBuilder, StunAttribute, StunMessage,
    StunMessageBuilder, TransactionId,
    attributes::{
        discovery::{ChangeRequest, ChangeRequestFlags, OtherAddress, Padding, ResponseOrigin},
        ice::Priority,
        stun::{UserName, XorMappedAddress},
    },
    methods::BINDING,
};

use super::integrity::{Layout, append_fingerprint, append_integrity};

/// Largest message read or written: fits every path (RFC 8489 §6.1) and bounds decoding.
pub const MAX_STUN: usize = 548;
/// Bytes before the first attribute (RFC 8489 §5).
pub(super) const HEADER: usize = 20;
/// RFC 8489 §5.
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
/// PADDING that makes a behaviour request (96 bytes) larger than the largest answer to it
/// (92 bytes: three IPv6 addresses).
const PADDING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Cheap test for the receive path (RFC 7983, RFC 9443): two zero bits, magic cookie, exact
/// length. QUIC packets of endpoints that do not grease have the bit 0x40 set.
#[inline]
pub fn looks_like_stun(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<HEADER>() else { return false };
    header[0] & 0xC0 == 0
        && header[4..8] == MAGIC_COOKIE
        && packet.len() <= MAX_STUN
        && packet.len().is_multiple_of(4)
        && usize::from(u16::from_be_bytes([header[2], header[3]])) + HEADER == packet.len()
}

/// RFC 8489 §5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StunClass {
    /// Wants an answer.
    Request,
    /// Wants none.
    Indication,
    /// The answer.
    Success,
    /// The refusal.
    Error,
}

/// What CHANGE-REQUEST asks for (RFC 5780 §7.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Answer from the other address.
    pub ip: bool,
    /// Answer from the other port.
    pub port: bool,
}

/// What is of interest in a Binding message. All of it is the sender's claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StunPacket {
    /// Request, answer, or neither.
    pub class: StunClass,
    /// Ties an answer to its request.
    pub transaction_id: [u8; 12],
    /// USERNAME, if it is a session's tag.
    pub username_tag: Option<[u8; 16]>,
    /// PRIORITY (RFC 8445 §7.1.1).
    pub priority: Option<u32>,
    /// XOR-MAPPED-ADDRESS, IPv4-mapped addresses as IPv4.
    pub mapped: Option<SocketAddr>,
    /// RESPONSE-ORIGIN (RFC 5780 §7.3).
    pub response_origin: Option<SocketAddr>,
    /// OTHER-ADDRESS (RFC 5780 §7.4).
    pub other_address: Option<SocketAddr>,
    /// CHANGE-REQUEST (RFC 5780 §7.2).
    pub change: Option<Change>,
    /// A MESSAGE-INTEGRITY-SHA256 is there; whether it is right only
    /// [`verify_integrity`](super::verify_integrity) tells.
    pub has_integrity: bool,
    /// There is an attribute that must be understood and is not (RFC 8489 §14).
    pub unknown_required: bool,
}

/// Reads a Binding message; `None` for everything else and for whatever is malformed, a wrong
/// FINGERPRINT included.
pub fn parse(packet: &[u8]) -> Option<StunPacket> {
    let layout = Layout::of(packet)?;
    if !layout.fingerprint_fits(packet) {
        return None;
    }
    let (message, _) = MessageDecoderBuilder::default().build().decode(packet).ok()?;
    if message.method() != BINDING {
        return None;
    }
    let class = match message.class() {
        MessageClass::Request => StunClass::Request,
        MessageClass::Indication => StunClass::Indication,
        MessageClass::SuccessResponse => StunClass::Success,
        MessageClass::ErrorResponse => StunClass::Error,
    };
    let mut read = StunPacket {
        class,
        transaction_id: *message.transaction_id().as_bytes(),
        username_tag: None,
        priority: None,
        mapped: None,
        response_origin: None,
        other_address: None,
        change: None,
        has_integrity: layout.integrity.is_some(),
        unknown_required: false,
    };
    for attribute in message.attributes() {
        read.take(attribute);
    }
    Some(read)
}

/// A plain Binding request: 20 bytes.
pub fn encode_binding_request(transaction_id: [u8; 12]) -> Vec<u8> {
    encode(&request(transaction_id).build())
}

/// The answer to a plain request: XOR-MAPPED-ADDRESS and nothing else, 32 bytes for IPv4.
pub fn encode_binding_response(transaction_id: [u8; 12], mapped: SocketAddr) -> Vec<u8> {
    encode(&response(transaction_id, mapped).build())
}

/// A behaviour discovery request (RFC 5780 §4), padded so that its answer is not larger.
pub fn encode_behaviour_request(transaction_id: [u8; 12], change: Change) -> Vec<u8> {
    let mut flags = BitFlags::empty();
    flags.set(ChangeRequestFlags::ChangeIp, change.ip);
    flags.set(ChangeRequestFlags::ChangePort, change.port);
    let mut builder = request(transaction_id).with_attribute(ChangeRequest::new(Some(flags)));
    if let Ok(padding) = Padding::new(PADDING) {
        builder = builder.with_attribute(padding);
    }
    encode(&builder.build())
}

/// The answer to a padded request (RFC 5780 §6).
pub fn encode_behaviour_response(
    transaction_id: [u8; 12],
    mapped: SocketAddr,
    origin: Option<SocketAddr>,
    other: Option<SocketAddr>,
) -> Vec<u8> {
    let mut builder = response(transaction_id, mapped);
    if let Some(origin) = origin {
        builder = builder.with_attribute(ResponseOrigin::from(canonical(origin)));
    }
    if let Some(other) = other {
        builder = builder.with_attribute(OtherAddress::from(canonical(other)));
    }
    encode(&builder.build())
}

/// A connectivity check: USERNAME is the session's tag in hexadecimal, the key is the one of the
/// sender's direction.
pub fn encode_check(
    transaction_id: [u8; 12],
    tag: &[u8; 16],
    key: &[u8; 32],
    priority: u32,
) -> Vec<u8> {
    let mut builder = request(transaction_id);
    if let Ok(name) = UserName::new(hex(tag)) {
        builder = builder.with_attribute(name);
    }
    let mut packet = encode(&builder.with_attribute(Priority::from(priority)).build());
    append_integrity(&mut packet, key);
    append_fingerprint(&mut packet);
    packet
}

/// The answer to a check, keyed like the check itself: with the key of the *asker's* direction,
/// so that neither end can be answered with its own words.
pub fn encode_check_response(
    transaction_id: [u8; 12],
    mapped: SocketAddr,
    key: &[u8; 32],
) -> Vec<u8> {
    let mut packet = encode_binding_response(transaction_id, mapped);
    append_integrity(&mut packet, key);
    append_fingerprint(&mut packet);
    packet
}

impl StunPacket {
    fn take(&mut self, attribute: &StunAttribute) {
        match attribute {
            StunAttribute::UserName(name) => {
                self.username_tag = self.username_tag.or_else(|| unhex(name.as_str()));
            }
            StunAttribute::Priority(priority) => {
                self.priority = self.priority.or(Some(*priority.as_ref()));
            }
            StunAttribute::XorMappedAddress(mapped) => {
                self.mapped = self.mapped.or_else(|| usable(*mapped.socket_address()));
            }
            StunAttribute::ResponseOrigin(origin) => {
                self.response_origin =
                    self.response_origin.or_else(|| usable(*origin.socket_address()));
            }
            StunAttribute::OtherAddress(other) => {
                self.other_address = self.other_address.or_else(|| usable(*other.socket_address()));
            }
            StunAttribute::ChangeRequest(change) => {
                let flags = change.flags();
                self.change = self.change.or(Some(Change {
                    ip: flags.contains(ChangeRequestFlags::ChangeIp),
                    port: flags.contains(ChangeRequestFlags::ChangePort),
                }));
            }
            StunAttribute::Unknown(unknown) => {
                self.unknown_required |= unknown.attribute_type().is_comprehension_required();
            }
            _ => {}
        }
    }
}

fn request(transaction_id: [u8; 12]) -> StunMessageBuilder {
    StunMessageBuilder::new(BINDING, MessageClass::Request)
        .with_transaction_id(TransactionId::from(transaction_id))
}

fn response(transaction_id: [u8; 12], mapped: SocketAddr) -> StunMessageBuilder {
    StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
        .with_transaction_id(TransactionId::from(transaction_id))
        .with_attribute(XorMappedAddress::from(canonical(mapped)))
}

#[expect(clippy::expect_used, reason = "our messages have a fixed size below MAX_STUN")]
fn encode(message: &StunMessage) -> Vec<u8> {
    let mut packet = vec![0; MAX_STUN];
    let len = MessageEncoderBuilder::default()
        .build()
        .encode(&mut packet, message)
        .expect("a message of bounded attributes fits");
    packet.truncate(len);
    packet
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn usable(addr: SocketAddr) -> Option<SocketAddr> {
    let addr = canonical(addr);
    (addr.port() != 0 && !addr.ip().is_unspecified()).then_some(addr)
}

fn hex(tag: &[u8; 16]) -> String {
    tag.iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|nibble| char::from_digit(nibble.into(), 16))
        .collect()
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let mut tag = [0; 16];
    let (pairs, _) = digits.as_chunks::<2>();
    for (byte, [high, low]) in tag.iter_mut().zip(pairs) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(tag)
}

/// Lower case only: one tag has one spelling.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
#[expect(clippy::cast_possible_truncation, reason = "test data")]
mod tests;
