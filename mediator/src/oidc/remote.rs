//! Talking to an identity provider: discovery, its keys, and the code for a token.
//!
//! HTTPS only, also for what the provider's own document names; no redirect is followed; answers
//! are bounded in bytes and time. What is learnt is kept for an hour; an unknown key asks anew, but
//! not more than once a minute.
//!
//! Strangers set all of that off, by a link. So each provider is asked once at a time, one that
//! failed is left alone for a while, and a partner's have so many connections in all. Where a
//! provider of a partner leads is seen here, also where a proxy connects: see `public_only`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use adit_net::{
    interfaces::may_connect,
    proxy::{Dialer, InvalidProxy, ProxyConfig},
    tls::{Authorities, outgoing, read_pem_chain},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use zeroize::Zeroizing;

use super::{
    Provider, encode,
    token::{self, Claims, Expected, Key, TokenError},
};

/// Time for one request.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const MAX_ANSWER: usize = 256 * 1024;
/// Bytes of a secret's file or a certificate's.
const MAX_FILE: u64 = 64 * 1024;
/// How long documents and keys are kept.
const KEEP: Duration = Duration::from_secs(3600);
/// Not asked again within this time for a key that is not known.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Providers of which something is remembered.
const MAX_KEPT: usize = 256;
/// One that failed is not asked again within this time.
const LEAVE_ALONE: Duration = Duration::from_secs(30);
/// Requests under way to the providers of one partner.
const MAX_AT_ONCE: usize = 4;
/// Time to wait for those of others.
const QUEUE: Duration = Duration::from_secs(10);

