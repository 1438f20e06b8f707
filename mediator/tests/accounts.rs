//! Second factors, logins with limits, and kill switches, at the running mediator.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::{
    io::Write,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use adit_net::identity::DeviceIdentity;
use adit_protocol::{
    code::failure,
    wire::{self, frame::Body},
};
use common::{
    Device, Mediator,
    api::{Web, Who},
    hello, identity, open, try_open,
};
use serde_json::{Value, json};
use sqlx::Connection;
use totp_rs::Totp;

/// R25, R26: so soon must a live session end.
const AT_ONCE: Duration = Duration::from_secs(5);
/// RFC 6238 §5.2.
const STEP_S: u64 = 30;

/// An authenticator app that never shows the same code twice: with a clock of its own, that the
/// mediator has learned, so that no test waits for the next code.
struct App {
    totp: Totp,
    /// The mediator's database.
    database: PathBuf,
    last: u64,
}

impl App {
    fn new(url: &str, mediator: &Mediator) -> Self {
        let totp = Totp::from_url(url).unwrap();
        Self { totp, database: mediator.database(), last: unix_ms() / 1000 / STEP_S - 1 }
    }

    fn at(&self, step: u64) -> String {
        self.totp.generate(step * STEP_S).to_string()
    }

    /// The next code, at the beginning of its time.
    async fn code(&mut self) -> String {
        self.last += 1;
        let ahead = |by: u64| i64::try_from(by).unwrap() - i64::try_from(unix_ms()).unwrap();
        self.know(ahead(self.last * STEP_S * 1000)).await;
        self.at(self.last)
    }

    /// As if the mediator had learned that the app's clock is so much ahead.
    async fn know(&self, drift_ms: i64) {
        let database = format!("sqlite:{}", self.database.display());
        let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
        let known = "UPDATE factor SET drift_ms = $1, missed_ms = 0 WHERE kind = 'totp'";
        sqlx::query(known).bind(drift_ms).execute(&mut database).await.unwrap();
    }

