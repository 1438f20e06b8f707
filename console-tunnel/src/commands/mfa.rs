//! `mfa`: second factors of the account that is logged in.
//!
//! A secret and recovery codes are shown once, on stdout, and kept nowhere. Passwords and codes
//! are asked for on the terminal or read from stdin, never taken from the command line.

use std::io::IsTerminal;

use adit_protocol::{
    code::failure as codes,
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, escape_text},
    output::Output,
    secretio,
    time::format_ms,
};
use clap::Subcommand;
use qrcodegen::{QrCode, QrCodeEcc};
use serde_json::json;
use zeroize::Zeroizing;

use super::{note, prompt_failed, table, web_login};
use crate::{
    config::Context,
    failure,
    link::{Caller, Online},
};

/// Light modules around a code (ISO/IEC 18004 asks for four; scanners do with two).
const QUIET: i32 = 2;

/// Kind of a factor that is a security key.
const SECURITY_KEY: &str = "webauthn";

/// What to do with second factors.
#[derive(Debug, Subcommand)]
pub enum MfaCommand {
    /// Show the second factors of this account
    #[command(after_help = "Example:\n  console-tunnel mfa status --json")]
    Status,
    /// One-time codes of an authenticator app
    #[command(subcommand, after_help = "Example:\n  console-tunnel mfa totp enroll")]
    Totp(TotpCommand),
    /// Make new recovery codes; those of before are void
    #[command(after_help = "Example:\n  console-tunnel mfa recovery-codes > codes.txt")]
    RecoveryCodes,
    /// Remove a second factor
    #[command(after_help = "Example:\n  console-tunnel mfa remove 3f2a…-…")]
    Remove {
        /// Id of the factor, as `mfa status` shows it
        factor: String,
    },
    /// Show password and second factor again, without a new login
    #[command(after_help = "Examples:
  console-tunnel mfa verify
  console-tunnel mfa verify --web
  oathtool … | console-tunnel mfa verify --totp-stdin")]
    Verify {
        /// Log in on the web page instead, for example with a security key
        #[arg(long, conflicts_with_all = ["password_stdin", "totp_stdin"])]
        web: bool,
        /// Open no browser; only show where to log in
        #[arg(long)]
        no_browser: bool,
        /// Read the password from the first line of stdin
        #[arg(long)]
        password_stdin: bool,
        /// Read the one-time code from stdin, after the password if that comes from there too
        #[arg(long)]
        totp_stdin: bool,
    },
}

/// What to do with authenticator apps.
#[derive(Debug, Subcommand)]
pub enum TotpCommand {
    /// Set up an app: shows the secret once; counts when a code confirms it
    #[command(after_help = "Examples:
  console-tunnel mfa totp enroll --name phone
  console-tunnel mfa totp enroll --json")]
    Enroll {
        /// A name to tell it from others
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
    },
    /// Confirm an app with one of its codes
    #[command(after_help = "Examples:
  console-tunnel mfa totp confirm
  oathtool … | console-tunnel mfa totp confirm --totp-stdin")]
    Confirm {
        /// Id of the factor [default: the one that is not confirmed]
        factor: Option<String>,
        /// Read the code from stdin
        #[arg(long)]
        totp_stdin: bool,
    },
}

/// `mfa …`.
pub async fn run(context: &Context, command: MfaCommand) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let online = caller.connect(Vec::new()).await?;
    let (output, session) = (context.global.output(), Session { caller, online });
    match command {
        MfaCommand::Status => status(output, &session).await,
        MfaCommand::Totp(TotpCommand::Enroll { name }) => enroll(output, &session, name).await,
        MfaCommand::Totp(TotpCommand::Confirm { factor, totp_stdin }) => {
            let factor = match factor {
                Some(factor) => factor,
                None => session.unconfirmed().await?,
            };
            let code = code(totp_stdin).await?;
            confirm(output, &session, factor, &code).await
        }
        MfaCommand::RecoveryCodes => {
            let answer = session.fresh(Body::RecoveryRenew(wire::RecoveryRenew {})).await?;
            show_codes(output, answer)
        }
        MfaCommand::Remove { factor } => {
            let wish = wire::FactorRemove { factor_id: factor.clone() };
            session.fresh(Body::FactorRemove(wish)).await?;
            output.emit(&json!({"factor": factor, "removed": true}))?;
            output.human("the second factor is removed")
        }
        MfaCommand::Verify { web, no_browser, password_stdin, totp_stdin } => {
            let typed = password_stdin || totp_stdin;
            let me = if web || !typed && session.has_only_keys().await {
                let key = session.caller.identity().signing.public();
                web_login::again(context, (&session.online.peer, key), no_browser).await?
            } else {
                let shown = shown(&session, password_stdin, totp_stdin).await?;
                session.reauthenticate(shown).await?
            };
            let mfa_at = (me.mfa_ms > 0).then(|| format_ms(me.mfa_ms));
            output.emit(&json!({
                "user": me.user,
                "mfa": me.mfa,
                "mfa_at": mfa_at,
                "expires": format_ms(me.expires_ms),
            }))?;
            output.human(format_args!("logged in until {}", format_ms(me.expires_ms)))
        }
    }
}

