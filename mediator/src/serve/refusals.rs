//! What consoles tell of their own refusals: every field checked, the computer looked up within
//! the technician's partner only, the broker told.

use adit_protocol::{
    code::failure,
    ids::{ComputerId, SessionId},
    limits::{MAX_TARGETS_PER_GRANT, MAX_TEXT},
    wire,
};

use super::{
    agent,
    connection::Line,
    open::{self, MAX_NAME},
};
use crate::{
    core::refusals::ConsoleRefusal,
    store::{accounts::LoginRow, computers},
};

/// Bytes of a code.
const MAX_CODE: usize = 64;

/// Records a refusal; the answer comes when the record is durable.
pub(super) async fn refused(
    line: &Line,
    login: &LoginRow,
    told: wire::ConsoleRefusal,
    responder: adit_control::Responder,
) {
    let fail = |text: &str| adit_control::failure(failure::BAD_REQUEST, text);
    let session = match told.session_id.is_empty() {
        true => None,
        false => match SessionId::from_slice(&told.session_id) {
            Ok(session) => Some(session),
            Err(_) => return responder.fail(fail("a session id has 16 bytes")),
        },
    };
    let computer_id = match told.computer_id.is_empty() {
        true => None,
        false => match ComputerId::from_slice(&told.computer_id) {
            Ok(id) => Some(id),
            Err(_) => return responder.fail(fail("a computer id has 16 bytes")),
        },
    };
    if let Err(text) = check(&told) {
        return responder.fail(fail(text));
    }
    let place = match computer_id {
        None => None,
        Some(id) => {
            let pool = &line.shared.store.readers;
            match computers::of_partner(pool, &login.account.partner_id, id).await {
                Ok(found) => found.map(open::place_of),
                Err(error) => {
                    tracing::error!(%error, "cannot read computers");
                    let text = "computers cannot be read";
                    return responder.fail(adit_control::failure(failure::INTERNAL, text));
                }
            }
        }
    };
    let Some((room, responder)) = agent::room(&line.shared, 1, responder).await else { return };
    let (who, connection) = (open::who(line, login), line.id);
    let (targets, _) = open::targets(&told.targets);
    let act = move |driver: &mut super::driver::Driver, _| {
        let told = ConsoleRefusal {
            request: driver.routine(responder, room),
            connection,
            who,
            session,
            place,
            computer_id: computer_id.map(|id| id.to_string()).unwrap_or_default(),
            computer: told.computer,
            redirector: told.redirector,
            code: told.code,
            targets,
            any_target: told.any_target,
        };
        driver.broker.handle_console_refusal(&told);
    };
    line.shared.broker.act(act).await;
}

fn check(told: &wire::ConsoleRefusal) -> Result<(), &'static str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    if told.code.is_empty() || told.code.len() > MAX_CODE || !told.code.bytes().all(plain) {
        return Err("a code is 1 to 64 of a to z and underscore");
    }
    if told.computer.len() > MAX_TEXT || told.redirector.len() > MAX_NAME {
        return Err("computer or redirector is too long");
    }
    if told.targets.len() > MAX_TARGETS_PER_GRANT || !open::targets(&told.targets).1 {
        return Err("a target is not HOST:PORT, or there are too many");
    }
    Ok(())
}
