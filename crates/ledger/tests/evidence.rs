//! What an agent demands with a grant, and a console with an unknown agent: the signed head, the
//! entry in it, and that the entry tells of exactly this.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test's helpers may fail like the test"
)]

use std::convert::Infallible;

use adit_ledger::{
    Entry, Event, Evidence, EvidenceError, Hash, InclusionProof, Level, MerkleTree, RootCert,
    SignedHead, proof::LeafSource,
};
use adit_protocol::{
    grant::Grant,
    ids::{ComputerId, SessionId},
    keys::{KeyCert, PublicKey, Purpose, SigningKey},
    target::{Target, Transport},
};

const TIME: u64 = 1_760_000_000_000;
/// Where the entry is.
const SEQ: u64 = 5;

fn key(number: u8) -> SigningKey {
    SigningKey::from_seed(&[number; 32]).unwrap()
}

fn root() -> PublicKey {
    key(9).public()
}

fn target(text: &str) -> Target {
    Target::parse(text, Transport::Tcp).unwrap()
}

/// The record of a grant.
fn granted() -> Event {
    Event::new("session.granted", Level::Significant)
        .outcome("granted")
        .session_id(SessionId([1; 16]).to_string())
        .computer_id(ComputerId([2; 16]).to_string())
        .redirector("ssh")
        .device(key(3).public().fingerprint().to_string())
        .actor("jane")
        .reason("a reason")
        .ticket("T-1")
        .target("127.0.0.1:22")
}

fn grant(entry: &Entry) -> Grant {
    Grant {
        session: SessionId([1; 16]),
        tenant: "p1".into(),
        computer: ComputerId([2; 16]),
        console: key(3).public(),
        agent: key(4).public(),
        redirector: "ssh".into(),
        targets: vec![target("127.0.0.1:22")],
        any_target: false,
        msg1_sha256: [0; 32],
        issued_ms: TIME,
        expires_ms: TIME + 1,
        user: "jane".into(),
        reason: "a reason".into(),
        ticket: "T-1".into(),
        audit_seq: SEQ,
        audit_leaf: entry.leaf().0,
    }
}

struct Leaves(Vec<Hash>);

impl LeafSource for Leaves {
    type Error = Infallible;

    fn leaf(&mut self, index: u64) -> Result<Hash, Infallible> {
        Ok(self.0[usize::try_from(index).unwrap()])
    }
}

/// The event as an entry among others, its proof, and a head by that log key, certified by that
/// root key.
fn evidence(event: Event, log_key: u8, root_key: u8) -> Evidence {
    let other = |seq| Entry::seal(seq, TIME, Event::new("x", Level::Normal), [0; 16]);
    let entry = Entry::seal(SEQ, TIME, event, [7; 16]);
    let entries: Vec<Entry> =
        (0..9).map(|seq| if seq == SEQ { entry.clone() } else { other(seq) }).collect();
    let leaves: Vec<Hash> = entries.iter().map(Entry::leaf).collect();
    let mut tree = MerkleTree::new();
    leaves.iter().for_each(|leaf| {
        tree.append(*leaf);
    });
    let (log_key, root_key) = (key(log_key), key(root_key));
    let body = KeyCert { key: log_key.public(), not_before_ms: TIME - 1, not_after_ms: TIME + 1 };
    let cert = KeyCert::issue(&root_key, Purpose::Log, &body);
    let cert = RootCert { root: root_key.public(), cert };
    let head = SignedHead::sign(&log_key, "p1", tree.size(), tree.root(), TIME, Some(cert));
    Evidence {
        head: head.unwrap(),
        entry,
        inclusion: InclusionProof::prove(&mut Leaves(leaves), SEQ, tree.size()).unwrap(),
        links: Vec::new(),
    }
}

