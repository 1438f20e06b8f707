//! Partners: the roots of the tenant tree.

use adit_runtime::cli::CliError;
use serde_json::{Value, json};

use super::{
    handle::{Who, bad_name},
    users::{self, Hashed, hashed},
};
use crate::{
    config::MfaRule,
    names,
    place::store_error,
    roles::{
        Permission,
        role::{BUILTIN, OWNER},
    },
    store::{
        access::bindings::{self, Binding},
        accounts, tenants,
    },
};

/// Partners that this actor may know of.
pub(super) async fn list((context, actor): Who<'_>) -> Result<Vec<Value>, CliError> {
    let found = tenants::partners(&context.store.readers).await.map_err(store_error)?;
    let own = found.iter().filter(|partner| actor.reaches(&partner.id));
    Ok(own.map(|partner| json!({"partner": partner.name, "partner_id": partner.id})).collect())
}

/// Adds a partner and its owner. Whoever adds it reaches nothing of it.
pub(super) async fn add(
    (context, actor): Who<'_>,
    partner: String,
    owner: String,
) -> Result<Vec<Value>, CliError> {
    names::check(&partner).map_err(bad_name)?;
    names::check(&owner).map_err(bad_name)?;
    actor.may_everywhere(context, &[Permission::ManagePolicy]).await?;
    actor.must_be_fresh(context).await?;
    let beside = context.accounts.mfa >= MfaRule::Required;
    let Hashed { hash, short, generated } = hashed((&owner, &partner), None, beside).await?;
    let (name, user, by) = (partner.clone(), owner.clone(), actor.clone());
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            let partner = tenants::create_partner(tx, &name).await?;
            let added = by.event("partner.added", &partner.name);
            tx.append(&partner.id, added).await?;
            let id = accounts::insert(tx, &partner, &user, OWNER, &hash).await?;
            accounts::set_short_password(tx, &id, short).await?;
            let role = format!("{BUILTIN}{OWNER}");
            bindings::insert(tx, &Binding::on_partner(&partner.id, id, role)?).await?;
            let added = by
                .event("user.added", &partner.name)
                .extra("role", OWNER)
                .extra_personal("user", user);
            tx.append(&partner.id, added).await?;
            Ok(partner.id)
        })
    });
    let id = done.await.map_err(store_error)?;
    let mut told = json!({"partner": partner, "partner_id": id, "owner": owner});
    users::show_generated(&mut told, generated);
    Ok(vec![told])
}
