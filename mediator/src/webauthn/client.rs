//! What the browser says: the ceremony, our challenge, and the page it saw (§5.8.1).

use serde::Deserialize;

use super::{KeyError, MAX_PART, RelyingParty, from_base64};

/// `type` of a registration.
pub(super) const CREATE: &str = "webauthn.create";
/// `type` of an assertion.
pub(super) const GET: &str = "webauthn.get";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientData {
    #[serde(rename = "type")]
    kind: String,
    challenge: String,
    origin: String,
    #[serde(default)]
    cross_origin: bool,
    top_origin: Option<String>,
}

/// Checks `clientDataJSON` (§7.1 steps 7 to 12, §7.2 steps 10 to 15).
pub(super) fn check(
    json: &[u8],
    kind: &str,
    challenge: &[u8],
    party: &RelyingParty,
) -> Result<(), KeyError> {
    if json.len() > MAX_PART {
        return Err(KeyError::Malformed);
    }
    let data: ClientData = serde_json::from_slice(json).map_err(|_| KeyError::Malformed)?;
    if data.kind != kind {
        return Err(KeyError::Type);
    }
    let answered = from_base64(&data.challenge).ok_or(KeyError::Malformed)?;
    if aws_lc_rs::constant_time::verify_slices_are_equal(&answered, challenge).is_err() {
        return Err(KeyError::Challenge);
    }
    // Never inside a frame of another page.
    if data.origin != party.origin || data.cross_origin || data.top_origin.is_some() {
        return Err(KeyError::Origin);
    }
    Ok(())
}
