//! Logging in: user and password, then a second factor.

use adit_protocol::{code::failure, keys::random, wire};
use adit_runtime::time::unix_ms;
use axum::{
    extract::Query,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    codes::UserCode,
    flows::Purpose,
    view::{LoginPage, Message, Offered, SecondPage},
    visitor::{Posted, Visitor, sentence, status_of},
};
use crate::{
    core::types::Refusal,
    mfa::{KeyShown, Shown},
    oidc::encode,
    serve::{First, Passed},
    store::oidc,
    webauthn::{ceremony::Assertion, to_base64},
};

/// Bytes of what is typed as a code.
const MAX_CODE: usize = 64;
/// Bytes of a user name that is shown again.
const MAX_USER: usize = 256;

/// Parameters of a page.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Wish {
    /// Of a console that waits.
    pub(super) code: String,
    /// Also for somebody who is logged in.
    pub(super) again: String,
    /// An identity provider that is not offered to everybody.
    pub(super) provider: String,
}

/// A console's code that is carried along, in its one form; else nothing.
pub(super) fn carried(code: &str) -> String {
    UserCode::parse(code).map(|code| code.to_string()).unwrap_or_default()
}

/// Where to go after logging in.
pub(super) fn onward(device: &str) -> String {
    match carried(device).as_str() {
        "" => "/account".to_owned(),
        code => format!("/device?code={code}"),
    }
}

/// `GET /login`.
pub(super) async fn show(visitor: Visitor, Query(wish): Query<Wish>) -> Response {
    let device = carried(&wish.code);
    let user = match &visitor.row {
        Some(_) if wish.again.is_empty() => return visitor.to(&onward(&device)),
        Some(row) => row.account.name.clone(),
        None => String::new(),
    };
    form(&visitor, (StatusCode::OK, ""), device, user, &wish.provider).await
}

async fn form(
    visitor: &Visitor,
    (status, error): (StatusCode, &str),
    device: String,
    user: String,
    provider: &str,
) -> Response {
    let providers = match offered(visitor, &device, provider).await {
        Ok(providers) => providers,
        Err(error) => {
            tracing::error!(%error, "identity providers cannot be read");
            Vec::new()
        }
    };
    let error = error.to_owned();
    let csrf = visitor.csrf();
    visitor.page(status, &LoginPage { csrf, device, user, error, providers })
}

/// Those of the installation's own partner, and the one that is asked for by name: the others'
/// names are not everybody's business.
pub(super) async fn offered(
    visitor: &Visitor,
    device: &str,
    asked: &str,
) -> Result<Vec<Offered>, crate::store::StoreError> {
    let shared = &visitor.web.shared;
    let all = oidc::list(&shared.store.readers).await?;
    let of = visitor.row.as_ref().map(|row| row.account.partner_id.as_str());
    let is_offered = |provider: &crate::oidc::Provider| {
        provider.partner_id == of.unwrap_or(&shared.home)
            || (!asked.is_empty() && provider.name.eq_ignore_ascii_case(asked))
    };
    let one = |provider: crate::oidc::Provider| Offered {
        query: encode(&[("provider", &provider.id), ("code", device)]),
        id: provider.id,
        name: provider.name,
    };
    Ok(all.into_iter().filter(is_offered).map(one).collect())
}

/// `POST /login`.
pub(super) async fn password(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let device = carried(posted.field("device"));
    let user: String = posted.field("user").to_owned();
    let secret = Zeroizing::new(posted.field("password").to_owned());
    let logins = &visitor.web.shared.logins;
    match logins.page_password(user.clone(), secret, visitor.from).await {
        Ok(first) => passed(visitor, first, &device),
        Err(refusal) => {
            let user = user.chars().take(MAX_USER).collect();
            let told = (status_of(&refusal), &*sentence(&refusal.message));
            form(visitor, told, device, user, "").await
        }
    }
}

/// After a first factor.
pub(super) fn passed(visitor: &Visitor, first: First, device: &str) -> Response {
    let pages = &visitor.web.shared.pages;
    match first {
        First::Done(told) => logged_in(visitor, told, device),
        First::Second(passed) => {
            pages.flows().handle_passed(visitor.from, *passed, unix_ms());
            visitor.to(&second_address(device))
        }
    }
}

fn second_address(device: &str) -> String {
    match device {
        "" => "/login/second".to_owned(),
        code => format!("/login/second?code={code}"),
    }
}

