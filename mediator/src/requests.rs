//! Asking for access and approving it: one place for consoles and the machine's administrator.
//!
//! A request only ever meets the condition `approval` of a rule that the technician has already:
//! it gives no permission by itself. Nobody approves an own request, whichever device or key they
//! take for it: an approval is a person's act, from a device on which the asker never logged in.
//! A request is decided once; an approval that lasts can be taken back, and nothing else changes it.
//! Both acts are recorded in the transaction that does them.

use adit_ledger::{Event, Level};
use adit_protocol::{
    code::failure,
    keys::PublicKey,
    limits::MAX_TEXT,
    target::{BUILTIN_REDIRECTORS, FORWARD_REDIRECTORS},
};
use adit_runtime::time::format_ms;
use sqlx::AnyPool;

use crate::{
    authz::{Decision, Holder, Spot},
    core::types::Refusal,
    roles::{Act, Permission, Unmet, conditions::Facts},
    store::{
        StoreError, WriteTx, Writer,
        access::{
            When,
            requests::{self, NewRequest, Request},
        },
        computers::ComputerRow,
        devices, fresh_id,
    },
};

/// Undecided requests of one person.
const MAX_PENDING: u64 = 20;
/// Length of an approval if none is asked for, milliseconds.
const DEFAULT_LENGTH_MS: u64 = 3_600_000;
/// Whoever asked cannot decide.
const BY_ANOTHER: &str = "somebody else with requests.approve for that computer decides it: \
     console-tunnel requests list there; you may take it back with requests deny";
/// What helps once it is decided.
const ASK_ANEW: &str =
    "nothing was changed; access is asked for anew: console-tunnel requests make";
/// Longest approval, milliseconds.
const MAX_LENGTH_MS: u64 = 7 * 24 * 3_600_000;

/// Why a request or decision was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// Told to whoever asks, with what to do if it is not what the code says.
    #[error("{}", .0.message)]
    Refused(Refusal, &'static str),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal, "")
    }
}

fn no_such_request() -> Refusal {
    Refusal::new(failure::NO_SUCH_REQUEST, "there is no such request")
}

/// Who acts, for the log.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    pub(crate) name: String,
    pub(crate) device: Option<String>,
    pub(crate) source: Option<String>,
}

impl Actor {
    /// An event of what was done.
    pub(crate) fn event(&self, name: &str) -> Event {
        let mut event = Event::new(name, Level::Significant).actor(&self.name).outcome("done");
        event.device.clone_from(&self.device);
        event.source.clone_from(&self.source);
        event
    }
}

/// What somebody asks for.
pub(crate) struct Wish {
    pub(crate) redirector: String,
    pub(crate) reason: String,
    pub(crate) ticket: String,
    /// 0: the usual.
    pub(crate) length_ms: u64,
}

/// All redirectors that there are. Every computer has the same: agents report none of their own.
pub(crate) fn redirectors() -> impl Iterator<Item = &'static str> {
    BUILTIN_REDIRECTORS.iter().map(|known| known.name).chain(FORWARD_REDIRECTORS)
}

/// Is there a redirector of that name?
pub(crate) fn is_redirector(name: &str) -> bool {
    redirectors().any(|known| known == name)
}

/// Makes a request, if a rule of the asker is there that only lacks approval.
pub(crate) async fn make(
    pool: &AnyPool,
    writer: &Writer,
    (holder, actor): (&Holder, &Actor),
    computer: &ComputerRow,
    wish: Wish,
    facts: Facts,
) -> Result<Request, RequestError> {
    let long = |text: &str| text.len() > MAX_TEXT;
    if wish.reason.trim().is_empty() {
        return Err(Refusal::new(failure::REASON_REQUIRED, "a request needs a reason").into());
    }
    if long(&wish.reason) || long(&wish.ticket) || wish.length_ms > MAX_LENGTH_MS {
        let text = "reason or ticket is too long, or more than 7 days are asked for";
        return Err(Refusal::new(failure::BAD_REQUEST, text).into());
    }
    may_ask(pool, holder, computer, &wish, facts).await?;
    let id = fresh_id()?;
    let new = NewRequest {
        id: id.clone(),
        partner_id: holder.partner.clone(),
        client_id: computer.client_id.clone(),
        computer_id: computer.id.to_string(),
        account_id: holder.account.clone(),
        redirector: wish.redirector,
        reason: wish.reason,
        ticket: wish.ticket,
        length_ms: if wish.length_ms == 0 { DEFAULT_LENGTH_MS } else { wish.length_ms },
    };
    let mut event = actor
        .event("request.made")
        .partner(&computer.partner)
        .client(computer.client_path())
        .computer(&computer.name)
        .computer_id(&new.computer_id)
        .redirector(&new.redirector)
        .reason(&new.reason)
        .extra("request", id.as_str())
        .extra("length_ms", new.length_ms);
    event.ticket = (!new.ticket.is_empty()).then(|| new.ticket.clone());
    let (partner, account) = (holder.partner.clone(), holder.account.clone());
    let made = writer
        .write(move |tx| {
            Box::pin(async move {
                if let Some(waits) = requests::same_pending(tx, &new).await? {
                    return Ok(Made::Waits(new, waits));
                }
                if requests::pending_of(tx, &account).await? >= MAX_PENDING {
                    return Ok(Made::TooMany);
                }
                requests::insert(tx, new).await?;
                tx.append(&partner, event).await?;
                let made = requests::by_id(tx, Some(&partner), &id).await?;
                made.map(Made::New).ok_or(StoreError::Missing("request"))
            })
        })
        .await?;
    match made {
        Made::New(request) => Ok(request),
        // Asked again, as it was: nothing new, and no second decision about the same.
        Made::Waits(new, waits) if new.asks_as(&waits) => Ok(waits),
        Made::Waits(_, waits) => {
            let text = format!(
                "you asked for {} on {} already, in other words: request {} waits",
                waits.redirector, waits.computer, waits.id
            );
            let hint = "take that back first: console-tunnel requests deny ID";
            Err(RequestError::Refused(Refusal::new(failure::REQUEST_PENDING, text), hint))
        }
        Made::TooMany => {
            let text = "too many of your requests wait for a decision";
            Err(Refusal::new(failure::BUSY, text).into())
        }
    }
}

