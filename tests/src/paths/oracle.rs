//! What theory says of each pair of networks, from what the two sides do with packets (RFC 4787).
//!
//! It knows nothing of how Adit punches: a pair is easy where simultaneous open works, hard where
//! a port must be guessed or packets race, impossible where nothing within reasonable bounds
//! helps. What the rules do not cover is an exception, with its own reason.

use std::fmt::{self, Write as _};

/// What can be expected of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Class {
    /// Direct within 3 s, always.
    Easy,
    /// Direct within 10 s in at least 95 of 100 runs.
    Hard,
    /// Relayed.
    Impossible,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Easy => "easy",
            Self::Hard => "hard",
            Self::Impossible => "impossible",
        })
    }
}

/// A class and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// What can be expected.
    pub class: Class,
    /// The reason, in a line.
    pub why: String,
}

/// One scenario of natlab and what to expect of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// As natlab calls it.
    pub scenario: String,
    /// Row of the matrix: the console's side.
    pub console: String,
    /// Column of the matrix: the agent's side.
    pub agent: String,
    /// Whether the console has IPv6 only.
    pub console_v6_only: bool,
    /// What to expect.
    pub verdict: Verdict,
}

/// External port of a new flow from a known socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
enum Mapping {
    /// The one that is known already: no NAT, or endpoint-independent mapping.
    Known,
    /// A new one, the last one plus a fixed step.
    Next,
    /// A new random one for each address.
    NewByAddress,
    /// A new random one for each address and port.
    New,
}

/// Whose packets pass inwards once the inside has sent something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
enum Filtering {
    Anyone,
    SameAddress,
    SameAddressAndPort,
}

/// What a side's way to the IPv4 internet does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Gate {
    mapping: Mapping,
    filtering: Filtering,
    /// A packet from outside that comes first changes the port of what goes out later.
    inbound_first_spoils: bool,
}

impl Gate {
    const fn new(mapping: Mapping, filtering: Filtering) -> Self {
        Self { mapping, filtering, inbound_first_spoils: false }
    }

    /// Behind another one: the worse of each.
    fn behind(self, other: Self) -> Self {
        Self {
            mapping: self.mapping.max(other.mapping),
            filtering: self.filtering.max(other.filtering),
            inbound_first_spoils: self.inbound_first_spoils || other.inbound_first_spoils,
        }
    }
}

/// A kind of side.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// As natlab calls it.
    pub name: &'static str,
    v4: Option<Gate>,
    /// Its IPv6, always behind a stateful firewall.
    v6: bool,
    /// Why UDP does not pass, if it does not.
    no_udp: Option<&'static str>,
    /// Opens ports on request.
    port_mapping: bool,
    /// Has a kernel router, which takes one host.
    kernel: bool,
}

impl Kind {
    /// Whether it has no IPv4.
    pub fn v6_only(&self) -> bool {
        self.v4.is_none()
    }
}

const fn nat(name: &'static str, mapping: Mapping, filtering: Filtering) -> Kind {
    let v4 = Some(Gate::new(mapping, filtering));
    Kind { name, v4, v6: false, no_udp: None, port_mapping: false, kernel: false }
}

const fn cone(name: &'static str) -> Kind {
    nat(name, Mapping::Known, Filtering::SameAddressAndPort)
}

const fn symmetric(name: &'static str, mapping: Mapping) -> Kind {
    nat(name, mapping, Filtering::SameAddressAndPort)
}

/// Every kind of the matrix, in its order.
pub const KINDS: &[Kind] = &[
    nat("open", Mapping::Known, Filtering::Anyone),
    cone("fw"),
    nat("full-cone", Mapping::Known, Filtering::Anyone),
    nat("restricted", Mapping::Known, Filtering::SameAddress),
    cone("port-restricted"),
    symmetric("symmetric", Mapping::New),
    symmetric("symmetric-addr", Mapping::NewByAddress),
    symmetric("symmetric-seq", Mapping::Next),
    cone("cgnat"),
    symmetric("cgnat-symmetric", Mapping::New),
    Kind { no_udp: Some("drops all UDP"), ..cone("udp-blocked") },
    Kind { no_udp: Some("lets only TCP to port 443 out"), ..cone("tcp443") },
    Kind { no_udp: Some("has only an HTTP proxy"), ..cone("proxy") },
    Kind { v6: true, ..cone("dual") },
    Kind { v4: None, v6: true, ..cone("ipv6") },
    Kind { port_mapping: true, ..cone("pmp") },
    Kind { port_mapping: true, kernel: true, ..cone("linux-upnp") },
    Kind { kernel: true, ..cone("linux") },
    Kind { kernel: true, ..symmetric("linux-random", Mapping::New) },
    Kind {
        v4: Some(Gate {
            inbound_first_spoils: true,
            ..Gate::new(Mapping::Known, Filtering::SameAddressAndPort)
        }),
        kernel: true,
        ..cone("linux-noinput")
    },
];

