//! What a lying mediator shows, and what of it is believed. Its answers to questions do not come:
//! everything that proves something is sent along.

use std::convert::Infallible;

use adit_ledger::{
    ConsistencyProof, Entry, Event, Hash, InclusionProof, Level, MerkleTree, proof::LeafSource,
};
use adit_net::{identity::DeviceIdentity, proxy::Dialer};
use adit_protocol::{ids::SessionId, keys::SigningKey, ticket::Role};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::EndpointConfig;

const PARTNER: &str = "p1";

struct Leaves<'a>(&'a [Entry]);

impl LeafSource for Leaves<'_> {
    type Error = Infallible;

    fn leaf(&mut self, index: u64) -> Result<Hash, Infallible> {
        Ok(self.0[usize::try_from(index).unwrap()].leaf())
    }
}

/// A log, as its mediator has it.
struct Tree {
    id: &'static str,
    key: SigningKey,
    entries: Vec<Entry>,
    /// Two trees of one name tell different things if theirs differ.
    salt: [u8; 16],
}

impl Tree {
    fn new(id: &'static str, follows: Option<&SignedHead>) -> Self {
        let started = Entry::seal(0, 1, Event::tree_started(follows), [1; 16]);
        Self { id, key: SigningKey::generate().unwrap(), entries: vec![started], salt: [2; 16] }
    }

    fn grow(&mut self, count: u64) -> SignedHead {
        for _ in 0..count {
            let seq = self.entries.len() as u64;
            let event = Event::new("session.granted", Level::Significant);
            self.entries.push(Entry::seal(seq, seq, event, self.salt));
        }
        self.head(self.entries.len())
    }

    fn head(&self, size: usize) -> SignedHead {
        let mut merkle = MerkleTree::new();
        for entry in &self.entries[..size] {
            merkle.append(entry.leaf());
        }
        SignedHead::sign(&self.key, self.id, size as u64, merkle.root(), 1, None).unwrap()
    }

    fn grown(&self, old: &SignedHead, new: &SignedHead) -> Link {
        let proof = ConsistencyProof::prove(&mut Leaves(&self.entries), old.size, new.size);
        Link::Grown { tree: self.id.to_owned(), proof: proof.unwrap() }
    }

    fn started(&self, head: &SignedHead) -> Link {
        let proof = InclusionProof::prove(&mut Leaves(&self.entries), 0, head.size).unwrap();
        let entry = Box::new(self.entries[0].clone());
        Link::Started { tree: self.id.to_owned(), entry, proof }
    }
}

struct End {
    endpoint: Arc<Endpoint>,
    root: PublicKey,
    _directory: tempfile::TempDir,
}

async fn end(role: Role, partner: Option<&str>) -> End {
    let directory = tempfile::tempdir().unwrap();
    let config = EndpointConfig {
        role,
        identity: Arc::new(DeviceIdentity::generate(0).unwrap()),
        dialer: Arc::new(Dialer::direct()),
        direct: false,
        resume_window: Duration::from_secs(1),
        offline_grace: Duration::from_secs(1),
        relay_cache: None,
        records: Some(directory.path().join("d")),
        mediator: String::new(),
        partner: partner.map(str::to_owned),
    };
    let endpoint = Endpoint::start(config, ControlLink::new(), CancellationToken::new());
    let endpoint = endpoint.await.unwrap();
    End { endpoint, root: SigningKey::generate().unwrap().public(), _directory: directory }
}

impl End {
    async fn follow(&self, head: &SignedHead, links: &[Link]) -> Result<(), Doubt> {
        self.endpoint.follow(self.root, PARTNER, (head, links), Also::Nothing).await
    }

    async fn place(&self, head: &SignedHead, links: &[Link]) -> Result<(), Doubt> {
        self.endpoint.follow(self.root, PARTNER, (head, links), Also::Earlier).await
    }

    fn seen(&self) -> Option<SignedHead> {
        self.endpoint.witness.seen(self.root.fingerprint(), PARTNER)
    }

    fn grant(&self, tenant: &str) -> Grant {
        let key = self.endpoint.identity.signing.public();
        Grant {
            session: SessionId([1; 16]),
            tenant: tenant.to_owned(),
            computer: ComputerId([2; 16]),
            console: key,
            agent: key,
            redirector: "ssh".into(),
            targets: Vec::new(),
            any_target: false,
            msg1_sha256: [0; 32],
            issued_ms: 0,
            expires_ms: 0,
            user: String::new(),
            reason: String::new(),
            ticket: String::new(),
            audit_seq: 0,
            audit_leaf: [0; 32],
        }
    }
}

