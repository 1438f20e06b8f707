//! `enroll`: redeems a token. The token's seed never leaves this process, and nothing but the
//! device's own keys is written before the mediator has accepted.

use std::sync::Arc;

use adit_control::client::{ATTEMPT_TIMEOUT, Ahead, ConnectConfig, connect};
use adit_net::{identity::DeviceIdentity, tls::Trust};
use adit_protocol::{
    PROTOCOL_VERSION,
    code::failure as codes,
    ids::ComputerId,
    limits::MAX_TEXT,
    token::{EnrollToken, TokenKind},
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, escape_text},
    datadir::DataDir,
    output::Output,
    secretio,
    time::unix_ms,
};
use serde_json::json;

use crate::{
    enrollment::{Enrollment, is_partner_id},
    failure, host,
    policy::PolicyStore,
    settings,
};

/// Roles of `Hello` (docs/protocol.md).
const ROLE_ENROLLING: u32 = 4;
/// Tags of one computer.
const MAX_TAGS: usize = 64;
/// Longest name of a computer (a DNS label and some).
const MAX_NAME: usize = 128;

/// What the user asked for.
pub struct Request {
    /// The token, `-`, or nothing for `ADIT_TOKEN`.
    pub token: Option<String>,
    /// Name for this computer; else its host name.
    pub name: Option<String>,
    /// Tags.
    pub tags: Vec<(String, String)>,
    /// Proxy given on this command line.
    pub proxy: Option<String>,
}

/// Enrols this data directory.
pub async fn run(dir: DataDir, request: Request, output: Output) -> Result<(), CliError> {
    let text = secretio::token(request.token.as_deref())?;
    let token = EnrollToken::decode(&text).map_err(|error| {
        CliError::refused(codes::TOKEN_INVALID, error.to_string())
            .hint("ask the mediator's administrator for a new token")
    })?;
    drop(text);
    if token.kind != TokenKind::Agent {
        let message = "the token is for a relay, not for an agent";
        return Err(CliError::refused(codes::TOKEN_WRONG_ROLE, message)
            .hint("ask for a token made by mediator token agent"));
    }
    let name = request.name.clone().unwrap_or_else(host::name);
    check_texts(&name, &request.tags)?;
    let _lock = dir.lock(settings::PROGRAM.name)?;
    if let Some(enrollment) = Enrollment::load(&dir)? {
        return already(&enrollment, &token, output);
    }
    let identity = DeviceIdentity::load_or_create(dir.path(), unix_ms());
    let identity = Arc::new(identity.map_err(|error| failure::identity(&error))?);
    let enrollment = redeem(&request, name, &token, identity).await?;
    // The policy first: an agent that is enrolled has the owner's word in place.
    let wrote_policy = PolicyStore::new(dir.clone()).write_default()?;
    enrollment.save(&dir)?;
    tell(&enrollment, output)?;
    if wrote_policy {
        let path = dir.path().join(crate::policy::POLICY_FILE);
        output.human(format_args!("What may be reached is in {}.", path.display()))?;
    }
    let run = settings::PROGRAM.command_line("run", dir.path());
    output.human(format_args!("Start it with: {run}"))
}

/// The same token again is a repetition whose first answer may have been lost.
fn already(enrollment: &Enrollment, token: &EnrollToken, output: Output) -> Result<(), CliError> {
    if enrollment.root == token.root && enrollment.token == token.id {
        return tell(enrollment, output);
    }
    let message = format!(
        "this data directory is enrolled as {} of {} at {}",
        enrollment.name,
        enrollment.client,
        enrollment.hosts.join(", ")
    );
    Err(CliError::failed("already_enrolled", message).hint(
        "use another --data-dir, or remove enrollment.json here to give up the old enrolment",
    ))
}

