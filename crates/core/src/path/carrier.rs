//! One carrier: what is known of its health.

use std::time::{Duration, Instant};

use super::{
    Activity, CHECKS_GRACE, CarrierKind, DEAD_AFTER, HOLD_FIRST, HOLD_MAX, LATE_SLACK,
    ONE_WAY_FACTOR, OVERDUE_SLACK, PROBE_LEFT, SILENT_AFTER, SILENT_RTTS, TRUSTED_AFTER,
    V6_PREFERENCE,
};
use crate::punch::Family;

#[derive(Clone, Debug)]
pub(super) struct Carrier {
    pub(super) kind: CarrierKind,
    /// Smoothed: how long to wait for signs of life.
    rtt: Duration,
    least: Least,
    health: Health,
    /// Anything authenticated, checks included.
    last_sign: Instant,
    /// Anything but checks.
    last_received: Instant,
    /// Since when data wait for an acknowledgement, counted anew with each.
    outstanding: Option<Instant>,
    /// Since when checks go unanswered.
    checks_lost: Option<Instant>,
    /// The next probe: one for each acknowledgement that is late, regularly when silent.
    probe_at: Option<Instant>,
    /// When it was probed since it answered last.
    probed: Option<Instant>,
    /// Probes were answered since, but nothing more was acknowledged of what waits: its receiver
    /// does not read.
    unread: bool,
    /// When it acknowledged something last.
    acknowledged: Option<Instant>,
    /// How often it, or its predecessors, were left lately.
    pub(super) lapses: u32,
    /// A NAT is about to forget its path.
    pub(super) retiring: bool,
    /// Why it is used only where nothing better is, until it answers.
    doubt: Option<Doubt>,
    alarms: Alarms,
    /// It was left because the peer complained again.
    told_left: bool,
    /// At the end of a hold it is used only if it answers.
    trial_at: Option<Instant>,
}

/// The least round trip of a period of [`super::LEAST_OVER`], and of the one before it. All
/// carriers' periods are the same: otherwise one would remember the time before a queue for longer
/// than another behind the same queue.
#[derive(Clone, Copy, Debug)]
struct Least {
    period: u64,
    now: Duration,
    before: Duration,
}

impl Least {
    fn handle(&mut self, sample: Duration, period: u64) {
        match period.saturating_sub(self.period) {
            0 => self.now = self.now.min(sample),
            1 => *self = Self { period, now: sample, before: self.now },
            _ => *self = Self { period, now: sample, before: sample },
        }
    }

    /// In `period`; the last that is known if that is older.
    fn at(&self, period: u64) -> Duration {
        if period == self.period { self.now.min(self.before) } else { self.now }
    }
}

/// How often a carrier that had been doubted answered after all, lately.
#[derive(Clone, Copy, Default, Debug)]
struct Alarms {
    /// This end took it for overdue.
    own: u32,
    /// The peer complained.
    told: u32,
    last: Option<Instant>,
}

impl Alarms {
    fn overdue_in_vain(&mut self, now: Instant) {
        *self = Self { own: self.own.saturating_add(1), last: Some(now), ..*self };
    }

    fn told_in_vain(&mut self, now: Instant) {
        *self = Self { told: self.told.saturating_add(1), last: Some(now), ..*self };
    }

    fn told(&mut self, now: Instant) -> u32 {
        self.forget(now);
        self.told
    }

    fn forget(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now >= last + TRUSTED_AFTER) {
            *self = Self::default();
        }
    }
}

/// Why a carrier may be dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doubt {
    /// Another path's data wait: this one may be dead for the same reason.
    Beside,
    /// Another carrier answered and it did not.
    Overdue,
    /// The peer misses its packets: only an acknowledgement proves that they pass.
    Told,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Health {
    /// Since the first, but not to be used before the second.
    Live {
        since: Instant,
        held_until: Instant,
    },
    Silent {
        since: Instant,
    },
    /// Told.
    Dead,
}

/// How good a carrier is at all; round trips decide within.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Tier {
    Dead,
    Silent,
    Held,
    Live,
}

