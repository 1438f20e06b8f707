//! Records: both directions, batching, rekeying in step, refusal of anything altered.

use adit_protocol::keys::random;

use super::*;

const SESSION: SessionId = SessionId([7; 16]);
const CARRIER: CarrierNumber = CarrierNumber(3);

type Halves = (RecordSealer, RecordOpener);

fn body(frame: BytesMut) -> BytesMut {
    let mut frame = frame;
    let body = take_frame(&mut frame).unwrap();
    assert!(frame.is_empty());
    body
}

fn pair(rekey_after: u64) -> (Halves, Halves) {
    let psk = random().unwrap();
    let (mut console, first) = RelayedHandshake::initiate(&psk, SESSION, CARRIER, b"open").unwrap();
    let (mut agent, payload) = RelayedHandshake::respond(&psk, SESSION, &body(first)).unwrap();
    assert_eq!((&payload[..], agent.carrier()), (&b"open"[..], CARRIER));
    let reply = write_message(&mut agent.state, b"opened").unwrap();
    assert_eq!(read_message(&mut console.state, &reply).unwrap(), b"opened");
    (split(&mut console.state, rekey_after).unwrap(), split(&mut agent.state, rekey_after).unwrap())
}

#[test]
fn handshake_carries_payloads_and_both_directions_work() {
    let psk = [9; 32];
    let (console, first) = RelayedHandshake::initiate(&psk, SESSION, CARRIER, b"a").unwrap();
    let (agent, _) = RelayedHandshake::respond(&psk, SESSION, &body(first)).unwrap();
    let (second, mut agent_out, mut agent_in) = agent.reply(b"b").unwrap();
    let (payload, mut console_out, mut console_in) = console.finish(&body(second)).unwrap();
    assert_eq!(&payload[..], b"b");
    let mut wire = BytesMut::new();
    console_out.seal(b"up", &mut wire).unwrap();
    assert_eq!(&agent_in.open_next(&mut wire).unwrap().unwrap()[..], b"up");
    agent_out.seal(b"down", &mut wire).unwrap();
    assert_eq!(&console_in.open_next(&mut wire).unwrap().unwrap()[..], b"down");
}

#[test]
fn wrong_secret_session_or_carrier_is_refused() {
    let (_, first) = RelayedHandshake::initiate(&[9; 32], SESSION, CARRIER, b"").unwrap();
    let first = body(first);
    let respond = |psk, session, body: &[u8]| RelayedHandshake::respond(psk, session, body);
    assert!(respond(&[9; 32], SESSION, &first).is_ok());
    assert_eq!(respond(&[8; 32], SESSION, &first).unwrap_err(), NoiseError::Refused);
    let other = SessionId([8; 16]);
    assert_eq!(respond(&[9; 32], other, &first).unwrap_err(), NoiseError::Refused);
    for len in 0..first.len() {
        assert!(respond(&[9; 32], SESSION, &first[..len]).is_err());
    }
    let mut renumbered = first.to_vec();
    renumbered[7] ^= 1;
    assert_eq!(respond(&[9; 32], SESSION, &renumbered).unwrap_err(), NoiseError::Refused);
}

#[test]
fn records_match_what_noise_prescribes_also_after_rekeying() {
    // The library's own transport state as the reference.
    let psk = random().unwrap();
    let (mut console, first) = RelayedHandshake::initiate(&psk, SESSION, CARRIER, b"").unwrap();
    let (mut agent, _) = RelayedHandshake::respond(&psk, SESSION, &body(first)).unwrap();
    let reply = write_message(&mut agent.state, b"").unwrap();
    read_message(&mut console.state, &reply).unwrap();
    let (mut sealer, mut opener) = split(&mut console.state, 3).unwrap();
    let mut reference = agent.state.into_transport_mode().unwrap();
    for n in 1..=20u32 {
        let text = n.to_be_bytes();
        let mut wire = BytesMut::new();
        sealer.seal(&text, &mut wire).unwrap();
        let mut out = [0; 64];
        let len = reference.read_message(&body(wire), &mut out).unwrap();
        assert_eq!(&out[..len], text);
        let len = reference.write_message(&text, &mut out).unwrap();
        let mut sealed = BytesMut::from(&out[..len]);
        opener.open_in_place(&mut sealed).unwrap();
        assert_eq!(&sealed[..], text);
        if n % 3 == 0 {
            reference.rekey_incoming();
            reference.rekey_outgoing();
        }
    }
}

