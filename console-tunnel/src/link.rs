//! The control connection: made with what `login` left behind, once per command or kept up.
//!
//! The session token goes to the mediator whose key is pinned and to nobody else.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use adit_control::{
    Incoming, Peer, Request, RequestError,
    client::{ATTEMPT_TIMEOUT, Ahead, ConnectConfig, Connected, connect},
};
use adit_net::{
    identity::{DeviceIdentity, IdentityError},
    proxy::Dialer,
    tls::Trust,
};
use adit_protocol::{
    PROTOCOL_VERSION,
    keys::PublicKey,
    limits::MAX_TEXT,
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, VERSION, escape_text},
    datadir::DataDir,
    time::unix_ms,
};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::{
    config::Context,
    failure,
    state::{
        Account, KnownComputer,
        account::{load_token, not_logged_in},
        computer::Selector,
    },
};

/// Time for the mediator to answer one request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for the mediator to record what we refused.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Role of a console in `Hello`.
const ROLE_CONSOLE: u32 = 2;
/// Computers asked for at a time.
const PAGE: u32 = 200;
/// Pages read at most: 100,000 computers.
const MAX_PAGES: usize = 500;
/// Matches named in an error.
const MAX_NAMED: usize = 10;

/// What is needed to connect.
#[derive(Clone)]
pub struct Caller {
    /// Mediator and user.
    pub account: Account,
    identity: Arc<DeviceIdentity>,
    dialer: Dialer,
    token: Zeroizing<String>,
}

impl Caller {
    /// From what `login` left behind; exit code 3 if nobody is logged in.
    pub fn load(context: &Context) -> Result<Self, CliError> {
        let account = Account::load(&context.directory)?;
        let token = load_token(&context.directory)?;
        match (account, token) {
            (Some(account), Some(token)) if account.user.is_some() => Ok(Self {
                account,
                identity: identity(&context.directory)?,
                dialer: context.dialer.clone(),
                token,
            }),
            (account, _) => Err(not_logged_in(account.as_ref())),
        }
    }

    /// For a mediator that nobody is logged in to.
    pub fn anonymous(context: &Context, account: Account) -> Result<Self, CliError> {
        Ok(Self {
            account,
            identity: identity(&context.directory)?,
            dialer: context.dialer.clone(),
            token: Zeroizing::default(),
        })
    }

    /// This console's identity.
    pub fn identity(&self) -> Arc<DeviceIdentity> {
        self.identity.clone()
    }

    /// The one way out.
    pub fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }

    /// How to connect; `pipelined` follows `Hello` in the same flight.
    pub fn config(&self, trust: Trust, pipelined: Vec<Body>) -> ConnectConfig {
        ConnectConfig {
            hosts: vec![self.account.address()],
            trust,
            identity: self.identity.clone(),
            dialer: self.dialer.clone(),
            hello: wire::Hello {
                role: ROLE_CONSOLE,
                protocol: PROTOCOL_VERSION,
                version: VERSION.to_owned(),
                device_id: bytes::Bytes::new(),
                noise_cert: Some(self.identity.noise_cert.clone()),
                session_token: self.token.as_str().to_owned(),
                relay: None,
                // What this console saw it tells with each opening.
                seen: Vec::new(),
                // What the system's clock shows when it is sent.
                now_ms: 0,
            },
            ahead: Ahead::default(),
            pipelined,
            timeout: ATTEMPT_TIMEOUT,
        }
    }

    /// Connects for one command.
    pub async fn connect(&self, pipelined: Vec<Body>) -> Result<Online, CliError> {
        let config = self.config(self.account.trust.into(), pipelined);
        let (connected, driver) =
            connect(&config).await.map_err(|error| self.explain(failure::connect(&error)))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            driver.await;
        });
        let Connected { peer, incoming, replies, root, remote, welcome, .. } = connected;
        tasks.spawn(refuse_requests(incoming));
        Ok(Online { peer, replies, root, remote, relays: welcome.relays, _tasks: tasks })
    }

    /// Adds the command that helps when nobody is logged in.
    pub fn explain(&self, error: CliError) -> CliError {
        if error.code == "not_logged_in" {
            return CliError { hint: not_logged_in(Some(&self.account)).hint, ..error };
        }
        error
    }
}

/// The identity of this console, made at first use.
fn identity(directory: &DataDir) -> Result<Arc<DeviceIdentity>, CliError> {
    DeviceIdentity::load_or_create(directory.path(), unix_ms()).map(Arc::new).map_err(|error| {
        let code = match &error {
            IdentityError::Damaged { .. } => "identity_damaged",
            IdentityError::Io { what: "read", .. } => "data_dir_unreadable",
            IdentityError::Io { .. } => "data_dir_unwritable",
            IdentityError::Key(_) => "crypto_failed",
        };
        let hint = match code {
            "identity_damaged" => {
                "without a backup remove identity.key and noise.key, and log in again: this console \
                 has another key then"
            }
            _ => "check owner, mode and free space of the data directory",
        };
        CliError::failed(code, error.to_string()).hint(hint)
    })
}

/// A mediator asks nothing of a console without sessions.
async fn refuse_requests(mut incoming: Incoming) {
    while let Some(request) = incoming.recv().await {
        refuse(request);
    }
}

/// Answers a request that this program does not know.
pub fn refuse(request: Request) {
    let code = adit_protocol::code::failure::BAD_REQUEST;
    request.fail(adit_control::failure(code, "console does not answer this"));
}

