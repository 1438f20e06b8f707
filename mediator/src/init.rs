//! `mediator init`: keys, certificate, database, first partner and administrator.
//!
//! A mark is in the directory from the first step to the last: what a failed or killed `init`
//! left is removed by the next one, and never taken for a mediator. Must never touch a
//! directory that holds a mediator.

use adit_ledger::{Event, Level};
use adit_runtime::{
    cli::{CliError, GlobalArgs},
    datadir::DataDir,
    time::unix_ms,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    admin::actor::LOCAL,
    config::{PROGRAM, check_hosts},
    installation::{self, Installation},
    names, password,
    place::{DATABASE, INIT_MARK, store_error},
    roles::role::{BUILTIN, OWNER},
    store::{
        Mode, Store, StoreError, Writer,
        access::bindings::{self, Binding},
        accounts::{self, MfaPolicy},
        tenants,
    },
    vault::wrap::{WRAPPING_KEYS, WrappingKeys},
};

/// Setting that names the partner whose log holds the installation's own events.
pub(crate) const HOME_PARTNER: &str = "home_partner";
/// Setting that names the root key, so that a database is not used with another's keys.
pub(crate) const ROOT_FINGERPRINT: &str = "root";

/// What to set up.
pub(crate) struct InitOptions {
    pub(crate) hosts: Vec<String>,
    pub(crate) port: u16,
    pub(crate) stun_port: u16,
    pub(crate) admin: String,
    pub(crate) partner: String,
}

/// Sets up a mediator.
pub(crate) async fn run(global: &GlobalArgs, options: InitOptions) -> Result<(), CliError> {
    check(&options)?;
    let dir = DataDir::open(global.data_dir(&PROGRAM)?)?;
    let _lock = dir.lock(PROGRAM.name)?;
    if !dir.has(INIT_MARK) {
        let there = [installation::ROOT_KEY, DATABASE, "mediator.toml"];
        if let Some(name) = there.into_iter().find(|name| dir.has(name)) {
            let text = format!("{} is set up already: it has {name}", dir.path().display());
            return Err(CliError::failed("already_initialised", text)
                .hint("use another --data-dir, or mediator serve"));
        }
        dir.write_atomic(INIT_MARK, b"", 0o600)?;
    } else {
        clear(&dir)?;
    }
    match build(&dir, &options).await {
        Ok((fingerprint, password)) => {
            remove(&dir, INIT_MARK)?;
            tell(global, &dir, &options, &fingerprint, &password)
        }
        Err(error) => {
            clear(&dir)?;
            remove(&dir, INIT_MARK)?;
            Err(error)
        }
    }
}

fn check(options: &InitOptions) -> Result<(), CliError> {
    let usage = |reason: String| CliError::usage("usage", reason);
    if options.hosts.is_empty() {
        return Err(usage("--host needs at least one name or address".into()));
    }
    check_hosts(&options.hosts).map_err(|reason| usage(format!("--host: {reason}")))?;
    names::check(&options.admin).map_err(|reason| usage(format!("--admin: {reason}")))?;
    names::check(&options.partner).map_err(|reason| usage(format!("--partner: {reason}")))
}

async fn build(
    dir: &DataDir,
    options: &InitOptions,
) -> Result<(String, Zeroizing<String>), CliError> {
    let installation = Installation::create(dir, &options.hosts, unix_ms())?;
    let fingerprint = installation.root().fingerprint().to_string();
    WrappingKeys::load(dir, None)?;
    let crypto = || CliError::failed("crypto_failed", "cannot make a password");
    let password = password::generate().ok_or_else(crypto)?;
    let hash = password::hash(&password).ok_or_else(crypto)?;
    let store = Store::open(&dir.file(DATABASE)?, Mode::Create).await.map_err(store_error)?;
    let stop = CancellationToken::new();
    let (writer, task) = Writer::start(&store, installation.log_signer(), stop.clone())
        .await
        .map_err(store_error)?;
    let seed = seed(writer, fingerprint.clone(), options, hash);
    let (seeded, ()) = tokio::join!(
        async {
            let seeded = seed.await;
            stop.cancel();
            seeded
        },
        task
    );
    store.close().await;
    seeded.map_err(store_error)?;
    dir.write_atomic("mediator.toml", settings_text(options).as_bytes(), 0o600)?;
    Ok((fingerprint, password))
}