impl Carrier {
    /// `lapses`: of others of this kind, lately.
    pub(super) fn new(
        kind: CarrierKind,
        rtt: Duration,
        lapses: u32,
        (now, period): (Instant, u64),
    ) -> Self {
        Self {
            kind,
            rtt,
            least: Least { period, now: rtt, before: rtt },
            health: Health::Live { since: now, held_until: now + hold(lapses) },
            last_sign: now,
            last_received: now,
            outstanding: None,
            checks_lost: None,
            probe_at: None,
            probed: None,
            unread: false,
            acknowledged: None,
            lapses,
            retiring: false,
            doubt: None,
            alarms: Alarms::default(),
            told_left: false,
            trial_at: trial(lapses, now),
        }
    }

    pub(super) fn is_direct(&self) -> bool {
        matches!(self.kind, CarrierKind::Direct { .. })
    }

    pub(super) fn slot(&self) -> u32 {
        match self.kind {
            CarrierKind::Direct { .. } => 0,
            CarrierKind::Relayed { slot } => slot,
        }
    }

    pub(super) fn tier(&self, now: Instant) -> Tier {
        match self.health {
            Health::Live { held_until, .. } if held_until <= now && self.doubt.is_none() => {
                Tier::Live
            }
            Health::Live { .. } => Tier::Held,
            Health::Silent { .. } => Tier::Silent,
            Health::Dead => Tier::Dead,
        }
    }

    /// Round trip for comparison.
    pub(super) fn score(&self, period: u64) -> Duration {
        let least = self.least.at(period);
        match self.kind {
            CarrierKind::Direct { family: Family::V6 } => least.saturating_sub(V6_PREFERENCE),
            _ => least,
        }
    }

    /// Whether its round trip is known of this period or the one before.
    pub(super) fn is_measured(&self, period: u64) -> bool {
        period.saturating_sub(self.least.period) <= 1
    }

    /// Smoothed as in RFC 9002 §5.3.
    pub(super) fn handle_rtt(&mut self, sample: Duration, period: u64) {
        self.rtt = (self.rtt * 7 + sample) / 8;
        self.least.handle(sample, period);
    }

    pub(super) fn handle_activity(&mut self, activity: Activity, now: Instant) {
        match activity {
            Activity::Received => {
                self.believe(now);
                self.sign_of_life(now);
            }
            Activity::Acknowledged { outstanding } => {
                self.unread = false;
                self.handle_answer(outstanding, now);
            }
            Activity::Answered { outstanding } => {
                self.unread = outstanding && (self.unread || self.probed.is_some());
                self.handle_answer(outstanding, now);
            }
            Activity::Sent if self.outstanding.is_none() => {
                self.outstanding = Some(now);
                (self.probed, self.unread) = (None, false);
                if matches!(self.health, Health::Live { .. }) {
                    self.probe_at = Some(now + self.late_after());
                }
            }
            Activity::Sent => {}
        }
    }

    fn handle_answer(&mut self, outstanding: bool, now: Instant) {
        if self.doubt == Some(Doubt::Told) {
            self.doubt = None;
            self.alarms.told_in_vain(now);
        }
        // Whoever complains twice before there can be an answer is no less wrong if it comes.
        if std::mem::take(&mut self.told_left) && self.left_for(now) < self.patience() {
            self.alarms.told_in_vain(now);
        }
        self.believe(now);
        self.sign_of_life(now);
        self.revive(now);
        self.acknowledged = Some(now);
        self.probed = None;
        self.outstanding = outstanding.then_some(now);
        self.probe_at = outstanding.then(|| now + self.late_after());
    }

    pub(super) fn handle_check(&mut self, answered: bool, now: Instant) {
        if answered {
            self.last_sign = now;
            self.checks_lost = None;
            // Its path works; but if its data are stuck all the same, the connection is dead
            // (a NAT gave its end another address): only an acknowledgement brings it back.
            if self.outstanding.is_none() {
                self.revive(now);
            }
            if self.outstanding.is_none() || self.doubt == Some(Doubt::Beside) {
                self.believe(now);
            }
        } else {
            self.checks_lost.get_or_insert(now);
        }
    }

    pub(super) fn handle_retiring(&mut self) {
        self.retiring = true;
    }

