//! The program against a small mediator, as users and service managers start it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![cfg(unix)]

mod support;

use std::{path::Path, time::Instant};

use adit_control::{Peer, RequestError};
use adit_net::identity::DeviceIdentity;
use adit_protocol::{
    code::failure as codes,
    ids::ComputerId,
    keys::Fingerprint,
    token::TokenKind,
    wire::{self, frame::Body},
};
use rustix::process::Signal;
use support::{COMPUTER, Heard, Mediator, Running, SOON, agent, finish, token};

async fn enroll(dir: &Path, token: &str) -> (i32, Vec<serde_json::Value>, String) {
    finish(agent(dir, &["enroll", token, "--name", "till", "--tag", "a=b", "--json"])).await
}

fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn enrols_once_and_repeats_only_the_same_token() {
    let mut mediator = Mediator::start().await;
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("d");
    let token = mediator.token(TokenKind::Agent);
    let (code, lines, stderr) = enroll(&dir, &token).await;
    assert_eq!(code, 0, "{stderr}");
    let identity = DeviceIdentity::load(&dir).unwrap().unwrap();
    assert_eq!(lines[0]["computer_id"], COMPUTER.to_string());
    assert_eq!((&lines[0]["name"], &lines[0]["client"]), (&"till".into(), &"p/c".into()));
    assert_eq!(lines[0]["agent_key"], identity.signing.public().fingerprint().to_string());
    let heard = mediator
        .hear(|heard| match heard {
            Heard::Enroll(enroll) => Some(enroll),
            _ => None,
        })
        .await;
    assert_eq!((heard.kind, heard.tags.get("a").map(String::as_str)), (1, Some("b")));
    let stored = std::fs::read_to_string(dir.join("enrollment.json")).unwrap();
    assert!(!stored.contains("0505"), "the seed is not kept");
    assert!(dir.join("policy.toml").exists());

    assert_eq!(enroll(&dir, &token).await.1, lines, "the same token again");
    let other = support::Mediator::start().await;
    let (code, errors, _) = enroll(&dir, &other.token(TokenKind::Agent)).await;
    assert_eq!((code, &errors[0]["error"]["code"]), (1, &"already_enrolled".into()));
}

#[tokio::test]
async fn refused_tokens_leave_nothing_but_the_device_key() {
    let mediator = Mediator::start().await;
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("d");
    let token = mediator.token(TokenKind::Agent);
    for (code, exit) in [
        (codes::TOKEN_EXPIRED, 3),
        (codes::TOKEN_SPENT, 3),
        (codes::TOKEN_INVALID, 3),
        (codes::TOKEN_WRONG_ROLE, 3),
        (codes::NAME_TAKEN, 1),
        (codes::AUDIT_UNAVAILABLE, 1),
    ] {
        *mediator.refuse.lock().unwrap() = Some(code);
        let (got, lines, _) = enroll(&dir, &token).await;
        assert_eq!((got, &lines[0]["error"]["code"]), (exit, &code.into()));
        assert!(lines[0]["error"]["hint"].is_string(), "{code}");
    }
    let (code, _, stderr) = finish(agent(&dir, &["enroll", &token])).await;
    assert!(code != 0 && !stderr.contains('\u{1b}'), "{stderr}");
    let left = [".adit", "agent-tunnel.lock", "identity.key", "noise.key"];
    assert_eq!(files(&dir), left);
    *mediator.refuse.lock().unwrap() = None;
    assert_eq!(enroll(&dir, &token).await.0, 0);
}

