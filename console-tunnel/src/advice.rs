//! What networks do to direct paths, in words that a technician can act on. The one place for
//! such words: `netcheck`, `explain` and the errors of `open` take theirs from here.

use adit_endpoint::FailureClass;

/// A reason, and what can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    /// What is the matter.
    pub what: &'static str,
    /// What helps; for whoever looks after the network in question.
    pub todo: &'static str,
}

/// Why there is no direct path.
pub fn of(class: FailureClass) -> Advice {
    let (what, todo) = match class {
        FailureClass::UdpBlocked => (
            "no UDP passes from this computer",
            "ask for outgoing UDP to any port in this network's firewall; until then sessions go \
             through a relay",
        ),
        FailureClass::PeerUdpBlocked => (
            "no UDP passes from the other computer",
            "ask for outgoing UDP to any port in the other network's firewall; until then \
             sessions go through a relay",
        ),
        FailureClass::NoCandidates => (
            "the other end named no address",
            "see agent-tunnel status there: it may have no network but a proxy, or direct paths \
             are turned off there",
        ),
        FailureClass::NoCommonFamily => (
            "one end has only IPv4, the other only IPv6",
            "give one of the two networks the other kind of address too",
        ),
        FailureClass::NoUsableAddress => (
            "the other end's addresses must not be tried",
            "it named only addresses that mean nothing outside its own computer or network: see \
             agent-tunnel status there",
        ),
        FailureClass::SymmetricBoth => (
            "both networks change the port for each destination",
            "on one of the two routers turn on UPnP, NAT-PMP or PCP, or an \"endpoint-independent\" \
             (\"full cone\", \"static port\") NAT; IPv6 on both sides helps too",
        ),
        FailureClass::SymmetricLocal => (
            "this network changes the port for each destination",
            "it can take 10 s, or need a relay: on this network's router turn on UPnP, NAT-PMP or \
             PCP, or an \"endpoint-independent\" (\"static port\") NAT",
        ),
        FailureClass::SymmetricPeer => (
            "the other network changes the port for each destination",
            "it can take 10 s, or need a relay: on the other network's router turn on UPnP, \
             NAT-PMP or PCP, or an \"endpoint-independent\" (\"static port\") NAT",
        ),
        FailureClass::Filtered => (
            "packets pass in one direction only",
            "a firewall on one side drops the answers: let UDP out, and answers to it in, on both \
             sides",
        ),
        FailureClass::NoAnswer => (
            "nothing was heard of the other end at any address",
            "a firewall on either side drops UDP between the two: compare console-tunnel netcheck \
             here with agent-tunnel status there",
        ),
    };
    Advice { what, todo }
}

/// The same by the class's word; none for words of a newer version.
pub fn of_word(word: &str) -> Option<Advice> {
    FailureClass::from_word(word).map(of)
}

/// Whether a network lets direct connections through, as far as one end can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// With all that let them through themselves.
    Yes,
    /// Only with luck, or through a relay.
    Hard,
    /// Never.
    No,
    /// There is nobody to tell.
    Unknown,
}

impl Outlook {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Hard => "hard",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// What is known of a network.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The mediator was reached, so that its STUN servers are known and run.
    pub reached: bool,
    /// A STUN server answered.
    pub udp: bool,
    /// But only on port 443.
    pub only_443: bool,
    /// In the words of the contract.
    pub mapping: &'a str,
    /// In the words of the contract.
    pub filtering: &'a str,
    /// Addresses are translated.
    pub behind_nat: Option<bool>,
    /// Servers were asked on this computer itself: of the network nothing was seen.
    pub loopback: bool,
    /// The gateway maps ports on request.
    pub port_mapping: bool,
}

