//! `login --web` and `mfa verify --web`: a person logs in on the mediator's page and confirms this
//! console there.
//!
//! The mediator gives a secret for this device and a short code for the person. Only an `https`
//! address is ever opened, and only where there is a desktop to open it on.

use std::time::Duration;

use adit_control::{
    Peer, RequestError,
    client::{ConnectConfig, ConnectError, connect},
};
use adit_protocol::{
    code::failure as codes,
    keys::PublicKey,
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, escape_text},
    time::{format_ms, unix_ms},
};
use serde_json::json;
use zeroize::Zeroizing;

use super::note;
use crate::{cli::LoginArgs, config::Context, failure, link::ask};

/// Time for one question whether somebody decided: longer than the mediator leaves it open.
const POLL_TIMEOUT: Duration = Duration::from_secs(40);
/// Rest before the connection is made anew.
const RECONNECT: Duration = Duration::from_secs(2);
/// Bytes of an address that is shown and opened.
const MAX_URL: usize = 512;

/// Waits until somebody logged in for this console.
pub(super) async fn login(
    context: &Context,
    config: &ConnectConfig,
    args: &LoginArgs,
    explained: &impl Fn(&ConnectError) -> CliError,
) -> Result<wire::LoggedIn, CliError> {
    let mut code: Option<wire::DeviceCode> = None;
    loop {
        let (connected, driver) = match connect(config).await {
            Ok(connected) => connected,
            Err(error) if code.is_none() => return Err(explained(&error)),
            Err(error) => {
                tracing::debug!(%error, "waiting for the mediator");
                rest(code.as_ref()).await?;
                continue;
            }
        };
        let waited = async {
            let told = match &code {
                Some(told) => told.clone(),
                None => {
                    let key = config.identity.signing.public();
                    begin(context, (&connected.peer, key), args.no_browser).await?
                }
            };
            code = Some(told.clone());
            match decided(&connected.peer, told).await? {
                Some(Body::LoggedIn(logged_in)) => Ok(Some(logged_in)),
                Some(_) => Err(failure::unexpected()),
                None => Ok(None),
            }
        };
        let done = tokio::select! {
            done = waited => done?,
            _ = driver => None,
        };
        if let Some(logged_in) = done {
            return Ok(logged_in);
        }
        rest(code.as_ref()).await?;
    }
}

/// Waits until the person of the login that this connection has logged in on the page: with the
/// security key that only a browser can ask for.
pub(super) async fn again(
    context: &Context,
    (peer, key): (&Peer, PublicKey),
    no_browser: bool,
) -> Result<wire::Me, CliError> {
    let told = begin(context, (peer, key), no_browser).await?;
    match decided(peer, told).await? {
        Some(Body::Me(me)) => Ok(me),
        Some(_) => Err(failure::unexpected()),
        None => Err(CliError::failed(codes::BUSY, "the connection to the mediator broke")
            .hint("begin again: console-tunnel mfa verify --web")),
    }
}

/// Before another try; none after the code's end.
async fn rest(code: Option<&wire::DeviceCode>) -> Result<(), CliError> {
    if code.is_none_or(|code| unix_ms() >= code.expires_ms) {
        let text = "nobody logged in for this console in time";
        return Err(CliError::refused(codes::DEVICE_CODE_EXPIRED, text)
            .hint("begin again: console-tunnel login HOST --web"));
    }
    tokio::time::sleep(RECONNECT).await;
    Ok(())
}

async fn begin(
    context: &Context,
    (peer, key): (&Peer, PublicKey),
    no_browser: bool,
) -> Result<wire::DeviceCode, CliError> {
    let wish = wire::DeviceLogin { name: device_name() };
    let Body::DeviceCode(told) = ask(peer, Body::DeviceLogin(wish)).await? else {
        return Err(failure::unexpected());
    };
    if told.device_code.is_empty() || !is_address(&told.url) || told.user_code.len() > 32 {
        return Err(failure::unexpected());
    }
    let output = context.global.output();
    let key = key.fingerprint().to_string();
    let (url, code) = (escape_text(&told.url), escape_text(&told.user_code));
    output.emit(&json!({
        "event": "login_code",
        "url": url,
        "user_code": code,
        "device_key": key,
        "expires": format_ms(told.expires_ms),
    }))?;
    output.human(format_args!(
        "Log in at  {url}\nwith code  {code}\nThis console's key, to compare there: {key}"
    ))?;
    if !no_browser && has_desktop() {
        let address = format!("{url}?code={code}");
        if let Err(error) = open::that_detached(address) {
            note(&format!("no browser was opened: {error}"));
        }
    }
    Ok(told)
}

/// Asks until somebody decided; nothing if the connection broke.
async fn decided(peer: &Peer, told: wire::DeviceCode) -> Result<Option<Body>, CliError> {
    let secret = Zeroizing::new(told.device_code);
    loop {
        let poll = wire::DeviceLoginPoll { device_code: secret.as_str().to_owned() };
        match peer.request(Body::DeviceLoginPoll(poll), POLL_TIMEOUT).await {
            Ok(body @ (Body::LoggedIn(_) | Body::Me(_))) => return Ok(Some(body)),
            Ok(Body::DevicePending(_)) => {}
            Ok(_) => return Err(failure::unexpected()),
            Err(RequestError::Timeout(_) | RequestError::Closed) => return Ok(None),
            Err(error) => return Err(failure::request(&error)),
        }
    }
}

/// An address that may be shown and opened.
fn is_address(url: &str) -> bool {
    let rest = url.strip_prefix("https://").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte);
    !rest.is_empty() && url.len() <= MAX_URL && rest.bytes().all(plain)
}

/// Elsewhere than on a desktop a browser would take over the terminal.
fn has_desktop() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    cfg!(any(windows, target_os = "macos")) || is_set("DISPLAY") || is_set("WAYLAND_DISPLAY")
}

/// What this computer calls itself.
pub(super) fn device_name() -> String {
    sysinfo::System::host_name().unwrap_or_default().chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_https_addresses_are_opened() {
        for good in ["https://adit.example/device", "https://[2001:db8::1]:8443/device"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "https://",
            "http://adit.example/device",
            "file:///etc/passwd",
            "--new-window",
            "https://adit.example/device?x=$(id)",
            "https://user@adit.example/",
            "https://adit.example/\u{1b}[2J",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
