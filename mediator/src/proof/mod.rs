//! Proof for those who do not trust this mediator: that an entry is in the log, that the log only
//! grew, that an agent's key was enrolled, and the two ends' receipts of what they did.
//!
//! Everything here can be computed by whoever has the log; nothing here is believed by the ends
//! without checking it. Must never hold up the writer.

mod evidence;
pub(crate) mod forest;
pub(crate) mod receipts;
mod room;
pub(crate) mod sweep;

#[cfg(test)]
mod tests;

pub(crate) use evidence::{keep_enrolment, seen_head};
pub(crate) use forest::{Forest, Grove};
pub(crate) use receipts::granted;
pub(crate) use room::Room;
