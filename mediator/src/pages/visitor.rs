//! Who asks for a page, and what every page has in common.
//!
//! Cookies are `__Host-`, `Secure`, `HttpOnly` and `SameSite=Strict`. One names the browser and
//! stays: hashed, it stands where a console's key does. One holds the session token. A POST must
//! come from our own origin and carry a token that only our pages know (ASVS 3.3, 3.5).
//!
//! INVARIANT: another site cannot make a browser lose its cookies. From there they stay away
//! (`SameSite=Strict`), which looks like a browser that has none: so nothing is set then, and the
//! page that is answered only asks for the same address again, by itself and with cookies.

use std::sync::Arc;

use adit_protocol::{
    code::failure,
    keys::{PublicKey, random, sha256},
};
use askama::Template;
use axum::{
    Form,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use zeroize::Zeroizing;

use super::view::{Message, render};
use crate::{
    config::is_allowed,
    core::types::Refusal,
    http::{Client, Web},
    serve::{Origin, Use, mfa::Person, token_id, token_text},
    store::accounts::LoginRow,
    webauthn::RelyingParty,
};

const BROWSER: &str = "__Host-adit-browser";
const SESSION: &str = "__Host-adit-session";
/// Attributes of every cookie.
const STRICT: &str = "Path=/; Secure; HttpOnly; SameSite=Strict";
/// How long a browser is known, seconds: 400 days are the most that browsers keep.
const BROWSER_LIFE_S: u64 = 400 * 86_400;
/// Characters of our cookies' values.
const COOKIE_LEN: usize = 64;
/// Before what is hashed to the browser's identity and to its CSRF token.
const BROWSER_LABEL: &[u8] = b"adit/1 browser";
const CSRF_LABEL: &[u8] = b"adit/1 csrf";
/// What other sites send browsers to on purpose, and what copes without cookies.
const CALLBACK: &str = "/login/oidc/callback/";
/// Who sent the browser here (Fetch Metadata); only browsers tell, and pages cannot.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Fields in one form.
const MAX_FIELDS: usize = 16;
/// Bytes of a form: strangers may send them, and a security key's answer is a few thousand.
const MAX_FORM: usize = 32 * 1024;
/// Pages are our own files and forms; nothing else.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
     form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Somebody with a browser.
pub(super) struct Visitor {
    pub(super) web: Arc<Web>,
    pub(super) party: RelyingParty,
    pub(super) from: Origin,
    /// The login, if there is one that holds.
    pub(super) row: Option<LoginRow>,
    secret: Zeroizing<String>,
    is_new: bool,
}

impl FromRequestParts<Arc<Web>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, web: &Arc<Web>) -> Result<Self, Response> {
        let shared = &web.shared;
        let Some(party) = shared.pages.party.clone() else {
            return Err(error_page(StatusCode::NOT_FOUND, "This mediator has no pages."));
        };
        let Some(client) = parts.extensions.get::<Client>().cloned() else {
            return Err(error_page(StatusCode::INTERNAL_SERVER_ERROR, "Something failed here."));
        };
        if !is_ours(parts, &party) {
            // Under another name cookies and security keys would not fit.
            let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
            return Err(redirect(&format!("{}{target}", party.origin)));
        }
        let known = cookie(&parts.headers, BROWSER);
        let is_new = known.is_none();
        // Forms from elsewhere are refused by their origin.
        let asks = parts.method == Method::GET && !parts.uri.path().starts_with(CALLBACK);
        if is_new && asks && is_elsewhere(&parts.headers) {
            return Err(again(&parts.uri));
        }
        let secret = match known {
            Some(known) => known,
            None => match random::<32>().map(Zeroizing::new) {
                Ok(fresh) => token_text(&fresh),
                Err(_) => {
                    return Err(error_page(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "Something failed here.",
                    ));
                }
            },
        };
        let device = PublicKey(labelled(BROWSER_LABEL, &secret));
        let source = client.address;
        let from = Origin { device, source };
        if !is_allowed(&shared.sources.web, source.ip()) {
            shared.strangers.refused(shared, from, "browser").await;
            return Err(error_page(StatusCode::FORBIDDEN, "This page is not for your network."));
        }
        let row = match cookie(&parts.headers, SESSION) {
            None => None,
            Some(token) => {
                match shared.logins.session(token_id(&token), device, Use::Act).await {
                    Ok(row) => {
                        client.proved.note();
                        Some(row)
                    }
                    // What cannot be read is no end of a login (R39).
                    Err(refusal) if refusal.code == failure::INTERNAL => {
                        let text = "Something failed here. Try again later.";
                        return Err(error_page(status_of(&refusal), text));
                    }
                    Err(_) => None,
                }
            }
        };
        Ok(Self { web: Arc::clone(web), party, from, row, secret, is_new })
    }
}

impl Visitor {
    /// For forms: what only our pages know of this browser.
    pub(super) fn csrf(&self) -> String {
        token_text(&labelled(CSRF_LABEL, &self.secret)).to_string()
    }

    /// Somebody who is logged in.
    pub(super) fn person<'a>(&'a self, row: &'a LoginRow) -> Person<'a> {
        Person { shared: &self.web.shared, from: self.from, row }
    }

    /// A page for this browser.
    pub(super) fn page(&self, status: StatusCode, page: &impl Template) -> Response {
        self.known(html(status, page))
    }

    /// A page for a browser whose cookies may have stayed away: none is set.
    pub(super) fn page_only(&self, status: StatusCode, page: &impl Template) -> Response {
        html(status, page)
    }

    /// Another page is asked for.
    pub(super) fn to(&self, target: &str) -> Response {
        self.known(redirect(target))
    }

