//! Why there is no direct path, from what is known: for `explain` and the audit record.

use adit_protocol::nat::{NatBehaviour, NatSummary};

use super::{FailureClass, Family, PairReport, PairState};

/// What the verdict rests on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts<'a> {
    /// All pairs.
    pub(super) pairs: &'a [PairReport],
    /// The peer was heard from, wherever.
    pub(super) heard: bool,
    /// The own NAT, if discovery is over.
    pub(super) local: Option<&'a NatSummary>,
    /// The peer's, if it told.
    pub(super) remote: Option<&'a NatSummary>,
    /// Families of own candidates.
    pub(super) own: &'a [Family],
    /// Families of the peer's candidates; empty if it named none.
    pub(super) peer: &'a [Family],
}

/// All reasons that apply, the most telling first; empty if a pair works.
pub(super) fn failures(facts: &Facts<'_>) -> Vec<FailureClass> {
    if facts.pairs.iter().any(|p| matches!(p.state, PairState::Valid { .. })) {
        return Vec::new();
    }
    let mut found = Vec::new();
    if facts.local.is_some_and(NatSummary::is_blocked) {
        found.push(FailureClass::UdpBlocked);
    }
    if facts.remote.is_some_and(NatSummary::is_blocked) {
        found.push(FailureClass::PeerUdpBlocked);
    }
    let common = facts.own.iter().any(|family| facts.peer.contains(family));
    if facts.peer.is_empty() {
        found.push(FailureClass::NoCandidates);
    } else if !common {
        found.push(FailureClass::NoCommonFamily);
    } else if facts.pairs.is_empty() {
        found.push(FailureClass::NoUsableAddress);
    }
    found.extend(symmetric(facts));
    // One direction only: either what the peer sends arrives, or it says it is answered.
    if facts.heard {
        found.push(FailureClass::Filtered);
    }
    if found.is_empty() {
        found.push(FailureClass::NoAnswer);
    }
    found
}

fn symmetric(facts: &Facts<'_>) -> Option<FailureClass> {
    let (local, remote) = (facts.local?, facts.remote?);
    // A filter that does not look at ports lets the other's unknown port in.
    let lets_in = |nat: &NatSummary| {
        matches!(nat.filtering, NatBehaviour::EndpointIndependent | NatBehaviour::AddressDependent)
    };
    match (local.is_symmetric(), remote.is_symmetric()) {
        (true, true) => Some(FailureClass::SymmetricBoth),
        (true, false) if !lets_in(remote) => Some(FailureClass::SymmetricLocal),
        (false, true) if !lets_in(local) => Some(FailureClass::SymmetricPeer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nat(mapping: NatBehaviour, filtering: NatBehaviour, ports: &[u16]) -> NatSummary {
        NatSummary { mapping, filtering, port_step: 0, ports: ports.to_vec() }
    }

    #[test]
    fn names_what_applies() {
        use NatBehaviour::{AddressAndPortDependent as Ports, EndpointIndependent as Any, Unknown};
        let symmetric = nat(Ports, Ports, &[1]);
        let strict = nat(Any, Ports, &[1]);
        let cone = nat(Any, Any, &[1]);
        let blocked = nat(Unknown, Unknown, &[]);
        let v4 = [Family::V4];
        let of = |local, remote| {
            let facts = Facts { local, remote, own: &v4, peer: &v4, ..Facts::default() };
            let words: Vec<_> = failures(&facts).into_iter().map(FailureClass::as_str).collect();
            words.join(" ")
        };
        let no_pair = "no_usable_address";
        assert_eq!(of(None, None), no_pair);
        assert_eq!(of(Some(&blocked), Some(&cone)), format!("udp_blocked {no_pair}"));
        assert_eq!(of(Some(&cone), Some(&blocked)), format!("peer_udp_blocked {no_pair}"));
        assert_eq!(of(Some(&symmetric), Some(&symmetric)), format!("{no_pair} symmetric_both"));
        assert_eq!(of(Some(&symmetric), Some(&strict)), format!("{no_pair} symmetric_local"));
        assert_eq!(of(Some(&strict), Some(&symmetric)), format!("{no_pair} symmetric_peer"));
        assert_eq!(of(Some(&symmetric), Some(&cone)), no_pair);
        let none = Facts { own: &v4, ..Facts::default() };
        assert_eq!(failures(&none), [FailureClass::NoCandidates]);
        let other = Facts { own: &v4, peer: &[Family::V6], ..Facts::default() };
        assert_eq!(failures(&other), [FailureClass::NoCommonFamily]);
    }
}