/// Pairs of which the rules say something else: console, agent, verdict, reason.
const EXCEPTIONS: &[(&str, &str, Class, &str)] = &[(
    "symmetric-seq",
    "symmetric-seq",
    Class::Impossible,
    "both have new ports: one packet of anybody else's shifts a count that both must know",
)];

/// All ordered pairs, then both sides on one LAN, then both behind one carrier's NAT.
pub fn cases() -> Vec<Case> {
    let pairs = KINDS.iter().flat_map(|console| KINDS.iter().map(|agent| pair(*console, *agent)));
    pairs.chain(one_lan()).chain(one_carrier()).collect()
}

/// Two sides that meet on the internet.
pub fn pair(console: Kind, agent: Kind) -> Case {
    let exception = EXCEPTIONS.iter().find(|(c, a, ..)| (*c, *a) == (console.name, agent.name));
    let verdict = match exception {
        Some((_, _, class, why)) => Verdict { class: *class, why: (*why).to_owned() },
        None => verdict(console, agent, None),
    };
    Case {
        scenario: format!("{}+{}", console.name, agent.name),
        console: console.name.to_owned(),
        agent: agent.name.to_owned(),
        console_v6_only: console.v4.is_none(),
        verdict,
    }
}

/// The oracle's reasons and which pairs they are for: a table in Markdown.
pub fn reasons() -> String {
    let mut found: Vec<(Class, String, Vec<String>)> = Vec::new();
    for case in cases() {
        let Verdict { class, why } = case.verdict;
        match found.iter_mut().find(|(c, w, _)| *c == class && *w == why) {
            Some((.., pairs)) => pairs.push(case.scenario),
            None => found.push((class, why, vec![case.scenario])),
        }
    }
    found.sort_by_key(|(class, _, pairs)| (*class, usize::MAX - pairs.len()));
    let mut out = String::from("| Class | Reason | Pairs | For example |\n|---|---|--:|---|\n");
    for (class, why, pairs) in found {
        let example = pairs.first().map(String::as_str).unwrap_or_default();
        let _ = writeln!(out, "| {class} | {why} | {} | {example} |", pairs.len());
    }
    out
}

/// The case of that scenario.
pub fn case(scenario: &str) -> Option<Case> {
    cases().into_iter().find(|case| case.scenario == scenario)
}

fn say(class: Class, why: impl Into<String>) -> Verdict {
    Verdict { class, why: why.into() }
}

/// `carrier`: a NAT that both sides are behind.
fn verdict(console: Kind, agent: Kind, carrier: Option<Gate>) -> Verdict {
    for (role, side) in [("console", console), ("agent", agent)] {
        if let Some(why) = side.no_udp {
            return say(Class::Impossible, format!("the {role}'s network {why}"));
        }
    }
    // Carriers pass IPv6 on between their customers, whatever their NAT does with IPv4.
    if console.v6 && agent.v6 {
        return say(Class::Easy, "both have IPv6 behind firewalls that open outwards");
    }
    let (Some(mut a), Some(mut b)) = (console.v4, agent.v4) else {
        return say(Class::Impossible, "they have no address family in common");
    };
    if let Some(carrier) = carrier {
        (a, b) = (a.behind(carrier), b.behind(carrier));
    }
    let gates = [(console, a), (agent, b)];
    for (side, gate) in gates {
        if gate.filtering == Filtering::Anyone {
            return say(Class::Easy, format!("{} takes packets from anyone", side.name));
        }
    }
    for (side, _) in gates {
        if side.port_mapping && carrier.is_none() {
            return say(Class::Easy, format!("{} opens a port on request", side.name));
        }
    }
    both_filter((console.name, a), (agent.name, b))
}

/// Neither side takes packets from strangers.
fn both_filter((x, a): (&str, Gate), (y, b): (&str, Gate)) -> Verdict {
    use Mapping::{Known, Next};
    match (a.mapping, b.mapping) {
        (Known, Known) => {
            let spoilt = |one: Gate, other: Gate| {
                one.inbound_first_spoils && other.filtering == Filtering::SameAddressAndPort
            };
            if spoilt(a, b) || spoilt(b, a) {
                let why =
                    "the router without input filter changes its port if the other comes first";
                return say(Class::Hard, format!("a race: {why}"));
            }
            say(Class::Easy, "both keep their ports: simultaneous open")
        }
        (Known, new) | (new, Known) => {
            let (known, gate, other) = if a.mapping == Known { (x, a, y) } else { (y, b, x) };
            if gate.filtering == Filtering::SameAddress {
                return say(Class::Easy, format!("{known} does not look at the port of {other}"));
            }
            let how = if new == Next { "can be predicted" } else { "must be found by many probes" };
            say(Class::Hard, format!("the new port of {other} {how}"))
        }
        (Next, Next) => say(Class::Hard, "both new ports can be predicted, if both begin together"),
        _ => say(Class::Impossible, "both have new ports, and each must know the other's"),
    }
}

