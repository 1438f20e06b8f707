//! What is done with the audit log once it is written: search, levels, retention, forwarding.
//!
//! - [`keys`]: what entries are found by
//! - [`search`]: pages of entries, newest first, in bounded time, within what a person may read
//!
//! Must never change a leaf: the tree is the store's, and only grows.

pub(crate) mod keys;
pub(crate) mod search;
