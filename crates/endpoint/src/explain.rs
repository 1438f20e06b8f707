//! What a session's paths look like: for `explain` and `status`. Stays with the end that asks:
//! it names private addresses.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_core::punch::{HardPhase, PairState, Report};
use adit_protocol::{
    candidate::{Candidate, CandidateKind},
    nat::NatSummary,
};
use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::timeout;

use crate::{CarrierState, Endpoint, carriers::Carrier, driver::Driver};

/// A session's paths at one moment. Words are stable; durations in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// Which session.
    pub session_id: String,
    /// How old it is.
    pub age_ms: u64,
    /// What it uses: `relayed`, `direct`; nothing if no carrier lives.
    pub carrier: Option<&'static str>,
    /// Whether both ends take direct carriers.
    pub direct_wanted: bool,
    /// The first rounds of punching came to nothing; later ones follow at growing gaps.
    pub exhausted: bool,
    /// Why there is no direct path, in stable words; empty if there is one, or it is too early to
    /// say.
    pub failures: Vec<&'static str>,
    /// This end.
    pub own: EndView,
    /// The other end, as far as it told.
    pub peer: EndView,
    /// Pairs of addresses that were checked, best first.
    pub pairs: Vec<PairView>,
    /// Probing of a hard NAT.
    pub hard: HardView,
    /// The session's relays, best first.
    pub relays: Vec<RelayPathView>,
    /// Carriers that are up.
    pub carriers: Vec<CarrierView>,
}

/// One end.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EndView {
    /// Addresses at which it may be reached.
    pub candidates: Vec<CandidateView>,
    /// Mapping behaviour of its NAT (RFC 4787), or `unknown`.
    pub mapping: &'static str,
    /// Filtering behaviour of its NAT, or `unknown`.
    pub filtering: &'static str,
    /// Distance between its NAT's successive ports; 0 if not predictable.
    pub port_step: i32,
    /// No STUN server answered it; nothing if that is not known.
    pub udp_blocked: Option<bool>,
}

/// A candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CandidateView {
    /// `host`, `server_reflexive`, `peer_reflexive`, `mapped`.
    pub kind: &'static str,
    /// Its address.
    pub address: SocketAddr,
}

/// A checked pair.
#[derive(Debug, Clone, Serialize)]
pub struct PairView {
    /// The peer's address.
    pub remote: SocketAddr,
    /// How it was learnt.
    pub kind: &'static str,
    /// `waiting`, `probing`, `unanswered`, `valid`, `silent`.
    pub state: &'static str,
    /// Round trip, if valid.
    pub rtt_ms: Option<f64>,
    /// Checks sent.
    pub checks: u64,
    /// Answers received.
    pub answers: u64,
    /// The peer was heard from there.
    pub heard: bool,
    /// Own address as the peer sees it.
    pub mapped: Option<SocketAddr>,
}

/// Probing of a hard NAT.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HardView {
    /// `idle`, `waiting`, `predicting`, `birthday`, `given_up`, `hit`.
    pub phase: &'static str,
    /// Rounds begun.
    pub rounds: u32,
    /// Sockets open for it.
    pub sockets: usize,
    /// Checks sent for it.
    pub probes: u64,
}

/// A relay of the session.
#[derive(Debug, Clone, Serialize)]
pub struct RelayPathView {
    /// Its first address.
    pub name: String,
    /// Round trip from this end, as told.
    pub own_rtt_ms: Option<f64>,
    /// Round trip from the other end, as told.
    pub peer_rtt_ms: Option<f64>,
    /// This end keeps it joined.
    pub joined: bool,
    /// Both ends met there.
    pub in_hand: bool,
}

/// A carrier.
#[derive(Debug, Clone, Serialize)]
pub struct CarrierView {
    /// Its number.
    pub number: u64,
    /// `relayed`, `direct`.
    pub kind: &'static str,
    /// `active`, `standby`.
    pub state: &'static str,
    /// It does not answer at the moment.
    pub silent: bool,
    /// Measured round trip.
    pub rtt_ms: Option<f64>,
    /// Own address.
    pub local: Option<SocketAddr>,
    /// The peer's or relay's address.
    pub remote: Option<SocketAddr>,
    /// Name of the relay.
    pub relay: Option<String>,
    /// How the relay was joined: `raw`, `tls`.
    pub way: Option<&'static str>,
    /// 0 interactive, 1 bulk.
    pub slot: Option<u32>,
}

/// Time for one session to say how it is doing.
const ANSWER_TIME: Duration = Duration::from_millis(500);

impl Endpoint {
    /// What the paths of all live sessions look like, for `status`; without those that are too
    /// busy to say.
    pub async fn explanations(&self) -> Vec<Explanation> {
        let sessions: Vec<_> = self.state().sessions.values().cloned().collect();
        let asked = sessions.iter().map(|session| timeout(ANSWER_TIME, session.explain()));
        join_all(asked).await.into_iter().filter_map(|told| told.ok().flatten()).collect()
    }
}

