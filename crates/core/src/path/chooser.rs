//! The choice among carriers.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use adit_protocol::{ids::CarrierNumber, limits::MAX_CARRIERS, ticket::Role};

use super::{
    Activity, BETTER_FOR, CarrierKind, LEAST_OVER, OVERDUE_GRACE, PathEvent, RTT_HYSTERESIS, Seen,
    TRUSTED_AFTER, WANT_DIRECT_GAPS, WANT_DIRECT_MIN,
    carrier::{Carrier, Tier},
};

/// Chooses among a session's carriers. See the [module](super).
#[derive(Debug)]
pub struct PathChooser {
    role: Role,
    carriers: BTreeMap<CarrierNumber, Carrier>,
    chosen: Option<Chosen>,
    /// A better one of the same kind and tier, and since when.
    challenger: Option<(CarrierNumber, Instant)>,
    /// Next time to ask for punching, and how often it was asked.
    want_direct: Option<(Instant, usize)>,
    last_wanted: Option<Instant>,
    /// Lapses of carriers by kind, with the last one's time: a new carrier over a path that
    /// flaps is no better than the one before it.
    lapses: BTreeMap<CarrierKind, (u32, Instant)>,
    events: VecDeque<PathEvent>,
    began: Instant,
    now: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Chosen {
    interactive: CarrierNumber,
    bulk: CarrierNumber,
}

impl PathChooser {
    /// No carrier yet; the session is expected to be punching already.
    pub fn new(role: Role, now: Instant) -> Self {
        let [first, ..] = WANT_DIRECT_GAPS;
        Self {
            role,
            carriers: BTreeMap::new(),
            chosen: None,
            challenger: None,
            want_direct: (role == Role::Console).then_some((now + first, 0)),
            last_wanted: None,
            lapses: BTreeMap::new(),
            events: VecDeque::new(),
            began: now,
            now,
        }
    }

    /// A carrier is ready: its handshake is done and the peer confirmed it. False if there are
    /// too many: then it must be closed.
    #[must_use]
    pub fn handle_carrier_up(
        &mut self,
        carrier: CarrierNumber,
        kind: CarrierKind,
        rtt: Duration,
        now: Instant,
    ) -> bool {
        if self.carriers.len() >= MAX_CARRIERS && !self.carriers.contains_key(&carrier) {
            return false;
        }
        self.lapses.retain(|_, (_, at)| now < *at + TRUSTED_AFTER);
        let lapses = self.lapses.get(&kind).map_or(0, |(lapses, _)| *lapses);
        let times = (now, self.period(now));
        self.carriers.insert(carrier, Carrier::new(kind, rtt, lapses, times));
        self.decide(now);
        true
    }

    /// A carrier is closed, by whomever.
    pub fn handle_carrier_down(&mut self, carrier: CarrierNumber, now: Instant) {
        if self.carriers.remove(&carrier).is_some() && self.carriers.is_empty() {
            self.chosen = None;
            self.events.push_back(PathEvent::Stranded);
        }
        self.decide(now);
    }

    /// A round trip was measured, by the transport or by a check of its path.
    pub fn handle_rtt(&mut self, carrier: CarrierNumber, sample: Duration, now: Instant) {
        let period = self.period(now);
        self.with(carrier, now, |c| c.handle_rtt(sample, period));
    }

    /// Data moved.
    pub fn handle_activity(&mut self, carrier: CarrierNumber, activity: Activity, now: Instant) {
        self.with(carrier, now, |c| c.handle_activity(activity, now));
    }

    /// All that was seen of carriers since one looked last. Nothing is decided before the last is
    /// noted: what came while nobody looked must not be taken for late.
    pub fn handle_seen(
        &mut self,
        seen: impl IntoIterator<Item = (CarrierNumber, Seen)>,
        now: Instant,
    ) {
        let period = self.period(now);
        for (number, seen) in seen {
            let Some(carrier) = self.carriers.get_mut(&number) else { continue };
            if let Some(rtt) = seen.rtt {
                carrier.handle_rtt(rtt, period);
            }
            let sent = seen.sent.then_some(Activity::Sent);
            let received = seen.received.then_some(Activity::Received);
            for activity in [sent, received, seen.answer].into_iter().flatten() {
                carrier.handle_activity(activity, now);
            }
        }
        self.decide(now);
    }

    /// The carrier over which the peer is most likely reached beside this one.
    pub fn beside(&self, carrier: CarrierNumber, now: Instant) -> Option<CarrierNumber> {
        let others = self.carriers.iter().filter(|(n, _)| **n != carrier);
        // What kills one direct path often kills all.
        let best = others.max_by_key(|(_, c)| (c.tier(now), !c.is_direct(), c.last_sign()));
        best.map(|(number, _)| *number)
    }