/// A second tree, made for the enrolment of a computer of the mediator's own, is perfectly valid
/// in itself.
#[tokio::test]
async fn an_enrolment_in_a_tree_apart_from_the_one_seen_proves_nothing() {
    let console = end(Role::Console, Some(PARTNER)).await;
    let mut log = Tree::new("a", None);
    let seen = log.grow(20);
    console.follow(&seen, &[]).await.unwrap();
    let mut forged = Tree::new("b", None);
    let apart = forged.grow(3);
    for links in [vec![], vec![forged.started(&apart)]] {
        let doubt = console.place(&apart, &links).await.unwrap_err();
        assert_eq!(doubt.code(), failure::AUDIT_FORKED);
    }
    // One that says it follows, but what was seen is longer.
    let mut rolled = Tree::new("c", Some(&log.head(5)));
    let back = rolled.grow(3);
    let links = [rolled.started(&back), log.grown(&log.head(5), &seen)];
    assert_eq!(console.place(&back, &links).await.unwrap_err().code(), failure::AUDIT_FORKED);
    // The same tree, otherwise continued.
    let mut other = Tree { salt: [3; 16], ..Tree::new("a", None) };
    let longer = other.grow(30);
    let links = [other.grown(&other.head(21), &longer)];
    assert_eq!(console.place(&longer, &links).await.unwrap_err().code(), failure::AUDIT_FORKED);
    assert_eq!(console.seen(), Some(seen));
}

#[tokio::test]
async fn enrolments_of_before_and_after_a_restored_backup_are_believed() {
    let console = end(Role::Console, Some(PARTNER)).await;
    let mut before = Tree::new("a", None);
    let last = before.grow(9);
    let mut after = Tree::new("b", Some(&last));
    let today = after.grow(4);
    console.follow(&today, &[]).await.unwrap();
    // In the log that today's goes on from.
    console.place(&last, &[after.started(&today)]).await.unwrap();
    assert_eq!(console.seen(), Some(today.clone()));
    // In one that goes on from today's.
    let mut next = Tree::new("c", Some(&today));
    let newest = next.grow(2);
    console.place(&newest, &[next.started(&newest)]).await.unwrap();
    assert_eq!(console.seen(), Some(newest));
}

#[tokio::test]
async fn no_other_partners_log_is_believed() {
    for role in [Role::Console, Role::Agent] {
        let pinned = end(role, Some(PARTNER)).await;
        let grant = pinned.grant("p2");
        let doubt = pinned.endpoint.check_record(pinned.root, &grant, None).await;
        assert_eq!(doubt.err().unwrap().code(), failure::AUDIT_FOREIGN);
        let (computer, agent) = (grant.computer, grant.agent);
        let doubt = pinned.endpoint.check_enrolment("p2", computer, agent).await;
        assert_eq!(doubt.unwrap_err().code(), failure::AUDIT_FOREIGN);
    }
}

/// Agents of before partners were remembered.
#[tokio::test]
async fn an_agent_that_saw_one_log_believes_no_other_partners() {
    let agent = end(Role::Agent, None).await;
    let root = agent.root.fingerprint();
    let (own, other) = (agent.grant(PARTNER), agent.grant("p2"));
    // It has seen none: the enrolment must be proved, and nobody does.
    let doubt = agent.endpoint.adopt_partner(root, &own).await.unwrap_err();
    assert_eq!(doubt.code(), failure::AUDIT_UNPROVEN);
    agent.follow(&Tree::new("a", None).grow(3), &[]).await.unwrap();
    agent.endpoint.adopt_partner(root, &own).await.unwrap();
    let doubt = agent.endpoint.adopt_partner(root, &other).await.unwrap_err();
    assert_eq!(doubt.code(), failure::AUDIT_FOREIGN);
    agent.endpoint.partner.adopt(PARTNER);
    agent.endpoint.partner.adopt("p2");
    assert_eq!(agent.endpoint.partner().as_deref(), Some(PARTNER));
}

#[tokio::test]
async fn heads_of_any_number_of_partners_are_bounded() {
    let console = end(Role::Console, None).await;
    let head = Tree::new("a", None).grow(1);
    let follow = async |partner: &str| {
        console.endpoint.follow(console.root, partner, (&head, &[]), Also::Nothing).await
    };
    for n in 0..MAX_LOGS {
        follow(&format!("t{n}")).await.unwrap();
    }
    let doubt = follow("one-more").await.unwrap_err();
    assert_eq!(doubt.code(), failure::AUDIT_UNPROVEN);
    // Those that are known go on.
    follow("t7").await.unwrap();
}

/// Where the file cannot be read the owner must look at its mode, not restore it.
#[test]
fn what_cannot_be_read_is_not_taken_for_damage() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("witness")).unwrap();
    assert!(!read(directory.path()).unwrap_err().is_damage());
}

#[test]
fn accepting_works_whatever_the_file_holds() {
    let directory = tempfile::tempdir().unwrap();
    for damage in [&b"no head\n"[..], b"\xff\xfe", &[b'x'; 5 << 20]] {
        std::fs::write(directory.path().join("witness"), damage).unwrap();
        let error = read(directory.path()).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("witness"), "{error}");
        assert_eq!(accept(directory.path()).unwrap(), [""; 0]);
        let aside = std::fs::read(directory.path().join("witness.before")).unwrap();
        assert_eq!(aside, damage);
        let (heads, alerts) = read(directory.path()).unwrap();
        assert!(heads.is_empty() && alerts.last().unwrap().contains("accepted"));
    }
}
