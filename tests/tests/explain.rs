//! What `netcheck`, `explain` and `requests` tell a technician, against networks whose kind is
//! known.

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

use adit_tests::{
    process::text,
    site::{SOON, Site},
};
use anyhow::{Result, ensure};
use serde_json::Value;

/// What is said of each kind of network is compared with the truth in `paths.rs`.
#[test]
fn netcheck_needs_no_login_and_names_the_proxy() -> Result<()> {
    let mut site = Site::lab("netcheck-proxy", "proxy+open")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    site.login("console")?;
    let knows = |told: &Value| -> Result<()> {
        let proxy = told["mediator"]["proxy"].as_str().unwrap_or_default();
        let known = told["direct"] == "no" && told["udp"] == false && proxy.starts_with("http://");
        ensure!(known && told["mediator"]["reachable"] == true, "{told:#}");
        ensure!(told["relays"][0]["rtt_ms"].as_f64().is_some(), "{told:#}");
        Ok(())
    };
    knows(&site.ask("console", &["netcheck", "--json"], "")?)?;
    // The mediator is known still.
    site.ask("console", &["logout", "--json"], "")?;
    knows(&site.ask("console", &["netcheck", "--json"], "")?)
}

#[test]
fn netcheck_tells_what_it_can_without_a_mediator() -> Result<()> {
    let mut site = Site::local("netcheck-alone")?;
    let done = site.run("console", &["netcheck", "--json"], "")?;
    ensure!(done.code == 3 && done.error_code() == "not_logged_in", "{done:?}");
    site.start_mediator()?;
    site.login("console")?;
    // Nobody serves as a relay, but UDP passes.
    let told = site.ask("console", &["netcheck", "--json"], "")?;
    ensure!(told["udp"] == true, "{told:#}");
    site.kill("mediator")?;
    let done = site.run("console", &["netcheck", "--json"], "")?;
    ensure!(done.code == 5 && done.error_code() == "mediator_unreachable", "{done:?}");
    let told = &done.lines()[0];
    ensure!(told["direct"] == "unknown" && told["mediator"]["reachable"] == false, "{told:#}");
    Ok(())
}

#[test]
fn explain_says_why_symmetric_networks_stay_relayed() -> Result<()> {
    let mut site = Site::lab("explain-symmetric", "symmetric+symmetric")?;
    site.start()?;
    let told = site.ask("console", &["explain", "agent", "--json"], "")?;
    ensure!(told["carrier"] == "relayed" && told["settled"] == true, "{told:#}");
    ensure!(told["reasons"][0]["code"] == "symmetric_both", "{told:#}");
    ensure!(told["path"]["relay"].is_string(), "{told:#}");
    for end in ["own", "peer"] {
        ensure!(told[end]["mapping"] == "address-and-port-dependent", "{told:#}");
    }
    let sent = told["checks"][0]["sent"].as_u64();
    ensure!(sent > Some(0) && told["checks"][0]["answered"] == 0, "{told:#}");
    // The audit has the class of what failed, and who looked.
    let id = text(&told, "session_id").to_owned();
    let ended = site.audited("the end", |e| {
        text(e, "event") == "session.ended" && text(e, "session_id") == id
    })?;
    let granted = site.audited("the grant", |e| {
        text(e, "event") == "session.granted" && text(e, "session_id") == id
    })?;
    ensure!(text(&granted, "viewer") == "explain", "{granted:#}");
    ensure!(ended["carriers"].to_string().contains("relayed"), "{ended:#}");

    // The other side says the same of a session that lives.
    let mut forward = site.forward(&["-L", "127.0.0.1:0:127.0.0.1:9"])?;
    forward.wait_active("relayed", SOON)?;
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let status = site.ask("agent", &["status", "--json"], "")?;
        let session = &status["sessions"][0];
        if session["relay_reason"][0] == "symmetric_both" {
            ensure!(session["relay"].is_string() && session["rtt_ms"].is_number(), "{status:#}");
            ensure!(status["nat"]["mapping"] == "address-and-port-dependent", "{status:#}");
            break;
        }
        ensure!(std::time::Instant::now() < deadline, "{status:#}");
        std::thread::park_timeout(std::time::Duration::from_millis(200));
    }
    forward.close()?;
    Ok(())
}