/// A login and its connection.
struct Session {
    caller: Caller,
    online: Online,
}

impl Session {
    async fn ask(&self, body: Body) -> Result<Body, CliError> {
        self.online.ask(body).await.map_err(|error| self.caller.explain(error))
    }

    /// Asks for what needs a fresh proof; on a terminal the person is asked for it.
    async fn fresh(&self, body: Body) -> Result<Body, CliError> {
        match self.ask(body.clone()).await {
            Err(error)
                if error.code == codes::REAUTHENTICATION_REQUIRED
                    && std::io::stdin().is_terminal() =>
            {
                let shown = shown(self, false, false).await?;
                self.reauthenticate(shown).await?;
                self.ask(body).await
            }
            answer => answer,
        }
    }

    async fn reauthenticate(&self, shown: wire::Reauthenticate) -> Result<wire::Me, CliError> {
        match self.ask(Body::Reauthenticate(shown)).await? {
            Body::Me(me) => Ok(me),
            _ => Err(failure::unexpected()),
        }
    }

    async fn state(&self) -> Result<wire::MfaState, CliError> {
        match self.ask(Body::MfaStatus(wire::MfaStatus {})).await? {
            Body::MfaState(state) => Ok(state),
            _ => Err(failure::unexpected()),
        }
    }

    /// Is every second factor one that only a browser can ask for?
    async fn has_only_keys(&self) -> bool {
        let Ok(state) = self.state().await else { return false };
        let mut counting = state.factors.iter().filter(|factor| factor.confirmed).peekable();
        counting.peek().is_some() && counting.all(|factor| factor.kind == SECURITY_KEY)
    }

    async fn unconfirmed(&self) -> Result<String, CliError> {
        let factors = self.state().await?.factors;
        let found = factors.into_iter().find(|factor| !factor.confirmed);
        found.map(|factor| factor.factor_id).ok_or_else(|| {
            CliError::not_there(codes::NO_SUCH_FACTOR, "no second factor waits to be confirmed")
                .hint("console-tunnel mfa totp enroll")
        })
    }
}

async fn status(output: Output, session: &Session) -> Result<(), CliError> {
    let state = session.state().await?;
    let when = |ms: u64| (ms > 0).then(|| format_ms(ms));
    let factors = state.factors.iter().map(|factor| {
        json!({
            "factor": factor.factor_id,
            "kind": factor.kind,
            "name": factor.name,
            "confirmed": factor.confirmed,
            "created": when(factor.created_ms),
            "used": when(factor.used_ms),
        })
    });
    output.emit(&json!({
        "required": state.required,
        "factors": factors.collect::<Vec<_>>(),
        "recovery_codes_left": state.recovery_left,
    }))?;
    if !output.json && state.factors.is_empty() {
        note(match state.required {
            true => "a second factor is required; set one up: console-tunnel mfa totp enroll",
            false => "no second factor is set up: console-tunnel mfa totp enroll",
        });
        return Ok(());
    }
    let mut rows = table(&["FACTOR", "KIND", "NAME", "STATE", "LAST USED"]);
    for factor in &state.factors {
        rows.add_row([
            escape_text(&factor.factor_id),
            escape_text(&factor.kind),
            escape_text(&factor.name),
            if factor.confirmed { "counts" } else { "not confirmed" }.to_owned(),
            when(factor.used_ms).unwrap_or_default(),
        ]);
    }
    output.human(format_args!("{rows}\n{} recovery codes are left", state.recovery_left))
}

async fn enroll(output: Output, session: &Session, name: String) -> Result<(), CliError> {
    let answer = session.fresh(Body::TotpEnroll(wire::TotpEnroll { name })).await?;
    let Body::TotpSecret(told) = answer else { return Err(failure::unexpected()) };
    let url = Zeroizing::new(told.url);
    output.emit(&json!({"factor": told.factor_id, "kind": "totp", "url": url.as_str()}))?;
    if std::io::stdout().is_terminal()
        && let Some(picture) = qr(&url)
    {
        output.human(picture.as_str())?;
    }
    output.human(escape_text(&url))?;
    if output.json || !std::io::stdin().is_terminal() {
        note("confirm it with a code of the app: console-tunnel mfa totp confirm");
        return Ok(());
    }
    let code = code(false).await?;
    confirm(output, session, told.factor_id, &code).await
}