#[tokio::test]
async fn wrong_tokens_and_places_have_their_own_errors() {
    let mediator = Mediator::start().await;
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("d");
    let here = vec![mediator.address.to_string()];
    let nowhere = vec!["127.0.0.1:1".to_owned()];
    let root = mediator.root.public().fingerprint();
    for (token, exit, code) in [
        (mediator.token(TokenKind::Relay), 3, "token_wrong_role"),
        (token(TokenKind::Agent, Fingerprint([1; 32]), here), 3, "wrong_mediator_key"),
        (token(TokenKind::Agent, root, nowhere), 5, "mediator_unreachable"),
        (String::from("adit1-AAAA").into(), 3, "token_invalid"),
        (String::from("x").into(), 3, "token_invalid"),
    ] {
        let (got, lines, _) = enroll(&dir, &token).await;
        assert_eq!((got, &lines[0]["error"]["code"]), (exit, &code.into()));
    }
    std::fs::write(outer.path().join("f"), "").unwrap();
    let token = mediator.token(TokenKind::Agent);
    let (code, lines, _) = enroll(&outer.path().join("f"), &token).await;
    assert_eq!(code, 1);
    assert!(lines[0]["error"]["code"].as_str().unwrap().starts_with("data_dir_"));
    std::fs::write(dir.join("identity.key"), "short").unwrap();
    let (code, lines, _) = enroll(&dir, &token).await;
    assert_eq!((code, &lines[0]["error"]["code"]), (1, &"identity_damaged".into()));
}

async fn refusal(peer: &Peer, offer: wire::Offer) -> (String, String) {
    match peer.request(Body::Offer(offer), SOON).await {
        Err(RequestError::Failed(failure)) => (failure.code, failure.message),
        other => panic!("{other:?}"),
    }
}

async fn online(mediator: &mut Mediator) -> Peer {
    let pick = |heard| match heard {
        Heard::Online(peer, hello) => {
            assert_eq!(hello.device_id, COMPUTER.to_bytes());
            Some(peer)
        }
        _ => None,
    };
    mediator.hear(pick).await
}

