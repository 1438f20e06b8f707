//! One pair of a local socket and a remote address, and when it is checked next.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_protocol::candidate::CandidateKind;

use super::{
    ANSWER_BURST, ANSWER_INTERVAL, CHECKS_PER_ROUND, CONSENT_EXPIRY, LOST_FOR, LOST_INTERVAL,
    PairState, REUSED_AFTER, TRIGGERED_PER_ROUND, TransactionId, bucket::Bucket,
};

/// Outstanding transactions remembered: those of a round, and triggered ones.
const MAX_OUTSTANDING: usize = (CHECKS_PER_ROUND + TRIGGERED_PER_ROUND) as usize;
/// An answer that took longer is none.
const OUTSTANDING_LIFE: Duration = Duration::from_secs(5);
/// No triggered check if another went there so recently.
const TRIGGER_SPACING: Duration = Duration::from_millis(20);
/// Rounds of a pair that never answered start at these gaps; the last one repeats. Dense for some
/// seconds: with some NATs only one end's packets get through, and only after the other began.
const ROUND_GAPS: [Duration; 10] = [
    Duration::from_millis(1500),
    Duration::from_millis(1500),
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
    LAST_ROUND_GAP,
];
const LAST_ROUND_GAP: Duration = Duration::from_secs(300);
/// Rounds of a pair that fell silent, until its consent is over.
const SILENT_ROUND_GAP: Duration = Duration::from_secs(3);
/// Rounds after which other addresses are left alone if one of them works.
const ROUNDS_BESIDE_A_PATH: u32 = 2;
/// After so many rounds punching counts as exhausted.
const ROUNDS_TO_EXHAUST: u32 = 2;
/// An answer to a check of a verified pair is missing after this time or two round trips.
const ANSWER_WAIT: Duration = Duration::from_millis(200);
/// A pair whose checks are lost counts as usable so long after acknowledged data.
const ACKNOWLEDGED_LATELY: Duration = Duration::from_secs(5);

/// What is known of a pair that answered.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    pub(super) rtt: Duration,
    pub(super) mapped: SocketAddr,
    /// Last answer or acknowledged data.
    pub(super) confirmed: Instant,
    pub(super) silent: bool,
}

/// The own address as the peer sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mapping {
    pub(super) addr: SocketAddr,
    /// Its first use may have been as early as this.
    pub(super) earliest: Instant,
    /// It was there by then.
    pub(super) since: Instant,
    /// Seen last.
    pub(super) confirmed: Instant,
}

/// How old a mapping became: at least, and at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lost {
    pub(super) least: Duration,
    pub(super) most: Duration,
}

impl Mapping {
    pub(super) fn lost_by(&self, now: Instant) -> Lost {
        Lost {
            least: self.confirmed.saturating_duration_since(self.since),
            most: now.saturating_duration_since(self.since),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) kind: CandidateKind,
    /// The remote candidate's.
    pub(super) priority: u32,
    /// Order among all pairs, 0 first.
    pub(super) rank: usize,
    /// An authenticated request came from there.
    pub(super) heard: bool,
    /// Last announced by the peer or heard from.
    pub(super) mentioned: Instant,
    pub(super) verified: Option<Verified>,
    /// When it answered for the first time.
    pub(super) worked_since: Option<Instant>,
    pub(super) mapping: Option<Mapping>,
    /// The mapping before was there last: the next may be as old as that.
    pub(super) forgotten: Option<Instant>,
    /// Since when its consent is over.
    lost_since: Option<Instant>,
    /// Another pair took over, see [`super::Event::Retiring`].
    pub(super) retiring: bool,
    pub(super) answers_allowed: Bucket,
    pub(super) checks: u64,
    pub(super) answers: u64,
    /// When something is to be done: a check, or the end of a round.
    pub(super) next_at: Instant,
    pub(super) triggered: bool,
    triggered_left: u8,
    round: u32,
    /// Rounds since the last start.
    rounds_here: u32,
    /// Rounds in vain since the last answer.
    pub(super) tried: u32,
    round_started: Instant,
    /// Checks sent in this round, or since the last answer.
    sent: u8,
    outstanding: VecDeque<(TransactionId, Instant)>,
}

impl Pair {
    pub(super) fn new(kind: CandidateKind, priority: u32, now: Instant) -> Self {
        Self {
            kind,
            priority,
            rank: 0,
            heard: false,
            mentioned: now,
            verified: None,
            worked_since: None,
            mapping: None,
            forgotten: None,
            lost_since: None,
            retiring: false,
            answers_allowed: Bucket::new(ANSWER_BURST, ANSWER_INTERVAL, now),
            checks: 0,
            answers: 0,
            next_at: now,
            triggered: false,
            triggered_left: TRIGGERED_PER_ROUND,
            round: 0,
            rounds_here: 0,
            tried: 0,
            round_started: now,
            sent: 0,
            outstanding: VecDeque::new(),
        }
    }

