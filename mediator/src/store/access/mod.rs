//! Roles, bindings, labels and requests on disk, and the lists that they filter.
//!
//! What holds now is what is not closed, whatever the clock says: a clock that was set back must
//! not bring back what was taken away. What held at a past time is judged by times.

pub(crate) mod bindings;
pub(crate) mod filter;
pub(crate) mod labels;
pub(crate) mod requests;
pub(crate) mod roles;

#[cfg(test)]
mod tests;

use super::{StoreError, bigint};

/// For which time something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// What holds now.
    Now,
    /// What held then, milliseconds since 1970.
    At(u64),
}

impl When {
    /// The condition on a row with `valid_from_ms` and `valid_to_ms`; `alias` ends with a dot
    /// or is empty. Numbers only: nothing that a person typed.
    fn valid(self, alias: &str) -> String {
        match self {
            Self::Now => format!("{alias}valid_to_ms IS NULL"),
            Self::At(ms) => {
                let at = bigint(ms);
                format!(
                    "{alias}valid_from_ms <= {at} \
                     AND ({alias}valid_to_ms IS NULL OR {alias}valid_to_ms > {at})"
                )
            }
        }
    }
}

fn corrupt(what: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("access rule: {what}"))
}
