//! The two attributes that protect a STUN message: MESSAGE-INTEGRITY-SHA256 and FINGERPRINT.
//!
//! Done here and not by the codec library because its comparison is not constant-time, its keys
//! are text that is neither wiped nor hidden from `Debug`, and it checks FINGERPRINT as often as
//! a sender repeats it.

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};

use super::codec::{HEADER, looks_like_stun};

/// RFC 8489 §14.6.
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
/// RFC 8489 §14.7.
const FINGERPRINT: u16 = 0x8028;
/// RFC 8489 §14.7: keeps the CRC from colliding with that of another protocol.
const FINGERPRINT_XOR: u32 = 0x5354_554E;
/// Type and length of an attribute.
const ATTRIBUTE_HEADER: usize = 4;
/// HMAC-SHA256, never truncated: RFC 8489 §14.6 would allow 16 bytes.
const HMAC_LEN: usize = 32;
/// Attributes in a message that is looked at; our own have at most five.
const MAX_ATTRIBUTES: usize = 16;

/// Whether `packet` carries a MESSAGE-INTEGRITY-SHA256 that `key` made. Absence is a no.
pub fn verify_integrity(packet: &[u8], key: &[u8; 32]) -> bool {
    let Some(Layout { integrity: Some(at), .. }) = Layout::of(packet) else { return false };
    let start = at + ATTRIBUTE_HEADER;
    let (Some(covered), Some(given)) = (packet.get(..at), packet.get(start..start + HMAC_LEN))
    else {
        return false;
    };
    let Some(tag) = tag(covered, key) else { return false };
    verify_slices_are_equal(tag.as_ref(), given).is_ok()
}

/// Appends MESSAGE-INTEGRITY-SHA256.
pub(super) fn append_integrity(packet: &mut Vec<u8>, key: &[u8; 32]) {
    if let Some(tag) = tag(packet, key) {
        append(packet, MESSAGE_INTEGRITY_SHA256, tag.as_ref());
    }
}

/// Appends FINGERPRINT, which must come last.
pub(super) fn append_fingerprint(packet: &mut Vec<u8>) {
    let crc = fingerprint(packet);
    append(packet, FINGERPRINT, &crc.to_be_bytes());
}

/// Where the protecting attributes stand in a well-formed message.
///
/// INVARIANT: nothing but FINGERPRINT follows the integrity attribute, and nothing follows
/// FINGERPRINT; each is there at most once.
#[derive(Clone, Copy, Default)]
pub(super) struct Layout {
    pub(super) integrity: Option<usize>,
    fingerprint: Option<usize>,
}

impl Layout {
    /// Walks the attributes without allocating; `None` for whatever is not well-formed.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        if !looks_like_stun(packet) {
            return None;
        }
        let mut layout = Self::default();
        let mut rest = packet.get(HEADER..)?;
        let mut count = 0;
        while !rest.is_empty() {
            count += 1;
            if count > MAX_ATTRIBUTES || layout.fingerprint.is_some() {
                return None;
            }
            let at = packet.len() - rest.len();
            let (kind, value, after) = split_attribute(rest)?;
            match kind {
                FINGERPRINT if value.len() == 4 => layout.fingerprint = Some(at),
                MESSAGE_INTEGRITY_SHA256
                    if value.len() == HMAC_LEN && layout.integrity.is_none() =>
                {
                    layout.integrity = Some(at);
                }
                FINGERPRINT | MESSAGE_INTEGRITY_SHA256 => return None,
                _ if layout.integrity.is_some() => return None,
                _ => {}
            }
            rest = after;
        }
        Some(layout)
    }

    /// Whether FINGERPRINT is absent or right.
    pub(super) fn fingerprint_fits(self, packet: &[u8]) -> bool {
        let Some(at) = self.fingerprint else { return true };
        match (packet.get(..at), packet.get(at + ATTRIBUTE_HEADER..)) {
            (Some(covered), Some(given)) => fingerprint(covered).to_be_bytes() == given,
            _ => false,
        }
    }
}

/// Type, value, and what follows the padding.
fn split_attribute(rest: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (header, body) = rest.split_first_chunk::<ATTRIBUTE_HEADER>()?;
    let kind = u16::from_be_bytes([header[0], header[1]]);
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let after = body.get(len.next_multiple_of(4)..)?;
    Some((kind, body.get(..len)?, after))
}

/// HMAC over the message so far, with the length it has once the attribute is in
/// (RFC 8489 §14.5).
fn tag(covered: &[u8], key: &[u8; 32]) -> Option<hmac::Tag> {
    let (kind, rest) = covered.split_first_chunk::<2>()?;
    let (_, rest) = rest.split_first_chunk::<2>()?;
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    context.update(kind);
    context.update(&length_with(covered, ATTRIBUTE_HEADER + HMAC_LEN));
    context.update(rest);
    Some(context.sign())
}

/// CRC-32 (ISO 3309) over the message so far, with the length it has once FINGERPRINT is in.
fn fingerprint(covered: &[u8]) -> u32 {
    let length = length_with(covered, ATTRIBUTE_HEADER + 4);
    let bytes = covered.iter().take(2).chain(&length).chain(covered.iter().skip(4));
    let crc = bytes.fold(u32::MAX, |crc, byte| {
        let index = usize::from(crc.to_le_bytes()[0] ^ byte);
        CRC_TABLE.get(index).copied().unwrap_or(0) ^ (crc >> 8)
    });
    !crc ^ FINGERPRINT_XOR
}

/// The length field of `packet` grown by `extra` bytes.
fn length_with(packet: &[u8], extra: usize) -> [u8; 2] {
    let body = packet.len().saturating_sub(HEADER) + extra;
    u16::try_from(body).unwrap_or(u16::MAX).to_be_bytes()
}

fn append(packet: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = length_with(packet, ATTRIBUTE_HEADER + value.len());
    if let Some(field) = packet.get_mut(2..4) {
        field.copy_from_slice(&length);
    }
    packet.extend(kind.to_be_bytes());
    packet.extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
    packet.extend(value);
}

const CRC_TABLE: [u32; 256] = crc_table();

#[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
const fn crc_table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut n = 0;
    while n < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "n < 256")]
        let mut c = n as u32;
        let mut bit = 0;
        while bit < 8 {
            c = if c & 1 == 1 { 0xEDB8_8320 ^ (c >> 1) } else { c >> 1 };
            bit += 1;
        }
        table[n] = c;
        n += 1;
    }
    table
}