    /// The secret as raw bytes and as the app's text.
    fn secrets(&self) -> [Vec<u8>; 2] {
        let secret = self.totp.secret();
        [secret.as_bytes().to_vec(), secret.to_base32().as_bytes().to_vec()]
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

impl Mediator {
    async fn device(&self, me: &Arc<DeviceIdentity>) -> Device {
        self.connect(me, hello(2, me, &[])).await.unwrap()
    }

    /// A technician with a generated password.
    fn technician(&self, name: &str) -> String {
        let added = self.admin(&["user", "add", name]);
        added[0]["password"].as_str().unwrap().to_owned()
    }

    fn configure(&self, text: &str) {
        let file = self.dir.path().join("mediator.toml");
        let mut file = std::fs::OpenOptions::new().append(true).open(file).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rewrite(&self, from: &str, to: &str) {
        let file = self.dir.path().join("mediator.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
    }

    fn last(&self, name: &str) -> serde_json::Value {
        self.events_named(name).pop().unwrap_or_default()
    }
}

/// Begins to set up an app.
async fn enroll(mediator: &Mediator, console: &Device) -> (App, String) {
    let wish = wire::TotpEnroll { name: "phone".into() };
    match console.ask(Body::TotpEnroll(wish)).await.unwrap() {
        Body::TotpSecret(told) => (App::new(&told.url, mediator), told.factor_id),
        other => panic!("{other:?}"),
    }
}

async fn confirm(console: &Device, factor: &str, code: &str) -> Result<Vec<String>, wire::Failure> {
    let shown = wire::TotpConfirm { factor_id: factor.to_owned(), code: code.to_owned() };
    match console.ask(Body::TotpConfirm(shown)).await? {
        Body::RecoveryCodes(told) => Ok(told.codes),
        other => panic!("{other:?}"),
    }
}

async fn set_up(mediator: &Mediator, console: &Device) -> (App, Vec<String>) {
    let (mut app, factor) = enroll(mediator, console).await;
    let code = app.code().await;
    let codes = confirm(console, &factor, &code).await.unwrap();
    (app, codes)
}

async fn me(console: &Device) -> Result<wire::Me, wire::Failure> {
    match console.ask(Body::WhoAmI(wire::WhoAmI {})).await? {
        Body::Me(me) => Ok(me),
        other => panic!("{other:?}"),
    }
}

async fn code_of<T: std::fmt::Debug>(
    asked: impl Future<Output = Result<T, wire::Failure>>,
) -> String {
    asked.await.unwrap_err().code
}

/// Waits until the agent is told that a session is over; the reason.
async fn told_end(agent: &mut Device, since: Instant) -> String {
    let (body, responder) = agent.next().await.into_parts();
    responder.reply(Body::Done(wire::Done {}));
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    match body {
        Body::EndSession(end) => end.reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_one_time_code_counts_once_also_after_a_crash() {
    let mut mediator = Mediator::start();
    let password = mediator.technician("tess");
    let identity = identity();
    let console = mediator.device(&identity).await;
    let login = async |code: &str| console.login_with("tess", &password, code).await;
    login("").await.unwrap();
    let (mut app, factor) = enroll(&mediator, &console).await;
    // It counts when it is confirmed, not before.
    assert_eq!(code_of(confirm(&console, &factor, "000000")).await, failure::CODE_WRONG);
    assert_eq!(code_of(confirm(&console, "other", &app.at(1))).await, failure::NO_SUCH_FACTOR);
    assert!(!login("").await.unwrap().mfa_setup);
    let first = app.code().await;
    assert_eq!(confirm(&console, &factor, &first).await.unwrap().len(), 10);
    assert_eq!(me(&console).await.unwrap().mfa, "totp");

    let unknown = console.login_with("nobody", &password, "123456").await.unwrap_err();
    assert_eq!(code_of(login("")).await, failure::MFA_REQUIRED);
    assert_eq!(mediator.last("login.second_factor_asked")["actor"], "tess");
    assert_eq!(code_of(console.login_with("tess", "wrong", "")).await, failure::LOGIN_FAILED);
    for code in [&first, "000000", "12345", "junk"] {
        // The same words whatever is wrong.
        assert_eq!(login(code).await.unwrap_err(), unknown, "{code}");
    }
    assert_eq!(mediator.last("login.failed")["end_reason"], "second_factor");
    let second = app.code().await;
    login(&second).await.unwrap();
    assert_eq!(mediator.last("login.succeeded")["mfa"], "totp");
    assert_eq!(code_of(login(&second)).await, failure::LOGIN_FAILED);
    mediator.kill();
    mediator.serve();
    let console = mediator.device(&identity).await;
    let again = console.login_with("tess", &password, &second).await;
    assert_eq!(again.unwrap_err().code, failure::LOGIN_FAILED);
    let third = app.code().await;
    console.login_with("tess", &password, &third).await.unwrap();
    mediator.admin(&["audit", "verify"]);
}

/// R23: no code of another time counts, though it is right; and an app whose clock went off is let
/// in with the code after the one that was refused, also if the mediator crashed between.
#[tokio::test]
async fn a_code_of_another_time_is_refused_and_the_next_in_a_row_is_taken() {
    let mut mediator = Mediator::start();
    let password = mediator.technician("tess");
    let me_here = identity();
    let console = mediator.device(&me_here).await;
    console.login("tess", &password).await.unwrap();
    let (app, factor) = enroll(&mediator, &console).await;
    // At the middle of the mediator's time, so that nothing changes meanwhile.
    let present = app.last + 1;
    let middle = i64::try_from(present * STEP_S * 1000 + 15_000).unwrap();
    let here = || middle - i64::try_from(unix_ms()).unwrap();
    for step in [present - 1, present + 1] {
        app.know(here()).await;
        let refused = confirm(&console, &factor, &app.at(step)).await.unwrap_err();
        assert_eq!(refused.code, failure::CODE_WRONG);
        assert_eq!(mediator.last("mfa.confirmation_failed")["end_reason"], "code_out_of_time");
    }
    app.know(here()).await;
    // That one was seen: it is spent, and so is what comes before it.
    for step in [present - 1, present, present + 1] {
        assert!(confirm(&console, &factor, &app.at(step)).await.is_err());
    }
    assert_eq!(mediator.last("mfa.confirmation_failed")["end_reason"], "second_factor");
    let past =
        "UPDATE factor SET missed_ms = CAST(strftime('%s', 'now') AS INTEGER) * 1000 - 20000";
    let database = format!("sqlite:{}", mediator.database().display());
    let as_if_20_s_passed = async || {
        let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
        sqlx::query(past).execute(&mut database).await.unwrap();
    };
    as_if_20_s_passed().await;
    confirm(&console, &factor, &app.at(present + 2)).await.unwrap();

    // The clock is off by two minutes more.
    let login = async |console: &Device, step: u64| {
        console.login_with("tess", &password, &app.at(step)).await
    };
    let unknown = console.login_with("nobody", &password, "123456").await.unwrap_err();
    assert_eq!(login(&console, present + 6).await.unwrap_err(), unknown);
    assert_eq!(mediator.last("login.failed")["end_reason"], "code_out_of_time");
    mediator.kill();
    mediator.serve();
    let console = mediator.device(&me_here).await;
    assert_eq!(login(&console, present + 6).await.unwrap_err(), unknown);
    assert_eq!(mediator.last("login.failed")["end_reason"], "second_factor");
    // A clock does not do that in a moment: somebody saw two codes.
    as_if_20_s_passed().await;
    assert_eq!(login(&console, present + 7).await.unwrap_err(), unknown);
    assert_eq!(mediator.last("login.failed")["end_reason"], "code_out_of_time");
    as_if_20_s_passed().await;
    let months = "UPDATE factor SET used_ms = used_ms - 90 * 86400000";
    let mut open = sqlx::SqliteConnection::connect(&database).await.unwrap();
    sqlx::query(months).execute(&mut open).await.unwrap();
    login(&console, present + 8).await.unwrap();
    assert_eq!(login(&console, present + 8).await.unwrap_err(), unknown);
    assert_eq!(mediator.last("login.succeeded")["mfa"], "totp");
}

#[tokio::test]
async fn a_login_without_the_factor_confirms_none_of_its_owners() {
    let mediator = Mediator::start();
    let password = mediator.technician("tess");
    let (owner, other) = (mediator.device(&identity()).await, mediator.device(&identity()).await);
    for console in [&owner, &other] {
        console.login("tess", &password).await.unwrap();
    }
    let (_, codes) = set_up(&mediator, &owner).await;
    assert_eq!(codes.len(), 10);
    let (mut app, factor) = enroll(&mediator, &owner).await;
    let code = app.code().await;
    for code in ["000000", &code] {
        let refused = code_of(confirm(&other, &factor, code)).await;
        assert_eq!(refused, failure::REAUTHENTICATION_REQUIRED);
    }
    assert_eq!(me(&other).await.unwrap().mfa, "none");
    confirm(&owner, &factor, &code).await.unwrap();
}

#[tokio::test]
async fn two_that_show_the_same_code_at_once_do_not_both_get_in() {
    let mediator = Mediator::start();
    let password = mediator.technician("tess");
    let (a, b) = (mediator.device(&identity()).await, mediator.device(&identity()).await);
    a.login("tess", &password).await.unwrap();
    let (mut app, codes) = set_up(&mediator, &a).await;
    for code in [app.code().await, codes[0].clone()] {
        let both = tokio::join!(
            a.login_with("tess", &password, &code),
            b.login_with("tess", &password, &code)
        );
        assert!(both.0.is_ok() != both.1.is_ok(), "{both:?}");
    }
}

#[tokio::test]
async fn recovery_codes_count_once_and_no_secret_is_left_anywhere() {
    let mut mediator = Mediator::init();
    let log = tempfile::NamedTempFile::new().unwrap();
    mediator.serve_logging("trace", Stdio::from(log.reopen().unwrap()));
    let mut seeded: Vec<Vec<u8>> = Vec::new();
    for n in 0..5 {
        let name = format!("tess{n}");
        let password = mediator.technician(&name);
        let console = mediator.device(&identity()).await;
        console.login(&name, &password).await.unwrap();
        let (app, codes) = set_up(&mediator, &console).await;
        if n == 0 {
            let typed = codes[3].to_uppercase().replace('-', " ");
            let told = console.login_with(&name, &password, &typed).await.unwrap();
            assert_eq!(told.recovery_left, 9);
            assert_eq!(mediator.last("mfa.recovery_used")["extra"]["left"], 9);
            let again = console.login_with(&name, &password, &codes[3]).await;
            assert_eq!(again.unwrap_err().code, failure::LOGIN_FAILED);
            // Others take the place of all that are left.
            let renewed = console.ask(Body::RecoveryRenew(wire::RecoveryRenew {})).await.unwrap();
            let Body::RecoveryCodes(fresh) = renewed else { panic!() };
            let old = console.login_with(&name, &password, &codes[4]).await;
            assert_eq!(old.unwrap_err().code, failure::LOGIN_FAILED);
            console.login_with(&name, &password, &fresh.codes[0]).await.unwrap();
        }
        seeded.extend(app.secrets());
        for code in codes {
            seeded.push(code.replace('-', "").into_bytes());
            seeded.push(code.into_bytes());
        }
        seeded.push(password.into_bytes());
    }
    mediator.admin(&["vault", "rotate"]);
    let backup = mediator.dir.path().join("backup.db");
    mediator.admin(&["backup", backup.to_str().unwrap()]);
    let mut places: Vec<_> = std::fs::read_dir(mediator.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    places.push(log.path().to_owned());
    assert!(places.iter().any(|path| path.ends_with("mediator.db-wal")));
    for path in places {
        let bytes = std::fs::read(&path).unwrap();
        for secret in &seeded {
            let found = bytes.windows(secret.len()).any(|window| window == &secret[..]);
            assert!(!found, "a secret is in {}", path.display());
        }
    }
    assert!(std::fs::metadata(log.path()).unwrap().len() > 1000);
}

#[tokio::test]
async fn where_a_second_factor_is_required_a_password_only_sets_one_up() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    // Beside a factor eight characters are enough; alone they are not.
    let add = |name: &str, more: &[&str]| {
        let args = [&["user", "add", name, "--password-stdin"], more].concat();
        mediator.try_admin(&args, "kx7 pwqz\n").0
    };
    assert_eq!((add("tess", &[]), add("tess", &["--mfa"])), (2, 0));
    let console = mediator.device(&identity()).await;
    assert!(console.login("tess", "kx7 pwqz").await.unwrap().mfa_setup);
    let list = || console.ask(Body::ListComputers(wire::ListComputers::default()));
    assert_eq!(code_of(list()).await, failure::MFA_SETUP_REQUIRED);
    let wish = open(1, &pc, &key);
    assert_eq!(code_of(try_open(&console, &mut agent, wish)).await, failure::MFA_SETUP_REQUIRED);
    assert_eq!(mediator.last("login.limited")["end_reason"], failure::MFA_SETUP_REQUIRED);
    let (_, codes) = set_up(&mediator, &console).await;
    list().await.unwrap();
    try_open(&console, &mut agent, open(2, &pc, &key)).await.unwrap();
    assert_eq!(mediator.last("session.granted")["mfa"], "totp");
    // A short password never becomes the only factor.
    let since = Instant::now();
    mediator.admin(&["user", "mfa", "reset", "tess"]);
    assert_eq!(told_end(&mut agent, since).await, "mfa_reset");
    mediator.admin(&["user", "mfa", "optional", "tess"]);
    assert_eq!(code_of(list()).await, failure::NOT_LOGGED_IN);
    assert!(console.login_with("tess", "kx7 pwqz", &codes[0]).await.unwrap().mfa_setup);
    assert_eq!(code_of(list()).await, failure::MFA_SETUP_REQUIRED);
    // init's administrator is asked once a factor is set up.
    let (admin, _, _) = mediator.console().await;
    let listed = mediator.admin(&["user", "list"]);
    let state =
        |name: &str| listed.iter().find(|user| user["user"] == name).unwrap()["mfa"].clone();
    assert_eq!((state("admin"), state("tess")), ("none".into(), "required".into()));
    set_up(&mediator, &admin).await;
    let other = mediator.device(&identity()).await;
    assert_eq!(code_of(other.login("admin", &mediator.password)).await, failure::MFA_REQUIRED);
}

/// As shipped: whoever is added sets a second factor up first; init's administrator need not.
#[tokio::test]
async fn as_shipped_every_technician_sets_a_second_factor_up_first() {
    let mut mediator = Mediator::init();
    mediator.rewrite("mfa = \"once_set_up\"\n", "");
    mediator.serve();
    let password = mediator.technician("tess");
    let console = mediator.device(&identity()).await;
    assert!(console.login("tess", &password).await.unwrap().mfa_setup);
    let listed = console.ask(Body::ListComputers(wire::ListComputers::default()));
    assert_eq!(code_of(listed).await, failure::MFA_SETUP_REQUIRED);
    set_up(&mediator, &console).await;
    console.ask(Body::ListComputers(wire::ListComputers::default())).await.unwrap();
    let (admin, _, _) = mediator.console().await;
    admin.ask(Body::ListComputers(wire::ListComputers::default())).await.unwrap();
    // What resists phishing cannot be shown on a console.
    mediator.admin(&["user", "mfa", "require", "tess", "--phishing-resistant"]);
    let asked = console.ask(Body::ListComputers(wire::ListComputers::default()));
    assert_eq!(code_of(asked).await, failure::NOT_LOGGED_IN);
}

/// Each kind of peer from its own networks; who comes from elsewhere is recorded once.
#[tokio::test]
async fn peers_come_from_the_networks_that_are_allowed() {
    let mut mediator = Mediator::init();
    mediator.configure("[sources]\nconsoles = [\"192.0.2.0/24\", \"2001:db8::/32\"]\n");
    mediator.serve();
    mediator.admin(&["client", "add", "main/hq"]);
    mediator.agent("pc").await;
    for _ in 0..2 {
        let me = identity();
        let refused = mediator.connect(&me, hello(2, &me, &[])).await.err().unwrap();
        assert!(refused.to_string().contains("not from this network"), "{refused}");
    }
    let recorded = mediator.events_named("connection.source_refused");
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0]["end_reason"], failure::SOURCE_NOT_ALLOWED);
    mediator.stop();
    mediator.rewrite("192.0.2.0/24", "127.0.0.0/8");
    mediator.serve();
    mediator.console().await;
}

/// Agents, relays, browsers and programs, too; and a role may hold from some networks only.
#[tokio::test]
async fn each_listener_and_each_role_has_networks_of_its_own() {
    let mut mediator = Mediator::start();
    let (agent, pc, key) = mediator.agent("pc").await;
    drop(agent);
    let relay = identity();
    let enrolled = mediator.enroll(&relay, &mediator.token(&["relay"]), 3, "r").await.unwrap();
    mediator.admin(&["user", "add", "boss", "--role", "none"]);
    mediator.stop();
    let elsewhere = "[\"192.0.2.0/24\"]";
    mediator.configure(&format!(
        "[sources]\nagents = {elsewhere}\nrelays = {elsewhere}\nweb = [\"127.0.0.2/31\"]\n"
    ));
    mediator.serve();
    for (kind, who, id) in [(1, &key, &pc.device_id), (3, &relay, &enrolled.device_id)] {
        let refused = mediator.connect(who, hello(kind, who, id)).await.err().unwrap();
        assert!(refused.to_string().contains("not from this network"), "{kind}: {refused}");
    }
    let (console, me, _) = mediator.console().await;
    let owner = Who::at(&console, &me).await;
    for (from, status) in [("127.0.0.1", 403), ("127.0.0.2", 200), ("127.0.0.3", 200)] {
        let mut web = Web::connect_from(&mediator, from).await;
        for path in ["/login", "/api/v1/version"] {
            let answer = web.send("GET", path, &[], None).await;
            assert_eq!(answer.status, status, "{path} from {from}: {answer:?}");
        }
        let answer = web.ask(&owner, "GET", "/api/v1/me", None).await;
        assert_eq!(answer.status, status, "{from}: {answer:?}");
        if status == 403 {
            assert_eq!(answer.code(), failure::SOURCE_NOT_ALLOWED);
        }
    }
    // Each way once a minute for a source.
    for event in ["connection.source_refused", "api.authentication_failed"] {
        let recorded = mediator.events_named(event);
        assert_eq!(recorded.len(), 1, "{recorded:?}");
        assert_eq!(recorded[0]["end_reason"], failure::SOURCE_NOT_ALLOWED);
    }
    // A role from one network: the same person, a moment later, from another.
    mediator.admin(&["role", "unbind", &{
        let bound = mediator.admin(&["role", "show", "owner"]);
        bound[1]["binding"].as_str().unwrap().to_owned()
    }]);
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--from", "127.0.0.2/32"]);
    let (mut near, mut far) = (
        Web::connect_from(&mediator, "127.0.0.2").await,
        Web::connect_from(&mediator, "127.0.0.3").await,
    );
    for (method, target, body) in [
        ("GET", "/api/v1/users", None),
        ("POST", "/api/v1/clients", Some(json!({"client": "main/b"}))),
    ] {
        let refused = far.ask(&owner, method, target, body.as_ref()).await;
        assert_eq!((refused.status, refused.code()), (403, failure::SOURCE_NOT_ALLOWED));
        let done = near.ask(&owner, method, target, body.as_ref()).await;
        assert_eq!(done.status, 200, "{target}: {done:?}");
    }
}

#[tokio::test]
async fn acts_ask_for_a_fresh_factor_which_is_shown_without_a_new_login() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let added = mediator.admin(&["user", "add", "tess", "--role", "none"]);
    let password = added[0]["password"].as_str().unwrap();
    mediator.admin(&["role", "bind", "technician", "--user", "tess", "--mfa-within", "1s"]);
    let console = mediator.device(&identity()).await;
    console.login("tess", password).await.unwrap();
    let refused = code_of(try_open(&console, &mut agent, open(1, &pc, &key))).await;
    assert_eq!(refused, failure::MFA_REQUIRED);
    let (mut app, _) = set_up(&mediator, &console).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let refused = code_of(try_open(&console, &mut agent, open(2, &pc, &key))).await;
    assert_eq!(refused, failure::MFA_REQUIRED);
    let before = me(&console).await.unwrap();
    let show = async |password: &str, code: &str| {
        let shown = wire::Reauthenticate { password: password.into(), totp: code.into() };
        match console.ask(Body::Reauthenticate(shown)).await? {
            Body::Me(me) => Ok(me),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code_of(show("", "")).await, failure::REAUTHENTICATION_REQUIRED);
    for (password, code) in [("wrong", ""), ("", "000000"), ("wrong", &app.code().await)] {
        assert_eq!(code_of(show(password, code)).await, failure::LOGIN_FAILED);
    }
    assert_eq!(mediator.events_named("login.reauthentication_failed").len(), 3);
    let shown = show("", &app.code().await).await.unwrap();
    assert!(shown.mfa_ms > before.mfa_ms && shown.expires_ms == before.expires_ms);
    try_open(&console, &mut agent, open(3, &pc, &key)).await.unwrap();
    // With the password as well the login's time begins anew.
    let shown = show(password, &app.code().await).await.unwrap();
    assert!(shown.expires_ms > before.expires_ms && shown.authenticated_ms >= shown.mfa_ms);
}

#[tokio::test]
async fn every_kill_switch_ends_live_sessions_at_once() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let mut password = mediator.technician("tess");
    let me = identity();
    let device = me.signing.public().fingerprint().to_string();
    let id = "08080808-0808-0808-0808-080808080808";
    let acts: [(&[&str], &str, &[&str]); 8] = [
        (&["user", "disable", "tess"], "user_disabled", &["user", "enable", "tess"]),
        (&["user", "password", "tess"], "password_changed", &[]),
        (&["user", "logout", "tess"], "logged_out", &[]),
        (&["device", "disable", &device], "device_disabled", &["device", "enable", &device]),
        (
            &["client", "lockdown", "main/hq", "--reason", "incident"],
            "client_locked",
            &["client", "unlock", "main/hq"],
        ),
        (&["user", "mfa", "require", "tess"], "mfa_required", &["user", "mfa", "optional", "tess"]),
        (&["user", "mfa", "reset", "tess"], "mfa_reset", &[]),
        (&["session", "end", id], "ended_by_administrator", &[]),
    ];
    for (n, (act, reason, undo)) in (1..).zip(acts) {
        let console = mediator.device(&me).await;
        console.login("tess", &password).await.unwrap();
        try_open(&console, &mut agent, open(n, &pc, &key)).await.unwrap();
        let listed = mediator.admin(&["user", "sessions", "tess"]);
        let kinds: Vec<_> = listed.iter().map(|line| line["kind"].as_str().unwrap()).collect();
        assert!(kinds.contains(&"login") && kinds.contains(&"session"), "{listed:?}");
        assert!(listed.iter().all(|line| line["device"] == device.as_str()));
        let since = Instant::now();
        let told = mediator.admin(act);
        if let Some(fresh) = told[0]["password"].as_str() {
            password = fresh.to_owned();
        }
        assert_eq!(told_end(&mut agent, since).await, reason, "{act:?}");
        let again = try_open(&console, &mut agent, open(n + 100, &pc, &key)).await;
        match reason {
            "client_locked" => {
                assert_eq!(again.unwrap_err().code, failure::CLIENT_LOCKED);
                assert_eq!(mediator.last("session.refused")["rule"], "client-lockdown");
            }
            "device_disabled" => {
                assert_eq!(again.unwrap_err().code, failure::NOT_LOGGED_IN);
                let refused = console.login("tess", &password).await.unwrap_err();
                assert_eq!(refused.code, failure::DEVICE_DISABLED);
            }
            "ended_by_administrator" => again.unwrap(),
            _ => assert_eq!(again.unwrap_err().code, failure::NOT_LOGGED_IN),
        }
        assert_eq!(mediator.last("session.ended")["end_reason"], reason);
        if !undo.is_empty() {
            mediator.admin(undo);
        }
    }
    // The person's own: logging out ends what the login opened.
    let since = Instant::now();
    let console = mediator.device(&me).await;
    console.login("tess", &password).await.unwrap();
    try_open(&console, &mut agent, open(200, &pc, &key)).await.unwrap();
    console.ask(Body::Logout(wire::Logout {})).await.unwrap();
    assert_eq!(told_end(&mut agent, since).await, "logged_out");
    mediator.admin(&["audit", "verify"]);
}

#[tokio::test]
async fn an_unused_login_begins_nothing_and_an_old_one_keeps_nothing_up() {
    let mut mediator = Mediator::init();
    mediator.configure("session_idle = \"1s\"\nsession_life = \"6s\"\n");
    mediator.serve();
    mediator.admin(&["client", "add", "main/hq"]);
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let (console, admin, _) = mediator.console().await;
    let since = Instant::now();
    try_open(&console, &mut agent, open(1, &pc, &key)).await.unwrap();
    let (who, mut web) = (Who::at(&console, &admin).await, Web::connect(&mediator).await);
    assert_eq!(web.ask(&who, "GET", "/api/v1/me", None).await.status, 200);
    let renew = || console.ask(Body::Renew(wire::Renew { session_id: vec![1; 16].into() }));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    renew().await.unwrap();
    assert_eq!(code_of(me(&console)).await, failure::NOT_LOGGED_IN);
    // Nor by the API with a token that was got in time.
    let idle = web.ask(&who, "GET", "/api/v1/me", None).await;
    assert_eq!((idle.status, idle.code()), (401, failure::NOT_LOGGED_IN));
    // Whoever is there again says so, and goes on.
    let shown = wire::Reauthenticate { password: mediator.password.clone(), ..Default::default() };
    console.ask(Body::Reauthenticate(shown)).await.unwrap();
    let expires = Instant::now() + Duration::from_secs(6);
    me(&console).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(60));
    tokio::time::sleep(expires.saturating_duration_since(Instant::now())).await;
    assert_eq!(code_of(renew()).await, failure::NOT_LOGGED_IN);
    // Nor does the agent get more time for it.
    let asked = agent.ask(Body::Renew(wire::Renew { session_id: vec![1; 16].into() }));
    assert!(asked.await.is_err());
    let limits = mediator.try_admin(&["config", "show"], "");
    assert_eq!(limits.0, 0);
    mediator.stop();
    mediator.rewrite("once_set_up", "sometimes");
    assert_eq!(mediator.try_admin(&["config", "check"], "").0, 2);
}

/// R22: what an unknown user, a wrong password and a wrong code cost is the same. On a machine that
/// does other things too only a missing hash can be seen; on a quiet one, in a release build, the
/// feature `timing` demands the rule's 5 % over 200 tries.
#[tokio::test]
async fn unknown_users_and_known_ones_are_answered_in_the_same_time() {
    const TRIES: usize = if cfg!(feature = "timing") { 200 } else { 15 };
    const TOLERANCE: f64 = if cfg!(feature = "timing") { 0.05 } else { 0.5 };
    let mediator = Mediator::start();
    mediator.technician("plain");
    let password = mediator.technician("tess");
    let console = mediator.device(&identity()).await;
    console.login("tess", &password).await.unwrap();
    let (_app, _) = set_up(&mediator, &console).await;
    let cases = [
        ("nobody", "wrong password", ""),
        ("plain", "wrong password", ""),
        ("tess", "wrong password", ""),
        ("nobody", "wrong password", "000000"),
        ("tess", "wrong password", "000000"),
        ("tess", password.as_str(), "000000"),
    ];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); cases.len()];
    let mut answers = Vec::new();
    for round in 0..TRIES {
        let stranger = mediator.device(&identity()).await;
        for n in 0..cases.len() {
            // In changing order, so that what comes before weighs on all alike.
            let n = if round % 2 == 0 { n + round } else { round + cases.len() - n } % cases.len();
            let (user, password, code) = cases[n];
            let began = Instant::now();
            answers.push(stranger.login_with(user, password, code).await.unwrap_err());
            times[n].push(began.elapsed());
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let median = |mut values: Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ms = |times: &[Duration]| times.iter().map(|t| t.as_secs_f64() * 1000.0).collect();
    let medians: Vec<f64> = times.iter().map(|times| median(ms(times))).collect();
    eprintln!("medians in ms: {medians:.2?}");
    // A request is compared with the same request for another user, in the same round: what else
    // the machine does weighs on both.
    for (first, alike) in [(0, [1, 2]), (3, [4, 5])] {
        for other in alike {
            let pairs = times[first].iter().zip(&times[other]);
            let more =
                median(pairs.map(|(a, b)| b.as_secs_f64() / a.as_secs_f64() - 1.0).collect());
            eprintln!("{:?} takes {:+.2} % of {:?}", cases[other].0, more * 100.0, cases[first].0);
            assert!(more.abs() < TOLERANCE, "{medians:?}");
        }
    }
}

/// Guesses that are under way together must not all pass the check that the first one passed.
#[tokio::test]
async fn guesses_at_the_same_time_do_not_get_round_the_delay() {
    let mediator = Mediator::start();
    mediator.technician("tess");
    let first = mediator.device(&identity()).await;
    for _ in 0..10 {
        first.login("tess", "not this one").await.unwrap_err();
    }
    let mut guessers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let console = mediator.device(&identity()).await;
        guessers.spawn(async move { console.login("tess", "nor that one").await.unwrap_err() });
    }
    guessers.join_all().await;
    let failed = mediator.events_named("login.failed");
    let why = |reason: &str| failed.iter().skip(10).filter(|e| e["end_reason"] == reason).count();
    // More than one only if the first delay, two seconds, was over before all were through.
    let (counted, delayed) = (why("password"), why("delayed"));
    assert!(counted <= 4 && delayed >= 4, "{counted} counted, {delayed} delayed");
}

/// Who was switched off must not fill the log.
#[tokio::test]
async fn a_device_that_is_switched_off_is_recorded_once_a_minute() {
    let mediator = Mediator::start();
    let password = mediator.technician("tess");
    let me = identity();
    mediator.admin(&["device", "disable", &me.signing.public().fingerprint().to_string()]);
    let console = mediator.device(&me).await;
    for _ in 0..10 {
        let refused = console.login("tess", &password).await.unwrap_err();
        assert_eq!(refused.code, failure::DEVICE_DISABLED);
    }
    let failed = mediator.events_named("login.failed");
    let recorded = failed.iter().filter(|e| e["end_reason"] == failure::DEVICE_DISABLED);
    assert_eq!(recorded.count(), 1);
}

/// What a partner switched off is told as what it is, and can be undone where the mediator is.
#[tokio::test]
async fn a_device_that_a_partner_switched_off_is_told_shown_and_switched_on_again() {
    let mediator = Mediator::start();
    let password = mediator.technician("tess");
    mediator.admin(&["client", "add", "other/hq"]);
    let theirs = mediator.admin(&["user", "add", "otto", "--partner", "other"]);
    let me = identity();
    let device = me.signing.public().fingerprint().to_string();
    let console = mediator.device(&me).await;
    console.login("tess", &password).await.unwrap();
    let (mut app, _) = set_up(&mediator, &console).await;
    let (boss, key, _) = mediator.console().await;
    let owner = Who::at(&boss, &key).await;
    let mut web = Web::connect(&mediator).await;
    let disable = format!("/api/v1/devices/{device}/disable");
    let reason = json!({"reason": "lost"});
    let off = web.ask(&owner, "POST", &disable, Some(&reason)).await;
    assert_eq!((off.status, &off.body["disabled_by"]), (200, &json!(["partner main"])));
    // Whoever knows the password is told, whatever the second factor, which is not used up.
    let code = app.code().await;
    for code in ["", &code, &code] {
        let refused = console.login_with("tess", &password, code).await.unwrap_err();
        assert_eq!(refused.code, failure::DEVICE_DISABLED);
    }
    // Nobody else is: neither whether a user exists, nor whose it is.
    for user in ["tess", "nobody"] {
        let refused = console.login(user, "a wrong password").await.unwrap_err();
        assert_eq!(refused.code, failure::LOGIN_FAILED);
    }
    let failed = mediator.events_named("login.failed");
    let ends: Vec<_> = failed.iter().map(|event| event["end_reason"].as_str().unwrap()).collect();
    assert_eq!(ends, [failure::DEVICE_DISABLED, "password", "unknown_user"]);
    // Other partners' users are not concerned.
    console.login("otto", theirs[0]["password"].as_str().unwrap()).await.unwrap();
    let listed = |who: &str| {
        let all = mediator.admin(&["device", "list"]);
        let found = all.into_iter().find(|listed| listed["device"] == device.as_str()).unwrap();
        assert_eq!(found["disabled_by"], serde_json::from_str::<Value>(who).unwrap());
        assert_eq!(found["enabled"], who == "[]");
    };
    listed(r#"["partner main"]"#);
    let enable = ["device", "enable", device.as_str()];
    assert_eq!(mediator.try_admin(&enable, "").0, 4);
    // Both at once: each is undone by itself.
    mediator.admin(&["device", "disable", &device]);
    listed(r#"["mediator","partner main"]"#);
    let still = mediator.admin(&enable);
    assert_eq!(
        (&still[0]["enabled"], &still[0]["disabled_by"]),
        (&json!(false), &json!(["partner main"]))
    );
    let enable = [&enable[..], &["--partner", "main"]].concat();
    assert_eq!(mediator.admin(&enable)[0]["enabled"], true);
    listed("[]");
    console.login_with("tess", &password, &app.code().await).await.unwrap();
    // A partner sees what keeps its people's devices out, not why.
    mediator.admin(&["device", "disable", &device, "--reason", "of another partner"]);
    let list = web.ask(&owner, "GET", "/api/v1/devices", None).await;
    let found = list.body["items"].as_array().unwrap().iter();
    let found: Vec<_> = found.filter(|listed| listed["device"] == device.as_str()).collect();
    assert_eq!((&found[0]["disabled_by"], &found[0]["reason"]), (&json!(["mediator"]), &json!("")));
    let enable = format!("/api/v1/devices/{device}/enable");
    assert_eq!(web.ask(&owner, "POST", &enable, None).await.status, 404);
}

/// Nobody could log in any more, but by the mediator's machine.
#[tokio::test]
async fn the_last_who_manages_users_is_not_disabled_from_afar() {
    let mediator = Mediator::start();
    mediator.technician("tess");
    mediator.admin(&["user", "add", "guest", "--role", "owner"]);
    mediator.admin(&["user", "disable", "guest"]);
    let (boss, key, _) = mediator.console().await;
    let owner = Who::at(&boss, &key).await;
    let mut web = Web::connect(&mediator).await;
    let disable = |user: &str| format!("/api/v1/users/{user}/disable");
    let refused = web.ask(&owner, "POST", &disable("admin"), None).await;
    assert_eq!((refused.status, refused.code()), (403, "last_manager"), "{refused:?}");
    assert!(refused.body["detail"].as_str().unwrap().contains("users.manage"), "{refused:?}");
    assert_eq!(mediator.last("act.refused")["rule"], "last-administrator");
    assert!(me(&boss).await.is_ok() && mediator.events_named("user.disabled").len() == 1);
    assert_eq!(web.ask(&owner, "POST", &disable("tess"), None).await.status, 200);
    // Somebody else who may, be it by a group, is enough; that one is the last then.
    mediator.admin(&["role", "bind", "administrator", "--user-group", "deputies"]);
    mediator.admin(&["user", "enable", "tess"]);
    mediator.admin(&["user", "group", "tess", "deputies"]);
    assert_eq!(web.ask(&owner, "POST", &disable("admin"), None).await.status, 200);
    // The machine's administrator can undo what they do.
    mediator.admin(&["user", "disable", "tess"]);
}
