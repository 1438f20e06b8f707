//! One record for one refused channel.
//!
//! An agent tells a refusal by its policy twice, on two ways: from the gate, which knows the rule,
//! and as the end of the channel. Either may be lost or come first. Counted are both kinds per
//! target; a telling is new only if it is the first of its pair, so that nothing refused twice is
//! recorded once.

use std::{collections::BTreeMap, time::Duration};

use adit_protocol::target::Target;

/// The two tellings belong together within this time.
const WITHIN: Duration = Duration::from_secs(30);
/// Targets remembered per session; beyond, everything is recorded.
const MAX_TARGETS: usize = 64;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Telling {
    /// With the rule.
    Policy,
    /// As a channel's end.
    Channel,
}

#[derive(Debug)]
struct Counted {
    policy: u32,
    channel: u32,
    last: Duration,
}

/// Refusals told of late, of one session.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<Target, Counted>);

impl Refusals {
    /// Whether this telling is to be recorded.
    pub(super) fn is_new(&mut self, target: &Target, telling: Telling, now: Duration) -> bool {
        self.0.retain(|_, counted| now.saturating_sub(counted.last) <= WITHIN);
        if self.0.len() >= MAX_TARGETS && !self.0.contains_key(target) {
            return true;
        }
        let new = Counted { policy: 0, channel: 0, last: now };
        let counted = self.0.entry(target.clone()).or_insert(new);
        counted.last = now;
        let (mine, other) = match telling {
            Telling::Policy => (&mut counted.policy, counted.channel),
            Telling::Channel => (&mut counted.channel, counted.policy),
        };
        *mine = mine.saturating_add(1);
        *mine > other
    }
}
