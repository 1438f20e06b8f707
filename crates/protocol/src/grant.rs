//! Grants and leases: who may reach what, until when, signed by the mediator.

use bytes::Bytes;
use prost::Message;

use crate::{
    ids::{ComputerId, SessionId},
    keys::{KeyError, PublicKey, SigningKey, context},
    limits::{MAX_TARGETS_PER_GRANT, MAX_TEXT},
    target::Target,
    wire,
};

/// Why a grant was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Signature or encoding.
    #[error("grant is not signed by the installation: {0}")]
    Key(#[from] KeyError),
    /// A field is missing or cannot be.
    #[error("grant has a malformed field: {0}")]
    Field(&'static str),
}

/// A grant's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The session it is for.
    pub session: SessionId,
    /// Partner id.
    pub tenant: String,
    /// The computer.
    pub computer: ComputerId,
    /// The only console that may use it.
    pub console: PublicKey,
    /// The only agent that may honour it.
    pub agent: PublicKey,
    /// Name of the redirector.
    pub redirector: String,
    /// Targets that channels may lead to.
    pub targets: Vec<Target>,
    /// Any target that is audited first (SOCKS).
    pub any_target: bool,
    /// SHA-256 of the handshake's first message.
    pub msg1_sha256: [u8; 32],
    /// Mediator's time, milliseconds since 1970.
    pub issued_ms: u64,
    /// Mediator's time, milliseconds since 1970.
    pub expires_ms: u64,
    /// The technician.
    pub user: String,
    /// The stated reason.
    pub reason: String,
    /// The stated ticket number.
    pub ticket: String,
    /// Sequence number of the audit entry that was durable before this grant was given out.
    pub audit_seq: u64,
    /// Leaf hash of that entry.
    pub audit_leaf: [u8; 32],
}

impl Grant {
    /// Signs the grant.
    pub fn sign(&self, key: &SigningKey) -> wire::Signed {
        let copy = Bytes::copy_from_slice;
        key.seal(
            context::GRANT,
            &wire::GrantBody {
                session_id: self.session.to_bytes(),
                tenant: self.tenant.clone(),
                computer_id: self.computer.to_bytes(),
                console_identity: self.console.to_bytes(),
                agent_identity: self.agent.to_bytes(),
                redirector: self.redirector.clone(),
                targets: self.targets.iter().map(Target::to_wire).collect(),
                any_target: self.any_target,
                msg1_sha256: copy(&self.msg1_sha256),
                issued_ms: self.issued_ms,
                expires_ms: self.expires_ms,
                user: self.user.clone(),
                reason: self.reason.clone(),
                ticket: self.ticket.clone(),
                audit_seq: self.audit_seq,
                audit_leaf: copy(&self.audit_leaf),
            },
        )
    }

    /// Checks the signature by the certified grant key and reads the grant.
    pub fn open(key: PublicKey, signed: &wire::Signed) -> Result<Self, GrantError> {
        let payload = key.open(context::GRANT, signed)?.clone();
        let b = wire::GrantBody::decode(payload).map_err(|_| KeyError::Malformed)?;
        let field = GrantError::Field;
        if b.targets.len() > MAX_TARGETS_PER_GRANT {
            return Err(field("targets"));
        }
        for (text, name) in
            [(&b.tenant, "tenant"), (&b.redirector, "redirector"), (&b.user, "user")]
        {
            if text.len() > MAX_TEXT {
                return Err(field(name));
            }
        }
        let hash = |b: &Bytes, name| <[u8; 32]>::try_from(b.as_ref()).map_err(|_| field(name));
        Ok(Self {
            session: SessionId::from_slice(&b.session_id).map_err(|_| field("session_id"))?,
            tenant: b.tenant,
            computer: ComputerId::from_slice(&b.computer_id).map_err(|_| field("computer_id"))?,
            console: PublicKey::from_slice(&b.console_identity)?,
            agent: PublicKey::from_slice(&b.agent_identity)?,
            redirector: b.redirector,
            targets: b
                .targets
                .iter()
                .map(Target::from_wire)
                .collect::<Result<_, _>>()
                .map_err(|_| field("targets"))?,
            any_target: b.any_target,
            msg1_sha256: hash(&b.msg1_sha256, "msg1_sha256")?,
            issued_ms: b.issued_ms,
            expires_ms: b.expires_ms,
            user: b.user,
            reason: b.reason,
            ticket: b.ticket,
            audit_seq: b.audit_seq,
            audit_leaf: hash(&b.audit_leaf, "audit_leaf")?,
        })
    }

    /// Does the grant cover this target?
    pub fn covers(&self, target: &Target) -> bool {
        self.any_target || self.targets.contains(target)
    }
}

/// A renewed lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The session it is for.
    pub session: SessionId,
    /// Mediator's time, milliseconds since 1970.
    pub issued_ms: u64,
    /// Mediator's time, milliseconds since 1970.
    pub expires_ms: u64,
}

impl Lease {
    /// Signs the lease.
    pub fn sign(&self, key: &SigningKey) -> wire::Signed {
        key.seal(
            context::LEASE,
            &wire::LeaseBody {
                session_id: self.session.to_bytes(),
                issued_ms: self.issued_ms,
                expires_ms: self.expires_ms,
            },
        )
    }

    /// Checks the signature by the certified grant key and reads the lease.
    pub fn open(key: PublicKey, signed: &wire::Signed) -> Result<Self, GrantError> {
        let payload = key.open(context::LEASE, signed)?.clone();
        let b = wire::LeaseBody::decode(payload).map_err(|_| KeyError::Malformed)?;
        Ok(Self {
            session: SessionId::from_slice(&b.session_id)
                .map_err(|_| GrantError::Field("session_id"))?,
            issued_ms: b.issued_ms,
            expires_ms: b.expires_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Transport;

    #[test]
    fn grant_reads_back_and_any_flipped_bit_is_refused() {
        let key = SigningKey::generate().unwrap();
        let target = Target::parse("127.0.0.1:22", Transport::Tcp).unwrap();
        let grant = Grant {
            session: SessionId([1; 16]),
            tenant: "p".into(),
            computer: ComputerId([2; 16]),
            console: key.public(),
            agent: key.public(),
            redirector: "ssh".into(),
            targets: vec![target.clone()],
            any_target: false,
            msg1_sha256: [3; 32],
            issued_ms: 1,
            expires_ms: 2,
            user: "u".into(),
            reason: String::new(),
            ticket: String::new(),
            audit_seq: 9,
            audit_leaf: [4; 32],
        };
        let signed = grant.sign(&key);
        assert_eq!(Grant::open(key.public(), &signed), Ok(grant.clone()));
        assert!(grant.covers(&target));
        assert!(!grant.covers(&Target::parse("127.0.0.1:23", Transport::Tcp).unwrap()));
        assert!(!grant.covers(&Target::parse("127.0.0.1:22", Transport::Udp).unwrap()));
        for bit in 0..signed.payload.len() * 8 {
            let mut bad = signed.payload.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let bad = wire::Signed { payload: bad.into(), signature: signed.signature.clone() };
            assert!(Grant::open(key.public(), &bad).is_err());
        }
    }
}
