//! Verifiers: raw public keys, and chains that end in a pinned root.
//!
//! Never accepts by default; each names what it accepts, and signatures are always checked.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use adit_protocol::keys::{Fingerprint, PublicKey};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::issuer::issuer;

/// Decides about the raw public key of a peer.
pub(super) type AllowKey = Arc<dyn Fn(PublicKey) -> bool + Send + Sync>;

/// Accepts peers by their Ed25519 raw public key (RFC 7250), in either direction.
pub(super) struct RawKeyVerifier {
    allow: AllowKey,
    algorithms: WebPkiSupportedAlgorithms,
}

impl RawKeyVerifier {
    pub(super) fn new(provider: &CryptoProvider, allow: AllowKey) -> Arc<Self> {
        Arc::new(Self { allow, algorithms: provider.signature_verification_algorithms })
    }

    fn check(&self, spki: &CertificateDer<'_>) -> Result<(), Error> {
        let key = PublicKey::from_spki(spki).map_err(|_| CertificateError::BadEncoding)?;
        if (self.allow)(key) {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

impl fmt::Debug for RawKeyVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawKeyVerifier")
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerIncompatible::Tls13RequiredForQuic.into())
}

impl ServerCertVerifier for RawKeyVerifier {
    fn verify_server_cert(
        &self,
        spki: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(spki).map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, spki, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for RawKeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        spki: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(spki).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, spki, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// What the chain of a server ended in, whether accepted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presented {
    /// A certificate of an Ed25519 key, as roots of installations are.
    Root(PublicKey),
    /// Something else: not an installation's chain.
    Foreign,
}

/// Which chains are accepted.
#[derive(Debug)]
pub(super) enum Accept {
    /// Those that verify under the root with this fingerprint.
    Root(Fingerprint),
    /// Those that the platform's store accepts.
    WebPki(Arc<dyn ServerCertVerifier>),
    /// None; but what is presented is checked as far as it can be, and reported.
    Nothing,
}

/// Verifies a mediator's X.509 chain and remembers what it ended in.
#[derive(Debug)]
pub(super) struct ChainVerifier {
    accept: Accept,
    provider: Arc<CryptoProvider>,
    presented: Mutex<Option<Presented>>,
    issuer: Mutex<Option<String>>,
}

impl ChainVerifier {
    pub(super) fn new(accept: Accept, provider: Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self { accept, provider, presented: Mutex::default(), issuer: Mutex::default() })
    }

    /// What the server's chain ended in; `None` before the chain came.
    pub(super) fn presented(&self) -> Option<Presented> {
        *self.presented.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who issued what the server presented, for people.
    pub(super) fn issuer(&self) -> String {
        let issuer = self.issuer.lock().unwrap_or_else(PoisonError::into_inner);
        match issuer.as_deref() {
            Some(name) => format!("\"{name}\""),
            None => "an unnamed issuer".to_owned(),
        }
    }

    /// Leaf under the given root: signature, name, dates, usage, as WebPKI checks them.
    fn verify_under(
        &self,
        root: &CertificateDer<'_>,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(leaf, between, name, &[], now)
    }
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let last = intermediates.split_last();
        let root = last.and_then(|(root, _)| {
            let parsed = ParsedCertificate::try_from(root).ok()?;
            PublicKey::from_spki(&parsed.subject_public_key_info()).ok()
        });
        let presented = root.map_or(Presented::Foreign, Presented::Root);
        *self.presented.lock().unwrap_or_else(PoisonError::into_inner) = Some(presented);
        *self.issuer.lock().unwrap_or_else(PoisonError::into_inner) = issuer(leaf);
        if let Accept::WebPki(verifier) = &self.accept {
            return verifier.verify_server_cert(leaf, intermediates, name, ocsp, now);
        }
        let unknown = || Error::from(CertificateError::UnknownIssuer);
        let ((cert, between), root) = last.zip(root).ok_or_else(unknown)?;
        if matches!(self.accept, Accept::Root(pinned) if root.fingerprint() != pinned) {
            return Err(unknown());
        }
        let verified = self.verify_under(cert, leaf, between, name, now)?;
        if matches!(self.accept, Accept::Nothing) { Err(unknown()) } else { Ok(verified) }
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
