//! Close receipts of the other end that did not come before a session was over: its machine was
//! slow, or the last path broke. The other end has sent them to the mediator, or will when it can;
//! this end asks there until they come, also in a later run of the program.
//!
//! `receipts/wanted` holds, line by line, this end's own close receipts that wait for their
//! counterparts. Must never take a counterpart that tells of another session, grant, handshake,
//! device or target; must never hold up a session.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use adit_ledger::{
    Receipt,
    receipt::{Mismatch, Role, compare},
};
use adit_protocol::wire::{self, frame::Body};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{
    keeper::{KeepError, Keeper, RECEIPTS, append, read_all, replace},
    link::ControlLink,
};

/// Receipts that wait; beyond it those of the peer that most are wanted of are given up, its oldest
/// first.
const MAX_WANTED: usize = 256;
/// Bytes of their list: lines are at most a few kilobytes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// How long one is asked for: whoever was away longer sends it to the mediator all the same.
const WANTED_FOR_MS: u64 = 30 * 24 * 3_600_000;
/// Names in one question.
const BATCH: usize = 64;
/// Time for the mediator to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Pauses between questions: the first, and the longest of those that double.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Time for the last ones when the program ends, and how often it is looked.
const FLUSH: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);
const WANTED: &str = "wanted";
/// Where a list goes that no version of this program wrote.
const ASIDE: &str = "wanted.damaged";
const LOCK: &str = "wanted.lock";

impl Keeper {
    /// Notes own close receipts whose counterparts have not come.
    pub(crate) fn want(&self, lines: &[String]) -> Result<(), KeepError> {
        if lines.is_empty() {
            return Ok(());
        }
        self.change_wanted(|path, text| {
            let (mut all, fresh) = (parse(text), parse(&lines_text(lines)));
            if all.len().saturating_add(fresh.len()) <= MAX_WANTED {
                return append(path, lines_text(lines).as_bytes());
            }
            all.extend(fresh);
            write(path, &fair(all))
        })?;
        self.wanted.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Own close receipts whose counterparts are waited for, oldest first.
    fn waiting(&self) -> Result<Vec<Receipt>, KeepError> {
        let Some(directory) = self.directory() else { return Ok(Vec::new()) };
        let path = directory.join(RECEIPTS).join(WANTED);
        if is_too_large(&path) {
            // Puts it aside.
            self.change_wanted(|_, _| Ok(()))?;
        }
        Ok(parse(&read_all(&path, MAX_BYTES)?))
    }

    /// These are not waited for any more; nor what is too much.
    fn settled(&self, done: &[Receipt]) -> Result<(), KeepError> {
        self.change_wanted(|path, text| {
            let mut left = parse(text);
            left.retain(|receipt| !done.contains(receipt));
            write(path, &fair(left))
        })
    }

    /// Several consoles may share the directory.
    fn change_wanted(
        &self,
        change: impl FnOnce(&Path, &str) -> io::Result<()>,
    ) -> Result<(), KeepError> {
        let Some(directory) = self.directory() else { return Ok(()) };
        let directory = directory.join(RECEIPTS);
        let path = directory.join(WANTED);
        let failed = |error: io::Error| KeepError::new(&path, error);
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(LOCK))
            .map_err(failed)?;
        lock.lock().map_err(failed)?;
        if is_too_large(&path) {
            let aside = directory.join(ASIDE);
            fs::rename(&path, &aside).map_err(failed)?;
            warn!(path = %aside.display(), "the list of wanted receipts was damaged: put aside");
        }
        let text = read_all(&path, MAX_BYTES)?;
        change(&path, &text).map_err(failed)
    }
}

/// As many as may wait: no peer takes the place of another that fewer are wanted of.
fn fair(all: Vec<Receipt>) -> Vec<Receipt> {
    let peers = |receipt: &Receipt| (receipt.statement.console, receipt.statement.agent);
    let mut counts = BTreeMap::new();
    for receipt in &all {
        *counts.entry(peers(receipt)).or_insert(0_usize) += 1;
    }
    let mut surplus = BTreeMap::new();
    for _ in MAX_WANTED..all.len() {
        if let Some((peer, count)) = counts.iter_mut().max_by_key(|(_, count)| **count) {
            *count = count.saturating_sub(1);
            *surplus.entry(*peer).or_insert(0_usize) += 1;
        }
    }
    let stays = |receipt: &Receipt| match surplus.get_mut(&peers(receipt)) {
        Some(left) if *left > 0 => {
            *left -= 1;
            false
        }
        _ => true,
    };
    all.into_iter().filter(stays).collect()
}

