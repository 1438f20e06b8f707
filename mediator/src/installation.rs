//! The installation's keys: the root, the keys that it certifies, and the server certificate.
//!
//! Must never replace a key that exists: only certificates are issued anew, while less than a
//! third of their time is left. A damaged or missing key file is an error, never repaired.

use std::sync::{Arc, PoisonError, RwLock};

use adit_ledger::RootCert;
use adit_net::tls::{IssuedCert, RootAuthority, read_pem_chain, read_pem_key};
use adit_protocol::{
    keys::{KeyCert, PublicKey, Purpose, SigningKey},
    wire,
};
use adit_runtime::{cli::CliError, datadir::DataDir};
use prost::Message;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::store::LogSigner;

/// File of the root key.
pub(crate) const ROOT_KEY: &str = "root.key";
/// Life of a key certificate, milliseconds.
const KEY_LIFE_MS: u64 = 365 * 24 * 3_600_000;
/// Life of a server certificate, milliseconds: what browsers accept.
const SERVER_LIFE_MS: u64 = 90 * 24 * 3_600_000;
/// Clocks of devices may be behind by this much, milliseconds.
const CLOCK_SLACK_MS: u64 = 3_600_000;
/// Largest certificate file.
const MAX_CERT_BYTES: u64 = 256 * 1024;

const KEYS: [(&str, Purpose); 3] =
    [("grant", Purpose::Grant), ("ticket", Purpose::Ticket), ("log", Purpose::Log)];

/// Files that `init` makes here.
pub(crate) const FILES: [&str; 9] = [
    ROOT_KEY,
    "grant.key",
    "grant.cert",
    "ticket.key",
    "ticket.cert",
    "log.key",
    "log.cert",
    "server.key",
    "server.crt",
];

/// The keys, and certificates that were valid when they were read.
pub(crate) struct Installation {
    root: SigningKey,
    pub(crate) grant: SigningKey,
    pub(crate) ticket: SigningKey,
    log: Arc<SigningKey>,
    /// Certificate of the log key, shared with whoever signs heads.
    log_cert: Arc<RwLock<RootCert>>,
    issued: RwLock<Issued>,
}

/// What is issued anew while the mediator runs.
struct Issued {
    certs: Vec<wire::Signed>,
    chain: Vec<CertificateDer<'static>>,
    server_key: PrivateKeyDer<'static>,
}

impl Installation {
    /// Makes all keys. The caller has made sure that there are none.
    pub(crate) fn create(dir: &DataDir, hosts: &[String], now_ms: u64) -> Result<Self, CliError> {
        let root = new_key()?;
        write_key(dir, ROOT_KEY, &root)?;
        for (name, _) in KEYS {
            write_key(dir, &format!("{name}.key"), &new_key()?)?;
        }
        Self::load(dir, hosts, now_ms)
    }

    /// Reads all keys; issues certificates that are missing, worn out or for other hosts.
    pub(crate) fn load(dir: &DataDir, hosts: &[String], now_ms: u64) -> Result<Self, CliError> {
        let root = read_key(dir, ROOT_KEY)?;
        let mut keys = Vec::new();
        for (name, _) in KEYS {
            keys.push(read_key(dir, &format!("{name}.key"))?);
        }
        let [grant, ticket, log]: [SigningKey; 3] =
            keys.try_into().map_err(|_| damaged(ROOT_KEY))?;
        let public = [grant.public(), ticket.public(), log.public()];
        let (issued, log_cert) = issue(dir, &root, public, hosts, now_ms)?;
        Ok(Self {
            root,
            grant,
            ticket,
            log: Arc::new(log),
            log_cert: Arc::new(RwLock::new(log_cert)),
            issued: RwLock::new(issued),
        })
    }

    /// Issues what is worn out; everybody who asks afterwards gets the new certificates.
    pub(crate) fn renew(
        &self,
        dir: &DataDir,
        hosts: &[String],
        now_ms: u64,
    ) -> Result<(), CliError> {
        let public = [self.grant.public(), self.ticket.public(), self.log.public()];
        let (issued, log_cert) = issue(dir, &self.root, public, hosts, now_ms)?;
        *self.log_cert.write().unwrap_or_else(PoisonError::into_inner) = log_cert;
        *self.issued.write().unwrap_or_else(PoisonError::into_inner) = issued;
        Ok(())
    }

    /// Whether the keys' certificates do not count at this time: the clock jumped.
    pub(crate) fn is_out_of_time(&self, now_ms: u64) -> bool {
        let cert = self.log_cert.read().unwrap_or_else(PoisonError::into_inner).cert.clone();
        KeyCert::open(self.root.public(), Purpose::Log, &cert)
            .is_ok_and(|cert| cert.check_time(now_ms).is_err())
    }

    /// The root's public key.
    pub(crate) fn root(&self) -> PublicKey {
        self.root.public()
    }

    /// Certificates of the grant, ticket and log keys.
    pub(crate) fn key_certs(&self) -> Vec<wire::Signed> {
        self.issued.read().unwrap_or_else(PoisonError::into_inner).certs.clone()
    }

    /// The TLS certificate chain and key.
    pub(crate) fn server(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let issued = self.issued.read().unwrap_or_else(PoisonError::into_inner);
        (issued.chain.clone(), issued.server_key.clone_key())
    }

    /// Signs tree heads.
    pub(crate) fn log_signer(&self) -> LogSigner {
        LogSigner { key: Arc::clone(&self.log), cert: Arc::clone(&self.log_cert) }
    }
}

