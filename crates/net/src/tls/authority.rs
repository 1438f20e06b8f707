//! The installation's root as an X.509 authority, and the mediator's certificates below it.
//!
//! The root certificate follows from the root key alone (fixed dates, names and serial), so that
//! it never needs to be kept in step with anything.

use std::time::Duration;

use adit_protocol::keys::{KeyError, PublicKey, SigningKey, random};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SerialNumber,
    SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::Zeroizing;

/// Years within which the root certificate is valid: its key is pinned, its dates say nothing.
const ROOT_YEARS: (i32, i32) = (2020, 9999);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A host is neither a name nor an address.
    #[error("\"{0}\" is neither a DNS name nor an IP address")]
    InvalidHost(String),
    /// No host was given.
    #[error("a server certificate needs at least one name or address")]
    NoHost,
    /// The library refused.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The key cannot be used.
    #[error("cannot make a key: {0}")]
    Key(#[from] KeyError),
    /// A PEM text holds nothing that fits.
    #[error("no {0} in the PEM text")]
    Pem(&'static str),
}

/// The root key as a certificate authority.
pub struct RootAuthority<'a> {
    key: RootSigner<'a>,
    cert: CertificateDer<'static>,
    pem: String,
}

/// A server certificate with its chain and key.
pub struct IssuedCert {
    /// Leaf, then root.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS #8.
    pub key: PrivateKeyDer<'static>,
    /// The chain in PEM.
    pub chain_pem: String,
    /// The key in PEM, to be stored as a secret.
    pub key_pem: Zeroizing<String>,
}

impl<'a> RootAuthority<'a> {
    /// The authority of a root key; the same key gives the same certificate.
    pub fn new(root: &'a SigningKey) -> Result<Self, AuthorityError> {
        let key = RootSigner { root, public: root.public().0 };
        let cert = root_params(root.public())?.self_signed(&key)?;
        Ok(Self { key, pem: cert.pem(), cert: cert.into() })
    }

    /// The self-signed certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// The self-signed certificate in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// Issues a TLS server certificate for names and addresses; times in milliseconds since 1970.
    pub fn issue_server_cert(
        &self,
        hosts: &[String],
        not_before_ms: u64,
        not_after_ms: u64,
    ) -> Result<IssuedCert, AuthorityError> {
        self.issue(hosts, not_before_ms, not_after_ms, ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub(super) fn issue(
        &self,
        hosts: &[String],
        not_before_ms: u64,
        not_after_ms: u64,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<IssuedCert, AuthorityError> {
        let first = hosts.first().ok_or(AuthorityError::NoHost)?;
        for host in hosts {
            // rcgen checks the alphabet only; the reader is stricter.
            rustls::pki_types::ServerName::try_from(host.as_str())
                .map_err(|_| AuthorityError::InvalidHost(host.clone()))?;
        }
        // Browsers do not take Ed25519 yet.
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::CommonName, first.as_str());
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_millis(not_before_ms);
        params.not_after = epoch + Duration::from_millis(not_after_ms);
        params.serial_number = Some(SerialNumber::from_slice(&random::<16>()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let root = root_params(self.key.root.public())?;
        let leaf = params.signed_by(&key, &Issuer::from_params(&root, &self.key))?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        Ok(IssuedCert {
            chain_pem: format!("{}{}", leaf.pem(), self.pem),
            chain: vec![leaf.into(), self.cert.clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            key_pem,
        })
    }
}

impl std::fmt::Debug for RootAuthority<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RootAuthority({})", self.key.root.public().fingerprint())
    }
}

impl std::fmt::Debug for IssuedCert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IssuedCert")
    }
}

/// Reads a chain, leaf first.
pub fn read_pem_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|c| !c.is_empty()).ok_or(AuthorityError::Pem("certificate"))
}

/// Reads a private key.
pub fn read_pem_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, AuthorityError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| AuthorityError::Pem("private key"))
}

fn root_params(root: PublicKey) -> Result<CertificateParams, AuthorityError> {
    let fingerprint = root.fingerprint();
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, format!("Adit root {fingerprint}"));
    params.not_before = rcgen::date_time_ymd(ROOT_YEARS.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(ROOT_YEARS.1, 1, 1);
    // At most 20 octets and positive (RFC 5280 §4.1.2.2).
    let mut serial: Vec<u8> = fingerprint.0.iter().take(16).copied().collect();
    serial.insert(0, 1);
    params.serial_number = Some(SerialNumber::from(serial));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// The root key as rcgen wants it. What it signs begins with an ASN.1 SEQUENCE, which no
/// context string of `adit_protocol::keys` does: neither signature can be taken for the other.
struct RootSigner<'a> {
    root: &'a SigningKey,
    public: [u8; 32],
}

impl PublicKeyData for RootSigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl rcgen::SigningKey for RootSigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let pkcs8 = self.root.to_pkcs8();
        let der = PrivatePkcs8KeyDer::from(&pkcs8[..]);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)?;
        rcgen::SigningKey::sign(&key, message)
    }
}
