//! Drives the pairing machine: keeps the connections it speaks of, and does what it says.
//!
//! One lock around the machine, held for moments and never across a wait. Must never decide
//! anything itself.

use std::{
    collections::HashMap,
    future::poll_fn,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use adit_protocol::{code::JoinStatus, ids::SessionId, limits::TICKET_LIFE};
use adit_runtime::supervise::Tasks;
use tokio::{io::ReadBuf, sync::Notify};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    core::{
        pairing::{ConnId, Counts, Event, Join, Limits, PairId, Pairing, Reason},
        replay::Replay,
        usage::{Statement, Usage},
    },
    join::JoinError,
    metrics::Metrics,
    splice::{Engine, Leg, Meter, Outcome, run},
};

/// Sleep of the timer task when nothing is due.
const FAR: Duration = Duration::from_secs(3600);

struct LivePair {
    session: SessionId,
    meter: Arc<Meter>,
    /// As last counted in the metrics.
    counted: (u64, u64),
    cut: CancellationToken,
    reason: Option<Reason>,
}

struct State {
    machine: Pairing,
    replay: Replay,
    usage: Usage,
    /// Told to their tasks: stop.
    unjoined: HashMap<ConnId, CancellationToken>,
    /// Joined and waiting; nobody reads them.
    waiting: HashMap<ConnId, Leg>,
    /// Agents that were given a copy of the first bytes of a waiting console: whose, and how many.
    ahead: HashMap<ConnId, (ConnId, usize)>,
    pairs: HashMap<PairId, LivePair>,
    /// When the timer task wakes.
    armed: Option<Instant>,
}

/// The relay's connections.
pub struct Hub {
    state: Mutex<State>,
    timer: Notify,
    changed: Notify,
    /// Somebody joined and waits.
    arrived: Notify,
    engine: Engine,
    tasks: Tasks,
    metrics: Metrics,
}

