//! What the mediator reads from strangers, files and people, as functions for fuzzing and replay.
//!
//! Each says whether the input was accepted, and panics when a promise is broken: something
//! accepted that was not signed, or that does not read back as it was. Nothing here is part of
//! the program.

use std::path::Path;

use adit_protocol::dpop::base64url;
use adit_runtime::{
    config::{Config, Sources},
    datadir::DataDir,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    admin::AdminRequest,
    age::{self, Identity, Recipient},
    audit::search,
    config::{KEYS, PROGRAM, Settings},
    http::{api, fuzz_proof},
    mfa::Shown,
    oidc::{remote, remote::https, token},
    pages::codes::UserCode,
    roles::{Conditions, Permission, conditions::Network, hours::Hours},
    tenancy::{certificate, ledger},
    vault::wrap::{WRAPPING_KEYS, WrappingKeys},
};

pub use crate::webauthn::fuzz::{KeyFixture, webauthn};

/// For whom the ID tokens are that [`id_token`] accepts.
pub const TOKEN_CLAIMS: &str = r#"{"iss":"https://id.example","sub":"ann","aud":"adit","exp":1000300,"iat":1000000,"nonce":"n-1","acr":"mfa","amr":["pwd","hwk"]}"#;
/// And their header.
pub const TOKEN_HEADER: &str = r#"{"alg":"EdDSA","kid":"k"}"#;
const EXPECTED: token::Expected<'_> = token::Expected {
    issuer: "https://id.example",
    client_id: "adit",
    nonce: "n-1",
    now_s: 1_000_000,
};

/// ID tokens: as they come, and as header or claims of one whose signature holds. `good` is the
/// one token that was made; `sign` signs others with the same key.
pub fn id_token(data: &[u8], key_set: &[u8], good: &str, sign: &dyn Fn(&str) -> Vec<u8>) -> bool {
    let keys = token::keys(key_set).unwrap_or_default();
    let mut accepted = false;
    if let Ok(text) = std::str::from_utf8(data) {
        let judged = token::verify(text, &keys, &EXPECTED).is_ok();
        assert!(!judged || text == good, "accepted, and never made");
        accepted |= judged;
    }
    for (header, claims) in [(TOKEN_HEADER.as_bytes(), data), (data, TOKEN_CLAIMS.as_bytes())] {
        let signed = format!("{}.{}", base64url(header), base64url(claims));
        let made = format!("{signed}.{}", base64url(&sign(&signed)));
        accepted |= token::verify(&made, &keys, &EXPECTED).is_ok();
    }
    accepted
}

/// A provider's key set, and addresses in its description.
pub fn key_set(data: &[u8]) -> bool {
    let address = std::str::from_utf8(data).is_ok_and(|text| match https(text) {
        Ok((_, host, _)) => {
            assert!(!host.is_empty(), "an address without a host");
            true
        }
        Err(_) => false,
    });
    address | token::keys(data).is_some_and(|keys| !keys.is_empty())
}

/// A provider's description of itself, and its answer with a token.
pub fn provider_answer(data: &[u8]) -> bool {
    remote::fuzz_answer(data)
}

/// Bodies of requests to the API.
pub fn api_body(data: &[u8]) -> bool {
    api::fuzz_bodies(data)
}

/// Claims of a proof of possession whose signature holds.
pub fn proof(data: &[u8], header: &str, sign: &dyn Fn(&str) -> Vec<u8>) -> bool {
    let signed = format!("{}.{}", base64url(header.as_bytes()), base64url(data));
    fuzz_proof(&format!("{signed}.{}", base64url(&sign(&signed))))
}

/// Requests of the local socket and, in their parts, of the API.
pub fn admin_request(data: &[u8]) -> bool {
    reads_back::<AdminRequest>(data) | reads_back::<Conditions>(data)
}

fn reads_back<T: DeserializeOwned + Serialize>(data: &[u8]) -> bool {
    let Ok(first) = serde_json::from_slice::<T>(data) else { return false };
    let text = serde_json::to_string(&first).unwrap_or_default();
    let again: Option<T> = serde_json::from_str(&text).ok();
    let again = again.and_then(|again| serde_json::to_string(&again).ok());
    assert_eq!(again.as_ref(), Some(&text), "it does not read back");
    true
}

/// Forms of the pages, queries of the API, cursors.
pub fn query(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let form = serde_urlencoded::from_str::<Vec<(String, String)>>(text).unwrap_or_default();
    if let Ok(after) = api::read_cursor(Some(text)) {
        assert_eq!(api::write_cursor(&after), text);
    }
    if let Ok(cursor) = text.parse::<search::Cursor>() {
        let again = cursor.to_string().parse::<search::Cursor>();
        assert_eq!(again.ok().map(|again| again.to_string()), Some(cursor.to_string()));
    }
    api::fuzz_queries(text) | form.iter().any(|(name, _)| name == "csrf")
}

