//! What `netcheck` says of a network, against what the network does.

use std::{
    fmt::Write as _,
    fs,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{matrix::Options, pair::Bench};
use crate::{lab::LabServer, site::artifacts_path};

/// What is true of a kind of network: the part of `netcheck --json` that must be said.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    /// As natlab calls it.
    pub kind: &'static str,
    /// Whether UDP passes.
    udp: bool,
    /// But only to port 443.
    only_443: bool,
    /// Whether IPv6 does.
    v6: bool,
    /// Whether addresses are translated, if that can be known.
    nat: Option<bool>,
    mapping: &'static str,
    filtering: &'static str,
    /// Whether sessions can be direct.
    direct: &'static str,
    /// What the gateway speaks.
    port_mapping: &'static [&'static str],
    /// The address by which others see it.
    public: &'static str,
}

/// A NAT that keeps its ports and lets in whom it sent to.
const HOME: Truth = Truth {
    kind: "port-restricted",
    udp: true,
    only_443: false,
    v6: false,
    nat: Some(true),
    mapping: "endpoint-independent",
    filtering: "address-and-port-dependent",
    direct: "yes",
    port_mapping: &[],
    public: "198.51.100.10",
};
/// A NAT that does not.
const SYMMETRIC: Truth =
    Truth { kind: "symmetric", mapping: "address-and-port-dependent", direct: "hard", ..HOME };
/// Nothing is known where UDP does not pass.
const NO_UDP: Truth = Truth {
    kind: "udp-blocked",
    udp: false,
    nat: None,
    mapping: "unknown",
    filtering: "unknown",
    direct: "no",
    public: "",
    ..HOME
};

/// Every kind.
pub const TRUTHS: &[Truth] = &[
    Truth { kind: "open", nat: Some(false), filtering: "endpoint-independent", ..HOME },
    Truth { kind: "fw", nat: Some(false), ..HOME },
    Truth { kind: "full-cone", filtering: "endpoint-independent", ..HOME },
    Truth { kind: "restricted", filtering: "address-dependent", ..HOME },
    HOME,
    SYMMETRIC,
    Truth { kind: "symmetric-addr", mapping: "address-dependent", ..SYMMETRIC },
    Truth { kind: "symmetric-seq", ..SYMMETRIC },
    Truth { kind: "cgnat", public: "192.0.2.10", ..HOME },
    Truth { kind: "cgnat-symmetric", public: "192.0.2.10", ..SYMMETRIC },
    NO_UDP,
    Truth { kind: "tcp443", ..NO_UDP },
    Truth { kind: "port443", only_443: true, filtering: "unknown", direct: "no", ..HOME },
    Truth { kind: "proxy", ..NO_UDP },
    Truth { kind: "dual", v6: true, ..HOME },
    // The laboratory's mediator has one IPv6 address, and two are needed to see a firewall.
    Truth {
        kind: "ipv6",
        v6: true,
        nat: Some(false),
        filtering: "unknown",
        public: "2001:db8:1::2",
        ..HOME
    },
    Truth { kind: "pmp", port_mapping: &["nat-pmp"], ..HOME },
    Truth { kind: "pcp", port_mapping: &["pcp"], ..HOME },
    Truth { kind: "linux", ..HOME },
    Truth { kind: "linux-random", ..SYMMETRIC },
    Truth { kind: "linux-noinput", ..HOME },
    Truth { kind: "linux-upnp", port_mapping: &["upnp"], ..HOME },
];

impl Truth {
    /// What of it was told otherwise.
    fn denied_by(&self, told: &Value) -> Vec<String> {
        let nat = &told["nat"];
        let mut expected = vec![
            ("udp", &told["udp"], json!(self.udp)),
            ("udp_443_only", &told["udp_443_only"], json!(self.only_443)),
            ("ipv6", &told["ipv6"], json!(self.v6)),
            ("mapping", &nat["mapping"], json!(self.mapping)),
            ("filtering", &nat["filtering"], json!(self.filtering)),
            ("direct", &told["direct"], json!(self.direct)),
            ("port_mapping", &told["port_mapping"], json!(self.port_mapping)),
        ];
        if let Some(present) = self.nat {
            expected.push(("nat present", &nat["present"], json!(present)));
        }
        let wrong = expected.iter().filter(|(_, told, truth)| *told != truth);
        let mut wrong: Vec<_> =
            wrong.map(|(what, told, truth)| format!("{what} is {truth}, told {told}")).collect();
        let public = told["public"].to_string();
        if !public.contains(self.public) {
            wrong.push(format!("public is {}, told {public}", self.public));
        }
        wrong
    }
}