fn logged_in(visitor: &Visitor, told: wire::LoggedIn, device: &str) -> Response {
    visitor.web.shared.pages.flows().handle_over(visitor.from.device);
    let token = Zeroizing::new(told.session_token);
    let target = match (told.mfa_setup, device) {
        (true, "") => "/account".to_owned(),
        (true, code) => format!("/account?code={code}"),
        (false, code) => onward(code),
    };
    visitor.logged_in(&token, &target)
}

/// `GET /login/second`.
pub(super) async fn show_second(visitor: Visitor, Query(wish): Query<Wish>) -> Response {
    let device = carried(&wish.code);
    let known = visitor.web.shared.pages.flows().passed(visitor.from.device, unix_ms());
    match known {
        Some(known) => second_form(&visitor, (StatusCode::OK, ""), &known, device),
        None => visitor.to(&login_address(&device)),
    }
}

fn login_address(device: &str) -> String {
    match device {
        "" => "/login".to_owned(),
        code => format!("/login?code={code}"),
    }
}

fn second_form(
    visitor: &Visitor,
    (status, error): (StatusCode, &str),
    known: &Passed,
    device: String,
) -> Response {
    let Ok(challenge) = random::<32>() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if !known.keys.is_empty() {
        let mut flows = visitor.web.shared.pages.flows();
        flows.handle_challenge(visitor.from, challenge, Purpose::Login, unix_ms());
    }
    let page = SecondPage {
        csrf: visitor.csrf(),
        device,
        error: error.to_owned(),
        totp: known.totp,
        recovery: known.recovery,
        keys: known.keys.join(" "),
        challenge: to_base64(&challenge),
        rp: visitor.party.id.clone(),
    };
    visitor.page(status, &page)
}

/// `POST /login/second`: a code.
pub(super) async fn second(posted: Posted) -> Response {
    let code = posted.field("code");
    let shown = match code.len() {
        0..=MAX_CODE => Shown::parse(code),
        _ => Shown::Junk,
    };
    // An empty field is a slip, and a wrong code all the same.
    let shown = if shown == Shown::Nothing { Shown::Junk } else { shown };
    judge(&posted, shown).await
}

/// `POST /login/key`: a security key.
pub(super) async fn key(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let device = visitor.from.device;
    let asked = visitor.web.shared.pages.flows().take_challenge(device, Purpose::Login, unix_ms());
    let shown = match asked {
        Some(challenge) => Shown::Key(Box::new(KeyShown {
            assertion: Assertion {
                id: posted.field("id").to_owned(),
                client_data: posted.field("client_data").to_owned(),
                authenticator_data: posted.field("authenticator_data").to_owned(),
                signature: posted.field("signature").to_owned(),
            },
            challenge,
            party: visitor.party.clone(),
        })),
        None => Shown::Junk,
    };
    judge(&posted, shown).await
}

async fn judge(posted: &Posted, shown: Shown) -> Response {
    let visitor = &posted.visitor;
    let shared = &visitor.web.shared;
    let (browser, device) = (visitor.from.device, carried(posted.field("device")));
    let Some(known) = shared.pages.flows().passed(browser, unix_ms()) else {
        return visitor.to(&login_address(&device));
    };
    match shared.logins.page_second(&known, &shown, visitor.from).await {
        Ok(told) => logged_in(visitor, told, &device),
        Err(refusal) if refusal.code == failure::LOGIN_FAILED => {
            wrong_second(visitor, &known, device)
        }
        Err(refusal) => refused(visitor, &refusal),
    }
}

fn wrong_second(visitor: &Visitor, known: &Passed, device: String) -> Response {
    let pages = &visitor.web.shared.pages;
    let go_on = pages.flows().handle_wrong(visitor.from.device, unix_ms());
    if !go_on {
        let text = "Too many wrong codes. Log in with your password again.";
        let page = Message::alert("That did not work", text)
            .link(&login_address(&device), "To the login page");
        return visitor.page(StatusCode::FORBIDDEN, &page);
    }
    let text = "That did not fit. A one-time code is good once, and while the app shows it: enter the \
         next one soon after it appears. After many failures wait up to 15 minutes.";
    second_form(visitor, (StatusCode::FORBIDDEN, text), known, device)
}

fn refused(visitor: &Visitor, refusal: &Refusal) -> Response {
    visitor.refused(refusal)
}
