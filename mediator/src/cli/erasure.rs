//! Commands that erase tenants, and about the certificates of it.

use std::path::PathBuf;

use adit_protocol::keys::Fingerprint;
use adit_runtime::{
    cli::{CertificateArg, CliError, GlobalArgs},
    people,
};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{admin::AdminRequest, tenancy::certificate};

#[derive(Subcommand)]
pub(super) enum PartnerCommand {
    /// List partners
    #[command(after_help = "Example: mediator partner list --json")]
    List,
    /// Erase a partner with its clients, computers, users and credentials
    #[command(after_help = "Example: mediator partner erase acme --yes --certificate erased.json")]
    Erase {
        /// Name
        partner: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Where the certificate goes.
        #[command(flatten)]
        certificate: CertificateArg,
    },
}

#[derive(Subcommand)]
pub(super) enum CertificateCommand {
    /// List what was erased
    #[command(after_help = "Example: mediator certificate list --json")]
    List,
    /// Print a certificate
    #[command(after_help = "Example: mediator certificate show 3f2a… > erased.json")]
    Show {
        /// Id of the erasure, as `list` prints it
        erasure: String,
    },
    /// Check a certificate without any server
    #[command(after_help = "Example: mediator certificate verify erased.json --key sha256:…")]
    Verify {
        /// The certificate
        file: PathBuf,
        /// Fingerprint of the root or log key that is trusted
        #[arg(long, value_name = "FINGERPRINT")]
        key: Vec<Fingerprint>,
    },
}

pub(super) async fn partner(global: &GlobalArgs, command: PartnerCommand) -> Result<(), CliError> {
    let (partner, yes, certificate) = match command {
        PartnerCommand::List => return super::ask(global, AdminRequest::PartnerList).await,
        PartnerCommand::Erase { partner, yes, certificate } => (partner, yes, certificate),
    };
    if !yes {
        let text =
            format!("this deletes {partner} with its clients, computers, users and credentials");
        return Err(CliError::usage("usage", text).hint("add --yes if you mean it"));
    }
    erase(global, AdminRequest::PartnerErase { partner, confirm: None }, &certificate).await
}

/// Erases, and tells the certificate: with `--json` among what was done, else it alone, or in its
/// file.
pub(super) async fn erase(
    global: &GlobalArgs,
    request: AdminRequest,
    certificate: &CertificateArg,
) -> Result<(), CliError> {
    let file = certificate.begin()?;
    let reply = super::call(global, request).await?.pop();
    if let Some(reply) = reply {
        let told = file.tell(global.output(), &reply);
        if reply.get("compacted") != Some(&Value::Bool(true)) {
            eprintln!(
                "note: the database is too large or too busy to be rewritten now: stop the \
                 mediator and run mediator compact"
            );
        }
        for copy in reply.get("copies_kept").and_then(Value::as_array).into_iter().flatten() {
            let copy = copy.as_str().unwrap_or_default();
            let place = if copy.contains(' ') { "" } else { " in the data directory" };
            eprintln!("note: {copy}{place}: still holds what was erased, delete it");
        }
        match reply.get("accounts_without_rights").and_then(Value::as_u64) {
            None | Some(0) => {}
            Some(count) => eprintln!(
                "note: accounts that had rights only there: {count}. They stay with the partner; \
                 user disable closes one"
            ),
        }
        return told;
    }
    Ok(())
}

pub(super) async fn certificate(
    global: &GlobalArgs,
    command: CertificateCommand,
) -> Result<(), CliError> {
    let output = global.output();
    match command {
        CertificateCommand::Verify { file, key } => verify(global, &file, &key),
        CertificateCommand::List => {
            let all = super::call(global, AdminRequest::CertificateList { only: None }).await?;
            all.iter().try_for_each(|line| output.emit(line))?;
            people::list(output, &all, &["certificate"])
        }
        CertificateCommand::Show { erasure } => {
            let all = super::call(global, AdminRequest::CertificateList { only: None }).await?;
            let mine =
                |line: &&Value| line.get("erasure").and_then(Value::as_str) == Some(&erasure);
            let found = all.iter().find(mine).and_then(|line| line.get("certificate"));
            let missing = || CliError::not_there("not_found", "there is no such certificate");
            let found = found.filter(|text| text.is_object()).ok_or_else(missing)?;
            output.emit(found)?;
            output.human(found)
        }
    }
}

fn verify(global: &GlobalArgs, file: &PathBuf, keys: &[Fingerprint]) -> Result<(), CliError> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        CliError::failed("file_unreadable", format!("{}: {error}", file.display()))
    })?;
    let verified = certificate::verify(&text, keys).map_err(|error| {
        CliError::failed("certificate_invalid", error.to_string()).hint(
            "give the certificate alone, as erase --certificate FILE wrote it or mediator \
                 certificate show prints it; and compare the installation's fingerprint",
        )
    })?;
    let output = global.output();
    output.emit(&json!({
        "valid": true,
        "trusted": verified.trusted,
        "root": verified.root.to_string(),
        "destruction": verified.destruction,
    }))?;
    let text = |name: &str| match verified.destruction.get(name) {
        Some(Value::String(text)) => adit_runtime::cli::escape_text(text),
        other => other.map(Value::to_string).unwrap_or_default(),
    };
    let whose = match verified.trusted {
        true => "signed by the trusted installation".to_owned(),
        false => format!("consistent in itself, signed under root {}", verified.root),
    };
    output.human(format_args!(
        "{} {} was erased at {}: {} credentials, {} entries; {whose}",
        text("kind"),
        text("subject"),
        text("finished"),
        text("credentials_destroyed"),
        text("entries_erased"),
    ))
}
