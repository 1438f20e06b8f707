//! One connection's way from accepted to joined: first byte, TLS or not, Noise, ticket, proof.
//!
//! Reads exactly what belongs to the join; what follows is the carrier's and stays in the
//! kernel until there is a pair. An agent whose message 1 was good gets a copy of what the waiting
//! console has said first, while its confirmation is under way. Says nothing to whoever has not proved to know this relay's
//! key. Must never run without the caller's deadline and must never panic on what a peer sent.

use std::{io, sync::Arc};

use adit_net::{
    identity::DeviceIdentity,
    noise::{NoiseError, join::JoinResponder},
    tls::{AuthorityError, RootAuthority, web_provider},
};
use adit_protocol::{
    code::JoinStatus,
    keys::{KeyError, SigningKey, sha256},
    limits::{NOISE_TAG, RELAY_UNJOINED_BYTES},
    ticket::{Role, Ticket, TicketError},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, ServerConfig, server::NoServerSessionStorage},
};

use crate::{
    core::pairing::{ConnId, Join},
    hub::Hub,
    splice::Leg,
    trust::Trust,
};

/// First byte of a TLS connection: a handshake record (RFC 8446 §5.1). As the first byte of a
/// raw join it would announce a message far too long.
const TLS_HANDSHAKE: u8 = 0x16;
/// Length field of a frame.
const LENGTH: usize = 2;
/// Longest message 1: what the limit leaves after both lengths and the confirmation.
const MAX_MESSAGE1: usize = RELAY_UNJOINED_BYTES - 2 * LENGTH - NOISE_TAG;
/// Shortest message 1: ephemeral key, sealed static key, tag of the payload (Noise §7.5, IK).
const MIN_MESSAGE1: usize = 32 + 48 + 16;
/// Bytes discarded after a refusal, so that closing does not reset the connection before the
/// joiner has read why.
const MAX_DISCARD: u64 = RELAY_UNJOINED_BYTES as u64;
/// Bytes of a waiting console that an agent gets ahead: a first message with some data.
const MAX_AHEAD: usize = 4 * 1024;

/// Why a connection did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It ended or broke.
    #[error("connection ended: {0}")]
    Io(#[from] io::Error),
    /// A length that no join has.
    #[error("frame of {0} bytes, which no join has")]
    Length(usize),
    /// Not authentic.
    #[error("not a join: {0}")]
    Noise(#[from] NoiseError),
    /// Message 1 was seen before.
    #[error("message 1 is a replay")]
    Replay,
    /// No ticket at all: somebody asked whether this relay is here, as the mediator does.
    #[error("asked for the key only")]
    Question,
    /// Authentic, but refused.
    #[error("refused: {0:?}")]
    Refused(JoinStatus),
}

impl JoinError {
    /// Name for the metric.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "broken",
            Self::Length(_) | Self::Noise(_) => "garbage",
            Self::Replay => "replay",
            Self::Question => "question",
            Self::Refused(JoinStatus::Expired) => "expired",
            Self::Refused(JoinStatus::Full) => "full",
            Self::Refused(JoinStatus::Draining) => "draining",
            Self::Refused(_) => "bad_ticket",
        }
    }
}

