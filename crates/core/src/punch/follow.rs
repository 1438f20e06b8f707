//! What follows from the state as a whole: hard NATs, further sockets, and their end.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_protocol::{
    candidate::{Candidate, CandidateKind},
    nat::NatSummary,
};

use super::{
    BIRTHDAY_BASE, Event, FRESH_BASE, FRESH_LIFE, FailureClass, Family, LocalSocket, PairReport,
    Punch, RETIRING_AGE, SUCCESSOR_GAP, TransactionId, candidate_priority,
    filter::is_public,
    hard::{Output, Situation},
    machine::Socket,
    pair::Pair,
    table::PairKey,
    why::{self, Facts},
};

/// The old mapping is watched a little longer than it should live.
const WATCH_SLACK: Duration = Duration::from_secs(10);

impl Punch {
    /// Brings all that depends on more than one pair up to `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        let usable = self.table.pairs.values().any(|p| p.is_usable(now));
        if usable {
            self.fresh.handle_path();
            self.vain_starts = 0;
            self.restart_at = None;
        } else if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_and_announce(now);
        }
        self.advance_hard(usable, now);
        self.advance_fresh(usable, now);
        self.close_useless(usable, now);
        self.advance_at = self.next_advance(now);
    }

    /// An authenticated request came to a birthday socket: true if it is to be answered.
    pub(super) fn promote(&mut self, (socket, from): PairKey, now: Instant) -> bool {
        if self.sockets.contains_key(&socket) {
            return true;
        }
        if Some(from.ip()) != self.hard.seen || !self.hard.select(socket, now) {
            return false;
        }
        self.insert_promoted(socket, Family::of(from), now);
        true
    }

    /// An answer to a guess, or to a check from a birthday socket, makes a pair.
    pub(super) fn adopt_answer(&mut self, key: PairKey, id: TransactionId, now: Instant) {
        if self.table.pairs.contains_key(&key) {
            return;
        }
        let (socket, from) = key;
        let Some(sent) = self.hard.take_answer(socket, from, id, now) else { return };
        if !self.sockets.contains_key(&socket) {
            self.insert_promoted(socket, Family::of(from), now);
        }
        let kind = CandidateKind::PeerReflexive;
        let mut pair = Pair::new(kind, candidate_priority(kind, 0), now);
        pair.adopt_check(id, sent);
        self.table.insert(key, pair);
    }

    /// The birthday socket that goes on as an ordinary one.
    pub(super) fn promoted(&self) -> Option<LocalSocket> {
        let verified = |s: &LocalSocket| {
            self.table.pairs.iter().any(|(key, p)| key.0 == *s && p.verified.is_some())
        };
        self.sockets.keys().copied().filter(|s| s.0 >= BIRTHDAY_BASE).find(verified)
    }

    /// A fresh socket also goes where the peer was found, which none of its candidates may name.
    pub(super) fn follow_live_pairs(&mut self, socket: LocalSocket, now: Instant) {
        let live = self.table.pairs.iter().filter(|(_, p)| p.is_live() && !p.retiring);
        let found: Vec<_> = live.map(|(key, p)| (key.1, p.kind, p.priority)).collect();
        for (addr, kind, priority) in found {
            let candidate = Candidate { kind, addr, priority };
            self.add(socket, &candidate, now);
        }
    }

    /// A pair works for the first time: others that it replaces retire.
    pub(super) fn retire_older(&mut self, (socket, remote): PairKey, now: Instant) {
        let fresh = (FRESH_BASE..BIRTHDAY_BASE).contains(&socket.0) && self.fresh.life().is_some();
        let mut retiring = Vec::new();
        for (key, pair) in &mut self.table.pairs {
            if *key == (socket, remote) || pair.retiring || !pair.is_live() {
                continue;
            }
            // Either this end replaces its mapping, or the peer has one more at its address.
            let own = fresh && key.0 != socket && Family::of(key.1) == Family::of(remote);
            let aged = pair.worked_since.is_some_and(|since| now >= since + RETIRING_AGE);
            let peers = key.0 == socket && key.1.ip() == remote.ip() && aged;
            if own || peers {
                pair.retiring = true;
                retiring.push(*key);
            }
        }
        for (socket, remote) in retiring {
            self.events.push_back(Event::Retiring { socket, remote });
        }
    }

    /// An older mapping of the peer that was still young when the next one came: it retires when it
    /// has worked for long enough, not when it is gone.
    fn retire_succeeded(&mut self, now: Instant) {
        let over: Vec<_> =
            self.succeeded().filter(|(_, at)| *at <= now).map(|(key, _)| key).collect();
        for (socket, remote) in over {
            if let Some(pair) = self.table.pairs.get_mut(&(socket, remote)) {
                pair.retiring = true;
                self.events.push_back(Event::Retiring { socket, remote });
            }
        }
    }

    /// Pairs beside which another of the same socket came to work with the same address of the peer,
    /// later than those that come at once; and when they retire.
    fn succeeded(&self) -> impl Iterator<Item = (PairKey, Instant)> {
        let live = || self.table.pairs.iter().filter(|(_, p)| p.is_live() && !p.retiring);
        live().filter_map(move |(key, pair)| {
            let since = pair.worked_since?;
            let next = live().any(|(k, p)| {
                let later = p.worked_since.is_some_and(|at| at >= since + SUCCESSOR_GAP);
                k.0 == key.0 && k.1.ip() == key.1.ip() && later
            });
            next.then_some((*key, since + RETIRING_AGE))
        })
    }

    pub(super) fn failures(&self, pairs: &[PairReport]) -> Vec<FailureClass> {
        let own: Vec<_> = self.sockets.values().filter(|s| !s.candidates.is_empty()).collect();
        let own: Vec<_> = own.into_iter().map(|s| s.family).collect();
        let peer: Vec<_> = self.remote.iter().map(|c| Family::of(c.addr)).collect();
        let (local, remote) = self.hard.summaries();
        let heard = self.heard;
        why::failures(&Facts { pairs, heard, local, remote, own: &own, peer: &peer })
    }

    fn advance_hard(&mut self, usable: bool, now: Instant) {
        let seen = self.hard.seen;
        let filter = &self.filter;
        // The newest first: an address that is named again is last in the list.
        let targets = self.remote.iter().rev().filter(|c| {
            Some(c.addr.ip()) == seen
                && c.kind != CandidateKind::PeerReflexive
                && filter.admits(c.addr)
        });
        let targets: Vec<SocketAddr> = targets.map(|c| c.addr).collect();
        let family = targets.first().map(|t| Family::of(*t));
        let ordinary =
            |(n, s): &(&LocalSocket, &Socket)| n.0 < FRESH_BASE && Some(s.family) == family;
        let socket = self.sockets.iter().find(ordinary).map(|(number, _)| *number);
        let mut outputs = Vec::new();
        self.hard.advance(&Situation { usable, socket, targets }, now, &mut outputs);
        for output in outputs {
            match output {
                Output::Send { socket, to, opener } => self.send_guess(socket, to, opener, now),
                Output::Tell(event) => self.tell_hard(event),
            }
        }
    }

    fn tell_hard(&mut self, event: Event) {
        let event = match event {
            Event::ReleaseSockets { .. } => Event::ReleaseSockets { keep: self.promoted() },
            other => other,
        };
        self.events.push_back(event);
    }

    fn advance_fresh(&mut self, usable: bool, now: Instant) {
        if !usable {
            if let Some(family) = self.family_to_retry()
                && self.fresh.try_another(now, &mut self.rng)
                && self.has_room()
            {
                self.events.push_back(Event::WantFreshSocket { family });
            }
            return;
        }
        self.judge_retired(now);
        self.retire_aged(now);
        self.retire_succeeded(now);
        if let Some((born, family)) = self.newest_mapping()
            && self.has_room()
            && self.fresh.replace(born, now)
        {
            self.events.push_back(Event::WantFreshSocket { family });
        }
    }

    fn has_room(&self) -> bool {
        self.sockets.len() < super::MAX_SOCKETS
    }

    /// Where one more socket may help: two NATs that are not known to make it hopeless.
    fn family_to_retry(&self) -> Option<Family> {
        let (local, remote) = self.hard.summaries();
        let hopeless = |nat: &NatSummary| nat.is_blocked() || nat.is_symmetric();
        if local.is_some_and(hopeless) || remote.is_some_and(hopeless) {
            return None;
        }
        let public = |c: &&Candidate| is_public(c.addr.ip()) && self.filter.admits(c.addr);
        let own = |family: &Family| {
            self.sockets.values().any(|s| s.family == *family && !s.candidates.is_empty())
        };
        let families = self.remote.iter().filter(public).map(|c| Family::of(c.addr));
        // IPv4 first: that is where ports are translated.
        families.filter(own).min()
    }

    /// Of the pairs in use, through a NAT: when each may have been born.
    fn mappings(&self) -> impl Iterator<Item = (PairKey, Instant, Family)> {
        self.table.pairs.iter().filter_map(|(key, pair)| {
            let mapping = pair.mapping.filter(|_| pair.is_live() && !pair.retiring)?;
            let socket = self.sockets.get(&key.0)?;
            let host = |c: &Candidate| c.kind == CandidateKind::Host && c.addr == mapping.addr;
            let translated = !socket.candidates.iter().any(host);
            translated.then_some((*key, mapping.earliest, socket.family))
        })
    }

    /// When the youngest mapping in use was born.
    fn newest_mapping(&self) -> Option<(Instant, Family)> {
        self.mappings().map(|(_, born, family)| (born, family)).max()
    }

    /// Mappings that are about to die, beside younger ones: whatever uses them goes over.
    fn retire_aged(&mut self, now: Instant) {
        let Some(ripe) = self.fresh.ripe() else { return };
        let Some((youngest, family)) = self.newest_mapping().filter(|m| now < m.0 + ripe) else {
            return;
        };
        let aged =
            |m: &(PairKey, Instant, Family)| m.2 == family && m.1 < youngest && m.1 + ripe <= now;
        let aged: Vec<_> = self.mappings().filter(aged).map(|m| m.0).collect();
        for (socket, remote) in aged {
            if let Some(pair) = self.table.pairs.get_mut(&(socket, remote)) {
                pair.retiring = true;
                self.events.push_back(Event::Retiring { socket, remote });
            }
        }
    }

    /// Whether mappings that should have died did.
    fn judge_retired(&mut self, now: Instant) {
        let Some(life) = self.fresh.life() else { return };
        let mut verdicts = Vec::new();
        for (key, pair) in self.table.pairs.iter_mut().filter(|(_, p)| p.retiring) {
            let Some(mapping) = pair.mapping else { continue };
            if !pair.is_live() {
                verdicts.push(Some(mapping.lost_by(now)));
            } else if now >= mapping.since + life * 3 / 2 + WATCH_SLACK {
                verdicts.push(None);
            } else {
                continue;
            }
            // Judged; an ordinary socket lives on, with another mapping if need be.
            pair.forgotten = pair.mapping.take().map(|mapping| mapping.confirmed);
            pair.retiring = key.0.0 >= FRESH_BASE;
        }
        for verdict in verdicts {
            match verdict {
                Some(lost) => self.fresh.handle_lost(lost),
                None => self.fresh.handle_survival(),
            }
        }
    }

    /// Sockets opened for this session that serve no pair.
    fn close_useless(&mut self, usable: bool, now: Instant) {
        let selected = self.hard.selected();
        let mut dropped = Vec::new();
        for (number, socket) in &mut self.sockets {
            let mut own = self.table.pairs.iter().filter(|(key, _)| key.0 == *number);
            let over = |p: &Pair| p.retiring && (p.mapping.is_none() || !p.is_live());
            let used = own.any(|(_, p)| p.verified.is_some() && !over(p));
            if number.0 < FRESH_BASE || used || socket.unneeded || Some(*number) == selected {
                continue;
            }
            let birthday = number.0 >= BIRTHDAY_BASE;
            let idle = now >= socket.since + useless_after(usable);
            if birthday || idle {
                socket.unneeded = true;
                dropped.push(*number);
            }
        }
        for number in dropped {
            if number.0 >= BIRTHDAY_BASE {
                self.handle_socket_closed(number);
            }
            self.events.push_back(Event::SocketUnneeded(number));
        }
    }

    fn insert_promoted(&mut self, socket: LocalSocket, family: Family, now: Instant) {
        let promoted = Socket { family, candidates: Vec::new(), since: now, unneeded: false };
        self.sockets.insert(socket, promoted);
    }

    fn next_advance(&self, now: Instant) -> Option<Instant> {
        let usable = self.table.pairs.values().any(|p| p.is_usable(now));
        let hard = if usable { None } else { self.hard.wake_at() };
        let fresh = if usable {
            self.newest_mapping()
                .filter(|_| self.has_room())
                .and_then(|(born, _)| self.fresh.replace_at(born))
        } else {
            self.family_to_retry().and_then(|_| self.fresh.wake_at())
        };
        let aged = self.fresh.ripe().and_then(|ripe| {
            self.mappings().map(|(_, born, _)| born + ripe).filter(|at| *at > now).min()
        });
        let watched = self.fresh.life().and_then(|life| {
            let retired = self.table.pairs.values().filter(|p| p.retiring && p.is_live());
            retired.filter_map(|p| Some(p.mapping?.since + life * 3 / 2 + WATCH_SLACK)).min()
        });
        let useless = self.sockets.iter().filter(|(n, s)| n.0 >= FRESH_BASE && !s.unneeded);
        let useless = useless.map(|(_, s)| s.since + useless_after(usable)).filter(|at| *at > now);
        let until = self.table.pairs.values().filter_map(Pair::usable_until).min();
        let until = until.filter(|at| *at > now);
        let succeeded = self.succeeded().map(|(_, at)| at).filter(|at| *at > now).min();
        let all = [hard, fresh, aged, watched, succeeded, self.restart_at, until];
        all.into_iter().flatten().chain(useless).min()
    }
}

/// With a path elsewhere a fresh socket need not find one, but may be about to.
fn useless_after(usable: bool) -> Duration {
    if usable { FRESH_LIFE / 3 } else { FRESH_LIFE }
}