/// Why nothing came of it. Logged; people are told that it did not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    /// An address that is not `https`, or cannot be read.
    #[error("\"{0}\" is not an https address")]
    Address(String),
    /// No connection.
    #[error("the identity provider cannot be reached: {0}")]
    Unreachable(String),
    /// It failed just now.
    #[error("the identity provider failed less than {} s ago and is not asked", LEAVE_ALONE.as_secs())]
    LeftAlone,
    /// Others' requests take too long.
    #[error("too many requests to identity providers of this partner are under way")]
    Busy,
    /// It answered something else.
    #[error("the identity provider answered {0}")]
    Status(StatusCode),
    /// Its answer cannot be used.
    #[error("the identity provider's {0} cannot be used")]
    Answer(&'static str),
    /// A file of ours is missing.
    #[error("{0} cannot be read: {1}")]
    File(String, std::io::Error),
    /// The token does not count.
    #[error("the identity provider's token is refused: {0}")]
    Token(#[from] TokenError),
}

/// What a provider says of itself (OpenID Connect Discovery §3).
#[derive(Clone, Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Vec<String>,
    /// RFC 9207 §3.
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl Document {
    /// What a provider answered, if it is the one that was asked.
    fn read(answer: &[u8], issuer: &str) -> Result<Self, RemoteError> {
        let document: Self =
            serde_json::from_slice(answer).map_err(|_| RemoteError::Answer("description"))?;
        if document.issuer != issuer {
            return Err(RemoteError::Token(TokenError::Issuer));
        }
        Ok(document)
    }

    /// Who answered is said where the provider says that it says so, and is never somebody else
    /// (RFC 9207 §2.4).
    fn answered(&self, iss: &str) -> Result<(), TokenError> {
        let silent = iss.is_empty() && !self.authorization_response_iss_parameter_supported;
        match silent || iss == self.issuer {
            true => Ok(()),
            false => Err(TokenError::Issuer),
        }
    }
}

#[derive(Clone)]
struct Kept {
    document: Document,
    keys: Arc<Vec<Key>>,
    at: Instant,
}

/// What is remembered of a provider.
#[derive(Default)]
struct Entry {
    kept: Option<Kept>,
    failed: Option<Instant>,
    /// Whoever asks it.
    turn: Turn,
}

/// One permit.
struct Turn(Arc<Semaphore>);

impl Default for Turn {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

/// What is known of providers.
pub(crate) struct Remote {
    /// None goes around a proxy setting that cannot be read.
    dialer: Result<Dialer, InvalidProxy>,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// By partner.
    rooms: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl Remote {
    /// Knows nothing yet; the machine's proxy setting holds.
    pub(crate) fn new() -> Self {
        Self::with(Dialer::new(&ProxyConfig { from_env: true, ..ProxyConfig::default() }))
    }

    fn with(dialer: Result<Dialer, InvalidProxy>) -> Self {
        if let Err(error) = &dialer {
            tracing::error!(%error, "no identity provider can be reached");
        }
        Self { dialer, entries: Mutex::default(), rooms: Mutex::default() }
    }

    /// Where browsers log in.
    pub(crate) async fn authorization_endpoint(
        &self,
        provider: &Provider,
    ) -> Result<String, RemoteError> {
        let kept = self.known(provider, KEEP).await?;
        https(&kept.document.authorization_endpoint)?;
        Ok(kept.document.authorization_endpoint)
    }

    /// The code that a browser brought, for what the provider says of the person. `iss`: who
    /// answered, as the browser was told.
    pub(crate) async fn redeem(
        &self,
        provider: &Provider,
        (code, iss): (&str, &str),
        (verifier, redirect): (&str, &str),
        (nonce, now_s): (&str, u64),
    ) -> Result<Claims, RemoteError> {
        let kept = self.known(provider, KEEP).await?;
        // Before the code goes anywhere.
        kept.document.answered(iss)?;
        let token = self.exchange(provider, &kept.document, (code, verifier, redirect)).await?;
        let expected =
            Expected { issuer: &provider.issuer, client_id: &provider.client_id, nonce, now_s };
        match token::verify(&token, &kept.keys, &expected) {
            // Its keys may have changed since.
            Err(TokenError::UnknownKey) => {
                let kept = self.known(provider, ASK_AGAIN).await?;
                Ok(token::verify(&token, &kept.keys, &expected)?)
            }
            judged => Ok(judged?),
        }
    }

    async fn exchange(
        &self,
        provider: &Provider,
        document: &Document,
        (code, verifier, redirect): (&str, &str, &str),
    ) -> Result<Zeroizing<String>, RemoteError> {
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect),
            ("code_verifier", verifier),
        ];
        let secret = match (&provider.secret, provider.secret_file.as_str()) {
            (Some(secret), _) => Some(Zeroizing::new(secret.expose().to_owned())),
            (None, "") => None,
            (None, file) => Some(secret_of(file)?),
        };
        let methods = &document.token_endpoint_auth_methods_supported;
        // RFC 6749 §2.3.1: basic unless only the other is offered.
        let basic = methods.is_empty() || methods.iter().any(|m| m == "client_secret_basic");
        let mut authorization = None;
        match &secret {
            Some(secret) if basic => authorization = Some(basic_header(provider, secret)),
            Some(secret) => {
                form.push(("client_id", &provider.client_id));
                form.push(("client_secret", secret));
            }
            None => form.push(("client_id", &provider.client_id)),
        }
        let body = Zeroizing::new(encode(&form));
        let mut request = Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(value) = &authorization {
            request = request.header(header::AUTHORIZATION, value.as_str());
        }
        let _room = enter(self.room_of(provider)).await?;
        let answer =
            self.send(provider, &document.token_endpoint, request, body.as_bytes()).await?;
        id_token_of(&answer)
    }

    async fn known(&self, provider: &Provider, keep: Duration) -> Result<Kept, RemoteError> {
        let key = format!("{} {} {}", provider.id, provider.issuer, provider.ca_file);
        let turn = match self.remembered(&key, keep)? {
            Ok(kept) => return Ok(kept),
            Err(turn) => turn,
        };
        let _turn = enter(turn).await?;
        // Whoever went before may have learnt it.
        if let Ok(kept) = self.remembered(&key, keep)? {
            return Ok(kept);
        }
        // What is about this machine, and not about the provider, is no failure of its.
        let _room = enter(self.room_of(provider)).await?;
        let learnt = self.learn(provider).await;
        let mut entries = self.entries();
        let entry = entries.entry(key).or_default();
        match &learnt {
            Ok(kept) => (entry.kept, entry.failed) = (Some(kept.clone()), None),
            Err(_) => entry.failed = Some(Instant::now()),
        }
        learnt
    }

    async fn learn(&self, provider: &Provider) -> Result<Kept, RemoteError> {
        let issuer = provider.issuer.trim_end_matches('/');
        let address = format!("{issuer}/.well-known/openid-configuration");
        let document = self.get(provider, &address).await?;
        let document = Document::read(&document, &provider.issuer)?;
        let set = self.get(provider, &document.jwks_uri).await?;
        let keys = Arc::new(token::keys(&set).ok_or(RemoteError::Answer("key set"))?);
        Ok(Kept { document, keys, at: Instant::now() })
    }

    /// What is known already, or whose turn it is to ask.
    fn remembered(
        &self,
        key: &str,
        keep: Duration,
    ) -> Result<Result<Kept, Arc<Semaphore>>, RemoteError> {
        let mut entries = self.entries();
        if entries.len() >= MAX_KEPT && !entries.contains_key(key) {
            // Only those that nobody waits for.
            entries.retain(|_, entry| Arc::strong_count(&entry.turn.0) > 1);
        }
        let entry = entries.entry(key.to_owned()).or_default();
        if let Some(kept) = entry.kept.as_ref().filter(|kept| kept.at.elapsed() < keep) {
            return Ok(Ok(kept.clone()));
        }
        match entry.failed.is_some_and(|at| at.elapsed() < LEAVE_ALONE) {
            true => Err(RemoteError::LeftAlone),
            false => Ok(Err(entry.turn.0.clone())),
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connections of the provider's partner.
    fn room_of(&self, provider: &Provider) -> Arc<Semaphore> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if rooms.len() >= MAX_KEPT {
            rooms.retain(|_, room| Arc::strong_count(room) > 1);
        }
        let room = || Arc::new(Semaphore::new(MAX_AT_ONCE));
        rooms.entry(provider.partner_id.clone()).or_insert_with(room).clone()
    }

    async fn get(&self, provider: &Provider, address: &str) -> Result<Bytes, RemoteError> {
        self.send(provider, address, Request::builder().method(Method::GET), b"").await
    }

    async fn send(
        &self,
        provider: &Provider,
        address: &str,
        request: http::request::Builder,
        body: &[u8],
    ) -> Result<Bytes, RemoteError> {
        let exchange = self.exchange_bytes(provider, address, request, body);
        match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(RemoteError::Unreachable("no answer in time".into())),
        }
    }

    async fn exchange_bytes(
        &self,
        provider: &Provider,
        address: &str,
        request: http::request::Builder,
        body: &[u8],
    ) -> Result<Bytes, RemoteError> {
        let unreachable =
            |error: &dyn std::fmt::Display| RemoteError::Unreachable(error.to_string());
        let (uri, host, port) = https(address)?;
        let authority = match (provider.ca.as_str(), provider.ca_file.as_str()) {
            ("", "") => Vec::new(),
            ("", file) => read(file)?,
            (text, _) => text.as_bytes().to_vec(),
        };
        let roots = match authority.as_slice() {
            [] => Vec::new(),
            pem => read_pem_chain(pem).map_err(|_| RemoteError::Answer("authority"))?,
        };
        let connector = outgoing(Authorities::SystemAnd(roots), &[b"http/1.1"])
            .map_err(|error| unreachable(&error))?;
        let name = ServerName::try_from(host.clone())
            .map_err(|_| RemoteError::Address(address.to_owned()))?;
        let dialer = self.dialer.as_ref().map_err(|error| unreachable(error))?;
        let dialed = match provider.public_only {
            true => dialer.dial_resolved(&host, port, DEADLINE, &is_public).await,
            false => dialer.dial(&host, port, DEADLINE).await,
        };
        let stream = dialed.map_err(|error| unreachable(&error))?.stream;
        let tls = connector.connect(name, stream).await.map_err(|error| unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|error| unreachable(&error))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let request = request
            .uri(target)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json")
            .body(Full::new(Bytes::copy_from_slice(body)))
            .map_err(|error| unreachable(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(RemoteError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok(body.map_err(|_| RemoteError::Answer("answer"))?.to_bytes())
    }
}

/// Waits for a place, not for ever.
async fn enter(room: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, RemoteError> {
    let waited = tokio::time::timeout(QUEUE, room.acquire_owned()).await;
    waited.ok().and_then(Result::ok).ok_or(RemoteError::Busy)
}

/// Can everybody reach this address? Else only those who speak for this machine's networks may send
/// the mediator there (R15).
fn is_public(address: SocketAddr) -> bool {
    // As of a peer that is in no network of ours.
    may_connect(address, None, &[])
}

/// The ID token of a token answer (OpenID Connect Core §3.1.3.3).
fn id_token_of(answer: &[u8]) -> Result<Zeroizing<String>, RemoteError> {
    #[derive(Deserialize)]
    struct Answer {
        id_token: Option<String>,
    }
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| RemoteError::Answer("token answer"))?;
    answer.id_token.map(Zeroizing::new).ok_or(RemoteError::Answer("token answer"))
}

/// For fuzzing: what a provider answers, as its description and with a token.
///
/// # Panics
///
/// If the description of another provider is taken.
pub(crate) fn fuzz_answer(answer: &[u8]) -> bool {
    const ISSUER: &str = "https://id.example";
    let described = Document::read(answer, ISSUER).is_ok_and(|document| {
        assert!(document.issuer == ISSUER && document.answered("https://evil.example").is_err());
        let Document { authorization_endpoint, token_endpoint, jwks_uri, .. } = &document;
        let good = |address: &String| {
            https(address).is_ok_and(|(uri, ..)| {
                // It becomes a line of ours: a redirect, a request.
                assert!(!uri.to_string().chars().any(|c| c.is_control() || c == ' '), "{uri:?}");
                true
            })
        };
        [authorization_endpoint, token_endpoint, jwks_uri].into_iter().all(good)
    });
    described | id_token_of(answer).is_ok()
}

/// An `https` address with its host and port.
pub(crate) fn https(address: &str) -> Result<(Uri, String, u16), RemoteError> {
    let wrong = || RemoteError::Address(address.to_owned());
    let uri: Uri = address.parse().map_err(|_| wrong())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https"));
    let authority = authority.filter(|a| !a.as_str().contains('@')).ok_or_else(wrong)?;
    // The library takes an empty host, and any port that it cannot read for none.
    let behind_host = authority.as_str().strip_prefix(authority.host()).ok_or_else(wrong)?;
    let port = match behind_host.strip_prefix(':') {
        None | Some("") => 443,
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((uri, host, port))
}

/// RFC 6749 §2.3.1: both are form-encoded first.
fn basic_header(provider: &Provider, secret: &str) -> Zeroizing<String> {
    let part = |text: &str| encode(&[("", text)]).trim_start_matches('=').to_owned();
    let pair = Zeroizing::new(format!("{}:{}", part(&provider.client_id), part(secret)));
    Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

fn secret_of(file: &str) -> Result<Zeroizing<String>, RemoteError> {
    let bytes = Zeroizing::new(read(file)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| RemoteError::Answer("secret"))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

fn read(file: &str) -> Result<Vec<u8>, RemoteError> {
    let failed = |error| RemoteError::File(file.to_owned(), error);
    let path = Path::new(file);
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    std::fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::net::TcpListener;

    use super::*;
    use crate::oidc::MfaClaims;

    fn provider(id: &str, issuer: &str) -> Provider {
        Provider {
            id: id.to_owned(),
            partner_id: "p".to_owned(),
            name: id.to_owned(),
            issuer: issuer.to_owned(),
            client_id: "c".to_owned(),
            secret_file: String::new(),
            ca_file: String::new(),
            ca: String::new(),
            public_only: false,
            is_sealed: false,
            secret: None,
            mfa: MfaClaims::default(),
        }
    }

    /// Somebody who hangs up, and how often he was called.
    async fn hangs_up() -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, calls) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (counted, mut tasks) = (calls.clone(), JoinSet::new());
        tasks.spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        (address, calls, tasks)
    }

    /// A name says nothing of where it leads, and a proxy would resolve it.
    #[tokio::test]
    async fn through_a_proxy_a_partners_provider_is_no_way_inside_either() {
        let (proxy, calls, _tasks) = hangs_up().await;
        let proxy = ProxyConfig { explicit: Some(format!("http://{proxy}")), from_env: false };
        let remote = Remote::with(Dialer::new(&proxy));
        for (i, issuer) in
            ["https://localhost:1", "https://127.1:1", "https://0x7f.1", "https://127.0.0.1"]
                .into_iter()
                .enumerate()
        {
            let partners = Provider { public_only: true, ..provider(&i.to_string(), issuer) };
            remote.authorization_endpoint(&partners).await.unwrap_err();
            assert_eq!(calls.load(Ordering::SeqCst), 0, "the proxy was asked for {issuer}");
        }
        // Nor is what a provider itself names.
        let partners = Provider { public_only: true, ..provider("x", "https://id.example") };
        remote.get(&partners, "https://localhost:1/keys").await.unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), 0);
        // Whoever speaks for the installation may name what its proxy knows.
        let own = provider("own", "https://id.internal.invalid");
        remote.authorization_endpoint(&own).await.unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_proxy_setting_that_cannot_be_read_is_not_gone_around() {
        let (address, calls, _tasks) = hangs_up().await;
        let proxy = ProxyConfig { explicit: Some("ftp://proxy:1".to_owned()), from_env: false };
        let remote = Remote::with(Dialer::new(&proxy));
        let own = provider("own", &format!("https://{address}"));
        remote.authorization_endpoint(&own).await.unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), 0);
    }

    /// The link that sends browsers there is everybody's.
    #[tokio::test]
    async fn visitors_in_any_number_make_one_connection_to_a_provider_that_fails() {
        let (address, calls, _tasks) = hangs_up().await;
        let remote = Remote::with(Ok(Dialer::direct()));
        let failing = provider("x", &format!("https://{address}"));
        let asked = join_all((0..20).map(|_| remote.authorization_endpoint(&failing))).await;
        assert!(asked.iter().all(Result::is_err));
        assert!(matches!(
            remote.authorization_endpoint(&failing).await,
            Err(RemoteError::LeftAlone)
        ));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        // Another one is asked, and this one after a while.
        let other = provider("y", &format!("https://{address}"));
        remote.authorization_endpoint(&other).await.unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        for entry in remote.entries().values_mut() {
            entry.failed = Instant::now().checked_sub(LEAVE_ALONE);
        }
        remote.authorization_endpoint(&failing).await.unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_partners_slow_providers_keep_no_other_partners_waiting() {
        let remote = Remote::with(Ok(Dialer::direct()));
        let slow = provider("x", "https://127.0.0.1:1");
        let room = remote.room_of(&slow);
        let _all = room.try_acquire_many(u32::try_from(MAX_AT_ONCE).unwrap()).unwrap();
        let late = remote.authorization_endpoint(&provider("y", "https://127.0.0.1:1")).await;
        assert!(matches!(late, Err(RemoteError::Busy)), "{late:?}");
        let token = Document::read(
            br#"{"issuer":"i","authorization_endpoint":"","token_endpoint":"","jwks_uri":""}"#,
            "i",
        );
        let late = remote.exchange(&slow, &token.unwrap(), ("code", "v", "r")).await;
        assert!(matches!(late, Err(RemoteError::Busy)));
        let others =
            Provider { partner_id: "q".to_owned(), ..provider("z", "https://127.0.0.1:1") };
        let room = remote.room_of(&others);
        assert_eq!(room.available_permits(), MAX_AT_ONCE);
    }

    #[test]
    fn a_partners_provider_is_where_everybody_can_reach_it() {
        for inside in [
            "127.0.0.1:443",
            "[::1]:443",
            "[::ffff:127.0.0.1]:443",
            "10.1.2.3:443",
            "192.168.1.1:443",
            "[fd00::1]:443",
            "[64:ff9b::a9fe:a9fe]:443",
            "169.254.169.254:80",
            "[fe80::1]:443",
            "100.64.0.1:443",
            "168.63.129.16:80",
            "0.0.0.0:443",
            "[::]:443",
            "224.0.0.1:443",
            "255.255.255.255:443",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["192.0.2.7:443", "203.0.113.1:8443", "[2001:db8::1]:443"] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port_that_is_one() {
        for (address, host, port) in [
            ("https://id.example", "id.example", 443),
            ("https://id.example:8443/keys", "id.example", 8443),
            ("https://[2001:db8::1]:444/", "2001:db8::1", 444),
        ] {
            let (_, read, at) = https(address).unwrap();
            assert_eq!((read.as_str(), at), (host, port));
        }
        for address in [
            "https://:8443/1",
            "https://[]/",
            "https://id.example:0/",
            "https://id.example:70000/",
            "https://user@id.example/",
            "http://id.example/",
            "/keys",
        ] {
            assert!(https(address).is_err(), "{address}");
        }
    }

    #[test]
    fn a_provider_that_says_who_answers_is_held_to_it() {
        let document = |says: bool| Document {
            issuer: "https://id.example".into(),
            authorization_endpoint: String::new(),
            token_endpoint: String::new(),
            jwks_uri: String::new(),
            token_endpoint_auth_methods_supported: Vec::new(),
            authorization_response_iss_parameter_supported: says,
        };
        for says in [false, true] {
            document(says).answered("https://id.example").unwrap();
            for other in ["https://id.example/", "https://evil.example"] {
                assert_eq!(document(says).answered(other), Err(TokenError::Issuer));
            }
            assert_eq!(document(says).answered("").is_err(), says);
        }
    }
}
