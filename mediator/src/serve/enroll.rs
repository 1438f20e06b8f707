//! Redeeming enrolment tokens.
//!
//! The proof binds token, device identity and installation; the device proved the same identity
//! in TLS. Every enrolment is recorded, in the transaction that spends the token; so are refusals of
//! tokens of ours, of each token and reason one a minute with the number of others. Redeeming again with the same identity gives the same answer.

use std::sync::Arc;

use adit_control::failure as fail;
use adit_ledger::{Event, Level};
use adit_protocol::{
    code::failure,
    ids::TokenId,
    keys::{NoiseCert, PublicKey, context},
    wire::{self, frame::Body},
};
use prost::Message;

use super::{
    connection::{Line, encoded, fact},
    seldom::Seldom,
};
use crate::{
    names, proof,
    store::{StoreError, WriteTx, access::labels, computers, relays, tenants, tokens},
};

/// Tags of a computer.
const MAX_TAGS: usize = 32;
/// Attempts on one connection.
const MAX_ATTEMPTS: usize = 5;

const AGENT: u8 = 1;
const RELAY: u8 = 3;

/// Serves a device that is not enrolled yet.
pub(super) async fn serve(mut line: Line) {
    for _ in 0..MAX_ATTEMPTS {
        let Some(request) = line.next().await else { return };
        let (body, responder) = request.into_parts();
        match body {
            Body::Enroll(enroll) => match redeem(&line, enroll).await {
                Ok(enrolled) => {
                    line.unproved = None;
                    responder.reply(Body::Enrolled(enrolled));
                }
                Err(failure) => responder.fail(failure),
            },
            _ => responder.fail(fail(failure::BAD_REQUEST, "enrolment is expected")),
        }
    }
}

/// What the device says of itself, checked.
#[derive(Clone)]
struct Candidate {
    token: TokenId,
    proof: wire::Signed,
    identity: PublicKey,
    kind: u8,
    name: String,
    tags: String,
    noise_cert: Vec<u8>,
    region: String,
    os: String,
    version: String,
    source: String,
    /// Log for relays and for failures that name no client.
    home: String,
    refused: Arc<Seldom>,
}

async fn redeem(line: &Line, enroll: wire::Enroll) -> Result<wire::Enrolled, wire::Failure> {
    let candidate = check(line, enroll)?;
    let again = candidate.clone();
    let writer = &line.shared.writer;
    // Strangers wait like everyday reports do.
    let Ok(_room) = writer.room(1).await else {
        return Err(fail(failure::BUSY, "too many enrolments at the moment; try again"));
    };
    let mut outcome =
        writer.write(move |tx| Box::pin(async move { candidate.enroll(tx).await })).await;
    if let Err(StoreError::Taken(what)) = outcome {
        // That undid everything, the token's use included: the refusal's record is written apart.
        let refusal = fail(failure::NAME_TAKEN, format!("{what} is taken; choose another name"));
        outcome = writer
            .write(move |tx| Box::pin(async move { again.refuse_name(tx, refusal).await }))
            .await;
    }
    outcome.unwrap_or_else(|error| {
        tracing::error!(%error, "enrolment not written");
        Err(fail(failure::AUDIT_UNAVAILABLE, "the enrolment could not be recorded"))
    })
}

