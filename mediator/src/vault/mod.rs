//! Secrets at rest.
//!
//! - [`wrap`]: envelopes under keys that are not in the database
//!
//! Must never write a secret in the clear, nor a wrapping key into the database.

pub(crate) mod wrap;