/// What rules are written with.
pub fn rules(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let hours = text.parse::<Hours>();
    if let Ok(hours) = &hours {
        assert_eq!(hours.to_string().parse::<Hours>().as_ref(), Ok(hours));
        // A Sunday in March when clocks change, a leap day, the beginning and the end of time.
        for at in [0, 1_774_749_600_000, 1_709_211_600_000, u64::MAX] {
            assert!(hours.open_until(at).is_none_or(|end| end > at));
        }
    }
    let network = text.parse::<Network>();
    if let Ok(network) = network {
        assert_eq!(network.to_string().parse(), Ok(network));
    }
    hours.is_ok() | network.is_ok() | text.parse::<Permission>().is_ok()
}

/// Codes that people type.
pub fn codes(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let code = UserCode::parse(text);
    if let Some(code) = &code {
        assert_eq!(UserCode::parse(&code.to_string()).as_ref(), Some(code));
    }
    code.is_some() | matches!(Shown::parse(text), Shown::Totp(_) | Shown::Recovery(_))
}

/// What [`files`] reads: wrapping keys, what was erased.
pub const FILES: [&str; 2] = [WRAPPING_KEYS, ledger::ERASED];

/// Files of the data directory.
pub fn files(dir: &DataDir) -> bool {
    let keys = WrappingKeys::load(dir, None).is_ok();
    keys | ledger::read(dir).is_ok_and(|all| !all.is_empty())
}

/// Certificates of destruction.
pub fn certificate(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| certificate::verify(text, &[]).is_ok())
}

/// Made by rage 0.11 for the identity beside it, with a stanza that nobody knows.
const BACKUP: &str = "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBLdytCNlhRVXczZk9uRVBhZDVlUGJ\
    wRU9teEVHK1h4WGl5RmJxWHVRRkFvCkpsLzhQRktHY1JkTTR2UmVUcnEwK0ovejhWQzlUOXEzQk5BekMvR21kd3cKL\
    T4gLCY/LWdyZWFzZSBVVD9kIEhWdiBlbCApO1ZFYgpZazVuY1ZJSzBlbzFTWVJCK1I5V01pWHBTSGZIZDhIRWpidXF\
    MQ2RZakZNOHZqTW5LZzl0ZldEZnpIMndHMHZBCkpWK1N3Q0lreTIyZUtyZndSUlNBYkYxTDgzaGMyYWt2T2xJMHliO\
    DZNVnFzL0FPUHh3Ci0tLSBGNVF4OGliblBnUmgrSkp6ajNySmQzajNFb2VSRTI1Q0tDYzNWaENBeUVnCkxLiXALOM+\
    y8aoQ8wnz/v/maepNSszTQIhi1hm627qzXKLniexDRLHQwDPYM85Bb+wUOt5cATU=";
/// Who opens it.
pub const BACKUP_IDENTITY: &str =
    "# a comment\nAGE-SECRET-KEY-1U2P5NA8FNX54ZX03PH9ZYZHYVU0HVTX0TC8WDF7CDUD28FPGZLJS88WDEM\n";
/// For whom it is.
pub const BACKUP_RECIPIENT: &str = "age19y0nwc82gvch79erwkeyzv9yrzguu25hhckgdt2x5d60y6c43pnsa6clzz";
/// What is in it.
pub const BACKUP_TEXT: &[u8] = b"what a technician keeps";

/// What [`backup`] takes: the file, and the texts of both keys.
pub fn backup_examples() -> Vec<Vec<u8>> {
    let file = STANDARD.decode(BACKUP).unwrap_or_default();
    vec![file, BACKUP_IDENTITY.into(), BACKUP_RECIPIENT.into()]
}

/// Sealed backups, and keys that people give.
pub fn backup(data: &[u8]) -> bool {
    let text = std::str::from_utf8(data).unwrap_or_default();
    let recipient = Recipient::parse(text);
    if let Ok(recipient) = &recipient {
        assert!(recipient.to_string().eq_ignore_ascii_case(text), "two texts of one key");
    }
    let mut opened = Vec::new();
    let whole = Identity::read(BACKUP_IDENTITY)
        .is_ok_and(|identities| age::open(&identities, data, &mut opened).is_ok());
    assert!(!whole || opened == BACKUP_TEXT, "taken for whole, and never sealed");
    whole | recipient.is_ok() | Identity::read(text).is_ok()
}

/// The configuration file.
pub fn config(file: &Path) -> bool {
    let sources = Sources { config: Some(file.to_owned()), ..Sources::default() };
    Config::load(&PROGRAM, KEYS, &sources).is_ok_and(|config| Settings::of(&config).is_ok())
}
