//! `login`, `logout`, `whoami`.
//!
//! Never trusts a mediator on first use by itself: a person compares the fingerprint, or gives
//! it. The password is sent only over a connection whose other end was proved. Whoever has no
//! second factor where one is required sets it up at once.

use std::io::{IsTerminal, Write};

use adit_control::client::{ConnectConfig, ConnectError, DEFAULT_PORT, connect};
use adit_net::{
    proxy::parse_host_port,
    tls::{TlsError, Trust},
};
use adit_protocol::{
    code::failure as codes,
    keys::Fingerprint,
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, escape_text},
    secretio,
    time::format_ms,
};
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    mfa::{self, CODE_PROMPT, MfaCommand, TotpCommand, prompt as prompt_code},
    note, prompt_failed, web_login,
};
use crate::{
    cli::LoginArgs,
    config::Context,
    failure, learning,
    link::{Caller, ask},
    state::{
        Account, MediatorTrust,
        account::{not_logged_in, remove_token, save_token},
        book,
    },
};

/// Variable that may hold the password.
const PASSWORD_VARIABLE: &str = "ADIT_PASSWORD";

/// `login URL --user U`.
pub async fn login(context: &Context, args: LoginArgs) -> Result<(), CliError> {
    let (host, port) = parse_url(&args.url)?;
    let stored = Account::load(&context.directory)?;
    let known = stored.filter(|account| account.host == host && account.port == port);
    let pinned = known.as_ref().map(|account| account.trust);
    let account = Account {
        host,
        port,
        trust: MediatorTrust::WebPki,
        user: None,
        partner: String::new(),
        pins: known.map(|account| account.pins).unwrap_or_default(),
    };
    let caller = Caller::anonymous(context, account)?;
    let trust = match (args.fingerprint, pinned) {
        (Some(fingerprint), _) => MediatorTrust::Root(fingerprint),
        (None, Some(trust)) => trust,
        (None, None) => first_trust(&caller, &args).await?,
    };
    let config = caller.config(trust.into(), Vec::new());
    let explained = |error: &ConnectError| explain(error, trust, &args);
    let mut logged_in = match &args.user {
        Some(user) if !args.web && !wants_page(&config, &args).await => {
            let by_password = by_password(&config, user, &args, &explained).await;
            match by_password {
                Err(error) if error.code == codes::WEB_LOGIN_REQUIRED && is_interactive() => {
                    note(&error.message);
                    web_login::login(context, &config, &args, &explained).await?
                }
                answer => answer?,
            }
        }
        _ => web_login::login(context, &config, &args, &explained).await?,
    };
    let token = Zeroizing::new(std::mem::take(&mut logged_in.session_token));
    if token.is_empty() {
        return Err(failure::unexpected());
    }
    caller.account.admit(args.user.as_deref(), &logged_in.user, &logged_in.partner_id)?;
    let mut account = Account {
        trust,
        user: Some(logged_in.user.clone()),
        partner: logged_in.partner.clone(),
        ..caller.account.clone()
    };
    account.pin_partner(&logged_in.partner_id)?;
    account.save(&context.directory)?;
    save_token(&context.directory, &token)?;
    remark(&logged_in);
    tell(context, &account, &caller, logged_in.expires_ms, None)?;
    if !logged_in.mfa_setup {
        learning::at_login(context).await;
    }
    if logged_in.mfa_setup && is_interactive() {
        let name = web_login::device_name();
        let enroll = MfaCommand::Totp(TotpCommand::Enroll { name });
        return mfa::run(context, enroll).await;
    }
    Ok(())
}

fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Would a password be asked for in vain? Only looked at where somebody would have to type it.
async fn wants_page(config: &ConnectConfig, args: &LoginArgs) -> bool {
    let given = args.password_stdin
        || args.password_file.is_some()
        || std::env::var_os(PASSWORD_VARIABLE).is_some();
    if given || !is_interactive() {
        return false;
    }
    // What is wrong with the connection is told by the next one.
    connect(config).await.is_ok_and(|(connected, _)| connected.welcome.web_login)
}