/// The relay cannot offer TLS.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// No certificate.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] AuthorityError),
    /// No key.
    #[error("cannot make a key: {0}")]
    Key(#[from] KeyError),
    /// The TLS library refused.
    #[error("tls cannot be configured: {0}")]
    Tls(#[from] rustls::Error),
}

/// What every join needs.
pub struct Door {
    identity: Arc<DeviceIdentity>,
    trust: Arc<Trust>,
    tls: TlsAcceptor,
}

impl Door {
    /// The TLS certificate is made anew and by nobody: who this relay is, Noise proves inside.
    pub fn new(
        identity: Arc<DeviceIdentity>,
        trust: Arc<Trust>,
        hosts: &[String],
        now_ms: u64,
    ) -> Result<Self, DoorError> {
        const YEAR_MS: u64 = 365 * 86_400_000;
        let issuer = SigningKey::generate()?;
        let issuer = RootAuthority::new(&issuer)?;
        let cert =
            issuer.issue_server_cert(hosts, now_ms.saturating_sub(YEAR_MS), now_ms + YEAR_MS)?;
        let leaf = cert.chain.into_iter().take(1).collect();
        let mut config = ServerConfig::builder_with_provider(web_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(leaf, cert.key)?;
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { identity, trust, tls: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Takes a connection through its join. The caller limits the time.
    pub async fn admit(
        &self,
        socket: TcpStream,
        conn: ConnId,
        hub: &Arc<Hub>,
    ) -> Result<Leg, JoinError> {
        let mut first = [0];
        if socket.peek(&mut first).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if first == [TLS_HANDSHAKE] {
            let mut stream = self.tls.accept(socket).await?;
            self.join(&mut stream, conn, hub).await?;
            return Ok(Leg::Tls(Box::new(stream)));
        }
        let mut stream = socket;
        self.join(&mut stream, conn, hub).await?;
        Ok(Leg::Raw(stream))
    }

    async fn join<S>(&self, stream: &mut S, conn: ConnId, hub: &Arc<Hub>) -> Result<(), JoinError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let message1 = read_frame(stream, MIN_MESSAGE1..=MAX_MESSAGE1).await?;
        let hash = sha256(&message1);
        if hub.is_replay(&hash) {
            return Err(JoinError::Replay);
        }
        let mut responder = JoinResponder::new(&self.identity.noise)?;
        let (init, joiner) = responder.handle_message1(&message1)?;
        let ticket = init.ticket.unwrap_or_default();
        let question = ticket.payload.is_empty();
        let (status, join) = match self.trust.check(&ticket, &joiner) {
            Ok(ticket) => {
                let Ticket { session, role, share, .. } = ticket;
                let join = Join { session, slot: init.slot, role, share };
                (hub.handle_ticket(conn, join, hash)?, Some(join))
            }
            Err(TicketError::Expired) => (JoinStatus::Expired, None),
            Err(_) => (JoinStatus::BadTicket, None),
        };
        let reply = responder.reply(status)?;
        let length = u16::try_from(reply.len()).map_err(|_| NoiseError::TooLong)?;
        stream.write_all(&[&length.to_be_bytes(), &reply[..]].concat()).await?;
        stream.flush().await?;
        if status != JoinStatus::Accepted {
            stream.shutdown().await?;
            tokio::io::copy(&mut stream.take(MAX_DISCARD), &mut tokio::io::sink()).await?;
            return Err(if question { JoinError::Question } else { JoinError::Refused(status) });
        }
        let confirm = match join.filter(|join| join.role == Role::Agent) {
            Some(join) => confirmation_of_agent(stream, conn, &join, hub).await?,
            None => read_frame(stream, NOISE_TAG..=NOISE_TAG).await?,
        };
        Ok(responder.handle_confirm(&confirm)?)
    }
}

/// Waits for an agent's confirmation. It is under way for a round trip; what the console has said
/// already need not wait for it. Whoever replays an agent's message 1 gets ciphertext that it has
/// seen pass anyway, and takes nothing away.
async fn confirmation_of_agent<S>(
    stream: &mut S,
    conn: ConnId,
    join: &Join,
    hub: &Arc<Hub>,
) -> Result<Vec<u8>, JoinError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut read, mut write) = tokio::io::split(stream);
    let confirm = read_frame(&mut read, NOISE_TAG..=NOISE_TAG);
    tokio::pin!(confirm);
    let mut buffer = [0; MAX_AHEAD];
    let n = tokio::select! {
        biased;
        confirm = &mut confirm => return confirm,
        n = hub.look_ahead(conn, join, &mut buffer) => n,
    };
    write.write_all(buffer.get(..n).unwrap_or_default()).await?;
    write.flush().await?;
    confirm.await
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Door")
    }
}

/// One frame and not a byte more; a wrong length is refused before its body is waited for.
async fn read_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    lengths: std::ops::RangeInclusive<usize>,
) -> Result<Vec<u8>, JoinError> {
    let length = usize::from(stream.read_u16().await?);
    if !lengths.contains(&length) {
        return Err(JoinError::Length(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(body)
}