/// Both on one LAN: what the gateway does matters only if it keeps them apart.
fn one_lan() -> impl Iterator<Item = Case> {
    let near = KINDS.iter().filter(|kind| !kind.kernel).map(|kind| {
        let verdict = say(Class::Easy, "both are on one LAN");
        (kind.name.to_owned(), kind.v4.is_none(), verdict)
    });
    let apart = [
        ("port-restricted:isolate=1:hairpin=1", Class::Easy, "kept apart, but the NAT hairpins"),
        ("full-cone:isolate=1:hairpin=1", Class::Easy, "kept apart, but the NAT hairpins"),
        (
            "port-restricted:isolate=1",
            Class::Impossible,
            "kept apart, and the NAT does not hairpin",
        ),
        ("symmetric:isolate=1:hairpin=1", Class::Impossible, "kept apart; both have new ports"),
    ];
    let apart = apart.map(|(side, class, why)| (side.to_owned(), false, say(class, why)));
    near.chain(apart).map(|(side, console_v6_only, verdict)| Case {
        scenario: format!("same/{side}"),
        console: "same LAN".to_owned(),
        agent: side,
        console_v6_only,
        verdict,
    })
}

/// Two homes behind one carrier's NAT, which hairpins or does not.
fn one_carrier() -> impl Iterator<Item = Case> {
    let homes = [
        ("port-restricted", "port-restricted"),
        ("full-cone", "restricted"),
        ("full-cone", "symmetric"),
        ("symmetric", "symmetric"),
        ("symmetric-seq", "port-restricted"),
        ("dual", "dual"),
        ("udp-blocked", "full-cone"),
    ];
    homes.into_iter().flat_map(|(x, y)| {
        let kind = |name| KINDS.iter().find(|kind| kind.name == name).copied();
        let (console, agent) = (kind(x), kind(y));
        let carrier = Gate::new(Mapping::Known, Filtering::SameAddressAndPort);
        let hairpin = console.zip(agent).map(|(x, y)| verdict(x, y, Some(carrier)));
        let six = console.zip(agent).is_some_and(|(x, y)| x.v6 && y.v6);
        let none = say(Class::Impossible, "the carrier's NAT does not hairpin");
        let none = if six { hairpin.clone() } else { Some(none) };
        [("cgn", hairpin), ("cgn:hairpin=0", none)].into_iter().filter_map(
            move |(head, verdict)| {
                Some(Case {
                    scenario: format!("{head}/{x}+{y}"),
                    console: format!("{head}/{x}"),
                    agent: y.to_owned(),
                    console_v6_only: false,
                    verdict: verdict?,
                })
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(scenario: &str) -> Class {
        case(scenario).unwrap_or_else(|| panic!("no {scenario}")).verdict.class
    }

    #[test]
    fn covers_every_ordered_pair_once() {
        let mut names: Vec<_> = cases().into_iter().map(|case| case.scenario).collect();
        assert!(names.len() > 400);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cases().len());
    }

    #[test]
    fn knows_the_textbook() {
        for (scenario, expected) in [
            ("port-restricted+port-restricted", Class::Easy),
            ("port-restricted+symmetric", Class::Hard),
            ("symmetric+fw", Class::Hard),
            ("symmetric+restricted", Class::Easy),
            ("symmetric+symmetric", Class::Impossible),
            ("symmetric+pmp", Class::Easy),
            ("linux-noinput+port-restricted", Class::Hard),
            ("linux-noinput+restricted", Class::Easy),
            ("ipv6+dual", Class::Easy),
            ("ipv6+open", Class::Impossible),
            ("tcp443+open", Class::Impossible),
            ("same/udp-blocked", Class::Easy),
            ("cgn/full-cone+symmetric", Class::Hard),
            ("cgn:hairpin=0/port-restricted+port-restricted", Class::Impossible),
        ] {
            assert_eq!(class(scenario), expected, "{scenario}");
        }
    }

    #[test]
    fn does_not_depend_on_the_role() {
        for x in KINDS {
            for y in KINDS {
                let (one, other) = (pair(*x, *y).verdict, pair(*y, *x).verdict);
                assert_eq!(one.class, other.class, "{} and {}", x.name, y.name);
            }
        }
    }
}
