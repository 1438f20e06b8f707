//! `console-tunnel admin` about the whole: backups, keys, a partner's end, identity providers, what
//! only whoever answers for the installation may. With the real programs.

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use adit_tests::{process::text, site::Site};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// One command as a console, its lines, and that it did not fail.
fn admin(site: &Site, console: &str, args: &[&str], input: &str) -> Result<Vec<Value>> {
    let done = site.run(console, &[&["admin"], args, &["--json"]].concat(), input)?;
    ensure!(done.code == 0, "{args:?}: {done:?}");
    Ok(done.lines())
}

/// It fails with that code and exit.
fn refused(site: &Site, console: &str, args: &[&str], wanted: (&str, i32)) -> Result<()> {
    let done = site.run(console, &[&["admin"], args, &["--json"]].concat(), "")?;
    ensure!((done.error_code().as_str(), done.code) == wanted, "{args:?}: {done:?}");
    Ok(())
}

fn named(path: &Path) -> Result<&str> {
    path.to_str().context("path")
}

/// The owner of a partner of its own, logged in on a console of its own.
fn partner(site: &Site) -> Result<()> {
    let added = admin(site, "console", &["partner", "add", "acme", "--owner", "ann"], "")?;
    let login = ["login", &site.url, "--user", "ann", "--password-stdin", "--fingerprint"];
    let login = [&login[..], &[&site.fingerprint, "--json"]].concat();
    // A second factor is asked for before anything else may be done.
    let optional = ["user", "mfa", "optional", "ann", "--json"];
    site.ask("mediator", &optional, "")?;
    site.ask("console-ann", &login, text(&added[0], "password"))?;
    admin(site, "console-ann", &["client", "add", "acme/berlin"], "").map(drop)
}

#[test]
fn what_the_machines_administrator_does_is_done_from_afar_by_whoever_may() -> Result<()> {
    let mut site = Site::local("admin-whole")?;
    site.start_mediator()?;
    site.login("console")?;
    let folder = site.artifacts().to_path_buf();
    let (backup, key) = (folder.join("copy.age"), folder.join("backup.key"));
    let (backup, key) = (named(&backup)?, named(&key)?);
    let recipient = site.ask("mediator", &["backup-key", key, "--json"], "")?;
    let recipient = text(&recipient, "recipient").to_owned();
    let take = ["backup", backup, "--recipient", &recipient];

    // The owner of a partner answers for that alone.
    for args in [&["status"][..], &["compact"], &["vault", "rotate"], &take] {
        refused(&site, "console", args, ("not_permitted", 3))?;
    }
    ensure!(!Path::new(backup).exists() && !Path::new(&format!("{backup}.part")).exists());
    // What it takes is told whole, not the first half alone.
    let told = site.run("console", &[&["admin"], &take[..]].concat(), "")?;
    for permission in ["policy.manage", "audit.export", "installation"] {
        ensure!(told.stderr.contains(permission), "{told:?}");
    }
    let bind = ["role", "bind", "owner", "--user", &site.admin.0, "--installation", "--json"];
    site.ask("mediator", &bind, "")?;
    ensure!(admin(&site, "console", &["status"], "")?[0]["state"] == "running");
    ensure!(admin(&site, "console", &["compact"], "")?[0]["compacted"] == true);

    // Keys over stored secrets.
    let told = admin(&site, "console", &["vault", "rotate", "--data-keys"], "")?;
    ensure!(told[0]["state"] == "done" && !text(&told[0], "key").is_empty(), "{told:?}");
    let status = admin(&site, "console", &["vault", "status"], "")?;
    ensure!(status[0]["key"] == told[0]["key"], "{status:?}");

    // A provider's secret comes in and is never told.
    let add = ["oidc", "add", "Directory", "--issuer", "https://id.example", "--client-id", "adit"];
    let add = [&add[..], &["--mfa-amr", "mfa", "--secret-stdin"]].concat();
    let added = admin(&site, "console", &add, "keep-this-one-quiet\n")?;
    ensure!(text(&added[0], "callback_path").ends_with("/directory"), "{added:?}");
    let listed = site.run("console", &["admin", "oidc", "list", "--json"], "")?;
    ensure!(listed.lines()[0]["secret"] == "stored", "{listed:?}");
    ensure!(!listed.stdout.contains("quiet"), "{listed:?}");
    admin(&site, "console", &["user", "add", "jane"], "")?;
    admin(&site, "console", &["oidc", "link", "jane", "directory", "7f3c"], "")?;
    // Twice is as once; to another user it is not given.
    let again = admin(&site, "console", &["oidc", "link", "jane", "directory", "7f3c"], "")?;
    ensure!(text(&again[0], "subject") == "7f3c", "{again:?}");
    admin(&site, "console", &["user", "add", "joe"], "")?;
    let joe = ["oidc", "link", "joe", "directory", "7f3c"];
    refused(&site, "console", &joe, ("name_taken", 1))?;
    let told = site.run("console", &[&["admin"], &joe[..]].concat(), "")?;
    ensure!(told.stderr.contains("linked with another user"), "{told:?}");
    let linked =
        site.run("mediator", &["audit", "search", "--event", "user.linked", "--json"], "")?;
    ensure!(linked.lines().len() == 1, "{linked:?}");
    let ended = admin(&site, "console", &["oidc", "unlink", "jane", "directory"], "")?;
    ensure!(ended[0]["links_ended"] == 1, "{ended:?}");

    // A partner's end: by its own people, and nobody else's business before.
    partner(&site)?;
    refused(&site, "console", &["partner", "erase", "acme", "--yes"], ("not_found", 4))?;
    refused(&site, "console-ann", &["oidc", "remove", "directory"], ("not_found", 4))?;
    refused(&site, "console-ann", &["partner", "erase", "acme"], ("usage", 2))?;
    let done = site.run("console-ann", &["admin", "partner", "erase", "acme", "--yes"], "")?;
    ensure!(done.code == 0, "{done:?}");
    let certificate = folder.join("erased.json");
    fs::write(&certificate, &done.stdout)?;
    let verify = ["certificate", "verify", named(&certificate)?, "--key"];
    let told = site.ask("mediator", &[&verify[..], &[&site.fingerprint, "--json"]].concat(), "")?;
    ensure!(told["trusted"] == true, "{told}");
    refused(&site, "console-ann", &["me"], ("not_logged_in", 3))?;
    let id = told["destruction"]["erasure"].as_str().context("erasure")?;
    let kept = admin(&site, "console", &["certificate", "show", id], "")?;
    ensure!(kept[0]["subject"] == "acme", "{kept:?}");
    refused(&site, "console", &["partner", "erase", "main", "--yes"], ("home_partner", 3))?;

    // The log's settings.
    admin(&site, "console", &["audit", "retention", "set", "--days", "365"], "")?;
    admin(&site, "console", &["audit", "retention", "hold", "--reason", "case 7"], "")?;
    let kept = admin(&site, "console", &["audit", "retention", "show"], "")?;
    ensure!(kept[0]["days"] == 365 && kept[0]["hold_reason"] == "case 7", "{kept:?}");
    admin(&site, "console", &["audit", "retention", "release"], "")?;
    admin(&site, "console", &["audit", "level", "jane", "5"], "")?;
    admin(&site, "console", &["audit", "forwarding"], "")?;

    backup_and_restore(&mut site, &take, (backup, key))
}

