//! How long verification of a large export takes:
//! `cargo run --release -p adit-ledger --example verify_speed -- 1000000`

use std::{error::Error, time::Instant};

use adit_ledger::{
    Entry, Event, Level, MerkleTree, SignedHead, Trust, export::jsonl::JsonlExport, verify_export,
};
use adit_protocol::keys::SigningKey;

fn main() -> Result<(), Box<dyn Error>> {
    let size: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |n| n.parse())?;
    let (mut export, mut tree, mut text) =
        (JsonlExport::new(&[]), MerkleTree::new(), String::new());
    let started = Instant::now();
    for seq in 0..size {
        let event = Event::new("session.granted", Level::Significant)
            .outcome("granted")
            .partner("acme")
            .client("acme/workshop")
            .computer("reception-3")
            .computer_id("0d9c7a3e51f24b68")
            .session_id(format!("{seq:032x}"))
            .redirector("rdp")
            .target("127.0.0.1:3389")
            .viewer("xfreerdp")
            .actor("alice@example.org")
            .device("sha256:0000000000000000000000000000000000000000000000000000000000000000")
            .source("198.51.100.7:40123")
            .reason("printer does not print")
            .ticket("T-4711")
            .rule("technician of partner")
            .carrier("relayed")
            .carrier("direct");
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&seq.to_be_bytes());
        let entry = Entry::seal(seq, 1_760_000_000_000 + seq, event, salt);
        tree.append(entry.leaf());
        export.entry(&entry, &mut text)?;
    }
    let key = SigningKey::from_seed(&[1; 32])?;
    let head = SignedHead::sign(&key, "acme", size, tree.root(), 1_760_000_000_000 + size, None)?;
    export.finish(&head, &mut text)?;
    let sealed_ms = started.elapsed().as_millis();
    let started = Instant::now();
    let trust = Trust { keys: vec![key.public().fingerprint()], ..Trust::default() };
    let report = verify_export(text.as_bytes(), &trust)?;
    let verified_ms = started.elapsed().as_millis();
    println!("{report}");
    println!(
        "{} bytes; sealed and written in {sealed_ms} ms, verified in {verified_ms} ms",
        text.len()
    );
    Ok(())
}
