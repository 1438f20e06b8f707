//! What browsers, identity providers and clients of the API say.

use adit_mediator::decoders::{self, KeyFixture, TOKEN_CLAIMS, TOKEN_HEADER};
use adit_protocol::dpop::{base64url, token_hash};
use aws_lc_rs::signature::Ed25519KeyPair;
use serde_json::{Value, json};

use super::signing_key;

/// The standard's own example (WebAuthn Level 3 §16).
const VECTORS: &str = include_str!("../../../mediator/src/webauthn/vectors.json");

fn bytes(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap_or_default().as_bytes();
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    digits.chunks(2).filter_map(pair).collect()
}

/// The fixture, and the parts of its answers.
fn key_fixture() -> (KeyFixture, [Vec<u8>; 4]) {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap_or_default();
    let one = vectors.get(0).cloned().unwrap_or_default();
    let of = |half: &str, part: &str| {
        bytes(one.pointer(&format!("/{half}/{part}")).unwrap_or(&Value::Null))
    };
    let text = |half: &str, part: &str| base64url(&of(half, part));
    let registration = json!({
        "client_data": text("create", "client_data"),
        "attestation": text("create", "attestation"),
    });
    let assertion = json!({
        "id": base64url(&bytes(one.get("id").unwrap_or(&Value::Null))),
        "client_data": text("get", "client_data"),
        "authenticator_data": text("get", "authenticator_data"),
        "signature": text("get", "signature"),
    });
    let fixture = KeyFixture {
        created: of("create", "challenge"),
        registration: registration.to_string().into_bytes(),
        got: of("get", "challenge"),
        assertion: assertion.to_string().into_bytes(),
    };
    let parts = [
        of("create", "attestation"),
        of("create", "client_data"),
        of("get", "authenticator_data"),
        of("get", "client_data"),
    ];
    (fixture, parts)
}

/// Answers of security keys, and their parts.
pub(super) fn webauthn(data: &[u8]) -> bool {
    thread_local! {
        static FIXTURE: KeyFixture = key_fixture().0;
    }
    FIXTURE.with(|fixture| decoders::webauthn(data, fixture))
}

pub(super) fn valid_webauthn() -> Vec<Vec<u8>> {
    let (fixture, parts) = key_fixture();
    parts.into_iter().chain([fixture.registration, fixture.assertion]).collect()
}

/// Signs as the provider, or the holder of a proof's key.
fn sign(input: &str) -> Vec<u8> {
    thread_local! {
        static PAIR: Option<Ed25519KeyPair> = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).ok();
    }
    PAIR.with(|pair| pair.as_ref().map(|pair| pair.sign(input.as_bytes()).as_ref().to_vec()))
        .unwrap_or_default()
}

fn own_key() -> Value {
    let key = signing_key().map(|key| base64url(&key.public().0));
    json!({"kty": "OKP", "crv": "Ed25519", "kid": "k", "use": "sig", "alg": "EdDSA", "x": key})
}

fn good_token() -> String {
    let input =
        format!("{}.{}", base64url(TOKEN_HEADER.as_bytes()), base64url(TOKEN_CLAIMS.as_bytes()));
    format!("{input}.{}", base64url(&sign(&input)))
}

/// ID tokens, their headers and claims.
pub(super) fn id_token(data: &[u8]) -> bool {
    thread_local! {
        static KNOWN: (Vec<u8>, String) =
            (json!({"keys": [own_key()]}).to_string().into_bytes(), good_token());
    }
    KNOWN.with(|(keys, good)| decoders::id_token(data, keys, good, &sign))
}

pub(super) fn valid_id_token() -> Vec<Vec<u8>> {
    vec![good_token().into_bytes(), TOKEN_CLAIMS.into(), TOKEN_HEADER.into()]
}

/// A provider's keys and addresses.
pub(super) fn key_set(data: &[u8]) -> bool {
    decoders::key_set(data)
}

pub(super) fn valid_key_set() -> Vec<Vec<u8>> {
    let rsa = json!({"kty": "RSA", "n": base64url(&[0xc1; 256]), "e": "AQAB"});
    let keys = json!({"keys": [own_key(), rsa]}).to_string();
    vec![keys.into_bytes(), b"https://id.example:8443/keys?x=1".to_vec()]
}

fn proof_header() -> String {
    let mut jwk = own_key();
    if let Some(jwk) = jwk.as_object_mut() {
        jwk.retain(|name, _| ["kty", "crv", "x"].contains(&name.as_str()));
    }
    json!({"typ": "dpop+jwt", "alg": "EdDSA", "jwk": jwk}).to_string()
}

