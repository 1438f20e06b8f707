//! A console asks for the credential that its session's viewer is to use.

use adit_control::{Responder, failure as fail};
use adit_protocol::{
    code::failure,
    ids::SessionId,
    wire::{self, frame::Body},
};

use super::{connection::Line, console, mfa, requests};
use crate::{
    authz::Spot,
    core::types::Refusal,
    store::accounts::LoginRow,
    vault::{Asker, VaultError, launch::For},
};

/// Bytes of a credential's name that are looked at.
const MAX_NAME: usize = 256;

/// Answers `UseCredential`.
pub(super) async fn use_in_session(
    line: &Line,
    row: &LoginRow,
    wish: wire::UseCredential,
    responder: Responder,
) {
    match find(line, row, &wish).await {
        Ok(usable) => responder.reply(Body::UsableCredential(usable)),
        Err(error) => {
            let refusal = error.refusal();
            responder.fail(fail(refusal.code, refusal.message));
        }
    }
}

async fn find(
    line: &Line,
    row: &LoginRow,
    wish: &wire::UseCredential,
) -> Result<wire::UsableCredential, VaultError> {
    let no_session = || Refusal::new(failure::NO_SUCH_SESSION, "there is no such session of yours");
    let session = SessionId::from_slice(&wish.session_id).map_err(|_| no_session())?;
    if wish.name.len() > MAX_NAME {
        let text = "the credential's name is too long";
        return Err(Refusal::new(failure::BAD_REQUEST, text).into());
    }
    let of = of_session(line, row, session).await.ok_or_else(no_session)?;
    let mut asker = Asker {
        actor: requests::actor(line, row),
        holder: Some(console::holder(line, row).await?),
        facts: mfa::facts(line, row),
        mfa: Some(row.proof.mfa.clone()),
        reason: None,
        ticket: None,
    };
    // As the session was asked for.
    asker.give(of.reason.clone(), of.ticket.clone());
    let usable = line.shared.vault.use_in(&asker, &of, &wish.name).await?;
    // It may have ended while the record was written.
    of_session(line, row, session).await.ok_or_else(no_session)?;
    Ok(usable)
}

/// The session, if it is open and this connection holds it for this login.
async fn of_session(line: &Line, row: &LoginRow, session: SessionId) -> Option<For> {
    let (id, login, console) = (line.id, row.id, line.identity);
    let given = |text: &str| (!text.trim().is_empty()).then(|| text.to_owned());
    let found = line.shared.broker.ask(move |driver, _| {
        let broker = &driver.broker;
        let noise = broker.console_noise(id)?;
        let open = broker.open_session(session).filter(|_| broker.speaks_for(id, session))?;
        (open.who.login == login).then(|| For {
            session,
            spot: Spot::of_place(&open.who.partner_id, &open.place),
            computer: open.place.computer.clone(),
            target: open.first_target(),
            viewer: open.viewer.clone(),
            redirector: open.redirector.clone(),
            reason: given(&open.reason),
            ticket: given(&open.ticket),
            console,
            noise,
        })
    });
    found.await.flatten()
}
