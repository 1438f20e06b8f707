//! Tickets: the mediator's signed permission for one key to join one session at one relay.

use bytes::Bytes;
use prost::Message;

use crate::{
    ids::SessionId,
    keys::{KeyError, PublicKey, SigningKey, context, sha256},
    wire,
};

/// Which end of a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Role {
    /// The technician's end; initiates and chooses.
    Console = 1,
    /// The computer's end.
    Agent = 2,
}

impl Role {
    /// The other end.
    pub fn other(self) -> Self {
        match self {
            Self::Console => Self::Agent,
            Self::Agent => Self::Console,
        }
    }
}

/// Why a ticket was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Signature or encoding.
    #[error("ticket is not signed by the installation: {0}")]
    Key(#[from] KeyError),
    /// Made out for another relay.
    #[error("ticket names another relay")]
    OtherRelay,
    /// Made out for another key.
    #[error("ticket names another key")]
    OtherKey,
    /// Its time has not come or is over.
    #[error("ticket expired")]
    Expired,
}

/// What is hashed with relay and partner for their [`Share`].
const SHARE: &[u8] = b"adit/1 relay share\0";

/// Whose sessions share a relay's places: the same for all of a partner's at one relay, and for
/// nobody to tell whose. Tickets of earlier mediators have none, and share as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Share(pub [u8; 8]);

impl Share {
    /// Of a partner, by its id, at a relay.
    pub fn of(partner_id: &str, relay: PublicKey) -> Self {
        let text = [SHARE, &relay.0, partner_id.as_bytes()].concat();
        let [a, b, c, d, e, f, g, h, ..] = sha256(&text);
        Self([a, b, c, d, e, f, g, h])
    }
}

/// A ticket's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The relay's identity.
    pub relay: PublicKey,
    /// The session to join.
    pub session: SessionId,
    /// As which end.
    pub role: Role,
    /// X25519 key of the joiner.
    pub joiner: [u8; 32],
    /// Mediator's time, milliseconds since 1970.
    pub not_before_ms: u64,
    /// Mediator's time, milliseconds since 1970.
    pub expires_ms: u64,
    /// Whose places at the relay the session takes.
    pub share: Share,
}

impl Ticket {
    /// Signs the ticket.
    pub fn sign(&self, key: &SigningKey) -> wire::Signed {
        key.seal(
            context::TICKET,
            &wire::TicketBody {
                relay_identity: self.relay.to_bytes(),
                session_id: self.session.to_bytes(),
                role: self.role as u32,
                joiner_key: Bytes::copy_from_slice(&self.joiner),
                not_before_ms: self.not_before_ms,
                expires_ms: self.expires_ms,
                share: Bytes::copy_from_slice(&self.share.0),
            },
        )
    }

    /// Checks the signature by the certified ticket key and reads the ticket.
    pub fn open(key: PublicKey, signed: &wire::Signed) -> Result<Self, TicketError> {
        let payload = key.open(context::TICKET, signed)?.clone();
        let b = wire::TicketBody::decode(payload).map_err(|_| KeyError::Malformed)?;
        Ok(Self {
            relay: PublicKey::from_slice(&b.relay_identity)?,
            session: SessionId::from_slice(&b.session_id).map_err(|_| KeyError::Malformed)?,
            role: match b.role {
                1 => Role::Console,
                2 => Role::Agent,
                _ => return Err(KeyError::Malformed.into()),
            },
            joiner: b.joiner_key.as_ref().try_into().map_err(|_| KeyError::Malformed)?,
            not_before_ms: b.not_before_ms,
            expires_ms: b.expires_ms,
            share: Share(b.share.as_ref().try_into().unwrap_or_default()),
        })
    }

    /// Is this ticket good here, for this joiner, now (mediator's time)?
    pub fn check(
        &self,
        relay: PublicKey,
        joiner: &[u8; 32],
        now_ms: u64,
    ) -> Result<(), TicketError> {
        if self.relay != relay {
            return Err(TicketError::OtherRelay);
        }
        if &self.joiner != joiner {
            return Err(TicketError::OtherKey);
        }
        if !(self.not_before_ms..self.expires_ms).contains(&now_ms) {
            return Err(TicketError::Expired);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_is_good_only_where_when_and_for_whom_it_says() {
        let key = SigningKey::generate().unwrap();
        let relay = SigningKey::generate().unwrap().public();
        let t = Ticket {
            relay,
            session: SessionId([1; 16]),
            role: Role::Agent,
            joiner: [2; 32],
            not_before_ms: 10,
            expires_ms: 20,
            share: Share::of("p", relay),
        };
        assert_eq!(Ticket::open(key.public(), &t.sign(&key)), Ok(t));
        assert!(Ticket::open(relay, &t.sign(&key)).is_err());
        assert_eq!(t.check(relay, &[2; 32], 10), Ok(()));
        assert_eq!(t.check(relay, &[3; 32], 10), Err(TicketError::OtherKey));
        assert_eq!(t.check(key.public(), &[2; 32], 10), Err(TicketError::OtherRelay));
        assert_eq!(t.check(relay, &[2; 32], 20), Err(TicketError::Expired));
        assert_eq!(t.check(relay, &[2; 32], 9), Err(TicketError::Expired));
    }

    #[test]
    fn sessions_of_a_partner_share_at_a_relay_and_nowhere_else() {
        let relay = || SigningKey::generate().unwrap().public();
        let (a, b) = (relay(), relay());
        assert_eq!(Share::of("p", a), Share::of("p", a));
        assert_ne!(Share::of("p", a), Share::of("q", a));
        assert_ne!(Share::of("p", a), Share::of("p", b));
    }
}
