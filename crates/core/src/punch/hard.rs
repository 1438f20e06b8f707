//! Hard NATs: one end's external port towards the other is not known beforehand.
//!
//! S is the end whose NAT maps by destination, P the one whose NAT lets in only whom it was sent
//! to. If S's ports follow each other, P tries the ones that come next. Otherwise S sends from
//! many sockets, hence from many ports, and P tries random ones: 256 sockets and 2,048 of 64,512
//! ports miss each other once in 3,700 rounds. Both ends know their parts from the two summaries,
//! and begin at about the same time.
//!
//! Where a server with one address alone was asked, a NAT that maps by address looks like one that
//! does not: if ordinary checks fail both ends take both parts.
//!
//! It must never be a weapon: guesses go only to the address at which the mediator sees the peer
//! *and* which is among the peer's sealed candidates; rate, number and rounds are bounded.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use adit_protocol::nat::{NatBehaviour, NatSummary};

use super::{
    BIRTHDAY_PASSES, BIRTHDAY_PROBES, BIRTHDAY_ROUND, BIRTHDAY_SOCKETS, BIRTHDAY_TOTAL_PROBES,
    BirthdayPass, Event, Family, HARD_DELAY_SURE, HARD_DELAY_UNSURE, HARD_ROUND_GAPS,
    HARD_ROUND_MIN_GAP, HardPhase, HardReport, LocalSocket, PREDICTED_PORTS, PREDICTION_AHEAD,
    PREDICTION_BEHIND, PREDICTION_TIME, PREDICTIONS_PER_ROUND, PROBE_BURST, PROBE_INTERVAL,
    TransactionId, ports::PortOrder,
};

/// Answers to guesses that took longer are none.
const ANSWER_LIFE: Duration = Duration::from_secs(5);
/// The socket with the first hit has so long to prove that packets pass both ways.
const SELECTION: Duration = Duration::from_millis(1500);
/// When to look again if there is nothing to send, or nowhere to send it from.
const IDLE_INTERVAL: Duration = Duration::from_millis(100);
/// Addresses of P to which each socket of S sends: it should be one.
const MAX_TARGETS: usize = 2;

/// What the machine knows besides.
#[derive(Debug)]
pub(super) struct Situation {
    /// A pair works: nothing is to be done.
    pub(super) usable: bool,
    /// The ordinary socket from which guesses are sent.
    pub(super) socket: Option<LocalSocket>,
    /// The peer's candidates at the address where the mediator sees it.
    pub(super) targets: Vec<SocketAddr>,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Output {
    /// `opener`: it need not arrive.
    Send {
        socket: LocalSocket,
        to: SocketAddr,
        opener: bool,
    },
    Tell(Event),
}

#[derive(Debug)]
pub(super) struct Hard {
    local: Option<NatSummary>,
    remote: Option<NatSummary>,
    pub(super) seen: Option<IpAddr>,
    stage: Stage,
    round_began: Option<Instant>,
    /// Rounds since this end's or the peer's network changed, and in all.
    rounds_here: usize,
    rounds: u32,
    probes: u64,
    /// The peer's last port when this round began, or its first summary came.
    port_before: Option<u16>,
    predict: VecDeque<u16>,
    predictions: u32,
    order: PortOrder,
    guesses_left: usize,
    /// Guesses that may be answered.
    guesses: BTreeMap<u16, (TransactionId, Instant)>,
    holders: BTreeMap<LocalSocket, Holder>,
    /// Holders that are to send next.
    sending: VecDeque<LocalSocket>,
    passes: usize,
    /// The pass under way is the sockets' first.
    opening: bool,
    selected: Option<(LocalSocket, Instant)>,
    asked_for_sockets: bool,
    hit: bool,
    next_at: Instant,
}

#[derive(Default, Debug)]
struct Holder {
    checks: VecDeque<(TransactionId, SocketAddr, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Idle,
    Waiting { at: Instant },
    Running { birthday_at: Instant, until: Instant },
    GivenUp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// Guesses ports.
    Prober,
    /// Has many.
    Opener,
    /// Both ends map by destination, but predictably.
    Predictor,
    /// Either end may be the one whose NAT maps by destination: both do both.
    Either,
}

impl Hard {
    pub(super) fn new(order: PortOrder, now: Instant) -> Self {
        Self {
            local: None,
            remote: None,
            seen: None,
            stage: Stage::Idle,
            round_began: None,
            rounds_here: 0,
            rounds: 0,
            probes: 0,
            port_before: None,
            predict: VecDeque::new(),
            predictions: 0,
            order,
            guesses_left: 0,
            guesses: BTreeMap::new(),
            holders: BTreeMap::new(),
            sending: VecDeque::new(),
            passes: 0,
            opening: false,
            selected: None,
            asked_for_sockets: false,
            hit: false,
            next_at: now,
        }
    }

