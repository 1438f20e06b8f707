//! The pages in a real browser: logging in with each factor, confirming a console, refusals.
//!
//! Pictures of every page, light and dark, are left beside the logs for people to look at.

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use adit_tests::{
    browser::{Browser, Provider},
    process::{Process, text},
    site::{READY, SOON, Site},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use totp_rs::Totp;

const PASSWORD: &str = "moss lantern harbour quilt";

/// A mediator under a name that browsers accept, a user, and a browser.
struct World {
    site: Site,
    browser: Browser,
    origin: String,
    certificate: (PathBuf, PathBuf),
}

impl World {
    fn start(test: &str, settings: &str) -> Result<Self> {
        let mut site = Site::local(test)?;
        site.start_mediator()?;
        site.ask("mediator", &["user", "add", "ann", "--password-stdin", "--json"], PASSWORD)?;
        site.kill("mediator")?;
        let directory = site.data_dir("mediator");
        let (certificate, spki) = certificate(&directory)?;
        let origin = format!("https://localhost:{}", site.port);
        let file = directory.join("mediator.toml");
        let server = format!(
            "[server]\ncertificate = {:?}\nprivate_key = {:?}\n",
            certificate.0, certificate.1
        );
        let old = fs::read_to_string(&file)?;
        ensure!(old.contains("[server]\n"), "{old}");
        let new = old.replacen("[server]\n", &server, 1);
        fs::write(&file, format!("{new}\n[web]\norigin = \"{origin}\"\n{settings}"))?;
        site.restart("mediator")?;
        let browser = Browser::start(&site.data_dir("browser"), &spki)?;
        Ok(Self { site, browser, origin, certificate })
    }

    fn page(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    fn shot(&mut self, name: &str) -> Result<()> {
        let directory = self.site.artifacts().to_path_buf();
        self.browser.shot(&directory, name)
    }

    /// A console that waits to be logged in, and its code.
    fn console(&self, instance: &str) -> Result<(Process, String)> {
        self.console_of(instance, &[])
    }

    fn console_of(&self, instance: &str, more: &[&str]) -> Result<(Process, String)> {
        let args = ["login", &self.site.url, "--web", "--no-browser", "--json", "--fingerprint"];
        let args = [&args[..], &[&self.site.fingerprint], more].concat();
        let mut console = self.site.spawn(instance, &args)?;
        let told = console.event("login_code", READY)?;
        ensure!(text(&told, "url") == self.page("/device"), "{told}");
        Ok((console, text(&told, "user_code").to_owned()))
    }

    fn password(&mut self, password: &str) -> Result<()> {
        self.browser.fill("#user", "ann")?;
        self.browser.fill("#password", password)?;
        self.browser.click("form[action='/login'] button")
    }

    fn log_out(&mut self) -> Result<()> {
        self.browser.goto(&self.page("/account"))?;
        self.browser.click("form[action='/logout'] button")?;
        self.browser.see("Log in").map(drop)
    }

    fn add_key(&mut self, name: &str) -> Result<()> {
        self.browser.fill("#key-name", name)?;
        self.browser.click("form[data-key=create] button")
    }

    /// Sets up an app; gives it.
    fn add_app(&mut self) -> Result<Totp> {
        self.browser.fill("#app-name", "phone")?;
        self.browser.click("form[action='/account/totp'] button")?;
        let seen = self.browser.see("Set up an authenticator app")?;
        self.shot("totp")?;
        let secret = seen.lines().find(|line| line.len() == 32).context("no secret")?;
        let url = format!("otpauth://totp/Adit:ann?secret={secret}&issuer=Adit");
        let totp = Totp::from_url(&url).context("secret")?;
        self.browser.fill("#code", "000000")?;
        self.browser.click("form[action='/account/totp/confirm'] button")?;
        self.browser.see("The code is wrong")?;
        let code = self.code(&totp, 0)?;
        self.browser.fill("#code", &code)?;
        self.browser.click("form[action='/account/totp/confirm'] button")?;
        self.browser.see("Recovery codes")?;
        Ok(totp)
    }

    /// The code that an app shows whose clock is so many steps ahead, as if the mediator had learned
    /// that: nobody waits for the next one, and each is at the beginning of its time.
    fn code(&self, totp: &Totp, ahead: u64) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let step = u64::try_from(now)? / 30_000 + ahead;
        let drift = i64::try_from(step * 30_000)? - i64::try_from(now)?;
        let path = self.site.data_dir("mediator").join("mediator.db");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let options = SqliteConnectOptions::new().filename(path);
            let mut database = options.connect().await?;
            let learned = "UPDATE factor SET drift_ms = $1, missed_ms = 0 WHERE kind = 'totp'";
            let done = sqlx::query(learned).bind(drift).execute(&mut database).await?;
            ensure!(done.rows_affected() == 1, "no app");
            database.close().await?;
            Ok(totp.generate(step * 30).to_string())
        })
    }
}