#[test]
fn explain_shows_a_direct_path_and_ends_its_session() -> Result<()> {
    let mut site = Site::lab("explain-direct", "port-restricted+port-restricted")?;
    site.start()?;
    let told = site.ask("console", &["explain", "agent", "--json"], "")?;
    ensure!(told["carrier"] == "direct" && told["reasons"] == Value::Array(vec![]), "{told:#}");
    let answered = told["checks"][0]["answered"].as_u64();
    ensure!(answered > Some(0) && told["checks"][0]["outcome"] == "works", "{told:#}");
    let id = text(&told, "session_id").to_owned();
    site.audited("the end", |e| {
        text(e, "event") == "session.ended" && text(e, "session_id") == id
    })?;
    Ok(())
}

/// A second technician, who needs a reason, a ticket and an approval.
fn add_jane(site: &Site) -> Result<()> {
    let password = "correct horse battery staple";
    site.ask("mediator", &["user", "add", "jane", "--role", "none", "--password-stdin"], password)?;
    site.ask("mediator", &["user", "mfa", "optional", "jane", "--json"], "")?;
    let client = site.client();
    let bind = ["role", "bind", "technician", "--user", "jane", "--client", &client];
    let bind = [&bind[..], &["--require", "reason,ticket,approval", "--json"]].concat();
    site.ask("mediator", &bind, "")?;
    let login = ["login", &site.url, "--user", "jane", "--password-stdin", "--fingerprint"];
    let login = [&login[..], &[&site.fingerprint, "--json"]].concat();
    site.ask("console-jane", &login, password).map(drop)
}

#[test]
fn access_that_needs_approval_is_asked_for_approved_and_taken_back() -> Result<()> {
    let mut site = Site::local("requests")?;
    site.start()?;
    add_jane(&site)?;
    let explain = |more: &[&str]| {
        let args = [&["explain", "agent", "--redirector", "ssh", "--json"], more].concat();
        site.run("console-jane", &args, "")
    };
    // Each refusal says how to satisfy it.
    let hint = |done: &adit_tests::process::Finished| done.json()["error"]["hint"].to_string();
    let done = explain(&[])?;
    ensure!(done.code == 3 && hint(&done).contains("--reason TEXT"), "{done:?}");
    let done = explain(&["--reason", "disk full"])?;
    ensure!(done.code == 3 && hint(&done).contains("--ticket ID"), "{done:?}");
    let given = ["--reason", "disk full", "--ticket", "T-1"];
    let done = explain(&given)?;
    ensure!(done.code == 3 && done.error_code() == "approval_required", "{done:?}");
    ensure!(hint(&done).contains("requests make") && hint(&done).contains("agent ssh"), "{done:?}");

    let make = [&["requests", "make", "agent", "ssh", "--for", "2h", "--json"], &given[..]];
    let made = site.ask("console-jane", &make.concat(), "")?;
    ensure!(made["state"] == "pending" && made["length_ms"] == 7_200_000, "{made:#}");
    let id = text(&made, "request_id").to_owned();
    // Nobody approves an own request; somebody else sees and approves it.
    let own = site.run("console-jane", &["requests", "approve", &id, "--json"], "")?;
    ensure!(own.code == 3 && own.error_code() == "not_permitted", "{own:?}");
    let listed = site.ask("console", &["requests", "list", "--pending", "--json"], "")?;
    ensure!(listed["request_id"] == id.as_str() && listed["user"] == "jane", "{listed:#}");
    let approve = ["requests", "approve", &id, "--for", "30m", "--json"];
    let done = site.ask("console", &approve, "")?;
    ensure!(done["state"] == "approved" && done["decided_by"] == site.admin.0, "{done:#}");
    let done = explain(&given)?;
    ensure!(done.code == 0, "{done:?}");
    let done = site.ask("console", &["requests", "deny", &id, "--json"], "")?;
    ensure!(done["state"] == "denied", "{done:#}");
    let done = explain(&given)?;
    ensure!(done.code == 3, "{done:?}");
    let none = site.run("console", &["requests", "approve", "nothing", "--json"], "")?;
    ensure!(none.code == 4 && none.error_code() == "no_such_request", "{none:?}");
    Ok(())
}
