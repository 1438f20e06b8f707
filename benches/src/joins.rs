//! Both ends of a pair at the relay, without a session: join with a ticket, then plain bytes.

use std::{fs, io::Write as _, net::TcpStream, os::unix::fs::OpenOptionsExt as _, path::Path};

use adit_net::{identity::NoiseKeypair, noise::join::join_relay};
use adit_protocol::{
    ids::SessionId,
    keys::{PublicKey, SigningKey},
    ticket::{Role, Share, Ticket},
    wire,
};
use anyhow::{Context as _, Result};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::load;

/// Sessions for which tickets are written.
pub(crate) const SESSIONS: u32 = 64;
const TICKET_LIFE_MS: u64 = 3_600_000;

/// What the two ends need; the address is added by whoever starts the relay.
#[derive(Serialize, Deserialize)]
struct Joins {
    relay_noise: [u8; 32],
    /// Console's and agent's, by session.
    ends: Vec<[End; 2]>,
}

#[derive(Serialize, Deserialize)]
struct End {
    key: [u8; 32],
    ticket: Vec<u8>,
}

/// Writes tickets and keys of [`SESSIONS`] sessions, whole or not at all.
pub(crate) fn write(
    path: &str,
    relay: PublicKey,
    relay_noise: [u8; 32],
    tickets: &SigningKey,
    now_ms: u64,
) -> Result<()> {
    let end = |session, role| -> Result<End> {
        let key = NoiseKeypair::generate()?;
        let ticket = Ticket {
            relay,
            session,
            role,
            joiner: key.public,
            not_before_ms: now_ms - TICKET_LIFE_MS,
            expires_ms: now_ms + TICKET_LIFE_MS,
            share: Share::of(&session.to_string(), relay),
        };
        Ok(End { key: *key.private, ticket: ticket.sign(tickets).encode_to_vec() })
    };
    let ends = (1..=SESSIONS).map(|n| {
        let session = SessionId(u128::from(n).to_be_bytes());
        Ok([end(session, Role::Console)?, end(session, Role::Agent)?])
    });
    let joins = Joins { relay_noise, ends: ends.collect::<Result<_>>()? };
    let partial = format!("{path}.partial");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(&serde_json::to_vec(&joins)?)?;
    fs::rename(partial, path)?;
    Ok(())
}

/// The far end of pair `index`: answers as the load server does.
pub(crate) fn agent(file: &str, index: usize) -> Result<()> {
    load::answer(join(file, index, Role::Agent)?)
}

/// The near end of pair `index`: measures.
pub(crate) fn console(file: &str, index: usize, what: &str, amount: u64) -> Result<()> {
    load::measure(join(file, index, Role::Console)?, what, amount)
}

/// Where the relay is.
pub(crate) fn address_file(file: &Path) -> std::path::PathBuf {
    file.with_extension("address")
}

#[tokio::main(flavor = "current_thread")]
async fn join(file: &str, index: usize, role: Role) -> Result<TcpStream> {
    let joins: Joins = serde_json::from_slice(&fs::read(file)?)?;
    let address = fs::read_to_string(address_file(Path::new(file)))?;
    let [console, agent] = joins.ends.get(index).context("no ticket for so many pairs")?;
    let end = if role == Role::Console { console } else { agent };
    let key = NoiseKeypair::from_private(Zeroizing::new(end.key))?;
    let ticket = wire::Signed::decode(end.ticket.as_slice())?;
    let mut stream = tokio::net::TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    join_relay(&mut stream, &joins.relay_noise, &key, &ticket, 0).await?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}