/// A certificate for `localhost` of a kind that browsers take, and its key's hash for Chromium.
fn certificate(directory: &Path) -> Result<((PathBuf, PathBuf), String)> {
    let (certificate, key) = (directory.join("web.pem"), directory.join("web.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        // Not an authority: it is presented itself, and trusted itself.
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()?;
    ensure!(made.status.success(), "openssl: {made:?}");
    let script = "openssl x509 -in \"$0\" -pubkey -noout | openssl pkey -pubin -outform der \
        | openssl dgst -sha256 -binary | base64 -w0";
    let hash = Command::new("sh").args(["-c", script]).arg(&certificate).output()?;
    ensure!(hash.status.success(), "openssl: {hash:?}");
    Ok(((certificate, key), String::from_utf8(hash.stdout)?))
}

fn is<'a>(name: &'a str, key: &'a str, value: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |event| text(event, "event") == name && text(event, key) == value
}

/// The whole way of somebody new: wrong password, no second factor yet, a security key, the
/// console confirmed; then another console refused, and wrong codes.
#[test]
fn a_console_is_logged_in_on_the_page_with_a_security_key() -> Result<()> {
    let mut world = World::start("pages-key", "")?;
    let (mut console, code) = world.console("console")?;
    world.browser.goto(&world.page(&format!("/device?code={code}")))?;
    world.browser.see("A console waits to be logged in")?;
    world.shot("login")?;
    world.password("wrong wrong wrong wrong")?;
    world.browser.see("Wrong user, password or code")?;
    world.shot("login-wrong")?;
    world.password(PASSWORD)?;
    world.browser.see("Set up a second factor to go on")?;
    world.shot("account-limited")?;
    // Nothing else can be had with this login.
    world.browser.goto(&world.page(&format!("/device?code={code}")))?;
    world.browser.see("Set up a second factor to go on")?;
    world.browser.tell(&json!({"do": "plug"}))?;
    world.add_key("blue key")?;
    world.browser.see("Each of these codes is good once")?;
    world.shot("recovery")?;
    world.browser.click("a.button")?;
    let seen = world.browser.see("Log in this console as ann?")?;
    world.shot("confirm")?;
    ensure!(seen.contains(&code) && seen.contains("127.0.0.1"), "{seen}");
    world.browser.click("button[value=yes]")?;
    world.browser.see("The console is logged in")?;
    world.shot("approved")?;
    ensure!(console.exit(SOON)?.success(), "{}", console.last_words());
    let told = console.events().pop().context("nothing told")?;
    ensure!(text(&told, "user") == "ann", "{told}");
    ensure!(seen.contains(text(&told, "device_key")), "another key was shown: {seen} {told}");
    let me = world.site.ask("console", &["whoami", "--json"], "")?;
    ensure!(text(&me, "mfa") == "webauthn" && me["mfa_setup"] == false, "{me}");
    world.site.audited("the approval", |e| text(e, "event") == "login.device_approved")?;
    world.site.audited("the login", is("login.succeeded", "mfa", "webauthn"))?;
    proved_again(&mut world)?;

    let (mut refused, code) = world.console("console2")?;
    world.browser.goto(&world.page(&format!("/device?code={code}")))?;
    world.browser.click("button[value=no]")?;
    world.browser.see("The console was refused")?;
    world.shot("refused")?;
    ensure!(refused.exit(SOON)?.code() == Some(3), "{}", refused.last_words());
    world.site.audited("the refusal", |e| text(e, "event") == "login.device_refused")?;

    // Whoever is asked to log in as one is not logged in as another, who is on the page.
    let (mut another, code) = world.console_of("console3", &["--user", "bob"])?;
    world.browser.goto(&world.page(&format!("/device?code={code}")))?;
    world.browser.see("Log in this console as ann?")?;
    world.browser.click("button[value=yes]")?;
    world.browser.see("The console is logged in")?;
    ensure!(another.exit(SOON)?.code() == Some(3), "{}", another.last_words());
    let told = another.events().pop().context("nothing told")?;
    ensure!(told["error"]["code"] == "audit_foreign", "{told}");
    let me = world.site.run("console3", &["whoami", "--json"], "")?;
    ensure!(me.code != 0, "it kept the login: {me:?}");

    world.browser.goto(&world.page("/device"))?;
    world.shot("code")?;
    for _ in 0..5 {
        world.browser.fill("#code", "bbbb bbbb")?;
        world.browser.click("form[action='/device'] button")?;
        world.browser.see("No console waits with this code")?;
    }
    world.browser.fill("#code", "bbbb bbbb")?;
    world.browser.click("form[action='/device'] button")?;
    world.browser.see("Too many wrong codes").map(drop)
}

/// Whoever has only a security key proves it anew on the page; the console keeps its login.
fn proved_again(world: &mut World) -> Result<()> {
    let mut console = world.site.spawn("console", &["mfa", "verify", "--no-browser", "--json"])?;
    let told = console.event("login_code", READY)?;
    world.browser.goto(&world.page(&format!("/device?code={}", text(&told, "user_code"))))?;
    world.browser.click("button[value=yes]")?;
    world.browser.see("The console is logged in")?;
    ensure!(console.exit(SOON)?.success(), "{}", console.last_words());
    let me = console.events().pop().context("nothing told")?;
    ensure!(text(&me, "mfa") == "webauthn" && text(&me, "user") == "ann", "{me}");
    let again = world.site.audited("the proof", |e| {
        text(e, "event") == "login.reauthenticated" && e["extra"]["via"] == "device_code"
    })?;
    ensure!(text(&again, "mfa") == "webauthn", "{again}");
    Ok(())
}

/// The key at the next login; one that was copied is noticed; the page's login ends with the
/// account.
#[test]
fn a_security_key_is_asked_for_and_a_copied_one_refused() -> Result<()> {
    let mut world = World::start("pages-second", "[accounts]\nmfa = \"phishing-resistant\"\n")?;
    world.browser.goto(&world.page("/login"))?;
    world.password(PASSWORD)?;
    world.browser.see("It has to be a security key or a passkey")?;
    world.browser.tell(&json!({"do": "plug"}))?;
    world.add_key("key")?;
    world.log_out()?;
    world.password(PASSWORD)?;
    world.browser.see("Show your security key or passkey")?;
    world.shot("second-key")?;
    world.browser.click("form[data-key=get] button")?;
    world.browser.see("Security key, last used")?;
    world.shot("account")?;
    // The console cannot ask for a key: it says where.
    let args = ["login", &world.site.url, "--user", "ann", "--password-stdin", "--fingerprint"];
    let args = [&args[..], &[&world.site.fingerprint, "--json"]].concat();
    let by_password = world.site.run("console", &args, PASSWORD)?;
    ensure!(by_password.error_code() == "web_login_required", "{by_password:?}");

    world.log_out()?;
    world.password(PASSWORD)?;
    world.browser.tell(&json!({"do": "rewind"}))?;
    world.browser.click("form[data-key=get] button")?;
    world.browser.see("That did not fit")?;
    world.site.audited("the copy", is("login.failed", "end_reason", "security_key_copied"))?;
    world.browser.tell(&json!({"do": "unplug"}))?;
    Ok(())
}

/// Without script: an app, a wrong code, a recovery code; disabling ends the page's login at once.
#[test]
fn one_time_codes_need_no_script_and_a_disabled_user_is_logged_out() -> Result<()> {
    let mut world = World::start("pages-totp", "")?;
    world.browser.tell(&json!({"do": "script", "on": false}))?;
    world.browser.goto(&world.page("/login"))?;
    world.password(PASSWORD)?;
    let totp = world.add_app()?;
    let codes = world.browser.see("Recovery codes")?;
    let recovery = codes.lines().find(|line| line.trim().len() == 29).context("no code")?;
    let recovery = recovery.trim().to_owned();
    world.log_out()?;
    world.password(PASSWORD)?;
    world.browser.see("One-time code of your app")?;
    world.shot("second-code")?;
    for wrong in ["000000", "x", &recovery.replace(|c: char| c != '-', "a")] {
        world.browser.fill("#code", wrong)?;
        world.browser.click("form[action='/login/second'] button")?;
        world.browser.see("That did not fit")?;
    }
    world.shot("second-wrong")?;
    let next = world.code(&totp, 1)?;
    world.browser.fill("#code", &next)?;
    world.browser.click("form[action='/login/second'] button")?;
    world.browser.see("Authenticator app, last used")?;
    world.log_out()?;
    world.password(PASSWORD)?;
    world.browser.fill("#code", &recovery)?;
    world.browser.click("form[action='/login/second'] button")?;
    world.browser.see("9 recovery codes are left")?;
    let cookies = world.browser.tell(&json!({"do": "cookies"}))?;
    for cookie in cookies["cookies"].as_array().context("cookies")? {
        let strict = cookie["httpOnly"] == true && cookie["secure"] == true;
        ensure!(strict && text(cookie, "sameSite") == "Strict", "{cookie}");
        ensure!(text(cookie, "name").starts_with("__Host-"), "{cookie}");
    }
    // A link elsewhere, from where no cookie comes along: it replaces none.
    let link = format!("data:text/html,<a id=elsewhere href='{}'>x</a>", world.page("/login"));
    world.browser.goto(&link)?;
    world.browser.click("#elsewhere")?;
    world.browser.see("9 recovery codes are left")?;
    world.browser.goto(&world.page("/account"))?;
    world.browser.see("9 recovery codes are left")?;
    world.site.ask("mediator", &["user", "disable", "ann", "--json"], "")?;
    world.browser.goto(&world.page("/account"))?;
    world.browser.see("Password")?;
    world.password(PASSWORD)?;
    world.browser.see("Wrong user, password or code").map(drop)
}

/// Forms count only from our own pages, whatever else is right.
#[test]
fn forms_from_elsewhere_are_refused_and_pages_carry_their_headers() -> Result<()> {
    let world = World::start("pages-forms", "")?;
    let curl = |more: &[&str]| -> Result<String> {
        let mut command = Command::new("curl");
        command.args(["-sik", "--max-time", "20"]).args(more);
        Ok(String::from_utf8(command.output()?.stdout)?)
    };
    let page = curl(&[&world.page("/login")])?;
    for header in [
        "content-security-policy: default-src 'none'; style-src 'self'",
        "strict-transport-security:",
        "x-content-type-options: nosniff",
        "x-frame-options: DENY",
        "referrer-policy: same-origin",
        "cache-control: no-store",
        "cross-origin-opener-policy: same-origin",
    ] {
        ensure!(page.to_lowercase().contains(&header.to_lowercase()), "{header}: {page}");
    }
    ensure!(!page.contains("<script>") && !page.contains(" style="), "{page}");
    let cookie = page.split("__Host-adit-browser=").nth(1).context("no cookie")?;
    let cookie = format!("Cookie: __Host-adit-browser={}", &cookie[..64]);
    let csrf = page.split("name=\"csrf\" value=\"").nth(1).context("no token")?;
    // The first page's cookie and token belong together.
    let form = format!("csrf={}&user=ann&password=x", &csrf[..64]);
    let post = |origin: &str, cookie: &str, form: &str| {
        let origin = format!("Origin: {origin}");
        curl(&["-H", &origin, "-H", cookie, "-d", form, &world.page("/login")])
    };
    let good = post(&world.origin, &cookie, &form)?;
    ensure!(good.contains("Wrong user, password or code"), "{good}");
    for (origin, cookie, form) in [
        ("https://evil.example", &*cookie, &*form),
        ("null", &*cookie, &*form),
        ("", &*cookie, &*form),
        (&*world.origin, "X: y", &*form),
        (&*world.origin, &*cookie, "user=ann&password=x"),
        (&*world.origin, &*cookie, &format!("csrf={}&user=ann&password=x", "0".repeat(64))),
    ] {
        let refused = post(origin, cookie, form)?;
        ensure!(refused.contains(" 403"), "{origin} {cookie} {form}: {refused}");
    }
    // Under another name there is no page, only the way to it.
    let other = curl(&[&format!("https://127.0.0.1:{}/login", world.site.port)])?;
    ensure!(other.to_lowercase().contains(&format!("location: {}/login", world.origin)), "{other}");
    let got = curl(&["-H", &cookie, &world.page("/logout")])?;
    ensure!(got.contains(" 405"), "{got}");
    Ok(())
}

/// Linked by the account's own person, then logged in with; a stranger there is a stranger here.
#[test]
fn an_identity_provider_lets_in_whoever_is_linked_and_nobody_else() -> Result<()> {
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        with_provider(algorithm)?;
    }
    Ok(())
}

