//! Every decoder that reads what a stranger wrote, each as a function for fuzzing and replay.
//!
//! A function says whether the input was accepted, and panics when the decoder breaks a promise:
//! a panic of its own, two encodings of one value, a limit that does not hold.

mod files;
mod net;
mod sealed;
mod text;
mod web;

use std::str::FromStr as _;

use adit_agent::policy::Policy;
use adit_console::forward::spec::{ForwardSpec, ListenSpec};
use adit_ledger::evidence::Evidence;
use adit_net::{
    identity::NoiseKeypair,
    noise::{RelayedHandshake, join::JoinResponder, records::take_frame},
    stun,
};
use adit_protocol::{
    candidate::Candidate,
    dpop::Parts,
    grant::{Grant, Lease},
    handshake::{decode_init, decode_reply},
    ids::SessionId,
    keys::{SigningKey, context},
    limits::{MAX_CANDIDATES, MAX_RECORD_HEADER, MAX_TARGETS_PER_GRANT},
    nat::{MAX_NAT_PORTS, NatSummary},
    record::Record,
    target::{Target, Transport},
    ticket::Ticket,
    token::EnrollToken,
    wire,
};
use bytes::{Bytes, BytesMut};
use prost::Message as _;

/// A decoder under test.
pub struct Decoder {
    /// Of the fuzz target and its corpus directory.
    pub name: &'static str,
    /// Whether it accepts the input.
    pub accepts: fn(&[u8]) -> bool,
    /// Inputs that it must accept, from which mutation starts.
    pub valid: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const DECODERS: &[Decoder] = &[
    Decoder { name: "record", accepts: record, valid: valid::records },
    Decoder { name: "control", accepts: control, valid: valid::control },
    Decoder { name: "signed", accepts: signed, valid: valid::signed },
    Decoder { name: "handshake", accepts: handshake, valid: valid::handshake },
    Decoder { name: "join", accepts: join, valid: valid::join },
    Decoder { name: "noise", accepts: noise, valid: valid::noise },
    Decoder { name: "stun", accepts: stun_message, valid: valid::stun },
    Decoder { name: "token", accepts: token, valid: valid::token },
    Decoder { name: "ledger", accepts: ledger, valid: valid::ledger },
    Decoder { name: "evidence", accepts: evidence, valid: valid::evidence },
    Decoder { name: "dpop", accepts: dpop, valid: valid::dpop },
    Decoder { name: "policy", accepts: policy, valid: valid::policy },
    Decoder { name: "target", accepts: target, valid: valid::target },
    Decoder { name: "certified", accepts: sealed::certified, valid: sealed::valid_certified },
    Decoder { name: "sealed", accepts: sealed::sealed, valid: sealed::valid_sealed },
    Decoder { name: "upnp", accepts: adit_net::portmap::fuzz_upnp, valid: net::valid_upnp },
    Decoder { name: "socks", accepts: net::socks, valid: net::valid_socks },
    Decoder { name: "proxy", accepts: net::proxy, valid: net::valid_proxy },
    Decoder { name: "metrics", accepts: net::metrics, valid: net::valid_metrics },
    Decoder { name: "local", accepts: net::local, valid: net::valid_local },
    Decoder { name: "config", accepts: files::config, valid: files::valid_config },
    Decoder { name: "console_files", accepts: files::console, valid: files::valid_console },
    Decoder { name: "book", accepts: files::book, valid: files::valid_book },
    Decoder { name: "enrolment", accepts: files::enrolment, valid: files::valid_enrolment },
    Decoder { name: "witness", accepts: files::witness, valid: files::valid_witness },
    Decoder { name: "relay_cache", accepts: files::relays, valid: files::valid_relays },
    Decoder { name: "mediator_files", accepts: files::mediator, valid: files::valid_mediator },
    Decoder { name: "pem", accepts: files::pem, valid: files::valid_pem },
    Decoder { name: "backup", accepts: files::backup, valid: files::valid_backup },
    Decoder { name: "destruction", accepts: files::destruction, valid: files::valid_destruction },
    Decoder { name: "webauthn", accepts: web::webauthn, valid: web::valid_webauthn },
    Decoder { name: "id_token", accepts: web::id_token, valid: web::valid_id_token },
    Decoder { name: "key_set", accepts: web::key_set, valid: web::valid_key_set },
    Decoder { name: "proof", accepts: web::proof, valid: web::valid_proof },
    Decoder { name: "admin", accepts: web::admin, valid: web::valid_admin },
    Decoder { name: "api_body", accepts: web::api_body, valid: web::valid_api_body },
    Decoder { name: "provider", accepts: web::provider, valid: web::valid_provider },
    Decoder { name: "problem", accepts: web::problem, valid: web::valid_problem },
    Decoder { name: "query", accepts: web::query, valid: web::valid_query },
    Decoder { name: "rules", accepts: text::rules, valid: text::valid_rules },
    Decoder { name: "codes", accepts: text::codes, valid: text::valid_codes },
    Decoder { name: "address", accepts: text::address, valid: text::valid_address },
    Decoder { name: "words", accepts: text::words, valid: text::valid_words },
    Decoder { name: "viewer", accepts: text::viewer, valid: text::valid_viewer },
];

/// The decoder of that name.
pub fn decoder(name: &str) -> Option<&'static Decoder> {
    DECODERS.iter().find(|d| d.name == name)
}

