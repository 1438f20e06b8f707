//! Quotas of connections that have proved nothing yet: in all, and for each source network.
//!
//! A newcomer is always let in; who is over a quota loses their *oldest* connection, and when the
//! table is full, the network with the most connections does. A flood therefore mostly evicts
//! itself, while someone who joins within a round trip or two is served (R16). Must never hold
//! more than the quotas say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use super::pairing::ConnId;

/// Whom a quota counts: an IPv4 address, or an IPv6 /64, which one host owns entirely
/// (RFC 6177 §2 gives sites at least that).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(addr: IpAddr) -> Self {
        Self(match addr.to_canonical() {
            v4 @ IpAddr::V4(_) => v4,
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        })
    }
}

/// Connections without a valid message 1, by source.
///
/// INVARIANT: `by_count` holds exactly `(connections, source)` of each source in `by_source`.
#[derive(Debug, Default)]
pub struct Admission {
    by_source: BTreeMap<Source, BTreeSet<ConnId>>,
    by_count: BTreeSet<(usize, Source)>,
    sources: BTreeMap<ConnId, Source>,
}

impl Admission {
    /// Takes a newcomer in and names who must go for it, if anyone. Ids grow with age.
    pub fn admit(
        &mut self,
        conn: ConnId,
        source: Source,
        max_per_source: usize,
        max: usize,
    ) -> Option<ConnId> {
        let own = self.by_source.get(&source).map_or(0, BTreeSet::len);
        let crowded = if own >= max_per_source.max(1) {
            Some(source)
        } else if self.sources.len() >= max.max(1) {
            self.by_count.last().map(|(_, s)| *s)
        } else {
            None
        };
        let victim = crowded.and_then(|s| self.by_source.get(&s)?.first().copied());
        if let Some(victim) = victim {
            self.remove(victim);
        }
        self.sources.insert(conn, source);
        self.change(source, |set| set.insert(conn));
        victim
    }

    /// The connection is no longer without proof, or gone.
    pub fn remove(&mut self, conn: ConnId) -> bool {
        let Some(source) = self.sources.remove(&conn) else { return false };
        self.change(source, |set| set.remove(&conn));
        true
    }

    /// Connections held.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    fn change(&mut self, source: Source, act: impl FnOnce(&mut BTreeSet<ConnId>) -> bool) {
        let set = self.by_source.entry(source).or_default();
        self.by_count.remove(&(set.len(), source));
        act(set);
        if set.is_empty() {
            self.by_source.remove(&source);
        } else {
            self.by_count.insert((set.len(), source));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u8) -> Source {
        Source::from(IpAddr::from([192, 0, 2, n]))
    }

    #[test]
    fn flood_from_one_source_evicts_only_itself() {
        let mut a = Admission::default();
        assert_eq!(a.admit(ConnId(0), source(1), 10, 100), None);
        for i in 1..=10 {
            assert_eq!(a.admit(ConnId(i), source(2), 10, 100), None);
        }
        for i in 11..1000 {
            assert_eq!(a.admit(ConnId(i), source(2), 10, 100), Some(ConnId(i - 10)));
        }
        assert_eq!(a.len(), 11);
        assert!(a.remove(ConnId(0)));
    }

    #[test]
    fn full_table_takes_from_the_busiest_source() {
        let mut a = Admission::default();
        for i in 0..3 {
            a.admit(ConnId(i), source(1), 10, 5);
        }
        a.admit(ConnId(3), source(2), 10, 5);
        a.admit(ConnId(4), source(3), 10, 5);
        assert_eq!(a.admit(ConnId(5), source(4), 10, 5), Some(ConnId(0)));
        assert_eq!(a.len(), 5);
    }

    #[test]
    fn ipv6_hosts_cannot_multiply_by_addresses() {
        let a: Source = "2001:db8::1".parse::<IpAddr>().unwrap().into();
        let b: Source = "2001:db8::ffff:2".parse::<IpAddr>().unwrap().into();
        let c: Source = "::ffff:192.0.2.7".parse::<IpAddr>().unwrap().into();
        assert_eq!(a, b);
        assert_eq!(c, source(7));
    }
}