fn with_provider(algorithm: &str) -> Result<()> {
    let mut world = World::start(&format!("pages-oidc-{algorithm}"), "")?;
    let redirect = world.page("/login/oidc/callback/directory");
    let secret = "a secret of the client's: 0123456789";
    let (certificate, key) = &world.certificate;
    let provider = Provider::start((certificate, key), &redirect, secret, algorithm)?;
    let file = world.site.data_dir("mediator").join("oidc.secret");
    fs::write(&file, format!("{secret}\n"))?;
    let (file, ca) = (file.to_string_lossy(), certificate.to_string_lossy());
    let add = ["oidc", "add", "Directory", "--issuer", &provider.issuer, "--client-id", "adit"];
    let more = ["--secret-file", &file, "--ca-file", &ca, "--mfa-amr", "otp", "--json"];
    let added = world.site.ask("mediator", &[&add[..], &more].concat(), "")?;
    ensure!(redirect.ends_with(text(&added, "callback_path")), "{added}");
    not_answered_by_another(&world, text(&added, "id"))?;

    let there = |world: &mut World, name: &str| -> Result<()> {
        world.browser.wait("#login")?;
        world.browser.fill("#login", name)?;
        world.browser.click("#go")
    };
    // Nobody is linked yet.
    world.browser.goto(&world.page("/login"))?;
    world.shot("login-oidc")?;
    world.browser.click("a.button")?;
    there(&mut world, "ann@there")?;
    world.browser.wait("p[role=alert]")?;
    world.browser.see("No account here is linked with that one")?;
    world.site.audited("it", is("login.failed", "end_reason", "identity_provider"))?;

    world.browser.goto(&world.page("/login"))?;
    world.password(PASSWORD)?;
    world.add_app()?;
    world.browser.goto(&world.page("/account"))?;
    world.browser.click("form[action='/account/link'] button")?;
    world.browser.wait("form[action='/account/unlink']")?;
    world.browser.see("as ann@there")?;
    world.shot("account-linked")?;
    world.site.audited("the link", |e| text(e, "event") == "user.linked")?;
    world.log_out()?;

    let (mut console, code) = world.console("console")?;
    world.browser.goto(&world.page(&format!("/device?code={code}")))?;
    world.browser.click("a.button")?;
    world.browser.wait("button[value=yes]")?;
    world.browser.click("button[value=yes]")?;
    ensure!(console.exit(SOON)?.success(), "{}", console.last_words());
    let me = world.site.ask("console", &["whoami", "--json"], "")?;
    ensure!(text(&me, "mfa") == "oidc", "{me}");
    // What came back once does not come back twice.
    world.browser.goto(&world.page("/login/oidc/finish?code=x&state=y"))?;
    world.browser.see("was not begun in this browser").map(drop)
}

