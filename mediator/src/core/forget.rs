//! What the broker must not keep: sessions of a tenant that is erased. Late reports of them name
//! a session that is not there, and are recorded nowhere.

use adit_protocol::ids::{ComputerId, SessionId};

use super::{broker::Broker, session::Session};

impl Broker {
    /// Forgets the sessions on computers of these clients, and of a partner's users; how many
    /// cannot be forgotten yet, since they are not over or their end is not durable. While
    /// `patient`, those count too of whose end somebody does not know.
    pub(crate) fn forget_tenant(
        &mut self,
        clients: &[String],
        partner: Option<&str>,
        patient: bool,
    ) -> usize {
        let concerned = self.sessions.values().filter(|session| {
            clients.contains(&session.place.client_id)
                || partner == Some(session.who.partner_id.as_str())
        });
        let (mut over, mut left): (Vec<SessionId>, usize) = (Vec::new(), 0);
        for session in concerned {
            let revocation = &session.revocation;
            let told = !patient || !revocation.is_pending();
            if session.is_ended() && !revocation.unrecorded && told {
                over.push(session.id);
            } else {
                left += 1;
            }
        }
        over.into_iter().for_each(|id| self.forget(id));
        left
    }

    /// Sessions with a computer that are not over, whose end is not durable, or of whose end
    /// somebody does not know.
    pub(crate) fn untold_of(&self, computer: ComputerId) -> usize {
        let of_it = |session: &&Session| session.place.computer_id == computer;
        let untold = |session: &&Session| {
            let revocation = &session.revocation;
            !session.is_ended() || revocation.unrecorded || revocation.is_pending()
        };
        self.sessions.values().filter(of_it).filter(untold).count()
    }
}
