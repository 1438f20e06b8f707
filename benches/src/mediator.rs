//! A mediator that does one thing: it lets one relay in and signs tickets for it, so that the
//! relay program can be measured without sessions around it.

use std::{sync::Arc, time::Duration};

use adit_control::{Incoming, Options, Peer, server::expect_hello, start};
use adit_net::tls::{Accepted, LiveCert, RootAuthority, ServerTls};
use adit_protocol::{
    ids::{RelayId, TokenId},
    keys::{KeyCert, NoiseCert, PublicKey, Purpose, SigningKey},
    token::{EnrollToken, TokenKind},
    wire::{self, frame::Body},
};
use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::joins;

const RELAY: RelayId = RelayId([9; 16]);
/// Certificates and tickets live so long, before and after now.
const LIFE_MS: u64 = 3_600_000;
const PATIENCE: Duration = Duration::from_secs(20);
/// `Hello.role` of a relay that serves.
const ROLE_RELAY: u32 = 3;

/// Prints a token for the relay, writes the tickets to `joins` once it serves.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(addr: &str, joins: &str) -> Result<()> {
    let listener = TcpListener::bind(addr).await?;
    let mediator = Arc::new(Mediator::new(addr, joins)?);
    println!("{}", json!({"event": "ready", "token": mediator.token(addr)?}));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let mediator = Arc::clone(&mediator);
                connections.spawn(async move { mediator.serve(accepted?.0).await });
            }
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended? {
                    eprintln!("connection failed: {error:#}");
                }
            }
        }
    }
}

struct Mediator {
    root: SigningKey,
    tickets: SigningKey,
    tls: ServerTls,
    joins: String,
}

impl Mediator {
    fn new(addr: &str, joins: &str) -> Result<Self> {
        let (root, tickets) = (SigningKey::generate()?, SigningKey::generate()?);
        let host = addr.rsplit_once(':').context("address without port")?.0;
        let now_ms = now_ms()?;
        let cert = RootAuthority::new(&root)?.issue_server_cert(
            &[host.to_owned()],
            now_ms - LIFE_MS,
            now_ms + LIFE_MS,
        )?;
        let tls = ServerTls::new(LiveCert::new(cert.chain, cert.key)?, None)?;
        Ok(Self { root, tickets, tls, joins: joins.to_owned() })
    }

    fn token(&self, addr: &str) -> Result<String> {
        let token = EnrollToken {
            kind: TokenKind::Relay,
            id: TokenId([1; 16]),
            root: self.root.public().fingerprint(),
            seed: SigningKey::generate()?.seed().clone(),
            hosts: vec![addr.to_owned()],
        };
        Ok(token.encode().to_string())
    }

    async fn serve(&self, socket: TcpStream) -> Result<()> {
        let Accepted::Control { stream, peer: key } = self.tls.accept(socket).await? else {
            return Ok(());
        };
        let (peer, incoming, driver) = start(stream, Options::server());
        let (_, talked) = tokio::join!(driver, self.talk(key, peer, incoming));
        talked
    }

    async fn talk(&self, key: PublicKey, _peer: Peer, mut incoming: Incoming) -> Result<()> {
        let (hello, responder) = expect_hello(&mut incoming, PATIENCE).await?;
        responder.reply(Body::Welcome(self.welcome()?));
        if hello.role == ROLE_RELAY {
            let noise = hello.noise_cert.as_ref();
            let info = hello.relay.as_ref().and_then(|r| r.noise_cert.as_ref());
            let noise = NoiseCert::open(key, info.or(noise).context("relay without Noise key")?)?;
            joins::write(&self.joins, key, noise, &self.tickets, now_ms()?)?;
        }
        while let Some(request) = incoming.recv().await {
            let (body, responder) = request.into_parts();
            responder.reply(match body {
                Body::Enroll(enroll) => Body::Enrolled(wire::Enrolled {
                    device_id: RELAY.to_bytes(),
                    name: enroll.name,
                    ..wire::Enrolled::default()
                }),
                _ => Body::Done(wire::Done {}),
            });
        }
        Ok(())
    }

    fn welcome(&self) -> Result<wire::Welcome> {
        let now_ms = now_ms()?;
        let cert = |purpose, key: &SigningKey| {
            let not_before_ms = now_ms - LIFE_MS;
            let cert = KeyCert { key: key.public(), not_before_ms, not_after_ms: now_ms + LIFE_MS };
            KeyCert::issue(&self.root, purpose, &cert)
        };
        let key_certs = vec![
            cert(Purpose::Grant, &self.root),
            cert(Purpose::Ticket, &self.tickets),
            cert(Purpose::Log, &self.root),
        ];
        Ok(wire::Welcome { now_ms, key_certs, ..wire::Welcome::default() })
    }
}

fn now_ms() -> Result<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_millis())?)
}