async fn redeem(
    request: &Request,
    name: String,
    token: &EnrollToken,
    identity: Arc<DeviceIdentity>,
) -> Result<Enrollment, CliError> {
    let public = identity.signing.public();
    let proof = token.redeem(public).map_err(|error| {
        CliError::refused(codes::TOKEN_INVALID, format!("the token's key: {error}"))
    })?;
    let enroll = wire::Enroll {
        proof: Some(proof),
        kind: TokenKind::Agent as u32,
        name,
        tags: request.tags.iter().cloned().collect(),
        noise_cert: Some(identity.noise_cert.clone()),
        relay: None,
        os: host::os(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let config = ConnectConfig {
        hosts: token.hosts.clone(),
        trust: Trust::Root(token.root),
        dialer: settings::dialer(request.proxy.clone())?,
        hello: wire::Hello {
            role: ROLE_ENROLLING,
            protocol: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            noise_cert: Some(identity.noise_cert.clone()),
            ..wire::Hello::default()
        },
        identity,
        ahead: Ahead::default(),
        pipelined: Vec::new(),
        timeout: ATTEMPT_TIMEOUT,
    };
    let (connected, mut driver) =
        connect(&config).await.map_err(|error| failure::connect(&error))?;
    let peer = connected.peer.clone();
    let answer = tokio::select! {
        biased;
        answer = peer.request(Body::Enroll(enroll), ATTEMPT_TIMEOUT) => answer,
        _ = &mut driver => Err(adit_control::RequestError::Closed),
    };
    let enrolled = match answer.map_err(|error| failure::request(&error))? {
        Body::Enrolled(enrolled) => enrolled,
        _ => return Err(CliError::failed(codes::BAD_REQUEST, "the mediator answered strangely")),
    };
    peer.close();
    // Closing in good order is a courtesy; the enrolment holds already.
    let _ = tokio::time::timeout(adit_control::CLOSE_DEADLINE, driver).await;
    let fits = [&enrolled.name, &enrolled.client, &enrolled.partner];
    let computer = ComputerId::from_slice(&enrolled.device_id).ok();
    let partner_id = Some(enrolled.partner_id).filter(|id| !id.is_empty());
    let known = partner_id.as_ref().is_none_or(|id| is_partner_id(id));
    let computer = computer.filter(|_| known && fits.iter().all(|text| text.len() <= MAX_TEXT));
    Ok(Enrollment {
        computer: computer.ok_or_else(|| {
            CliError::failed(codes::BAD_REQUEST, "the mediator's answer cannot be read")
        })?,
        name: enrolled.name,
        client: enrolled.client,
        partner: enrolled.partner,
        partner_id,
        hosts: token.hosts.clone(),
        root: token.root,
        agent_key: public.fingerprint(),
        token: token.id,
        proxy: request.proxy.clone(),
    })
}

fn check_texts(name: &str, tags: &[(String, String)]) -> Result<(), CliError> {
    let bad = |text: &str, max| text.is_empty() || text.len() > max || text != escape_text(text);
    if bad(name, MAX_NAME) || name.contains('/') || name.trim() != name {
        let message = format!("\"{name}\" is no name: 1 to {MAX_NAME} printable bytes without /");
        return Err(CliError::usage("name_invalid", message).hint("give another with --name"));
    }
    let tag_bad = |(key, value): &(String, String)| bad(key, MAX_NAME) || bad(value, MAX_TEXT);
    if tags.len() > MAX_TAGS || tags.iter().any(tag_bad) {
        let message = format!("tags are at most {MAX_TAGS} short printable key=value pairs");
        return Err(CliError::usage("tag_invalid", message));
    }
    Ok(())
}

fn tell(enrollment: &Enrollment, output: Output) -> Result<(), CliError> {
    output.emit(&json!({
        "computer_id": enrollment.computer.to_string(),
        "name": enrollment.name,
        "client": enrollment.client,
        "agent_key": enrollment.agent_key.to_string(),
    }))?;
    let (name, client) = (escape_text(&enrollment.name), escape_text(&enrollment.client));
    output.human(format_args!("Enrolled as {name} of {client}."))?;
    output.human(format_args!(
        "Key of this agent: {}\nTechnicians compare it at first contact.",
        enrollment.agent_key
    ))
}

/// Reads `key=value`.
pub fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it like key=value".to_owned()),
    }
}