#[test]
fn a_grant_is_believed_with_exactly_its_own_record_and_nothing_else() {
    let good = evidence(granted(), 1, 9);
    let of = grant(&good.entry);
    assert_eq!(good.check_grant(root(), &of), Ok(()));
    assert_eq!(Evidence::from_wire(None).unwrap_err(), EvidenceError::Missing);

    // Properly signed and included records that tell another story.
    let others = [
        ("what happened", Event { name: "session.requested".into(), ..granted() }),
        ("outcome", granted().outcome("refused")),
        ("session", granted().session_id(SessionId([2; 16]).to_string())),
        ("computer", granted().computer_id(ComputerId([1; 16]).to_string())),
        ("redirector", granted().redirector("rdp")),
        ("console", granted().device(key(5).public().fingerprint().to_string())),
        ("technician", granted().actor("joe")),
        ("technician", Event { actor: None, ..granted() }),
        ("reason", granted().reason("another")),
        ("ticket", Event { ticket: None, ..granted() }),
        ("any target", granted().extra("any_target", "yes")),
        ("targets", granted().target("127.0.0.1:23")),
        ("targets", granted().extra_personal("targets", "127.0.0.1:22,127.0.0.1:23")),
    ];
    for (what, event) in others {
        let told = evidence(event, 1, 9);
        let refused = told.check_grant(root(), &grant(&told.entry));
        assert_eq!(refused, Err(EvidenceError::Differs(what)));
    }
    // The right record, but not the one that the grant names.
    let changes: [fn(&mut Grant); 2] =
        [|grant| grant.audit_seq = 4, |grant| grant.audit_leaf = [0; 32]];
    for change in changes {
        let mut other = of.clone();
        change(&mut other);
        assert_eq!(good.check_grant(root(), &other), Err(EvidenceError::OtherEntry));
    }
    // Not in the tree whose head is shown.
    let elsewhere = evidence(granted().target("127.0.0.1:23"), 1, 9);
    let moved = Evidence { entry: good.entry.clone(), ..elsewhere.clone() };
    assert_eq!(moved.check_grant(root(), &of), Err(EvidenceError::NotIncluded));
    let mut path = good.clone();
    path.inclusion.path[0] = Hash::of(b"other");
    assert_eq!(path.check_grant(root(), &of), Err(EvidenceError::NotIncluded));
    let short = InclusionProof { size: 8, ..good.inclusion.clone() };
    let short = Evidence { inclusion: short, ..good.clone() };
    assert_eq!(short.check_grant(root(), &of), Err(EvidenceError::NotIncluded));
    // Signed by nobody whom this installation certified.
    assert!(evidence(granted(), 1, 8).check_grant(root(), &of).is_err());
    let uncertified = SignedHead { key_cert: None, ..good.head.clone() };
    let uncertified = Evidence { head: uncertified, ..good.clone() };
    assert!(uncertified.check_grant(root(), &of).is_err());
    let forged = SignedHead { size: 10, ..good.head.clone() };
    let forged = Evidence { head: forged, ..good };
    assert!(forged.check_grant(root(), &of).is_err());
}

#[test]
fn an_agent_is_believed_with_the_record_of_its_own_enrolment_only() {
    let identity = |number| key(number).public().fingerprint().to_string();
    let computer = ComputerId([2; 16]).to_string();
    let enrolled = || {
        Event::new("enroll.succeeded", Level::Significant)
            .outcome("granted")
            .computer_id(computer.clone())
            .extra("identity", identity(4))
    };
    let check = |event: Event| {
        let told = evidence(event, 1, 9);
        told.check_enrolment(root(), &computer, key(4).public())
    };
    assert_eq!(check(enrolled()), Ok(()));
    for (what, event) in [
        ("what happened", Event { name: "enroll.refused".into(), ..enrolled() }),
        ("outcome", enrolled().outcome("refused")),
        ("computer", enrolled().computer_id(ComputerId([1; 16]).to_string())),
        ("key", enrolled().extra("identity", identity(5))),
    ] {
        assert_eq!(check(event), Err(EvidenceError::Differs(what)));
    }
}
