//! Receipts against the log and against each other.

#![expect(clippy::unwrap_used, reason = "tests")]

use adit_ledger::{
    Entry, Event, Finding, Hash, Level, Mismatch, Receipt, Reconciled, Reconciler,
    receipt::{Close, Role, Statement},
};
use adit_protocol::{ids::SessionId, keys::SigningKey};

fn keys() -> (SigningKey, SigningKey) {
    (SigningKey::from_seed(&[1; 32]).unwrap(), SigningKey::from_seed(&[2; 32]).unwrap())
}

fn receipt(role: Role, session: u8, bytes: Option<u64>, change: impl Fn(&mut Statement)) -> String {
    let (console, agent) = keys();
    let mut statement = Statement {
        role,
        session: [session; 16],
        grant_hash: Hash::of(b"grant"),
        handshake_hash: Hash::of(b"handshake"),
        console: console.public().fingerprint(),
        agent: agent.public().fingerprint(),
        redirector: "ssh".into(),
        target: "127.0.0.1:22".into(),
        channel: 2,
        time_ms: 1,
        close: bytes.map(|bytes| Close {
            sent: bytes,
            acknowledged: bytes,
            delivered: bytes,
            complete: true,
            reason: "closed".into(),
        }),
    };
    change(&mut statement);
    Receipt::sign(if role == Role::Console { &console } else { &agent }, statement).to_line()
}

fn granted(session: u8, change: impl Fn(Event) -> Event) -> Entry {
    let (console, agent) = keys();
    let event = Event::new("session.granted", Level::Significant)
        .session_id(SessionId([session; 16]).to_string())
        .redirector("ssh")
        .device(console.public().fingerprint().to_string())
        .target("127.0.0.1:22")
        .extra("agent", agent.public().fingerprint().to_string());
    Entry::seal(0, 0, change(event), [3; 16])
}

fn compare(receipts: &[String], entries: &[Entry]) -> Reconciled {
    let mut reconciler = Reconciler::new();
    receipts.iter().for_each(|line| reconciler.receipt(line.as_bytes()));
    entries.iter().for_each(|entry| reconciler.entry(entry));
    reconciler.finish()
}

fn all(session: u8) -> Vec<String> {
    let roles = [Role::Console, Role::Agent];
    roles
        .into_iter()
        .flat_map(|role| [None, Some(9)].map(|bytes| receipt(role, session, bytes, |_| ())))
        .collect()
}

#[test]
fn honest_ends_and_an_honest_log_agree() {
    let twice = [all(7), all(7)].concat();
    let found = compare(&twice, &[granted(7, |event| event)]);
    assert_eq!((found.receipts, found.sessions, found.logged), (4, 1, 1));
    assert_eq!(found.findings, []);
    // Personal fields that were erased cannot be compared, and are counted.
    let mut erased = granted(7, |event| event);
    erased.erase();
    let found = compare(&all(7), &[erased]);
    assert_eq!((found.erased, found.findings.len()), (1, 0));
}

#[test]
fn whatever_was_hidden_or_changed_is_named() {
    let (session, channel) = (SessionId([7; 16]).to_string(), 2);
    let hidden = Finding::Hidden { session: session.clone() };
    assert_eq!(compare(&all(7), &[granted(8, |event| event)]).findings, [hidden]);

    let differs = |what| Finding::Differs { session: session.clone(), channel, what };
    for (what, entry) in [
        ("target", granted(7, |event| event.target("127.0.0.1:23"))),
        ("redirector", granted(7, |event| event.redirector("rdp"))),
        ("console", granted(7, |event| event.device("sha256:00"))),
        ("agent", granted(7, |event| event.extra("agent", "sha256:00"))),
    ] {
        let found = compare(&all(7)[..1], &[entry]).findings;
        assert!(found.contains(&differs(what)), "{what}: {found:?}");
    }

    let log = [granted(7, |event| event)];
    let mut lines = all(7);
    lines[3] = receipt(Role::Agent, 7, Some(8), |_| ());
    let mismatch = Mismatch::Offsets;
    let ends = Finding::Ends { session: session.clone(), channel, mismatch };
    assert_eq!(compare(&lines, &log).findings, [ends]);

    let mut lines = all(7);
    lines.remove(3);
    let missing =
        Finding::Missing { session: session.clone(), channel, role: "agent", kind: "close" };
    assert_eq!(compare(&lines, &log).findings, [missing]);

    let mut lines = all(7);
    lines.push(receipt(Role::Agent, 7, None, |said| said.time_ms = 2));
    let two = Finding::TwoStories { session, channel, role: "agent" };
    assert_eq!(compare(&lines, &log).findings, [two]);

    let forged = lines[0].replace("127.0.0.1:22", "127.0.0.1:23");
    assert_eq!(compare(&[forged], &log).findings, [Finding::Invalid { line: 1 }]);
}

/// Whatever pieces it is read in.
#[test]
fn a_log_is_looked_at_while_another_reads_it() {
    let lines = [granted(8, |event| event), granted(7, |event| event)].map(|e| e.to_line());
    let text = format!("{}\n{}\nno entry\n", lines[0], lines[1]);
    for piece in [1, 7, 100, text.len()] {
        let mut reconciler = Reconciler::new();
        all(7).iter().for_each(|line| reconciler.receipt(line.as_bytes()));
        let mut read = String::new();
        let watched = reconciler.watching(text.as_bytes());
        let mut pieces = std::io::BufReader::with_capacity(piece, watched);
        std::io::Read::read_to_string(&mut pieces, &mut read).unwrap();
        assert_eq!(read, text);
        let found = reconciler.finish();
        assert_eq!((found.logged, found.findings), (1, Vec::new()), "{piece}");
    }
}
