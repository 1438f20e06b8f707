//! Threads that compare passwords with their hashes, without standing in anybody's way.
//!
//! Of one kind are those that take what others leave of the processors: whatever else wants to
//! run does so at once in their place, and between two passwords they rest as long as the last
//! one took. So a flood of logins costs others next to nothing, however long it lasts. But on a
//! machine whose processors are busy such a thread gets nothing. That is what the other kind is
//! for, a single thread like any other: what is no flood goes to it at once, and whatever has
//! not been compared within [`STARVED`].
//!
//! Must never be handed more than there are turns for ([`super::turns`]); a turn goes with its
//! password until that is compared, though whoever asked may be gone by then. Each thread keeps
//! the memory that a comparison takes: 19 MiB taken anew each time are thousands of page faults,
//! which hold up the threads beside it.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::turns::Turn;
use crate::{
    bucket::{Bucket, Rate},
    password::{self, Memory},
};

/// A comparison that has not been made by then was given no processor: ten times what it takes.
const STARVED: Duration = Duration::from_millis(500);
/// Longest rest between two passwords.
const MAX_REST: Duration = Duration::from_millis(100);
/// What is no flood: so many at once, and one more in each of these times.
const STRANGERS: Rate = Rate { burst: 8, each: Duration::from_secs(4) };
const KNOWN: Rate = Rate { burst: 32, each: Duration::from_millis(250) };

/// What is compared.
struct Pair {
    password: Zeroizing<String>,
    hash: String,
}

/// A comparison to make.
struct Job {
    number: u64,
    pair: Arc<Pair>,
    told: oneshot::Sender<bool>,
    _turn: Turn,
    /// Is it for the threads that take what others leave? Not once one has it.
    behind: bool,
    /// From when on it is for the thread that is like any other; `None` once that has it.
    due: Option<Instant>,
    begun: bool,
}

impl Job {
    /// From when on a thread of this kind, which rests until then, may take it.
    fn from(&self, kind: Kind, rested: Instant) -> Option<Instant> {
        match kind {
            Kind::Behind => self.behind.then_some(rested),
            Kind::Plain => self.due,
        }
    }

    fn take(&mut self, kind: Kind) -> Next {
        match kind {
            Kind::Behind => self.behind = false,
            Kind::Plain => self.due = None,
        }
        self.begun = true;
        Next::Job(self.number, Arc::clone(&self.pair))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Takes what others leave.
    Behind,
    /// Like any other thread.
    Plain,
}

#[derive(Default)]
struct State {
    next: u64,
    jobs: Vec<Job>,
    over: bool,
    strangers: Bucket,
    of_before: Bucket,
}

struct Desk {
    state: Mutex<State>,
    changed: Condvar,
    opened: Instant,
}

/// Hands passwords to the threads, which end with it.
pub(super) struct Hashing(Arc<Desk>);

impl Hashing {
    /// With so many threads that take what others leave; `None` if the system gives none.
    pub(super) fn start(behind: usize) -> Option<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let hashing = Self(Arc::new(Desk { state, changed, opened: Instant::now() }));
        for kind in std::iter::repeat_n(Kind::Behind, behind).chain([Kind::Plain]) {
            let desk = Arc::clone(&hashing.0);
            let thread = std::thread::Builder::new().name("passwords".to_owned());
            thread.spawn(move || desk.serve(kind)).ok()?;
        }
        Some(hashing)
    }