impl Hub {
    /// Without connections; pairs run in `tasks` and are cut when it stops.
    pub fn new(limits: Limits, engine: Engine, tasks: Tasks, metrics: Metrics) -> Arc<Self> {
        let state = State {
            machine: Pairing::new(limits),
            replay: Replay::new(TICKET_LIFE),
            usage: Usage::default(),
            unjoined: HashMap::new(),
            waiting: HashMap::new(),
            ahead: HashMap::new(),
            pairs: HashMap::new(),
            armed: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            timer: Notify::new(),
            changed: Notify::new(),
            arrived: Notify::new(),
            engine,
            tasks,
            metrics,
        })
    }

    /// A connection was accepted. The token tells when it must go.
    pub fn handle_connected(self: &Arc<Self>, source: IpAddr) -> Unjoined {
        let stop = CancellationToken::new();
        let conn = self.with(|state, now| {
            let conn = state.machine.handle_connected(source, now);
            state.unjoined.insert(conn, stop.clone());
            conn
        });
        Unjoined { hub: Arc::clone(self), conn, stop }
    }

    /// Was this message 1 seen before?
    pub fn is_replay(&self, hash: &[u8; 32]) -> bool {
        self.lock().replay.contains(hash)
    }

    /// A good ticket was shown; `hash` is of the message that carried it.
    pub fn handle_ticket(
        self: &Arc<Self>,
        conn: ConnId,
        join: Join,
        hash: [u8; 32],
    ) -> Result<JoinStatus, JoinError> {
        self.with(|state, now| {
            if !state.replay.insert(hash, now) {
                return Err(JoinError::Replay);
            }
            Ok(state.machine.handle_ticket(conn, join))
        })
    }

    fn handle_confirmed(self: &Arc<Self>, conn: ConnId, leg: Leg) {
        self.with(|state, now| {
            state.unjoined.remove(&conn);
            state.waiting.insert(conn, leg);
            if !state.machine.handle_confirmed(conn, now) {
                state.waiting.remove(&conn);
            }
        });
        self.arrived.notify_waiters();
    }

    /// Waits for the first bytes of the console that an agent is about to be paired with, and
    /// copies them. They stay where they are: only if this agent confirms its join are they
    /// taken off the console's connection.
    pub async fn look_ahead(&self, agent: ConnId, join: &Join, buffer: &mut [u8]) -> usize {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let look = poll_fn(|cx| self.poll_ahead(agent, join, buffer, cx));
            if let Some(n) = look.await {
                return n;
            }
            arrived.await;
        }
    }

    /// `None`: no console waits, or one that cannot be looked at.
    fn poll_ahead(
        &self,
        agent: ConnId,
        join: &Join,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Option<usize>> {
        let mut state = self.lock();
        let console = state.machine.waiting_for(join);
        let leg = console.and_then(|console| Some((console, state.waiting.get(&console)?)));
        let Some((console, Leg::Raw(socket))) = leg else { return Poll::Ready(None) };
        let mut peeked = ReadBuf::new(buffer);
        match socket.poll_peek(cx, &mut peeked) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(n)) if n > 0 => {
                state.ahead.insert(agent, (console, n));
                Poll::Ready(Some(n))
            }
            // Its end or failure is found when it is paired.
            Poll::Ready(_) => Poll::Ready(None),
        }
    }

    /// The mediator ended a session.
    pub fn handle_cut(self: &Arc<Self>, session: SessionId) {
        info!(%session, "session cut by the mediator");
        self.with(|state, now| state.machine.handle_cut(session, now));
    }

    /// No new joins from now on.
    pub fn handle_drain(self: &Arc<Self>) {
        self.with(|state, _| state.machine.handle_drain());
    }

    /// New joins are taken again.
    pub fn handle_resume(self: &Arc<Self>) {
        self.with(|state, _| state.machine.handle_resume());
    }

    /// New limits.
    pub fn handle_limits(self: &Arc<Self>, limits: Limits) {
        self.with(|state, now| state.machine.handle_limits(limits, now));
    }

    /// Reads the meters of all pairs.
    pub fn collect(self: &Arc<Self>) {
        self.with(|state, now| {
            let mut live: HashMap<SessionId, (u64, u64)> = HashMap::new();
            for (id, pair) in &mut state.pairs {
                let (up, down) = pair.meter.read();
                state.machine.handle_progress(*id, up.wrapping_add(down), now);
                self.metrics.moved(up - pair.counted.0, down - pair.counted.1);
                pair.counted = (up, down);
                let sum = live.entry(pair.session).or_default();
                *sum = (sum.0 + up, sum.1 + down);
            }
            for (session, (up, down)) in live {
                state.usage.handle_live(session, up, down);
            }
        });
    }

    /// What the mediator does not know yet.
    pub fn poll_report(&self) -> Vec<Statement> {
        self.lock().usage.poll_report()
    }

    /// The mediator has these.
    pub fn handle_acknowledged(&self, statements: &[Statement]) {
        self.lock().usage.handle_acknowledged(statements);
    }

    /// The mediator may have forgotten what it was told.
    pub fn handle_reconnected(&self) {
        self.lock().usage.handle_reconnected();
    }

    /// Sizes of the tables.
    pub fn counts(&self) -> Counts {
        self.lock().machine.counts()
    }

    /// Are new joins refused?
    pub fn is_draining(&self) -> bool {
        self.lock().machine.is_draining()
    }

    /// Pipes in existence, and those of them that no pair uses.
    #[cfg(target_os = "linux")]
    pub fn pipes(&self) -> (usize, usize) {
        self.engine.pipes.counts()
    }

    /// Waits until no pair is left.
    pub async fn emptied(&self) {
        loop {
            let changed = self.changed.notified();
            if self.counts().pairs == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Lets time pass for the machine, until dropped.
    pub async fn keep_time(self: &Arc<Self>) {
        loop {
            let next = self.with(|state, now| {
                state.machine.handle_timeout(now);
                state.armed = state.machine.poll_timeout();
                state.armed.unwrap_or(now + FAR)
            });
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.timer.notified() => {}
            }
        }
    }

    /// Changes the state, then does what the machine says.
    fn with<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state, Instant::now());
        let before = state.machine.counts().pairs;
        while let Some(event) = state.machine.poll_event() {
            self.apply(&mut state, event);
        }
        let counts = state.machine.counts();
        let next = state.machine.poll_timeout();
        let earlier = next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed));
        drop(state);
        self.metrics.set_counts(counts);
        if earlier {
            self.timer.notify_one();
        }
        if counts.pairs != before || counts.pairs == 0 {
            self.changed.notify_waiters();
        }
        result
    }

    fn apply(self: &Arc<Self>, state: &mut State, event: Event) {
        match event {
            Event::Close { conn, reason } => {
                debug!(?conn, ?reason, "connection closed");
                state.ahead.remove(&conn);
                if let Some(stop) = state.unjoined.remove(&conn) {
                    self.metrics.join_ended(name(reason));
                    stop.cancel();
                } else if state.waiting.remove(&conn).is_some() {
                    self.metrics.join_ended(name(reason));
                }
            }
            Event::Cut { pair, reason } => {
                if let Some(pair) = state.pairs.get_mut(&pair) {
                    pair.reason = Some(reason);
                    pair.cut.cancel();
                }
            }
            Event::Paired { pair, session, console, agent } => {
                let ahead = state.ahead.remove(&agent);
                let legs = (state.waiting.remove(&console), state.waiting.remove(&agent));
                // Bytes of a console that was replaced since do not fit to what this one says.
                let fits = ahead.is_none_or(|(whose, _)| whose == console);
                let (Some(console), Some(agent), true) = (legs.0, legs.1, fits) else {
                    state.machine.handle_pair_ended(pair);
                    return;
                };
                let ahead = ahead.map_or(0, |(_, n)| n);
                self.metrics.join_ended("paired");
                state.usage.handle_pair_begun(session, Instant::now());
                let cut = self.tasks.token().child_token();
                let meter = Arc::new(Meter::default());
                let live = LivePair {
                    session,
                    meter: Arc::clone(&meter),
                    counted: (0, 0),
                    cut: cut.clone(),
                    reason: None,
                };
                state.pairs.insert(pair, live);
                info!(%session, pair = pair.0, "paired");
                let end = PairEnd { hub: Arc::clone(self), pair, outcome: None };
                self.tasks.spawn("pair", async move {
                    let outcome = run((console, ahead), agent, &end.hub.engine, &meter, &cut).await;
                    end.with(outcome);
                });
            }
        }
    }

    fn handle_pair_ended(self: &Arc<Self>, id: PairId, outcome: Option<&Outcome>) {
        self.with(|state, now| {
            state.machine.handle_pair_ended(id);
            let Some(pair) = state.pairs.remove(&id) else { return };
            let (up, down) = pair.meter.read();
            self.metrics.moved(up - pair.counted.0, down - pair.counted.1);
            let reason = match outcome {
                Some(Outcome::Clean) => "closed",
                Some(Outcome::Broken(_)) => "reset",
                Some(Outcome::Cut) => pair.reason.map_or("stopped", name),
                None => "fault",
            };
            self.metrics.pair_ended(reason);
            state.usage.handle_pair_ended(pair.session, up, down, now);
            let lost = state.usage.given_up() - self.metrics.lost_reports.get();
            self.metrics.lost_reports.inc_by(lost);
            let session = pair.session;
            info!(%session, pair = id.0, reason, bytes_up = up, bytes_down = down, "pair ended");
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The machine has no half-done states between calls that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hub({:?})", self.counts())
    }
}

/// A connection on its way to a join; dropping it reports that it is gone.
#[derive(Debug)]
pub struct Unjoined {
    hub: Arc<Hub>,
    /// Its id.
    pub conn: ConnId,
    /// Cancelled when it must go.
    pub stop: CancellationToken,
}

impl Unjoined {
    /// It joined.
    pub fn joined(self, leg: Leg) {
        self.hub.handle_confirmed(self.conn, leg);
    }

    /// It did not.
    pub fn failed(self, error: &JoinError) {
        self.hub.metrics.join_ended(error.kind());
    }
}

impl Drop for Unjoined {
    fn drop(&mut self) {
        self.hub.with(|state, _| {
            // What was looked at for it is of no use to anybody else.
            if state.unjoined.contains_key(&self.conn) {
                state.ahead.remove(&self.conn);
            }
            // After a join or an eviction there is nothing left to report.
            if state.unjoined.remove(&self.conn).is_some() {
                state.machine.handle_closed(self.conn);
            }
        });
    }
}

/// Reports a pair's end even if its task panics.
struct PairEnd {
    hub: Arc<Hub>,
    pair: PairId,
    outcome: Option<Outcome>,
}

impl PairEnd {
    fn with(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for PairEnd {
    fn drop(&mut self) {
        let outcome = self.outcome.take();
        self.hub.handle_pair_ended(self.pair, outcome.as_ref());
    }
}

fn name(reason: Reason) -> &'static str {
    match reason {
        Reason::Unjoined => "unjoined",
        Reason::Evicted => "evicted",
        Reason::Unpaired => "unpaired",
        Reason::Replaced => "replaced",
        Reason::Cut => "cut",
        Reason::Idle => "idle",
        Reason::Lifetime => "lifetime",
        Reason::Full => "full",
    }
}