fn check(line: &Line, enroll: wire::Enroll) -> Result<Candidate, wire::Failure> {
    let bad = |text: &str| fail(failure::BAD_REQUEST, text);
    let proof = enroll.proof.ok_or_else(|| bad("the proof is missing"))?;
    let body = wire::EnrollBody::decode(proof.payload.clone())
        .map_err(|_| bad("the proof cannot be read"))?;
    let token = TokenId::from_slice(&body.token_id).map_err(|_| bad("the proof has no token"))?;
    let root = line.shared.installation.root().fingerprint();
    if body.root.as_ref() != root.0.as_slice() || body.identity.as_ref() != line.identity.0 {
        return Err(invalid());
    }
    let cert = enroll
        .noise_cert
        .or_else(|| enroll.relay.as_ref().and_then(|relay| relay.noise_cert.clone()))
        .filter(|cert| NoiseCert::open(line.identity, cert).is_ok())
        .ok_or_else(|| bad("the Noise key is not certified by this device's identity"))?;
    let kind = u8::try_from(enroll.kind).unwrap_or(0);
    let name = match (kind, enroll.name.as_str()) {
        (RELAY, "") => format!("relay-{}", short(line.identity)),
        (_, name) => name.to_owned(),
    };
    names::check(&name).map_err(|error| bad(&error.to_string()))?;
    if enroll.tags.len() > MAX_TAGS {
        return Err(bad("too many tags"));
    }
    let tags: std::collections::BTreeMap<String, String> =
        enroll.tags.iter().map(|(key, value)| (fact(key), fact(value))).collect();
    Ok(Candidate {
        token,
        proof,
        identity: line.identity,
        kind,
        name,
        tags: serde_json::to_string(&tags).unwrap_or_default(),
        noise_cert: encoded(&cert),
        region: enroll.relay.map(|relay| fact(&relay.region)).unwrap_or_default(),
        os: fact(&enroll.os),
        version: fact(&enroll.version),
        source: line.source.to_string(),
        home: line.shared.home.clone(),
        refused: Arc::clone(&line.shared.refused_tokens),
    })
}

type Outcome = Result<wire::Enrolled, wire::Failure>;

impl Candidate {
    /// In one transaction: checks, spends, adds, records. A refusal is recorded too.
    async fn enroll(self, tx: &mut WriteTx) -> Result<Outcome, StoreError> {
        let Some(token) = tokens::find(tx, self.token).await? else {
            // Anybody may invent tokens: those fill no log.
            return Ok(Err(invalid()));
        };
        if token.key.open(context::ENROLL, &self.proof).is_err() {
            return Ok(Err(invalid()));
        }
        let refused = |code, text: &str| Some(fail(code, text));
        let mut refusal = None;
        if token.kind != self.kind {
            refusal = refused(failure::TOKEN_WRONG_ROLE, "the token is for another kind of device");
        } else if token.expires_ms <= tx.now_ms() {
            refusal = refused(failure::TOKEN_EXPIRED, "the token expired; ask for a new one");
        }
        let client = match (&token.client_id, refusal.is_none() && self.kind == AGENT) {
            (Some(client), true) => Some(tenants::client_by_id(tx, client).await?),
            _ => None,
        };
        if refusal.is_none() {
            match self.known(tx, client.as_ref()).await? {
                Known::Same(enrolled) => return Ok(Ok(enrolled)),
                Known::Elsewhere => {
                    let text = "this device is enrolled for another client already";
                    refusal = refused(failure::NOT_PERMITTED, text);
                }
                Known::No if !tokens::spend(tx, self.token).await? => {
                    let text = "this token has enrolled as many devices as it was made for";
                    refusal = refused(failure::TOKEN_SPENT, text);
                }
                Known::No => {}
            }
        }
        if let Some(refusal) = refusal {
            return self.refuse(tx, token.partner_id, client.as_ref(), refusal).await;
        }
        match client {
            Some(client) => self.add_computer(tx, client).await.map(Ok),
            None => self.add_relay(tx, &token.region).await.map(Ok),
        }
    }

    /// The name was taken, as a first transaction found.
    async fn refuse_name(
        self,
        tx: &mut WriteTx,
        refusal: wire::Failure,
    ) -> Result<Outcome, StoreError> {
        let Some(token) = tokens::find(tx, self.token).await? else { return Ok(Err(invalid())) };
        let client = match &token.client_id {
            Some(client) => Some(tenants::client_by_id(tx, client).await?),
            None => None,
        };
        self.refuse(tx, token.partner_id, client.as_ref(), refusal).await
    }

