//! Faults below the mediator: a power cut at any write, a disk that is full or fails, a clock that
//! jumps. No acknowledged record is lost, nothing is allowed that could not be recorded, and all
//! recovers by itself.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;
#[path = "common/shim.rs"]
mod shim;

use std::{collections::BTreeMap, path::Path, time::Duration};

use common::{Mediator, hello, identity};
use shim::{Act, Op, Shim};

/// Cuts of the power in one test run; `cargo xtask faults` asks for more.
const CUTS: usize = 40;
/// What a disk writes as a whole.
const SECTOR: usize = 512;

fn rounds(usual: usize) -> usize {
    std::env::var("ADIT_FAULT_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// A small generator, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// A device's fingerprint once its login was acknowledged.
async fn login(mediator: &Mediator) -> Result<String, String> {
    let me = identity();
    let device = mediator.connect(&me, hello(2, &me, &[])).await.map_err(|e| e.to_string())?;
    match device.login("admin", &mediator.password).await {
        Ok(_) => Ok(me.signing.public().fingerprint().to_string()),
        Err(failure) => Err(failure.code),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_write_loses_nothing_that_was_acknowledged() {
    let shim = Shim::new();
    let mut mediator = Mediator::start();
    mediator.stop();
    let base = [read(&mediator.database()), Vec::new(), read(&heads(&mediator))];
    shim.record();
    mediator.serve_with(|command| shim.on(command));
    let mut acknowledged: Vec<(usize, String)> = Vec::new();
    for round in 0..3 {
        let logins = (0..4).map(|_| async {
            let device = login(&mediator).await.unwrap();
            // Everything that this rests on is in the journal by now.
            (shim.recorded(), device)
        });
        acknowledged.extend(futures_util::future::join_all(logins).await);
        mediator.admin(&["client", "add", &format!("main/client{}", acknowledged.len())]);
        // A head of what was just acknowledged stands beside the database, too.
        let before = noted(&shim.ops());
        while round == 1 && noted(&shim.ops()) == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    mediator.kill();
    let ops = shim.ops();
    assert!(ops.iter().filter(|op| matches!(op.act, Act::Sync)).count() > 5, "{}", ops.len());
    let mut dice = Dice(11);
    let (cuts, mut checked) = (rounds(CUTS), 0);
    for round in 0..cuts {
        let cut = dice.roll(ops.len() + 1);
        let at = ops[..cut].last().map_or(0, |op| op.end);
        restore(&mediator, &after_a_cut(&base, &ops[..cut], &mut dice));
        mediator.serve();
        let recorded = devices(&mediator);
        for (_, device) in acknowledged.iter().filter(|(end, _)| *end <= at) {
            assert!(recorded.contains_key(device), "round {round}: cut at {cut} lost {device}");
            checked += 1;
        }
        mediator.admin(&["audit", "verify"]);
        mediator.kill();
    }
    println!(
        "{cuts} power cuts among {} writes and syncs: {checked} times a login was looked for \
              that had been acknowledged, and found",
        ops.len()
    );
}

fn read(file: &Path) -> Vec<u8> {
    std::fs::read(file).unwrap()
}

/// Signed heads that the mediator keeps beside the database: one that does not go on from them is
/// not served.
fn heads(mediator: &Mediator) -> std::path::PathBuf {
    mediator.dir.path().join("audit-heads.jsonl")
}

fn noted(ops: &[Op]) -> usize {
    ops.iter().filter(|op| op.file == b'h').count()
}

/// Database, write-ahead log and noted heads.
type Files = [Vec<u8>; 3];

/// The files as a power cut leaves them: what was synced is there; of each later write all, none
/// or the first or last sectors. The heads are replaced as a whole: the last ones, or those
/// before if the directory was not synced any more.
fn after_a_cut(base: &Files, ops: &[Op], dice: &mut Dice) -> Files {
    let mut files = base.clone();
    let replaced = ops.iter().filter(|op| op.file == b'h').map(|op| match &op.act {
        Act::Write { bytes, .. } => bytes,
        other => panic!("{other:?} of the heads"),
    });
    if let Some(last) = replaced.rev().nth(dice.roll(2)) {
        files[2].clone_from(last);
    }
    for (index, letter) in [b'd', b'w'].into_iter().enumerate() {
        let mine: Vec<&Op> = ops.iter().filter(|op| op.file == letter).collect();
        let synced =
            mine.iter().rposition(|op| matches!(op.act, Act::Sync)).map_or(0, |last| last + 1);
        for (n, op) in mine.iter().enumerate() {
            let file = &mut files[index];
            match &op.act {
                Act::Write { offset, bytes } if n < synced => put(file, *offset, bytes),
                Act::Write { offset, bytes } => match dice.roll(4) {
                    0 => {}
                    1 => put(file, *offset, bytes),
                    2 => {
                        let keep = dice.roll(bytes.len() / SECTOR + 1) * SECTOR;
                        put(file, *offset, &bytes[..keep]);
                    }
                    _ => {
                        let skip = dice.roll(bytes.len() / SECTOR + 1) * SECTOR;
                        put(file, *offset + skip, &bytes[skip..]);
                    }
                },
                Act::Truncate(size) if n < synced || dice.roll(2) == 0 => file.resize(*size, 0),
                Act::Truncate(_) | Act::Sync => {}
            }
        }
    }
    files
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if file.len() < offset + bytes.len() {
        file.resize(offset + bytes.len(), 0);
    }
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn restore(mediator: &Mediator, files: &Files) {
    let database = mediator.database();
    let beside = |end: &str| database.with_extension(format!("db{end}"));
    let _ = std::fs::remove_file(beside("-shm"));
    std::fs::write(&database, &files[0]).unwrap();
    std::fs::write(beside("-wal"), &files[1]).unwrap();
    std::fs::write(heads(mediator), &files[2]).unwrap();
}

/// Devices with a recorded login.
fn devices(mediator: &Mediator) -> BTreeMap<String, u64> {
    mediator
        .events_named("login.succeeded")
        .iter()
        .map(|event| (event["device"].as_str().unwrap().to_owned(), event["seq"].as_u64().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_or_fails_allows_nothing_and_recovers_by_itself() {
    let shim = Shim::new();
    let mut mediator = Mediator::start();
    mediator.stop();
    mediator.serve_with(|command| shim.on(command));
    let mut acknowledged = Vec::new();
    // Writes, room and syncs fail; at another moment of the writing each time.
    let modes = ["w", "f", "s"].repeat(rounds(1).div_ceil(10));
    for mode in &modes {
        acknowledged.push(login(&mediator).await.unwrap());
        shim.mode(mode);
        let refused = login(&mediator).await.unwrap_err();
        assert_eq!(refused, "audit_unavailable", "mode {mode}");
        let (code, told) = mediator.try_admin(&["client", "add", "main/never"], "");
        assert_eq!(code, 1, "{told:?}");
        shim.mode("n");
        let mut recovered = None;
        for _ in 0..50 {
            recovered = login(&mediator).await.ok();
            if recovered.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        acknowledged.push(recovered.unwrap_or_else(|| panic!("mode {mode}: no recovery")));
    }
    let clients = mediator.admin(&["client", "list"]);
    assert!(clients.iter().all(|client| client["client"] != "main/never"));
    mediator.kill();
    mediator.serve();
    let recorded = devices(&mediator);
    assert!(acknowledged.iter().all(|device| recorded.contains_key(device)));
    mediator.admin(&["audit", "verify"]);
    println!("{} faults of the disk: {} logins acknowledged, all recorded", modes.len(), {
        acknowledged.len()
    });
}

/// A login that works within the time that certificates take to be renewed.
async fn soon(mediator: &Mediator) -> String {
    let mut last = String::new();
    for _ in 0..60 {
        match login(mediator).await {
            Ok(device) => return device,
            Err(error) => last = error,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("no login: {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_clock_does_order_is_by_sequence_and_nothing_is_lost() {
    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;
    let shim = Shim::new();
    let mut mediator = Mediator::start();
    mediator.stop();
    mediator.serve_with(|command| shim.on(command));
    let mut acknowledged = Vec::new();
    for (n, seconds) in
        [0, 2 * HOUR, -2 * HOUR, 400 * DAY, 0, 14 * 365 * DAY, -DAY].into_iter().enumerate()
    {
        shim.clock(seconds);
        mediator.admin(&["client", "add", &format!("main/at{n}")]);
        // Devices whose own clock is right cannot follow far: certificates tell the time, too.
        // Once the clocks are about the same again, all works again by itself.
        if seconds.abs() < DAY {
            acknowledged.push(soon(&mediator).await);
        } else if let Ok(device) = login(&mediator).await {
            acknowledged.push(device);
        }
    }
    // Nothing of what is kept was deleted when the clock was ahead.
    let recorded = devices(&mediator);
    let order: Vec<u64> = acknowledged.iter().map(|device| recorded[device]).collect();
    assert!(order.is_sorted() && order.len() >= 4, "{order:?}");
    let events = mediator.events();
    let times: Vec<&str> = events.iter().map(|event| event["time"].as_str().unwrap()).collect();
    assert!(!times.is_sorted() && times.iter().any(|time| *time > "2038-01-20"), "{times:?}");
    assert!(events.iter().enumerate().all(|(n, event)| event["seq"] == n));
    mediator.admin(&["audit", "verify"]);
    // Searching by time finds them wherever they are in the sequence.
    let late = mediator.admin(&["audit", "search", "--since", "2038-01-19T03:14:08Z"]);
    assert!(late.iter().any(|event| event["client"] == "main/at5"), "{late:?}");
    mediator.kill();
    // Started while the clock is wrong, and put right again.
    shim.clock(400 * DAY);
    mediator.serve_with(|command| shim.on(command));
    mediator.admin(&["client", "add", "main/ahead"]);
    shim.clock(0);
    mediator.admin(&["client", "add", "main/right"]);
    mediator.stop();
    mediator.admin(&["audit", "verify"]);
    let told = mediator.admin(&["audit", "verify"]);
    assert_eq!(told[0]["trees"][0]["pruned"], 0);
}
