//! Showing password or second factor again, on a login that goes on.

use adit_protocol::{code::failure, wire};
use adit_runtime::time::unix_ms;
use zeroize::Zeroizing;

use super::{
    Logins, MAX_CODE, Origin,
    attempt::{Attempt, CONSOLE, proved_events, record, why_not},
    guess::is_delayed,
    page::{DEVICE_CODE, Voucher},
    page_asked, unavailable, wrong,
};
use crate::{
    core::types::Refusal,
    mfa::{self, Shown},
    password,
    serve::second::Judged,
    store::{
        StoreError,
        accounts::{self, LoginRow},
        devices, factors, locks,
    },
};

impl Logins {
    /// Shows password or second factor again on a login. It becomes fresh for what was shown; if
    /// that is all that a login takes, its time begins anew, too.
    pub(crate) async fn reauthenticate(
        &self,
        row: &LoginRow,
        shown: wire::Reauthenticate,
        from: Origin,
    ) -> Result<(), Refusal> {
        let secret = Zeroizing::new(shown.password);
        let code = Zeroizing::new(shown.totp);
        if secret.len() > password::MAX_BYTES || code.len() > MAX_CODE {
            return Err(wrong());
        }
        let _place = self.guesses.begin(from.source.ip())?;
        let shown = Shown::parse(&code);
        let with_password = !secret.is_empty();
        let account = &row.account;
        let pool = &self.store.readers;
        let read = |error: StoreError| unavailable(&error);
        let factors = factors::of_account(pool, &account.id).await.map_err(read)?;
        if !with_password && (shown == Shown::Nothing || account.factors == 0) {
            let text = "the password is required";
            return Err(Refusal::new(failure::REAUTHENTICATION_REQUIRED, text));
        }
        let mut attempt = Attempt {
            account: Some(account.clone()),
            user: account.name.clone(),
            from,
            now: unix_ms(),
            failed: "login.reauthentication_failed",
            delays: true,
            via: CONSOLE,
        };
        let (right, delayed_until) = match with_password {
            true => {
                self.password(secret, Some(account.password.clone()), &account.id, &attempt).await?
            }
            false => {
                let known =
                    devices::retry_ms(pool, &account.id, from.device).await.map_err(read)?;
                (true, known.unwrap_or(account.retry_ms))
            }
        };
        attempt.now = unix_ms();
        if let Some(why) = why_not(account, right, attempt.now < delayed_until) {
            self.failed(&attempt, why).await?;
            return Err(wrong());
        }
        let judged = self.judge(account, &factors, &shown, attempt.now)?;
        match judged {
            Judged::Wrong(why) => {
                self.failed(&attempt, why).await?;
                return Err(wrong());
            }
            Judged::OutOfTime(missed) => {
                self.missed(&attempt, missed).await?;
                return Err(wrong());
            }
            Judged::Weak => return Err(page_asked()),
            _ => {}
        }
        if let Err(why) = self.refreshed(row, &attempt, judged, with_password).await? {
            self.failed(&attempt, why).await?;
            return Err(wrong());
        }
        Ok(())
    }

    /// The same by a login on the page, where security keys are: whoever logged in there and said
    /// yes to this console vouches for the login that it has.
    pub(crate) async fn vouched(
        &self,
        row: &LoginRow,
        voucher: Voucher,
        from: Origin,
    ) -> Result<(), Refusal> {
        let attempt = Attempt {
            account: Some(row.account.clone()),
            user: row.account.name.clone(),
            from,
            now: unix_ms(),
            failed: "login.reauthentication_failed",
            delays: false,
            via: DEVICE_CODE,
        };
        if voucher.account.id != row.account.id {
            self.failed(&attempt, "other_user").await?;
            let text = "somebody else logged in on the page; log in there as the same user";
            return Err(Refusal::new(failure::LOGIN_DENIED, text));
        }
        let (login, page, proof) = (row.id, voucher.login, voucher.proof);
        let event = proved_events("login.reauthenticated", &attempt, &row.account, &proof.mfa).0;
        let expires_ms = attempt.now.saturating_add(self.settings.life_ms);
        let (account, device, now) = (row.account.clone(), from.device, attempt.now);
        let done = self.writer.write(move |tx| {
            Box::pin(async move {
                // What changed since somebody said yes is not vouched for.
                let good = accounts::is_unchanged(tx, &account.id, &account.password).await?
                    && !locks::device_in(tx, device, &account.partner_id).await?
                    && accounts::login_lives_in(tx, page, now).await?
                    && accounts::prove(tx, login, &proof, expires_ms).await?;
                if !good {
                    return Err(StoreError::Missing("login"));
                }
                record(tx, &account, (event, None)).await.map(|_| ())
            })
        });
        match done.await {
            Ok(()) => Ok(()),
            Err(StoreError::Missing(_)) => {
                self.failed(&attempt, "changed").await?;
                Err(wrong())
            }
            Err(error) => Err(unavailable(&error)),
        }
    }

    async fn refreshed(
        &self,
        row: &LoginRow,
        attempt: &Attempt,
        judged: Judged,
        with_password: bool,
    ) -> Result<Result<(), &'static str>, Refusal> {
        let now = attempt.now;
        let mut proof = row.proof.clone();
        let method = judged.method();
        if method != mfa::NONE {
            (proof.mfa, proof.mfa_ms) = (method.to_owned(), Some(now));
        }
        if with_password {
            proof.authenticated_ms = now;
        }
        let complete = with_password && judged != Judged::Missing;
        let expires_ms = match complete {
            true => now.saturating_add(self.settings.life_ms),
            false => row.expires_ms,
        };
        let events = proved_events("login.reauthenticated", attempt, &row.account, &proof.mfa);
        // Only what is shown now uses up a recovery code.
        let events = if method == mfa::RECOVERY { events } else { (events.0, None) };
        let (login, account, device) = (row.id, row.account.clone(), attempt.from.device);
        let done = self.writer.write(move |tx| {
            Box::pin(async move {
                if is_delayed(tx, &account.id, device, now).await? {
                    return Ok(Err("delayed"));
                }
                let usable = judged == Judged::Missing || judged.use_up(tx, &account.id).await?;
                if !usable
                    || !accounts::is_unchanged(tx, &account.id, &account.password).await?
                    || !accounts::prove(tx, login, &proof, expires_ms).await?
                {
                    return Err(StoreError::Missing("login"));
                }
                record(tx, &account, events).await.map(|_| Ok(()))
            })
        });
        match done.await {
            Ok(done) => Ok(done),
            Err(StoreError::Missing(_)) => Ok(Err("code_used")),
            Err(error) => Err(unavailable(&error)),
        }
    }
}
