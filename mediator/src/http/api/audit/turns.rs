//! Whose search runs next, and who may begin an export: few in all, few of each partner, few of
//! each asker.
//!
//! Every API key is an asker of its own, and a partner has as many as it likes: so a partner's
//! wait behind each other, and of each partner only one search stands in line with all others'.
//! Some places are only for partners that have none, so that a few cannot take all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio_util::task::TaskTracker;

use super::pieces::READER_DEADLINE;
use crate::http::{
    Problem,
    limit::{Begun, Full, UnderWay},
};

/// Exports at a time: of one asker, of one partner and in all.
const MAX_EXPORTS_EACH: usize = 2;
const MAX_EXPORTS_OF_PARTNER: usize = 3;
const MAX_EXPORTS: usize = 8;
/// Of those in all, only for partners that have none.
const EXPORTS_RESERVED: usize = 2;
/// Searches that run or wait, the same.
const MAX_SEARCHES_EACH: usize = 2;
const MAX_SEARCHES_OF_PARTNER: usize = 8;
const MAX_SEARCHES: usize = 64;
const SEARCHES_RESERVED: usize = 16;
/// So many run as there are processors to spare, and never on more than half of the reading
/// connections; one of a partner.
const MAX_SEARCHES_RUNNING: usize = 2;
/// How long a search waits for its partner's before it, and then for others'.
const SEARCH_WAIT: Duration = Duration::from_secs(5);

/// Who asks: the account's or key's id, and the partner's.
pub(super) type Asker<'a> = (&'a str, &'a str);
/// A place among those that are under way, until it is dropped.
pub(super) type Place = Begun<String, 2>;

/// What is under way of one kind, named in the plural.
struct Places {
    what: &'static str,
    under_way: Arc<UnderWay<String, 2>>,
    /// After how many seconds to try again.
    again_s: u64,
}

impl Places {
    /// One more; or the answer that says whose are too many.
    fn begin(&self, (account, partner): Asker<'_>) -> Result<Place, Problem> {
        let begun = self.under_way.begin([account, partner].map(str::to_owned));
        begun.map_err(|full| match full {
            Full::Of(0) => self.too_many("your"),
            Full::Of(_) => self.too_many("your partner's"),
            Full::InAll => self.full(),
        })
    }

    /// There are enough by the asker's own doing.
    fn too_many(&self, whose: &str) -> Problem {
        let detail = format!("{whose} other {} are under way; wait for their end", self.what);
        Problem { detail, ..Problem::rate_limited(self.again_s) }
    }

    /// Others have all there are.
    fn full(&self) -> Problem {
        let detail = format!("too many {} of others are under way; try again", self.what);
        Problem { detail, retry_after: Some(self.again_s), ..Problem::busy() }
    }
}

/// Searches under way: each may read thousands of rows.
pub(crate) struct Searches {
    places: Places,
    running: Semaphore,
    /// Whose turn it is within each partner that searches at the moment.
    turns: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A search that may run, until this is dropped.
pub(super) struct Searching<'a>(
    #[expect(dead_code, reason = "held")] Place,
    #[expect(dead_code, reason = "held")] OwnedSemaphorePermit,
    #[expect(dead_code, reason = "held")] SemaphorePermit<'a>,
);

impl Default for Searches {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new((processors / 2).clamp(1, MAX_SEARCHES_RUNNING))
    }
}

impl Searches {
    fn new(running: usize) -> Self {
        let most = [MAX_SEARCHES_EACH, MAX_SEARCHES_OF_PARTNER];
        let under_way = Arc::new(UnderWay::reserving(SEARCHES_RESERVED, MAX_SEARCHES, most));
        Self {
            places: Places { what: "searches", under_way, again_s: 1 },
            running: Semaphore::new(running),
            turns: Mutex::default(),
        }
    }

    /// Waits for those before it; or the answer that there is no room.
    pub(super) async fn begin(&self, asker: Asker<'_>) -> Result<Searching<'_>, Problem> {
        let place = self.places.begin(asker)?;
        let turn = self.turn_of(asker.1).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(SEARCH_WAIT, turn).await else {
            return Err(self.places.too_many("your partner's"));
        };
        // As long again: or the last of a long wait for its own would be told as others' doing.
        match tokio::time::timeout(SEARCH_WAIT, self.running.acquire()).await {
            Ok(Ok(running)) => Ok(Searching(place, turn, running)),
            _ => Err(self.places.full()),
        }
    }

    fn turn_of(&self, partner: &str) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(partner).and_then(Weak::upgrade) {
            return turn;
        }
        // What is left are at most as many as search at the moment.
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Semaphore::new(1));
        turns.insert(partner.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// Exports under way: each reads much, and lasts as long as its reader takes.
pub(crate) struct Exports {
    places: Places,
    tasks: TaskTracker,
}

impl Exports {
    /// Each is a task of this tracker.
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        let most = [MAX_EXPORTS_EACH, MAX_EXPORTS_OF_PARTNER];
        let under_way = Arc::new(UnderWay::reserving(EXPORTS_RESERVED, MAX_EXPORTS, most));
        let again_s = READER_DEADLINE.as_secs();
        Self { places: Places { what: "exports", under_way, again_s }, tasks }
    }

    /// A place for one more; or the answer that there is none.
    pub(super) fn begin(&self, asker: Asker<'_>) -> Result<Place, Problem> {
        self.places.begin(asker)
    }

    pub(in crate::http::api) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }
}