/// A backup is whole, for its recipient alone, and restores.
fn backup_and_restore(site: &mut Site, take: &[&str], (file, key): (&str, &str)) -> Result<()> {
    let nobody = ["backup", file, "--recipient", "age1nobody"];
    refused(site, "console", &nobody, ("usage", 2))?;
    ensure!(!Path::new(file).exists() && !Path::new(&format!("{file}.part")).exists());
    let told = admin(site, "console", take, "")?;
    ensure!(told[0]["bytes"] == fs::metadata(file)?.len(), "{told:?}");
    ensure!(fs::metadata(file)?.permissions().mode() & 0o777 == 0o600);
    let sealed = fs::read(file)?;
    ensure!(sealed.starts_with(b"age-encryption.org/v1\n"));
    let holds = |word: &[u8]| sealed.windows(word.len()).any(|part| part == word);
    ensure!(!holds(b"SQLite") && !holds(b"jane") && !holds(b"quiet"), "it can be read");
    refused(site, "console", take, ("output_failed", 1))?;
    site.audited("whom the copy is for", |event| {
        text(event, "event") == "backup.made"
            && text(event, "actor") == site.admin.0
            && text(&event["extra"], "recipients") == take[3]
    })?;
    let left = fs::read_dir(site.data_dir("mediator"))?.filter_map(Result::ok);
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    ensure!(!left.iter().any(|name| name.to_string_lossy().contains("backup-")), "{left:?}");

    admin(site, "console", &["user", "add", "later"], "")?;
    site.stop_all();
    let unsure = site.run("mediator", &["restore", file, "--json"], "")?;
    ensure!((unsure.error_code().as_str(), unsure.code) == ("usage", 2), "{unsure:?}");
    // What was cut on its way is not put in the place of anything.
    let cut = format!("{file}.cut");
    fs::write(&cut, &sealed[..sealed.len() - 1])?;
    let short = site.run("mediator", &["restore", &cut, "--identity", key, "--json"], "")?;
    ensure!(short.error_code() == "backup_invalid", "{short:?}");
    // A key that others can read is warned of.
    ensure!(!short.stderr.contains("other users can read"), "{short:?}");
    fs::set_permissions(key, fs::Permissions::from_mode(0o644))?;
    let done = site.run("mediator", &["restore", file, "--identity", key, "--json"], "")?;
    ensure!(done.code == 0 && done.stderr.contains("other users can read"), "{done:?}");
    let users = site.run("mediator", &["user", "list", "--json"], "")?;
    let has = |name: &str| users.lines().iter().any(|user| text(user, "user") == name);
    ensure!(has("jane") && !has("later"), "{users:?}");
    let verify = ["audit", "verify", "--key", &site.fingerprint, "--json"];
    ensure!(site.ask("mediator", &verify, "")?["valid"] == true);
    Ok(())
}
