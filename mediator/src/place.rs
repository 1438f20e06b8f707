//! A mediator's data directory as a whole: configuration, keys, database.

use adit_ledger::SignedHead;
use adit_runtime::{
    cli::{CliError, GlobalArgs},
    config::{Config, Sources},
    datadir::DataDir,
    time::unix_ms,
};
use serde::{Deserialize, Serialize};

use crate::{
    config::{KEYS, PROGRAM, Settings},
    installation::{Installation, ROOT_KEY},
    store::{Mode, Store, StoreError, audit},
    vault::wrap::{WRAPPING_KEYS, WrappingKeys},
};

/// The database.
pub(crate) const DATABASE: &str = "mediator.db";
/// Begin of the names under which `restore` works on a backup.
pub(crate) const STAGED: &str = "restore.db";
/// There while `init` is under way.
pub(crate) const INIT_MARK: &str = "init.incomplete";
/// Ports that were bound last.
const PORTS: &str = "ports.json";

/// Ports in use, for port 0 in the configuration.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) port: u16,
    pub(crate) stun_port: u16,
}

/// An initialised data directory.
pub(crate) struct MediatorDir {
    pub(crate) dir: DataDir,
    pub(crate) settings: Settings,
}

impl MediatorDir {
    /// Opens what `init` made.
    pub(crate) fn open(global: &GlobalArgs) -> Result<Self, CliError> {
        let dir = DataDir::open_existing(global.data_dir(&PROGRAM)?)?;
        if dir.has(INIT_MARK) || !dir.has(ROOT_KEY) {
            let text = format!("{} holds no mediator", dir.path().display());
            return Err(CliError::not_there("not_initialised", text)
                .hint("run mediator init, or give the right --data-dir"));
        }
        let sources = Sources::new(global.config.as_deref(), dir.path()).flag(
            "log.level",
            "--log-level",
            global.log_level.as_deref(),
        );
        let config = Config::load(&PROGRAM, KEYS, &sources)?;
        Ok(Self { settings: Settings::of(&config)?, dir })
    }

    /// Keys and certificates.
    pub(crate) fn installation(&self) -> Result<Installation, CliError> {
        Installation::load(&self.dir, &self.settings.hosts, unix_ms())
    }

    /// Keys over stored secrets. `init` made them: where there are none any more, none are made,
    /// lest a copy of useless ones takes the place of the last good ones in somebody's backup.
    pub(crate) fn wrapping_keys(&self) -> Result<WrappingKeys, CliError> {
        let configured = self.settings.wrapping_key.as_ref().map(|key| key.as_str());
        if configured.is_none() && !self.dir.has(WRAPPING_KEYS) {
            return Err(no_wrapping_keys(&format!("{WRAPPING_KEYS} is gone")));
        }
        WrappingKeys::load(&self.dir, configured)
    }

    /// The database.
    pub(crate) async fn store(&self, mode: Mode) -> Result<Store, CliError> {
        let file = self.dir.file(DATABASE)?;
        if !file.exists() {
            return Err(CliError::failed("file_missing", format!("{} is gone", file.display()))
                .hint("put a backup in its place with mediator restore"));
        }
        Store::open(&file, mode).await.map_err(store_error)
    }

    /// Removes a backup that `restore` was working on when it was killed: it holds what was erased.
    pub(crate) fn remove_staged(&self) -> Result<(), CliError> {
        for end in ["", ".part", "-journal", "-wal", "-shm"] {
            let path = self.dir.file(&format!("{STAGED}{end}"))?;
            if path.exists() {
                std::fs::remove_file(&path).map_err(|error| {
                    CliError::failed("restore_failed", format!("{}: {error}", path.display()))
                })?;
            }
        }
        Ok(())
    }

