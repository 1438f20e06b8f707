//! A signed statement of a tree's size and root: `{"head":{…}}`, the last line of an export.
//!
//! The signature is over the bytes of the inner object up to and with `log_key`, closed with a
//! brace, in the context of tree heads. The root key's certificate of the log key goes along but
//! is not covered: it can be replaced by a renewed one. Must never be compared by time: clocks
//! jump, sizes do not.

use std::io::{self, BufRead, Read as _};

use adit_protocol::{
    keys::{Fingerprint, KeyCert, KeyError, PublicKey, Purpose, SigningKey, context},
    wire,
};
use serde::Deserialize;

use crate::{
    Hash, MAX_INTEGER, MAX_LINE_LEN,
    entry::LineError,
    hash::{hex, unhex, unhex_array},
    json::Object,
    time::{MAX_TIME_MS, format_time, parse_time},
};

/// Version of the head's fields.
const VERSION: u64 = 1;
/// Bytes of a tree's id.
pub const MAX_TREE_ID_LEN: usize = 128;
/// Bytes of a certificate's payload.
const MAX_CERT_LEN: usize = 1024;
/// Heads in a file: an export has one for each tree.
const MAX_HEADS: usize = crate::verify::MAX_TREES;
/// How a head's line begins.
pub(crate) const BEGINS: &[u8] = b"{\"head\":";

/// Why a head cannot be made or believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The tree's id is empty, too long or not visible ASCII.
    #[error("tree id must be 1 to 128 visible ASCII characters")]
    InvalidTree,
    /// The signature is not the log key's.
    #[error("head's signature does not verify")]
    BadSignature,
    /// The certificate does not certify the log key at the head's time.
    #[error("certificate of the head's log key: {0}")]
    BadCert(KeyError),
    /// The certificate is for another key.
    #[error("certificate is for another key than the head's log key")]
    OtherKey,
}

/// Why a file gives no heads.
#[derive(Debug, thiserror::Error)]
pub enum HeadsError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A head of it is damaged.
    #[error("{0}")]
    Line(#[from] LineError),
    /// It is something else.
    #[error("no line of it is one")]
    Missing,
    /// More than any export has.
    #[error("it holds more than {MAX_HEADS}")]
    TooMany,
}

/// The installation root's certificate of the log key.
#[derive(Debug, Clone, PartialEq)]
pub struct RootCert {
    /// The root key, to be compared with a pinned fingerprint.
    pub root: PublicKey,
    /// What it signed, as issued by [`KeyCert::issue`].
    pub cert: wire::Signed,
}

/// Size and root of a tree at a time, signed by the log key.
#[derive(Debug, Clone, PartialEq)]
pub struct SignedHead {
    /// Which tree: the partner's id.
    pub tree: String,
    /// Number of entries.
    pub size: u64,
    /// Merkle Tree Hash of all entries.
    pub root: Hash,
    /// When it was signed, milliseconds since 1970.
    pub time_ms: u64,
    /// Key that signed.
    pub log_key: PublicKey,
    /// Signature.
    pub signature: [u8; 64],
    /// Certificate of `log_key`, if at hand.
    pub key_cert: Option<RootCert>,
}

impl SignedHead {
    /// Signs a head.
    pub fn sign(
        key: &SigningKey,
        tree: &str,
        size: u64,
        root: Hash,
        time_ms: u64,
        key_cert: Option<RootCert>,
    ) -> Result<Self, HeadError> {
        if !is_tree_id(tree) {
            return Err(HeadError::InvalidTree);
        }
        let mut head = Self {
            tree: tree.to_owned(),
            size: size.min(MAX_INTEGER),
            root,
            time_ms: time_ms.min(MAX_TIME_MS),
            log_key: key.public(),
            signature: [0; 64],
            key_cert,
        };
        head.signature = key.sign(context::TREE_HEAD, head.signed_part().finish().as_bytes());
        Ok(head)
    }

    /// Checks the signature, and the certificate if there is one. Whether the key or its root is
    /// trusted is for the caller to say.
    pub fn verify(&self) -> Result<(), HeadError> {
        if !is_tree_id(&self.tree) {
            return Err(HeadError::InvalidTree);
        }
        let signed = self.signed_part().finish();
        self.log_key
            .verify(context::TREE_HEAD, signed.as_bytes(), &self.signature)
            .map_err(|_| HeadError::BadSignature)?;
        let Some(RootCert { root, cert }) = &self.key_cert else { return Ok(()) };
        let cert = KeyCert::open(*root, Purpose::Log, cert).map_err(HeadError::BadCert)?;
        if cert.key != self.log_key {
            return Err(HeadError::OtherKey);
        }
        cert.check_time(self.time_ms).map_err(HeadError::BadCert)
    }

