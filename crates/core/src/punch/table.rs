//! The pairs of a session: bounded, and in the order in which they are worth checking.

use std::{cmp::Reverse, collections::BTreeMap, net::SocketAddr};

use adit_protocol::candidate::CandidateKind;

use super::{
    Family, LocalSocket, MAX_PAIRS, MAX_PEER_REFLEXIVE, MAX_PORTS_PER_ADDRESS, pair::Pair,
};

pub(super) type PairKey = (LocalSocket, SocketAddr);

#[derive(Default, Debug)]
pub(super) struct Table {
    pub(super) pairs: BTreeMap<PairKey, Pair>,
}

impl Table {
    /// Adds a pair that is not there yet; where a bound is reached the least useful unverified
    /// one makes room. False if none could.
    pub(super) fn insert(&mut self, key: PairKey, pair: Pair) -> bool {
        let (socket, remote) = key;
        let same_ip = |k: &PairKey, _: &Pair| k.0 == socket && k.1.ip() == remote.ip();
        let reflexive = |_: &PairKey, p: &Pair| p.kind == CandidateKind::PeerReflexive;
        let room = self.make_room(MAX_PORTS_PER_ADDRESS, same_ip)
            && (pair.kind != CandidateKind::PeerReflexive
                || self.make_room(MAX_PEER_REFLEXIVE, reflexive))
            && (self.pairs.len() < MAX_PAIRS || self.make_room(0, |_, _| true));
        if room {
            self.pairs.insert(key, pair);
            self.rank();
        }
        room
    }

    /// Whether another pair with this remote address is verified.
    pub(super) fn is_verified(&self, remote: SocketAddr) -> bool {
        self.pairs.iter().any(|((_, r), p)| *r == remote && p.verified.is_some())
    }

    /// Makes sure that fewer than `limit` unverified pairs match (or, for 0, that one goes).
    fn make_room(&mut self, limit: usize, matches: impl Fn(&PairKey, &Pair) -> bool) -> bool {
        let unverified =
            || self.pairs.iter().filter(|(k, p)| p.verified.is_none() && matches(k, p));
        if unverified().count() < limit {
            return true;
        }
        let worst = unverified().min_by_key(|(_, p)| (p.mentioned, Reverse(p.rank)));
        let Some(key) = worst.map(|(k, _)| *k) else { return false };
        self.pairs.remove(&key);
        true
    }

    /// Classes take turns, each with its best pair next.
    pub(super) fn rank(&mut self) {
        let mut classes: BTreeMap<u8, Vec<(Reverse<u32>, PairKey)>> = BTreeMap::new();
        for (key, pair) in &self.pairs {
            let class = classes.entry(class(pair, key.1)).or_default();
            class.push((Reverse(pair.priority), *key));
        }
        let mut order = Vec::with_capacity(self.pairs.len());
        for (class, mut members) in classes {
            members.sort_unstable();
            order
                .extend(members.into_iter().enumerate().map(|(turn, (_, key))| (turn, class, key)));
        }
        order.sort_unstable();
        for (rank, (_, _, key)) in order.into_iter().enumerate() {
            if let Some(pair) = self.pairs.get_mut(&key) {
                pair.rank = rank;
            }
        }
    }
}

/// Likely ones first: whoever was heard; IPv6, which needs no luck with ports; then what servers
/// saw, and the rest.
fn class(pair: &Pair, remote: SocketAddr) -> u8 {
    if pair.heard {
        return 0;
    }
    match (Family::of(remote), pair.kind) {
        (_, CandidateKind::PeerReflexive) => 0,
        (Family::V6, CandidateKind::Host) => 1,
        (Family::V4, CandidateKind::ServerReflexive) => 2,
        (Family::V4, CandidateKind::Host) => 3,
        (_, CandidateKind::Mapped) => 4,
        (Family::V6, CandidateKind::ServerReflexive) => 5,
    }
}