/// Keys of fixed seeds: signatures hold, so that what is behind them is reached.
fn signing_key() -> Option<SigningKey> {
    SigningKey::from_seed(&[1; 32]).ok()
}

fn noise_key(seed: u8) -> Option<NoiseKeypair> {
    NoiseKeypair::from_private([seed; 32].into()).ok()
}

const SESSION: SessionId = SessionId([3; 16]);
const PSK: [u8; 32] = [5; 32];

/// Records as they come out of a carrier.
fn record(data: &[u8]) -> bool {
    let Ok(Some((record, header))) = Record::decode(data) else { return false };
    assert!(header <= data.len() && header <= MAX_RECORD_HEADER);
    let mut encoded = BytesMut::new();
    record.encode(&mut encoded);
    assert_eq!(Record::decode(&encoded), Ok(Some((record, encoded.len()))));
    true
}

/// Frames of the control connection, and what is made of their parts.
fn control(data: &[u8]) -> bool {
    let Ok(frame) = wire::Frame::decode(data) else { return false };
    let again = frame.encode_to_vec();
    assert_eq!(wire::Frame::decode(again.as_slice()).as_ref(), Ok(&frame));
    true
}

/// Grants, leases and tickets behind a signature that holds.
fn signed(data: &[u8]) -> bool {
    let Some(key) = signing_key() else { return false };
    let sealed = |context: &str| wire::Signed {
        payload: Bytes::copy_from_slice(data),
        signature: Bytes::copy_from_slice(&key.sign(context, data)),
    };
    let grant = Grant::open(key.public(), &sealed(context::GRANT));
    if let Ok(grant) = &grant {
        assert!(grant.targets.len() <= MAX_TARGETS_PER_GRANT);
    }
    let lease = Lease::open(key.public(), &sealed(context::LEASE));
    let ticket = Ticket::open(key.public(), &sealed(context::TICKET));
    grant.is_ok() || lease.is_ok() || ticket.is_ok()
}

/// Payloads of the end-to-end handshake, candidates among them.
fn handshake(data: &[u8]) -> bool {
    let init = decode_init(data);
    if let Ok((init, _)) = &init {
        assert!(Candidate::list_from_wire(&init.candidates).len() <= MAX_CANDIDATES);
        if let Some(nat) = &init.nat {
            let nat = NatSummary::from_wire(nat);
            assert!(nat.ports.len() <= MAX_NAT_PORTS && !nat.ports.contains(&0));
            assert!(NatSummary::from_wire(&nat.to_wire()) == nat);
        }
    }
    let trickle = wire::Trickle::decode(data);
    if let Ok(trickle) = &trickle {
        assert!(Candidate::list_from_wire(&trickle.candidates).len() <= MAX_CANDIDATES);
    }
    init.is_ok() | decode_reply(data).is_ok() | trickle.is_ok()
}

/// The relay's door: a Noise message to a known key, and what is inside one.
fn join(data: &[u8]) -> bool {
    let door = noise_key(9).and_then(|own| JoinResponder::new(&own).ok());
    let outside = door.is_some_and(|mut door| door.handle_message1(data).is_ok());
    outside | wire::JoinInit::decode(data).is_ok()
}

/// Frames of a relayed carrier, before and behind authentication.
fn noise(data: &[u8]) -> bool {
    let mut buffer = BytesMut::from(data);
    let mut whole = false;
    while let Some(body) = take_frame(&mut buffer) {
        whole |= RelayedHandshake::respond(&PSK, SESSION, &body).is_ok();
    }
    whole
}

/// STUN, on the port of the mediator and of every end.
fn stun_message(data: &[u8]) -> bool {
    // Whether it is a session's is a question of its own, with any content.
    let _ = stun::verify_integrity(data, &PSK);
    stun::parse(data).is_some()
}

fn token(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(token) = EnrollToken::decode(text) else { return false };
    let again = EnrollToken::decode(&token.encode());
    assert!(again.is_ok_and(|a| a.id == token.id && a.hosts == token.hosts));
    true
}

/// Lines of an audit export, of heads and of receipts.
fn ledger(data: &[u8]) -> bool {
    assert!(adit_ledger::fuzz_line(data), "two encodings of one value");
    adit_ledger::Entry::parse(data).is_ok() || adit_ledger::SignedHead::parse(data).is_ok()
}

