//! A password and a second factor in one message, and what every login has in common.

use adit_ledger::Event;
use adit_protocol::{code::failure, keys::random, wire};
use adit_runtime::time::unix_ms;
use zeroize::Zeroizing;

use super::{
    Logins, MAX_CODE, MAX_USER, Origin, code_asked, device_disabled,
    guess::{count_failure, is_delayed},
    login_event, page_asked, token_id, token_text, unavailable, wrong,
};
use crate::{
    core::types::Refusal,
    mfa::{self, Shown},
    password,
    serve::second::{self, Judged, Missed},
    store::{
        StoreError, WriteTx,
        accounts::{self, AccountRow, LoginId, Proof},
        devices,
        factors::{self, FactorRow},
        locks,
    },
};

/// A console's own message.
pub(super) const CONSOLE: &str = "console";

/// Who tries to prove who they are.
pub(super) struct Attempt {
    pub(super) account: Option<AccountRow>,
    pub(super) user: String,
    pub(super) from: Origin,
    pub(super) now: u64,
    /// Names of the events.
    pub(super) failed: &'static str,
    /// Do failures of before delay it? Not what somebody else vouches for.
    pub(super) delays: bool,
    /// On which way: `console`, `page`, `oidc`, `device_code`.
    pub(super) via: &'static str,
}

/// What a login rests on.
pub(super) struct Ground {
    pub(super) proof: Proof,
    /// Is used up in the transaction that makes the login.
    pub(super) used: Judged,
    /// The page's login that vouches for it, which must still be there.
    pub(super) page: Option<LoginId>,
}

impl Logins {
    /// Checks password and second factor and makes a session token.
    pub(crate) async fn login(
        &self,
        login: wire::Login,
        from: Origin,
    ) -> Result<(wire::LoggedIn, LoginId), Refusal> {
        let secret = Zeroizing::new(login.password);
        let code = Zeroizing::new(login.totp);
        if code.len() > MAX_CODE {
            return Err(wrong());
        }
        let (attempt, account, factors) = self.first(login.user, secret, from, CONSOLE).await?;
        let judged = self.judge(&account, &factors, &Shown::parse(&code), attempt.now)?;
        let ground = Ground::of(judged, attempt.now);
        match &ground.used {
            Judged::Missing | Judged::Weak => {
                self.asked(&attempt, &account).await?;
                // Which factors an account has is told to whoever knows its password.
                let by_code = ground.used == Judged::Missing && has(&factors, mfa::TOTP);
                Err(if by_code { code_asked() } else { page_asked() })
            }
            Judged::Wrong(why) => {
                self.failed(&attempt, why).await?;
                Err(wrong())
            }
            Judged::OutOfTime(missed) => {
                self.missed(&attempt, missed.clone()).await?;
                Err(wrong())
            }
            _ => self.finish(&attempt, account, ground).await,
        }
    }

    /// The password's part of a login. Whoever is not let in gets the one answer.
    pub(super) async fn first(
        &self,
        user: String,
        secret: Zeroizing<String>,
        from: Origin,
        via: &'static str,
    ) -> Result<(Attempt, AccountRow, Vec<FactorRow>), Refusal> {
        if user.len() > MAX_USER || secret.len() > password::MAX_BYTES {
            return Err(wrong());
        }
        let _place = self.guesses.begin(from.source.ip())?;
        let pool = &self.store.readers;
        let read = |error: StoreError| unavailable(&error);
        // The device proved who it is: this tells nothing of any user. First of all, since nothing
        // else is to be had from here.
        let disabled = locks::device(pool, from.device).await.map_err(read)?;
        let others = match disabled.then(|| self.refused.note(&from.device.0, unix_ms())) {
            Some(None) => return Err(device_disabled()),
            due => due.flatten(),
        };
        let account = accounts::by_name(pool, &user).await.map_err(read)?;
        let id = account.as_ref().map_or("", |account| account.id.as_str()).to_owned();
        let factors = factors::of_account(pool, &id).await.map_err(read)?;
        let (now, failed) = (unix_ms(), "login.failed");
        let mut attempt = Attempt { account, user, from, now, failed, delays: true, via };
        if let Some(others) = others {
            self.failed_beside(&attempt, failure::DEVICE_DISABLED, others).await?;
            return Err(device_disabled());
        }
        let hash = attempt.account.as_ref().map(|account| account.password.clone());
        let (right, delayed_until) = self.password(secret, hash, &id, &attempt).await?;
        attempt.now = unix_ms();
        let Some(account) = attempt.account.clone() else {
            self.failed(&attempt, "unknown_user").await?;
            return Err(wrong());
        };
        if let Some(why) = why_not(&account, right, attempt.now < delayed_until) {
            self.failed(&attempt, why).await?;
            return Err(wrong());
        }
        self.not_off_there(&attempt, &account).await?;
        Ok((attempt, account, factors))
    }