/// What was told of each kind.
pub struct Report {
    results: Vec<(Truth, Value, Vec<String>)>,
}

/// Asks in every kind of network.
pub fn run(test: &str, truths: Vec<Truth>, options: &Options) -> Result<Report> {
    let _ = fs::remove_dir_all(artifacts_path(test));
    let mut bench = Bench::new(&format!("{test}/setup"))?;
    bench.log_level.clone_from(&options.log_level);
    let queue = Mutex::new(truths.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| -> Result<()> {
        let work = || -> Result<()> {
            let server = bench.another()?;
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((at, truth)) = next else { return Ok(()) };
                let (told, wrong) = match ask(test, &bench, &server, truth, options.seed) {
                    Ok(told) => (told.clone(), truth.denied_by(&told)),
                    Err(error) => (Value::Null, vec![format!("{error:#}")]),
                };
                done.lock().unwrap_or_else(PoisonError::into_inner).push((at, truth, told, wrong));
            }
        };
        let workers: Vec<_> = (0..options.jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or(Ok(())))
    })?;
    let mut results = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, ..)| *at);
    Ok(Report { results: results.into_iter().map(|(_, t, v, w)| (t, v, w)).collect() })
}

fn ask(
    test: &str,
    bench: &Bench,
    server: &std::sync::Arc<LabServer>,
    truth: Truth,
    seed: u64,
) -> Result<Value> {
    let lab = server.up(&format!("{}+open", truth.kind), seed, None)?;
    let mut site = bench.site(&format!("{test}/{}", truth.kind), lab, truth.kind == "ipv6")?;
    site.restart_all(&["mediator"])?;
    site.restart_all(&["relay", "relay2"])?;
    let told = site.ask("console", &["netcheck", "--json"], "")?;
    site.kill_all();
    ensure!(told["mediator"]["reachable"] == true, "{told}");
    for relay in told["relays"].as_array().into_iter().flatten() {
        ensure!(relay["rtt_ms"].is_number(), "{told}");
    }
    ensure!(told["relays"].as_array().map(Vec::len) == Some(2), "{told}");
    Ok(told)
}

impl Report {
    /// What was told wrongly: a paragraph each.
    pub fn misses(&self) -> Vec<String> {
        let wrong = self.results.iter().filter(|(.., wrong)| !wrong.is_empty());
        wrong.map(|(t, told, wrong)| format!("{}: {}\n{told}", t.kind, wrong.join("; "))).collect()
    }

    /// A table in Markdown.
    pub fn table(&self) -> String {
        let mut out = String::from(
            "| Network | UDP | IPv6 | NAT | Mapping | Filtering | Gateway opens ports by | Direct |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for (truth, told, wrong) in &self.results {
            let word = |v: &Value| match v {
                Value::Bool(true) => "yes".to_owned(),
                Value::Bool(false) => "no".to_owned(),
                Value::String(s) => s.clone(),
                Value::Array(all) => {
                    all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
                }
                _ => "unknown".to_owned(),
            };
            let nat = &told["nat"];
            let mark = if wrong.is_empty() { "" } else { " **wrong**" };
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} | {} | {} | {} | {}{mark} |",
                truth.kind,
                word(&told["udp"]),
                word(&told["ipv6"]),
                word(&nat["present"]),
                word(&nat["mapping"]),
                word(&nat["filtering"]),
                word(&told["port_mapping"]),
                word(&told["direct"]),
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::oracle::KINDS;

    #[test]
    fn every_kind_has_its_truth() {
        for kind in KINDS {
            assert!(TRUTHS.iter().any(|t| t.kind == kind.name), "{}", kind.name);
        }
    }
}
