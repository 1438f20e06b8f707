//! A console's wish to open a session: every field checked, the decision taken, the broker told.

use adit_protocol::{
    code::failure,
    ids::{ComputerId, SessionId},
    keys::PublicKey,
    limits::{MAX_NOISE_MESSAGE, MAX_TARGETS_PER_GRANT, MAX_TEXT},
    target::{BUILTIN_REDIRECTORS, Target, Transport},
    wire,
};
use adit_runtime::time::unix_ms;

use super::connection::Line;
use crate::{
    authz::{self, Decision, Holder, Spot},
    core::types::{Allowed, Attempt, Basis, Place, Refusal, Who},
    proof::seen_head,
    roles::{Act, Permission, conditions::Facts},
    store::{StoreError, access::When, accounts::LoginRow, computers},
};

/// Bytes of names of redirectors and viewers.
pub(super) const MAX_NAME: usize = 64;
/// Shortest Noise IK message 1: ephemeral key, encrypted static key, tag of the payload.
const MIN_MSG1: usize = 96;

/// Hands the attempt to the broker, allowed or not: either way it is recorded.
pub(super) async fn open(
    line: &Line,
    login: &LoginRow,
    asked_ms: u64,
    open: wire::Open,
    responder: adit_control::Responder,
) {
    let Ok(session) = SessionId::from_slice(&open.session_id) else {
        let text = "a session id has 16 bytes";
        return responder.fail(adit_control::failure(failure::BAD_REQUEST, text));
    };
    let computer_id = ComputerId::from_slice(&open.computer_id);
    // Before the rules are read: what changes from now on makes the session be judged again.
    let generation = line.shared.rules.generation();
    let (verdict, place) = match (checked(&open), computer_id) {
        (Err(refused), _) => (Err(refused), None),
        (Ok(()), Err(_)) => (Err((no_such_computer(), String::new())), None),
        (Ok(()), Ok(id)) => match decide(line, login, &open, id).await {
            Ok(decided) => decided,
            Err(error) => {
                tracing::error!(%error, "cannot read computers or rules");
                let refusal = Refusal::new(failure::INTERNAL, "computers cannot be read");
                (Err((refusal, String::new())), None)
            }
        },
    };
    let who = who(line, login);
    let (targets, _) = targets(&open.targets);
    let connection = line.id;
    let act = move |driver: &mut super::driver::Driver, now| {
        let attempt = Attempt {
            request: driver.request(responder),
            connection,
            asked_ms,
            generation,
            who,
            session,
            place,
            computer_id: computer_id.map(|id| id.to_string()).unwrap_or_default(),
            redirector: bounded(&open.redirector, MAX_NAME),
            targets,
            any_target: open.any_target,
            reason: bounded(&open.reason, MAX_TEXT),
            ticket: bounded(&open.ticket, MAX_TEXT),
            viewer: bounded(&open.viewer, MAX_NAME),
            noise_msg1: open.noise_msg1,
            seen: seen_head(open.seen),
            enrolment: open.enrolment,
            verdict,
        };
        driver.broker.handle_open(attempt, now);
    };
    line.shared.broker.act(act).await;
}

/// Who asks on this connection.
pub(super) fn who(line: &Line, login: &LoginRow) -> Who {
    Who {
        account_id: login.account.id.clone(),
        account: login.account.name.clone(),
        partner_id: login.account.partner_id.clone(),
        partner: login.account.partner.clone(),
        login: login.id,
        device: line.identity,
        source: line.source.to_string(),
        mfa: login.proof.mfa.clone(),
    }
}

type Verdict = Result<Allowed, (Refusal, String)>;

fn no_such_computer() -> Refusal {
    Refusal::new(failure::NO_SUCH_COMPUTER, "there is no such computer")
}

