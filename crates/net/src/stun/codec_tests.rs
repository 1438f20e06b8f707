//! What goes out comes back, and what others make up does no harm.

use aws_lc_rs::hmac;
use stun_rs::{
    DecoderContextBuilder, HMACKey,
    attributes::stun::{Fingerprint, MessageIntegritySha256},
};

use super::{super::verify_integrity, *};

const ID: [u8; 12] = *b"transaction!";
const TAG: [u8; 16] = [0xA5; 16];
const CONSOLE: [u8; 32] = *b"the console's direction, 32 byte";
const AGENT: [u8; 32] = [7; 32];

/// Reproducible bytes for properties.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[test]
fn plain_answers_are_at_most_twice_the_request() {
    let request = encode_binding_request(ID);
    assert_eq!(request.len(), 20);
    let v4 = encode_binding_response(ID, "[::ffff:192.0.2.1]:9".parse().unwrap());
    assert_eq!(v4.len(), 32);
    assert_eq!(parse(&v4).unwrap().mapped, Some("192.0.2.1:9".parse().unwrap()));
    let v6: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
    assert_eq!(parse(&encode_binding_response(ID, v6)).unwrap().mapped, Some(v6));
}

#[test]
fn behaviour_requests_are_larger_than_their_answers() {
    let a: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
    let answer = encode_behaviour_response(ID, a, Some(a), Some(a));
    let change = Change { ip: true, port: false };
    let request = encode_behaviour_request(ID, change);
    assert!(answer.len() <= request.len());
    assert_eq!(parse(&request).unwrap().change, Some(change));
    assert!(!parse(&request).unwrap().unknown_required);
    let answer = parse(&answer).unwrap();
    assert_eq!((answer.response_origin, answer.other_address), (Some(a), Some(a)));
}

#[test]
fn checks_verify_with_their_direction_only() {
    let check = encode_check(ID, &TAG, &CONSOLE, 0x7E00_00FF);
    let read = parse(&check).unwrap();
    assert_eq!(read.class, StunClass::Request);
    assert_eq!(read.transaction_id, ID);
    assert_eq!(read.username_tag, Some(TAG));
    assert_eq!(read.priority, Some(0x7E00_00FF));
    assert!(read.has_integrity);
    assert!(verify_integrity(&check, &CONSOLE));
    assert!(!verify_integrity(&check, &AGENT));

    let mapped = "203.0.113.9:40000".parse().unwrap();
    let answer = encode_check_response(ID, mapped, &CONSOLE);
    assert_eq!(parse(&answer).unwrap().mapped, Some(mapped));
    assert!(verify_integrity(&answer, &CONSOLE));
    assert!(!verify_integrity(&answer, &AGENT));
}

#[test]
fn absent_integrity_does_not_verify() {
    assert!(!verify_integrity(&encode_binding_request(ID), &CONSOLE));
    assert!(!verify_integrity(
        &encode_binding_response(ID, "192.0.2.1:9".parse().unwrap()),
        &[0; 32]
    ));
}

/// The keys are random bytes and not text, so this is the one place where the codec library can
/// check us.
#[test]
fn another_implementation_agrees() {
    let check = encode_check(ID, &TAG, &CONSOLE, 1);
    let key = HMACKey::new_short_term(std::str::from_utf8(&CONSOLE).unwrap()).unwrap();
    let context = DecoderContextBuilder::default().with_key(key).with_validation().build();
    let decoder = MessageDecoderBuilder::default().with_context(context).build();
    let (message, len) = decoder.decode(&check).unwrap();
    assert_eq!(len, check.len());
    assert!(message.get::<MessageIntegritySha256>().is_some());
    assert!(message.get::<Fingerprint>().is_some());
}

#[test]
fn any_changed_bit_of_a_check_is_noticed() {
    let check = encode_check(ID, &TAG, &CONSOLE, 9);
    for bit in 0..check.len() * 8 {
        let mut forged = check.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(
            parse(&forged).is_none() || !verify_integrity(&forged, &CONSOLE),
            "bit {bit} is not protected"
        );
    }
}