    pub(super) fn summaries(&self) -> (Option<&NatSummary>, Option<&NatSummary>) {
        (self.local.as_ref(), self.remote.as_ref())
    }

    pub(super) fn handle_local_nat(&mut self, nat: NatSummary) {
        self.local = Some(nat);
    }

    pub(super) fn handle_remote_nat(&mut self, nat: NatSummary, seen: Option<IpAddr>) {
        let moved = seen.is_some() && seen != self.seen;
        if moved {
            self.seen = seen;
            self.handle_network_change();
        }
        let blocked = self.remote.as_ref().is_some_and(NatSummary::is_blocked);
        if blocked && !nat.is_blocked() {
            self.handle_network_change();
        }
        let fresher = self.remote.as_ref().is_some_and(|old| old.ports != nat.ports);
        self.port_before = self.port_before.or(nat.ports.last().copied());
        self.remote = Some(nat);
        if fresher && matches!(self.stage, Stage::Running { .. }) {
            self.begin_prediction();
        }
    }

    /// What failed here may work there.
    pub(super) fn handle_network_change(&mut self) {
        self.rounds_here = 0;
        self.port_before = None;
        if !matches!(self.stage, Stage::Running { .. }) {
            self.stage = Stage::Idle;
        }
    }

    pub(super) fn handle_socket(&mut self, socket: LocalSocket) -> bool {
        let wanted = matches!(self.stage, Stage::Running { .. })
            && self.asked_for_sockets
            && self.holders.len() < BIRTHDAY_SOCKETS;
        if wanted && self.holders.insert(socket, Holder::default()).is_none() {
            self.sending.push_back(socket);
        }
        wanted
    }

    pub(super) fn handle_socket_closed(&mut self, socket: LocalSocket) {
        self.holders.remove(&socket);
        self.sending.retain(|s| *s != socket);
    }

    /// An authenticated message came to this birthday socket: true if it is the one to go on with.
    /// Only one at a time is, so that both ends find the same pair.
    pub(super) fn select(&mut self, socket: LocalSocket, now: Instant) -> bool {
        if !self.holders.contains_key(&socket) {
            return false;
        }
        match self.selected {
            Some((selected, since)) if selected != socket && now < since + SELECTION => false,
            Some((selected, _)) if selected == socket => true,
            _ => {
                self.selected = Some((socket, now));
                true
            }
        }
    }

    /// The birthday socket that is to be treated like an ordinary one.
    pub(super) fn selected(&self) -> Option<LocalSocket> {
        self.selected.map(|(socket, _)| socket)
    }

    /// When the guess, or the birthday socket's check, was sent that this answers.
    pub(super) fn take_answer(
        &mut self,
        socket: LocalSocket,
        from: SocketAddr,
        id: TransactionId,
        now: Instant,
    ) -> Option<Instant> {
        if let Some(holder) = self.holders.get(&socket) {
            let sent = holder.checks.iter().find(|c| c.0 == id && c.1 == from)?.2;
            return (now <= sent + ANSWER_LIFE && self.select(socket, now)).then_some(sent);
        }
        if Some(from.ip()) != self.seen {
            return None;
        }
        let (_, sent) = *self.guesses.get(&from.port()).filter(|(known, _)| *known == id)?;
        (now <= sent + ANSWER_LIFE).then_some(sent)
    }

    /// A check was sent as [`Output::Send`] said.
    pub(super) fn record_sent(
        &mut self,
        socket: LocalSocket,
        to: SocketAddr,
        id: TransactionId,
        now: Instant,
    ) {
        self.probes += 1;
        match self.holders.get_mut(&socket) {
            Some(holder) => {
                if holder.checks.len() >= BIRTHDAY_PASSES.len() / 2 * MAX_TARGETS {
                    holder.checks.pop_front();
                }
                holder.checks.push_back((id, to, now));
            }
            None => drop(self.guesses.insert(to.port(), (id, now))),
        }
    }

