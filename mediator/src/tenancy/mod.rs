//! The end of a tenant: a client or a partner is erased, everywhere, provably.
//!
//! - [`erase`]: the steps, each of which can be interrupted and done again
//! - [`again`]: what was erased, or begun to be, in a backup that is put back
//! - [`ledger`]: ids of what was erased, beside the database, so that no restored backup brings
//!   it back
//! - [`turns`]: whose turn it is, so that nothing is erased by two
//! - [`certificate`]: the signed statement of what was destroyed, and its verification
//!
//! Order: noted in the database and beside it, live sessions ended, the tenant key destroyed (from
//! here on no backup opens the credentials), rows deleted, personal fields of the log deleted,
//! recorded, the database compacted, certified. Must never touch another tenant's rows, and never
//! certify what was not done.

pub(crate) mod again;
pub(crate) mod certificate;
pub(crate) mod erase;
pub(crate) mod ledger;
#[cfg(test)]
mod tests;
pub(crate) mod turns;