fn issue(
    dir: &DataDir,
    root: &SigningKey,
    keys: [PublicKey; 3],
    hosts: &[String],
    now_ms: u64,
) -> Result<(Issued, RootCert), CliError> {
    let mut certs = Vec::new();
    for ((name, purpose), key) in KEYS.into_iter().zip(keys) {
        certs.push(key_cert(dir, root, name, purpose, key, now_ms)?);
    }
    let (chain, server_key) = server_cert(dir, root, hosts, now_ms)?;
    let cert = certs.last().cloned().ok_or_else(|| damaged("log.cert"))?;
    let log_cert = RootCert { root: root.public(), cert };
    Ok((Issued { certs, chain, server_key }, log_cert))
}

fn key_cert(
    dir: &DataDir,
    root: &SigningKey,
    name: &str,
    purpose: Purpose,
    key: PublicKey,
    now_ms: u64,
) -> Result<wire::Signed, CliError> {
    let file = format!("{name}.cert");
    let stored = dir.read(&file, MAX_CERT_BYTES)?;
    if let Some(signed) = stored.and_then(|bytes| wire::Signed::decode(bytes.as_slice()).ok())
        && let Ok(cert) = KeyCert::open(root.public(), purpose, &signed)
        && cert.key == key
        && cert.check_time(now_ms).is_ok()
        && !worn(cert.not_before_ms, cert.not_after_ms, now_ms)
    {
        return Ok(signed);
    }
    let cert = KeyCert {
        key,
        not_before_ms: now_ms.saturating_sub(CLOCK_SLACK_MS),
        not_after_ms: now_ms.saturating_add(KEY_LIFE_MS),
    };
    let signed = KeyCert::issue(root, purpose, &cert);
    dir.write_atomic(&file, &signed.encode_to_vec(), 0o600)?;
    tracing::info!(key = name, "issued a key certificate");
    Ok(signed)
}

/// Less than a third of the time is left.
fn worn(not_before_ms: u64, not_after_ms: u64, now_ms: u64) -> bool {
    let life = not_after_ms.saturating_sub(not_before_ms);
    not_after_ms.saturating_sub(now_ms) < life / 3
}

/// First line of `server.crt`: what the certificate is for and until when, since the PEM behind
/// it is not read by this program.
fn server_note(hosts: &[String], not_before_ms: u64, not_after_ms: u64) -> String {
    format!("# {not_before_ms} {not_after_ms} {}\n", hosts.join(","))
}

type Served = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn server_cert(
    dir: &DataDir,
    root: &SigningKey,
    hosts: &[String],
    now_ms: u64,
) -> Result<Served, CliError> {
    if let Some(served) = stored_server_cert(dir, hosts, now_ms)? {
        return Ok(served);
    }
    let failed = |error: adit_net::tls::AuthorityError| {
        CliError::failed("certificate_failed", error.to_string())
            .hint("give host names and addresses that a certificate can name")
    };
    let authority = RootAuthority::new(root).map_err(failed)?;
    let (from, to) = (now_ms.saturating_sub(CLOCK_SLACK_MS), now_ms.saturating_add(SERVER_LIFE_MS));
    let issued: IssuedCert = authority.issue_server_cert(hosts, from, to).map_err(failed)?;
    // The key first: a certificate without its key would be used, a key without is not.
    dir.write_atomic("server.key", issued.key_pem.as_bytes(), 0o600)?;
    let text = format!("{}{}", server_note(hosts, from, to), issued.chain_pem);
    dir.write_atomic("server.crt", text.as_bytes(), 0o600)?;
    tracing::info!("issued a server certificate");
    Ok((issued.chain, issued.key))
}

fn stored_server_cert(
    dir: &DataDir,
    hosts: &[String],
    now_ms: u64,
) -> Result<Option<Served>, CliError> {
    if !dir.has("server.key") {
        return Ok(None);
    }
    let Some(text) = dir.read("server.crt", MAX_CERT_BYTES)? else { return Ok(None) };
    let note = String::from_utf8_lossy(&text);
    let mut parts = note.lines().next().unwrap_or_default().split(' ').skip(1);
    let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok());
    let (Some(from), Some(to)) = (number(), number()) else { return Ok(None) };
    let same = note.starts_with(&server_note(hosts, from, to));
    if !same || now_ms < from || worn(from, to, now_ms) {
        return Ok(None);
    }
    let pem = dir.read_secret("server.key")?;
    match (read_pem_chain(&text), read_pem_key(&pem)) {
        (Ok(chain), Ok(key)) => Ok(Some((chain, key))),
        _ => Ok(None),
    }
}

fn new_key() -> Result<SigningKey, CliError> {
    SigningKey::generate()
        .map_err(|error| CliError::failed("crypto_failed", format!("cannot make a key: {error}")))
}

fn write_key(dir: &DataDir, name: &str, key: &SigningKey) -> Result<(), CliError> {
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in key.seed().iter() {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(nibble.into(), 16));
        }
    }
    text.push('\n');
    dir.write_atomic(name, text.as_bytes(), 0o600)
}

fn read_key(dir: &DataDir, name: &str) -> Result<SigningKey, CliError> {
    let bytes = dir.read_secret(name)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged(name))?.trim();
    let mut seed = Zeroizing::new([0_u8; 32]);
    let mut digits = text.chars().map(|c| c.to_digit(16));
    for byte in seed.iter_mut() {
        let (Some(Some(high)), Some(Some(low))) = (digits.next(), digits.next()) else {
            return Err(damaged(name));
        };
        *byte = u8::try_from(high * 16 + low).map_err(|_| damaged(name))?;
    }
    if digits.next().is_some() {
        return Err(damaged(name));
    }
    SigningKey::from_seed(&seed[..]).map_err(|_| damaged(name))
}

fn damaged(name: &str) -> CliError {
    CliError::failed("key_damaged", format!("{name} does not hold a key"))
        .hint("restore it from a backup of the data directory")
}