    /// Moves on; what is to be done goes to `out`.
    pub(super) fn advance(&mut self, situation: &Situation, now: Instant, out: &mut Vec<Output>) {
        if situation.usable {
            return self.succeed(out);
        }
        let role = self.role().filter(|_| !situation.targets.is_empty());
        match (self.stage, role) {
            (Stage::Idle, Some(_)) => self.plan(now),
            (Stage::Waiting { at }, Some(_)) if at <= now => self.begin(now, out),
            (Stage::Waiting { .. }, None) => self.stage = Stage::Idle,
            (Stage::Running { .. }, None) => self.end_round(now, out),
            (Stage::Running { until, .. }, _) if until <= now => self.end_round(now, out),
            _ => {}
        }
        if let (Stage::Running { birthday_at, .. }, Some(_)) = (self.stage, role) {
            self.run(birthday_at, situation, now, out);
        }
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        match self.stage {
            Stage::Idle | Stage::GivenUp => None,
            Stage::Waiting { at } => Some(at),
            Stage::Running { birthday_at, until } => {
                let busy = !self.predict.is_empty() || !self.sending.is_empty();
                let guessing = self.guesses_left > 0 && self.guesses();
                let wake = if busy {
                    self.next_at
                } else if guessing {
                    self.next_at.max(birthday_at)
                } else {
                    until
                };
                let pass = BIRTHDAY_PASSES.get(self.passes).map(|(after, _)| birthday_at + *after);
                let pass = pass.filter(|_| self.opens());
                Some(wake.min(until).min(pass.unwrap_or(until)))
            }
        }
    }

    pub(super) fn report(&self) -> HardReport {
        let phase = match self.stage {
            _ if self.hit => HardPhase::Hit,
            Stage::Idle => HardPhase::Idle,
            Stage::Waiting { .. } => HardPhase::Waiting,
            Stage::Running { .. } if !self.predict.is_empty() => HardPhase::Predicting,
            Stage::Running { .. } => HardPhase::Birthday,
            Stage::GivenUp => HardPhase::GivenUp,
        };
        let (rounds, sockets, probes) = (self.rounds, self.holders.len(), self.probes);
        HardReport { phase, rounds, sockets, probes }
    }

    fn role(&self) -> Option<Role> {
        let (local, remote) = (self.local.as_ref()?, self.remote.as_ref()?);
        if local.is_blocked() || remote.is_blocked() {
            return None;
        }
        match (local.is_symmetric(), remote.is_symmetric()) {
            (false, true) => Some(Role::Prober),
            (true, false) => Some(Role::Opener),
            (true, true) if local.port_step != 0 && remote.port_step != 0 => Some(Role::Predictor),
            (false, false) => match (is_unknown(local), is_unknown(remote)) {
                (true, true) => Some(Role::Either),
                (true, false) => Some(Role::Opener),
                (false, true) => Some(Role::Prober),
                (false, false) => None,
            },
            _ => None,
        }
    }

    fn guesses(&self) -> bool {
        matches!(self.role(), Some(Role::Prober | Role::Either))
    }

    fn opens(&self) -> bool {
        matches!(self.role(), Some(Role::Opener | Role::Either))
    }

    /// Whether nothing but this can work.
    fn is_sure(&self) -> bool {
        let strict = |nat: &NatSummary| nat.filtering == NatBehaviour::AddressAndPortDependent;
        match (self.role(), &self.local, &self.remote) {
            (_, Some(local), Some(remote)) if !local.is_symmetric() && !remote.is_symmetric() => {
                false
            }
            (Some(Role::Prober), Some(local), _) => strict(local),
            (Some(Role::Opener), _, Some(remote)) => strict(remote),
            (role, ..) => role.is_some(),
        }
    }

    fn is_predictable(&self) -> bool {
        let step = |nat: &Option<NatSummary>| {
            nat.as_ref().is_some_and(|nat| nat.is_symmetric() && nat.port_step != 0)
        };
        step(&self.local) || step(&self.remote)
    }

    fn plan(&mut self, now: Instant) {
        let gap = match self.rounds_here.checked_sub(1) {
            None => HARD_ROUND_MIN_GAP,
            Some(failed) => match HARD_ROUND_GAPS.get(failed) {
                Some(gap) => *gap,
                None => return self.stage = Stage::GivenUp,
            },
        };
        if self.probes >= BIRTHDAY_TOTAL_PROBES {
            return self.stage = Stage::GivenUp;
        }
        let delay = match (self.is_sure(), self.is_predictable()) {
            (true, true) => Duration::ZERO,
            (true, false) => HARD_DELAY_SURE,
            (false, _) => HARD_DELAY_UNSURE,
        };
        let at = now + delay;
        let at = self.round_began.map_or(at, |began| at.max(began + gap));
        self.stage = Stage::Waiting { at };
    }

    fn begin(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.rounds += 1;
        self.rounds_here += 1;
        self.round_began = Some(now);
        self.hit = false;
        let birthday_at = if self.is_predictable() { now + PREDICTION_TIME } else { now };
        self.stage = Stage::Running { birthday_at, until: birthday_at + BIRTHDAY_ROUND };
        self.next_at = now;
        self.guesses.clear();
        self.guesses_left = if self.guesses() { BIRTHDAY_PROBES } else { 0 };
        self.passes = 0;
        self.asked_for_sockets = false;
        self.selected = None;
        self.predictions = 0;
        self.begin_prediction();
        if self.local.as_ref().is_some_and(|nat| nat.is_symmetric() && nat.port_step != 0) {
            out.push(Output::Tell(Event::WantNatSummary));
        }
    }