    /// The same, logged in.
    pub(super) fn logged_in(&self, token: &str, target: &str) -> Response {
        let mut response = self.to(target);
        set_cookie(&mut response, &format!("{SESSION}={token}; {STRICT}"));
        response
    }

    /// The same, logged out.
    pub(super) fn logged_out(&self, target: &str) -> Response {
        let mut response = self.to(target);
        set_cookie(&mut response, &format!("{SESSION}=; Max-Age=0; {STRICT}"));
        response
    }

    /// A refusal in words.
    pub(super) fn refused(&self, refusal: &Refusal) -> Response {
        let text = sentence(&refusal.message);
        let page = Message::alert("That did not work", text).link("/account", "Back");
        self.page(status_of(refusal), &page)
    }

    fn known(&self, mut response: Response) -> Response {
        if self.is_new {
            let secret = self.secret.as_str();
            let text = format!("{BROWSER}={secret}; Max-Age={BROWSER_LIFE_S}; {STRICT}");
            set_cookie(&mut response, &text);
        }
        response
    }
}

/// A form of ours, from one of our pages.
pub(super) struct Posted {
    pub(super) visitor: Visitor,
    fields: Vec<(String, Zeroizing<String>)>,
}

impl FromRequest<Arc<Web>> for Posted {
    type Rejection = Response;

    async fn from_request(request: Request, web: &Arc<Web>) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let visitor = Visitor::from_request_parts(&mut parts, web).await?;
        let origin = parts.headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
        if origin != Some(visitor.party.origin.as_bytes()) {
            let text = "The form was sent from another page. Open this one anew.";
            return Err(error_page(StatusCode::FORBIDDEN, text));
        }
        let Ok(body) = axum::body::to_bytes(body, MAX_FORM).await else {
            return Err(error_page(StatusCode::PAYLOAD_TOO_LARGE, "The form is too long."));
        };
        let request = Request::from_parts(parts, body.into());
        let form = Form::<Vec<(String, String)>>::from_request(request, &()).await;
        let Ok(Form(fields)) = form else {
            return Err(error_page(StatusCode::BAD_REQUEST, "The form cannot be read."));
        };
        if fields.len() > MAX_FIELDS {
            return Err(error_page(StatusCode::BAD_REQUEST, "The form cannot be read."));
        }
        let fields = fields.into_iter().map(|(name, value)| (name, Zeroizing::new(value)));
        let posted = Self { fields: fields.collect(), visitor };
        let csrf = posted.visitor.csrf();
        let (mine, theirs) = (csrf.as_bytes(), posted.field("csrf").as_bytes());
        if aws_lc_rs::constant_time::verify_slices_are_equal(mine, theirs).is_err() {
            let text = "The form is too old, or cookies are off. Open the page anew.";
            return Err(error_page(StatusCode::FORBIDDEN, text));
        }
        Ok(posted)
    }
}

impl Posted {
    /// A field; empty if it is not there.
    pub(super) fn field(&self, name: &str) -> &str {
        let found = self.fields.iter().find(|(there, _)| there == name);
        found.map_or("", |(_, value)| value.as_str())
    }
}

/// Did another site send the browser here? Not the person, not we, and no program.
fn is_elsewhere(headers: &HeaderMap) -> bool {
    let site = headers.get(FETCH_SITE).map(HeaderValue::as_bytes);
    site.is_some_and(|site| site != b"none" && site != b"same-origin")
}

/// The same once more, from here.
fn again(uri: &Uri) -> Response {
    let target = uri.path_and_query().map_or("/login", |target| target.as_str());
    html(StatusCode::OK, &Message::onward(target, "The page comes at once."))
}

/// Is the page asked for under its own name?
fn is_ours(parts: &Parts, party: &RelyingParty) -> bool {
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = parts.uri.authority().map(|authority| authority.as_str()).or(host);
    host.is_some_and(|host| {
        let host = host.strip_suffix(":443").unwrap_or(host).to_ascii_lowercase();
        party.origin.strip_prefix("https://") == Some(host.as_str())
    })
}

/// A cookie of ours. Others of its form are not there.
fn cookie(headers: &HeaderMap, name: &str) -> Option<Zeroizing<String>> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let value = all
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(there, _)| *there == name)
        .map(|(_, value)| value)?;
    let good = value.len() == COOKIE_LEN && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| Zeroizing::new(value.to_owned()))
}

fn labelled(label: &[u8], secret: &str) -> [u8; 32] {
    let mut input = Zeroizing::new(Vec::with_capacity(label.len() + 1 + secret.len()));
    input.extend_from_slice(label);
    input.push(0);
    input.extend_from_slice(secret.as_bytes());
    sha256(&input)
}

fn set_cookie(response: &mut Response, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

/// See other: a POST that did something is answered with what to look at.
fn redirect(target: &str) -> Response {
    let location = HeaderValue::from_str(target).unwrap_or(HeaderValue::from_static("/login"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

fn html(status: StatusCode, page: &impl Template) -> Response {
    let mut response = (status, render(page)).into_response();
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, "text/html; charset=utf-8");
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    // `no-referrer` would make browsers hide the origin of our own forms.
    set(header::REFERRER_POLICY, "same-origin");
    response
}

fn error_page(status: StatusCode, text: &str) -> Response {
    html(status, &Message::alert("That did not work", text).link("/login", "To the login page"))
}

/// What a refusal is in HTTP.
pub(super) fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal.code {
        failure::BUSY => StatusCode::SERVICE_UNAVAILABLE,
        failure::AUDIT_UNAVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
        failure::INTERNAL => StatusCode::INTERNAL_SERVER_ERROR,
        failure::BAD_REQUEST => StatusCode::BAD_REQUEST,
        _ => StatusCode::FORBIDDEN,
    }
}

/// A refusal's words as a sentence.
pub(super) fn sentence(message: &str) -> String {
    let mut chars = message.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}