/// The outlook, what kind of network it is, and what can be done.
pub fn network(seen: Seen<'_>) -> (Outlook, Advice) {
    let told = |outlook, what, todo| (outlook, Advice { what, todo });
    if !seen.udp {
        return match seen.reached {
            true => told(
                Outlook::No,
                "Your network blocks UDP: connections will go through a relay.",
                "Ask for outgoing UDP to any port, at least 3478 and 443, in the firewall.",
            ),
            false => told(
                Outlook::Unknown,
                "Whether your network lets direct connections through is not known: no server \
                 answered.",
                "Try again when the mediator can be reached; without a login name one with \
                 --mediator.",
            ),
        };
    }
    if seen.only_443 {
        return told(
            Outlook::No,
            "Your network lets UDP out to port 443 only, and computers are reached by other \
             ports: connections will go through a relay.",
            "Ask for outgoing UDP to any port in the firewall.",
        );
    }
    if seen.loopback {
        return told(
            Outlook::Unknown,
            "The mediator runs on this computer: the network outside was not asked.",
            "Log in under an address of the mediator that other computers reach, or run it on one \
             of them.",
        );
    }
    match (seen.mapping, seen.filtering, seen.behind_nat) {
        ("address-dependent" | "address-and-port-dependent", _, _) if seen.port_mapping => told(
            Outlook::Yes,
            "Your router gives every destination another port, but opens ports on request: \
             direct connections will come about that way.",
            "Leave UPnP, NAT-PMP or PCP turned on.",
        ),
        ("address-dependent" | "address-and-port-dependent", _, _) => told(
            Outlook::Hard,
            "Your router gives every destination another port: direct connections will take up \
             to 10 s or use a relay.",
            "Ask for UPnP, NAT-PMP or PCP on the router, or for an \"endpoint-independent\" \
             (\"static port\") NAT.",
        ),
        ("endpoint-independent", _, Some(false)) => told(
            Outlook::Yes,
            "Your computer has a public address: your network lets direct connections through.",
            "",
        ),
        ("endpoint-independent", "address-and-port-dependent", _) => told(
            Outlook::Yes,
            "Your network lets direct connections through; only with networks that give every \
             destination another port they take up to 10 s.",
            "",
        ),
        ("endpoint-independent", ..) => {
            told(Outlook::Yes, "Your network lets direct connections through.", "")
        }
        _ => told(
            Outlook::Unknown,
            "UDP passes, but what kind of NAT there is could not be found out.",
            "Try again; if it stays so, a firewall may let only some of the mediator's UDP ports \
             pass.",
        ),
    }
}

/// Mapping behaviour (RFC 4787 §4.1) in words.
pub fn mapping(word: &str) -> &'static str {
    match word {
        "endpoint-independent" => "one port for all destinations",
        "address-dependent" => "another port for every address",
        "address-and-port-dependent" => "another port for every destination",
        _ => "not known",
    }
}

/// Filtering behaviour (RFC 4787 §5) in words.
pub fn filtering(word: &str) -> &'static str {
    match word {
        "endpoint-independent" => "lets anybody in",
        "address-dependent" => "lets in addresses that were sent to",
        "address-and-port-dependent" => "lets in answers only",
        _ => "filter not known",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_of_direct_paths_has_words_and_something_to_do() {
        let mut seen = Vec::new();
        for class in FailureClass::ALL {
            let advice = of(class);
            assert_eq!(of_word(class.as_str()), Some(advice));
            assert!(advice.what.len() > 10 && advice.todo.len() > 10, "{class:?}");
            assert!(!advice.what.ends_with('.') && !seen.contains(&advice.what), "{class:?}");
            seen.push(advice.what);
        }
        assert_eq!(of_word("brand_new"), None);
    }

    #[test]
    fn networks_are_told_by_what_they_mean_for_direct_paths() {
        let seen = Seen {
            reached: true,
            udp: true,
            only_443: false,
            mapping: "endpoint-independent",
            filtering: "unknown",
            behind_nat: Some(true),
            loopback: false,
            port_mapping: false,
        };
        let word = |seen| network(seen).0.as_str();
        assert_eq!(word(seen), "yes");
        let symmetric = Seen { mapping: "address-and-port-dependent", ..seen };
        assert_eq!(word(symmetric), "hard");
        assert_eq!(word(Seen { port_mapping: true, ..symmetric }), "yes");
        assert_eq!(word(Seen { udp: false, ..seen }), "no");
        assert_eq!(word(Seen { udp: false, reached: false, ..seen }), "unknown");
        assert_eq!(word(Seen { only_443: true, ..seen }), "no");
        assert_eq!(word(Seen { mapping: "unknown", ..seen }), "unknown");
        let open = network(Seen { behind_nat: Some(false), ..seen });
        assert!(open.1.what.contains("public address"), "{open:?}");
        let own = network(Seen { behind_nat: Some(false), loopback: true, ..seen });
        assert_eq!(own.0, Outlook::Unknown);
        assert!(!own.1.what.contains("public address"), "{own:?}");
    }
}