/// What became of a request.
enum Made {
    New(Request),
    /// The same person's for the same redirector and computer.
    Waits(NewRequest, Request),
    TooMany,
}

async fn may_ask(
    pool: &AnyPool,
    holder: &Holder,
    computer: &ComputerRow,
    wish: &Wish,
    facts: Facts,
) -> Result<(), RequestError> {
    let facts = Facts { reason: true, ticket: !wish.ticket.trim().is_empty(), ..facts };
    let (act, spot) = (Act::launch(&wish.redirector), Spot::of(computer));
    let object = holder.object(pool, &spot, When::Now).await?;
    let now = holder.computer(pool, act, &spot, facts.clone(), When::Now).await?;
    let approved = Facts { approved_until_ms: Some(u64::MAX), ..facts };
    match now {
        Decision::Allow { rule, .. } => {
            let text = format!(
                "no request is needed: you may open {} on {} already, by the rule {rule}",
                wish.redirector, computer.name
            );
            Err(Refusal::new(failure::APPROVAL_NOT_NEEDED, text).into())
        }
        Decision::Deny { unmet, refusal, .. } => {
            let helps = unmet.contains(&Unmet::Approval)
                || holder.decide(act, &object, approved).is_allowed();
            if helps { Ok(()) } else { Err(refusal.into()) }
        }
    }
}

/// What is decided.
pub(crate) struct Judgement {
    pub(crate) approve: bool,
    /// 0: what was asked for.
    pub(crate) length_ms: u64,
    pub(crate) note: String,
    pub(crate) by: By,
}

/// With what somebody decides.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    /// The machine's administrator.
    Local,
    /// A person, on this device.
    Device(PublicKey),
    /// A program with an API key, of which nobody knows whose it is.
    Key,
}

/// Decides a request; without a holder, the machine's administrator does.
pub(crate) async fn decide(
    pool: &AnyPool,
    writer: &Writer,
    (holder, actor): (Option<&Holder>, &Actor),
    id: &str,
    judgement: Judgement,
    facts: Facts,
) -> Result<Request, RequestError> {
    if judgement.note.len() > MAX_TEXT {
        return Err(Refusal::new(failure::BAD_REQUEST, "the note is too long").into());
    }
    let partner = holder.map(|holder| holder.partner.clone());
    let (wanted, scoped) = (id.to_owned(), partner.clone());
    let found = writer
        .write(move |tx| {
            Box::pin(async move { requests::by_id(tx, scoped.as_deref(), &wanted).await })
        })
        .await?
        .ok_or_else(no_such_request)?;
    if let Some(holder) = holder
        && let Err(error) = may_decide(pool, holder, &found, &judgement, facts).await
    {
        if let RequestError::Refused(refusal, _) = &error {
            refused(writer, holder, actor, &found, refusal.code).await?;
        }
        return Err(error);
    }
    let (actor, wanted) = (actor.clone(), id.to_owned());
    let done = writer
        .write(move |tx| {
            Box::pin(
                async move { record(tx, &actor, partner.as_deref(), &wanted, judgement).await },
            )
        })
        .await?;
    match done {
        Decided::Now(request) => Ok(request),
        Decided::Before(request, now_ms) => Err(already_decided(&request, now_ms)),
        Decided::Gone => Err(no_such_request().into()),
    }
}

/// What became of a decision.
enum Decided {
    Now(Request),
    /// Somebody decided before: nothing was changed.
    Before(Request, u64),
    Gone,
}

/// Once decided it stays so: an approval that was given again would begin its time anew, and be
/// somebody else's. Only to take it back is never too late.
fn is_open(request: &Request, approve: bool, now_ms: u64) -> bool {
    match request.state(now_ms) {
        "pending" => true,
        "approved" => !approve,
        _ => false,
    }
}