/// Claims of a proof of possession.
pub(super) fn proof(data: &[u8]) -> bool {
    decoders::proof(data, &proof_header(), &sign)
}

pub(super) fn valid_proof() -> Vec<Vec<u8>> {
    let claims = json!({
        "jti": "0123456789abcdef", "htm": "GET", "htu": "https://mediator.example/api/v1/me",
        "iat": 1_800_000_000, "ath": token_hash("token"), "nonce": "n",
    });
    vec![claims.to_string().into_bytes()]
}

/// Requests to do something.
pub(super) fn admin(data: &[u8]) -> bool {
    decoders::admin_request(data)
}

pub(super) fn valid_admin() -> Vec<Vec<u8>> {
    let user = r#"{"act":"user_add","user":"ann","partner":"p","role":"technician","mfa":true,"password":"x"}"#;
    let conditions = r#"{"reason":true,"hours":"mon-fri 08:00-18:00","networks":["192.0.2.0/24"]}"#;
    [r#"{"act":"client_add","path":"p/c"}"#, user, conditions].map(Vec::from).into()
}

/// Forms and queries.
pub(super) fn query(data: &[u8]) -> bool {
    decoders::query(data)
}

pub(super) fn valid_query() -> Vec<Vec<u8>> {
    [
        "csrf=abc&user=ann%40example&password=a+b%26c",
        "limit=10&cursor=cGMx",
        "person=ann&since=2026-01-01T00%3A00%3A00Z&format=csv",
        "tree=t&old_size=1&new_size=2",
    ]
    .map(Vec::from)
    .into()
}

/// Bodies of requests to the API.
pub(super) fn api_body(data: &[u8]) -> bool {
    decoders::api_body(data)
}

pub(super) fn valid_api_body() -> Vec<Vec<u8>> {
    let key = base64url(&[7; 32]);
    [
        json!({}),
        json!({"days": 365}),
        json!({"hold": true, "reason": "a court asks"}),
        json!({"level": 5}),
        json!({"user": "ann", "role": "technician", "mfa": true}),
        json!({"client": "p/c", "uses": 3, "ttl_ms": 3_600_000}),
        json!({"role": "own", "permissions": ["launch"], "redirectors": ["ssh"],
            "conditions": {"reason": true, "hours": "mon-fri 08:00-18:00"}}),
        json!({"role": "own", "group": "night", "scope": {"client": "p/c"},
            "conditions": {"networks": ["192.0.2.0/24"]}, "expires": "2030-01-01T00:00:00Z"}),
        json!({"computer": "pc", "redirector": "ssh", "reason": "why", "ticket": "T-1",
            "length_ms": 60_000}),
        json!({"name": "k", "public_key": key, "role": "auditor", "networks": ["10.0.0.0/8"]}),
        json!({"user": "root", "secret": "s", "redirectors": ["ssh"], "automatic": true}),
        json!({"generate": true, "length": 32}),
    ]
    .map(|body| body.to_string().into_bytes())
    .into()
}

/// What an identity provider answers.
pub(super) fn provider(data: &[u8]) -> bool {
    decoders::provider_answer(data)
}

pub(super) fn valid_provider() -> Vec<Vec<u8>> {
    let described = json!({
        "issuer": "https://id.example",
        "authorization_endpoint": "https://id.example/auth?tenant=1",
        "token_endpoint": "https://tokens.id.example:8443/token",
        "jwks_uri": "https://id.example/keys",
        "token_endpoint_auth_methods_supported": ["client_secret_basic"],
        "authorization_response_iss_parameter_supported": true,
        "scopes_supported": ["openid"],
    });
    let told = json!({"id_token": good_token(), "access_token": "x", "expires_in": 60});
    vec![described.to_string().into_bytes(), told.to_string().into_bytes()]
}

/// What the console makes of an answer of the API that is no success (RFC 9457).
pub(super) fn problem(data: &[u8]) -> bool {
    adit_console::api::fuzz_problem(data)
}

pub(super) fn valid_problem() -> Vec<Vec<u8>> {
    let problem = json!({
        "type": "about:blank", "title": "Forbidden", "status": 403, "code": "not_permitted",
        "detail": "your roles do not permit users.manage", "hint": "ask an owner",
    });
    vec![problem.to_string().into_bytes(), br#"{"code":"login_failed","detail":""}"#.to_vec()]
}