    /// A check of the carrier's path was answered, or a series of them was not.
    pub fn handle_check(&mut self, carrier: CarrierNumber, answered: bool, now: Instant) {
        self.with(carrier, now, |c| c.handle_check(answered, now));
    }

    /// The peer says that it misses this carrier's packets (`Move`).
    pub fn handle_suspect(&mut self, carrier: CarrierNumber, now: Instant) {
        let tier = self.carriers.get(&carrier).map(|c| c.tier(now));
        let other = self.carriers.iter().any(|(n, c)| *n != carrier && c.tier(now) >= Tier::Held);
        // Without an alternative there is nothing to gain by believing it.
        if other && tier >= Some(Tier::Held) {
            if let Some(left) = self.carriers.get_mut(&carrier)
                && left.handle_suspect(now)
            {
                if !left.retiring {
                    self.lapses.insert(left.kind, (left.lapses, now));
                }
                self.events.push_back(PathEvent::Suspect(carrier));
            }
            self.decide(now);
        }
    }

    /// A NAT gave this end another address under the carrier ([`crate::punch::Event::Rebound`]):
    /// its connection, which cannot migrate, is dead, whatever checks say of its path.
    pub fn handle_rebound(&mut self, carrier: CarrierNumber, now: Instant) {
        if self.carriers.get_mut(&carrier).is_some_and(|c| c.handle_rebound(now)) {
            self.events.push_back(PathEvent::Suspect(carrier));
            self.decide(now);
        }
    }

    /// The carrier's path is about to be forgotten by a NAT: another direct one is preferred.
    pub fn handle_retiring(&mut self, carrier: CarrierNumber, now: Instant) {
        self.with(carrier, now, Carrier::handle_retiring);
    }

    /// The network of this end changed: ask for punching without delay if nothing is direct.
    pub fn handle_network_change(&mut self, now: Instant) {
        if let Some((at, asked)) = &mut self.want_direct {
            (*at, *asked) = (now, 0);
        }
        self.decide(now);
    }

    /// Time passed. Call when [`Self::poll_timeout`] says so.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.decide(now);
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let carriers = self.carriers.values().filter_map(|c| c.wake_at(self.now));
        let challenge = self.challenger.map(|(_, since)| since + BETTER_FOR);
        let want = self.want_direct.map(|(at, _)| at);
        let watched = self.watched();
        let overdue = watched.iter().filter_map(|n| self.overdue_change(*n));
        let overdue = overdue.filter(|at| *at > self.now);
        carriers.chain(challenge).chain(want).chain(overdue).min()
    }

    /// The carriers in use: interactive, bulk.
    pub fn in_use(&self) -> Option<(CarrierNumber, CarrierNumber)> {
        self.chosen.map(|c| (c.interactive, c.bulk))
    }

