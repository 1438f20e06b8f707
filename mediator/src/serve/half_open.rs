//! Connections that have not proved anything yet: bounded in all and per source.
//!
//! When there are too many the oldest give way, never the newest: a flood of stalled
//! connections keeps nobody out whose handshake makes progress.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// A source: an IPv4 address, or the /64 that one IPv6 host usually has (RFC 4291 §2.5.4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Source {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let mut prefix = [0; 8];
                prefix.iter_mut().zip(ip.octets()).for_each(|(to, from)| *to = from);
                Self::V6(prefix)
            }
        }
    }
}

#[derive(Default)]
struct Table {
    next: u64,
    all: BTreeMap<u64, (Source, CancellationToken)>,
    by_source: HashMap<Source, BTreeSet<u64>>,
}

impl Table {
    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let (source, token) = self.all.remove(&number)?;
        if let Some(set) = self.by_source.get_mut(&source) {
            set.remove(&number);
            if set.is_empty() {
                self.by_source.remove(&source);
            }
        }
        Some(token)
    }
}

/// All connections that have not proved anything.
#[derive(Clone)]
pub(super) struct HalfOpen {
    table: Arc<Mutex<Table>>,
    max: usize,
    max_per_source: usize,
}

impl HalfOpen {
    pub(super) fn new(max: usize, max_per_source: usize) -> Self {
        Self { table: Arc::default(), max, max_per_source }
    }

    /// Counts a new connection; its token is cancelled when it must give way.
    pub(super) fn admit(&self, ip: IpAddr) -> Admitted {
        let source = Source::of(ip);
        let token = CancellationToken::new();
        let mut table = lock(&self.table);
        let number = table.next;
        table.next += 1;
        let of_source = table.by_source.get(&source);
        let oldest = match of_source {
            Some(set) if set.len() >= self.max_per_source => set.first().copied(),
            _ if table.all.len() >= self.max => table.all.keys().next().copied(),
            _ => None,
        };
        if let Some(token) = oldest.and_then(|oldest| table.remove(oldest)) {
            token.cancel();
        }
        table.all.insert(number, (source, token.clone()));
        table.by_source.entry(source).or_default().insert(number);
        Admitted { table: Arc::clone(&self.table), number, token }
    }
}

/// A place in the table until the connection proved something or ended.
pub(crate) struct Admitted {
    table: Arc<Mutex<Table>>,
    number: u64,
    token: CancellationToken,
}

impl Admitted {
    /// Cancelled when the connection must give way.
    pub(crate) fn must_go(&self) -> CancellationToken {
        self.token.clone()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        lock(&self.table).remove(self.number);
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_same_source_gives_way() {
        let half = HalfOpen::new(10, 2);
        let (a, b): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let first = half.admit(a);
        let other = half.admit(b);
        let second = half.admit(a);
        assert!(!first.must_go().is_cancelled());
        let third = half.admit(a);
        assert!(first.must_go().is_cancelled() && !second.must_go().is_cancelled());
        assert!(!third.must_go().is_cancelled() && !other.must_go().is_cancelled());
        drop((first, second, third, other));
        assert!(lock(&half.table).all.is_empty() && lock(&half.table).by_source.is_empty());
    }

    #[test]
    fn the_oldest_of_all_gives_way_when_the_table_is_full() {
        let half = HalfOpen::new(3, 2);
        let admitted: Vec<_> =
            (0..4_u8).map(|n| half.admit(IpAddr::from([192, 0, 2, n]))).collect();
        let gone: Vec<_> = admitted.iter().map(|a| a.must_go().is_cancelled()).collect();
        assert_eq!(gone, [true, false, false, false]);
    }
}
