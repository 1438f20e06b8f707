//! A long log, written directly into a mediator's database as its writer would have: entries with
//! their search keys, inner nodes, blocks of times, frontier and signed head. Indexes are taken
//! away before and made again after, as they are in the schema.

use std::{fs, path::Path};

use adit_ledger::{Entry, Event, Hash, Level, MerkleTree, SignedHead, tree::NodeId};
use adit_protocol::keys::SigningKey;
use anyhow::{Context as _, Result};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _, SqliteConnection};
use tokio::sync::mpsc;

/// Entries in one statement, statements in one transaction.
const ROWS: usize = 100;
const STATEMENTS: usize = 500;
/// Prepared groups of rows that wait to be written.
const AHEAD: usize = 16;
/// Levels of nodes that the mediator stores.
const STORED_LEVEL: u32 = 4;
const DAY_MS: u64 = 24 * 3_600_000;
/// The log goes back so far: retention deletes nothing of it.
pub(super) const DAYS: u64 = 100;

const COLUMNS: &str = "tree, seq, time_ms, event, session_id, leaf, line, log_no, actor_key, \
    subject_key, computer_key, computer_id, client_key, redirector";

/// Entries that were made, and the nodes that they complete.
struct Group {
    entries: Vec<Entry>,
    nodes: Vec<(NodeId, Hash)>,
    tree: MerkleTree,
}

/// Makes the home partner's log this long; its times end at `now_ms`.
pub(super) async fn fill(dir: &Path, events: u64, now_ms: u64) -> Result<()> {
    let file = dir.join("mediator.db");
    let mut db = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).connect().await?;
    for pragma in ["synchronous=OFF", "cache_size=-400000", "temp_store=FILE", "threads=2"] {
        sqlx::query(AssertSqlSafe(format!("PRAGMA {pragma}"))).execute(&mut db).await?;
    }
    let indexes: Vec<(String, String)> = sqlx::query(
        "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'audit_entry' AND type = 'index' \
         AND sql IS NOT NULL",
    )
    .fetch_all(&mut db)
    .await?
    .iter()
    .map(|row| (row.get("name"), row.get("sql")))
    .collect();
    for (name, _) in &indexes {
        sqlx::query(AssertSqlSafe(format!("DROP INDEX {name}"))).execute(&mut db).await?;
    }
    let row =
        sqlx::query("SELECT id, number, frontier, head FROM audit_tree").fetch_one(&mut db).await?;
    let (id, log): (String, i64) = (row.get("id"), row.get("number"));
    let frontier: Vec<u8> = row.get("frontier");
    let head = SignedHead::parse(row.get::<String, _>("head").as_bytes())?;
    let tree = MerkleTree::from_bytes(&frontier).context("no frontier")?;
    let (sender, mut groups) = mpsc::channel(AHEAD);
    let maker = tokio::task::spawn_blocking(move || make(tree, events, now_ms, &sender));
    let mut last = None;
    let mut next = groups.recv().await;
    while next.is_some() {
        let mut write = db.begin().await?;
        for _ in 0..STATEMENTS {
            let Some(group) = next else { break };
            insert(&mut write, &id, log, &group).await?;
            last = Some(group.tree);
            next = groups.recv().await;
        }
        write.commit().await?;
    }
    maker.await??;
    for (name, sql) in indexes {
        eprintln!("  index {name}");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut db).await?;
    }
    blocks(&mut db, log).await?;
    let tree = last.context("the log is as long already")?;
    let key = log_key(&dir.join("log.key"))?;
    let signed =
        SignedHead::sign(&key, &id, tree.size(), tree.root(), head.time_ms, head.key_cert)?;
    sqlx::query("UPDATE audit_tree SET frontier = $1, head = $2 WHERE id = $3")
        .bind(tree.to_bytes())
        .bind(signed.to_line())
        .bind(&id)
        .execute(&mut db)
        .await?;
    db.close().await?;
    Ok(())
}

async fn blocks(db: &mut SqliteConnection, log: i64) -> Result<()> {
    sqlx::query("DELETE FROM audit_block").execute(&mut *db).await?;
    sqlx::query(
        "INSERT INTO audit_block (log_no, block, min_ms, max_ms, due_ms) SELECT $1, seq / 1024, \
         MIN(time_ms), MAX(time_ms), MIN(time_ms) FROM audit_entry GROUP BY seq / 1024",
    )
    .bind(log)
    .execute(db)
    .await?;
    Ok(())
}

