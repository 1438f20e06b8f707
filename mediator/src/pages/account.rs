//! One's own second factors, and logging out.

use adit_protocol::{code::failure, keys::random, wire};
use adit_runtime::time::{format_ms, unix_ms};
use axum::{
    extract::Query,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use qrcodegen::{QrCode, QrCodeEcc};
use zeroize::Zeroizing;

use super::{
    flows::Purpose,
    login::{Wish, carried, offered, onward},
    view::{AccountPage, CodesPage, ListedFactor, ListedLink, TotpPage},
    visitor::{Posted, Visitor, sentence, status_of},
};
use crate::{
    config::MfaRule,
    core::types::Refusal,
    mfa as kinds,
    serve::{
        mfa::{self, Codes, MfaError},
        second,
    },
    store::{accounts::LoginRow, factors, oidc},
    webauthn::{ceremony::Registration, to_base64},
};

/// Light modules around a QR code.
const QUIET: i32 = 4;

/// `GET /account`.
pub(super) async fn show(visitor: Visitor, Query(wish): Query<Wish>) -> Response {
    let Some(row) = &visitor.row else { return visitor.to("/login") };
    page(&visitor, row, carried(&wish.code), None).await
}

/// The page; with a refusal of what was asked for.
pub(super) async fn page(
    visitor: &Visitor,
    row: &LoginRow,
    device: String,
    refusal: Option<&Refusal>,
) -> Response {
    let status = refusal.map_or(StatusCode::OK, status_of);
    match filled(visitor, row, device, refusal).await {
        Ok(page) => visitor.page(status, &page),
        Err(error) => visitor.refused(&error.refusal()),
    }
}

async fn filled(
    visitor: &Visitor,
    row: &LoginRow,
    device: String,
    refusal: Option<&Refusal>,
) -> Result<AccountPage, MfaError> {
    let shared = &visitor.web.shared;
    let (pool, account) = (&shared.store.readers, &row.account);
    let state = mfa::status(&visitor.person(row)).await?;
    let rows = factors::of_account(pool, &account.id).await?;
    let mut keys = Vec::new();
    for factor in rows.iter().filter(|factor| factor.kind == kinds::WEBAUTHN) {
        keys.push(second::credential(&shared.logins.keys, factor)?.id);
    }
    let challenge = random::<32>().map_err(|_| crate::store::StoreError::Random)?;
    let now = unix_ms();
    shared.pages.flows().handle_challenge(visitor.from, challenge, Purpose::Register, now);
    let listed = state.factors.into_iter().filter(|factor| factor.confirmed);
    let rule = account.mfa_rule(shared.logins.settings.mfa);
    let links = oidc::links(pool, &account.id).await?;
    Ok(AccountPage {
        csrf: visitor.csrf(),
        device,
        user: account.name.clone(),
        user_id: account.id.clone(),
        partner: account.partner.clone(),
        expires: short(row.expires_ms),
        error: refusal.map(|refusal| sentence(&refusal.message)).unwrap_or_default(),
        again: refusal.is_some_and(|refusal| {
            [failure::REAUTHENTICATION_REQUIRED, failure::WEB_LOGIN_REQUIRED]
                .contains(&refusal.code)
        }),
        limited: row.is_limited(shared.logins.settings.mfa),
        only_keys: rule == MfaRule::PhishingResistant,
        factors: listed.map(listed_factor).collect(),
        recovery: state.recovery_left,
        keys: keys.join(" "),
        challenge: to_base64(&challenge),
        rp: visitor.party.id.clone(),
        providers: offered(visitor, "", "").await?,
        links: links
            .into_iter()
            .map(|link| ListedLink { provider: link.provider, subject: link.subject })
            .collect(),
    })
}

fn listed_factor(factor: wire::Factor) -> ListedFactor {
    ListedFactor {
        id: factor.factor_id,
        kind: match factor.kind.as_str() {
            kinds::WEBAUTHN => "Security key",
            kinds::TOTP => "Authenticator app",
            _ => "Second factor",
        },
        name: factor.name,
        used: if factor.used_ms > 0 { short(factor.used_ms) } else { String::new() },
    }
}

/// A time to the minute, UTC.
fn short(ms: u64) -> String {
    let text = format_ms(ms);
    let minute = text.get(..16).unwrap_or(&text);
    format!("{} UTC", minute.replace('T', " "))
}

/// Does something for whoever is logged in; a refusal is shown on the page.
async fn done<T>(
    posted: &Posted,
    row: &LoginRow,
    result: Result<T, MfaError>,
) -> Result<T, Box<Response>> {
    match result {
        Ok(done) => Ok(done),
        Err(error) => {
            let device = carried(posted.field("device"));
            let refusal = error.refusal();
            Err(Box::new(page(&posted.visitor, row, device, Some(&refusal)).await))
        }
    }
}

/// `POST /account/key`.
pub(super) async fn add_key(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let Some(row) = &visitor.row else { return visitor.to("/login") };
    let device = visitor.from.device;
    let asked =
        visitor.web.shared.pages.flows().take_challenge(device, Purpose::Register, unix_ms());
    let answer = Registration {
        client_data: posted.field("client_data").to_owned(),
        attestation: posted.field("attestation").to_owned(),
    };
    let who = visitor.person(row);
    // A challenge that nobody was asked is answered by nothing.
    let challenge = asked.unwrap_or_default();
    let (name, shown) = (posted.field("name"), (&answer, challenge, &visitor.party));
    let added = match asked {
        Some(_) => mfa::add_key(&who, name, shown).await,
        None => {
            let text = "it took too long, or the page was used twice; try again";
            Err(Refusal::new(failure::CODE_WRONG, text).into())
        }
    };
    match done(&posted, row, added).await {
        Ok(codes) => after_added(&posted, codes),
        Err(page) => *page,
    }
}

fn after_added(posted: &Posted, codes: Codes) -> Response {
    let link = onward(posted.field("device"));
    match codes.is_empty() {
        true => posted.visitor.to(&link),
        false => posted.visitor.page(StatusCode::OK, &CodesPage { added: true, codes, link }),
    }
}

/// `POST /account/totp`.
pub(super) async fn totp(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let Some(row) = &visitor.row else { return visitor.to("/login") };
    let begun = mfa::enroll(&visitor.person(row), posted.field("name")).await;
    let told = match done(&posted, row, begun).await {
        Ok(told) => told,
        Err(page) => return *page,
    };
    let url = Zeroizing::new(told.url);
    let secret = url.split(['?', '&']).find_map(|part| part.strip_prefix("secret="));
    let (picture, size) = drawn(&url).unwrap_or_default();
    let page = TotpPage {
        csrf: visitor.csrf(),
        device: carried(posted.field("device")),
        factor: told.factor_id,
        error: String::new(),
        secret: Zeroizing::new(secret.unwrap_or(&url).to_owned()),
        picture,
        size,
    };
    visitor.page(StatusCode::OK, &page)
}

/// The dark modules of a QR code as a path, and the width of the whole.
fn drawn(text: &str) -> Option<(Zeroizing<String>, i32)> {
    let code = QrCode::encode_text(text, QrCodeEcc::Low).ok()?;
    let mut path = Zeroizing::new(String::new());
    for y in 0..code.size() {
        for x in (0..code.size()).filter(|x| code.get_module(*x, y)) {
            path.push_str(&format!("M{} {}h1v1h-1z", x + QUIET, y + QUIET));
        }
    }
    Some((path, code.size() + 2 * QUIET))
}

/// `POST /account/totp/confirm`.
pub(super) async fn confirm(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let Some(row) = &visitor.row else { return visitor.to("/login") };
    let shown = wire::TotpConfirm {
        factor_id: posted.field("factor").to_owned(),
        code: posted.field("code").to_owned(),
    };
    let factor = shown.factor_id.clone();
    match mfa::confirm(&visitor.person(row), shown).await {
        Ok(codes) => after_added(&posted, codes),
        Err(MfaError::Refused(refusal)) if refusal.code == failure::CODE_WRONG => {
            let page = TotpPage {
                csrf: visitor.csrf(),
                device: carried(posted.field("device")),
                factor,
                error: sentence(&refusal.message),
                // Not shown twice.
                secret: Zeroizing::default(),
                picture: Zeroizing::default(),
                size: 0,
            };
            visitor.page(StatusCode::FORBIDDEN, &page)
        }
        Err(error) => {
            let device = carried(posted.field("device"));
            page(visitor, row, device, Some(&error.refusal())).await
        }
    }
}

/// `POST /account/codes`.
pub(super) async fn codes(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let Some(row) = &visitor.row else { return visitor.to("/login") };
    let renewed = match limited(visitor, row) {
        Some(refusal) => Err(refusal.into()),
        None => mfa::renew_codes(&visitor.person(row)).await,
    };
    match done(&posted, row, renewed).await {
        Ok(codes) => {
            let page = CodesPage { added: false, codes, link: "/account".to_owned() };
            visitor.page(StatusCode::OK, &page)
        }
        Err(page) => *page,
    }
}

/// `POST /account/remove`.
pub(super) async fn remove(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let Some(row) = &visitor.row else { return visitor.to("/login") };
    let removed = match limited(visitor, row) {
        Some(refusal) => Err(refusal.into()),
        None => mfa::remove(&visitor.person(row), posted.field("factor")).await,
    };
    match done(&posted, row, removed).await {
        Ok(()) => visitor.to("/account"),
        Err(page) => *page,
    }
}

/// A login without a second factor is good for setting one up, and for nothing else.
pub(super) fn limited(visitor: &Visitor, row: &LoginRow) -> Option<Refusal> {
    let limited = row.is_limited(visitor.web.shared.logins.settings.mfa);
    limited.then(|| Refusal::new(failure::MFA_SETUP_REQUIRED, "set up a second factor first"))
}

/// `POST /logout`.
pub(super) async fn logout(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let shared = &visitor.web.shared;
    if let Some(row) = &visitor.row
        && let Err(refusal) = shared.logins.logout(row, visitor.from).await
    {
        return visitor.refused(&refusal);
    }
    shared.pages.flows().handle_over(visitor.from.device);
    visitor.logged_out("/login").into_response()
}
