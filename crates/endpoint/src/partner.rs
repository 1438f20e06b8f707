//! Whose log this end believes: the partner that its computer was enrolled for, or its user
//! belongs to. A mediator that was taken over may keep another, perfectly valid log under a partner
//! of its own making; who grants and proves by that one is refused.
//!
//! Must never be changed by a mediator once it is known.

use std::sync::{Mutex, PoisonError};

use adit_protocol::{grant::Grant, keys::Fingerprint, limits::MAX_TEXT, ticket::Role};

use crate::{Doubt, Endpoint};

/// The partner's id, once it is known.
#[derive(Debug, Default)]
pub(crate) struct Partner(Mutex<Option<String>>);

impl Partner {
    /// As the program remembers it.
    pub(crate) fn new(known: Option<String>) -> Self {
        Self(Mutex::new(known.filter(|id| !id.is_empty())))
    }

    fn known(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Known from now on, unless another one is.
    pub(crate) fn adopt(&self, tenant: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| tenant.to_owned());
    }
}

impl Endpoint {
    /// The partner whose log is believed, once it is known: for the program to remember.
    pub fn partner(&self) -> Option<String> {
        self.partner.known()
    }

    /// No other partner's log is believed than this end's own.
    pub(crate) fn require_own(&self, tenant: &str) -> Result<(), Doubt> {
        match self.partner.known() {
            Some(own) if own != tenant => Err(foreign(own, tenant)),
            _ => Ok(()),
        }
    }

    /// Before the first session of an agent that was enrolled by a program that did not remember:
    /// the log that it has seen is its partner's; else its enrolment must be in the one shown.
    pub(crate) async fn adopt_partner(
        &self,
        root: Fingerprint,
        grant: &Grant,
    ) -> Result<(), Doubt> {
        if self.role != Role::Agent || self.partner.known().is_some() {
            return Ok(());
        }
        match self.witness.partners(root).as_slice() {
            [own] if *own == grant.tenant => Ok(()),
            [own] => Err(foreign(own.clone(), &grant.tenant)),
            _ => {
                let own = self.identity.signing.public();
                self.check_enrolment(&grant.tenant, grant.computer, own).await.map(|_| ())
            }
        }
    }
}

fn foreign(own: String, shown: &str) -> Doubt {
    Doubt::Foreign { own, shown: shown.chars().take(MAX_TEXT / 4).collect() }
}
