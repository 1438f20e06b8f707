//! Whose tickets are good, and what time it is: as learnt from the mediator, and kept when it
//! goes away. Must never accept a ticket before the mediator was met, or by the local clock.

use std::sync::{PoisonError, RwLock};

use adit_control::MediatorClock;
use adit_protocol::{
    keys::{KeyCert, PublicKey, Purpose},
    ticket::{Ticket, TicketError},
    wire,
};

/// Certified keys looked at in one welcome.
const MAX_KEY_CERTS: usize = 32;

#[derive(Debug)]
struct Known {
    ticket_keys: Vec<KeyCert>,
    clock: MediatorClock,
}

/// Checks tickets.
#[derive(Debug)]
pub struct Trust {
    relay: PublicKey,
    known: RwLock<Option<Known>>,
}

impl Trust {
    /// For the relay with this identity; knows nobody yet.
    pub fn new(relay: PublicKey) -> Self {
        Self { relay, known: RwLock::new(None) }
    }

    /// The mediator, whose root was checked, named its keys and time.
    pub fn learn(&self, root: PublicKey, certs: &[wire::Signed], clock: MediatorClock) {
        let ticket_keys: Vec<KeyCert> = certs
            .iter()
            .take(MAX_KEY_CERTS)
            .filter_map(|signed| KeyCert::open(root, Purpose::Ticket, signed).ok())
            .collect();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Known { ticket_keys, clock });
    }

    /// Was the mediator met?
    pub fn is_met(&self) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The ticket, if it is good here and now for the holder of `joiner`.
    pub fn check(&self, signed: &wire::Signed, joiner: &[u8; 32]) -> Result<Ticket, TicketError> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let nobody = TicketError::Key(adit_protocol::keys::KeyError::BadSignature);
        let known = known.as_ref().ok_or(nobody)?;
        let now_ms = known.clock.now_ms();
        let mut error = nobody;
        for cert in known.ticket_keys.iter().filter(|cert| cert.check_time(now_ms).is_ok()) {
            match Ticket::open(cert.key, signed) {
                Ok(ticket) => return ticket.check(self.relay, joiner, now_ms).map(|()| ticket),
                Err(e) => error = e,
            }
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use adit_protocol::{
        ids::SessionId,
        keys::SigningKey,
        ticket::{Role, Share},
    };

    use super::*;

    #[test]
    fn accepts_every_certified_ticket_key_and_no_other() {
        let key = || SigningKey::generate().unwrap();
        let (root, relay, old, new, stranger) = (key(), key(), key(), key(), key());
        let trust = Trust::new(relay.public());
        let ticket = Ticket {
            relay: relay.public(),
            session: SessionId([1; 16]),
            role: Role::Agent,
            joiner: [2; 32],
            not_before_ms: 0,
            expires_ms: 2_000_000,
            share: Share::default(),
        };
        assert!(trust.check(&ticket.sign(&new), &[2; 32]).is_err(), "nobody is known yet");
        let cert = |by: &SigningKey, purpose, of: &SigningKey, not_after_ms| {
            let cert = KeyCert { key: of.public(), not_before_ms: 0, not_after_ms };
            KeyCert::issue(by, purpose, &cert)
        };
        let certs = [
            cert(&root, Purpose::Ticket, &old, 5_000_000),
            cert(&root, Purpose::Ticket, &new, 5_000_000),
            cert(&stranger, Purpose::Ticket, &stranger, 5_000_000),
            cert(&root, Purpose::Grant, &stranger, 5_000_000),
            cert(&root, Purpose::Ticket, &stranger, 10),
        ];
        trust.learn(root.public(), &certs, MediatorClock::new(1_000_000, Instant::now()));
        assert_eq!(trust.check(&ticket.sign(&old), &[2; 32]), Ok(ticket));
        assert_eq!(trust.check(&ticket.sign(&new), &[2; 32]), Ok(ticket));
        assert!(trust.check(&ticket.sign(&stranger), &[2; 32]).is_err());
        assert_eq!(trust.check(&ticket.sign(&new), &[3; 32]), Err(TicketError::OtherKey));
    }
}