/// Proof that something is in the log, as the mediator sends it to both ends.
fn evidence(data: &[u8]) -> bool {
    let Ok(message) = wire::AuditEvidence::decode(data) else { return false };
    let Ok(evidence) = Evidence::from_wire(Some(&message)) else { return false };
    assert!(Evidence::from_wire(Some(&evidence.to_wire())).as_ref() == Ok(&evidence));
    if let Some(key) = signing_key() {
        let _ = evidence.check(key.public());
    }
    true
}

/// Proofs of possession at the HTTPS API.
fn dpop(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(parts) = Parts::split(text) else { return false };
    signing_key().is_some_and(|key| parts.verify(key.public()).is_ok())
}

/// The endpoint owner's policy file.
fn policy(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| Policy::parse(text).is_ok())
}

/// Targets and forwards as users write them.
fn target(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let parsed = Target::parse(text, Transport::Tcp);
    if let Ok(target) = &parsed {
        assert_eq!(Target::parse(&target.to_string(), Transport::Tcp).as_ref(), Ok(target));
        assert_eq!(Target::from_wire(&target.to_wire()).as_ref(), Ok(target));
    }
    parsed.is_ok() | ForwardSpec::from_str(text).is_ok() | ListenSpec::from_str(text).is_ok()
}

/// Examples that are accepted.
mod valid {
    use super::*;
    use adit_ledger::{
        ConsistencyProof, Entry, Event, InclusionProof, Level, MerkleTree, SignedHead,
        evidence::Link,
    };
    use adit_protocol::{
        dpop::{Claims, prove},
        handshake::join_prologue,
        ids::{CarrierNumber, ChannelId, TokenId},
        keys::Fingerprint,
        token::TokenKind,
    };

    pub(super) fn records() -> Vec<Vec<u8>> {
        let channel = ChannelId(7);
        let mut all = vec![
            Record::Opened { channel, credit: 1 << 18 },
            Record::Attach { channel, epoch: 3, received: 1 << 33, credit: 1 << 34 },
            Record::Data { channel, offset: 70_000, len: 1200 },
            Record::Ack { channel, delivered: 10, credit: 20 },
            Record::Fin { channel, final_offset: 99 },
            Record::Datagram { channel, id: 1, piece: 0, pieces: 2, len: 1000 },
            Record::Ping { nonce: u64::from(u32::MAX) },
            Record::JoinRelay { relay: 1, slot: 1 },
            Record::LeaveRelay { relay: u32::MAX },
            Record::Hello { carrier: CarrierNumber(2) },
        ];
        if let Ok(target) = Target::new("pc.lab.example", 3389, Transport::Tcp) {
            all.push(Record::Open { channel, target, credit: 1 << 18 });
        }
        let encode = |r: &Record| {
            let mut bytes = BytesMut::new();
            r.encode(&mut bytes);
            bytes.to_vec()
        };
        all.iter().map(encode).collect()
    }

    pub(super) fn control() -> Vec<Vec<u8>> {
        use wire::frame::Body;
        let bodies = [
            Body::Ping(wire::Ping::default()),
            Body::Failure(wire::Failure {
                code: "busy".into(),
                message: "too many".into(),
                ..Default::default()
            }),
            Body::Hello(wire::Hello::default()),
            Body::CheckIn(wire::CheckIn::default()),
            Body::Open(wire::Open::default()),
            Body::Offer(wire::Offer::default()),
        ];
        let frame = |body| wire::Frame { id: 5, reply: false, body: Some(body) };
        bodies.into_iter().map(|b| frame(b).encode_to_vec()).collect()
    }

    pub(super) fn signed() -> Vec<Vec<u8>> {
        let Some(key) = signing_key() else { return Vec::new() };
        let hash = || Bytes::from_static(&[8; 32]);
        let id = || SESSION.to_bytes();
        let target = Target::new("127.0.0.1", 22, Transport::Tcp).map(|t| t.to_wire());
        let grant = wire::GrantBody {
            session_id: id(),
            tenant: "partner".into(),
            computer_id: id(),
            console_identity: key.public().to_bytes(),
            agent_identity: key.public().to_bytes(),
            redirector: "ssh".into(),
            targets: target.into_iter().collect(),
            msg1_sha256: hash(),
            audit_leaf: hash(),
            ..Default::default()
        };
        let ticket = wire::TicketBody {
            relay_identity: key.public().to_bytes(),
            session_id: id(),
            role: 1,
            joiner_key: hash(),
            not_before_ms: 1,
            expires_ms: 2,
            share: Bytes::from_static(&[3; 8]),
        };
        vec![grant.encode_to_vec(), ticket.encode_to_vec()]
    }

