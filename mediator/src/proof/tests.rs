//! Proofs against a store that grows, is opened anew and is restored.

use adit_ledger::{Discord, Event, Evidence, Level, Link, Order, SignedHead, evidence::relate};
use adit_protocol::wire;

use crate::store::tests::{Fixture, Running};

async fn append(running: &Running, partner: &str, count: u64) -> (u64, String) {
    let partner = partner.to_owned();
    let job = running.writer.write(move |tx| {
        Box::pin(async move {
            let mut last = (0, String::new());
            for _ in 0..count {
                let event = Event::new("session.granted", Level::Significant);
                let done = tx.append(&partner, event).await?;
                last = (done.seq, done.entry.to_line());
            }
            Ok(last)
        })
    });
    job.await.unwrap()
}

fn seen(head: &SignedHead) -> wire::SeenHead {
    wire::SeenHead { tree: head.tree.clone(), size: head.size }
}

fn evidence(audit: &wire::AuditEvidence) -> Evidence {
    let evidence = Evidence::from_wire(Some(audit)).unwrap();
    evidence.check(evidence.head.key_cert.as_ref().unwrap().root).unwrap();
    evidence
}

/// Every head ever shown is a beginning of every later one, with proofs from memory and, after a
/// restart, from the store; another tree's, size or partner's proves nothing.
#[tokio::test]
async fn heads_are_tied_together_whenever_they_were_seen() {
    let fixture = Fixture::new();
    let mut heads: Vec<SignedHead> = Vec::new();
    let mut partner = String::new();
    for round in 0..3 {
        let running = fixture.open().await.unwrap();
        if round == 0 {
            partner = running.partner("acme").await.id;
        }
        for count in [1, 2, 15, 1, 40, 7] {
            let (seq, line) = append(&running, &partner, count).await;
            let forest = running.writer.forest();
            let told: Vec<_> = heads.iter().rev().take(4).map(seen).collect();
            let audit = forest.evidence(&partner, (seq, &line), &told).await.unwrap();
            let now = evidence(&audit);
            assert_eq!(now.head.size, seq + 1);
            for old in heads.iter().rev().take(4) {
                assert_eq!(relate(old, &now.head, &now.links), Ok(Order::Newer));
                assert_eq!(relate(&now.head, old, &now.links), Ok(Order::Older));
                assert_eq!(relate(old, &now.head, &[]), Err(Discord::Unproven));
                let forged = SignedHead { root: now.head.root, ..old.clone() };
                assert_eq!(relate(&forged, &now.head, &now.links), Err(Discord::Fork));
            }
            heads.push(now.head);
        }
        let forest = running.writer.forest();
        for (a, b) in heads.iter().zip(heads.iter().skip(3)) {
            let links = forest.links(&partner, &seen(a), &seen(b)).await.unwrap();
            assert_eq!(relate(a, b, &links), Ok(Order::Newer));
            assert!(forest.links("other", &seen(a), &seen(b)).await.is_err());
        }
        running.close().await;
    }
}

/// A log that was begun anew names what it follows: who saw no more goes on, who saw more knows.
#[tokio::test]
async fn a_restored_log_is_followed_or_found_to_have_lost_entries() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("acme").await.id;
    append(&running, &partner, 20).await;
    let forest = running.writer.forest().clone();
    let backed_up = forest.head(&partner).unwrap();
    append(&running, &partner, 5).await;
    let lost = forest.head(&partner).unwrap();
    let (id, head) = (partner.clone(), SignedHead::clone(&backed_up));
    let restart = running
        .writer
        .write(move |tx| Box::pin(async move { tx.start_tree(&id, "acme", Some(&head)).await }));
    restart.await.unwrap();
    append(&running, &partner, 3).await;
    let now = forest.head(&partner).unwrap();
    let links = forest.links(&partner, &seen(&backed_up), &seen(&now)).await.unwrap();
    assert_eq!(relate(&backed_up, &now, &links), Ok(Order::Newer));
    assert_eq!(
        relate(&lost, &now, &links),
        Err(Discord::RolledBack { named: backed_up.size, seen: lost.size })
    );
    // A first entry that is not the tree's own proves nothing.
    let moved: Vec<Link> = links
        .iter()
        .map(|link| match link {
            Link::Started { entry, proof, .. } => Link::Started {
                tree: backed_up.tree.clone(),
                entry: entry.clone(),
                proof: proof.clone(),
            },
            grown @ Link::Grown { .. } => grown.clone(),
        })
        .collect();
    assert_eq!(relate(&backed_up, &now, &moved), Err(Discord::Unproven));
    running.close().await;
}

/// Past the nodes that are kept in memory.
#[tokio::test]
async fn old_heads_are_tied_from_stored_nodes() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("acme").await.id;
    append(&running, &partner, 100).await;
    let forest = running.writer.forest().clone();
    let old = forest.head(&partner).unwrap();
    for _ in 0..20 {
        append(&running, &partner, 500).await;
    }
    let now = forest.head(&partner).unwrap();
    let links = forest.links(&partner, &seen(&old), &seen(&now)).await.unwrap();
    assert_eq!(relate(&old, &now, &links), Ok(Order::Newer));
    running.close().await;
}