    /// Its connection is dead, which says nothing against its path; unless it is a new one
    /// already. What was under way when the NAT changed has arrived long before this end hears of
    /// the change, a round trip later.
    pub(super) fn handle_rebound(&mut self, now: Instant) -> bool {
        let Health::Live { since, .. } = self.health else { return false };
        let quiet = now >= self.last_received + self.rtt / 2;
        let live = quiet && now >= since + self.rtt * 2 + REBOUND_GRACE;
        if live {
            self.health = Health::Silent { since: now };
            self.outstanding = Some(now); // answered checks do not bring it back
            self.probe_at = Some(now + PROBE_LEFT);
        }
        live
    }

    /// The peer misses this carrier's packets: it is asked, and believed when it says so again
    /// before there is an answer, or again and again. True if the carrier is left.
    pub(super) fn handle_suspect(&mut self, now: Instant) -> bool {
        let Health::Live { since, .. } = self.health else { return false };
        let often = self.alarms.told(now) >= MAX_TOLD;
        if self.doubt.replace(Doubt::Told) == Some(Doubt::Told) || often {
            self.lapse(since, now);
            self.told_left = true;
            return true;
        }
        self.outstanding.get_or_insert(now);
        self.probe_at = Some(now);
        false
    }

    /// When it was probed because what waits is late, and when that is overdue, too. `None` when
    /// nothing waits, and for relayed ones: what kills their connections, they notice.
    pub(super) fn overdue_at(&self) -> Option<(Instant, Instant)> {
        let live = matches!(self.health, Health::Live { .. }) && self.outstanding.is_some();
        let probed = self.probed.filter(|_| live && self.is_direct())?;
        let alarms = self.alarms.own.min(8);
        let overdue = probed.max(self.last_sign) + (self.rtt + OVERDUE_SLACK) * (1 << alarms);
        Some((probed, overdue))
    }

    /// Smoothed.
    pub(super) fn rtt(&self) -> Duration {
        self.rtt
    }

    /// The last sign that something passes.
    pub(super) fn last_sign(&self) -> Instant {
        self.last_sign
    }

    /// When it acknowledged something, if after `since`; of one in good health.
    pub(super) fn answered_at(&self, since: Instant) -> Option<Instant> {
        let well = matches!(self.health, Health::Live { .. }) && self.doubt.is_none();
        self.acknowledged.filter(|at| well && *at > since)
    }

    /// Another carrier answered while this one was silent. True the first time.
    pub(super) fn turn_overdue(&mut self) -> bool {
        let first = !matches!(self.doubt, Some(Doubt::Overdue | Doubt::Told));
        if first {
            self.doubt = Some(Doubt::Overdue);
        }
        first
    }