/// The decision, and the computer if this technician may know of it.
async fn decide(
    line: &Line,
    login: &LoginRow,
    open: &wire::Open,
    id: ComputerId,
) -> Result<(Verdict, Option<Place>), StoreError> {
    let (account, pool) = (&login.account, &line.shared.store.readers);
    let Some(found) = computers::of_partner(pool, &account.partner_id, id).await? else {
        return Ok((Err((no_such_computer(), "not-visible".to_owned())), None));
    };
    let holder = Holder::load(pool, &account.partner_id, &account.id, When::Now).await?;
    let given = |text: &str| !text.trim().is_empty();
    let basis = Basis {
        reason: given(&open.reason),
        ticket: given(&open.ticket),
        mfa_ms: login.proof.mfa_ms,
    };
    let facts = Facts {
        reason: basis.reason,
        ticket: basis.ticket,
        mfa_ms: basis.mfa_ms,
        ..authz::facts_now(Some(line.source.ip()), unix_ms())
    };
    let act = Act::launch(&open.redirector);
    let decision = holder.computer(pool, act, &Spot::of(&found), facts, When::Now).await?;
    let verdict = match decision {
        Decision::Deny { rule, refusal, .. } if refusal.code == failure::NO_SUCH_COMPUTER => {
            return Ok((Err((refusal, rule)), None));
        }
        Decision::Deny { rule, refusal, .. } => Err((refusal, rule)),
        Decision::Allow { rule, .. }
            if PublicKey::from_slice(&open.agent_identity) != Ok(found.identity) =>
        {
            let text = "the agent has another key than the console holds";
            Err((Refusal::new(failure::STALE_KEY, text), rule))
        }
        // Before anything is granted: by its old name another computer may be meant now.
        Decision::Allow { rule, .. } if !is_called(&found, open) => {
            let text = "the computer was renamed or moved since the console had it described";
            Err((Refusal::new(failure::STALE_DESCRIPTION, text), rule))
        }
        Decision::Allow { rule, until_ms } => Ok(Allowed { rule, until_ms, basis }),
    };
    Ok((verdict, Some(place_of(found))))
}

/// Whether a computer has the name that the console knows it by, if the console says so.
fn is_called(found: &computers::ComputerRow, open: &wire::Open) -> bool {
    open.name.is_empty() || (open.name == found.name && open.client == found.client_path())
}

/// That a computer's agent was enrolled, for a console that meets it first. Computers that the
/// technician may not know of are not there.
pub(super) async fn enrolment(
    line: &Line,
    login: &LoginRow,
    asked: wire::EnrolmentRequest,
    responder: adit_control::Responder,
) {
    let account = &login.account;
    let refuse = |refusal: Refusal| adit_control::failure(refusal.code, refusal.message);
    let Ok(id) = ComputerId::from_slice(&asked.computer_id) else {
        return responder.fail(refuse(no_such_computer()));
    };
    match visible(line, login, id).await {
        Ok(false) => responder.fail(refuse(no_such_computer())),
        Ok(true) => {
            let whose = (account.partner_id.as_str(), id);
            prove_enrolment(line, whose, asked.seen, responder).await;
        }
        Err(error) => {
            tracing::warn!(%error, computer_id = %id, "enrolment cannot be proved");
            responder.fail(adit_control::failure(failure::AUDIT_UNPROVEN, NO_ENROLMENT));
        }
    }
}

/// What is said when there is none.
const NO_ENROLMENT: &str = "the log has no proof of this computer's enrolment";

/// Shows the entry of a computer's enrolment to somebody who may know of it.
pub(super) async fn prove_enrolment(
    line: &Line,
    (partner, computer): (&str, ComputerId),
    seen: Option<wire::SeenHead>,
    responder: adit_control::Responder,
) {
    let forest = line.shared.writer.forest();
    match forest.enrolment(partner, &computer.to_string(), seen_head(seen)).await {
        Ok(audit) => {
            let proof = wire::EnrolmentProof { audit: Some(audit) };
            responder.reply(wire::frame::Body::EnrolmentProof(proof));
        }
        Err(error) => {
            tracing::warn!(%error, computer_id = %computer, "enrolment cannot be proved");
            responder.fail(adit_control::failure(failure::AUDIT_UNPROVEN, NO_ENROLMENT));
        }
    }
}

/// Whether the technician may know of a computer.
async fn visible(line: &Line, login: &LoginRow, id: ComputerId) -> Result<bool, StoreError> {
    let (account, pool) = (&login.account, &line.shared.store.readers);
    let Some(found) = computers::of_partner(pool, &account.partner_id, id).await? else {
        return Ok(false);
    };
    let holder = Holder::load(pool, &account.partner_id, &account.id, When::Now).await?;
    let facts = authz::facts_now(Some(line.source.ip()), unix_ms());
    let act = Act::of(Permission::SeeComputers);
    let decision = holder.computer(pool, act, &Spot::of(&found), facts, When::Now).await?;
    Ok(matches!(decision, Decision::Allow { .. }))
}

pub(super) fn place_of(row: computers::ComputerRow) -> Place {
    Place {
        computer_id: row.id,
        client: row.client_path(),
        computer: row.name,
        client_id: row.client_id,
        agent: row.identity,
    }
}

