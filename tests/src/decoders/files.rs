//! Files that people write, and files of our own that something may have damaged.

use std::{fs::OpenOptions, io::Write as _};

use adit_console::state::{
    Account, KnownAgents, MediatorTrust, Selector,
    book::{Book, Owner, update},
    recent,
};
use adit_endpoint::{RelayStatus, export_receipts, read_witness};
use adit_ledger::SignedHead;
use adit_mediator::decoders;
use adit_net::tls::{read_pem_chain, read_pem_key};
use adit_protocol::{
    ids::{ComputerId, RelayId, TokenId},
    keys::{Fingerprint, KeyCert, Purpose, context, sha256},
};
use adit_runtime::{
    config::{Config, Sources},
    datadir::DataDir,
};
use serde_json::json;

use super::signing_key;

thread_local! {
    /// A directory that is there as long as the thread.
    static DIR: Option<(tempfile::TempDir, DataDir)> = tempfile::tempdir().ok().and_then(|outer| {
        let dir = DataDir::open(outer.path()).ok()?;
        Some((outer, dir))
    });
}

/// Writes the bytes under each name and asks.
fn with_files(data: &[u8], names: &[&str], ask: impl Fn(&DataDir) -> bool) -> bool {
    DIR.with(|dir| {
        let Some((_, dir)) = dir else { return false };
        let write = |name: &&str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent()?).ok()?;
            let mut options = OpenOptions::new();
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            options.write(true).create(true).truncate(true).open(path).ok()?.write_all(data).ok()
        };
        // A directory that cannot be written to is no refusal of what was to be written.
        assert!(names.iter().map(write).all(|written| written.is_some()), "{dir:?}: cannot write");
        ask(dir)
    })
}

/// Configuration of each program.
pub(super) fn config(data: &[u8]) -> bool {
    const NAME: &str = "config.toml";
    with_files(data, &[NAME], |dir| {
        let file = dir.path().join(NAME);
        let sources = || Sources { config: Some(file.clone()), ..Sources::default() };
        let agent = {
            use adit_agent::settings::{KEYS, PROGRAM, Settings};
            Config::load(&PROGRAM, KEYS, &sources()).is_ok_and(|c| Settings::read(&c).is_ok())
        };
        let relay = {
            use adit_relay::config::{KEYS, PROGRAM, Settings};
            Config::load(&PROGRAM, KEYS, &sources()).is_ok_and(|c| Settings::read(&c).is_ok())
        };
        let console = {
            use adit_console::config::{KEYS, PROGRAM, dialer};
            Config::load(&PROGRAM, KEYS, &sources()).is_ok_and(|c| dialer(&c).is_ok())
        };
        agent | relay | console | decoders::config(&file)
    })
}

pub(super) fn valid_config() -> Vec<Vec<u8>> {
    let agent = "[session]\nresume_window = \"60s\"\n[consent]\ncommand = [\"/bin/ask\", \"{who}\"]\n\
        [log]\nlevel = \"debug\"\n";
    let relay = "[relay]\nlisten = [\"0.0.0.0:443\", \"[::]:443\"]\nadvertise = [\"r.example\"]\n\
        [limits]\nmax_pairs = 100\nidle = \"10m\"\n";
    let mediator = "[server]\nhosts = [\"mediator.example\"]\nport = 443\n[sources]\n\
        agents = [\"192.0.2.0/24\"]\n[audit]\nretention = \"120d\"\n";
    [agent, relay, mediator].map(Vec::from).into()
}

/// What the console remembers.
pub(super) fn console(data: &[u8]) -> bool {
    let names = ["known_agents.toml", "recent.toml", "account.toml"];
    with_files(data, &names, |dir| {
        let known = KnownAgents::load(dir).is_ok_and(|known| known != KnownAgents::default());
        let account = Account::load(dir);
        if let Ok(Some(account)) = &account {
            let saved = account.save(dir).is_ok();
            assert!(saved && Account::load(dir).ok().flatten().as_ref() == Some(account));
        }
        let recent = recent::load(dir).is_ok_and(|recent| !recent.is_empty());
        known | matches!(account, Ok(Some(_))) | recent
    })
}