    pub(super) fn handshake() -> Vec<Vec<u8>> {
        let init = wire::HandshakeInit {
            random: Bytes::from_static(&[1; 32]),
            candidates: vec![wire::Candidate::default()],
            ..Default::default()
        };
        let reply =
            wire::HandshakeReply { random: Bytes::from_static(&[2; 32]), ..Default::default() };
        let nat =
            wire::NatSummary { mapping: 3, filtering: 1, port_step: -1, ports: vec![4001, 4000] };
        let with_nat = wire::HandshakeInit {
            random: Bytes::from_static(&[1; 32]),
            nat: Some(nat),
            ..Default::default()
        };
        vec![init.encode_to_vec(), reply.encode_to_vec(), with_nat.encode_to_vec()]
    }

    pub(super) fn join() -> Vec<Vec<u8>> {
        let init = wire::JoinInit::default().encode_to_vec();
        let message = noise_key(2).zip(noise_key(9)).and_then(|(own, relay)| {
            let prologue = join_prologue();
            let mut state = adit_net::noise::ik_initiator(&prologue, &own, &relay.public).ok()?;
            adit_net::noise::write_message(&mut state, &init).ok()
        });
        std::iter::once(init.clone()).chain(message).collect()
    }

    pub(super) fn noise() -> Vec<Vec<u8>> {
        let records = records().concat();
        let first = RelayedHandshake::initiate(&PSK, SESSION, CarrierNumber(1), &records);
        first.into_iter().map(|(_, frame)| frame.to_vec()).collect()
    }

    pub(super) fn stun() -> Vec<Vec<u8>> {
        let Ok(mapped) = "198.51.100.7:4000".parse() else { return Vec::new() };
        vec![
            stun::encode_binding_request([7; 12]),
            stun::encode_binding_response([7; 12], mapped),
            stun::encode_check([7; 12], &[9; 16], &PSK, 1 << 20),
        ]
    }

    pub(super) fn token() -> Vec<Vec<u8>> {
        let token = EnrollToken {
            kind: TokenKind::Agent,
            id: TokenId([4; 16]),
            root: Fingerprint([5; 32]),
            seed: [6; 32].into(),
            hosts: vec!["mediator.example:443".into(), "[2001:db8::1]:443".into()],
        };
        vec![token.encode().as_bytes().to_vec()]
    }

    pub(super) fn ledger() -> Vec<Vec<u8>> {
        let event = Event::new("session.granted", Level::Significant);
        let entry = Entry::seal(3, 1_700_000_000_000, event, [7; 16]);
        vec![entry.to_line().into_bytes()]
    }

    pub(super) fn evidence() -> Vec<Vec<u8>> {
        let (mut tree, mut entries) = (MerkleTree::new(), Vec::new());
        for seq in 0..2 {
            let event = Event::new("session.granted", Level::Significant);
            let entry = Entry::seal(seq, 1_700_000_000_000, event, [7; 16]);
            tree.append(entry.leaf());
            entries.push(entry);
        }
        let mut made = || {
            let (key, entry) = (signing_key()?, entries.pop()?);
            let sibling = entries.pop()?.leaf();
            let time = 1_700_000_000_001;
            let head = SignedHead::sign(&key, "t", tree.size(), tree.root(), time, None).ok()?;
            let inclusion = InclusionProof { index: 1, size: 2, path: vec![sibling] };
            let proof = ConsistencyProof { old_size: 1, new_size: 2, path: vec![entry.leaf()] };
            let links = vec![Link::Grown { tree: "t".into(), proof }];
            Some(Evidence { head, entry, inclusion, links }.to_wire().encode_to_vec())
        };
        made().into_iter().collect()
    }

    pub(super) fn dpop() -> Vec<Vec<u8>> {
        let claims = Claims {
            method: "GET",
            url: "https://mediator.example/api/v1/me",
            token: "token",
            nonce: "nonce",
            id: [1; 16],
            issued_s: 1_800_000_000,
        };
        signing_key().map(|key| prove(&key, &claims).into_bytes()).into_iter().collect()
    }

    pub(super) fn policy() -> Vec<Vec<u8>> {
        let full = "offline_grace = \"15m\"\n[[allow]]\n\
            targets = [\"127.0.0.1\", \"::1\", \"192.168.7.0/24\", \"*.lab.example\"]\n\
            ports = [22, 3389, \"5900-5910\"]\nprotocols = [\"tcp\", \"udp\"]\n\
            hours = \"mon-fri 07:00-19:00\"\nconsent = false\n";
        vec![full.into(), adit_agent::policy::DEFAULT_TEXT.into()]
    }

    pub(super) fn target() -> Vec<Vec<u8>> {
        [
            "pc.lab.example:3389",
            "[2001:db8::1]:22",
            "8080:127.0.0.1:80",
            "[::1]:2222:[::1]:22",
            "1080",
        ]
        .map(Vec::from)
        .into()
    }
}