    /// Its data wait rather long, though not too long yet.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        // What the peer told of this one says nothing of the others.
        let told = self.doubt == Some(Doubt::Told);
        let live = matches!(self.health, Health::Live { .. }) && !told;
        let due = self.probe_at.is_some_and(|at| at <= now);
        self.is_direct() && live && self.outstanding.is_some() && due
    }

    /// The path in use may be dead, and whatever killed it may have killed this one: it is as good
    /// as any other only if it answers.
    pub(super) fn doubt(&mut self, now: Instant) {
        if matches!(self.health, Health::Live { .. }) && self.doubt.is_none() {
            self.doubt = Some(Doubt::Beside);
            // What waits for an answer already asks as well.
            if self.outstanding.is_none() {
                self.ask(now);
            }
        }
    }

    /// Moves on with time; true if the carrier has just turned silent.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let Health::Live { since, .. } = self.health else { return false };
        self.alarms.forget(now);
        if self.trial_at.is_some_and(|at| at <= now) {
            self.trial_at = None;
            self.doubt(now);
        }
        if self.ask_at().is_some_and(|at| at <= now) {
            self.ask(now);
        }
        if self.silent_at().is_none_or(|at| at > now) {
            return false;
        }
        self.lapse(since, now);
        true
    }

    /// True when it is time to probe.
    pub(super) fn take_probe(&mut self, now: Instant) -> bool {
        let due = self.probe_at.is_some_and(|at| at <= now);
        if due {
            self.probed = Some(now);
            let silent = matches!(self.health, Health::Silent { .. });
            self.probe_at = silent.then_some(now + PROBE_LEFT);
        }
        due
    }

    /// True once, when it has been silent for too long.
    pub(super) fn turn_dead(&mut self, now: Instant) -> bool {
        let dead = matches!(self.health, Health::Silent { .. }) && now >= self.dead_at();
        if dead {
            self.health = Health::Dead;
            self.probe_at = None;
        }
        dead
    }

    /// When something changes by time alone.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let change = match self.health {
            Health::Live { held_until, .. } => {
                let held = (held_until > now).then_some(held_until);
                [held, self.silent_at(), self.ask_at()].into_iter().flatten().min()
            }
            Health::Silent { .. } => Some(self.dead_at()),
            Health::Dead => None,
        };
        [change, self.probe_at].into_iter().flatten().min()
    }

    /// How long a sign of life may take.
    fn patience(&self) -> Duration {
        SILENT_AFTER.max(self.rtt * SILENT_RTTS)
    }

    /// When what waits is late: after an acknowledgement that its receiver delayed (RFC 9000
    /// §13.2.1), and a quarter of a round trip more.
    fn late_after(&self) -> Duration {
        let late = self.patience() / 2;
        // Whoever does not read may go on so for hours.
        if self.is_direct() && !self.unread {
            late.min(self.rtt * 5 / 4 + LATE_SLACK)
        } else {
            late
        }
    }

    /// When it will count as silent if nothing is heard of it.
    fn silent_at(&self) -> Option<Instant> {
        let patience = self.patience();
        self.outstanding.map(|since| {
            let quiet = since.max(self.last_sign) + patience;
            quiet.min(since + patience * ONE_WAY_FACTOR)
        })
    }

    /// When lost checks are reason to ask: they may be all that is lost, so that nothing follows
    /// from them alone.
    fn ask_at(&self) -> Option<Instant> {
        let idle = self.outstanding.is_none();
        self.checks_lost.filter(|_| idle).map(|since| since.max(self.last_received + CHECKS_GRACE))
    }

    /// Asks for a sign of life: the probe counts as data that wait.
    fn ask(&mut self, now: Instant) {
        self.outstanding = Some(now);
        self.probe_at = Some(now);
    }

    fn dead_at(&self) -> Instant {
        match self.health {
            Health::Silent { since } => since.max(self.last_sign) + DEAD_AFTER,
            _ => self.last_sign + DEAD_AFTER,
        }
    }

    /// There is a sign of life. What the peer misses may still be missing.
    fn believe(&mut self, now: Instant) {
        if self.doubt == Some(Doubt::Told) {
            return;
        }
        if self.doubt.take() == Some(Doubt::Overdue) {
            self.alarms.overdue_in_vain(now);
        }
    }

    fn sign_of_life(&mut self, now: Instant) {
        self.last_sign = now;
        self.last_received = now;
        // Received data alone do not bring a silent carrier back: they say nothing of the
        // direction in which this end sends.
    }

    /// Packets pass both ways.
    fn revive(&mut self, now: Instant) {
        if !matches!(self.health, Health::Live { .. }) {
            self.health = Health::Live { since: now, held_until: now + hold(self.lapses) };
            self.trial_at = trial(self.lapses, now);
            self.checks_lost = None;
        }
    }

    /// Since when it is silent.
    fn left_for(&self, now: Instant) -> Duration {
        match self.health {
            Health::Silent { since } => now.saturating_duration_since(since),
            _ => Duration::MAX,
        }
    }

    fn lapse(&mut self, live_since: Instant, now: Instant) {
        let trusted = now.saturating_duration_since(live_since) >= TRUSTED_AFTER;
        self.lapses = if trusted { 1 } else { self.lapses.saturating_add(1) };
        self.health = Health::Silent { since: now };
        self.probe_at = Some(now + PROBE_LEFT);
        self.doubt = None; // it is worse than doubted
    }
}

fn trial(lapses: u32, now: Instant) -> Option<Instant> {
    let hold = hold(lapses);
    (!hold.is_zero()).then(|| now + hold)
}

/// A peer that was wrong so often within [`TRUSTED_AFTER`] has the carrier left, whose use then
/// becomes rare: it could make the session go to and fro otherwise.
const MAX_TOLD: u32 = 4;

/// A carrier younger than this and two round trips was made after a change that is told now.
const REBOUND_GRACE: Duration = Duration::from_millis(200);

/// The first lapse is forgiven: it may have been the network's only one.
fn hold(lapses: u32) -> Duration {
    match lapses.checked_sub(2) {
        Some(doublings) => HOLD_MAX.min(HOLD_FIRST * (1 << doublings.min(16))),
        None => Duration::ZERO,
    }
}