#[tokio::test]
async fn runs_reconnects_obeys_policy_and_kill_switch_and_stops() {
    let mut mediator = Mediator::start().await;
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("d");
    assert_eq!(enroll(&dir, &mediator.token(TokenKind::Agent)).await.0, 0);
    let key = DeviceIdentity::load(&dir).unwrap().unwrap().signing.public();

    let mut running = Running::start(&dir);
    let ready = running.event("ready").await;
    assert_eq!(ready["computer_id"], COMPUTER.to_string());
    assert_eq!(ready["mediator"], mediator.address.to_string());
    let peer = online(&mut mediator).await;
    let check_in = mediator
        .hear(|heard| match heard {
            Heard::CheckIn(check_in) => Some(check_in),
            _ => None,
        })
        .await;
    assert!(!check_in.os.is_empty() && check_in.sessions.is_empty());
    let (code, lines, _) = finish(agent(&dir, &["status", "--json"])).await;
    assert_eq!((code, &lines[0]["state"]), (0, &"online".into()));
    assert_eq!((&lines[0]["locked"], &lines[0]["via_proxy"]), (&false.into(), &false.into()));

    // A second one on the same directory, and a second enrolment, are refused.
    let (code, lines, _) = finish(agent(&dir, &["run", "--json"])).await;
    assert_eq!((code, &lines[0]["error"]["code"]), (1, &"already_running".into()));

    // The handshake is judged only after grant and policy.
    let offer = |target| mediator.offer(key, COMPUTER, target);
    let allowed = refusal(&peer, offer("127.0.0.1:22")).await;
    // And nothing is honoured that is not proved to be on record.
    assert_eq!(allowed.0, codes::AUDIT_UNPROVEN, "{allowed:?}");
    let refused = refusal(&peer, offer("10.0.0.1:22")).await;
    assert_eq!(refused.0, codes::POLICY_REFUSED);
    let foreign = mediator.offer(key, ComputerId([1; 16]), "127.0.0.1:22");
    assert!(refusal(&peer, foreign).await.1.contains("another computer"));

    let (code, lines, _) = finish(agent(&dir, &["lock", "--json"])).await;
    assert_eq!((code, &lines[0]["running"]), (0, &true.into()));
    let locked = refusal(&peer, offer("127.0.0.1:22")).await;
    assert!(locked.0 == codes::POLICY_REFUSED && locked.1.contains("locked"), "{locked:?}");
    assert_eq!(finish(agent(&dir, &["unlock", "--json"])).await.0, 0);

    // An invalid policy changes nothing and is said so; a valid one holds after SIGHUP.
    std::fs::write(dir.join("policy.toml"), "[[alow]]").unwrap();
    running.signal(Signal::HUP);
    wait_for(&dir, |status| status["policy"]["error"].is_string()).await;
    assert_ne!(refusal(&peer, offer("127.0.0.1:22")).await.0, codes::POLICY_REFUSED);
    std::fs::write(dir.join("policy.toml"), "").unwrap();
    running.signal(Signal::HUP);
    wait_for(&dir, |status| status["policy"]["error"].is_null()).await;
    assert_eq!(refusal(&peer, offer("127.0.0.1:22")).await.0, codes::POLICY_REFUSED);

    // The mediator drops the connection: the agent comes back by itself.
    peer.close();
    running.event("offline").await;
    running.event("online").await;
    online(&mut mediator).await;

    running.signal(Signal::TERM);
    let stopping = Instant::now();
    let status = tokio::time::timeout(SOON, running.child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(stopping.elapsed().as_secs() < 5);
    let (code, lines, _) = finish(agent(&dir, &["status", "--json"])).await;
    assert_eq!((code, &lines[0]["state"]), (4, &"stopped".into()));
    assert_eq!(lines[1]["error"]["code"], "not_running");
}

/// Waits until the running agent's status is as wanted.
async fn wait_for(dir: &Path, wanted: impl Fn(&serde_json::Value) -> bool) {
    let started = Instant::now();
    while started.elapsed() < SOON {
        let (_, lines, _) = finish(agent(dir, &["status", "--json"])).await;
        if lines.first().is_some_and(&wanted) {
            return;
        }
    }
    panic!("the status never became as wanted");
}

#[tokio::test]
async fn damaged_directories_end_run_with_a_clear_error() {
    let mediator = Mediator::start().await;
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("d");
    assert_eq!(enroll(&dir, &mediator.token(TokenKind::Agent)).await.0, 0);
    let run = || finish(agent(&dir, &["run", "--json"]));
    let state = std::fs::read(dir.join("enrollment.json")).unwrap();
    std::fs::write(dir.join("enrollment.json"), &state[..40]).unwrap();
    assert_eq!(run().await.1[0]["error"]["code"], "state_damaged");
    std::fs::write(dir.join("enrollment.json"), &state).unwrap();
    std::fs::remove_file(dir.join("identity.key")).unwrap();
    assert_eq!(run().await.1[0]["error"]["code"], "identity_damaged");
    std::fs::write(dir.join("agent-tunnel.toml"), "[network]\ndirekt = true").unwrap();
    let (code, lines, _) = run().await;
    assert_eq!((code, &lines[0]["error"]["code"]), (2, &"config_unknown_key".into()));
}

#[tokio::test]
async fn a_foreign_mediator_is_told_at_once_with_its_key_and_what_to_do() {
    let (mediator, foreign) = (Mediator::start().await, Mediator::start().await);
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("d");
    assert_eq!(enroll(&dir, &mediator.token(TokenKind::Agent)).await.0, 0);
    let file = dir.join("enrollment.json");
    let stored = std::fs::read_to_string(&file).unwrap();
    let (from, to) = (mediator.address.to_string(), foreign.address.to_string());
    std::fs::write(&file, stored.replace(&from, &to)).unwrap();

    let log = outer.path().join("log");
    let mut running = Running::start_logging(&dir, std::fs::File::create(&log).unwrap());
    let offline = running.event("offline").await;
    assert_eq!(offline["code"], "wrong_mediator_key");
    let presented = foreign.root.public().fingerprint().to_string();
    assert!(offline["reason"].as_str().unwrap().contains(&presented), "{offline}");
    let (code, lines, _) = finish(agent(&dir, &["status", "--json"])).await;
    let status = &lines[0];
    assert_eq!((code, &status["state"]), (0, &"offline".into()));
    assert_eq!(status["problem_code"], "wrong_mediator_key");
    assert!(status["hint"].as_str().unwrap().contains("fingerprints"), "{status}");
    let retry = status["retry_in_ms"].as_u64().unwrap();
    assert!((1..=120_000).contains(&retry), "it goes on trying, slowly: {retry}");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("\"ERROR\"") && text.contains(&presented), "{text}");
}

