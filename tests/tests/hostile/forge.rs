//! What somebody can do who owns the mediator: its database and its log key.

use std::{
    fs,
    path::{Path, PathBuf},
};

use adit_ledger::{Entry, Event, Level, MerkleTree, SignedHead};
use adit_net::identity::DeviceIdentity;
use adit_protocol::keys::{PublicKey, SigningKey};
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

    /// The computers and technicians of the first partner stand under another one, of the
    /// mediator's own making, which takes the first one's name. Its log is perfectly valid.
    pub(crate) fn move_to_partner(&self, made_up: &str) -> Result<()> {
        self.runtime.block_on(async {
            let mut db = self.database().await?;
            let row = sqlx::query("SELECT id FROM partner WHERE name = $1")
                .bind(made_up.to_owned())
                .fetch_one(&mut db)
                .await?;
            let to: String = row.get("id");
            let row = sqlx::query("SELECT id, name FROM partner WHERE id <> $1")
                .bind(to.clone())
                .fetch_one(&mut db)
                .await?;
            let (from, name): (String, String) = (row.get("id"), row.get("name"));
            for statement in [
                "UPDATE partner SET name = 'before', name_key = 'before' WHERE id = $1 AND $2 = $2",
                "UPDATE partner SET name = $1, name_key = $1 WHERE id = $2",
                "UPDATE computer SET partner_id = $2, client_id = \
                 (SELECT id FROM client WHERE partner_id = $2) WHERE partner_id = $1",
                "UPDATE account SET partner_id = $2 WHERE partner_id = $1",
                "UPDATE access_binding SET partner_id = $2, scope_partner_id = $2 \
                 WHERE partner_id = $1",
            ] {
                let first = if statement.contains("name = $1") { &name } else { &from };
                sqlx::query(statement)
                    .bind(first.clone())
                    .bind(to.clone())
                    .execute(&mut db)
                    .await?;
            }
            db.close().await?;
            Ok(())
        })
    }

    /// Whoever logs in as `user` is told that another one did.
    pub(crate) fn tell_another_name(&self, user: &str, told: &str) -> Result<()> {
        self.runtime.block_on(async {
            let mut db = self.database().await?;
            let renamed = sqlx::query("UPDATE account SET name = $1 WHERE name_key = $2")
                .bind(told.to_owned())
                .bind(user.to_owned())
                .execute(&mut db)
                .await?;
            ensure!(renamed.rows_affected() == 1, "one user is expected");
            db.close().await?;
            Ok(())
        })
    }

    /// A second tree beside the partner's, signed as well as that, whose only purpose is an
    /// enrolment of the agent of `other` under the computer `name`. The computer `other` is gone.
    pub(crate) fn enrol_apart(&self, name: &str, other: &str) -> Result<()> {
        const APART: &str = "apart";
        let key = self.log_key()?;
        self.runtime.block_on(async {
            let mut db = self.database().await?;
            let select =
                "SELECT id, partner_id, identity, noise_cert FROM computer WHERE name = $1";
            let computer = sqlx::query(select).bind(name.to_owned()).fetch_one(&mut db).await?;
            let evil = sqlx::query(select).bind(other.to_owned()).fetch_one(&mut db).await?;
            let (id, partner): (String, String) = (computer.get("id"), computer.get("partner_id"));
            let (identity, cert): (Vec<u8>, Vec<u8>) =
                (evil.get("identity"), evil.get("noise_cert"));
            let current =
                sqlx::query("SELECT head FROM audit_tree WHERE partner_id = $1 AND current = 1")
                    .bind(partner.clone())
                    .fetch_one(&mut db)
                    .await?;
            let head = SignedHead::parse(current.get::<String, _>("head").as_bytes())?;
            let print = PublicKey::from_slice(&identity)?.fingerprint().to_string();
            let enrolled = Event::new("enroll.succeeded", Level::Significant)
                .outcome("granted")
                .computer_id(id.clone())
                .extra("identity", print);
            let entries = [
                Entry::seal(0, head.time_ms, Event::tree_started(None), [1; 16]),
                Entry::seal(1, head.time_ms, enrolled, [2; 16]),
            ];
            let mut merkle = MerkleTree::new();
            for entry in &entries {
                merkle.append(entry.leaf());
            }
            let (size, root) = (merkle.size(), merkle.root());
            let forged =
                SignedHead::sign(&key, APART, size, root, head.time_ms, head.key_cert.clone())?;
            sqlx::query(
                "INSERT INTO audit_tree (id, partner_id, current, frontier, head, number) \
                 VALUES ($1, $2, 0, $3, $4, 0)",
            )
            .bind(APART)
            .bind(partner)
            .bind(merkle.to_bytes())
            .bind(forged.to_line())
            .execute(&mut db)
            .await?;
            for entry in &entries {
                sqlx::query(
                    "INSERT INTO audit_entry (tree, seq, time_ms, event, leaf, line) \
                     VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(APART)
                .bind(i64::try_from(entry.seq())?)
                .bind(i64::try_from(entry.time_ms())?)
                .bind(entry.event().name.clone())
                .bind(entry.leaf().0.to_vec())
                .bind(entry.to_line())
                .execute(&mut db)
                .await?;
            }
            let [_, mut told] = entries;
            told.erase();
            sqlx::query(
                "UPDATE enrolment SET tree = $1, seq = 1, line = $2 WHERE computer_id = $3",
            )
            .bind(APART)
            .bind(told.to_line())
            .bind(id.clone())
            .execute(&mut db)
            .await?;
            let gone: String = evil.get("id");
            for (statement, which) in [
                ("DELETE FROM enrolment WHERE computer_id = $1", &gone),
                ("DELETE FROM computer_label WHERE computer_id = $1", &gone),
                ("DELETE FROM computer WHERE id = $1", &gone),
            ] {
                sqlx::query(statement).bind(which.clone()).execute(&mut db).await?;
            }
            sqlx::query("UPDATE computer SET identity = $1, noise_cert = $2 WHERE id = $3")
                .bind(identity)
                .bind(cert)
                .bind(id)
                .execute(&mut db)
                .await?;
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