    /// It answers.
    pub(super) fn is_live(&self) -> bool {
        self.verified.as_ref().is_some_and(|v| !v.silent)
    }

    /// It was about to be forgotten and answers again long after it was: the peer's NAT gave its
    /// port to another mapping.
    pub(super) fn is_reused(&self, now: Instant) -> bool {
        let last = self.verified.as_ref().map(|v| v.confirmed).or(self.lost_since);
        self.retiring && !self.is_live() && last.is_some_and(|last| now >= last + REUSED_AFTER)
    }

    /// It answers, or data were acknowledged over it just now: checks may be all that is lost.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        self.verified.as_ref().is_some_and(|v| !v.silent || now < v.confirmed + ACKNOWLEDGED_LATELY)
    }

    /// When [`Self::is_usable`] changes by time alone.
    pub(super) fn usable_until(&self) -> Option<Instant> {
        self.verified.as_ref().filter(|v| v.silent).map(|v| v.confirmed + ACKNOWLEDGED_LATELY)
    }

    /// The peer sees this end there: how old the mapping became that was there before, if the NAT
    /// only gave another port. `opened`: when the socket was, if nothing else used it.
    pub(super) fn note_mapping(
        &mut self,
        mapped: SocketAddr,
        opened: Option<Instant>,
        now: Instant,
    ) -> Option<Lost> {
        let fresh = |earliest, since| Mapping { addr: mapped, earliest, since, confirmed: now };
        match &mut self.mapping {
            Some(known) if known.addr == mapped => {
                known.confirmed = now;
                None
            }
            Some(known) => {
                let lost = *known;
                *known = fresh(lost.confirmed, now);
                (lost.addr.ip() == mapped.ip()).then(|| lost.lost_by(now))
            }
            None => {
                let since = opened.unwrap_or(now);
                let earliest = self.forgotten.take().unwrap_or(since);
                self.mapping = Some(fresh(earliest, since));
                None
            }
        }
    }

    /// A check of this pair was sent at another occasion.
    pub(super) fn adopt_check(&mut self, id: TransactionId, sent: Instant) {
        self.outstanding.push_back((id, sent));
    }

    /// The first rounds went unanswered.
    pub(super) fn is_exhausted(&self) -> bool {
        self.round + u32::from(self.sent >= CHECKS_PER_ROUND) >= ROUNDS_TO_EXHAUST
    }

    /// In its first rounds since punching began, or began again; or it worked.
    pub(super) fn is_promising(&self) -> bool {
        self.rounds_here < ROUNDS_TO_EXHAUST || self.lost_since.is_some()
    }

    /// Heard of only through requests from there, which never came back: whoever recorded one of
    /// the peer's requests may have sent it in another's name.
    pub(super) fn is_hearsay(&self) -> bool {
        self.kind == CandidateKind::PeerReflexive && self.worked_since.is_none()
    }

    /// Starts from this round, or checks a live pair at once.
    pub(super) fn restart(&mut self, round: u32, now: Instant) {
        self.round = round;
        self.rounds_here = 0;
        self.round_started = now;
        self.sent = 0;
        self.triggered_left = TRIGGERED_PER_ROUND;
        self.next_at = now;
    }

    /// The peer announced it again: it begins now if it does at all.
    pub(super) fn hurry(&mut self) {
        let [first_gap, ..] = ROUND_GAPS;
        if self.verified.is_none() && self.sent >= CHECKS_PER_ROUND && !self.is_hearsay() {
            self.next_at = self.next_at.min(self.round_started + first_gap);
        }
    }

    /// An authenticated request came from there: check it soon if it is not known to answer.
    pub(super) fn handle_request(&mut self, now: Instant) {
        self.heard = true;
        self.mentioned = now;
        if self.is_live() || self.triggered {
            return;
        }
        let resting = self.sent >= CHECKS_PER_ROUND;
        let [first_gap, ..] = ROUND_GAPS;
        if resting && now >= self.round_started + first_gap {
            self.next_at = self.next_at.min(now); // the next round, early: somebody is there
            return;
        }
        let just_sent = self.outstanding.back().is_some_and(|(_, at)| now < *at + TRIGGER_SPACING);
        if !just_sent && self.triggered_left > 0 {
            self.triggered_left -= 1;
            self.triggered = true;
        }
    }