/// Checks what does not depend on the computer.
fn checked(open: &wire::Open) -> Result<(), (Refusal, String)> {
    let refuse = |code, text: &str| Err((Refusal::new(code, text), "malformed".to_owned()));
    let (targets, all_good) = targets(&open.targets);
    let texts = [(&open.reason, MAX_TEXT), (&open.ticket, MAX_TEXT), (&open.viewer, MAX_NAME)];
    if texts.iter().any(|(text, max)| text.len() > *max) {
        return refuse(failure::BAD_REQUEST, "reason, ticket or viewer is too long");
    }
    if !(MIN_MSG1..=MAX_NOISE_MESSAGE).contains(&open.noise_msg1.len()) {
        return refuse(failure::BAD_REQUEST, "the handshake's first message is malformed");
    }
    if !all_good || open.targets.len() > MAX_TARGETS_PER_GRANT {
        return refuse(failure::BAD_REQUEST, "a target is not HOST:PORT, or there are too many");
    }
    if ComputerId::from_slice(&open.computer_id).is_err() {
        return refuse(failure::NO_SUCH_COMPUTER, "there is no such computer");
    }
    let all = |transport| {
        !targets.is_empty() && targets.iter().all(|target| target.transport() == transport)
    };
    let fits = match open.redirector.as_str() {
        "tcp" => all(Transport::Tcp) && !open.any_target,
        "udp" => all(Transport::Udp) && !open.any_target,
        "socks" => open.any_target,
        name => match BUILTIN_REDIRECTORS.iter().find(|known| known.name == name) {
            Some(known) => !open.any_target && is_builtin(known.port, &targets),
            None => {
                return refuse(failure::NO_SUCH_REDIRECTOR, "there is no such redirector");
            }
        },
    };
    if fits {
        Ok(())
    } else {
        refuse(failure::BAD_REQUEST, "the targets do not fit the redirector")
    }
}

/// A built-in redirector leads to its own port on the computer's loopback address.
fn is_builtin(port: u16, targets: &[Target]) -> bool {
    match targets {
        [target] => {
            target.port() == port
                && target.transport() == Transport::Tcp
                && target.ip().is_some_and(|ip| ip.is_loopback())
        }
        _ => false,
    }
}

/// The targets that are well-formed, and whether all are in canonical form.
pub(super) fn targets(told: &[wire::Target]) -> (Vec<Target>, bool) {
    let mut good = Vec::new();
    let mut all = true;
    for told in told.iter().take(MAX_TARGETS_PER_GRANT) {
        match Target::from_wire(told) {
            Ok(target) if target.host() == told.host => good.push(target),
            _ => all = false,
        }
    }
    (good, all)
}

fn bounded(text: &str, max: usize) -> String {
    let end = text.floor_char_boundary(max);
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(redirector: &str, targets: &[(&str, u32, u32)], any: bool) -> wire::Open {
        wire::Open {
            session_id: vec![1; 16].into(),
            computer_id: vec![2; 16].into(),
            redirector: redirector.into(),
            targets: targets
                .iter()
                .map(|(host, port, protocol)| wire::Target {
                    host: (*host).into(),
                    port: *port,
                    protocol: *protocol,
                })
                .collect(),
            any_target: any,
            noise_msg1: vec![0; 200].into(),
            ..wire::Open::default()
        }
    }

    #[test]
    fn targets_must_fit_the_redirector_and_be_canonical() {
        let local = [("127.0.0.1", 22, 6)];
        for (wish, good) in [
            (wish("ssh", &local, false), true),
            (wish("ssh", &[("::1", 22, 6)], false), true),
            (wish("ssh", &[("10.0.0.1", 22, 6)], false), false),
            (wish("ssh", &[("127.0.0.1", 23, 6)], false), false),
            (wish("ssh", &local, true), false),
            (wish("ssh", &[], false), false),
            (wish("ssh", &[local[0], local[0]], false), false),
            (wish("tcp", &[("db.lab.example", 5432, 6)], false), true),
            (wish("tcp", &[("DB.lab.example", 5432, 6)], false), false),
            (wish("tcp", &[("::ffff:127.0.0.1", 5432, 6)], false), false),
            (wish("tcp", &[("a", 53, 17)], false), false),
            (wish("udp", &[("a", 53, 17)], false), true),
            (wish("socks", &[], true), true),
            (wish("socks", &[], false), false),
            (wish("telnet", &local, false), false),
        ] {
            assert_eq!(checked(&wish).is_ok(), good, "{wish:?}");
        }
    }
}
