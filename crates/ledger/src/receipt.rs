//! Receipts: what each end of a session signed about each channel, before and after.
//!
//! Each end makes an *open* receipt durable before the first byte and a *close* receipt after the
//! last; they are exchanged end to end, kept locally and sent to the mediator. A receipt is one
//! line of JSON; the signature is over its bytes up to `signature`, closed with a brace, in the
//! context of receipts. Must never be made or altered by anyone but the device that signs.

use adit_protocol::keys::{Fingerprint, PublicKey, SigningKey, context};
use serde::Deserialize;

use crate::{
    Hash, MAX_INTEGER, MAX_LINE_LEN,
    entry::LineError,
    event::cut,
    hash::{hex, unhex_array},
    json::Object,
    time::{MAX_TIME_MS, format_time, parse_time},
};

/// Version of the receipt's fields.
const VERSION: u64 = 1;
/// Bytes of target, redirector and reason when escaped.
const MAX_FIELD_LEN: usize = 512;

/// Which end signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The technician's.
    Console,
    /// The computer's.
    Agent,
}

/// How a channel ended, as its signer saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// Stream offset up to which the signer sent.
    pub sent: u64,
    /// Offset up to which the other end acknowledged delivery.
    pub acknowledged: u64,
    /// Offset up to which the signer delivered what it received.
    pub delivered: u64,
    /// Both ends finished their streams.
    pub complete: bool,
    /// Why it ended: a code.
    pub reason: String,
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Which end signs.
    pub role: Role,
    /// Session id.
    pub session: [u8; 16],
    /// SHA-256 of the signed grant.
    pub grant_hash: Hash,
    /// Handshake hash of the end-to-end Noise handshake.
    pub handshake_hash: Hash,
    /// Identity of the console.
    pub console: Fingerprint,
    /// Identity of the agent.
    pub agent: Fingerprint,
    /// Redirector.
    pub redirector: String,
    /// `host:port`.
    pub target: String,
    /// Channel in the session.
    pub channel: u64,
    /// The signer's time, milliseconds since 1970.
    pub time_ms: u64,
    /// `None` in an open receipt.
    pub close: Option<Close>,
}

/// A statement and its signature.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    /// What is stated.
    pub statement: Statement,
    /// Who signed.
    pub signer: PublicKey,
    /// Signature.
    pub signature: [u8; 64],
}

/// Why a receipt is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// The signature is not the signer's.
    #[error("receipt's signature does not verify")]
    BadSignature,
    /// The signer is not the end that the receipt speaks for.
    #[error("receipt is signed by another device than the one it speaks for")]
    WrongSigner,
}

/// In what two receipts differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The console's receipt is not to be believed.
    #[error("console's receipt: {0}")]
    Console(ReceiptError),
    /// The agent's receipt is not to be believed.
    #[error("agent's receipt: {0}")]
    Agent(ReceiptError),
    /// Not one of each end.
    #[error("receipts are not one of a console and one of an agent")]
    Role,
    /// Of different sessions or channels, or open against close: not a pair at all.
    #[error("receipts are not of the same session, channel and moment")]
    Unrelated,
    /// The ends name different devices: someone is in between.
    #[error("receipts name different devices")]
    Identity,
    /// The ends hold different grants.
    #[error("receipts name different grants")]
    Grant,
    /// The ends had different handshakes: someone is in between.
    #[error("receipts name different handshakes")]
    Handshake,
    /// The ends speak of different targets.
    #[error("receipts name different targets")]
    Target,
    /// Offsets that cannot both be true.
    #[error("receipts count different bytes")]
    Offsets,
}

impl Receipt {
    /// Signs a statement. Texts that are too long are cut, numbers clamped.
    pub fn sign(identity: &SigningKey, mut statement: Statement) -> Self {
        statement.normalise();
        let signer = identity.public();
        let signed = statement.signed_part(signer).finish();
        let signature = identity.sign(context::RECEIPT, signed.as_bytes());
        Self { statement, signer, signature }
    }

    /// Checks the signature, and that the signer is the end that the statement speaks for.
    pub fn verify(&self) -> Result<(), ReceiptError> {
        let speaker = match self.statement.role {
            Role::Console => self.statement.console,
            Role::Agent => self.statement.agent,
        };
        if speaker != self.signer.fingerprint() {
            return Err(ReceiptError::WrongSigner);
        }
        let signed = self.statement.signed_part(self.signer).finish();
        self.signer
            .verify(context::RECEIPT, signed.as_bytes(), &self.signature)
            .map_err(|_| ReceiptError::BadSignature)
    }

    /// The line, without line feed.
    pub fn to_line(&self) -> String {
        let mut out = self.statement.signed_part(self.signer);
        out.string("signature", &hex(&self.signature));
        out.finish()
    }

