//! What is lost or makes no sense opens nothing, and errors tell nothing of the inside (R39).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use adit_protocol::wire::{self, frame::Body};
use serde_json::json;
use sqlx::Connection;

use crate::common::{
    Mediator, WAIT,
    api::{Answer, Web, Who, register},
    hello, identity, open, try_open,
};

/// Words of the database, of the program's source and of its files.
const INSIDE: [&str; 12] = [
    "sql",
    "select ",
    "insert ",
    "no such table",
    "no such column",
    "panicked",
    "backtrace",
    ".rs",
    "src/",
    ".db",
    "unwrap",
    "/tmp",
];

/// Nothing of the inside is told (R39).
pub(super) fn assert_quiet(what: &str, told: &str) {
    let low = told.to_lowercase();
    let found = INSIDE.iter().find(|word| low.contains(*word));
    assert!(found.is_none(), "{what} tells {found:?}: {told}");
}

/// R39: whatever is sent, of the inside nothing is told.
#[tokio::test]
async fn errors_tell_nothing_of_the_inside() {
    let mediator = Mediator::start();
    let (console, me, _) = mediator.console().await;
    let who = Who::at(&console, &me).await;
    let mut web = Web::connect(&mediator).await;
    let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
    for (method, target, body) in [
        ("GET", "/api/v1/users?limit=-1", None),
        ("GET", "/api/v1/users?limit=99999999999999999999", None),
        ("GET", "/api/v1/users?cursor=AAAA", None),
        ("GET", "/api/v1/computers?query=%00%ff%27%22", None),
        ("GET", "/api/v1/computers/%27%3B--", None),
        ("GET", "/api/v1/audit/events?since=yesterday", None),
        ("GET", "/api/v1/audit/consistency?tree=x&old_size=9&new_size=1", None),
        ("GET", "/api/v1/credentials/%00/secret", None),
        ("GET", "/api/v1/users/..%2f..%2fmediator.toml", None),
        ("GET", "/api/v1/users/..%5c..%5cmediator.toml", None),
        ("GET", "/api/v1/../../mediator.toml", None),
        ("GET", "/static/..%2fmediator.toml", None),
        ("GET", "/static/../mediator.toml", None),
        ("POST", "/api/v1/users", Some("{")),
        ("POST", "/api/v1/users", Some("[]")),
        ("POST", "/api/v1/users", Some("{\"user\":\"\\u0000\"}")),
        ("POST", "/api/v1/users", Some("{\"user\":\"a' OR '1'='1\"}")),
        ("POST", "/api/v1/users", Some(deep.as_str())),
        (
            "POST",
            "/api/v1/bindings",
            Some("{\"role\":\"x\",\"user\":\"y\",\"scope\":{\"client\":\"/\"}}"),
        ),
    ] {
        let headers = vec![
            ("authorization", format!("DPoP {}", who.token)),
            ("dpop", web.proof(&who, method, target)),
        ];
        // A body that is no JSON goes as it is.
        let answer = web.send(method, target, &headers, body).await;
        assert!((200..500).contains(&answer.status), "{method} {target}: {answer:?}");
        assert_quiet(target, &answer.body.to_string());
        // Nor is there a way out of where things are served from (R41).
        assert!(!target.contains("mediator.toml") || answer.status == 404, "{target}: {answer:?}");
    }
}

/// The database, beside the mediator.
pub(super) struct Database(sqlx::SqliteConnection);

impl Database {
    pub(super) async fn of(mediator: &Mediator) -> Self {
        let database = format!("sqlite:{}", mediator.database().display());
        Self(sqlx::SqliteConnection::connect(&database).await.unwrap())
    }