/// Seals entries and builds the tree, ahead of the writing.
fn make(mut tree: MerkleTree, events: u64, now_ms: u64, to: &mpsc::Sender<Group>) -> Result<()> {
    let begin = now_ms - DAYS * DAY_MS;
    while tree.size() < events {
        let (mut entries, mut nodes) = (Vec::with_capacity(ROWS), Vec::new());
        while entries.len() < ROWS && tree.size() < events {
            let n = tree.size();
            let time = begin + n * (DAYS * DAY_MS / events);
            let entry = Entry::seal(n, time, event(n), adit_protocol::keys::random()?);
            tree.append_with(entry.leaf(), |node, hash| nodes.push((node, hash)));
            entries.push(entry);
        }
        // The writer gives up only with an error of its own, which is told.
        let group = Group { entries, nodes, tree: tree.clone() };
        if to.blocking_send(group).is_err() {
            break;
        }
    }
    Ok(())
}

/// A life's work: sessions of 97 people on 10,007 computers of 211 clients, and failed logins.
fn event(n: u64) -> Event {
    let person = format!("person{}", n % 97);
    if n % 4 == 3 {
        return Event::new("login.failed", Level::Significant)
            .partner("main")
            .actor(person.as_str())
            .extra_personal("user", person.as_str())
            .source("192.0.2.7:50123")
            .outcome("refused")
            .end_reason("login_failed");
    }
    let names = ["session.requested", "session.granted", "session.ended"];
    Event::new(
        names.get(usize::try_from(n % 4).unwrap_or(0)).copied().unwrap_or_default(),
        Level::Significant,
    )
    .partner("main")
    .client(format!("main/client{}", n % 211))
    .computer(format!("pc-{}", n % 10_007))
    .computer_id(format!("00000000-0000-7000-8000-{:012}", n % 10_007))
    .session_id(format!("session-{}", n / 4))
    .redirector(if n % 5 < 2 { "rdp" } else { "ssh" })
    .viewer("mstsc")
    .rule("builtin:technician")
    .mfa("totp")
    .actor(person.as_str())
    .device("sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
    .source("192.0.2.7:50123")
    .target("127.0.0.1:3389")
    .reason("a ticket's worth of words about why")
    .ticket("INC-2026-004711")
    .outcome("granted")
}

async fn insert(db: &mut SqliteConnection, id: &str, log: i64, group: &Group) -> Result<()> {
    let values: Vec<String> = (0..group.entries.len())
        .map(|row| {
            let places: Vec<String> = (1..=14).map(|n| format!("${}", row * 14 + n)).collect();
            format!("({})", places.join(", "))
        })
        .collect();
    let text = format!("INSERT INTO audit_entry ({COLUMNS}) VALUES {}", values.join(", "));
    let mut query = sqlx::query(AssertSqlSafe(text));
    for entry in &group.entries {
        let event = entry.event();
        let subject = event.extra_personal.get("user").map(|value| match value {
            adit_ledger::Value::Text(name) => name.to_lowercase(),
            adit_ledger::Value::Integer(number) => number.to_string(),
        });
        let folded = |text: &Option<String>| text.as_deref().map(str::to_lowercase);
        query = query
            .bind(id)
            .bind(i64::try_from(entry.seq())?)
            .bind(i64::try_from(entry.time_ms())?)
            .bind(event.name.clone())
            .bind(event.session_id.clone())
            .bind(entry.leaf().0.to_vec())
            .bind(entry.to_line())
            .bind(log)
            .bind(folded(&event.actor))
            .bind(subject)
            .bind(folded(&event.computer))
            .bind(event.computer_id.clone())
            .bind(folded(&event.client))
            .bind(event.redirector.clone());
    }
    query.execute(&mut *db).await?;
    // Inner nodes as the mediator keeps them.
    for (node, hash) in group.nodes.iter().filter(|(node, _)| node.level >= STORED_LEVEL) {
        sqlx::query("INSERT INTO audit_node (tree, level, idx, hash) VALUES ($1, $2, $3, $4)")
            .bind(id)
            .bind(i64::from(node.level))
            .bind(i64::try_from(node.index)?)
            .bind(hash.0.to_vec())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// The log key as the mediator keeps it: 64 hexadecimal digits.
fn log_key(file: &Path) -> Result<SigningKey> {
    let text = fs::read_to_string(file)?;
    let seed: Vec<u8> = text
        .trim()
        .as_bytes()
        .chunks(2)
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect::<Result<_>>()?;
    Ok(SigningKey::from_seed(&seed)?)
}