    async fn refuse(
        &self,
        tx: &mut WriteTx,
        partner_id: Option<String>,
        client: Option<&tenants::Client>,
        refusal: wire::Failure,
    ) -> Result<Outcome, StoreError> {
        // Whoever holds a token that is worth nothing must not fill the log with it.
        let key = [self.token.to_bytes().as_ref(), refusal.code.as_bytes()].concat();
        let Some(others) = self.refused.note(&key, tx.now_ms()) else { return Ok(Err(refusal)) };
        let mut event = self
            .event("enroll.refused", client)
            .outcome("refused")
            .end_reason(refusal.code.as_str());
        if others > 0 {
            event = event.extra("others", others);
        }
        let partner = partner_id.unwrap_or_else(|| self.home.clone());
        tx.append(&partner, event).await?;
        Ok(Err(refusal))
    }

    async fn known(
        &self,
        tx: &mut WriteTx,
        client: Option<&tenants::Client>,
    ) -> Result<Known, StoreError> {
        if let Some(row) = computers::by_identity(tx, self.identity).await? {
            if client.is_none_or(|client| client.id != row.client_id) {
                return Ok(Known::Elsewhere);
            }
            return Ok(Known::Same(wire::Enrolled {
                device_id: row.id.to_bytes(),
                name: row.name.clone(),
                client: row.client_path(),
                partner: row.partner,
                partner_id: row.partner_id,
            }));
        }
        Ok(match relays::by_identity(tx, self.identity).await? {
            Some(_) if client.is_some() => Known::Elsewhere,
            Some(row) => Known::Same(wire::Enrolled {
                device_id: row.id.to_bytes(),
                name: row.name,
                ..wire::Enrolled::default()
            }),
            None => Known::No,
        })
    }

    async fn add_computer(
        self,
        tx: &mut WriteTx,
        client: tenants::Client,
    ) -> Result<wire::Enrolled, StoreError> {
        let event = self.event("enroll.succeeded", Some(&client)).outcome("granted");
        let new = computers::NewComputer {
            client: client.clone(),
            name: self.name.clone(),
            identity: self.identity,
            noise_cert: self.noise_cert,
            tags: self.tags,
            os: self.os,
            version: self.version,
        };
        let id = computers::insert(tx, &new).await?;
        labels::add_tags(tx, &client.partner_id, &id.to_string(), &new.tags).await?;
        let entry = tx.append(&client.partner_id, event.computer_id(id.to_string())).await?;
        proof::keep_enrolment(tx, &client.partner_id, &id.to_string(), entry.seq).await?;
        Ok(wire::Enrolled {
            device_id: id.to_bytes(),
            name: self.name,
            client: client.path(),
            partner: client.partner,
            partner_id: client.partner_id,
        })
    }

    async fn add_relay(self, tx: &mut WriteTx, region: &str) -> Result<wire::Enrolled, StoreError> {
        let region = if region.is_empty() { self.region.as_str() } else { region };
        let id = relays::insert(tx, &self.name, self.identity, region).await?;
        let event = self.event("enroll.succeeded", None).outcome("granted").relay(id.to_string());
        tx.append(&self.home, event).await?;
        Ok(wire::Enrolled {
            device_id: id.to_bytes(),
            name: self.name,
            ..wire::Enrolled::default()
        })
    }

    /// With the fingerprint, so that a first contact can be compared with the log.
    fn event(&self, name: &str, client: Option<&tenants::Client>) -> Event {
        let mut event = Event::new(name, Level::Significant)
            .device(self.identity.fingerprint().to_string())
            .source(&self.source)
            .computer(&self.name)
            .extra("token", self.token.to_string())
            .extra("kind", if self.kind == AGENT { "agent" } else { "relay" })
            .extra("identity", self.identity.fingerprint().to_string());
        if let Some(client) = client {
            event = event.partner(&client.partner).client(client.path());
        }
        event
    }
}

enum Known {
    Same(wire::Enrolled),
    Elsewhere,
    No,
}

fn invalid() -> wire::Failure {
    fail(failure::TOKEN_INVALID, "the token is unknown here, or of another installation")
}

fn short(identity: PublicKey) -> String {
    identity.fingerprint().0.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}