    /// Is it the right password? `None`: nobody can tell. `known`: from where its user logged in
    /// before.
    pub(super) async fn verify(
        &self,
        password: Zeroizing<String>,
        hash: String,
        (turn, known): (Turn, bool),
    ) -> Option<bool> {
        let (told, answer) = oneshot::channel();
        let pair = Arc::new(Pair { password, hash });
        self.0.put(pair, told, (turn, known), Instant::now());
        answer.await.ok()
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(
        &self,
        pair: Arc<Pair>,
        told: oneshot::Sender<bool>,
        (turn, known): (Turn, bool),
        now: Instant,
    ) {
        let mut state = self.lock();
        let since = now.saturating_duration_since(self.opened);
        let room = match known {
            true => state.of_before.take(KNOWN, since),
            false => state.strangers.take(STRANGERS, since),
        };
        let at_once = room.is_ok();
        let due = Some(if at_once { now } else { now + STARVED });
        let number = state.next;
        state.next += 1;
        let behind = !at_once;
        state.jobs.push(Job { number, pair, told, _turn: turn, behind, due, begun: false });
        drop(state);
        self.changed.notify_all();
    }

    fn serve(&self, kind: Kind) {
        if kind == Kind::Behind {
            step_back();
        }
        let mut memory = Memory::default();
        let mut rested = Instant::now();
        loop {
            let patience = memory.patience();
            match self.next(kind, rested, patience) {
                Next::Over => return,
                Next::Nothing => memory.fade(),
                Next::Job(number, pair) => {
                    let begun = Instant::now();
                    let right = password::verify_in(&mut memory, &pair.password, &pair.hash);
                    self.done(number, right);
                    rested = Instant::now() + begun.elapsed().min(MAX_REST);
                }
            }
        }
    }

    /// The next password for a thread of this kind, or nothing within its patience.
    fn next(&self, kind: Kind, rested: Instant, patience: Option<Duration>) -> Next {
        let begun = Instant::now();
        let mut state = self.lock();
        loop {
            if state.over {
                return Next::Over;
            }
            let now = Instant::now();
            // Whoever asked may have gone before anybody began.
            state.jobs.retain(|job| job.begun || !job.told.is_closed());
            let open = state.jobs.iter_mut();
            let first = open
                .filter_map(|job| Some((job.from(kind, rested)?, job)))
                .min_by_key(|(from, job)| (*from, job.number));
            let from = first.as_ref().map(|(from, _)| *from);
            if let Some((from, job)) = first
                && from <= now
            {
                return job.take(kind);
            }
            let spent = begun.elapsed();
            let until_nothing = patience.map(|patience| patience.saturating_sub(spent));
            if until_nothing.is_some_and(|left| left.is_zero()) {
                return Next::Nothing;
            }
            let until_due = from.map(|from| from.saturating_duration_since(now));
            state = match [until_nothing, until_due].into_iter().flatten().min() {
                Some(time) => {
                    let waited = self.changed.wait_timeout(state, time);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Tells whoever waits, unless another thread was faster.
    fn done(&self, number: u64, right: bool) {
        let mut state = self.lock();
        let place = state.jobs.iter().position(|job| job.number == number);
        let job = place.map(|place| state.jobs.swap_remove(place));
        drop(state);
        if let Some(job) = job {
            // Whoever asked may have gone.
            let _ = job.told.send(right);
        }
    }
}

enum Next {
    Job(u64, Arc<Pair>),
    Nothing,
    Over,
}

/// From now on whatever else wants to run goes first (sched(7): `SCHED_IDLE`): unlike with the
/// worst of nice values, it need not even wait for the end of a slice of time.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no library of ours has this system call")]
fn step_back() {
    // SAFETY: all zeros is what this policy takes as its parameter, a structure of integers.
    let parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: of the calling thread alone; the parameter is read and outlives the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameter) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "passwords are compared at the priority of everything else");
    }
}

#[cfg(not(target_os = "linux"))]
fn step_back() {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::{
        half_open::Source,
        logins::turns::{Asker, Turns},
    };

    async fn ask(hashing: &Hashing, turns: &Turns, hash: &str, word: &str) -> Option<bool> {
        let turn = turns.wait(Asker::Stranger(Source::of([192, 0, 2, 1].into()))).await.unwrap();
        hashing.verify(Zeroizing::new(word.to_owned()), hash.to_owned(), (turn, false)).await
    }

    #[tokio::test]
    async fn passwords_are_told_apart_whoever_compares_them() {
        let (hashing, turns) = (Hashing::start(2).unwrap(), Turns::new(2));
        let hash = password::hash("horse battery staple").unwrap();
        let all = ["horse battery staple", "another"].repeat(STRANGERS.burst as usize);
        for pair in all.chunks(2) {
            let ask = |word| ask(&hashing, &turns, &hash, word);
            assert_eq!(tokio::join!(ask(pair[0]), ask(pair[1])), (Some(true), Some(false)));
        }
    }

    /// A machine whose processors are busy with something else: then it takes longer, and not
    /// until that has ended.
    #[tokio::test]
    async fn a_password_for_which_no_processor_was_left_is_compared_all_the_same() {
        let (starved, turns) = (Hashing::start(0).unwrap(), Turns::new(1));
        let hash = password::hash("horse battery staple").unwrap();
        let begun = Instant::now();
        for _ in 0..STRANGERS.burst + 2 {
            let right = ask(&starved, &turns, &hash, "horse battery staple").await;
            assert_eq!(right, Some(true));
        }
        assert!(begun.elapsed() > STARVED, "no allowance bounds the thread that is like any other");
    }

    #[tokio::test]
    async fn who_goes_before_anybody_began_leaves_the_turn_to_others() {
        let (starved, turns) = (Hashing::start(0).unwrap(), Turns::new(1));
        let hash = password::hash("horse battery staple").unwrap();
        // For minutes, however slow this machine is, nothing goes at once.
        for _ in 0..8 {
            let since = starved.0.opened.elapsed();
            starved.0.lock().strangers.owe(STRANGERS, STRANGERS.burst, since);
        }
        let gone = tokio::time::timeout(STARVED / 10, ask(&starved, &turns, &hash, "b")).await;
        assert!(gone.is_err());
        assert_eq!(ask(&starved, &turns, &hash, "c").await, Some(false));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_that_step_back_are_of_the_idle_class() {
        std::thread::spawn(|| {
            step_back();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // The 41st field (proc(5)), counted after the name in parentheses: SCHED_IDLE is 5.
            let policy = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(38).unwrap();
            assert_eq!(policy, "5");
        })
        .join()
        .unwrap();
    }
}
