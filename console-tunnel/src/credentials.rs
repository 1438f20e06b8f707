//! The credential that a session's viewer is to use: asked for within the session, opened with
//! this console's own key, handed to the viewer and never shown.

use std::time::Duration;

use adit_control::Peer;
use adit_net::identity::DeviceIdentity;
use adit_protocol::{
    code::failure as codes,
    ids::SessionId,
    sealed::{self, CredentialContext},
    wire::{self, frame::Body},
};
use adit_runtime::cli::CliError;
use zeroize::Zeroizing;

use crate::{
    failure, link,
    viewer::{UserName, credential::Usable},
};

/// Time for the mediator to find one that nobody named: a viewer waits for it.
const UNNAMED_TIMEOUT: Duration = Duration::from_secs(3);

/// The credential of this name; without a name the one that is used by itself, if there is one.
pub async fn fetch(
    peer: &Peer,
    identity: &DeviceIdentity,
    session: SessionId,
    name: Option<&str>,
) -> Result<Option<Usable>, CliError> {
    let wish = wire::UseCredential {
        session_id: session.to_bytes(),
        name: name.unwrap_or_default().to_owned(),
    };
    let asked = link::ask(peer, Body::UseCredential(wish));
    let answer = match name {
        Some(_) => asked.await?,
        None => match tokio::time::timeout(UNNAMED_TIMEOUT, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.code == codes::NO_SUCH_CREDENTIAL => return Ok(None),
            // A mediator that does not know the question, or cannot answer it now: the viewer
            // asks the person, as it would have without us.
            Ok(Err(error)) => {
                tracing::debug!(%error, "no credential");
                return Ok(None);
            }
            Err(_) => return Ok(None),
        },
    };
    let Body::UsableCredential(told) = answer else { return Err(failure::unexpected()) };
    open(identity, session, &told).map(Some)
}

fn open(
    identity: &DeviceIdentity,
    session: SessionId,
    told: &wire::UsableCredential,
) -> Result<Usable, CliError> {
    let unusable = |text: &str| {
        CliError::failed("credential_unusable", format!("the stored credential {text}"))
            .hint("ask who manages the client's credentials")
    };
    let context = CredentialContext {
        session,
        console: identity.signing.public(),
        credential: &told.credential_id,
    };
    let bytes = sealed::open(&identity.noise.private, &context, &told.sealed)
        .map_err(|_| unusable("is not for this console and session"))?;
    let secret = std::str::from_utf8(&bytes)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| unusable("is no text"))?;
    let user: Option<UserName> = match told.user.as_str() {
        "" => None,
        user => Some(user.parse().map_err(|_| unusable("has a user name that no viewer takes"))?),
    };
    Ok(Usable { user, kind: told.kind.clone(), secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_of_another_session_or_with_a_hostile_user_is_not_used() {
        let me = DeviceIdentity::generate(1).unwrap();
        let session = SessionId([4; 16]);
        let told = |user: &str| {
            let context =
                CredentialContext { session, console: me.signing.public(), credential: "c" };
            wire::UsableCredential {
                credential_id: "c".into(),
                kind: "password".into(),
                user: user.into(),
                sealed: sealed::seal(&me.noise.public, &context, b"hunter2").unwrap().into(),
                ..Default::default()
            }
        };
        let usable = open(&me, session, &told("ann")).unwrap();
        assert_eq!(usable.secret.as_str(), "hunter2");
        assert!(!format!("{usable:?}").contains("hunter2"));
        for (session, user) in [(SessionId([5; 16]), "ann"), (session, "-oProxyCommand=x")] {
            let error = open(&me, session, &told(user)).unwrap_err();
            assert_eq!(error.code, "credential_unusable");
            assert!(!error.to_string().contains("hunter2"));
        }
    }
}
