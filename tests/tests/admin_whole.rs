//! `console-tunnel admin` about the whole: backups, keys, a partner's end, identity providers, what
//! only whoever answers for the installation may. With the real programs.

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use adit_tests::{
    process::text,
    site::{SOON, Site, to_port},
};
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

/// What docs/accounts.md says is to be kept beside the backups: the first column of its table.
fn to_be_kept() -> Result<Vec<String>> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/accounts.md");
    let text = fs::read_to_string(docs)?;
    let section = text.split("## When the machine is gone").nth(1).context("the section")?;
    let table = section.lines().skip_while(|line| !line.starts_with("| File"));
    let rows = table.skip(2).take_while(|line| line.starts_with("| `"));
    let names = rows.filter_map(|row| Some(row.split('`').nth(1)?.to_owned()));
    Ok(names.collect())
}

/// Takes those files along, as far as they are there, readable for their owner.
fn take_along(from: &Path, to: &Path) -> Result<()> {
    let folder = |path: &Path| {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    };
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    folder(to)?;
    for name in to_be_kept()? {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            folder(&to)?;
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        } else if from.exists() {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}

/// A service that greets.
fn greeter() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello");
        }
    });
    Ok(port)
}

/// A session from the console to the computer of the agent carries bytes.
fn works(site: &Site, port: u16) -> Result<()> {
    site.wait_online("console", "agent")?;
    let forward = site.forward(&["-L", &to_port(port)])?;
    let mut stream = TcpStream::connect(forward.local()?)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut said = [0; 5];
    stream.read_exact(&mut said)?;
    ensure!(&said == b"hello", "{said:?}");
    drop(stream);
    forward.close().map(drop)
}

/// The recipe of docs/accounts.md: a mediator in another directory, from a backup and the files that
/// the recipe names, and nothing else.
#[test]
fn a_mediator_whose_machine_is_gone_is_made_anew_from_what_was_kept() -> Result<()> {
    let mut site = Site::local("machine-gone")?;
    site.start()?;
    let port = greeter()?;
    works(&site, port)?;
    let folder = site.artifacts().to_path_buf();
    let (kept, first, second) =
        (folder.join("kept"), folder.join("first.age"), folder.join("second.age"));
    let key = folder.join("backup.key");
    let made = site.ask("mediator", &["backup-key", named(&key)?, "--json"], "")?;
    let recipient = text(&made, "recipient").to_owned();
    let stored = |site: &Site, client: &str| {
        let add = ["credential", "add", client, "root", "--json"];
        let added = site.ask("mediator", &add, "keep-this-one-quiet")?;
        Ok::<_, anyhow::Error>(text(&added, "credential_id").to_owned())
    };
    let client = site.client();
    let credential = stored(&site, &client)?;
    site.ask("mediator", &["client", "add", "main/doomed", "--json"], "")?;
    stored(&site, "main/doomed")?;
    let backup = ["backup", named(&first)?, "--recipient", &recipient, "--json"];
    site.ask("mediator", &backup, "")?;
    // What came after it: an erasure, and another key over what is stored.
    site.ask("mediator", &["client", "erase", "main/doomed", "--yes", "--json"], "")?;
    site.ask("mediator", &["vault", "rotate", "--json"], "")?;
    take_along(&site.data_dir("mediator"), &kept)?;
    let count = |dir: &Path| Ok::<_, std::io::Error>(fs::read_dir(dir)?.count());
    ensure!(count(&kept)? == to_be_kept()?.len(), "the list names what is not there");
    ensure!(count(&kept.join("tenants"))? == 1);
    site.kill("mediator")?;
    fs::remove_dir_all(site.data_dir("mediator"))?;

    // Without any one of the keys nothing is put anywhere.
    let new = site.data_dir("mediator-new");
    let restore = ["restore", named(&first)?, "--identity", named(&key)?, "--json"];
    for (file, code) in [
        ("root.key", "not_initialised"),
        ("grant.key", "file_missing"),
        ("ticket.key", "file_missing"),
        ("log.key", "file_missing"),
        ("wrapping.keys", "wrapping_key_missing"),
        ("mediator.toml", "config_missing"),
    ] {
        take_along(&kept, &new)?;
        fs::remove_file(new.join(file))?;
        let refused = site.run("mediator-new", &restore, "")?;
        ensure!(refused.error_code() == code, "without {file}: {refused:?}");
        ensure!(!new.join("mediator.db").exists() && !new.join(file).exists());
    }
    take_along(&kept, &new)?;
    let told = site.ask("mediator-new", &restore, "")?;
    ensure!(told["kept"].is_null() && told["withdrawals_kept"] == false, "{told}");
    let verify = ["audit", "verify", "--key", &site.fingerprint, "--json"];
    let verified = site.ask("mediator-new", &verify, "")?;
    let trees = verified["trees"].as_array().context("trees")?;
    ensure!(verified["valid"] == true && trees.len() == 2, "{verified}");
    site.serve("mediator-new", &["serve", "--json"])?;

    // Nobody saw more of the log than the backup has: a login, and everything goes on.
    let out = site.run("console", &["computers", "--json"], "")?;
    ensure!(out.error_code() == "not_logged_in", "{out:?}");
    site.login("console")?;
    works(&site, port)?;
    let shown = ["credential", "reveal", &credential, "--json"];
    ensure!(site.ask("mediator-new", &shown, "")?["secret"] == "keep-this-one-quiet");
    let clients = site.run("mediator-new", &["client", "list", "--json"], "")?;
    ensure!(!clients.stdout.contains("doomed"), "{clients:?}");
    let deadline = Instant::now() + SOON;
    while site.ask("mediator-new", &["relay", "list", "--json"], "")?["online"] != true {
        ensure!(Instant::now() < deadline, "the relay does not come back");
        thread::park_timeout(Duration::from_millis(200));
    }

    // The next time sessions came after the backup: both ends know more, and say so.
    let backup = ["backup", named(&second)?, "--recipient", &recipient, "--json"];
    site.ask("mediator-new", &backup, "")?;
    works(&site, port)?;
    site.kill("mediator-new")?;
    fs::remove_dir_all(&new)?;
    take_along(&kept, &site.data_dir("mediator-last"))?;
    let restore = ["restore", named(&second)?, "--identity", named(&key)?, "--json"];
    site.ask("mediator-last", &restore, "")?;
    site.serve("mediator-last", &["serve", "--json"])?;
    site.login("console")?;
    site.wait_online("console", "agent")?;
    let local = to_port(port);
    let refused = site.run("console", &["forward", "agent", "-L", &local, "--json"], "")?;
    ensure!(refused.error_code() == "audit_forked", "{refused:?}");
    site.process("agent")?.interrupt()?;
    site.running.retain(|(name, _)| name != "agent");
    site.ask("agent", &["witness", "accept", "--json"], "")?;
    site.restart("agent")?;
    site.ask("console", &["witness", "accept", "--json"], "")?;
    works(&site, port)
}
