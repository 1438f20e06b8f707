//! All unprivileged ports in an order of chance, without repetition and without a list.

use rand::RngExt as _;
use rand::rngs::StdRng;

/// Ports from here are guessed: NATs give out no privileged ones to unprivileged ones
/// (RFC 4787 §4.2.1, REQ-3).
const FIRST: u32 = 1024;
/// How many there are.
const COUNT: u32 = 65_536 - FIRST;

/// An affine permutation: which subset comes first does not matter against ports of chance.
#[derive(Clone, Debug)]
pub(super) struct PortOrder {
    at: u32,
    step: u32,
}

impl PortOrder {
    pub(super) fn new(rng: &mut StdRng) -> Self {
        // A step that shares no factor with 64,512 = 2^10 · 3^2 · 7 visits every port.
        let coprime = |step: &u32| [2, 3, 7].iter().all(|factor| !step.is_multiple_of(*factor));
        let from = rng.random_range(1..COUNT);
        let step = (from..COUNT).chain(1..from).find(coprime).unwrap_or(1);
        Self { at: rng.random_range(0..COUNT), step }
    }

    pub(super) fn next_port(&mut self) -> u16 {
        let port = FIRST + self.at;
        self.at = (self.at + self.step) % COUNT;
        u16::try_from(port).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn visits_every_unprivileged_port_once() {
        for seed in 0..5 {
            let mut order = PortOrder::new(&mut StdRng::seed_from_u64(seed));
            let ports: BTreeSet<_> = (0..COUNT).map(|_| order.next_port()).collect();
            assert_eq!((ports.len(), ports.first()), (COUNT as usize, Some(&1024)));
        }
    }
}