async fn confirm(
    output: Output,
    session: &Session,
    factor_id: String,
    code: &str,
) -> Result<(), CliError> {
    let shown = wire::TotpConfirm { factor_id, code: code.to_owned() };
    let answer = session.fresh(Body::TotpConfirm(shown)).await?;
    note("the second factor counts from now on");
    show_codes(output, answer)
}

fn show_codes(output: Output, answer: Body) -> Result<(), CliError> {
    let Body::RecoveryCodes(told) = answer else { return Err(failure::unexpected()) };
    let codes: Vec<Zeroizing<String>> = told.codes.into_iter().map(Zeroizing::new).collect();
    let texts: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
    output.emit(&json!({"recovery_codes": texts}))?;
    if texts.is_empty() {
        return Ok(());
    }
    note("recovery codes, each good once when the app is lost; they are not shown again:");
    for code in texts {
        output.human(escape_text(code))?;
    }
    Ok(())
}

/// What the person shows again: from stdin, else from the terminal.
async fn shown(
    session: &Session,
    password_stdin: bool,
    totp_stdin: bool,
) -> Result<wire::Reauthenticate, CliError> {
    let mut shown = wire::Reauthenticate::default();
    if password_stdin || totp_stdin {
        if password_stdin {
            shown.password = secretio::from_stdin("password")?.as_str().to_owned();
        }
        if totp_stdin {
            shown.totp = secretio::from_stdin("one-time code")?.as_str().to_owned();
        }
        return Ok(shown);
    }
    let needs_code = session
        .state()
        .await
        .is_ok_and(|state| state.factors.iter().any(|factor| factor.confirmed));
    shown.password = prompt("Password: ").await?.as_str().to_owned();
    if needs_code {
        shown.totp = prompt(CODE_PROMPT).await?.as_str().to_owned();
    }
    Ok(shown)
}

/// What is asked for on a terminal.
pub(super) const CODE_PROMPT: &str = "One-time code (or recovery code): ";

async fn code(stdin: bool) -> Result<Zeroizing<String>, CliError> {
    match stdin {
        true => secretio::from_stdin("one-time code"),
        false => prompt(CODE_PROMPT).await,
    }
}

/// Asks on the terminal, without keeping the connection waiting.
pub(super) async fn prompt(text: &'static str) -> Result<Zeroizing<String>, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::usage("secret_missing", "there is no password or code")
            .hint("give it with --password-stdin or --totp-stdin"));
    }
    let failed = |error: String| {
        CliError::failed("terminal_failed", format!("cannot read from the terminal: {error}"))
    };
    tokio::task::spawn_blocking(move || rpassword::prompt_password(text))
        .await
        .map_err(|error| failed(error.to_string()))?
        .map(Zeroizing::new)
        .map_err(|error| prompt_failed(&error))
}

/// A picture of the text in half blocks, light on dark; `None` if it is too long.
fn qr(text: &str) -> Option<Zeroizing<String>> {
    let code = QrCode::encode_text(text, QrCodeEcc::Low).ok()?;
    let mut picture = Zeroizing::new(String::new());
    let light = |x, y| !code.get_module(x, y);
    for y in (-QUIET..code.size() + QUIET).step_by(2) {
        for x in -QUIET..code.size() + QUIET {
            // Below the last line nothing is light.
            let lower = y + 1 < code.size() + QUIET && light(x, y + 1);
            picture.push(match (light(x, y), lower) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            });
        }
        picture.push('\n');
    }
    Some(picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_drawn_with_a_light_border() {
        let picture = qr("otpauth://totp/Adit:jane?secret=GEZDGNBVGY3TQOJQ&issuer=Adit").unwrap();
        let lines: Vec<&str> = picture.lines().collect();
        let width = lines[0].chars().count();
        assert!(lines.iter().all(|line| line.chars().count() == width));
        assert!(lines[0].chars().all(|c| c == '█'));
        assert!(
            lines.iter().all(
                |line| line.starts_with("██") && line.ends_with("██") || line.starts_with("▀▀")
            )
        );
        assert_eq!(lines.len(), width.div_ceil(2));
        assert!(qr(&"x".repeat(10_000)).is_none());
    }
}
