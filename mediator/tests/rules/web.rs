//! Every page and every form: headers, cookies, and where forms may come from (R43).
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use adit_protocol::code::failure;

use sqlx::Connection as _;

use super::lost::{Database, assert_quiet};
use crate::common::{
    Mediator,
    api::{Answer, Web},
};

/// Of every route of the pages: path, whether it is got, whether it is posted to.
fn pages() -> Vec<(String, bool, bool)> {
    let source = include_str!("../../src/pages/mod.rs");
    let routes = source.lines().filter_map(|line| line.trim().strip_prefix(".route(\""));
    let one = |line: &str| {
        let (path, methods) = line.split_once('"').unwrap();
        let path = path.replace("{provider}", "x");
        (path, methods.contains("get("), methods.contains("post("))
    };
    routes.map(one).collect()
}

/// The value of a cookie that an answer sets, with its attributes checked.
fn cookie(answer: &Answer, name: &str) -> String {
    let all = answer.headers.get_all("set-cookie").iter();
    let all: Vec<&str> = all.map(|value| value.to_str().unwrap()).collect();
    for cookie in &all {
        let parts: Vec<&str> = cookie.split("; ").skip(1).collect();
        for must in ["Path=/", "Secure", "HttpOnly", "SameSite=Strict"] {
            assert!(parts.contains(&must), "{must} is missing: {cookie}");
        }
        assert!(cookie.starts_with("__Host-") && !cookie.contains("Domain"), "{cookie}");
    }
    let found = all.iter().find_map(|cookie| cookie.strip_prefix(name)?.strip_prefix('='));
    let found = found.unwrap_or_else(|| panic!("no {name}: {answer:?}"));
    found.split(';').next().unwrap().to_owned()
}

/// A browser that is logged in.
struct Browser {
    origin: String,
    browser: String,
    session: String,
    csrf: String,
}

fn form() -> (&'static str, String) {
    ("content-type", "application/x-www-form-urlencoded".to_owned())
}

async fn log_in(mediator: &Mediator, web: &mut Web) -> Browser {
    let origin = format!("https://127.0.0.1:{}", mediator.port);
    let login = web.send("GET", "/login", &[], None).await;
    let browser = format!("__Host-adit-browser={}", cookie(&login, "__Host-adit-browser"));
    let page = login.body.as_str().unwrap().to_owned();
    let csrf = &page.split("name=\"csrf\" value=\"").nth(1).unwrap()[..64];
    let good = [("origin", origin.clone()), ("cookie", browser.clone()), form()];
    let fields = format!("csrf={csrf}&user=admin&password={}", mediator.password);
    let entered = web.send("POST", "/login", &good, Some(&fields)).await;
    assert_eq!(entered.status, 303, "{entered:?}");
    let session = cookie(&entered, "__Host-adit-session");
    Browser { origin, browser, session, csrf: csrf.to_owned() }
}

impl Browser {
    fn cookies(&self) -> String {
        format!("{}; __Host-adit-session={}", self.browser, self.session)
    }
}

