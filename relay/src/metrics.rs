//! What operators see of the relay. No label comes from a peer.

use adit_runtime::metrics::{
    Registry,
    prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use crate::core::pairing::Counts;

type Label = [(&'static str, &'static str); 1];

/// Handles of the metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pairs: Gauge,
    waiting: Gauge,
    unjoined: Gauge,
    registered: Gauge,
    joins: Family<Label, Counter>,
    ends: Family<Label, Counter>,
    bytes: Family<Label, Counter>,
    pub(crate) lost_reports: Counter,
}

impl Metrics {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry;
        r.register("relay_pairs", "Pairs joined at present", self.pairs.clone());
        r.register("relay_waiting", "Joins that wait for their other end", self.waiting.clone());
        r.register("relay_unjoined", "Connections not joined yet", self.unjoined.clone());
        r.register(
            "relay_registered",
            "1 while connected to the mediator",
            self.registered.clone(),
        );
        r.register("relay_joins", "Connections by how their join ended", self.joins.clone());
        r.register("relay_pair_ends", "Pairs by how they ended", self.ends.clone());
        r.register("relay_bytes", "Bytes copied; up is console to agent", self.bytes.clone());
        let lost = "Sessions whose bytes were forgotten before the mediator knew";
        r.register("relay_lost_reports", lost, self.lost_reports.clone());
    }

    pub(crate) fn set_counts(&self, counts: Counts) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.pairs.set(number(counts.pairs));
        self.waiting.set(number(counts.waiting));
        self.unjoined.set(number(counts.unjoined));
    }

    pub(crate) fn set_registered(&self, registered: bool) {
        self.registered.set(i64::from(registered));
    }

    pub(crate) fn join_ended(&self, result: &'static str) {
        self.joins.get_or_create(&[("result", result)]).inc();
    }

    pub(crate) fn pair_ended(&self, reason: &'static str) {
        self.ends.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn moved(&self, up: u64, down: u64) {
        self.bytes.get_or_create(&[("direction", "up")]).inc_by(up);
        self.bytes.get_or_create(&[("direction", "down")]).inc_by(down);
    }
}
