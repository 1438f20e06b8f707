//! What a console learns by the way, so that its first session with a computer begins as early as
//! any other: which computers there are (`state::book`) and which relays.
//!
//! At `login` and `computers`, and quietly while a session runs. Bounded in time and number; must
//! never fail a command, hold up a session, or decide anything.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use adit_control::Peer;
use adit_protocol::{
    ids::ComputerId,
    keys::Fingerprint,
    wire::{self, frame::Body},
};
use adit_runtime::{cli::CliError, datadir::DataDir, time::unix_ms};

use crate::{
    config::Context,
    link::{Caller, Online, ask, list_request},
    session::RELAY_CACHE,
    state::{
        KnownComputer,
        book::{self, Book, Owner},
    },
};

/// What `login` takes longer at most.
const LOGIN_TIME: Duration = Duration::from_secs(2);
/// Of that for measuring relays.
const MEASURE_TIME: Duration = Duration::from_millis(700);
/// Where there are more computers than a page: pages of those that are online, at `login`.
const LOGIN_PAGES: usize = 5;
/// The same while a session runs, with this pause between them.
const QUIET_PAGES: usize = 20;
const QUIET_PAUSE: Duration = Duration::from_millis(500);
/// A session's beginning is left alone for so long.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// A list that is younger is good enough.
const FRESH: Duration = Duration::from_secs(15 * 60);

/// After a login: asks on a connection of its own.
pub async fn at_login(context: &Context) {
    let Ok(caller) = Caller::load(context) else { return };
    let mut learnt = Learnt::default();
    let learning = async {
        let first = list_request("", "", false, "");
        let mut online = caller.connect(vec![first]).await.ok()?;
        let first = online.first_reply();
        learnt.root = Some(online.root.fingerprint());
        let relays = relays(context, &caller, &online, MEASURE_TIME);
        let computers = learnt.ask(&online.peer, first, (LOGIN_PAGES, Duration::ZERO));
        tokio::join!(relays, computers);
        Some(())
    };
    if tokio::time::timeout(LOGIN_TIME, learning).await.is_err() {
        tracing::debug!("not all of the computers were listed in time");
    }
    learnt.keep(&context.directory, Owner::of(&caller.account)).await;
}

/// After a list that somebody asked for. `complete`: all computers.
pub async fn at_list(
    context: &Context,
    caller: &Caller,
    online: &Online,
    computers: Vec<KnownComputer>,
    complete: bool,
) {
    relays(context, caller, online, Duration::ZERO).await;
    let mut computers = computers;
    // If not all find room: only those that are online can be opened.
    computers.sort_by_key(|computer| !computer.online);
    let root = Some(online.root.fingerprint());
    let learnt = Learnt { computers, complete, root, ..Learnt::default() };
    learnt.keep(&context.directory, Owner::of(&caller.account)).await;
}

/// Before a computer is opened that was picked from a list.
pub async fn at_pick(directory: &DataDir, owner: &Owner, computer: KnownComputer) {
    let (directory, owner) = (directory.clone(), owner.clone());
    let work = move || book::update(&directory, &owner, |book| book.noted(&computer));
    let _ = tokio::task::spawn_blocking(work).await;
}

/// While a session runs: a list that has grown old is asked for again, without haste.
pub async fn quietly(directory: DataDir, owner: Owner, root: Fingerprint, peer: Peer) {
    tokio::time::sleep(QUIET_AFTER).await;
    let (place, whose) = (directory.clone(), owner.clone());
    let book = tokio::task::spawn_blocking(move || Book::load(&place, &whose)).await;
    let listed_ms = book.map_or(0, |book| book.listed_ms);
    // A clock that was set back makes it old.
    let age = unix_ms().checked_sub(listed_ms).map(Duration::from_millis);
    if age.is_some_and(|age| age < FRESH) {
        return;
    }
    let mut learnt = Learnt { root: Some(root), ..Learnt::default() };
    let first = ask(&peer, list_request("", "", false, "")).await;
    learnt.ask(&peer, first, (QUIET_PAGES, QUIET_PAUSE)).await;
    learnt.keep(&directory, owner).await;
}

/// Keeps which relays there are, measured for this long at most.
async fn relays(context: &Context, caller: &Caller, online: &Online, time: Duration) {
    let file = context.directory.path().join(RELAY_CACHE);
    let of = caller.account.address();
    let dialer = Arc::new(caller.dialer());
    adit_endpoint::learn_relays((file, of), dialer, &online.relays, online.remote, time).await;
}

/// What a mediator told.
#[derive(Default)]
struct Learnt {
    computers: Vec<KnownComputer>,
    ids: BTreeSet<ComputerId>,
    /// There are no others.
    complete: bool,
    root: Option<Fingerprint>,
}

impl Learnt {
    /// From the answer to the first question on. What was told counts, whatever comes after.
    async fn ask(
        &mut self,
        peer: &Peer,
        first: Result<Body, CliError>,
        (pages, pause): (usize, Duration),
    ) {
        let Ok(Body::Computers(page)) = first else { return };
        self.complete = page.next.is_empty();
        self.take(page.computers);
        let mut after = String::new();
        // Of many, those that are online: the others cannot be opened now.
        for _ in 0..if self.complete { 0 } else { pages } {
            tokio::time::sleep(pause).await;
            let answer = ask(peer, list_request("", "", true, &after)).await;
            let Ok(Body::Computers(page)) = answer else { return };
            self.take(page.computers);
            if page.next.is_empty() || page.next == after {
                return;
            }
            after = page.next;
        }
    }

    fn take(&mut self, computers: Vec<wire::Computer>) {
        let usable = computers.into_iter().filter_map(KnownComputer::from_wire);
        let ids = &mut self.ids;
        self.computers.extend(usable.filter(|computer| ids.insert(computer.id)));
    }

    async fn keep(self, directory: &DataDir, owner: Owner) {
        // Nothing was told.
        let Some(root) = self.root else { return };
        if self.computers.is_empty() && !self.complete {
            return;
        }
        let directory = directory.clone();
        let work = move || {
            book::update(&directory, &owner, |book| {
                book.root = Some(root);
                book.listed(&self.computers, self.complete, unix_ms());
            });
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }
}
