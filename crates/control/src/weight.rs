//! What a message takes in memory once it is read.
//!
//! An empty element of a list takes two bytes on the wire and up to 272 in memory: counted by the
//! wire alone, a peer could make this side hold a hundred times what its bounds say.

use adit_protocol::wire::{AuditEvidence, RelayGrant, RelayInfo, frame::Body};

/// Bytes that a message of `wire` bytes takes: its lists, or the wire's if that is more.
pub(crate) fn of(body: &Body, wire: usize) -> usize {
    let lists = match body {
        Body::Hello(hello) => hello.relay.as_ref().map_or(0, relay),
        Body::Enroll(enroll) => enroll.relay.as_ref().map_or(0, relay),
        Body::Welcome(welcome) => {
            size_of_val(welcome.key_certs.as_slice())
                + size_of_val(welcome.stun_ports.as_slice())
                + size_of_val(welcome.stun_addrs.as_slice())
                + size_of_val(welcome.relays.as_slice())
                + welcome.relays.iter().map(relay).sum::<usize>()
        }
        Body::CheckIn(told) => {
            size_of_val(told.addresses.as_slice()) + size_of_val(told.sessions.as_slice())
        }
        Body::CheckInReply(reply) => size_of_val(reply.end_sessions.as_slice()),
        Body::Offer(offer) => relays(&offer.relays) + evidence(offer.audit.as_ref()),
        Body::Granted(granted) => {
            relays(&granted.relays)
                + evidence(granted.audit.as_ref())
                + evidence(granted.enrolment.as_ref())
        }
        Body::Tickets(tickets) => relays(&tickets.relays),
        Body::SessionTickets(tickets) => relays(&tickets.relays),
        Body::TicketRequest(asked) => size_of_val(asked.not_relays.as_slice()),
        Body::SessionReport(report) => size_of_val(report.events.as_slice()),
        Body::RelayReport(report) => size_of_val(report.sessions.as_slice()),
        Body::Open(open) => size_of_val(open.targets.as_slice()),
        Body::ConsoleRefusal(told) => size_of_val(told.targets.as_slice()),
        Body::Computers(found) => {
            let inner = found.computers.iter().map(|c| size_of_val(c.redirectors.as_slice()));
            size_of_val(found.computers.as_slice()) + inner.sum::<usize>()
        }
        Body::Sessions(found) => size_of_val(found.sessions.as_slice()),
        Body::AccessRequests(found) => size_of_val(found.requests.as_slice()),
        Body::MfaState(state) => size_of_val(state.factors.as_slice()),
        Body::RecoveryCodes(told) => size_of_val(told.codes.as_slice()),
        Body::Receipts(told) => size_of_val(told.lines.as_slice()),
        Body::ReceiptRequest(asked) => size_of_val(asked.wanted.as_slice()),
        Body::HeadProof(proof) => size_of_val(proof.links.as_slice()),
        Body::EnrolmentProof(proof) => evidence(proof.audit.as_ref()),
        _ => 0,
    };
    lists.max(wire)
}

fn relay(info: &RelayInfo) -> usize {
    size_of_val(info.addresses.as_slice())
}

fn relays(grants: &[RelayGrant]) -> usize {
    let inner = grants.iter().filter_map(|grant| grant.relay.as_ref()).map(relay);
    size_of_val(grants) + inner.sum::<usize>()
}

fn evidence(audit: Option<&AuditEvidence>) -> usize {
    audit.map_or(0, |audit| size_of_val(audit.links.as_slice()))
}

#[cfg(test)]
mod tests {
    /// Payloads that are sealed or signed: never parts of a frame that is read here.
    const ELSEWHERE: [&str; 5] =
        ["GrantBody", "HandshakeInit", "HandshakeReply", "Trickle", "NatSummary"];
    /// Parts of messages, and what stands for them above.
    const PARTS: [(&str, &str); 3] = [
        ("RelayInfo", "RelayInfo"),
        ("Computer", "redirectors"),
        ("AuditEvidence", "AuditEvidence"),
    ];

    #[test]
    fn every_message_with_a_list_is_weighed() {
        let proto = include_str!("../../protocol/proto/adit.proto");
        let own = include_str!("weight.rs");
        let own = own.split("mod tests").next().unwrap();
        let mut seen = 0;
        for message in proto.split("\nmessage ").skip(1) {
            let name = message.split_whitespace().next().unwrap();
            let fields = message.split("\n}").next().unwrap();
            if !fields.contains("repeated ") || ELSEWHERE.contains(&name) {
                continue;
            }
            let part = PARTS.iter().find(|(part, _)| *part == name);
            let wanted = part.map_or(format!("Body::{name}("), |(_, stands)| (*stands).to_owned());
            assert!(own.contains(&wanted), "{name} has a list that is not weighed");
            seen += 1;
        }
        assert!(seen > 10, "{seen}");
    }
}