    /// Refuses devices that the user's partner switched off, before a second factor is asked for
    /// or used up. Told only to whoever knows the password: of whom the users are is no business
    /// of a device that was lost.
    pub(super) async fn not_off_there(
        &self,
        attempt: &Attempt,
        account: &AccountRow,
    ) -> Result<(), Refusal> {
        let (pool, device) = (&self.store.readers, attempt.from.device);
        let off = locks::device_of(pool, device, &account.partner_id).await;
        if !off.map_err(|error| unavailable(&error))? {
            return Ok(());
        }
        let noted = self.refused.note_of(account.partner_id.as_bytes(), &device.0, unix_ms());
        if let Some(others) = noted {
            self.failed_beside(attempt, failure::DEVICE_DISABLED, others).await?;
        }
        Err(device_disabled())
    }

    pub(super) fn judge(
        &self,
        account: &AccountRow,
        factors: &[FactorRow],
        shown: &Shown,
        now: u64,
    ) -> Result<Judged, Refusal> {
        let rule = account.mfa_rule(self.settings.mfa);
        second::judge(&self.keys, &account.id, factors, (shown, rule), now).map_err(|error| {
            tracing::error!(%error, "a second factor cannot be checked");
            Refusal::new(failure::INTERNAL, "the second factor cannot be checked")
        })
    }

    /// Makes the login, or records why that was too late.
    pub(super) async fn finish(
        &self,
        attempt: &Attempt,
        account: AccountRow,
        ground: Ground,
    ) -> Result<(wire::LoggedIn, LoginId), Refusal> {
        match self.succeeded(attempt, account, ground).await? {
            Ok(done) => Ok(done),
            Err(why) => {
                self.failed(attempt, why).await?;
                Err(if why == failure::DEVICE_DISABLED { device_disabled() } else { wrong() })
            }
        }
    }

    /// Makes the login; else why not: the code was used up, the account changed, or others who
    /// guessed at the same time brought a delay about meanwhile.
    async fn succeeded(
        &self,
        attempt: &Attempt,
        account: AccountRow,
        ground: Ground,
    ) -> Result<Result<(wire::LoggedIn, LoginId), &'static str>, Refusal> {
        let late = if ground.used == Judged::NotNeeded { "changed" } else { "code_used" };
        let crypto = |_| Refusal::new(failure::INTERNAL, "the system gives no randomness");
        let secret = Zeroizing::new(random::<32>().map_err(crypto)?);
        let token = token_text(&secret);
        let id = token_id(&token);
        let device = attempt.from.device;
        let expires_ms = attempt.now.saturating_add(self.settings.life_ms);
        let Ground { proof, used, page } = ground;
        let events = proved_events("login.succeeded", attempt, &account, &proof.mfa);
        // Only what is shown now uses up a recovery code.
        let events = if used.method() == mfa::RECOVERY { events } else { (events.0, None) };
        let limited = proof.is_limited(account.mfa_rule(self.settings.mfa));
        let (row, now, delays) = (account.clone(), attempt.now, attempt.delays);
        let done = self.writer.write(move |tx| {
            Box::pin(async move {
                if delays && is_delayed(tx, &row.id, device, now).await? {
                    return Ok(Err("delayed"));
                }
                // What changed since it was checked is not logged in to.
                if !accounts::is_unchanged(tx, &row.id, &row.password).await? {
                    return Ok(Err("changed"));
                }
                // Before the code is used up.
                if locks::device_in(tx, device, &row.partner_id).await? {
                    return Ok(Err(failure::DEVICE_DISABLED));
                }
                if !used.use_up(tx, &row.id).await? {
                    return Ok(Err(late));
                }
                if let Some(page) = page
                    && !accounts::login_lives_in(tx, page, now).await?
                {
                    return Ok(Err(late));
                }
                accounts::set_failures(tx, &row.id, 0, 0).await?;
                accounts::insert_login(tx, id, &row.id, device, expires_ms).await?;
                accounts::prove(tx, id, &proof, expires_ms).await?;
                devices::note(tx, &row.id, device).await?;
                record(tx, &row, events).await.map(Ok)
            })
        });
        let recovery_left = match done.await.map_err(|error| unavailable(&error))? {
            Ok(left) => left,
            Err(why) => return Ok(Err(why)),
        };
        let told = wire::LoggedIn {
            session_token: token.to_string(),
            expires_ms,
            mfa_setup: limited,
            user: account.name,
            partner: account.partner,
            partner_id: account.partner_id,
            recovery_left,
        };
        Ok(Ok((told, id)))
    }

    /// A right password of an account with a second factor, which was not shown yet.
    pub(super) async fn asked(
        &self,
        attempt: &Attempt,
        account: &AccountRow,
    ) -> Result<(), Refusal> {
        let event = attempt
            .event("login.second_factor_asked")
            .partner(&account.partner)
            .actor(&account.name)
            .outcome("asked")
            .mfa(mfa::NONE);
        let partner_id = account.partner_id.clone();
        let written = self.writer.write(move |tx| {
            Box::pin(async move { tx.append(&partner_id, event).await.map(|_| ()) })
        });
        written.await.map_err(|error| unavailable(&error))
    }

    /// Records and counts a failure.
    pub(super) async fn failed(&self, attempt: &Attempt, why: &'static str) -> Result<(), Refusal> {
        self.failed_beside(attempt, why, 0).await
    }

    /// The same of a one-time code that was out of its time, which is noted.
    pub(super) async fn missed(&self, attempt: &Attempt, missed: Missed) -> Result<(), Refusal> {
        self.written(attempt, second::OUT_OF_TIME, 0, Some(missed)).await
    }

    /// The same; `others`: so many like it were not recorded.
    async fn failed_beside(
        &self,
        attempt: &Attempt,
        why: &'static str,
        others: u64,
    ) -> Result<(), Refusal> {
        self.written(attempt, why, others, None).await
    }

    async fn written(
        &self,
        attempt: &Attempt,
        why: &'static str,
        others: u64,
        missed: Option<Missed>,
    ) -> Result<(), Refusal> {
        let mut event = attempt.event(attempt.failed).actor(&attempt.user).outcome("failed");
        if others > 0 {
            event = event.extra("others", others);
        }
        let mut partner_id = self.home.clone();
        let mut id = String::new();
        if let Some(account) = &attempt.account {
            event = event.partner(&account.partner);
            partner_id.clone_from(&account.partner_id);
            id.clone_from(&account.id);
        }
        // Attempts during a delay do not prolong it: guessing at an account must not keep its
        // owner out for ever.
        let counts = !["delayed", failure::DEVICE_DISABLED].contains(&why);
        let (device, now) = (attempt.from.device, attempt.now);
        let written = self.writer.write(move |tx| {
            Box::pin(async move {
                // Those who guessed at the same time may have brought a delay about since this one
                // was let through.
                let late = counts && is_delayed(tx, &id, device, now).await?;
                // Of an unknown user nothing is counted, in the same time.
                if counts && !late {
                    count_failure(tx, &id, device, now).await?;
                }
                // A guess during a delay has no effect, whatever it is.
                if let Some(missed) = missed.filter(|_| !late) {
                    missed.note(tx).await?;
                }
                let event = event.end_reason(if late { "delayed" } else { why });
                tx.append(&partner_id, event).await.map(|_| ())
            })
        });
        written.await.map_err(|error| unavailable(&error))
    }
}

