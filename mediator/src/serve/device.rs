//! Consoles that are logged in through the page: the code they wait with, and what came of it.
//!
//! Whoever asks has proved a device key and nothing else. A login comes only of a voucher that a
//! person gave on the page, after being shown which device asks.

use std::time::Duration;

use adit_control::{Responder, failure as fail};
use adit_protocol::{
    code::failure,
    keys::{random, sha256},
    wire::{self, frame::Body},
};
use adit_runtime::{cli::escape_text, time::unix_ms};
use zeroize::Zeroizing;

use super::{Voucher, connection::Line, logins::token_text};
use crate::{
    core::types::Refusal,
    pages::codes::{Asking, LIFE_MS, MAX_NAME, Polled, UserCode},
    store::accounts::{LoginId, LoginRow},
};

/// Longest time that one question is left open.
const POLL: Duration = Duration::from_secs(20);

/// A console asks for a code.
pub(super) fn begin(line: &Line, wish: &wire::DeviceLogin, responder: Responder) {
    match begun(line, wish) {
        Ok(told) => responder.reply(Body::DeviceCode(told)),
        Err(refusal) => responder.fail(fail(refusal.code, refusal.message)),
    }
}

fn begun(line: &Line, wish: &wire::DeviceLogin) -> Result<wire::DeviceCode, Refusal> {
    let crypto = |_| Refusal::new(failure::INTERNAL, "the system gives no randomness");
    let pages = &line.shared.pages;
    let Some(party) = &pages.party else {
        let text = "this mediator has no web address: set server.hosts or web.origin";
        return Err(Refusal::new(failure::BAD_REQUEST, text));
    };
    let secret = Zeroizing::new(random::<32>().map_err(crypto)?);
    let text = token_text(&secret);
    let code = UserCode::new(random::<32>().map_err(crypto)?);
    let name: String = wish.name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    let asking = Asking { device: line.identity, name: escape_text(&name), source: line.source };
    let now = unix_ms();
    pages
        .codes()
        .handle_begin(asking, (code.clone(), sha256(text.as_bytes())), now)
        .map_err(|_| Refusal::new(failure::BUSY, "too many consoles wait to be logged in"))?;
    Ok(wire::DeviceCode {
        device_code: text.to_string(),
        user_code: code.to_string(),
        url: format!("{}/device", party.origin),
        expires_ms: now.saturating_add(LIFE_MS),
    })
}

/// What came of a question.
pub(super) enum Answer {
    /// Logged in.
    LoggedIn(wire::LoggedIn, LoginId),
    /// The login that the console has already is fresh again.
    Again,
    /// Not yet.
    Pending,
    /// No.
    Refused(Refusal),
}

async fn approved(line: &Line, voucher: Voucher, has: Option<&LoginRow>) -> Answer {
    let logins = &line.shared.logins;
    let done = match has {
        Some(row) => logins.vouched(row, voucher, line.from()).await.map(|()| Answer::Again),
        None => logins
            .for_device(voucher, line.from())
            .await
            .map(|(told, id)| Answer::LoggedIn(told, id)),
    };
    done.unwrap_or_else(Answer::Refused)
}

/// A console asks whether somebody decided; the answer comes when somebody does, or after a while.
/// `has`: the login that it has, which is then kept.
pub(super) async fn poll(
    line: &Line,
    wish: &wire::DeviceLoginPoll,
    has: Option<&LoginRow>,
) -> Answer {
    let pages = &line.shared.pages;
    let secret = sha256(wish.device_code.as_bytes());
    let until = tokio::time::Instant::now() + POLL;
    loop {
        // Enabled before the look, so that a decision in between is not missed.
        let changed = pages.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let polled = pages.codes().handle_poll(line.identity, &secret, unix_ms());
        match polled {
            Polled::Waiting => {}
            Polled::Approved(voucher) => return approved(line, *voucher, has).await,
            Polled::Denied => {
                let text = "the login was refused on the page";
                return Answer::Refused(Refusal::new(failure::LOGIN_DENIED, text));
            }
            Polled::Over => {
                let text = "the code is over; begin again";
                return Answer::Refused(Refusal::new(failure::DEVICE_CODE_EXPIRED, text));
            }
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(until) => return Answer::Pending,
            () = line.peer.closed() => return Answer::Pending,
            () = line.must_go() => return Answer::Pending,
        }
    }
}