fn write(path: &Path, receipts: &[Receipt]) -> io::Result<()> {
    let lines: Vec<String> = receipts.iter().map(Receipt::to_line).collect();
    if !lines.is_empty() {
        return replace(path, lines_text(&lines).as_bytes(), false);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_too_large(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() > MAX_BYTES)
}

fn lines_text(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

fn parse(text: &str) -> Vec<Receipt> {
    text.lines().filter_map(|line| Receipt::parse(line.as_bytes()).ok()).collect()
}

/// Asks until cancelled.
pub(crate) async fn run(keeper: Arc<Keeper>, control: ControlLink, cancel: CancellationToken) {
    let _ = cancel.run_until_cancelled(ask_on(keeper, control)).await;
}

async fn ask_on(keeper: Arc<Keeper>, control: ControlLink) {
    let mut news = keeper.wanted.subscribe();
    let mut link = control.subscribe();
    let mut pause = FIRST_PAUSE;
    loop {
        if link.wait_for(Option::is_some).await.is_err() {
            return;
        }
        news.mark_unchanged();
        match ask(&keeper, &control).await {
            Ok(0) => {
                pause = FIRST_PAUSE;
                if news.changed().await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "counterparts of receipts are not asked for"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (2 * pause).min(LONGEST_PAUSE),
            changed = news.changed() => match changed {
                Ok(()) => pause = FIRST_PAUSE,
                Err(_) => return,
            },
        }
    }
}

/// Asks once for all that is waited for; how many are left.
async fn ask(keeper: &Arc<Keeper>, control: &ControlLink) -> Result<usize, KeepError> {
    let waiting = blocking(keeper, |keeper| keeper.waiting()).await?;
    let Some(peer) = control.peer().filter(|_| !waiting.is_empty()) else {
        return Ok(waiting.len());
    };
    let now = control.last().map_or(0, |(_, clock)| clock.now_ms());
    let is_old = |own: &Receipt| own.statement.time_ms.saturating_add(WANTED_FOR_MS) < now;
    let (mut done, asked): (Vec<_>, Vec<_>) = waiting.iter().cloned().partition(is_old);
    for part in asked.chunks(BATCH) {
        let name = |own: &Receipt| wire::ReceiptName {
            session_id: own.statement.session.to_vec().into(),
            channel: own.statement.channel,
        };
        let wanted = part.iter().map(name).collect();
        let question = Body::ReceiptRequest(wire::ReceiptRequest { wanted });
        let told = match peer.request(question, ANSWER).await {
            Ok(Body::Receipts(told)) => told,
            Ok(_) => break,
            Err(error) => {
                debug!(%error, "no answer about receipts");
                break;
            }
        };
        for line in told.lines.iter().take(BATCH) {
            if let Some(own) = take(keeper, part, line).await {
                done.push(own);
            }
        }
    }
    let left = waiting.len().saturating_sub(done.len());
    if !done.is_empty() || waiting.len() > MAX_WANTED {
        blocking(keeper, move |keeper| keeper.settled(&done)).await?;
    }
    Ok(left)
}

/// Keeps a counterpart; gives the own receipt that it was waited for with.
async fn take(keeper: &Arc<Keeper>, waiting: &[Receipt], line: &[u8]) -> Option<Receipt> {
    let told = Receipt::parse(line).ok()?;
    let of = |own: &&Receipt| {
        let (own, told) = (&own.statement, &told.statement);
        (own.session, own.channel) == (told.session, told.channel) && told.close.is_some()
    };
    let own = waiting.iter().find(of)?;
    let same = match own.statement.role {
        Role::Console => compare(own, &told),
        Role::Agent => compare(&told, own),
    };
    match same {
        Ok(()) => {}
        // Both are evidence.
        Err(why @ Mismatch::Offsets) => error!(%why, "the other end tells another story"),
        Err(why) => {
            let why = why.to_string();
            let line = told.to_line();
            if keeper.alert(json!({"code": "receipt_refused", "message": why, "receipt": line})) {
                error!(why, "a receipt from the mediator is not the other end's");
            }
            return None;
        }
    }
    keeper.receipt(told.to_line()).await.ok().filter(|durable| *durable)?;
    Some(own.clone())
}

async fn blocking<T: Send + 'static>(
    keeper: &Arc<Keeper>,
    work: impl FnOnce(&Keeper) -> Result<T, KeepError> + Send + 'static,
) -> Result<T, KeepError> {
    let keeper = keeper.clone();
    match tokio::task::spawn_blocking(move || work(&keeper)).await {
        Ok(done) => done,
        Err(error) => Err(KeepError::new(Path::new(WANTED), error)),
    }
}

/// Notes them beside the session's own work.
pub(crate) async fn want(keeper: &Arc<Keeper>, lines: Vec<String>) {
    if let Err(error) = blocking(keeper, move |keeper| keeper.want(&lines)).await {
        warn!(%error, "receipts that did not come are not asked for");
    }
}

/// Waits a moment for what is still to come.
pub(crate) async fn flush(keeper: &Arc<Keeper>) {
    let come = async {
        while blocking(keeper, |keeper| keeper.waiting()).await.is_ok_and(|left| !left.is_empty()) {
            tokio::time::sleep(LOOK).await;
        }
    };
    // The next program to run here goes on.
    let _ = tokio::time::timeout(FLUSH, come).await;
}

#[cfg(test)]
mod tests {
    use adit_ledger::{
        Hash,
        receipt::{Close, Statement},
    };
    use adit_protocol::keys::SigningKey;

    use super::*;

    struct Ends {
        console: SigningKey,
        agent: SigningKey,
    }

    impl Ends {
        fn close(&self, role: Role, channel: u64, handshake: &[u8]) -> Receipt {
            let close = Close {
                sent: 5,
                acknowledged: 5,
                delivered: 5,
                complete: true,
                reason: "closed".into(),
            };
            let statement = Statement {
                role,
                session: [7; 16],
                grant_hash: Hash::of(b"grant"),
                handshake_hash: Hash::of(handshake),
                console: self.console.public().fingerprint(),
                agent: self.agent.public().fingerprint(),
                redirector: "tcp".into(),
                target: "127.0.0.1:22".into(),
                channel,
                time_ms: 1,
                close: Some(close),
            };
            let key = if role == Role::Console { &self.console } else { &self.agent };
            Receipt::sign(key, statement)
        }
    }

    /// A console wants three counterparts; of what it is given only the right one counts.
    #[tokio::test]
    async fn only_the_other_ends_own_receipt_settles_what_is_wanted() {
        let temporary = tempfile::tempdir().unwrap();
        let (keeper, run) = Keeper::start(Some(temporary.path().join("d"))).unwrap();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(run);
        let key = || SigningKey::generate().unwrap();
        let ends = Ends { console: key(), agent: key() };
        let own: Vec<_> = (2..5).map(|n| ends.close(Role::Console, n, b"h")).collect();
        keeper.want(&own.iter().map(Receipt::to_line).collect::<Vec<_>>()).unwrap();
        let waiting = keeper.waiting().unwrap();
        assert_eq!(waiting, own);
        let evil = Ends { console: key(), agent: key() };
        for wrong in [
            ends.close(Role::Console, 2, b"h"),
            ends.close(Role::Agent, 2, b"other"),
            ends.close(Role::Agent, 9, b"h"),
            evil.close(Role::Agent, 2, b"h"),
        ] {
            let line = wrong.to_line();
            assert_eq!(take(&keeper, &waiting, line.as_bytes()).await, None, "{line}");
        }
        let right = ends.close(Role::Agent, 3, b"h").to_line();
        let settled = take(&keeper, &waiting, right.as_bytes()).await.unwrap();
        assert_eq!(settled, own[1]);
        keeper.settled(&[settled]).unwrap();
        assert_eq!(keeper.waiting().unwrap(), [own[0].clone(), own[2].clone()]);
        let mut kept = Vec::new();
        crate::export_receipts(&temporary.path().join("d"), |line| {
            kept.push(line.to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(kept, [right]);
        keeper.settled(&[own[0].clone(), own[2].clone()]).unwrap();
        assert_eq!(keeper.waiting().unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_wanted_is_bounded_and_no_peer_takes_anothers_place() {
        let temporary = tempfile::tempdir().unwrap();
        let (keeper, _) = Keeper::start(Some(temporary.path().join("d"))).unwrap();
        let key = || SigningKey::generate().unwrap();
        let ends = Ends { console: key(), agent: key() };
        let flood = Ends { console: key(), agent: key() };
        let count = MAX_WANTED as u64;
        let lines = |ends: &Ends, from, to| -> Vec<String> {
            (from..to).map(|n| ends.close(Role::Console, n, b"h").to_line()).collect()
        };
        let quiet = lines(&ends, 0, 3);
        keeper.want(&quiet).unwrap();
        // Nothing is ever settled meanwhile.
        for round in 0..4 {
            let from = round * count;
            keeper.want(&lines(&flood, from, from + count + 20)).unwrap();
            let waiting: Vec<_> = keeper.waiting().unwrap().iter().map(Receipt::to_line).collect();
            assert_eq!(waiting.len(), MAX_WANTED);
            assert_eq!(waiting[..3], quiet, "the others' are given up");
            let last = lines(&flood, from + 23, from + count + 20);
            assert_eq!(waiting[3..], last, "not the latest");
        }
        keeper.settled(&[]).unwrap();
        assert_eq!(keeper.waiting().unwrap().len(), MAX_WANTED);
    }

    #[tokio::test]
    async fn a_list_that_grew_beyond_measure_is_put_aside() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("d");
        let (keeper, _) = Keeper::start(Some(directory.clone())).unwrap();
        let ends = Ends {
            console: SigningKey::generate().unwrap(),
            agent: SigningKey::generate().unwrap(),
        };
        let own = ends.close(Role::Console, 1, b"h");
        let list = directory.join(RECEIPTS).join(WANTED);
        let grow = || File::create(&list).unwrap().set_len(MAX_BYTES + 1).unwrap();
        grow();
        assert_eq!(keeper.waiting().unwrap(), []);
        grow();
        keeper.want(&[own.to_line()]).unwrap();
        assert_eq!(keeper.waiting().unwrap(), [own]);
        let aside = fs::metadata(directory.join(RECEIPTS).join(ASIDE)).unwrap();
        assert_eq!(aside.len(), MAX_BYTES + 1);
    }
}