async fn seed(
    writer: Writer,
    fingerprint: String,
    options: &InitOptions,
    hash: String,
) -> Result<(), StoreError> {
    let (partner, admin) = (options.partner.clone(), options.admin.clone());
    let hosts = options.hosts.join(",");
    writer
        .write(move |tx| {
            Box::pin(async move {
                let partner = tenants::create_partner(tx, &partner).await?;
                tenants::set(tx, HOME_PARTNER, &partner.id).await?;
                tenants::set(tx, ROOT_FINGERPRINT, &fingerprint).await?;
                let id = accounts::insert(tx, &partner, &admin, OWNER, &hash).await?;
                // The way in must not depend on a second device before there is one.
                accounts::set_mfa_policy(tx, &id, MfaPolicy::OnceSetUp).await?;
                let owner = format!("{BUILTIN}{OWNER}");
                bindings::insert(tx, &Binding::on_partner(&partner.id, id, owner)?).await?;
                let started = Event::new("installation.created", Level::Significant)
                    .partner(&partner.name)
                    .actor(LOCAL)
                    .outcome("done")
                    .extra("root", fingerprint)
                    .extra("hosts", hosts);
                tx.append(&partner.id, started).await?;
                let added = Event::new("user.added", Level::Significant)
                    .partner(&partner.name)
                    .actor(LOCAL)
                    .outcome("done")
                    .extra("role", OWNER)
                    .extra_personal("user", admin);
                tx.append(&partner.id, added).await?;
                Ok(())
            })
        })
        .await
}

fn settings_text(options: &InitOptions) -> String {
    let hosts: Vec<String> = options.hosts.iter().map(|host| format!("\"{host}\"")).collect();
    format!(
        "# Written by mediator init. Every key: mediator config show\n\n[server]\n\
         hosts = [{}]\nport = {}\nstun_port = {}\n",
        hosts.join(", "),
        options.port,
        options.stun_port
    )
}

fn tell(
    global: &GlobalArgs,
    dir: &DataDir,
    options: &InitOptions,
    fingerprint: &str,
    password: &str,
) -> Result<(), CliError> {
    let output = global.output();
    output.emit(&json!({
        "host": options.hosts.join(","),
        "port": options.port,
        "stun_port": options.stun_port,
        "fingerprint": fingerprint,
        "partner": options.partner,
        "admin": options.admin,
        "admin_password": password,
    }))?;
    output.human(format_args!(
        "mediator for {} is set up\n  fingerprint  {fingerprint}\n  partner      {}\n  \
         admin        {}\n  password     {password}   (shown once)\n\nnext: mediator serve \
         --data-dir {}",
        options.hosts.join(", "),
        options.partner,
        options.admin,
        shell_word(&dir.path().display().to_string()),
    ))
}

/// A path as one types it into a shell.
fn shell_word(path: &str) -> String {
    let path = adit_runtime::cli::escape_text(path);
    let plain = |c: char| c.is_alphanumeric() || "/._-+:~".contains(c);
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

/// Removes what an `init` made.
fn clear(dir: &DataDir) -> Result<(), CliError> {
    let database = ["", "-wal", "-shm", "-journal"].map(|end| format!("{DATABASE}{end}"));
    let files =
        installation::FILES.into_iter().chain(["mediator.toml", WRAPPING_KEYS]).map(str::to_owned);
    for name in files.chain(database) {
        remove(dir, &name)?;
    }
    Ok(())
}

fn remove(dir: &DataDir, name: &str) -> Result<(), CliError> {
    let path = dir.file(name)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CliError::failed(
            "data_dir_unwritable",
            format!("cannot remove {}: {error}", path.display()),
        )),
        _ => Ok(()),
    }
}