async fn by_password(
    config: &ConnectConfig,
    user: &str,
    args: &LoginArgs,
    explained: &impl Fn(&ConnectError) -> CliError,
) -> Result<wire::LoggedIn, CliError> {
    let login = credentials(user, args)?;
    let (connected, driver) = connect(config).await.map_err(|error| explained(&error))?;
    let answer = tokio::select! {
        answer = prove(&connected.peer, login) => answer?,
        reason = driver => return Err(failure::connect(&ConnectError::Closed {
            host: connected.host.clone(),
            reason,
        })),
    };
    match answer {
        Body::LoggedIn(logged_in) => Ok(logged_in),
        _ => Err(failure::unexpected()),
    }
}

/// Shows the password, and on a terminal the second factor if the mediator asks for it.
async fn prove(peer: &adit_control::Peer, mut login: wire::Login) -> Result<Body, CliError> {
    match ask(peer, Body::Login(login.clone())).await {
        Err(error)
            if error.code == codes::MFA_REQUIRED
                && login.totp.is_empty()
                && std::io::stdin().is_terminal() =>
        {
            login.totp = prompt_code(CODE_PROMPT).await?.as_str().to_owned();
            ask(peer, Body::Login(login)).await
        }
        answer => answer.map_err(|error| needs_code(error, !login.totp.is_empty())),
    }
}

/// At login the second factor is shown with the password: there is no login yet to verify it in.
fn needs_code(error: CliError, shown: bool) -> CliError {
    if error.code != codes::MFA_REQUIRED || shown {
        return error;
    }
    error.hint(
        "give a code with --totp-stdin, on the line after the password if --password-stdin is \
         given too; or console-tunnel login HOST --web",
    )
}

/// What the person should know of this login.
fn remark(logged_in: &wire::LoggedIn) {
    if logged_in.mfa_setup {
        note(
            "this login is good for setting up a second factor: console-tunnel mfa totp enroll, or \
             a security key on the mediator's page",
        );
    }
    if logged_in.recovery_left > 0 {
        note(&format!("{} recovery codes are left", logged_in.recovery_left));
    }
}

/// What is known of the login, for both `login` and `whoami`.
fn tell(
    context: &Context,
    account: &Account,
    caller: &Caller,
    expires_ms: u64,
    me: Option<&wire::Me>,
) -> Result<(), CliError> {
    let output = context.global.output();
    let user = account.user.as_deref().unwrap_or_default();
    let device = caller.identity().signing.public().fingerprint();
    let mut told = json!({
        "user": user,
        "partner": account.partner,
        "mediator": account.address(),
        "trust": account.trust.to_string(),
        "device_key": device.to_string(),
        "expires": format_ms(expires_ms),
    });
    if let (Some(object), Some(me)) = (told.as_object_mut(), me) {
        object.insert("mfa".into(), me.mfa.as_str().into());
        let at = (me.mfa_ms > 0).then(|| format_ms(me.mfa_ms));
        object.insert("mfa_at".into(), at.into());
        object.insert("mfa_setup".into(), me.mfa_setup.into());
    }
    output.emit(&told)?;
    output.human(format_args!(
        "{} ({}) at {} until {}\nits root key: {}\nthis console: {device}",
        escape_text(user),
        escape_text(&account.partner),
        account.address(),
        format_ms(expires_ms),
        match account.trust {
            MediatorTrust::WebPki => "not pinned, the system's authorities vouch".to_owned(),
            MediatorTrust::Root(root) => root.to_string(),
        }
    ))
}