fn already_decided(request: &Request, now_ms: u64) -> RequestError {
    let Some(decision) = &request.decision else { return no_such_request().into() };
    let (by, until) = (&decision.by, format_ms(decision.until_ms));
    let (how, hint) = match request.state(now_ms) {
        "approved" => (
            format!("was approved by {by} already, until {until}"),
            "nothing was changed; for another time take it back, and it is asked for anew: \
             requests deny ID, console-tunnel requests make",
        ),
        "over" => (format!("was approved by {by}, which was over at {until}"), ASK_ANEW),
        _ => (format!("was denied by {by} already"), ASK_ANEW),
    };
    let text = format!("request {} {how}", request.id);
    RequestError::Refused(Refusal::new(failure::ALREADY_DECIDED, text), hint)
}

/// A decision that was tried and not taken. With the client, so that it goes when that is erased.
fn refused_event(actor: &Actor, request: &Request, code: &str) -> Event {
    actor
        .event("request.decision_refused")
        .client(&request.client)
        .outcome("refused")
        .end_reason(code)
        .extra("request", request.id.as_str())
}

/// Records a decision that somebody may not take.
async fn refused(
    writer: &Writer,
    holder: &Holder,
    actor: &Actor,
    request: &Request,
    code: &str,
) -> Result<(), StoreError> {
    let (event, partner) = (refused_event(actor, request, code), holder.partner.clone());
    let _room = writer.room(1).await?;
    let write = writer
        .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
    write.await
}

async fn may_decide(
    pool: &AnyPool,
    holder: &Holder,
    request: &Request,
    judgement: &Judgement,
    facts: Facts,
) -> Result<(), RequestError> {
    let own = request.account_id == holder.account;
    if own && !judgement.approve {
        // Taking back what one asked for.
        return Ok(());
    }
    let spot = Spot {
        partner: request.partner_id.clone(),
        client: request.client_id.clone(),
        computer: request.computer_id.clone(),
    };
    let act = Act::of(Permission::ApproveRequests);
    if own {
        let text = "nobody approves an own request";
        return Err(RequestError::Refused(Refusal::new(failure::NOT_PERMITTED, text), BY_ANOTHER));
    }
    match holder.computer(pool, act, &spot, facts, When::Now).await? {
        Decision::Allow { .. } => is_another(pool, request, judgement).await,
        // One's permissions do not reach it: then it does not exist.
        Decision::Deny { unmet, .. } if unmet.is_empty() => Err(no_such_request().into()),
        Decision::Deny { refusal, .. } => Err(refusal.into()),
    }
}

/// Is it somebody else who approves, as far as that can be told?
async fn is_another(
    pool: &AnyPool,
    request: &Request,
    judgement: &Judgement,
) -> Result<(), RequestError> {
    let refuse = |text: &str| {
        Err(RequestError::Refused(Refusal::new(failure::NOT_PERMITTED, text), BY_ANOTHER))
    };
    match judgement.by {
        _ if !judgement.approve => Ok(()),
        By::Local => Ok(()),
        By::Key => refuse("an API key approves nothing: a person must, logged in on a console"),
        // Two accounts on one device may be one person.
        By::Device(device) => {
            match devices::retry_ms(pool, &request.account_id, device).await?.is_some() {
                true => refuse("the asker logged in on this device; approve on one of your own"),
                false => Ok(()),
            }
        }
    }
}

async fn record(
    tx: &mut WriteTx,
    actor: &Actor,
    partner: Option<&str>,
    id: &str,
    judgement: Judgement,
) -> Result<Decided, StoreError> {
    let Some(request) = requests::by_id(tx, partner, id).await? else { return Ok(Decided::Gone) };
    // Here, between other writes: of two who decide at once the second finds what the first did.
    let now_ms = tx.now_ms();
    if !is_open(&request, judgement.approve, now_ms) {
        let event = refused_event(actor, &request, failure::ALREADY_DECIDED);
        tx.append(&request.partner_id, event).await?;
        return Ok(Decided::Before(request, now_ms));
    }
    let length = match judgement.length_ms {
        0 => request.length_ms,
        length => length.min(request.length_ms),
    };
    let until_ms = now_ms.saturating_add(length);
    let decision =
        requests::Decision { approved: judgement.approve, by: actor.name.clone(), until_ms };
    requests::decide(tx, id, &decision).await?;
    let name = if judgement.approve { "request.approved" } else { "request.denied" };
    let partner_name = request.client.split('/').next().unwrap_or_default();
    let mut event = actor
        .event(name)
        .partner(partner_name)
        .client(&request.client)
        .computer(&request.computer)
        .computer_id(&request.computer_id)
        .redirector(&request.redirector)
        .extra("request", id)
        .extra_personal("user", request.user.as_str());
    if judgement.approve {
        event = event.extra("until_ms", until_ms);
    }
    event.reason = (!judgement.note.is_empty()).then_some(judgement.note);
    tx.append(&request.partner_id, event).await?;
    Ok(requests::by_id(tx, partner, id).await?.map_or(Decided::Gone, Decided::Now))
}