#[tokio::test]
async fn hangup_reloads_the_log_level_and_a_mistake_changes_nothing() {
    let mediator = Mediator::start().await;
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("d");
    assert_eq!(enroll(&dir, &mediator.token(TokenKind::Agent)).await.0, 0);
    let configure = |level: &str| {
        let text = format!("[log]\nlevel = \"{level}\"");
        std::fs::write(dir.join("agent-tunnel.toml"), text).unwrap();
    };
    configure("error");
    let log = outer.path().join("log");
    let mut running = Running::start_logging(&dir, std::fs::File::create(&log).unwrap());
    running.event("online").await;
    let hang_up = async |level: &str, seen: &str| {
        configure(level);
        running.signal(Signal::HUP);
        let started = Instant::now();
        loop {
            let text = std::fs::read_to_string(&log).unwrap();
            if text.contains(seen) {
                return text;
            }
            assert!(started.elapsed() < SOON, "{seen} is not logged: {text}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let text = hang_up("loud", "the log level stays").await;
    assert!(!text.contains("\"INFO\""), "{text}");
    hang_up("info", "policy in force").await;
}

#[tokio::test]
async fn wrong_usage_is_found_before_anything_is_dialled() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path();
    adit_runtime::datadir::DataDir::open(dir).unwrap();
    let typo = dir.join("typo");
    let no_policy = dir.join("nosuch.toml");
    let named = no_policy.to_str().unwrap();
    for (place, arguments, code, said) in [
        (dir, &["status", "--log-level", "nonsense"][..], "log_level_invalid", "nonsense"),
        (dir, &["config", "check", "--log-level", "nonsense"], "log_level_invalid", "nonsense"),
        (dir, &["run", "--proxy", "nonsense"], "proxy_invalid", "http://proxy.example:3128"),
        (dir, &["enroll", "adit1-AAAA", "--proxy", "a b"], "proxy_invalid", "socks5://"),
        (dir, &["config", "check", "--proxy", "ftp://p:1"], "proxy_invalid", "configuration"),
        (dir, &["policy", "check", named], "policy_unreadable", "there is no file"),
        (&typo, &["config", "check"], "data_dir_missing", "typo"),
    ] {
        let (exit, lines, _) = finish(agent(place, &[arguments, &["--json"]].concat())).await;
        let error = &lines.last().unwrap()["error"];
        assert_eq!((exit, &error["code"]), (2, &code.into()), "{arguments:?}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(said), "{arguments:?}: {message}");
    }
}

/// The user "nobody".
const NOBODY: u32 = 65_534;

#[tokio::test]
async fn another_users_directory_has_one_code_whatever_is_asked() {
    if !rustix::process::geteuid().is_root() {
        // Only root can be somebody else.
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let open = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(outer.path(), open()).unwrap();
    let program = outer.path().join("agent-tunnel");
    std::fs::copy(env!("CARGO_BIN_EXE_agent-tunnel"), &program).unwrap();
    let dir = outer.path().join("d");
    adit_runtime::datadir::DataDir::open(&dir).unwrap();
    std::fs::write(dir.join("agent-tunnel.toml"), "").unwrap();
    for place in [dir.clone(), dir.join("below")] {
        for command in [
            &["run"][..],
            &["status"],
            &["lock"],
            &["unlock"],
            &["policy", "show"],
            &["policy", "check"],
            &["config", "show"],
            &["config", "check"],
            &["enroll", "adit1-AAAA"],
        ] {
            let mut as_nobody = support::agent_program(&program, &place, command);
            as_nobody.arg("--json").current_dir("/").uid(NOBODY).gid(NOBODY);
            let (code, lines, stderr) = finish(as_nobody).await;
            let error = &lines.last().unwrap_or_else(|| panic!("{command:?}: {stderr}"))["error"];
            assert_eq!((code, &error["code"]), (1, &"data_dir_denied".into()), "{command:?}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("belongs to root"), "{message}");
            assert!(message.contains(dir.to_str().unwrap()), "{message}");
        }
    }
}
