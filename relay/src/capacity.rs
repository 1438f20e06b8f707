//! How much this process may hold: file descriptors bound the configured limits.

use tracing::warn;

use crate::core::pairing::Limits;

/// Descriptors for everything that is neither a session's socket nor a pipe.
const RESERVE: usize = 128;
/// Pipes at once: beyond it directions are copied through buffers.
const MAX_PIPES: usize = 2048;
/// Descriptors of a pipe.
const PER_PIPE: usize = 2;

/// What the operating system allows.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    descriptors: usize,
}

impl Capacity {
    /// Raises the soft limit of descriptors to the hard one and takes what there is.
    pub fn of_this_process() -> Self {
        #[cfg(unix)]
        let descriptors = match rlimit::increase_nofile_limit(u64::MAX) {
            Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
            Err(error) => {
                warn!(%error, "cannot raise the limit of file descriptors");
                1024
            }
        };
        // Sockets are not counted there.
        #[cfg(not(unix))]
        let descriptors = usize::MAX;
        Self { descriptors }
    }

    /// Pipes that may exist at once.
    pub fn max_pipes(self) -> usize {
        (self.descriptors / 8 / PER_PIPE).min(MAX_PIPES)
    }

    /// Limits that fit into the descriptors: each pair has two, as has each waiting join a half.
    pub fn clamp(self, limits: Limits) -> Limits {
        let free = self.descriptors.saturating_sub(RESERVE + self.max_pipes() * PER_PIPE);
        // Unproven and answered connections have that limit each.
        let max_unjoined = limits.max_unjoined.min(free / 8).max(1);
        let max_pairs = (free.saturating_sub(2 * max_unjoined) / 2).max(1).min(limits.max_pairs);
        if max_pairs < limits.max_pairs {
            let (wanted, descriptors) = (limits.max_pairs, self.descriptors);
            warn!(wanted, max_pairs, descriptors, "fewer pairs than configured: raise LimitNOFILE");
        }
        Limits { max_unjoined, max_pairs, ..limits }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn all_descriptors_together_stay_below_the_limit() {
        let limits = Limits {
            max_unjoined: 4096,
            max_unjoined_per_source: 256,
            max_pairs: 20_000,
            unjoined: Duration::ZERO,
            unpaired: Duration::ZERO,
            idle: Duration::ZERO,
            lifetime: Duration::ZERO,
        };
        for descriptors in [256, 1024, 20_000, 1_000_000] {
            let capacity = Capacity { descriptors };
            let l = capacity.clamp(limits);
            let most = 2 * l.max_pairs + 2 * l.max_unjoined + PER_PIPE * capacity.max_pipes();
            assert!(most + RESERVE <= descriptors, "{descriptors}: {l:?}");
        }
        assert!(Capacity { descriptors: 20_000 }.clamp(limits).max_pairs >= 5_000);
        assert_eq!(Capacity { descriptors: 1_000_000 }.clamp(limits).max_pairs, 20_000);
    }
}
