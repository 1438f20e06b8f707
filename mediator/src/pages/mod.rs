//! The pages that the mediator serves to browsers: logging in, confirming a console, one's own
//! second factors.
//!
//! - [`visitor`]: who asks: cookies, origin, CSRF, the headers of every page
//! - [`login`], [`device`], [`account`], [`provider`]: what each page does
//! - [`codes`], [`flows`]: what is remembered, as state machines
//! - [`view`]: the templates
//!
//! A page's login is a login like a console's (`store/accounts.rs`), bound to a secret cookie of the
//! browser instead of a device key: the limits and the kill switches of docs/accounts.md hold for
//! it, and it opens no session. Plain HTML without inline script or style; everything but security
//! keys works without JavaScript. Must never change anything on GET, nor show a secret twice.

mod account;
pub(crate) mod codes;
mod device;
pub(crate) mod flows;
mod login;
mod provider;
mod view;
mod visitor;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use adit_runtime::cli::CliError;
use axum::{
    Router,
    http::header,
    response::IntoResponse,
    routing::{get, post},
};
use tokio::sync::Notify;

use crate::{
    config::{Settings, host_port},
    http::Web,
    oidc::remote::{Remote, https},
    webauthn::RelyingParty,
};
use codes::Codes;
use flows::Flows;

/// What the pages remember and who they are.
pub(crate) struct Pages {
    /// Who we are to browsers, if there is a name for it.
    pub(crate) party: Option<RelyingParty>,
    /// Comes whenever a console that waits was decided about.
    pub(crate) changed: Notify,
    flows: Mutex<Flows>,
    codes: Mutex<Codes>,
    remote: Remote,
}

impl Pages {
    /// By the configuration; without any host there are no pages.
    pub(crate) fn new(settings: &Settings, port: u16) -> Result<Self, CliError> {
        let party = match &settings.web_origin {
            Some(origin) => {
                let wrong = |reason: String| {
                    CliError::usage("config_invalid", format!("web.origin: {reason}"))
                        .hint("give it as https://HOST[:PORT]")
                };
                let (_, host, _) = https(origin).map_err(|error| wrong(error.to_string()))?;
                let origin = origin.trim_end_matches('/').to_ascii_lowercase();
                if origin.matches('/').count() != 2 {
                    return Err(wrong("it has no path".to_owned()));
                }
                Some(RelyingParty { id: host.to_ascii_lowercase(), origin })
            }
            None => first_host(&settings.hosts, port),
        };
        Ok(Self {
            party,
            changed: Notify::new(),
            flows: Mutex::default(),
            codes: Mutex::default(),
            remote: Remote::new(),
        })
    }

    /// Consoles that wait.
    pub(crate) fn codes(&self) -> MutexGuard<'_, Codes> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flows(&self) -> MutexGuard<'_, Flows> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names go before addresses: security keys need one (WebAuthn §5.1.3).
fn first_host(hosts: &[String], port: u16) -> Option<RelyingParty> {
    let is_name = |host: &&String| host.parse::<std::net::IpAddr>().is_err();
    let host = hosts.iter().find(is_name).or_else(|| hosts.first())?.to_ascii_lowercase();
    let authority = match port {
        443 if host.contains(':') => format!("[{host}]"),
        443 => host.clone(),
        port => host_port(&host, port),
    };
    Some(RelyingParty { id: host, origin: format!("https://{authority}") })
}

/// The pages' routes.
pub(crate) fn router() -> Router<Arc<Web>> {
    Router::new()
        .route("/login", get(login::show).post(login::password))
        .route("/login/second", get(login::show_second).post(login::second))
        .route("/login/key", post(login::key))
        .route("/login/oidc", get(provider::begin))
        .route("/login/oidc/callback/{provider}", get(provider::callback))
        .route("/login/oidc/finish", get(provider::finish))
        .route("/device", get(device::show).post(device::typed))
        .route("/device/decide", post(device::decide))
        .route("/account", get(account::show))
        .route("/account/key", post(account::add_key))
        .route("/account/totp", post(account::totp))
        .route("/account/totp/confirm", post(account::confirm))
        .route("/account/codes", post(account::codes))
        .route("/account/remove", post(account::remove))
        .route("/account/link", post(provider::link))
        .route("/account/unlink", post(provider::unlink))
        .route("/logout", post(account::logout))
        .route("/static/adit.css", get(css))
        .route("/static/key.js", get(script))
}

async fn css() -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/css; charset=utf-8")];
    (kind, include_str!("../../static/adit.css"))
}

async fn script() -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")];
    (kind, include_str!("../../static/key.js"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_under_a_name_if_there_is_one() {
        let party = |hosts: &[&str], port| {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            first_host(&hosts, port).map(|party| (party.id, party.origin))
        };
        let told = |id: &str, origin: &str| Some((id.to_owned(), origin.to_owned()));
        assert_eq!(
            party(&["192.0.2.1", "Adit.Example"], 443),
            told("adit.example", "https://adit.example")
        );
        assert_eq!(party(&["192.0.2.1"], 8443), told("192.0.2.1", "https://192.0.2.1:8443"));
        assert_eq!(party(&["2001:db8::1"], 443), told("2001:db8::1", "https://[2001:db8::1]"));
        assert_eq!(party(&[], 443), None);
    }
}