    /// Ports that were bound last.
    pub(crate) fn last_ports(&self) -> Option<Ports> {
        let bytes = self.dir.read(PORTS, 1024).ok().flatten()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Notes the bound ports.
    pub(crate) fn note_ports(&self, ports: Ports) -> Result<(), CliError> {
        let text = serde_json::to_vec(&ports)
            .map_err(|error| CliError::failed("internal", error.to_string()))?;
        self.dir.write_atomic(PORTS, &text, 0o600)
    }

    /// The port that tokens name.
    pub(crate) fn public_port(&self) -> Result<u16, CliError> {
        match self.settings.port {
            0 => self.last_ports().map(|ports| ports.port).ok_or_else(|| {
                CliError::failed("port_unknown", "the port is chosen when the mediator starts")
                    .hint("start mediator serve once, or set server.port")
            }),
            port => Ok(port),
        }
    }
}

/// Signed heads that were seen last, beside the database: a database that was put back to an
/// earlier state shows.
const HEADS: &str = "audit-heads.jsonl";
/// Bytes of that file.
const MAX_HEADS_BYTES: u64 = 64 * 1024 * 1024;

impl MediatorDir {
    /// The heads noted last.
    pub(crate) fn noted_heads(&self) -> Result<Vec<SignedHead>, CliError> {
        let Some(bytes) = self.dir.read(HEADS, MAX_HEADS_BYTES)? else { return Ok(Vec::new()) };
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                SignedHead::parse(line).map_err(|error| {
                    let text = format!("{HEADS} is damaged: {error}");
                    CliError::failed("database_corrupt", text)
                        .hint("remove it if you know why; the next start writes it anew")
                })
            })
            .collect()
    }

    /// Notes the heads of the logs that are added to.
    pub(crate) async fn note_heads(&self, store: &Store) -> Result<(), CliError> {
        let mut text = String::new();
        for (_, _, head) in audit::current(&store.readers).await.map_err(store_error)? {
            text.push_str(&head.to_line());
            text.push('\n');
        }
        self.dir.write_atomic(HEADS, text.as_bytes(), 0o600)
    }

    /// Before other trees take the place of these.
    pub(crate) fn forget_heads(&self) -> Result<(), CliError> {
        self.dir.write_atomic(HEADS, b"", 0o600)
    }

    /// Refuses a database whose logs do not go on from the heads noted last.
    pub(crate) async fn check_heads(&self, store: &Store) -> Result<(), CliError> {
        for head in self.noted_heads()? {
            if !audit::extends(&store.readers, &head).await.map_err(store_error)? {
                let text = format!(
                    "the audit log was put back or altered: it had {} entries and does not go on \
                     from them",
                    head.size
                );
                return Err(CliError::failed("audit_rolled_back", text).hint(format!(
                    "restore with mediator restore; or remove {HEADS} if you accept the loss"
                )));
            }
        }
        Ok(())
    }
}

/// Without them everybody with a second factor would be kept out.
pub(crate) fn no_wrapping_keys(what: &str) -> CliError {
    CliError::failed("wrapping_key_missing", what)
        .hint("put back wrapping.keys of this installation, or set ADIT_MEDIATOR_WRAPPING_KEY")
}

/// A store's failure in words for the administrator.
pub(crate) fn store_error(error: StoreError) -> CliError {
    let message = error.to_string();
    if error.is_corruption() {
        return CliError::failed("database_corrupt", format!("the database is damaged: {message}"))
            .hint("keep the file; see mediator audit verify, then restore a backup");
    }
    match error {
        StoreError::Taken(_) => CliError::failed("name_taken", message).hint("choose another"),
        StoreError::Missing(what) => {
            let error = CliError::not_there("not_found", message);
            match what {
                "client" | "user" | "computer" | "role" | "relay" => {
                    error.hint(format!("{what} list shows what there is"))
                }
                "disabled device" => error.hint("device list shows which are disabled"),
                _ => error,
            }
        }
        StoreError::Unavailable(_) => CliError::failed("audit_unavailable", message)
            .hint("check free space and the disk; nothing was changed"),
        _ => CliError::failed("database_failed", message)
            .hint("check owner, mode and free space of the data directory"),
    }
}