pub(super) fn valid_console() -> Vec<Vec<u8>> {
    let (id, key) = (ComputerId([1; 16]), Fingerprint([2; 32]));
    let known = format!(
        "[[agent]]\ninstallation = \"i\"\ncomputer_id = \"{id}\"\nclient = \"p/c\"\nname = \"pc\"\n\
         key = \"{key}\"\nsince = \"2026-01-01T00:00:00.000Z\"\npinned = true\n"
    );
    let recent = format!("[[recent]]\ncomputer_id = \"{id}\"\nredirector = \"ssh\"\n");
    let account = format!(
        "host = \"mediator.example\"\nport = 443\ntrust = \"{key}\"\nuser = \"ann\"\npartner = \"p\"\n"
    );
    [known, recent, account].map(String::into_bytes).into()
}

const BOOK: &str = "book";

fn owner() -> Owner {
    Owner::of(&Account {
        host: "mediator.example".to_owned(),
        port: 443,
        trust: MediatorTrust::WebPki,
        user: Some("ann".to_owned()),
        partner: "p".to_owned(),
        pins: Vec::new(),
    })
}

/// The console's address book: the bytes are what its checksum is made of.
pub(super) fn book(data: &[u8]) -> bool {
    let whole = [data, &sha256(data)].concat();
    with_files(&whole, &[BOOK], |dir| {
        let book = Book::load(dir, &owner());
        let found = book.find(&Selector::from("pc"));
        found.is_some() | (book != Book::default())
    })
}

pub(super) fn valid_book() -> Vec<Vec<u8>> {
    let made = || {
        let outer = tempfile::tempdir().ok()?;
        let dir = DataDir::open(outer.path()).ok()?;
        update(&dir, &owner(), |book| book.listed_ms = 1_700_000_000_000);
        let whole = std::fs::read(dir.path().join(BOOK)).ok()?;
        whole.split_last_chunk::<32>().map(|(body, _)| body.to_vec())
    };
    made().into_iter().collect()
}

/// Who agents and relays are.
pub(super) fn enrolment(data: &[u8]) -> bool {
    with_files(data, &["enrollment.json", "enrolment.json"], |dir| {
        use adit_agent::enrollment::Enrollment;
        use adit_relay::enrolment::Enrolment;
        let agent = Enrollment::load(dir).ok().flatten();
        if let Some(agent) = &agent {
            let again = agent.save(dir).ok().and_then(|()| Enrollment::load(dir).ok().flatten());
            assert!(again.as_ref() == Some(agent), "it does not read back");
        }
        let relay = Enrolment::load(dir).ok().flatten();
        if let Some(relay) = &relay {
            let again = relay.save(dir).ok().and_then(|()| Enrolment::load(dir).ok().flatten());
            assert!(again.as_ref() == Some(relay), "it does not read back");
        }
        agent.is_some() | relay.is_some()
    })
}

pub(super) fn valid_enrolment() -> Vec<Vec<u8>> {
    let key = Fingerprint([2; 32]).to_string();
    let token = TokenId([4; 16]).to_string();
    let agent = json!({
        "format": 1, "computer_id": ComputerId([1; 16]).to_string(), "name": "pc",
        "client": "p/c", "partner": "p", "hosts": ["mediator.example:443"], "root": key,
        "agent_key": key, "token_id": token, "proxy": null,
    });
    let relay = json!({
        "relay_id": RelayId([1; 16]).to_string(), "name": "r", "root": key,
        "mediators": ["mediator.example:443"], "token_id": token, "advertise": [], "region": "eu",
    });
    [agent, relay].map(|value| value.to_string().into_bytes()).into()
}