/// R20, with the limits as shipped and as if time had passed: an hour without use ends a page's
/// login, use keeps it until then, and nothing keeps it beyond its end.
#[tokio::test]
async fn a_pages_login_ends_after_an_hour_without_use_and_at_its_end() {
    const HOUR_MS: i64 = 3_600_000;
    const DAY_MS: i64 = 24 * HOUR_MS;
    let mediator = Mediator::start();
    let mut web = Web::connect(&mediator).await;
    let database = format!("sqlite:{}", mediator.database().display());
    let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
    let mut times = async |change: &str| -> (i64, i64) {
        let age = format!("UPDATE login SET {change}");
        let aged = sqlx::query(sqlx::AssertSqlSafe(age)).execute(&mut database).await.unwrap();
        assert_eq!(aged.rows_affected(), 1);
        let read = "SELECT used_ms, expires_ms FROM login";
        sqlx::query_as(read).fetch_one(&mut database).await.unwrap()
    };
    let mut browser = log_in(&mediator, &mut web).await;
    let (used, expires) = times("used_ms = used_ms").await;
    assert!(expires - used <= DAY_MS, "{expires} {used}");
    let mut is_in = async |browser: &Browser| {
        let account = web.send("GET", "/account", &[("cookie", browser.cookies())], None).await;
        let shown = account.body.as_str().is_some_and(|page| page.contains("Log out"));
        assert_eq!(shown, account.status == 200, "{account:?}");
        shown
    };
    // Used again and again shortly before its limit, for longer than that.
    for _ in 0..3 {
        let before = times(&format!("used_ms = used_ms - {HOUR_MS} + 20000")).await.0;
        assert!(is_in(&browser).await);
        let since = std::time::Instant::now();
        while times("used_ms = used_ms").await.0 == before {
            assert!(since.elapsed().as_secs() < 20, "the use is not noted");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    assert_eq!(times("used_ms = used_ms").await.1, expires, "use makes it last longer");
    times(&format!("used_ms = used_ms - {HOUR_MS}")).await;
    assert!(!is_in(&browser).await);
    // What was refused is no use.
    assert!(!is_in(&browser).await);

    let mut web = Web::connect(&mediator).await;
    browser = log_in(&mediator, &mut web).await;
    let last = "WHERE token_hash = (SELECT token_hash FROM login ORDER BY created_ms DESC LIMIT 1)";
    let mut is_in = async |browser: &Browser| {
        web.send("GET", "/account", &[("cookie", browser.cookies())], None).await.status == 200
    };
    assert!(is_in(&browser).await);
    times(&format!("expires_ms = expires_ms - {DAY_MS} {last}")).await;
    assert!(!is_in(&browser).await);
}

/// R43: every page, whatever it answers, and every form.
#[tokio::test]
async fn every_page_has_its_headers_and_no_form_is_taken_from_elsewhere() {
    let mediator = Mediator::start();
    let mut web = Web::connect(&mediator).await;
    let entered = log_in(&mediator, &mut web).await;
    let (form, cookies) = (form(), entered.cookies());
    let Browser { origin, session, csrf, .. } = entered;
    let logged_in = [("cookie", cookies.clone())];

    let routes = pages();
    assert!(routes.len() > 15, "{routes:?}");
    let right = format!("csrf={csrf}");
    for (path, got, posted) in &routes {
        let answer = web.send("GET", path, &logged_in, None).await;
        assert_eq!(answer.status == 405, !got, "{path}: {answer:?}");
        let mut answers = vec![answer];
        for (origin, cookies, fields) in [
            (Some("https://evil.example"), &*cookies, &*right),
            (Some("null"), &*cookies, &*right),
            (None, &*cookies, &*right),
            (Some(&*origin), &*cookies, ""),
            (Some(&*origin), &*cookies, "csrf="),
            (Some(&*origin), &*session, &*right),
        ] {
            let mut headers = vec![("cookie", cookies.to_owned()), form.clone()];
            headers.extend(origin.map(|origin| ("origin", origin.to_owned())));
            let answer = web.send("POST", path, &headers, Some(fields)).await;
            let refused = if *posted { 403 } else { 405 };
            assert_eq!(answer.status, refused, "{path} from {origin:?}, {fields}: {answer:?}");
            answers.push(answer);
        }
        for answer in answers {
            assert_page(path, &answer);
        }
    }
    // Whoever was logged in still is: no form did anything.
    let account = web.send("GET", "/account", &logged_in, None).await;
    assert!(account.status == 200 && account.body.as_str().unwrap().contains("Log out"));
    // While logins cannot be read, nobody is in, and nobody is told to be out (R39).
    let mut database = Database::of(&mediator).await;
    database.change("ALTER TABLE login RENAME TO lost".to_owned()).await;
    for path in ["/account", "/login", "/device"] {
        let answer = web.send("GET", path, &logged_in, None).await;
        assert!(answer.status == 500 && !answer.headers.contains_key("set-cookie"), "{answer:?}");
        assert_quiet(path, answer.body.as_str().unwrap());
        assert_page(path, &answer);
    }
    database.change("ALTER TABLE lost RENAME TO login".to_owned()).await;
    assert_eq!(web.send("GET", "/account", &logged_in, None).await.status, 200);
    // The API takes no cookie, and nothing here is a WebSocket, whoever asks for one.
    for (method, path) in [("GET", "/api/v1/me"), ("POST", "/api/v1/users")] {
        let headers = [("origin", origin.clone()), ("cookie", cookies.clone())];
        let answer = web.send(method, path, &headers, Some("{}")).await;
        assert_eq!((answer.status, answer.code()), (401, failure::NOT_LOGGED_IN), "{path}");
    }
    for path in ["/", "/login", "/device", "/api/v1/version"] {
        let mut web = Web::connect(&mediator).await;
        let headers = [
            ("connection", "Upgrade".to_owned()),
            ("upgrade", "websocket".to_owned()),
            ("sec-websocket-version", "13".to_owned()),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==".to_owned()),
            ("cookie", cookies.clone()),
        ];
        assert_ne!(web.send("GET", path, &headers, None).await.status, 101, "{path}");
    }
}

/// What every answer of the pages carries.
fn assert_page(path: &str, answer: &Answer) {
    let header = |name: &str| {
        let mut all = answer.headers.get_all(name).iter();
        let value = all.next().unwrap_or_else(|| panic!("{path} has no {name}: {answer:?}"));
        assert!(all.next().is_none(), "{path} has {name} twice");
        value.to_str().unwrap()
    };
    let policy = header("content-security-policy");
    for must in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action "]
    {
        assert!(policy.split("; ").any(|part| part.starts_with(must)), "{path}: {policy}");
    }
    for word in policy.split([' ', ';']).filter(|word| word.contains(['\'', ':', '*'])) {
        assert!(["'none'", "'self'"].contains(&word), "{path}: {policy}");
    }
    let strict = header("strict-transport-security").strip_prefix("max-age=").unwrap();
    let seconds: u64 = strict.split(';').next().unwrap().parse().unwrap();
    assert!(seconds >= 31_536_000, "{path}: {strict}");
    assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
    assert_eq!(header("x-frame-options"), "DENY", "{path}");
    assert_eq!(header("cache-control"), "no-store", "{path}");
    assert_eq!(header("cross-origin-opener-policy"), "same-origin", "{path}");
    assert!(["same-origin", "no-referrer"].contains(&header("referrer-policy")), "{path}");
    let text = answer.body.as_str().unwrap_or_default();
    let is_html =
        answer.headers.get("content-type").is_some_and(|kind| kind == "text/html; charset=utf-8");
    for inline in ["<script>", "<style", " style=", " onclick=", " onload=", "javascript:"] {
        assert!(!is_html || !text.contains(inline), "{path}: {inline} in {text}");
    }
}
