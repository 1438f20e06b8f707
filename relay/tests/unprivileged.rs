//! Two thousand pairs as an ordinary user, whose pipes share a budget of 64 MiB.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod support;

use std::{os::unix::process::CommandExt, process::Command, time::Duration};

use adit_relay::capacity::Capacity;
use support::{TestRelay, limits, pattern, session};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

const PAIRS: u32 = 2_000;
const BYTES: usize = 256 * 1024;
/// Joins under way at once.
const AT_ONCE: usize = 64;
/// The user "nobody".
const NOBODY: u32 = 65_534;
const CHILD: &str = "ADIT_TEST_UNPRIVILEGED";

#[test]
fn two_thousand_pairs_move_bytes_as_an_ordinary_user() {
    let privileged = rustix::process::geteuid().is_root();
    if !privileged || std::env::var_os(CHILD).is_some() {
        assert!(!rustix::process::geteuid().is_root());
        return tokio::runtime::Runtime::new().unwrap().block_on(move_bytes());
    }
    // The other user may not be able to reach the build directory: give it a copy.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let status = Command::new(program)
        .args(["--exact", "two_thousand_pairs_move_bytes_as_an_ordinary_user", "--nocapture"])
        .env(CHILD, "1")
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

async fn move_bytes() {
    let capacity = Capacity::of_this_process();
    let relay = TestRelay::start(capacity.clamp(limits()));
    let mut streams = Vec::new();
    for first in (0..PAIRS).step_by(AT_ONCE) {
        let some = (first..PAIRS).take(AT_ONCE).map(|n| relay.pair(session(n)));
        streams.extend(futures_join_all(some).await);
    }
    relay.eventually("all pairs", |hub| hub.counts().pairs == PAIRS as usize).await;

    // All at once, and all of them stalled at first: nobody reads until everybody has written.
    let mut work = JoinSet::new();
    for (n, (mut console, mut agent)) in streams.into_iter().enumerate() {
        work.spawn(async move {
            let bytes = pattern(n as u64, BYTES);
            let (up, down) = (bytes.clone(), bytes.clone());
            let (mut console_read, mut console_write) = console.split();
            let (mut agent_read, mut agent_write) = agent.split();
            let (mut got_up, mut got_down) = (vec![0; BYTES], vec![0; BYTES]);
            let all = async {
                tokio::try_join!(
                    console_write.write_all(&up),
                    agent_write.write_all(&down),
                    agent_read.read_exact(&mut got_up),
                    console_read.read_exact(&mut got_down),
                )
            };
            timeout(Duration::from_secs(120), all).await.expect("stalled").unwrap();
            assert!(got_up == bytes && got_down == bytes, "bytes of pair {n} differ");
            (console, agent)
        });
    }
    let mut streams = Vec::new();
    while let Some(pair) = work.join_next().await {
        streams.push(pair.unwrap());
    }
    assert_eq!(relay.hub.counts().pairs, PAIRS as usize);
    let mut pipes = relay.hub.pipes();
    for _ in 0..100 {
        if pipes.0 == pipes.1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        pipes = relay.hub.pipes();
    }
    assert_eq!(pipes.0, pipes.1, "idle pairs hold pipes");
    assert!(pipes.0 <= 128, "{} pipes are kept", pipes.0);
}

/// All of them on this task, in order.
async fn futures_join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(|f| Some(Box::pin(f))).collect();
    let mut done: Vec<Option<F::Output>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (slot, out) in pending.iter_mut().zip(&mut done) {
            if let Some(future) = slot
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *out = Some(value);
                *slot = None;
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}