    /// Reads a line (without line feed). Does not verify.
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        if line.len() > MAX_LINE_LEN {
            return Err(LineError::TooLong);
        }
        let raw: RawReceipt = serde_json::from_slice(line).map_err(|_| LineError::Malformed)?;
        if raw.v > VERSION {
            return Err(LineError::Version);
        }
        let mut receipt = raw.into_receipt().ok_or(LineError::Malformed)?;
        receipt.statement.normalise();
        if receipt.to_line().as_bytes() == line {
            Ok(receipt)
        } else {
            Err(LineError::NotCanonical)
        }
    }
}

/// Do the two ends' receipts of one channel and moment tell the same?
pub fn compare(console: &Receipt, agent: &Receipt) -> Result<(), Mismatch> {
    let (c, a) = (&console.statement, &agent.statement);
    if (c.role, a.role) != (Role::Console, Role::Agent) {
        return Err(Mismatch::Role);
    }
    console.verify().map_err(Mismatch::Console)?;
    agent.verify().map_err(Mismatch::Agent)?;
    let checks = [
        ((c.session, c.channel) == (a.session, a.channel), Mismatch::Unrelated),
        (c.close.is_some() == a.close.is_some(), Mismatch::Unrelated),
        ((c.console, c.agent) == (a.console, a.agent), Mismatch::Identity),
        (c.grant_hash == a.grant_hash, Mismatch::Grant),
        (c.handshake_hash == a.handshake_hash, Mismatch::Handshake),
        ((&c.target, &c.redirector) == (&a.target, &a.redirector), Mismatch::Target),
        (offsets_agree(c.close.as_ref(), a.close.as_ref()), Mismatch::Offsets),
    ];
    checks.into_iter().try_for_each(|(holds, mismatch)| holds.then_some(()).ok_or(mismatch))
}

/// In each direction: acknowledged ≤ delivered ≤ sent, and all equal when both say complete. The
/// last acknowledgement may have been lost, so acknowledged may lag otherwise.
fn offsets_agree(console: Option<&Close>, agent: Option<&Close>) -> bool {
    let (Some(console), Some(agent)) = (console, agent) else { return true };
    [(console, agent), (agent, console)].into_iter().all(|(from, to)| {
        let ordered = from.acknowledged <= to.delivered && to.delivered <= from.sent;
        let complete = from.complete && to.complete;
        ordered && (!complete || (from.acknowledged == from.sent && to.delivered == from.sent))
    })
}

impl Role {
    /// As written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Agent => "agent",
        }
    }

    /// The end across from this one.
    pub fn other(self) -> Self {
        match self {
            Self::Console => Self::Agent,
            Self::Agent => Self::Console,
        }
    }
}

impl Statement {
    fn normalise(&mut self) {
        cut(&mut self.redirector, MAX_FIELD_LEN);
        cut(&mut self.target, MAX_FIELD_LEN);
        self.channel = self.channel.min(MAX_INTEGER);
        self.time_ms = self.time_ms.min(MAX_TIME_MS);
        if let Some(close) = &mut self.close {
            cut(&mut close.reason, MAX_FIELD_LEN);
            for offset in [&mut close.sent, &mut close.acknowledged, &mut close.delivered] {
                *offset = (*offset).min(MAX_INTEGER);
            }
        }
    }