    /// From a little before the oldest known port to some way beyond the newest.
    fn begin_prediction(&mut self) {
        let Some(remote) = self.remote.as_ref().filter(|nat| nat.is_symmetric()) else { return };
        let (step, Some(last)) = (remote.port_step, remote.ports.last()) else { return };
        if step == 0 || self.predictions >= PREDICTIONS_PER_ROUND {
            return;
        }
        self.predictions += 1;
        let last = i32::from(*last);
        let since = self.port_before.map_or(0, |before| (last - i32::from(before)) / step);
        let behind = if (0..=PREDICTED_PORTS).contains(&since) { since } else { 0 };
        // What comes next first: most likely nobody else got a port meanwhile.
        let ahead = (1..=PREDICTION_AHEAD).chain((-behind - PREDICTION_BEHIND..=0).rev());
        let ports = ahead.filter_map(|k| u16::try_from(last + step * k).ok());
        self.predict = ports.filter(|port| *port >= 1024).collect();
    }

    fn run(
        &mut self,
        birthday_at: Instant,
        situation: &Situation,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.begin_pass(birthday_at, situation, now, out);
        let birthday = now >= birthday_at;
        // Whoever is called late makes up for a little of it.
        self.next_at = self.next_at.max(now.checked_sub(PROBE_BURST).unwrap_or(now));
        while self.next_at <= now {
            let sent =
                self.probes < BIRTHDAY_TOTAL_PROBES && self.send_one(birthday, situation, out);
            self.next_at += if sent { PROBE_INTERVAL } else { IDLE_INTERVAL };
        }
    }

    fn begin_pass(
        &mut self,
        birthday_at: Instant,
        situation: &Situation,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some((after, pass)) = BIRTHDAY_PASSES.get(self.passes).copied() else { return };
        if !self.opens() || now < birthday_at + after {
            return;
        }
        self.passes += 1;
        self.opening = pass == BirthdayPass::Fresh;
        match pass {
            BirthdayPass::Again => self.sending = self.holders.keys().copied().collect(),
            BirthdayPass::Fresh => {
                self.release(out);
                self.asked_for_sockets = true;
                let family = situation.targets.first().map_or(Family::V4, |t| Family::of(*t));
                let count = BIRTHDAY_SOCKETS;
                out.push(Output::Tell(Event::WantSockets { count, family }));
            }
        }
    }

    /// False if there is nothing to send.
    fn send_one(&mut self, birthday: bool, situation: &Situation, out: &mut Vec<Output>) -> bool {
        if let Some(socket) = self.sending.pop_front() {
            let targets = situation.targets.iter().take(MAX_TARGETS);
            let opener = self.opening;
            out.extend(targets.map(|to| Output::Send { socket, to: *to, opener }));
            return true;
        }
        let (Some(socket), Some(target)) = (situation.socket, situation.targets.first()) else {
            return false;
        };
        let port = self.predict.pop_front().or_else(|| {
            let guess = birthday && self.guesses() && self.guesses_left > 0;
            guess.then(|| {
                self.guesses_left -= 1;
                self.order.next_port()
            })
        });
        let Some(port) = port else { return false };
        let to = SocketAddr::new(target.ip(), port);
        out.push(Output::Send { socket, to, opener: false });
        true
    }

    fn end_round(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.release(out);
        self.stop_sending();
        self.plan(now);
    }

    /// A direct path was found, in whatever way.
    fn succeed(&mut self, out: &mut Vec<Output>) {
        self.rounds_here = 0;
        if !matches!(self.stage, Stage::Running { .. }) {
            self.stage = Stage::Idle;
            return;
        }
        self.stage = Stage::Idle;
        self.hit = true;
        self.release(out);
        self.stop_sending();
    }

    fn release(&mut self, out: &mut Vec<Output>) {
        if self.asked_for_sockets {
            // The machine knows which one found a pair.
            out.push(Output::Tell(Event::ReleaseSockets { keep: None }));
        }
        self.asked_for_sockets = false;
        self.selected = None;
        self.holders.clear();
        self.sending.clear();
    }

    fn stop_sending(&mut self) {
        self.predict.clear();
        self.guesses.clear();
        self.guesses_left = 0;
    }
}

/// Servers answered, but cannot tell.
fn is_unknown(nat: &NatSummary) -> bool {
    nat.mapping == NatBehaviour::Unknown && !nat.is_blocked()
}
