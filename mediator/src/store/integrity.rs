//! Whether the database file is whole, and what an error of the database means.

use std::time::Duration;

use sqlx::{AnyConnection, Row};

use super::{Store, StoreError};

/// How long a start waits for the check; it goes on beside the running server. A file of 600 MB
/// takes 0.7 s from memory and 12 s from a slow disk.
pub(crate) const CHECK_WAIT: Duration = Duration::from_secs(5);

/// SQLite's codes of a damaged file (result codes 11 and 26; extended ones in the upper bytes).
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_NOTADB: i32 = 26;

impl Store {
    /// Reads every page of the database: the trees of tables and indexes must be whole. What the
    /// entries of the audit log say is for `audit verify`.
    pub(crate) async fn check_integrity(&self) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        if AnyConnection::backend_name(&connection) != "SQLite" {
            return Ok(());
        }
        let row = sqlx::query("PRAGMA quick_check(1)").fetch_one(&mut connection).await?;
        let told: String = row.try_get(0)?;
        match told.as_str() {
            "ok" => Ok(()),
            fault => Err(StoreError::Corrupt(fault.lines().collect::<Vec<_>>().join(" "))),
        }
    }
}

impl StoreError {
    /// Whether the file is damaged, or holds what this program did not write.
    pub(crate) fn is_corruption(&self) -> bool {
        match self {
            Self::Corrupt(_) => true,
            Self::Database(error) => is_corruption(error),
            Self::Migration(sqlx::migrate::MigrateError::Execute(error)) => is_corruption(error),
            Self::Migration(sqlx::migrate::MigrateError::ExecuteMigration(error, _)) => {
                is_corruption(error)
            }
            _ => false,
        }
    }
}

fn is_corruption(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) => true,
        sqlx::Error::Database(error) => error
            .code()
            .and_then(|code| code.parse::<i32>().ok())
            .is_some_and(|code| [SQLITE_CORRUPT, SQLITE_NOTADB].contains(&(code & 0xff))),
        _ => false,
    }
}
