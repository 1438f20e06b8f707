//! The last who could undo what others did: over the network nobody takes that one away.
//!
//! One rule for every act that may end who manages users and roles: disabling, unbinding, deleting
//! and changing roles, taking out of a group. It is asked within the transaction, before and after
//! the act, of what the database then holds; so no two acts at once get past it. On the mediator's
//! machine all of it can be done. Whoever may only from some network, at some hours or with somebody
//! else's word may be kept out for ever, by a mistake in the condition too: such a one is not enough
//! where there was one who always may, and counts where there was no better.

use adit_protocol::code::failure;
use adit_runtime::cli::CliError;

use super::{actor::Actor, handle::Who};
use crate::{
    place::store_error,
    roles::Permission,
    store::{
        StoreError, WriteTx,
        access::bindings::{self, Held as Holds},
    },
};

/// What disabling somebody must leave: whoever manages users can enable again.
pub(super) const USERS: &[Permission] = &[Permission::ManageUsers];
/// What taking rights away must leave: giving them again takes both.
pub(super) const USERS_AND_ROLES: &[Permission] =
    &[Permission::ManageUsers, Permission::ManageRoles];

/// What somebody held on all of a partner before an act.
pub(super) struct Held {
    partner: String,
    permissions: Vec<(Permission, Holds)>,
}

impl Held {
    /// Looks before the act.
    pub(super) async fn before(
        tx: &mut WriteTx,
        by: &Actor,
        partner: &str,
        permissions: &[Permission],
    ) -> Result<Self, StoreError> {
        let mut held = Self { partner: partner.to_owned(), permissions: Vec::new() };
        if by.remote().is_some() {
            for permission in permissions {
                let holds = bindings::anybody_with(tx, partner, *permission).await?;
                held.permissions.push((*permission, holds));
            }
        }
        Ok(held)
    }

    /// Fails, and the act with it, if it is held less surely than before.
    pub(super) async fn after(self, tx: &mut WriteTx) -> Result<(), StoreError> {
        for (permission, before) in self.permissions {
            if bindings::anybody_with(tx, &self.partner, permission).await? < before {
                return Err(StoreError::LastManager(permission.name()));
            }
        }
        Ok(())
    }
}

/// How it is told why an act was not done, this refusal recorded.
pub(super) async fn told((context, actor): Who<'_>, error: StoreError) -> CliError {
    let StoreError::LastManager(_) = error else { return store_error(error) };
    let text = format!("{error}: only the mediator's machine could undo it");
    let refused =
        actor.refuse_as(context, ("last-administrator", failure::LAST_MANAGER), text).await;
    let hint = "give somebody else a role with that permission on the whole partner first, without \
                an end, networks, hours or approval; or do it on the mediator's machine: mediator user disable, mediator role …";
    refused.map_or_else(|error| error, |refused| refused.hint(hint))
}