#[test]
fn frames_of_all_sizes_cross_a_stream_cut_anywhere() {
    for seed in 0..20u8 {
        let ((mut out, _), (_, mut inn)) = pair(5);
        let mut next = u64::from(seed);
        let mut random = |below: usize| {
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(next >> 33).unwrap() % below
        };
        let payloads: Vec<Vec<u8>> =
            (0..30u8).map(|i| vec![i; random(if i % 7 == 0 { 65_520 } else { 200 })]).collect();
        let mut wire = BytesMut::new();
        for (i, payload) in payloads.iter().enumerate() {
            if i % 2 == 0 {
                out.seal(payload, &mut wire).unwrap();
            } else {
                let start = wire.len();
                wire.extend_from_slice(&[0; FRAME_HEADER]);
                wire.extend_from_slice(payload);
                out.seal_in_place(&mut wire, start).unwrap();
            }
        }
        let (mut received, mut opened) = (BytesMut::new(), Vec::new());
        while !wire.is_empty() {
            let cut = (1 + random(5000)).min(wire.len());
            received.extend_from_slice(&wire.split_to(cut));
            while let Some(plain) = inn.open_next(&mut received).unwrap() {
                opened.push(plain.to_vec());
            }
        }
        assert_eq!(opened, payloads, "seed {seed}");
        assert_eq!((out.count(), inn.count()), (30, 30));
    }
}

#[test]
fn altered_repeated_reordered_or_reflected_records_are_refused() {
    let ((mut out, mut own_in), (_, mut inn)) = pair(REKEY_RECORDS);
    let mut seal = |text: &[u8]| {
        let mut wire = BytesMut::new();
        out.seal(text, &mut wire).unwrap();
        body(wire)
    };
    let (first, second) = (seal(b"first"), seal(b"second"));
    assert_eq!(own_in.open_in_place(&mut first.clone()), Err(NoiseError::Refused));
    assert_eq!(inn.open_in_place(&mut second.clone()), Err(NoiseError::Refused));
    for bit in 0..first.len() * 8 {
        let mut bad = first.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(inn.open_in_place(&mut bad), Err(NoiseError::Refused));
    }
    assert_eq!(inn.open_in_place(&mut BytesMut::from(&[0; 15][..])), Err(NoiseError::Malformed));
    inn.open_in_place(&mut first.clone()).unwrap();
    assert_eq!(inn.open_in_place(&mut first.clone()), Err(NoiseError::Refused));
    inn.open_in_place(&mut second.clone()).unwrap();
}

#[test]
fn payload_that_does_not_fit_is_refused_and_uses_no_nonce() {
    let ((mut out, _), (_, mut inn)) = pair(REKEY_RECORDS);
    let mut wire = BytesMut::new();
    let too_long = vec![0; MAX_NOISE_PAYLOAD + 1];
    assert_eq!(out.seal(&too_long, &mut wire), Err(NoiseError::TooLong));
    let mut room = BytesMut::from(&too_long[..]);
    room.extend_from_slice(&[0; FRAME_HEADER]);
    assert_eq!(out.seal_in_place(&mut room, 0), Err(NoiseError::TooLong));
    assert!(wire.is_empty());
    out.seal(&too_long[1..], &mut wire).unwrap();
    assert_eq!(inn.open_next(&mut wire).unwrap().unwrap().len(), MAX_NOISE_PAYLOAD);
}