    /// Whether a check is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.triggered || self.next_at <= now
    }

    /// When to look at the pair again.
    pub(super) fn wake_at(&self, now_or_earlier: Instant) -> Instant {
        let check = if self.triggered { now_or_earlier } else { self.next_at };
        match &self.verified {
            Some(v) if v.silent => check.min(v.confirmed + CONSENT_EXPIRY),
            _ => check,
        }
    }

    /// A live pair whose series of checks went unanswered turns silent: true when it does.
    pub(super) fn turn_silent(&mut self, now: Instant) -> bool {
        if self.next_at > now || self.sent < CHECKS_PER_ROUND {
            return false;
        }
        let Some(verified) = self.verified.as_mut().filter(|v| !v.silent) else { return false };
        verified.silent = true;
        let [first_gap, ..] = ROUND_GAPS;
        self.round = 0;
        self.round_started = now;
        self.triggered_left = TRIGGERED_PER_ROUND;
        self.next_at = now + first_gap;
        true
    }

    /// Whether consent is over.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let over =
            self.verified.as_ref().is_some_and(|v| v.silent && now >= v.confirmed + CONSENT_EXPIRY);
        if over {
            self.verified = None;
            self.round = 0;
            self.lost_since = Some(now);
        }
        over
    }

    /// A check is sent: plans the next. `beside_a_path`: another pair answers.
    pub(super) fn record_check(&mut self, id: TransactionId, beside_a_path: bool, now: Instant) {
        self.checks += 1;
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((id, now));
        if std::mem::take(&mut self.triggered) {
            return; // an extra one; the round goes on as planned
        }
        if self.sent >= CHECKS_PER_ROUND {
            self.round = self.round.saturating_add(1);
            self.rounds_here = self.rounds_here.saturating_add(1);
            self.tried = self.tried.saturating_add(1);
            self.round_started = now;
            self.sent = 0;
            self.triggered_left = TRIGGERED_PER_ROUND;
        }
        self.sent += 1;
        if self.is_missed(beside_a_path, now) {
            self.sent = CHECKS_PER_ROUND; // one is enough, in the long run
        }
        self.next_at = match &self.verified {
            Some(v) if !v.silent && self.sent == 1 => now + ANSWER_WAIT.max(v.rtt * 2),
            Some(v) if !v.silent && self.sent == CHECKS_PER_ROUND => {
                now + ANSWER_WAIT.max(v.rtt * 3)
            }
            _ if self.sent < CHECKS_PER_ROUND => {
                // 50, 100, 200, 400 ms
                now + Duration::from_millis(50) * (1 << (self.sent - 1).min(3))
            }
            _ => self.round_started + self.round_gap(beside_a_path, now),
        };
    }

    /// An answer: the round trip if it is to an own outstanding check.
    pub(super) fn take_answer(&mut self, id: TransactionId, now: Instant) -> Option<Duration> {
        let at = self.outstanding.iter().position(|(known, _)| *known == id)?;
        let (_, sent_at) = self.outstanding.drain(..=at).next_back()?;
        let rtt = now.saturating_duration_since(sent_at);
        (rtt <= OUTSTANDING_LIFE).then_some(rtt)
    }

    /// The pair answered after `rtt`; it is checked again after `interval`.
    pub(super) fn confirm(
        &mut self,
        rtt: Duration,
        mapped: SocketAddr,
        interval: Duration,
        now: Instant,
    ) {
        self.answers += 1;
        self.sent = 0;
        self.round = 0;
        self.tried = 0;
        self.triggered = false;
        self.lost_since = None;
        self.next_at = now + interval;
        // Smoothed as in RFC 9002 §5.3.
        let rtt = self.verified.as_ref().map_or(rtt, |v| (v.rtt * 7 + rtt) / 8);
        self.verified = Some(Verified { rtt, mapped, confirmed: now, silent: false });
    }

    pub(super) fn state(&self) -> PairState {
        match &self.verified {
            Some(v) if v.silent => PairState::Silent,
            Some(v) => PairState::Valid { rtt: v.rtt },
            None if self.checks == 0 => PairState::Waiting,
            None if self.sent >= CHECKS_PER_ROUND => PairState::Unanswered,
            None => PairState::Probing,
        }
    }

    /// It worked, not long ago, and nothing else does.
    fn is_missed(&self, beside_a_path: bool, now: Instant) -> bool {
        let lately = self.lost_since.is_some_and(|since| now < since + LOST_FOR);
        // The rounds with which punching starts are dense at first.
        let begun = self.round >= ROUNDS_BESIDE_A_PATH;
        lately && begun && self.verified.is_none() && !beside_a_path
    }

    fn round_gap(&self, beside_a_path: bool, now: Instant) -> Duration {
        if self.verified.is_some() {
            return SILENT_ROUND_GAP;
        }
        if self.is_missed(beside_a_path, now) {
            return LOST_INTERVAL;
        }
        if self.is_hearsay() {
            return LAST_ROUND_GAP; // sooner only if the peer asks from there again
        }
        if beside_a_path && self.round >= ROUNDS_BESIDE_A_PATH {
            return LAST_ROUND_GAP;
        }
        let round = usize::try_from(self.round).unwrap_or(usize::MAX);
        ROUND_GAPS.get(round).copied().unwrap_or(LAST_ROUND_GAP)
    }
}