    /// Periods by which round trips are compared.
    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs() / LEAST_OVER.as_secs()
    }

    fn with(&mut self, carrier: CarrierNumber, now: Instant, change: impl FnOnce(&mut Carrier)) {
        if let Some(carrier) = self.carriers.get_mut(&carrier) {
            change(carrier);
            self.decide(now);
        }
    }

    /// Brings everything up to `now`.
    fn decide(&mut self, now: Instant) {
        self.now = self.now.max(now);
        // What kills one path often kills all that this end has.
        let used = self.chosen.map(|c| c.interactive);
        let watched = |n: &CarrierNumber| used.is_none_or(|used| used == *n);
        let late = self.carriers.iter().find(|(n, c)| watched(n) && c.is_late(now));
        if let Some(late) = late.map(|(n, _)| *n) {
            let beside = self.carriers.iter_mut().filter(|(n, _)| **n != late);
            beside.for_each(|(_, carrier)| carrier.doubt(now));
        }
        for (number, carrier) in &mut self.carriers {
            if carrier.handle_timeout(now) {
                // That one was to die is no sign of a path that flaps.
                if !carrier.retiring {
                    self.lapses.insert(carrier.kind, (carrier.lapses, now));
                }
                self.events.push_back(PathEvent::Suspect(*number));
            }
            if carrier.take_probe(now) {
                self.events.push_back(PathEvent::Probe(*number));
            }
            if carrier.turn_dead(now) {
                self.events.push_back(PathEvent::Dead(*number));
            }
        }
        self.find_overdue(now);
        if self.role == Role::Console {
            self.choose(now);
            self.want_direct(now);
        }
    }

    /// What waits where nothing answers, while another carrier does, need not wait until the
    /// carrier is left.
    fn find_overdue(&mut self, now: Instant) {
        for number in self.watched() {
            if self.overdue_change(number).is_none_or(|at| at > now) {
                continue;
            }
            let overdue = self.carriers.get_mut(&number).is_some_and(Carrier::turn_overdue);
            if overdue && self.role == Role::Agent {
                self.events.push_back(PathEvent::Overdue(number));
            }
        }
    }

    /// When the carrier turns overdue if nothing more is heard of it.
    fn overdue_change(&self, number: CarrierNumber) -> Option<Instant> {
        let carrier = self.carriers.get(&number)?;
        let (probed, overdue) = carrier.overdue_at()?;
        let others = self.carriers.iter().filter(|(n, _)| **n != number);
        let answers = others.filter_map(|(_, c)| {
            Some(c.answered_at(probed)? + carrier.rtt().saturating_sub(c.rtt()))
        });
        Some(overdue.max(answers.min()? + OVERDUE_GRACE))
    }

    /// Those whose data matter: at the console the one in use, at the agent any.
    fn watched(&self) -> Vec<CarrierNumber> {
        match (self.role, self.chosen) {
            (Role::Console, Some(chosen)) => vec![chosen.interactive],
            (Role::Console, None) => Vec::new(),
            (Role::Agent, _) => self.carriers.keys().copied().collect(),
        }
    }

    fn choose(&mut self, now: Instant) {
        let Some(interactive) = self.interactive(now) else { return };
        let bulk = self.bulk(interactive, now);
        let chosen = Some(Chosen { interactive, bulk });
        if self.chosen != chosen {
            self.chosen = chosen;
            self.events.push_back(PathEvent::Use { interactive, bulk });
        }
    }

    /// The best carrier, where "better" has to hold for a while if only round trips say so.
    fn interactive(&mut self, now: Instant) -> Option<CarrierNumber> {
        // The order but for round trips: healthy, direct, interactive slot.
        let class = |c: &Carrier| (c.tier(now), c.is_direct(), !c.retiring, c.slot() == 0);
        let top = self.carriers.values().map(class).max()?;
        let period = self.period(now);
        let peers = || self.carriers.iter().filter(|(_, c)| class(c) == top);
        let (best, best_score, is_measured) = peers()
            .map(|(n, c)| (*n, c.score(period), c.is_measured(period)))
            .min_by_key(|b| b.1)?;
        let current = self.chosen.map(|c| c.interactive);
        let current_in_top = current.and_then(|n| peers().find(|(m, _)| **m == n));
        let Some((current, carrier)) = current_in_top else {
            self.challenger = None;
            // Nothing answers: moving about would help nobody.
            let stay = current.filter(|n| {
                let tier = self.carriers.get(n).map(|c| c.tier(now));
                top.0 <= Tier::Silent && tier == Some(top.0)
            });
            return Some(stay.unwrap_or(best));
        };
        let current = *current;
        let is_better = is_measured && best_score + RTT_HYSTERESIS <= carrier.score(period);
        if top.0 <= Tier::Silent || !is_better {
            self.challenger = None;
            return Some(current);
        }
        match self.challenger {
            Some((number, since)) if number == best && now >= since + BETTER_FOR => {
                self.challenger = None;
                Some(best)
            }
            Some((number, _)) if number == best => Some(current),
            _ => {
                self.challenger = Some((best, now));
                Some(current)
            }
        }
    }

    /// With relays only, bulk takes another connection than what a person waits for.
    fn bulk(&self, interactive: CarrierNumber, now: Instant) -> CarrierNumber {
        if self.carriers.get(&interactive).is_none_or(Carrier::is_direct) {
            return interactive;
        }
        let usable = |c: &Carrier| {
            c.tier(now) == Tier::Live && matches!(c.kind, CarrierKind::Relayed { slot: 1 })
        };
        let current = self.chosen.map(|c| c.bulk);
        let keep = current.filter(|n| self.carriers.get(n).is_some_and(usable));
        let period = self.period(now);
        let usable_ones = || self.carriers.iter().filter(|(_, c)| usable(c));
        let best = || usable_ones().min_by_key(|(_, c)| c.score(period));
        keep.or_else(|| best().map(|(n, _)| *n)).unwrap_or(interactive)
    }

    fn want_direct(&mut self, now: Instant) {
        if self.carriers.values().any(|c| c.is_direct() && c.tier(now) >= Tier::Held) {
            self.want_direct = None;
            return;
        }
        // The last direct carrier has just been lost: at once.
        let (at, asked) = self.want_direct.unwrap_or((now, 0));
        let at = self.last_wanted.map_or(at, |last| at.max(last + WANT_DIRECT_MIN));
        if at > now {
            self.want_direct = Some((at, asked));
            return;
        }
        let [first, ..] = WANT_DIRECT_GAPS;
        let gap = WANT_DIRECT_GAPS.get(asked).or(WANT_DIRECT_GAPS.last()).copied();
        self.want_direct = Some((now + gap.unwrap_or(first), asked.saturating_add(1)));
        self.last_wanted = Some(now);
        self.events.push_back(PathEvent::WantDirect);
    }
}
