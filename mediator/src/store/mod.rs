//! The database: SQLite for one mediator, written so that PostgreSQL can follow.
//!
//! Statements go through `sqlx::Any` with `$1` placeholders and four column types, so that one
//! set of texts serves both databases; the price is that they are not checked when compiling
//! (tests run every one). Reads use a pool. All writes go through one task that commits many
//! waiting ones together ([`writer`]): that is what makes durable audit affordable.
//!
//! Must never run with less than `synchronous=FULL`: at a power cut, `NORMAL` loses
//! acknowledged audit entries.

pub(crate) mod access;
pub(crate) mod accounts;
pub(crate) mod api;
pub(crate) mod audit;
pub(crate) mod compact;
pub(crate) mod computers;
pub(crate) mod credentials;
pub(crate) mod devices;
pub(crate) mod erasures;
pub(crate) mod factors;
pub(crate) mod integrity;
pub(crate) mod locks;
pub(crate) mod oidc;
pub(crate) mod relays;
pub(crate) mod sessions;
pub(crate) mod tenants;
pub(crate) mod tokens;
pub(crate) mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::{path::Path, sync::Arc, time::Duration};

use sqlx::{AnyConnection, AnyPool, Connection, Row, any::AnyPoolOptions, any::AnyRow};
use tokio::sync::Semaphore;

pub(crate) use audit::LogSigner;
pub(crate) use writer::{Room, WriteTx, Writer};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Connections that read at the same time.
const READERS: u32 = 4;

/// Longest wait for a reading connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database failed.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema cannot be brought up to date.
    #[error("database schema: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// Something in the database is not what this program wrote.
    #[error("database holds something unexpected: {0}")]
    Corrupt(String),
    /// The path cannot be given to the database.
    #[error("path of the data directory is not UTF-8")]
    Path,
    /// Writing does not work (for now), or too much waits.
    #[error("the database does not take writes: {0}")]
    Unavailable(String),
    /// The name is taken.
    #[error("{0} is taken")]
    Taken(&'static str),
    /// No such thing.
    #[error("there is no such {0}")]
    Missing(&'static str),
    /// Nobody of a partner would have this permission any more, whatever the circumstances.
    #[error("nobody would always have {0} any more")]
    LastManager(&'static str),
    /// No randomness.
    #[error("the system gives no randomness")]
    Random,
}

/// How the database may be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Make it if it is not there.
    Create,
    /// It must be there.
    Write,
    /// Beside a running server.
    Read,
}

/// An open database.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) readers: AnyPool,
    url: String,
    /// The one rewrite of the file that may run.
    compacting: Arc<Semaphore>,
}

impl Store {
    /// Opens the database file; with [`Mode::Create`] and [`Mode::Write`] brings the schema up
    /// to date.
    pub(crate) async fn open(file: &Path, mode: Mode) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let url = sqlite_url(file, mode)?;
        if mode == Mode::Create {
            private_file(file).map_err(|error| StoreError::Database(error.into()))?;
        }
        // First alone: a pool would try again and again what cannot work.
        let mut connection = connect(&url).await?;
        if mode != Mode::Read {
            MIGRATIONS.run(&mut connection).await?;
        }
        connection.close().await?;
        let readers = AnyPoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A file does not go away: nothing to ask before each use.
            .test_before_acquire(false)
            .after_connect(|connection, _| Box::pin(prepare(connection)))
            .connect(&url)
            .await?;
        Ok(Self { readers, url, compacting: Arc::new(Semaphore::new(1)) })
    }

    /// A connection of one's own, for the writer.
    pub(crate) async fn connect(&self) -> Result<AnyConnection, StoreError> {
        Ok(connect(&self.url).await?)
    }

    /// Writes a consistent copy to a new file. On a connection of its own: it takes long, and runs
    /// on where nobody waits for it any more, while everybody else needs those that read.
    pub(crate) async fn copy_to(&self, file: &Path) -> Result<(), StoreError> {
        let file = file.to_str().ok_or(StoreError::Path)?;
        let mut connection = self.connect().await?;
        sqlx::query("VACUUM INTO $1").bind(file).execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    /// Ends all reading connections.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
    }
}

async fn connect(url: &str) -> Result<AnyConnection, sqlx::Error> {
    let mut connection = AnyConnection::connect(url).await?;
    prepare(&mut connection).await?;
    Ok(connection)
}

async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    if connection.backend_name() != "SQLite" {
        return Ok(());
    }
    for pragma in [
        "PRAGMA busy_timeout=5000",
        "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=FULL",
        "PRAGMA foreign_keys=ON",
        "PRAGMA trusted_schema=OFF",
        // Deleted personal data must not linger in free pages.
        "PRAGMA secure_delete=ON",
    ] {
        sqlx::query(pragma).execute(&mut *connection).await?;
    }
    Ok(())
}

/// An empty file that only its owner can read; the database's other files follow its mode.
pub(crate) fn private_file(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)?.sync_all()
}

/// `sqlite:` URL of a file; everything but plain characters is percent-encoded.
fn sqlite_url(file: &Path, mode: Mode) -> Result<String, StoreError> {
    let path = file.to_str().ok_or(StoreError::Path)?;
    let mut url = String::from("sqlite://");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.') {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url.push_str(match mode {
        Mode::Create => "?mode=rwc",
        // A reader beside a running server still writes the shared-memory file of the WAL.
        Mode::Write | Mode::Read => "?mode=rw",
    });
    Ok(url)
}

/// Columns by name, with errors that name them.
pub(crate) trait Columns {
    /// A text.
    fn text(&self, column: &str) -> Result<String, StoreError>;
    /// A text that may be missing.
    fn opt_text(&self, column: &str) -> Result<Option<String>, StoreError>;
    /// Bytes.
    fn blob(&self, column: &str) -> Result<Vec<u8>, StoreError>;
    /// A number that is never negative.
    fn number(&self, column: &str) -> Result<u64, StoreError>;
    /// A yes or no.
    fn flag(&self, column: &str) -> Result<bool, StoreError>;
    /// A text that is parsed.
    fn parsed<T: std::str::FromStr>(&self, column: &str) -> Result<T, StoreError>;
}

impl Columns for AnyRow {
    fn text(&self, column: &str) -> Result<String, StoreError> {
        Ok(self.try_get(column)?)
    }
    fn opt_text(&self, column: &str) -> Result<Option<String>, StoreError> {
        Ok(self.try_get(column)?)
    }
    fn blob(&self, column: &str) -> Result<Vec<u8>, StoreError> {
        Ok(self.try_get(column)?)
    }
    fn number(&self, column: &str) -> Result<u64, StoreError> {
        let number: i64 = self.try_get(column)?;
        u64::try_from(number).map_err(|_| StoreError::Corrupt(format!("{column} is negative")))
    }
    fn flag(&self, column: &str) -> Result<bool, StoreError> {
        Ok(self.number(column)? != 0)
    }
    fn parsed<T: std::str::FromStr>(&self, column: &str) -> Result<T, StoreError> {
        self.text(column)?
            .parse()
            .map_err(|_| StoreError::Corrupt(format!("{column} cannot be read")))
    }
}

/// For a BIGINT column.
pub(crate) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A fresh id as text.
pub(crate) fn fresh_id() -> Result<String, StoreError> {
    let bytes = adit_protocol::keys::random().map_err(|_| StoreError::Random)?;
    Ok(adit_protocol::ids::ComputerId(bytes).to_string())
}

/// Escapes a search text for `LIKE … ESCAPE '\'`.
pub(crate) fn like_contains(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.to_lowercase().chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}