/// What one provider was asked is not answered at another's address, whatever else is right, nor
/// in the name of another.
fn not_answered_by_another(world: &World, provider: &str) -> Result<()> {
    let curl = |cookie: &str, path: &str| -> Result<String> {
        let cookie = format!("Cookie: {cookie}");
        let mut command = Command::new("curl");
        command.args(["-sik", "--max-time", "20", "-H", &cookie, &world.page(path)]);
        Ok(String::from_utf8(command.output()?.stdout)?)
    };
    for (answer, good) in [
        ("at=other", "another address"),
        ("at=directory&iss=https://evil.example", "another name"),
        ("at=directory", "no name where one was promised"),
    ] {
        let page = curl("x=y", "/login")?;
        let cookie = page.split("__Host-adit-browser=").nth(1).context("no cookie")?;
        let cookie = format!("__Host-adit-browser={}", &cookie[..64]);
        let sent = curl(&cookie, &format!("/login/oidc?provider={provider}"))?;
        let state = sent.split("state=").nth(1).context("not sent")?;
        let state: String = state
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
            .collect();
        let back = format!("/login/oidc/finish?code=x&state={state}&{answer}");
        let told = curl(&cookie, &back)?;
        ensure!(told.contains(" 403") && told.contains("did not let you in"), "{good}: {told}");
        // Once only.
        let again = curl(&cookie, &back)?;
        ensure!(again.contains("was not begun in this browser"), "{again}");
    }
    Ok(())
}