/// Heads of audit logs that a device has seen, its alerts and receipts.
pub(super) fn witness(data: &[u8]) -> bool {
    let names = ["witness", "alerts.jsonl", "receipts/1.jsonl"];
    with_files(data, &names, |dir| {
        let seen = read_witness(dir.path()).is_ok();
        let mut receipts = 0;
        let exported = export_receipts(dir.path(), |line| {
            assert!(!line.contains('\n'));
            receipts += 1;
            Ok(())
        });
        assert!(exported.is_err() || exported.is_ok_and(|count| count == receipts));
        seen | (receipts > 0)
    })
}

pub(super) fn valid_witness() -> Vec<Vec<u8>> {
    let made = || {
        let key = signing_key()?;
        let root = adit_ledger::MerkleTree::new().root();
        let head = SignedHead::sign(&key, "t", 0, root, 1_700_000_000_001, None).ok()?;
        Some(format!("{} p {}\n", Fingerprint([2; 32]), head.to_line()).into_bytes())
    };
    made().into_iter().chain([b"{\"a\":1}\n{\"cut".to_vec()]).collect()
}

/// What was learnt of relays.
pub(super) fn relays(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(RelayStatus::fuzz_file)
}

pub(super) fn valid_relays() -> Vec<Vec<u8>> {
    let key = "07".repeat(32);
    let text = format!(
        "adit-relays 1\nnetwork 192.0.2.7\nmediator 10.0.0.1:443\nof m.example:443\n\
         relay {key} r.example:443\nway 192.0.2.7 tls\nway - raw\nrtt {key} 12345 1000\n"
    );
    vec![text.into_bytes()]
}

/// The mediator's own files.
pub(super) fn mediator(data: &[u8]) -> bool {
    with_files(data, &decoders::FILES, decoders::files)
}

pub(super) fn valid_mediator() -> Vec<Vec<u8>> {
    let erased = json!({
        "kind": "client", "partner_id": "p", "client_id": "c", "subject": "p/c", "erasure": "e",
        "begun_ms": 1,
    });
    vec![format!("{}\n", "0a".repeat(32)).into_bytes(), format!("{erased}\n").into_bytes()]
}

/// Certificates and keys of web servers.
pub(super) fn pem(data: &[u8]) -> bool {
    read_pem_chain(data).is_ok() | read_pem_key(data).is_ok()
}

pub(super) fn valid_pem() -> Vec<Vec<u8>> {
    let Some(key) = signing_key() else { return Vec::new() };
    let pem = |kind: &str, der: &[u8]| {
        let text = adit_protocol::dpop::base64(der);
        format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n").into_bytes()
    };
    vec![pem("PRIVATE KEY", &key.to_pkcs8()), pem("CERTIFICATE", &key.public().to_spki())]
}

/// Sealed backups.
pub(super) fn backup(data: &[u8]) -> bool {
    decoders::backup(data)
}

pub(super) fn valid_backup() -> Vec<Vec<u8>> {
    decoders::backup_examples()
}

/// Certificates of destruction.
pub(super) fn destruction(data: &[u8]) -> bool {
    decoders::certificate(data)
}

pub(super) fn valid_destruction() -> Vec<Vec<u8>> {
    let Some(key) = signing_key() else { return Vec::new() };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let destruction = json!({"finished_ms": 5, "subject": "p/c", "v": 1});
    let cert = KeyCert { key: key.public(), not_before_ms: 1, not_after_ms: 10 };
    let cert = KeyCert::issue(&key, Purpose::Log, &cert);
    let signature = key.sign(context::DESTRUCTION, destruction.to_string().as_bytes());
    let certificate = json!({
        "destruction": destruction,
        "log_key": hex(&key.public().0),
        "signature": hex(&signature),
        "key_cert": {
            "root": hex(&key.public().0),
            "payload": hex(&cert.payload),
            "signature": hex(&cert.signature),
        },
    });
    vec![certificate.to_string().into_bytes()]
}