#[test]
fn nothing_may_follow_integrity_but_one_fingerprint() {
    let mut packet = encode_binding_request(ID);
    append_integrity(&mut packet, &CONSOLE);
    assert!(parse(&packet).is_some());
    let append = |packet: &[u8], attribute: &[u8]| {
        let mut packet = [packet, attribute].concat();
        let len = (packet.len() - HEADER) as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet
    };
    assert!(parse(&append(&packet, &[0, 0x24, 0, 4, 0, 0, 0, 1])).is_none());
    let mut twice = packet.clone();
    append_integrity(&mut twice, &CONSOLE);
    assert!(parse(&twice).is_none());
    append_fingerprint(&mut packet);
    assert!(parse(&packet).is_some());
    append_fingerprint(&mut packet);
    assert!(parse(&packet).is_none());
}

#[test]
fn a_truncated_or_shortened_tag_does_not_verify() {
    let mut packet = encode_binding_request(ID);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &CONSOLE), b"whatever");
    packet.extend([0, 0x1C, 0, 16]);
    packet.extend(&tag.as_ref()[..16]);
    packet[3] = 20;
    assert!(parse(&packet).is_none());
    assert!(!verify_integrity(&packet, &CONSOLE));
}

#[test]
fn hostile_bytes_never_panic_and_rarely_parse() {
    for seed in 0..20_000 {
        let mut seeded = Seeded(seed);
        let mut packet = match seed % 4 {
            0 => encode_check(ID, &TAG, &CONSOLE, 1),
            1 => encode_behaviour_request(ID, Change::default()),
            2 => {
                let a = "[2001:db8::1]:9".parse().unwrap();
                encode_behaviour_response(ID, a, Some(a), Some(a))
            }
            _ => {
                let len = 20 + 4 * seeded.below(140);
                let mut packet: Vec<u8> = (0..len).map(|_| seeded.next() as u8).collect();
                packet[0] &= 1;
                packet[1] = 1;
                packet[4..8].copy_from_slice(&MAGIC_COOKIE);
                packet[2..4].copy_from_slice(&((len - 20) as u16).to_be_bytes());
                // Attributes whose lengths make sense, of types that are decoded.
                let mut at = 20;
                while at + 4 <= len {
                    let types = [0x06, 0x20, 0x24, 0x03, 0x26, 0x802B, 0x802C, 0x09, 0x0A, 0x1D];
                    let kind: u16 = types[seeded.below(types.len())];
                    let value = seeded.below(24).min(len - at - 4);
                    packet[at..at + 2].copy_from_slice(&kind.to_be_bytes());
                    packet[at + 2..at + 4].copy_from_slice(&(value as u16).to_be_bytes());
                    at += 4 + value.next_multiple_of(4);
                }
                packet
            }
        };
        for _ in 0..seeded.below(6) {
            let at = seeded.below(packet.len());
            packet[at] = seeded.next() as u8;
        }
        if seeded.below(8) == 0 {
            packet.truncate(seeded.below(packet.len()));
        }
        let _ = parse(&packet);
        let changed = seed % 4 != 0 || packet != encode_check(ID, &TAG, &CONSOLE, 1);
        assert!(!(changed && verify_integrity(&packet, &CONSOLE) && parse(&packet).is_some()));
    }
}

#[test]
fn quic_and_oversized_packets_do_not_look_like_stun() {
    let check = encode_check(ID, &TAG, &CONSOLE, 1);
    assert!(looks_like_stun(&check));
    let mut quic = check.clone();
    quic[0] |= 0x40;
    assert!(!looks_like_stun(&quic));
    let mut large = vec![0; MAX_STUN + 4];
    large[4..8].copy_from_slice(&MAGIC_COOKIE);
    large[2..4].copy_from_slice(&((MAX_STUN + 4 - HEADER) as u16).to_be_bytes());
    assert!(!looks_like_stun(&large));
    assert!(!looks_like_stun(&[]));
}
