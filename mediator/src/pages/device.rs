//! Confirming a console that waits to be logged in.
//!
//! A code that a stranger sends somebody is the danger here: so the page shows which device asks
//! and from where, and whoever confirms has shown password and second factor within ten minutes.

use adit_protocol::keys::{Fingerprint, PublicKey};
use adit_runtime::time::unix_ms;
use axum::{extract::Query, http::StatusCode, response::Response};

use super::{
    codes::{Asking, UserCode, Wrong},
    login::{Wish, carried},
    view::{CodePage, ConfirmPage, Message},
    visitor::{Posted, Visitor},
};
use crate::{
    serve::{
        Voucher,
        mfa::{self, FRESH_MS},
    },
    store::accounts::LoginRow,
};

/// `GET /device`.
pub(super) async fn show(visitor: Visitor, Query(wish): Query<Wish>) -> Response {
    let device = carried(&wish.code);
    let Some(row) = &visitor.row else {
        return visitor.to(&with_code("/login", &device));
    };
    if let Some(first) = before(&visitor, row, &device) {
        return first;
    }
    if wish.code.is_empty() {
        return form(&visitor, row, StatusCode::OK, "");
    }
    let code = UserCode::parse(&wish.code);
    let pages = &visitor.web.shared.pages;
    let found = pages.codes().handle_shown(code.as_ref(), &row.account.id, unix_ms());
    match (found, code) {
        (Ok(asking), Some(code)) => confirm(&visitor, row, &asking, &code),
        (Err(Wrong::TooMany), _) => {
            let text = "Too many wrong codes. Wait ten minutes.";
            form(&visitor, row, StatusCode::TOO_MANY_REQUESTS, text)
        }
        _ => {
            let text = "No console waits with this code. Codes are good for ten minutes.";
            form(&visitor, row, StatusCode::NOT_FOUND, text)
        }
    }
}

fn with_code(path: &str, device: &str) -> String {
    match (path.contains('?'), device) {
        (_, "") => path.to_owned(),
        (true, code) => format!("{path}&code={code}"),
        (false, code) => format!("{path}?code={code}"),
    }
}

/// What has to be done first, if anything.
fn before(visitor: &Visitor, row: &LoginRow, device: &str) -> Option<Response> {
    if row.is_limited(visitor.web.shared.logins.settings.mfa) {
        return Some(visitor.to(&with_code("/account", device)));
    }
    // A page left open must not be enough.
    let fresh = row.is_fresh(FRESH_MS, unix_ms());
    (!fresh).then(|| visitor.to(&with_code("/login?again=1", device)))
}

fn form(visitor: &Visitor, row: &LoginRow, status: StatusCode, error: &str) -> Response {
    let (csrf, user) = (visitor.csrf(), row.account.name.clone());
    visitor.page(status, &CodePage { csrf, user, error: error.to_owned() })
}

fn confirm(visitor: &Visitor, row: &LoginRow, asking: &Asking, code: &UserCode) -> Response {
    let page = ConfirmPage {
        csrf: visitor.csrf(),
        user: row.account.name.clone(),
        code: code.to_string(),
        name: asking.name.clone(),
        source: asking.source.ip().to_string(),
        fingerprint: asking.device.fingerprint().to_string(),
        device: hex(asking.device),
    };
    visitor.page(StatusCode::OK, &page)
}

/// A key as it goes through the form and comes back.
fn hex(key: PublicKey) -> String {
    Fingerprint(key.0).to_string()
}

fn unhex(text: &str) -> Option<PublicKey> {
    text.parse::<Fingerprint>().ok().map(|same| PublicKey(same.0))
}

/// `POST /device`: a code that was typed.
pub(super) async fn typed(posted: Posted) -> Response {
    // What is no code is looked at, too, so that it counts and is answered in words.
    let code: String = posted
        .field("code")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(16)
        .collect();
    let code = if code.is_empty() { "-".to_owned() } else { code };
    posted.visitor.to(&format!("/device?code={code}"))
}

/// `POST /device/decide`.
pub(super) async fn decide(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let Some(row) = &visitor.row else { return visitor.to("/login") };
    let code = UserCode::parse(posted.field("code"));
    let (Some(code), Some(device)) = (code, unhex(posted.field("device"))) else {
        return visitor.to("/device");
    };
    if let Some(first) = before(visitor, row, &code.to_string()) {
        return first;
    }
    let yes = posted.field("decision") == "yes";
    let who = visitor.person(row);
    let name = if yes { "login.device_approved" } else { "login.device_refused" };
    let event = who
        .event(name)
        .outcome(if yes { "granted" } else { "refused" })
        .extra_personal("console", device.fingerprint().to_string());
    // Recorded first: a console must not be logged in by what is not known.
    if let Err(error) = mfa::record(&who, event).await {
        return visitor.refused(&mfa::MfaError::from(error).refusal());
    }
    let shared = &visitor.web.shared;
    let voucher = yes.then(|| Voucher::of(row));
    if !shared.pages.codes().handle_decided(&code, device, voucher, unix_ms()) {
        let text = "The console does not wait any more. Begin again there.";
        return visitor.page(StatusCode::NOT_FOUND, &Message::alert("Too late", text));
    }
    shared.pages.changed.notify_waiters();
    let page = match yes {
        true => Message::note(
            "The console is logged in",
            "You can close this page. To see or change your second factors, go to your account.",
        ),
        false => Message::note(
            "The console was refused",
            "If you did not begin this yourself, somebody tried to log in as you: tell your \
             administrator.",
        ),
    };
    visitor.page(StatusCode::OK, &page.link("/account", "Account"))
}