impl Attempt {
    pub(super) fn event(&self, name: &str) -> Event {
        let event = login_event(name, self.from);
        if self.via == CONSOLE { event } else { event.extra("via", self.via) }
    }
}

impl Ground {
    /// Everything was shown just now.
    pub(super) fn of(used: Judged, now: u64) -> Self {
        let method = used.method();
        let mfa_ms = (method != mfa::NONE).then_some(now);
        let proof = Proof { mfa: method.to_owned(), mfa_ms, authenticated_ms: now };
        Self { proof, used, page: None }
    }
}

/// Does one of the factors that count have this kind?
pub(super) fn has(factors: &[FactorRow], kind: &str) -> bool {
    factors.iter().any(|factor| factor.confirmed && factor.kind == kind)
}

/// Why somebody who shows this is not let in, as recorded; the answer is always the same.
pub(super) fn why_not(account: &AccountRow, right: bool, delayed: bool) -> Option<&'static str> {
    if account.disabled {
        Some("disabled")
    } else if delayed {
        Some("delayed")
    } else {
        (!right).then_some("password")
    }
}

/// The event of a proof, and the one of a recovery code that it used up.
pub(super) fn proved_events(
    name: &'static str,
    attempt: &Attempt,
    account: &AccountRow,
    method: &str,
) -> (Event, Option<Event>) {
    let event =
        |name: &str| attempt.event(name).partner(&account.partner).actor(&account.name).mfa(method);
    let recovery = (method == mfa::RECOVERY).then(|| event("mfa.recovery_used").outcome("done"));
    (event(name).outcome("granted"), recovery)
}

/// Records them; gives the number of recovery codes left if one was used, else 0.
pub(super) async fn record(
    tx: &mut WriteTx,
    account: &AccountRow,
    (event, recovery): (Event, Option<Event>),
) -> Result<u32, StoreError> {
    tx.append(&account.partner_id, event).await?;
    let Some(event) = recovery else { return Ok(0) };
    let left = factors::recovery_left_in(tx, &account.id).await?;
    tx.append(&account.partner_id, event.extra("left", left)).await?;
    Ok(u32::try_from(left).unwrap_or(u32::MAX))
}
