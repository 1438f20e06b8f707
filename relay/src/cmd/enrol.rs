//! `relay join`: makes an identity, redeems the token, remembers the installation.

use std::sync::Arc;

use adit_control::client::{ATTEMPT_TIMEOUT, Ahead, ConnectConfig, connect};
use adit_net::{identity::DeviceIdentity, proxy::Dialer, tls::Trust};
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
use tracing::warn;

use super::{own_identity, sources};
use crate::{
    config::{KEYS, PROGRAM, Settings, read_advertise},
    enrolment::Enrolment,
    errors::{connect_error, identity_error, request_error},
};

/// `Hello.role` of a device that enrols.
const ROLE_ENROLLING: u32 = 4;
/// Longest name or region sent.
const MAX_NAME: usize = 63;

/// Options of `relay join`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    echo \"$TOKEN\" | relay join - --advertise relay.example:443 --region eu\n  \
    ADIT_TOKEN=adit1-… relay join --data-dir /srv/relay\n  \
    relay join --advertise relay.example:8443    (after joining: change the addresses)")]
pub struct JoinArgs {
    /// The token, or - to read it from stdin [default: ADIT_TOKEN]; none changes a relay that
    /// has joined
    #[arg(value_name = "TOKEN|-")]
    token: Option<Token>,
    /// Addresses under which agents and consoles reach this relay [default: the bound ones;
    /// default port: 443]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    advertise: Vec<String>,
    /// Region, for people [default: what the token says]
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
    let asked = Asked::read(args)?;
    let path = global.data_dir(&PROGRAM)?;
    if args.token.is_none()
        && path.is_dir()
        && let dir = DataDir::open(&path)?
        && let Some(known) = Enrolment::load(&dir)?
        && secretio::from_env(secretio::TOKEN_VARIABLE, "token")?.is_none()
    {
        let _lock = dir.lock("join")?;
        return again(global, &dir, known, asked, &settings);
    }
    let token = secretio::token(args.token.as_ref().map(|t| t.0.as_str()))?;
    let token = EnrollToken::decode(&token).map_err(token_error)?;
    if token.kind != TokenKind::Relay {
        return Err(CliError::refused("token_wrong_role", "the token is not for a relay")
            .hint("a relay's token is made with: mediator token relay"));
    }
    let dir = DataDir::open(path)?;
    let _lock = dir.lock("join")?;
    if let Some(known) = Enrolment::load(&dir)? {
        if known.token == token.id && known.root == token.root {
            return again(global, &dir, known, asked, &settings);
        }
        let message = format!("{} belongs to a relay that has joined", dir.path().display());
        return Err(CliError::failed("already_joined", message).hint(
            "use another --data-dir for another relay; to change --advertise or --region of \
             this one, run relay join without a token",
        ));
    }
    let identity = DeviceIdentity::load_or_create(dir.path(), unix_ms())
        .map_err(|error| identity_error(&error))?;
    let Asked { advertise, region, name } = asked;
    let (advertise, region) = (advertise.unwrap_or_default(), region.unwrap_or_default());
    let name = name.unwrap_or_else(host_name);
    let dialer = settings.dialer()?;
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
    tell(global, &dir, &enrolment, false)
}

/// What was given on the command line, checked before anything is made or sent.
struct Asked {
    advertise: Option<Vec<String>>,
    region: Option<String>,
    name: Option<String>,
}

impl Asked {
    fn read(args: &JoinArgs) -> Result<Self, CliError> {
        let advertise = read_advertise(&args.advertise)
            .map_err(|reason| CliError::usage("usage", format!("--advertise: {reason}")))?;
        let (region, name) = (args.region.clone(), args.name.clone());
        for (what, text) in [("--region", &region), ("--name", &name)] {
            let text = text.as_deref().unwrap_or_default();
            if text.len() > MAX_NAME || text.chars().any(char::is_control) {
                let message =
                    format!("{what}: at most {MAX_NAME} printable characters are expected");
                return Err(CliError::usage("usage", message));
            }
        }
        let advertise = (!args.advertise.is_empty()).then_some(advertise);
        Ok(Self { advertise, region, name })
    }
}

/// Joining again changes what was given anew; the mediator learns it when the relay serves.
fn again(
    global: &GlobalArgs,
    dir: &DataDir,
    known: Enrolment,
    asked: Asked,
    settings: &Settings,
) -> Result<(), CliError> {
    if asked.name.as_ref().is_some_and(|name| *name != known.name) {
        warn!(name = %known.name, "the name stays: it is the mediator's since the first join");
    }
    if asked.advertise.is_some() && !settings.advertise.is_empty() {
        warn!("relay.advertise of the configuration goes before --advertise");
    }
    if asked.region.is_some() && settings.region.is_some() {
        warn!("relay.region of the configuration goes before --region");
    }
    let mut enrolment = known.clone();
    enrolment.advertise = asked.advertise.unwrap_or(enrolment.advertise);
    enrolment.region = asked.region.unwrap_or(enrolment.region);
    let changed = enrolment != known;
    if changed {
        enrolment.save(dir)?;
    }
    tell(global, dir, &enrolment, changed)
}

async fn redeem(
    token: &EnrollToken,
    identity: Arc<DeviceIdentity>,
    dialer: Dialer,
    advertise: &[String],
    region: &str,
    name: String,
) -> Result<wire::Enrolled, CliError> {
    let key = |e| CliError::failed("crypto_failed", format!("the token's key: {e}"));
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
        ahead: Ahead::default(),
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

fn tell(
    global: &GlobalArgs,
    dir: &DataDir,
    enrolment: &Enrolment,
    changed: bool,
) -> Result<(), CliError> {
    let key = own_identity(dir)?.signing.public().fingerprint().to_string();
    let region = (!enrolment.region.is_empty()).then_some(enrolment.region.as_str());
    let output = global.output();
    output.emit(&json!({
        "relay_id": enrolment.relay.to_string(),
        "name": enrolment.name,
        "relay_key": key,
        "fingerprint": enrolment.root.to_string(),
        "mediators": enrolment.mediators,
        "advertise": enrolment.advertise,
        "region": region,
        "changed": changed,
    }))?;
    let advertised = match enrolment.advertise.is_empty() {
        true => "the addresses it listens on".to_owned(),
        false => enrolment.advertise.join(", "),
    };
    let (joined, start) = match changed {
        true => ("changed; joined", "takes effect when it is started next"),
        false => ("joined", "start it with"),
    };
    output.human(format_args!(
        "{joined} as {} ({})\nrelay key {key}\nadvertised as {}\nregion {}\n\
         {start}: relay serve --data-dir {}",
        escape_text(&enrolment.name),
        enrolment.relay,
        escape_text(&advertised),
        escape_text(region.unwrap_or("as the token says")),
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
