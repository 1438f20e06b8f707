//! Files that are taken for an export and are something else: which, by their first line, and what
//! to do with them instead.
//!
//! Must never call a file good: what it says of a file that does not verify is all it says.

use std::fmt;

use crate::head;

/// What was given instead of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherFile {
    /// Nothing at all.
    Empty,
    /// What the ends of sessions signed.
    Receipts,
    /// Signed heads without entries.
    Heads,
    /// What the mediator signed of an erasure.
    Certificate,
    /// An export in a format for other programs, by its name.
    Format(&'static str),
    /// A backup of the database.
    Backup,
    /// What nothing here writes.
    Unknown,
}

impl OtherFile {
    /// Beginnings of first lines.
    const BEGINNINGS: [(&'static [u8], Self); 9] = [
        (RECEIPT, Self::Receipts),
        (head::BEGINS, Self::Heads),
        (b"{\"destruction\":", Self::Certificate),
        (b"seq,time,", Self::Format("csv")),
        (b"\"seq\",\"time\",", Self::Format("csv")),
        (b"CEF:", Self::Format("cef")),
        (b"{\"category_uid\":", Self::Format("ocsf")),
        (b"SQLite format 3\0", Self::Backup),
        (b"age-encryption.org/v1", Self::Backup),
    ];

    pub(crate) fn of(first_line: &[u8]) -> Self {
        let known = Self::BEGINNINGS.iter().find(|(begins, _)| first_line.starts_with(begins));
        known.map_or(Self::Unknown, |(_, other)| *other)
    }

    /// What to do with it.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Receipts => {
                "give it with --receipts, beside the export of the log that it is compared with"
            }
            Self::Heads => {
                "give it with --head, beside the export that is compared with it. If this should be \
                 the export, its entries were cut off"
            }
            Self::Certificate => "mediator certificate verify checks it",
            Self::Format(_) => {
                "that format is for other programs and cannot be verified: audit export writes \
                 jsonl, which can"
            }
            Self::Backup => {
                "verify an export of the log; mediator restore puts a backup in place and checks it"
            }
            Self::Empty | Self::Unknown => {
                "give the file that audit export wrote, in its format jsonl; csv, cef and ocsf \
                 cannot be verified. If this should be one, it was replaced"
            }
        }
    }
}

impl fmt::Display for OtherFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Receipts => f.write_str("it holds receipts of sessions"),
            Self::Heads => f.write_str("it holds signed heads and no entries"),
            Self::Certificate => f.write_str("it is a certificate of destruction"),
            Self::Format(name) => write!(f, "it is in the format {name}"),
            Self::Backup => f.write_str("it is a backup of the mediator"),
            Self::Unknown => f.write_str("no line of it is an entry or a signed head"),
        }
    }
}

/// How each receipt begins.
pub(crate) const RECEIPT: &[u8] = b"{\"v\":1,\"receipt\":";
