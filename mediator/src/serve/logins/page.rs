//! The same in two steps, for the page; logins by an identity provider; and logins of a console
//! for which somebody vouched on the page.

use adit_protocol::{code::failure, wire};
use adit_runtime::time::unix_ms;
use zeroize::Zeroizing;

use super::{
    Logins, Origin,
    attempt::{Attempt, Ground, has, why_not},
    login_event, unavailable, wrong,
};
use crate::{
    core::types::Refusal,
    mfa::{self, Shown},
    oidc::Provider,
    serve::{half_open::Source, second::Judged},
    store::{
        StoreError,
        accounts::{self, AccountRow, LoginId, LoginRow, Proof},
        devices,
        factors::{self, FactorRow},
    },
};

/// Ways of logging in, as recorded.
const PAGE: &str = "page";
const OIDC: &str = "oidc";
pub(super) const DEVICE_CODE: &str = "device_code";

/// A first factor was right, and a second one is asked for.
#[derive(Clone)]
pub(crate) struct Passed {
    account_id: String,
    /// What was compared: another password, and the first step is void.
    password: String,
    via: &'static str,
    at_ms: u64,
    /// Which second factors would do.
    pub(crate) totp: bool,
    pub(crate) recovery: bool,
    /// Ids of security keys.
    pub(crate) keys: Vec<String>,
}

/// What the first step came to.
pub(crate) enum First {
    /// Logged in.
    Done(wire::LoggedIn),
    /// Asked for a second factor.
    Second(Box<Passed>),
}

/// Who vouched on the page for a console, as it is asked for later.
#[derive(Clone)]
pub(crate) struct Voucher {
    pub(crate) account: AccountRow,
    pub(crate) proof: Proof,
    pub(crate) login: LoginId,
}

impl Voucher {
    /// The login on the page vouches.
    pub(crate) fn of(row: &LoginRow) -> Self {
        Self { account: row.account.clone(), proof: row.proof.clone(), login: row.id }
    }
}

impl Logins {
    /// A password, typed into the page.
    pub(crate) async fn page_password(
        &self,
        user: String,
        secret: Zeroizing<String>,
        from: Origin,
    ) -> Result<First, Refusal> {
        let (attempt, account, factors) = self.first(user, secret, from, PAGE).await?;
        self.after_first(attempt, account, factors).await
    }