/// `logout`. Without a network the token is forgotten here and expires there.
pub async fn logout(context: &Context) -> Result<(), CliError> {
    let Some(account) = Account::load(&context.directory)? else { return Ok(()) };
    let output = context.global.output();
    let told = match Caller::load(context) {
        Ok(caller) => match caller.connect(vec![Body::Logout(wire::Logout {})]).await {
            Ok(mut online) => online.first_reply().is_ok(),
            Err(error) => error.code == "not_logged_in",
        },
        Err(error) if error.code == "not_logged_in" => true,
        Err(error) => {
            note(&error.message);
            false
        }
    };
    remove_token(&context.directory)?;
    // What this person could see is no business of the next one.
    book::forget(&context.directory)?;
    let address = account.address();
    Account { user: None, partner: String::new(), ..account }.save(&context.directory)?;
    if !told {
        // Not an error: the token is gone, and worthless without this device's key.
        note(&format!("{address} could not be told; the login there ends by itself"));
    }
    output.emit(&json!({"logged_out": true, "mediator": address, "mediator_told": told}))?;
    output.human(format_args!("logged out from {address}"))
}

/// `whoami`.
pub async fn whoami(context: &Context) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let mut online = caller.connect(vec![Body::WhoAmI(wire::WhoAmI {})]).await?;
    let answer = online.first_reply().map_err(|error| caller.explain(error))?;
    let Body::Me(me) = answer else { return Err(failure::unexpected()) };
    let (user, partner) = (Some(me.user.clone()), me.partner.clone());
    let account = Account { user, partner, ..caller.account.clone() };
    tell(context, &account, &caller, me.expires_ms, Some(&me))
}

/// `https://HOST[:PORT][/]` or `HOST[:PORT]`.
pub(super) fn parse_url(text: &str) -> Result<(String, u16), CliError> {
    let wrong = |reason: String| {
        CliError::usage("address_invalid", reason)
            .hint("give the mediator as https://HOST[:PORT] or HOST[:PORT]")
    };
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => {
            rest.strip_suffix('/').unwrap_or(rest)
        }
        Some(_) => return Err(wrong(format!("\"{}\" is not an https address", escape_text(text)))),
        None => text,
    };
    parse_host_port(rest, DEFAULT_PORT)
        .ok()
        .filter(|(_, port)| *port != 0)
        .ok_or_else(|| wrong(format!("\"{}\" is not a host and port", escape_text(text))))
}

/// Nothing is known of this mediator: the system's certificates, else a person's word.
async fn first_trust(caller: &Caller, args: &LoginArgs) -> Result<MediatorTrust, CliError> {
    let attempt = connect(&caller.config(Trust::WebPki, Vec::new())).await;
    match attempt {
        Ok(_) => return Ok(MediatorTrust::WebPki),
        Err(ConnectError::Tls { error, .. }) if error.is_trust() => {}
        Err(error) => return Err(failure::connect(&error)),
    }
    let Err(error) = connect(&caller.config(Trust::Probe, Vec::new())).await else {
        return Err(CliError::failed("internal", "a probe must never be trusted"));
    };
    let ConnectError::Tls { error: TlsError::UnknownRoot { presented }, .. } = error else {
        return Err(failure::connect(&error));
    };
    let address = caller.account.address();
    if confirm(&address, presented)? {
        return Ok(MediatorTrust::Root(presented));
    }
    let message = format!(
        "{address} has a certificate of its own, of the installation with the fingerprint \
         {presented}"
    );
    Err(CliError::refused("unknown_mediator", message).hint(format!(
        "compare it with what `mediator init` printed, then: console-tunnel login {}{} \
         --fingerprint {presented}",
        args.url,
        args.user.as_ref().map(|user| format!(" --user {user}")).unwrap_or_default()
    )))
}

/// Asks on the terminal whether the fingerprint is right; no without one.
fn confirm(address: &str, presented: Fingerprint) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(false);
    }
    let failed = |error: std::io::Error| {
        CliError::failed("terminal_failed", format!("cannot use the terminal: {error}"))
    };
    let mut stderr = std::io::stderr().lock();
    write!(
        stderr,
        "{address} is not known yet. Its installation has the fingerprint\n  {presented}\n\
         Is that what `mediator init` printed there? (yes/no) "
    )
    .and_then(|()| stderr.flush())
    .map_err(failed)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(failed)?;
    Ok(line.trim().eq_ignore_ascii_case("yes"))
}