#[cfg(test)]
mod tests {
    use axum::{http::header, response::IntoResponse};
    use futures_util::FutureExt;

    use super::*;

    /// What the answer says: status, and after how many seconds to try again.
    fn told<T>(answer: Result<T, Problem>, says: &str) -> (u16, String) {
        let problem = answer.map(|_| ()).unwrap_err();
        assert!(problem.detail.contains(says), "{}", problem.detail);
        let response = problem.into_response();
        let after = response.headers()[header::RETRY_AFTER].to_str().unwrap().to_owned();
        (response.status().as_u16(), after)
    }

    #[tokio::test(start_paused = true)]
    async fn searches_are_few_in_all_and_for_each_asker_and_wait_their_turn() {
        let searches = Searches::new(1);
        let running = searches.begin(("a", "p")).await.unwrap();
        let mut second = std::pin::pin!(searches.begin(("a", "p")));
        assert!((&mut second).now_or_never().is_none(), "two run at a time");
        let third = searches.begin(("a", "p")).await;
        assert_eq!(told(third, "your other searches"), (429, "1".to_owned()));
        // Another partner's waits, first behind who came first; not without end.
        let mut other = std::pin::pin!(searches.begin(("b", "q")));
        assert!((&mut other).now_or_never().is_none());
        drop(running);
        let other = other.await.unwrap();
        // Its turn came within its partner, but not among all.
        assert_eq!(told(second.await, "of others"), (503, "1".to_owned()));
        let second = searches.begin(("b", "q")).await;
        assert_eq!(told(second, "your partner's other searches"), (429, "1".to_owned()));
        drop(other);
        searches.begin(("a", "p")).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_partner_that_searches_with_many_keys_waits_behind_itself() {
        let searches = Searches::new(2);
        let keys: Vec<_> = (0..=MAX_SEARCHES_OF_PARTNER).map(|n| n.to_string()).collect();
        let running = searches.begin((&keys[0], "p")).await.unwrap();
        let mut waiting: Vec<_> = keys[1..MAX_SEARCHES_OF_PARTNER]
            .iter()
            .map(|key| Box::pin(searches.begin((key, "p"))))
            .collect();
        for next in &mut waiting {
            assert!(next.now_or_never().is_none(), "a partner has all that run");
        }
        let over = searches.begin((&keys[MAX_SEARCHES_OF_PARTNER], "p")).await;
        assert_eq!(told(over, "your partner's other searches").0, 429);
        // Another partner's does not wait at all.
        let other = searches.begin(("x", "q")).now_or_never();
        drop(other.expect("it waits behind another partner's").unwrap());
        drop(running);
        drop(waiting.remove(0).await.unwrap());
        drop(waiting);
        drop(searches.begin(("x", "q")).await.unwrap());
        assert!(searches.turns.lock().unwrap().len() <= 2);
    }

    /// As many partners as it takes to fill all that are not reserved.
    #[tokio::test]
    async fn a_few_partners_with_many_keys_leave_places_to_those_that_have_none() {
        let searches = Searches::new(1).places;
        let exports = Exports::new(TaskTracker::new()).places;
        for (places, each, open) in [
            (searches, MAX_SEARCHES_OF_PARTNER, MAX_SEARCHES - SEARCHES_RESERVED),
            (exports, MAX_EXPORTS_OF_PARTNER, MAX_EXPORTS - EXPORTS_RESERVED),
        ] {
            let greedy: Vec<String> = (0..open.div_ceil(each)).map(|n| n.to_string()).collect();
            let mut held = Vec::new();
            for (key, partner) in (0..2 * each).flat_map(|key| greedy.iter().map(move |p| (key, p)))
            {
                held.extend(places.begin((&format!("{partner}/{key}"), partner)));
            }
            assert_eq!(held.len(), open, "{}", places.what);
            for other in ["x", "y"] {
                held.push(places.begin((other, other)).unwrap());
            }
            assert_eq!(told(places.begin(("other key", "x")), "of others").0, 503);
        }
    }

    #[tokio::test]
    async fn exports_are_few_in_all_of_each_partner_and_for_each_asker() {
        let exports = Exports::new(TaskTracker::new());
        let mut held: Vec<_> =
            ["a", "a", "b"].iter().map(|account| exports.begin((account, "p")).unwrap()).collect();
        assert_eq!(told(exports.begin(("a", "p")), "your other exports"), (429, "30".to_owned()));
        let with_another_key = exports.begin(("c", "p"));
        assert_eq!(told(with_another_key, "your partner's other exports").0, 429);
        // What was refused took no place.
        for n in held.len()..MAX_EXPORTS {
            let n = n.to_string();
            held.push(exports.begin((&n, &n)).unwrap());
        }
        assert_eq!(told(exports.begin(("x", "q")), "exports of others"), (503, "30".to_owned()));
        held.pop();
        exports.begin(("x", "q")).unwrap();
    }
}