    /// The mediator writes, too: whoever is not let in waits for it.
    pub(super) async fn change(&mut self, text: String) {
        let begun = Instant::now();
        loop {
            match sqlx::query(sqlx::AssertSqlSafe(text.clone())).execute(&mut self.0).await {
                Ok(_) => return,
                Err(error) => assert!(begun.elapsed() < WAIT, "{text}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn tables(&mut self) -> Vec<String> {
        let all = "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 6) \
                   NOT IN ('sqlite', '_sqlx_') ORDER BY name";
        sqlx::query_scalar(all).fetch_all(&mut self.0).await.unwrap()
    }
}

/// Tables that decide whether a session begins. Those of devices that are switched off are not among
/// them: switching one off ends its logins and sessions, and they are read at the next login.
const DECIDING: [&str; 11] = [
    "access_binding",
    "account",
    "account_label",
    "audit_entry",
    "audit_tree",
    "client",
    "client_lock",
    "computer",
    "login",
    "partner",
    "session",
];

/// R39: any table may be lost while the mediator runs. What needs it fails, and says no more than
/// that; what was refused before is refused or fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_lost_opens_nothing() {
    let mediator = Mediator::start();
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
    mediator.admin(&["client", "add", "main/shut"]);
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let token = mediator.token(&["agent", "--client", "main/shut"]);
    let shut_key = identity();
    let shut = mediator.enroll(&shut_key, &token, 1, "shut").await.unwrap();
    let hello_of = hello(1, &shut_key, &shut.device_id);
    let mut shut_agent = mediator.connect(&shut_key, hello_of).await.unwrap();
    mediator.admin(&["client", "lockdown", "main/shut", "--reason", "test"]);

    let (console, me, _) = mediator.console().await;
    let owner = Who::at(&console, &me).await;
    let mut web = Web::connect(&mediator).await;
    let low = register(&mut web, &owner, "low", "technician", &json!({})).await;
    let revoked = register(&mut web, &owner, "revoked", "owner", &json!({})).await;
    let id = revoked.token.strip_prefix("adit-key-").unwrap().to_owned();
    let gone = web.ask(&owner, "DELETE", &format!("/api/v1/api-keys/{id}"), None).await;
    assert_eq!(gone.status, 200, "{gone:?}");
    let described = web.send("GET", "/api/v1/openapi.json", &[], None).await;
    let paths = described.body["paths"].as_object().unwrap().clone();
    let lists = paths.iter().filter(|(path, told)| !path.contains('{') && told["get"].is_object());
    let lists: Vec<String> = lists.map(|(path, _)| path.clone()).collect();
    let asked: Vec<(&Who, &str)> = lists
        .iter()
        .map(|path| (&owner, path.as_str()))
        .chain(["users", "roles", "bindings", "relays", "api-keys", "devices"].map(|name| {
            let path = lists.iter().find(|path| path.ends_with(&format!("/v1/{name}")));
            (&low, path.unwrap().as_str())
        }))
        .chain([(&revoked, "/api/v1/me")])
        .collect();
    let mut before = Vec::new();
    for (who, path) in &asked {
        before.push(web.ask(who, "GET", path, None).await);
    }
    let as_low = &before[lists.len()..];
    assert!(as_low.iter().all(|answer| [401, 403].contains(&answer.status)), "{as_low:?}");
    // What is done here is told there.
    let grows = |path: &str| path.contains("/audit/") || path.ends_with("/sessions");
    let found = |answer: &Answer| answer.body["items"].as_array().map_or(0, Vec::len);

    let mut database = Database::of(&mediator).await;
    let (mut wrong, mut needed) = (Vec::new(), BTreeMap::<String, usize>::new());
    let (mut began, mut session) = (BTreeSet::new(), 0);
    for table in database.tables().await {
        database.change(format!("ALTER TABLE {table} RENAME TO lost")).await;
        for ((who, path), before) in asked.iter().zip(&before) {
            let answer = web.ask(who, "GET", path, None).await;
            let cell = format!("{path} without {table}");
            if answer.status >= 500 {
                *needed.entry(table.clone()).or_default() += 1;
                assert_quiet(&cell, &answer.body.to_string());
                assert!(
                    !table.contains('_') || !answer.body.to_string().contains(&table),
                    "{cell}"
                );
            } else if answer.status != before.status
                || (found(&answer) > found(before) && !grows(path))
            {
                wrong.push(format!("{cell}: {before:?}, and now {answer:?}"));
            }
        }
        // A session that may begin, and one that may not.
        for (agent, pc, key, may) in
            [(&mut agent, &pc, &key, true), (&mut shut_agent, &shut, &shut_key, false)]
        {
            session += 1;
            match try_open(&console, agent, open(session, pc, key)).await {
                Ok(()) if may => drop(began.insert(table.clone())),
                Ok(()) => wrong.push(format!("a locked client without {table}")),
                Err(refused) => {
                    assert_quiet(&table, &format!("{} {}", refused.message, refused.hint));
                }
            }
        }
        database.change(format!("ALTER TABLE lost RENAME TO {table}")).await;
    }
    println!(
        "requests that failed without each table: {needed:?}; sessions began without {began:?}"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for table in ["access_binding", "account", "login", "api_key", "client", "computer", "partner"]
    {
        assert!(needed.contains_key(table), "nothing needs {table}: {needed:?}");
    }
    for table in DECIDING {
        assert!(!began.contains(table), "a session began without {table}");
    }
    // Each that began is in the log; and all is as it was.
    let granted = mediator.events_named("session.granted");
    assert_eq!(granted.len(), began.len(), "{granted:?}");
    for ((who, path), before) in asked.iter().zip(&before) {
        let answer = web.ask(who, "GET", path, None).await;
        assert_eq!(answer.status, before.status, "{path}: {answer:?}");
    }
}

/// R39: nor does a login pass because what would refuse it cannot be read, or what is read makes no
/// sense.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_cannot_be_judged_is_refused() {
    let mediator = Mediator::start();
    let add = |name: &str| {
        let added = mediator.admin(&["user", "add", name]);
        added[0]["password"].as_str().unwrap().to_owned()
    };
    let (two, one, off) = (add("two"), add("one"), add("off"));
    let me = identity();
    let console = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    console.login("two", &two).await.unwrap();
    let wish = Body::TotpEnroll(wire::TotpEnroll { name: "phone".to_owned() });
    let Body::TotpSecret(told) = console.ask(wish).await.unwrap() else { panic!("no secret") };
    let totp = totp_rs::Totp::from_url(&told.url).unwrap();
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let code = totp.generate(now_s).to_string();
    let shown = wire::TotpConfirm { factor_id: told.factor_id, code };
    console.ask(Body::TotpConfirm(shown)).await.unwrap();
    mediator.admin(&["user", "disable", "off"]);
    let blocked = identity();
    let fingerprint = blocked.signing.public().fingerprint().to_string();
    mediator.admin(&["device", "disable", &fingerprint, "--reason", "test"]);

    let none_logs_in = async |what: &str| {
        for (who, password, me) in
            [("two", &two, identity()), ("one", &one, blocked.clone()), ("off", &off, identity())]
        {
            // A device that is switched off may be refused before it says a word.
            let Ok(device) = mediator.connect(&me, hello(2, &me, &[])).await else { continue };
            match device.login(who, password).await {
                Ok(told) => panic!("{who} is in, {what}: {told:?}"),
                Err(refused) => {
                    assert_quiet(what, &format!("{} {}", refused.message, refused.hint));
                }
            }
        }
    };
    let mut database = Database::of(&mediator).await;
    for table in [
        "factor",
        "device_block",
        "partner_device_block",
        "account",
        "recovery_code",
        "login",
        "known_device",
    ] {
        database.change(format!("ALTER TABLE {table} RENAME TO lost")).await;
        none_logs_in(&format!("without {table}")).await;
        database.change(format!("ALTER TABLE lost RENAME TO {table}")).await;
    }
    for change in [
        "UPDATE factor SET secret = x'00'",
        "UPDATE factor SET kind = 'x'",
        "UPDATE account SET disabled = 7",
        "UPDATE account SET password = 'x'",
    ] {
        database.change(change.to_owned()).await;
        none_logs_in(change).await;
    }
}

/// R39: rules that cannot be understood give nothing.
#[tokio::test]
async fn rules_that_make_no_sense_give_nothing() {
    let mediator = Mediator::start();
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
    let (console, me, _) = mediator.console().await;
    let owner = Who::at(&console, &me).await;
    let mut web = Web::connect(&mediator).await;
    let role = json!({"role": "own", "permissions": ["audit.read"]});
    assert_eq!(web.ask(&owner, "POST", "/api/v1/roles", Some(&role)).await.status, 200);
    let own = register(&mut web, &owner, "own", "own", &json!({})).await;
    let auditor = register(&mut web, &owner, "auditor", "auditor", &json!({})).await;
    let heads = "/api/v1/audit/heads";
    let mut database = Database::of(&mediator).await;
    for (who, column, garbage) in [
        (&own, "access_role SET content", "'{'"),
        (&own, "access_role SET content", "'{}'"),
        (&auditor, "api_key SET networks", "'x'"),
        (&auditor, "access_binding SET role_id", "'builtin:x'"),
        (&auditor, "access_binding SET scope_kind", "'x'"),
        (&auditor, "access_binding SET conditions", "'x'"),
    ] {
        let (table, field) = column.split_once(" SET ").unwrap();
        assert_eq!(web.ask(who, "GET", heads, None).await.status, 200, "before {column}");
        let keep = format!("CREATE TABLE keep AS SELECT rowid AS row, {field} AS was FROM {table}");
        database.change(keep).await;
        database.change(format!("UPDATE {column} = {garbage}")).await;
        let answer = web.ask(who, "GET", heads, None).await;
        assert!(answer.status >= 403, "{column} = {garbage}: {answer:?}");
        assert_quiet(column, &answer.body.to_string());
        let back = "(SELECT was FROM keep WHERE keep.row =";
        database.change(format!("UPDATE {column} = {back} {table}.rowid)")).await;
        database.change("DROP TABLE keep".to_owned()).await;
    }
    assert_eq!(web.ask(&auditor, "GET", heads, None).await.status, 200);
}
