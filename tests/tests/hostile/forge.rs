//! What somebody can do who owns the mediator: its database and its log key.

use std::{
    fs,
    path::{Path, PathBuf},
};

use adit_ledger::{Entry, Event, MerkleTree, SignedHead};
use adit_net::identity::DeviceIdentity;
use adit_protocol::keys::SigningKey;
use adit_tests::site::Site;
use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use serde_json::Value;
use sqlx::{Connection as _, Row as _, SqliteConnection};

/// Files of the database.
const FILES: [&str; 4] = ["mediator.db", "mediator.db-wal", "mediator.db-shm", "audit-heads.jsonl"];

pub(crate) struct Forger {
    data: PathBuf,
    runtime: tokio::runtime::Runtime,
}

struct Row {
    seq: i64,
    entry: Entry,
    salt: [u8; 16],
}

impl Forger {
    pub(crate) fn open(site: &Site) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { data: site.data_dir("mediator"), runtime })
    }

    /// Keeps only some entries, as if the others had never been.
    pub(crate) fn rewrite(&self, keep: impl Fn(&Event) -> bool) -> Result<()> {
        self.forge(|rows| rows.retain(|row| keep(row.entry.event())), |_| ())
    }

    /// Changes what entries say.
    pub(crate) fn alter(&self, change: impl Fn(&mut Event)) -> Result<()> {
        self.forge(|_| (), change)
    }

    fn forge(&self, select: impl Fn(&mut Vec<Row>), change: impl Fn(&mut Event)) -> Result<()> {
        let key = self.log_key()?;
        self.runtime.block_on(async {
            let mut db = self.database().await?;
            let trees = sqlx::query("SELECT id, head FROM audit_tree").fetch_all(&mut db).await?;
            for tree in trees {
                let (id, head): (String, String) = (tree.get("id"), tree.get("head"));
                let head = SignedHead::parse(head.as_bytes())?;
                let mut rows = read(&mut db, &id).await?;
                select(&mut rows);
                let mut merkle = MerkleTree::new();
                for (n, row) in (0_i64..).zip(&rows) {
                    let mut event = row.entry.event().clone();
                    change(&mut event);
                    let seq = u64::try_from(n)?;
                    let entry = Entry::seal(seq, row.entry.time_ms(), event, row.salt);
                    merkle.append(entry.leaf());
                    ensure!(row.seq >= n, "entries only move forward");
                    sqlx::query(
                        "UPDATE audit_entry SET line = $1, leaf = $2, event = $3, \
                         session_id = $4, time_ms = $5 WHERE tree = $6 AND seq = $7",
                    )
                    .bind(entry.to_line())
                    .bind(entry.leaf().0.to_vec())
                    .bind(entry.event().name.clone())
                    .bind(entry.event().session_id.clone())
                    .bind(i64::try_from(entry.time_ms())?)
                    .bind(&id)
                    .bind(n)
                    .execute(&mut db)
                    .await?;
                }
                let count = i64::try_from(merkle.size())?;
                for statement in [
                    "DELETE FROM audit_entry WHERE tree = $1 AND seq >= $2",
                    "DELETE FROM audit_node WHERE tree = $1 AND idx >= $2 - $2",
                ] {
                    sqlx::query(statement).bind(&id).bind(count).execute(&mut db).await?;
                }
                let cert = head.key_cert.clone();
                let (size, root, time) = (merkle.size(), merkle.root(), head.time_ms);
                let forged = SignedHead::sign(&key, &id, size, root, time, cert)?;
                sqlx::query("UPDATE audit_tree SET frontier = $1, head = $2 WHERE id = $3")
                    .bind(merkle.to_bytes())
                    .bind(forged.to_line())
                    .bind(&id)
                    .execute(&mut db)
                    .await?;
            }
            db.close().await?;
            self.forget_heads()
        })
    }

    /// Another agent's keys under the name of the computer that was enrolled.
    pub(crate) fn swap_agent_key(&self) -> Result<()> {
        let evil = DeviceIdentity::generate(0)?;
        self.runtime.block_on(async {
            let mut db = self.database().await?;
            let swapped = sqlx::query("UPDATE computer SET identity = $1, noise_cert = $2")
                .bind(evil.signing.public().0.to_vec())
                .bind(evil.noise_cert.encode_to_vec())
                .execute(&mut db)
                .await?;
            ensure!(swapped.rows_affected() == 1, "one computer is expected");
            db.close().await?;
            Ok(())
        })
    }

    /// A copy of everything, to go back to.
    pub(crate) fn copy(&self) -> Result<PathBuf> {
        let copy = self.data.with_extension("copy");
        fs::create_dir_all(&copy)?;
        copy_files(&self.data, &copy)?;
        Ok(copy)
    }

    /// Back to a copy, without a word.
    pub(crate) fn put_back(&self, copy: &Path) -> Result<()> {
        copy_files(copy, &self.data)
    }

    fn forget_heads(&self) -> Result<()> {
        let noted = self.data.join("audit-heads.jsonl");
        if noted.exists() {
            fs::remove_file(noted)?;
        }
        Ok(())
    }

    async fn database(&self) -> Result<SqliteConnection> {
        let path = self.data.join("mediator.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        Ok(SqliteConnection::connect_with(&options).await?)
    }

    fn log_key(&self) -> Result<SigningKey> {
        let text = fs::read_to_string(self.data.join("log.key"))?;
        let digits: Option<Vec<u8>> = text
            .trim()
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect();
        Ok(SigningKey::from_seed(&digits.context("log.key")?)?)
    }
}

async fn read(db: &mut SqliteConnection, tree: &str) -> Result<Vec<Row>> {
    let rows = sqlx::query("SELECT seq, line FROM audit_entry WHERE tree = $1 ORDER BY seq")
        .bind(tree)
        .fetch_all(db)
        .await?;
    rows.iter()
        .map(|row| {
            let line: String = row.get("line");
            let json: Value = serde_json::from_str(&line)?;
            let salt = json["salt"].as_str().context("salt")?;
            let mut bytes = [0; 16];
            for (n, byte) in bytes.iter_mut().enumerate() {
                *byte = u8::from_str_radix(salt.get(2 * n..2 * n + 2).context("salt")?, 16)?;
            }
            Ok(Row { seq: row.get("seq"), entry: Entry::parse(line.as_bytes())?, salt: bytes })
        })
        .collect()
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for name in FILES {
        let (source, target) = (from.join(name), to.join(name));
        if target.exists() {
            fs::remove_file(&target)?;
        }
        if source.exists() {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}