    fn signed_part(&self, signer: PublicKey) -> Object {
        let mut out = Object::with_capacity(1024);
        out.integer("v", VERSION)
            .string("receipt", if self.close.is_some() { "close" } else { "open" })
            .string("role", self.role.name())
            .string("time", &format_time(self.time_ms))
            .string("session_id", &hex(&self.session))
            .integer("channel", self.channel)
            .string("redirector", &self.redirector)
            .string("target", &self.target)
            .string("grant_hash", &hex(&self.grant_hash.0))
            .string("handshake_hash", &hex(&self.handshake_hash.0))
            .string("console", &self.console.to_string())
            .string("agent", &self.agent.to_string());
        if let Some(close) = &self.close {
            out.integer("sent", close.sent)
                .integer("acknowledged", close.acknowledged)
                .integer("delivered", close.delivered)
                .integer("complete", close.complete.into())
                .string("reason", &close.reason);
        }
        out.string("signer", &hex(&signer.0));
        out
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReceipt {
    v: u64,
    receipt: String,
    role: String,
    time: String,
    session_id: String,
    channel: u64,
    redirector: String,
    target: String,
    grant_hash: String,
    handshake_hash: String,
    console: String,
    agent: String,
    sent: Option<u64>,
    acknowledged: Option<u64>,
    delivered: Option<u64>,
    complete: Option<u64>,
    reason: Option<String>,
    signer: String,
    signature: String,
}

impl RawReceipt {
    fn into_receipt(self) -> Option<Receipt> {
        let close = match self.receipt.as_str() {
            "open" => None,
            "close" => Some(Close {
                sent: self.sent?,
                acknowledged: self.acknowledged?,
                delivered: self.delivered?,
                complete: self.complete? == 1,
                reason: self.reason?,
            }),
            _ => return None,
        };
        let role = [Role::Console, Role::Agent].into_iter().find(|r| r.name() == self.role)?;
        Some(Receipt {
            statement: Statement {
                role,
                session: unhex_array(&self.session_id)?,
                grant_hash: self.grant_hash.parse().ok()?,
                handshake_hash: self.handshake_hash.parse().ok()?,
                console: self.console.parse().ok()?,
                agent: self.agent.parse().ok()?,
                redirector: self.redirector,
                target: self.target,
                channel: self.channel,
                time_ms: parse_time(&self.time)?,
                close,
            },
            signer: PublicKey(unhex_array(&self.signer)?),
            signature: unhex_array(&self.signature)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(close: bool) -> (SigningKey, SigningKey, Statement, Statement) {
        let console = SigningKey::from_seed(&[1; 32]).unwrap();
        let agent = SigningKey::from_seed(&[2; 32]).unwrap();
        let side = |sent, delivered| Close {
            sent,
            acknowledged: sent,
            delivered,
            complete: true,
            reason: "closed".into(),
        };
        let statement = Statement {
            role: Role::Console,
            session: [7; 16],
            grant_hash: Hash::of(b"grant"),
            handshake_hash: Hash::of(b"handshake"),
            console: console.public().fingerprint(),
            agent: agent.public().fingerprint(),
            redirector: "ssh".into(),
            target: "127.0.0.1:22".into(),
            channel: 3,
            time_ms: 1_700_000_000_000,
            close: close.then(|| side(10, 20)),
        };
        let mut other = statement.clone();
        other.role = Role::Agent;
        other.time_ms += 40;
        other.close = close.then(|| side(20, 10));
        (console, agent, statement, other)
    }

    #[test]
    fn equal_stories_agree_and_read_back() {
        for close in [false, true] {
            let (console, agent, c, a) = pair(close);
            let (c, a) = (Receipt::sign(&console, c), Receipt::sign(&agent, a));
            assert_eq!(compare(&c, &a), Ok(()));
            assert_eq!(compare(&a, &c), Err(Mismatch::Role));
            assert_eq!(Receipt::parse(c.to_line().as_bytes()), Ok(c));
        }
    }

    #[test]
    fn every_difference_is_named() {
        let (console, agent, c, a) = pair(true);
        let c = Receipt::sign(&console, c);
        let check = |change: &dyn Fn(&mut Statement)| {
            let mut other = a.clone();
            change(&mut other);
            compare(&c, &Receipt::sign(&agent, other))
        };
        assert_eq!(check(&|s| s.session[0] ^= 1), Err(Mismatch::Unrelated));
        assert_eq!(check(&|s| s.channel += 1), Err(Mismatch::Unrelated));
        assert_eq!(check(&|s| s.close = None), Err(Mismatch::Unrelated));
        assert_eq!(check(&|s| s.console = s.agent), Err(Mismatch::Identity));
        assert_eq!(check(&|s| s.grant_hash = Hash::of(b"")), Err(Mismatch::Grant));
        assert_eq!(check(&|s| s.handshake_hash = Hash::of(b"")), Err(Mismatch::Handshake));
        assert_eq!(check(&|s| s.target.push('2')), Err(Mismatch::Target));
        assert_eq!(check(&|s| s.close.as_mut().unwrap().delivered = 9), Err(Mismatch::Offsets));
        assert_eq!(check(&|s| s.close.as_mut().unwrap().sent = 19), Err(Mismatch::Offsets));
        let mut forged = Receipt::sign(&agent, a.clone());
        forged.statement.time_ms += 1;
        assert_eq!(compare(&c, &forged), Err(Mismatch::Agent(ReceiptError::BadSignature)));
        assert_eq!(
            compare(&c, &Receipt::sign(&console, a.clone())),
            Err(Mismatch::Agent(ReceiptError::WrongSigner))
        );
    }

    #[test]
    fn every_changed_byte_is_found() {
        let (console, _, statement, _) = pair(true);
        let line = Receipt::sign(&console, statement).to_line().into_bytes();
        for at in 0..line.len() {
            let mut changed = line.clone();
            changed[at] ^= 1;
            let found = Receipt::parse(&changed).map_or(true, |r| r.verify().is_err());
            assert!(found, "byte {at}");
        }
    }
}