fn credentials(user: &str, args: &LoginArgs) -> Result<wire::Login, CliError> {
    let password = match &args.password_file {
        _ if args.password_stdin => secretio::from_stdin("password")?,
        Some(path) => secretio::from_file(path, "password")?,
        None => match secretio::from_env(PASSWORD_VARIABLE, "password")? {
            Some(password) => password,
            None => prompt(user)?,
        },
    };
    let totp = match args.totp_stdin {
        true => secretio::from_stdin("one-time code")?,
        false => Zeroizing::default(),
    };
    Ok(wire::Login {
        user: user.to_owned(),
        password: password.as_str().to_owned(),
        totp: totp.as_str().to_owned(),
    })
}

fn prompt(user: &str) -> Result<Zeroizing<String>, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::usage("secret_missing", "there is no password")
            .hint("give it with --password-stdin, --password-file or ADIT_PASSWORD"));
    }
    rpassword::prompt_password(format!("Password of {}: ", escape_text(user)))
        .map(Zeroizing::new)
        .map_err(|error| prompt_failed(&error))
}

/// Says whether it is the given fingerprint or the remembered one that does not fit.
fn explain(error: &ConnectError, trust: MediatorTrust, args: &LoginArgs) -> CliError {
    let ConnectError::Tls { error: TlsError::UnknownRoot { presented }, host } = error else {
        return failure::connect(error);
    };
    if args.fingerprint.is_some() {
        let message = format!("{host} has the fingerprint {presented}, not {trust}");
        return CliError::refused("fingerprint_mismatch", message)
            .hint("check host and fingerprint; nothing was sent");
    }
    let message =
        format!("{host} has another key than before: known is {trust}, now it is {presented}");
    CliError::refused("mediator_key_changed", message).hint(format!(
        "if it was set up anew, compare with its administrator, then log in with \
         --fingerprint {presented}"
    ))
}

/// The account for commands that work without being logged in, if there ever was one.
pub fn known_account(context: &Context) -> Result<Account, CliError> {
    Account::load(&context.directory)?.ok_or_else(|| not_logged_in(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_code_the_login_says_how_to_give_it() {
        let error = |code| CliError::refused(code, "m").hint("before");
        let told = needs_code(error(codes::MFA_REQUIRED), false).hint.unwrap();
        assert!(told.contains("--totp-stdin") && !told.contains("mfa verify"), "{told}");
        for other in [
            needs_code(error(codes::MFA_REQUIRED), true),
            needs_code(error(codes::LOGIN_FAILED), false),
        ] {
            assert_eq!(other.hint.as_deref(), Some("before"));
        }
    }

    #[test]
    fn mediators_are_given_as_urls_or_hosts() {
        for (text, host, port) in [
            ("https://mediator.example", "mediator.example", 443),
            ("HTTPS://mediator.example:8443/", "mediator.example", 8443),
            ("mediator.example", "mediator.example", 443),
            ("192.0.2.7:8443", "192.0.2.7", 8443),
            ("https://[2001:db8::1]:9", "2001:db8::1", 9),
            ("::1", "::1", 443),
        ] {
            assert_eq!(parse_url(text).unwrap(), (host.to_owned(), port), "{text}");
        }
        for text in [
            "http://mediator.example",
            "ftp://x",
            "https://user@host",
            "https://host/path",
            "https://",
            "",
            "host:0",
            "host:99999",
            "https://host?x",
        ] {
            let error = parse_url(text).unwrap_err();
            assert_eq!((error.code, error.exit.code()), ("address_invalid", 2), "{text}");
        }
    }
}