    /// An identity provider says that it is this account. `mfa`: how it says that it asked for
    /// more than a password, if that counts here, and when, in seconds since 1970.
    pub(crate) async fn page_oidc(
        &self,
        account: AccountRow,
        mfa: Option<(&'static str, u64)>,
        from: Origin,
    ) -> Result<First, Refusal> {
        let pool = &self.store.readers;
        let factors = factors::of_account(pool, &account.id).await;
        let factors = factors.map_err(|error| unavailable(&error))?;
        let attempt = Attempt {
            user: account.name.clone(),
            account: Some(account.clone()),
            from,
            now: unix_ms(),
            failed: "login.failed",
            delays: false,
            via: OIDC,
        };
        if let Some(why) = why_not(&account, true, false) {
            self.failed(&attempt, why).await?;
            return Err(wrong());
        }
        self.not_off_there(&attempt, &account).await?;
        let Some((mfa, at_s)) = mfa else {
            return self.after_first(attempt, account, factors).await;
        };
        // As old as it is there: a factor shown before breakfast is not fresh at noon.
        let at = at_s.saturating_mul(1000).min(attempt.now);
        let proof = Proof { mfa: mfa.to_owned(), mfa_ms: Some(at), authenticated_ms: at };
        let ground = Ground { proof, used: Judged::NotNeeded, page: None };
        self.finish(&attempt, account, ground).await.map(|(told, _)| First::Done(told))
    }

    /// A login at an identity provider that is not accepted here, or is linked with nobody. Who
    /// comes back with nonsense proved nothing: once a minute for a source, and for all sources of
    /// a provider beyond the first of them.
    pub(crate) async fn failed_there(
        &self,
        from: Origin,
        provider: &Provider,
    ) -> Result<(), Refusal> {
        let key = format!("{:?}", Source::of(from.source.ip()));
        let _room = self.writer.room(1).await.map_err(|error| unavailable(&error))?;
        let seldom = &self.failed_there;
        let noted = seldom.note_of(provider.id.as_bytes(), key.as_bytes(), unix_ms());
        let Some(others) = noted else { return Ok(()) };
        let mut event = login_event("login.failed", from)
            .outcome("failed")
            .end_reason("identity_provider")
            .extra("via", OIDC)
            .extra("provider", provider.name.as_str());
        if others > 0 {
            event = event.extra("others", others);
        }
        let partner = provider.partner_id.clone();
        let written = self
            .writer
            .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
        written.await.map_err(|error| unavailable(&error))
    }

    async fn after_first(
        &self,
        attempt: Attempt,
        account: AccountRow,
        factors: Vec<FactorRow>,
    ) -> Result<First, Refusal> {
        let judged = self.judge(&account, &factors, &Shown::Nothing, attempt.now)?;
        if judged == Judged::NotNeeded {
            let ground = Ground::of(judged, attempt.now);
            return self.finish(&attempt, account, ground).await.map(|(told, _)| First::Done(told));
        }
        self.asked(&attempt, &account).await?;
        let keys = self.key_ids(&factors)?;
        // Where only keys count, nothing else is offered.
        let others = judged != Judged::Weak && !self.only_keys(&account, &factors);
        let left = factors::recovery_left(&self.store.readers, &account.id).await;
        Ok(First::Second(Box::new(Passed {
            totp: others && has(&factors, mfa::TOTP),
            recovery: others && left.map_err(|error| unavailable(&error))? > 0,
            keys,
            account_id: account.id,
            password: account.password,
            via: attempt.via,
            at_ms: attempt.now,
        })))
    }

    fn only_keys(&self, account: &AccountRow, factors: &[FactorRow]) -> bool {
        account.mfa_rule(self.settings.mfa) == crate::config::MfaRule::PhishingResistant
            && has(factors, mfa::WEBAUTHN)
    }

    fn key_ids(&self, factors: &[FactorRow]) -> Result<Vec<String>, Refusal> {
        let keys = factors.iter().filter(|factor| factor.confirmed && factor.kind == mfa::WEBAUTHN);
        keys.map(|factor| crate::serve::second::credential(&self.keys, factor).map(|key| key.id))
            .collect::<Result<_, _>>()
            .map_err(|error| {
                tracing::error!(%error, "a security key cannot be read");
                Refusal::new(failure::INTERNAL, "the second factor cannot be checked")
            })
    }

    /// A second factor after a first one.
    pub(crate) async fn page_second(
        &self,
        passed: &Passed,
        shown: &Shown,
        from: Origin,
    ) -> Result<wire::LoggedIn, Refusal> {
        let pool = &self.store.readers;
        let read = |error: StoreError| unavailable(&error);
        let account = accounts::by_id(pool, &passed.account_id).await.map_err(read)?;
        let Some(account) = account.filter(|there| there.password == passed.password) else {
            return Err(wrong());
        };
        let factors = factors::of_account(pool, &account.id).await.map_err(read)?;
        let known = devices::retry_ms(pool, &account.id, from.device).await.map_err(read)?;
        let attempt = Attempt {
            user: account.name.clone(),
            account: Some(account.clone()),
            from,
            now: unix_ms(),
            failed: "login.failed",
            delays: true,
            via: passed.via,
        };
        let delayed = attempt.now < known.unwrap_or(account.retry_ms);
        if let Some(why) = why_not(&account, true, delayed) {
            self.failed(&attempt, why).await?;
            return Err(wrong());
        }
        let judged = self.judge(&account, &factors, shown, attempt.now)?;
        let why = match &judged {
            Judged::Wrong(why) => why,
            Judged::OutOfTime(missed) => {
                self.missed(&attempt, missed.clone()).await?;
                return Err(wrong());
            }
            // The factors changed since they were asked for.
            Judged::Missing | Judged::Weak | Judged::NotNeeded => "second_factor",
            _ => {
                let mut ground = Ground::of(judged, attempt.now);
                ground.proof.authenticated_ms = passed.at_ms;
                return self.finish(&attempt, account, ground).await.map(|(told, _)| told);
            }
        };
        self.failed(&attempt, why).await?;
        Err(wrong())
    }

    /// A console for which somebody vouched on the page.
    pub(crate) async fn for_device(
        &self,
        voucher: Voucher,
        from: Origin,
    ) -> Result<(wire::LoggedIn, LoginId), Refusal> {
        let account = voucher.account;
        let attempt = Attempt {
            user: account.name.clone(),
            account: Some(account.clone()),
            from,
            now: unix_ms(),
            failed: "login.failed",
            delays: false,
            via: DEVICE_CODE,
        };
        let ground =
            Ground { proof: voucher.proof, used: Judged::NotNeeded, page: Some(voucher.login) };
        self.finish(&attempt, account, ground).await
    }
}
