//! `console-tunnel admin` against a real mediator: what is done remotely, what it gives, how it
//! fails.

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

use adit_tests::{
    process::text,
    site::{SOON, Site, to_port},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

const POLICY: &str = "[[allow]]\ntargets = [\"127.0.0.1\"]\nports = [\"1-65535\"]\n";

/// One command, its lines, and that it did not fail.
fn admin(site: &Site, args: &[&str]) -> Result<Vec<Value>> {
    let done = site.run("console", &[&["admin"], args, &["--json"]].concat(), "")?;
    ensure!(done.code == 0, "{args:?}: {done:?}");
    Ok(done.lines())
}

#[test]
fn an_administrator_works_remotely_and_what_is_withdrawn_ends() -> Result<()> {
    let mut site = Site::local("admin")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    site.start_agent("agent", POLICY)?;
    site.login("console")?;
    let me = admin(&site, &["me"])?;
    ensure!(text(&me[0], "kind") == "console", "{me:?}");

    // Users, roles, explanations.
    let added = admin(&site, &["user", "add", "jane", "--role", "none"])?;
    ensure!(text(&added[0], "password").len() > 12, "{added:?}");
    let client = site.client();
    let explain = ["explain", "jane", "agent", "ssh"];
    let before = admin(&site, &explain)?;
    ensure!(before[0]["allowed"] == false, "{before:?}");
    let bind = ["role", "bind", "technician", "--user", "jane", "--client", &client];
    let bound = admin(&site, &bind)?;
    let after = admin(&site, &explain)?;
    ensure!(after[0]["allowed"] == true, "{after:?}");
    ensure!(text(&after[0], "rule").contains(text(&bound[0], "binding")), "{after:?}");
    let past = admin(&site, &[&explain[..], &["--at", "1h"]].concat())?;
    ensure!(past[0]["allowed"] == false, "{past:?}");
    let users = admin(&site, &["user", "list"])?;
    ensure!(users.iter().any(|user| text(user, "user") == "jane"), "{users:?}");
    admin(&site, &["user", "disable", "jane"])?;
    site.audited("who disabled the user", |event| {
        text(event, "event") == "user.disabled" && !text(event, "device").is_empty()
    })?;

    // An API key: the private half stays here.
    let file = site.artifacts().join("key.pem");
    let file = file.to_str().context("path")?;
    let create = ["api-key", "create", "inventory", "--key-file", file, "--role", "auditor"];
    let key = admin(&site, &create)?;
    ensure!(text(&key[0], "token").starts_with("adit-key-"), "{key:?}");
    admin(&site, &["api-key", "revoke", text(&key[0], "key_id")])?;
    // Of one that was refused nothing is left; what was there before stays.
    let refused = site.artifacts().join("refused.pem");
    let path = refused.to_str().context("path")?;
    for (args, code, exit) in [
        (&["--role", "no-such-role"][..], "not_found", 4),
        (&["--role", "auditor", "--from", "nonsense"], "bad_request", 2),
    ] {
        for (path, stays) in [(path, false), (file, true)] {
            let create = ["admin", "api-key", "create", "other", "--key-file", path, "--json"];
            let done = site.run("console", &[&create[..], args].concat(), "")?;
            ensure!((done.error_code().as_str(), done.code) == (code, exit), "{args:?}: {done:?}");
            ensure!(std::path::Path::new(path).exists() == stays, "{path} after {args:?}");
        }
    }

    // A live session ends within 5 s when it is ended from here.
    let mut forward = site.forward(&["-L", &to_port(22)])?;
    forward.process.wait("an active carrier", SOON, |e| text(e, "state") == "active")?;
    let sessions = admin(&site, &["session", "list"])?;
    let session = sessions.first().context("a session")?;
    admin(&site, &["session", "end", text(session, "session_id")])?;
    forward.process.wait("its end", SOON, |e| text(e, "event") == "closed")?;

    // A computer gets another name, and goes.
    let renamed = admin(&site, &["computer", "rename", "agent", "desk"])?;
    ensure!(text(&renamed[0], "computer") == "desk", "{renamed:?}");
    let unsure = site.run("console", &["admin", "computer", "remove", "desk", "--json"], "")?;
    ensure!((unsure.error_code().as_str(), unsure.code) == ("usage", 2), "{unsure:?}");
    let removed = admin(&site, &["computer", "remove", "desk", "--yes"])?;
    ensure!(removed[0]["removed"] == true, "{removed:?}");
    ensure!(admin(&site, &["computer", "list"])?.is_empty());
    let gone =
        site.run("console", &["admin", "computer", "remove", "desk", "--yes", "--json"], "")?;
    ensure!((gone.error_code().as_str(), gone.code) == ("no_such_computer", 4), "{gone:?}");

    // A client is erased from afar; the certificate holds without any server.
    admin(&site, &["client", "add", "main/doomed"])?;
    let file = site.artifacts().join("erased.json");
    let file = file.to_str().context("path")?;
    let erase = ["client", "erase", "main/doomed", "--yes", "--certificate", file];
    let erased = admin(&site, &erase)?;
    let kept = admin(&site, &["certificate", "list"])?;
    ensure!(kept[0]["certificate"] == erased[0]["certificate"], "{kept:?} {erased:?}");
    let again = site.run("console", &[&["admin"], &erase[..], &["--json"]].concat(), "")?;
    ensure!((again.error_code().as_str(), again.code) == ("output_failed", 1), "{again:?}");
    let verify = ["certificate", "verify", file, "--key"];
    let told = site.ask("mediator", &[&verify[..], &[&site.fingerprint, "--json"]].concat(), "")?;
    ensure!(told["valid"] == true && told["trusted"] == true, "{told}");

    // The log, searched and taken away; the copy verifies without any server.
    let found = site.run(
        "console",
        &["audit", "search", "--event", "user.disabled", "--since", "1h", "--json"],
        "",
    )?;
    let lines = found.lines();
    ensure!(lines.len() == 1 && text(&lines[0], "event") == "user.disabled", "{found:?}");
    // For people: also whom or what it was about.
    for (program, event, about) in [
        ("console", "user.disabled", "user=jane"),
        ("mediator", "user.disabled", "user=jane"),
        ("console", "role.bound", "role=technician"),
    ] {
        let told = site.run(program, &["audit", "search", "--event", event], "")?;
        ensure!(told.code == 0 && told.stdout.contains(about), "{told:?}");
    }
    // Nobody takes a name that there is not for something that never happened.
    for program in ["console", "mediator"] {
        let search = |filter: &[&str]| {
            site.run(program, &[&["audit", "search", "--json"], filter].concat(), "")
        };
        let done = search(&["--event", "user.disable"])?;
        ensure!(done.code == 2 && done.stdout.contains("did you mean user.disabled"), "{done:?}");
        let done = search(&["--redirector", "rpd"])?;
        ensure!((done.code, done.stdout.as_str()) == (0, ""), "{done:?}");
        ensure!(done.stderr.contains("no computer has a redirector \"rpd\""), "{done:?}");
    }
    let copy = site.artifacts().join("audit.jsonl");
    let copy = copy.to_str().context("path")?;
    // Of an odd size: a later head's hashes cannot end there, whichever entries they stand for.
    let odd = || -> Result<bool> {
        let taken = site.run("console", &["audit", "export", "--output", copy, "--json"], "")?;
        ensure!(taken.code == 0, "{taken:?}");
        let whole = ["audit", "verify", copy, "--complete", "--json"];
        let verified = site.ask("console", &whole, "")?;
        Ok(verified["trees"][0]["size"].as_u64().context("size")? % 2 == 1)
    };
    ensure!(odd()? || odd()?, "an export adds an entry, so that the next has another size");
    // A part of it can be compared with the head of that copy if it is told of the head.
    let part = site.artifacts().join("part.jsonl");
    let part = part.to_str().context("path")?;
    let only = ["audit", "export", "--event", "user.disabled", "--output", part];
    for (head, code) in [(&[][..], "audit_invalid"), (&["--head", copy], "")] {
        let taken = site.run("console", &[&only[..], head].concat(), "")?;
        ensure!(taken.code == 0, "{taken:?}");
        let verified =
            site.run("console", &["audit", "verify", part, "--head", copy, "--json"], "")?;
        ensure!(verified.error_code() == code, "{verified:?}");
    }
    let printed = site.run("console", &["audit", "export", "--format", "csv"], "")?;
    ensure!(printed.code == 0 && printed.stdout.contains("session.granted"), "{printed:?}");
    ensure!(!std::path::Path::new(&format!("{copy}.part")).exists());

    // Failures have the codes and exits of the contract.
    for (args, code, exit) in [
        (&["user", "show", "nobody"][..], "not_found", 4),
        (&["user", "add", "jane"], "name_taken", 1),
        (&["relay", "list"], "not_permitted", 3),
        (&["session", "end", "x"], "no_such_session", 4),
        (&["client", "erase", "main/none"], "usage", 2),
        (&["client", "unlock", &client], "not_found", 4),
        // What the mediator says of a wrong value is wrong usage.
        (&["role", "create", "r", "--permission", "launch", "--hours", "never"], "bad_request", 2),
        (&["role", "create", "r", "--permission", "launch", "--from", "x"], "bad_request", 2),
        (&["role", "create", "r", "--permission", "launch", "--max-length", "0s"], "usage", 2),
        (
            &[
                "call",
                "POST",
                "/api/v1/roles",
                "--data",
                r#"{"role":"r","permissions":["launch"],"redirectors":[],"conditions":{"length_ms":0}}"#,
            ],
            "usage",
            2,
        ),
    ] {
        let done = site.run("console", &[&["admin"], args, &["--json"]].concat(), "")?;
        ensure!((done.error_code().as_str(), done.code) == (code, exit), "{args:?}: {done:?}");
    }
    let hours = ["admin", "role", "create", "r", "--permission", "launch", "--hours", "never"];
    let told = site.run("console", &hours, "")?;
    ensure!(told.stderr.contains("time window") && told.stderr.contains("--help"), "{told:?}");
    let unlock = site.run("console", &["admin", "client", "unlock", &client], "")?;
    ensure!(unlock.stderr.contains("is not locked down"), "{unlock:?}");
    // For people: a table, nothing on stdout when it fails.
    let told = site.run("console", &["admin", "role", "list"], "")?;
    ensure!(told.code == 0 && told.stdout.contains("PERMISSIONS"), "{told:?}");
    Ok(())
}