/// A connection for one command.
pub struct Online {
    /// For further requests.
    pub peer: Peer,
    /// Answers to the pipelined requests.
    pub replies: Vec<Result<Body, RequestError>>,
    /// The installation's root key.
    pub root: PublicKey,
    /// Where the mediator was reached; unknown behind a proxy.
    pub remote: Option<SocketAddr>,
    /// The relays that it named.
    pub relays: Vec<wire::RelayInfo>,
    _tasks: JoinSet<()>,
}

impl Online {
    /// Asks one thing.
    pub async fn ask(&self, body: Body) -> Result<Body, CliError> {
        ask(&self.peer, body).await
    }

    /// The answer to the only pipelined request.
    pub fn first_reply(&mut self) -> Result<Body, CliError> {
        match self.replies.pop() {
            Some(reply) => reply.map_err(|error| failure::request(&error)),
            None => Err(failure::unexpected()),
        }
    }
}

/// Asks one thing.
pub async fn ask(peer: &Peer, body: Body) -> Result<Body, CliError> {
    peer.request(body, REQUEST_TIMEOUT).await.map_err(|error| failure::request(&error))
}

/// Tells the mediator, for its audit, what this console refused by itself. Best effort: whether it
/// hears it changes nothing here.
pub async fn tell_refusal(peer: &Peer, refusal: wire::ConsoleRefusal) {
    let told = peer.request(Body::ConsoleRefusal(refusal), TELL_TIMEOUT).await;
    if let Err(error) = told {
        tracing::debug!(%error, "mediator did not record the refusal");
    }
}

/// The request for a page of computers.
pub fn list_request(query: &str, client: &str, online: bool, after: &str) -> Body {
    Body::ListComputers(wire::ListComputers {
        query: query.to_owned(),
        client: client.to_owned(),
        online,
        limit: PAGE,
        after: after.to_owned(),
    })
}

/// All computers that the mediator finds. What it describes wrongly is left out.
pub async fn list_computers(
    peer: &Peer,
    query: &str,
    client: &str,
    online: bool,
) -> Result<Vec<KnownComputer>, CliError> {
    let mut computers = Vec::new();
    let mut after = String::new();
    for _ in 0..MAX_PAGES {
        let answer = ask(peer, list_request(query, client, online, &after)).await?;
        let Body::Computers(page) = answer else { return Err(failure::unexpected()) };
        let before = page.computers.len();
        let usable = page.computers.into_iter().filter_map(KnownComputer::from_wire);
        let count = computers.len();
        computers.extend(usable);
        if computers.len() - count < before {
            tracing::warn!("mediator describes computers in a way that cannot be used");
        }
        if page.next.is_empty() || page.next == after {
            break;
        }
        after = page.next;
    }
    Ok(computers)
}

/// All computers that a selector means.
pub async fn matching(peer: &Peer, selector: &Selector) -> Result<Vec<KnownComputer>, CliError> {
    let mut found = list_computers(peer, &selector.query(), "", false).await?;
    found.retain(|computer| selector.matches(computer));
    Ok(found)
}

/// The only computer among those that match.
pub fn only_one<'a>(
    found: &'a [KnownComputer],
    given: &str,
) -> Result<&'a KnownComputer, CliError> {
    match found {
        [] => Err(no_such_computer(given)),
        [computer] => Ok(computer),
        several => {
            let names = several.iter().take(MAX_NAMED).map(|c| format!("{} ({})", c.path(), c.id));
            let more = several.len().saturating_sub(MAX_NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let names: Vec<String> = names.collect();
            let message = format!(
                "\"{given}\" means {} computers: {}{more}",
                several.len(),
                names.join(", ")
            );
            Err(CliError::failed("ambiguous_computer", message).hint("give client/name or the id"))
        }
    }
}

/// There is no such computer, or none that may be seen.
pub fn no_such_computer(given: &str) -> CliError {
    let given: String = given.chars().take(MAX_TEXT).collect();
    let message = format!("there is no computer \"{}\"", escape_text(&given));
    CliError::not_there("no_such_computer", message)
        .hint("console-tunnel computers lists those that you may see")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::computer::tests::computer;

    #[cfg(unix)]
    #[test]
    fn a_damaged_key_is_reported_and_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path().join("d")).unwrap();
        let first = identity(&directory).unwrap().signing.public();
        assert_eq!(identity(&directory).unwrap().signing.public(), first);
        for file in ["identity.key", "noise.key"] {
            let path = directory.file(file).unwrap();
            let good = std::fs::read(&path).unwrap();
            for bad in [&b""[..], b"short", &[7; 100]] {
                std::fs::write(&path, bad).unwrap();
                let error = identity(&directory).unwrap_err();
                assert_eq!((error.code, error.exit.code()), ("identity_damaged", 1), "{file}");
                assert_eq!(std::fs::read(&path).unwrap(), bad, "{file} was written over");
            }
            std::fs::write(&path, good).unwrap();
        }
        assert_eq!(identity(&directory).unwrap().signing.public(), first);
    }

    #[test]
    fn several_matches_are_listed() {
        let found = [computer(1, "p/a", "pc"), computer(2, "p/b", "pc")];
        let error = only_one(&found, "pc").unwrap_err();
        assert_eq!((error.code, error.exit.code()), ("ambiguous_computer", 1));
        assert!(error.message.contains("p/a/pc (01010101-") && error.message.contains("p/b/pc"));
        assert_eq!(only_one(&[], "x").unwrap_err().exit.code(), 4);
        assert_eq!(only_one(&found[..1], "pc").unwrap().id.0, [1; 16]);
    }
}