fn ms(duration: Duration) -> f64 {
    // Microseconds are enough.
    f64::from(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)) / 1000.0
}

fn kind_word(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "host",
        CandidateKind::ServerReflexive => "server_reflexive",
        CandidateKind::PeerReflexive => "peer_reflexive",
        CandidateKind::Mapped => "mapped",
    }
}

fn view(candidate: &Candidate) -> CandidateView {
    CandidateView { kind: kind_word(candidate.kind), address: candidate.addr }
}

impl EndView {
    fn new(candidates: Vec<CandidateView>, nat: Option<&NatSummary>) -> Self {
        let unknown = NatSummary::default();
        let told = nat.unwrap_or(&unknown);
        Self {
            candidates,
            mapping: told.mapping.as_str(),
            filtering: told.filtering.as_str(),
            port_step: told.port_step,
            udp_blocked: nat.map(NatSummary::is_blocked),
        }
    }
}

fn pairs(report: &Report) -> Vec<PairView> {
    let pair = |p: &adit_core::punch::PairReport| {
        let (state, rtt) = match p.state {
            PairState::Waiting => ("waiting", None),
            PairState::Probing => ("probing", None),
            PairState::Unanswered => ("unanswered", None),
            PairState::Valid { rtt } => ("valid", Some(rtt)),
            PairState::Silent => ("silent", None),
        };
        PairView {
            remote: p.remote,
            kind: kind_word(p.kind),
            state,
            rtt_ms: rtt.map(ms),
            checks: p.checks,
            answers: p.answers,
            heard: p.heard,
            mapped: p.mapped,
        }
    };
    report.pairs.iter().map(pair).collect()
}

fn hard(report: &Report) -> HardView {
    let phase = match report.hard.phase {
        HardPhase::Idle => "idle",
        HardPhase::Waiting => "waiting",
        HardPhase::Predicting => "predicting",
        HardPhase::Birthday => "birthday",
        HardPhase::GivenUp => "given_up",
        HardPhase::Hit => "hit",
    };
    let hard = report.hard;
    HardView { phase, rounds: hard.rounds, sockets: hard.sockets, probes: hard.probes }
}

/// The agent takes the console's choice, and says nothing of it in events.
fn carrier(carrier: &Carrier, in_use: bool) -> CarrierView {
    let up = &carrier.up;
    let rtt = up.direct.as_ref().map(|d| d.connection.rtt()).or(carrier.rtt);
    CarrierView {
        number: up.number.0,
        kind: crate::carriers::kind(up).as_str(),
        state: if in_use { CarrierState::Active } else { carrier.state }.as_str(),
        silent: carrier.silent.is_some(),
        rtt_ms: rtt.map(ms),
        local: up.local,
        remote: up.remote,
        relay: up.relay.as_ref().map(|r| r.name.clone()),
        way: up.relay.as_ref().map(|r| r.way.as_str()),
        slot: up.relay.as_ref().map(|r| r.slot),
    }
}

impl Driver {
    pub(crate) fn explain(&self, now: Instant) -> Explanation {
        let report = self.punching.report().unwrap_or_default();
        let own = self.p.udp.as_ref().map(|u| u.addresses().borrow().all()).unwrap_or_default();
        let own_nat = self.p.udp.as_ref().and_then(|u| u.nat());
        let used = self.in_use.and_then(|n| self.carriers.get(&n));
        let relays = self.relays.view().into_iter().map(|relay| RelayPathView {
            name: self.relay_name(&relay.key),
            own_rtt_ms: relay.own.map(ms),
            peer_rtt_ms: relay.peer.map(ms),
            joined: relay.joined,
            in_hand: relay.in_hand,
        });
        Explanation {
            session_id: self.p.session.to_string(),
            age_ms: u64::try_from(now.saturating_duration_since(self.started).as_millis())
                .unwrap_or(u64::MAX),
            carrier: used.map(|c| crate::carriers::kind(&c.up).as_str()),
            direct_wanted: self.p.udp.is_some(),
            exhausted: self.is_exhausted(now),
            failures: report.failures.iter().map(|f| f.as_str()).collect(),
            own: EndView::new(own.iter().map(view).collect(), own_nat.as_ref()),
            peer: EndView::new(
                self.p.peer_candidates.iter().map(view).collect(),
                self.p.peer_nat.as_ref(),
            ),
            pairs: pairs(&report),
            hard: hard(&report),
            relays: relays.collect(),
            carriers: self
                .carriers
                .iter()
                .map(|(number, c)| carrier(c, self.in_use == Some(*number)))
                .collect(),
        }
    }
}