    /// Fingerprint of the key that signed.
    pub fn log_fingerprint(&self) -> Fingerprint {
        self.log_key.fingerprint()
    }

    /// Fingerprint of the root that certified it.
    pub fn root_fingerprint(&self) -> Option<Fingerprint> {
        self.key_cert.as_ref().map(|cert| cert.root.fingerprint())
    }

    /// Reads a line (without line feed). Does not verify.
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            head: RawHead,
        }
        if line.len() > MAX_LINE_LEN {
            return Err(LineError::TooLong);
        }
        let raw: Raw = serde_json::from_slice(line).map_err(|_| LineError::Malformed)?;
        if raw.head.v > VERSION {
            return Err(LineError::Version);
        }
        let head = raw.head.into_head().ok_or(LineError::Malformed)?;
        if head.to_line().as_bytes() == line { Ok(head) } else { Err(LineError::NotCanonical) }
    }

    /// The line, without line feed.
    pub fn to_line(&self) -> String {
        let mut inner = self.signed_part();
        inner.string("signature", &hex(&self.signature));
        match &self.key_cert {
            None => inner.raw("key_cert", "null"),
            Some(RootCert { root, cert }) => {
                let mut out = Object::new();
                out.string("root_key", &hex(&root.0))
                    .string("payload", &hex(&cert.payload))
                    .string("signature", &hex(&cert.signature));
                inner.raw("key_cert", &out.finish())
            }
        };
        let mut out = Object::new();
        out.raw("head", &inner.finish());
        out.finish()
    }

    fn signed_part(&self) -> Object {
        let mut out = Object::new();
        out.integer("v", VERSION)
            .string("tree", &self.tree)
            .integer("size", self.size)
            .string("root", &hex(&self.root.0))
            .string("time", &format_time(self.time_ms))
            .string("log_key", &hex(&self.log_key.0));
        out
    }
}

/// All heads of a file: of an export, or of lines that somebody kept. Other lines are passed over.
/// Does not verify.
pub fn read_heads(mut file: impl BufRead) -> Result<Vec<SignedHead>, HeadsError> {
    let (mut line, mut heads) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        // Whatever it is, it is read in pieces.
        let limit = MAX_LINE_LEN as u64 + 1;
        if file.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if !line.starts_with(BEGINS) {
            continue;
        }
        if heads.len() == MAX_HEADS {
            return Err(HeadsError::TooMany);
        }
        heads.push(SignedHead::parse(line.trim_ascii_end())?);
    }
    if heads.is_empty() { Err(HeadsError::Missing) } else { Ok(heads) }
}

fn is_tree_id(tree: &str) -> bool {
    (1..=MAX_TREE_ID_LEN).contains(&tree.len()) && tree.bytes().all(|b| b.is_ascii_graphic())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHead {
    v: u64,
    tree: String,
    size: u64,
    root: String,
    time: String,
    log_key: String,
    signature: String,
    key_cert: Option<RawCert>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCert {
    root_key: String,
    payload: String,
    signature: String,
}

impl RawHead {
    fn into_head(self) -> Option<SignedHead> {
        let key_cert = match self.key_cert {
            None => None,
            Some(raw) if raw.payload.len() <= 2 * MAX_CERT_LEN => Some(RootCert {
                root: PublicKey(unhex_array(&raw.root_key)?),
                cert: wire::Signed {
                    payload: unhex(&raw.payload)?.into(),
                    signature: unhex_array::<64>(&raw.signature)?.to_vec().into(),
                },
            }),
            Some(_) => return None,
        };
        (is_tree_id(&self.tree) && self.size <= MAX_INTEGER).then_some(SignedHead {
            tree: self.tree,
            size: self.size,
            root: self.root.parse().ok()?,
            time_ms: parse_time(&self.time)?,
            log_key: PublicKey(unhex_array(&self.log_key)?),
            signature: unhex_array(&self.signature)?,
            key_cert,
        })
    }
}
