//! `relay join`: makes an identity, redeems the token, remembers the installation.

use std::sync::Arc;

use adit_control::client::{ATTEMPT_TIMEOUT, ConnectConfig, connect};
use adit_net::{
    identity::DeviceIdentity,
    proxy::{Dialer, ProxyConfig},
    tls::Trust,
};
use adit_protocol::{
    PROTOCOL_VERSION,
    ids::RelayId,
    token::{EnrollToken, InvalidToken, TokenKind},
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, GlobalArgs, escape_text},
    config::Config,
    datadir::DataDir,
    logging, secretio,
    time::unix_ms,
};
use clap::Args;
use serde_json::json;

use super::sources;
use crate::{
    config::{KEYS, PROGRAM, Settings, read_advertise},
    enrolment::Enrolment,
    errors::{connect_error, request_error},
};

/// `Hello.role` of a device that enrols.
const ROLE_ENROLLING: u32 = 4;
/// Longest name or region sent.
const MAX_NAME: usize = 63;

/// Options of `relay join`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    echo \"$TOKEN\" | relay join - --advertise relay.example:443 --region eu\n  \
    ADIT_TOKEN=adit1-… relay join --data-dir /srv/relay")]
pub struct JoinArgs {
    /// The token, or - to read it from stdin [default: ADIT_TOKEN]
    #[arg(value_name = "TOKEN|-")]
    token: Option<Token>,
    /// Addresses under which agents and consoles reach this relay [default: the bound ones]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    advertise: Vec<String>,
    /// Region, for people
    #[arg(long)]
    region: Option<String>,
    /// Name, for people [default: the host's name]
    #[arg(long)]
    name: Option<String>,
}

/// A token on the command line; never printed.
#[derive(Clone)]
struct Token(String);

impl std::str::FromStr for Token {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

pub(super) async fn run(global: &GlobalArgs, args: &JoinArgs) -> Result<(), CliError> {
    let settings = Settings::read(&Config::load(&PROGRAM, KEYS, &sources(global, None)?)?)?;
    logging::init(&settings.log_level, global.log_format)?;
    let advertise = read_advertise(&args.advertise)
        .map_err(|reason| CliError::usage("usage", format!("--advertise: {reason}")))?;
    let token = secretio::token(args.token.as_ref().map(|t| t.0.as_str()))?;
    let token = EnrollToken::decode(&token).map_err(token_error)?;
    if token.kind != TokenKind::Relay {
        return Err(CliError::refused("token_wrong_role", "the token is not for a relay")
            .hint("a relay's token is made with: mediator token relay"));
    }
    let dir = DataDir::open(global.data_dir(&PROGRAM)?)?;
    let _lock = dir.lock("join")?;
    if let Some(known) = Enrolment::load(&dir)? {
        if known.token == token.id && known.root == token.root {
            return tell(global, &dir, &known);
        }
        let message = format!("{} belongs to a relay that has joined", dir.path().display());
        return Err(CliError::refused("already_joined", message)
            .hint("use another --data-dir for another relay"));
    }
    let region = args.region.clone().unwrap_or_default();
    let name = args.name.clone().unwrap_or_else(host_name);
    for (what, text) in [("--region", &region), ("--name", &name)] {
        if text.len() > MAX_NAME || text.chars().any(char::is_control) {
            let message = format!("{what}: at most {MAX_NAME} printable characters are expected");
            return Err(CliError::usage("usage", message));
        }
    }
    let identity = DeviceIdentity::load_or_create(dir.path(), unix_ms())
        .map_err(|e| CliError::failed("identity_failed", e.to_string()))?;
    let proxy = ProxyConfig { explicit: settings.proxy.clone(), from_env: true };
    let dialer =
        Dialer::new(&proxy).map_err(|e| CliError::usage("proxy_invalid", e.to_string()))?;
    let enrolled = redeem(&token, Arc::new(identity), dialer, &advertise, &region, name).await?;
    let relay = RelayId::from_slice(&enrolled.device_id)
        .map_err(|e| CliError::failed("mediator_failed", format!("mediator's answer: {e}")))?;
    let enrolment = Enrolment {
        relay,
        name: enrolled.name,
        root: token.root,
        mediators: token.hosts.clone(),
        token: token.id,
        advertise,
        region,
    };
    enrolment.save(&dir)?;
    tell(global, &dir, &enrolment)
}

async fn redeem(
    token: &EnrollToken,
    identity: Arc<DeviceIdentity>,
    dialer: Dialer,
    advertise: &[String],
    region: &str,
    name: String,
) -> Result<wire::Enrolled, CliError> {
    let key = |e| CliError::failed("identity_failed", format!("{e}"));
    let public = identity.signing.public();
    let noise_cert = Some(identity.noise_cert.clone());
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let enroll = wire::Enroll {
        proof: Some(token.redeem(public).map_err(key)?),
        kind: TokenKind::Relay as u32,
        name,
        noise_cert: noise_cert.clone(),
        relay: Some(wire::RelayInfo {
            identity: public.to_bytes(),
            noise_cert: noise_cert.clone(),
            addresses: advertise.to_vec(),
            region: region.to_owned(),
            ..wire::RelayInfo::default()
        }),
        os: std::env::consts::OS.to_owned(),
        version: version.clone(),
        ..wire::Enroll::default()
    };
    let config = ConnectConfig {
        hosts: token.hosts.clone(),
        trust: Trust::Root(token.root),
        identity,
        dialer,
        hello: wire::Hello {
            role: ROLE_ENROLLING,
            protocol: PROTOCOL_VERSION,
            version,
            noise_cert,
            ..wire::Hello::default()
        },
        pipelined: vec![Body::Enroll(enroll)],
        timeout: ATTEMPT_TIMEOUT,
    };
    let (connected, _driver) = connect(&config).await.map_err(|e| connect_error(&e))?;
    match connected.replies.into_iter().next() {
        Some(Ok(Body::Enrolled(enrolled))) => Ok(enrolled),
        Some(Err(error)) => Err(request_error(&error)),
        _ => Err(CliError::failed("mediator_failed", "the mediator answered with something else")),
    }
}

fn tell(global: &GlobalArgs, dir: &DataDir, enrolment: &Enrolment) -> Result<(), CliError> {
    let identity = DeviceIdentity::load(dir.path())
        .map_err(|e| CliError::failed("identity_failed", e.to_string()))?;
    let key = identity.map(|i| i.signing.public().fingerprint().to_string());
    let output = global.output();
    output.emit(&json!({
        "relay_id": enrolment.relay.to_string(),
        "name": enrolment.name,
        "relay_key": key,
        "fingerprint": enrolment.root.to_string(),
        "mediators": enrolment.mediators,
        "advertise": enrolment.advertise,
        "region": enrolment.region,
    }))?;
    output.human(format_args!(
        "joined as {} ({})\nrelay key {}\nstart it with: relay serve --data-dir {}",
        escape_text(&enrolment.name),
        enrolment.relay,
        key.unwrap_or_default(),
        escape_text(&dir.path().display().to_string()),
    ))
}

fn token_error(error: InvalidToken) -> CliError {
    CliError::refused("token_invalid", error.to_string())
        .hint("copy the whole token as \"mediator token relay\" printed it")
}

fn host_name() -> String {
    let from_file = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let from_env = || std::env::var("COMPUTERNAME").or_else(|_| std::env::var("HOSTNAME")).ok();
    from_file
        .or_else(from_env)
        .map(|name| name.trim().chars().take(MAX_NAME).collect::<String>())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "relay".to_owned())
}
