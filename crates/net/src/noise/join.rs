//! Joining a relay: `Noise_IK` to the relay's key, with a ticket that names the joiner's key.
//!
//! The join counts only after the joiner's first encrypted record, so that bytes recorded on
//! the way never join. The joiner reads exactly what belongs to the join: what follows on the
//! stream is the carrier's.

use std::io;

use adit_protocol::{
    code::JoinStatus,
    handshake::join_prologue,
    limits::{NOISE_TAG, RELAY_UNJOINED},
    wire,
};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    HandshakeState, NoiseError, ik_initiator, ik_responder, read_message, remote_static,
    write_message,
};
use crate::identity::NoiseKeypair;

/// Longest answer to a join: key, tag, status.
const MAX_REPLY: usize = 256;

/// Why a relay was not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The connection broke or the relay closed it silently.
    #[error("relay connection failed: {0}")]
    Io(#[from] io::Error),
    /// The relay did not answer in time.
    #[error("relay did not answer within {} s", RELAY_UNJOINED.as_secs())]
    Timeout,
    /// The answer is not from the relay that the ticket names.
    #[error("relay did not prove its key: {0}")]
    Noise(#[from] NoiseError),
    /// The relay said no.
    #[error("relay refused the join: {0:?}")]
    Refused(JoinStatus),
}

/// Joins a session at a relay; afterwards the stream is the carrier's.
pub async fn join_relay<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    relay_noise_key: &[u8; 32],
    own: &NoiseKeypair,
    ticket: &wire::Signed,
    slot: u32,
) -> Result<(), JoinError> {
    begin_join(stream, relay_noise_key, own, ticket, slot).await?.confirm(stream).await
}

/// The relay accepts the join, but it does not count yet: several connections may come so far,
/// and only the one that is [confirmed](Self::confirm) replaces an older join.
pub struct AcceptedJoin(snow::TransportState);

/// The first two messages of a join.
pub async fn begin_join<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    relay_noise_key: &[u8; 32],
    own: &NoiseKeypair,
    ticket: &wire::Signed,
    slot: u32,
) -> Result<AcceptedJoin, JoinError> {
    let join = exchange(stream, relay_noise_key, own, ticket, slot);
    tokio::time::timeout(RELAY_UNJOINED, join).await.map_err(|_| JoinError::Timeout)?
}

impl AcceptedJoin {
    /// The last message, for who sends it together with what follows; afterwards the stream is
    /// the carrier's.
    pub fn confirmation(mut self) -> Result<Vec<u8>, NoiseError> {
        let mut confirm = [0; NOISE_TAG];
        let len = self.0.write_message(&[], &mut confirm)?;
        framed(confirm.get(..len).unwrap_or_default())
    }

    /// Sends the last message; afterwards the stream is the carrier's.
    pub async fn confirm<S: AsyncWrite + Unpin>(self, stream: &mut S) -> Result<(), JoinError> {
        let confirm = self.confirmation()?;
        let write = async {
            stream.write_all(&confirm).await?;
            stream.flush().await
        };
        tokio::time::timeout(RELAY_UNJOINED, write).await.map_err(|_| JoinError::Timeout)??;
        Ok(())
    }
}

impl std::fmt::Debug for AcceptedJoin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AcceptedJoin")
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    relay_noise_key: &[u8; 32],
    own: &NoiseKeypair,
    ticket: &wire::Signed,
    slot: u32,
) -> Result<AcceptedJoin, JoinError> {
    let mut state = ik_initiator(&join_prologue(), own, relay_noise_key)?;
    let init = wire::JoinInit { ticket: Some(ticket.clone()), slot };
    let message = write_message(&mut state, &init.encode_to_vec())?;
    stream.write_all(&framed(&message)?).await?;
    stream.flush().await?;

    let len = usize::from(stream.read_u16().await?);
    if len > MAX_REPLY {
        return Err(NoiseError::Malformed.into());
    }
    let mut reply = vec![0; len];
    stream.read_exact(&mut reply).await?;
    let reply = wire::JoinReply::decode(read_message(&mut state, &reply)?.as_slice())
        .map_err(|_| NoiseError::Malformed)?;
    match JoinStatus::from_u32(reply.status) {
        JoinStatus::Accepted => {}
        status => return Err(JoinError::Refused(status)),
    }
    Ok(AcceptedJoin(state.into_transport_mode().map_err(NoiseError::from)?))
}

fn framed(message: &[u8]) -> Result<Vec<u8>, NoiseError> {
    let len = u16::try_from(message.len()).map_err(|_| NoiseError::TooLong)?;
    Ok([&len.to_be_bytes()[..], message].concat())
}

/// The relay's side of one join, without IO: message 1, reply, confirmation, in this order.
///
/// Inputs and outputs are bodies of frames, without their length.
pub struct JoinResponder(Stage);

enum Stage {
    Waiting(Box<HandshakeState>),
    Read(Box<HandshakeState>),
    Replied(Box<snow::TransportState>),
    Over,
}

impl JoinResponder {
    /// For one connection.
    pub fn new(own: &NoiseKeypair) -> Result<Self, NoiseError> {
        Ok(Self(Stage::Waiting(Box::new(ik_responder(&join_prologue(), own)?))))
    }

    /// Reads message 1; gives what the joiner asks for and the key it holds.
    pub fn handle_message1(
        &mut self,
        message: &[u8],
    ) -> Result<(wire::JoinInit, [u8; 32]), NoiseError> {
        let Stage::Waiting(mut state) = std::mem::replace(&mut self.0, Stage::Over) else {
            return Err(NoiseError::Malformed);
        };
        let payload = read_message(&mut state, message)?;
        let init = wire::JoinInit::decode(payload.as_slice()).map_err(|_| NoiseError::Malformed)?;
        let joiner = remote_static(&state).ok_or(NoiseError::Malformed)?;
        self.0 = Stage::Read(state);
        Ok((init, joiner))
    }

    /// Message 2. After a refusal the connection ends.
    pub fn reply(&mut self, status: JoinStatus) -> Result<Vec<u8>, NoiseError> {
        let Stage::Read(mut state) = std::mem::replace(&mut self.0, Stage::Over) else {
            return Err(NoiseError::Malformed);
        };
        let payload = wire::JoinReply { status: status as u32 }.encode_to_vec();
        let message = write_message(&mut state, &payload)?;
        if status == JoinStatus::Accepted {
            self.0 = Stage::Replied(Box::new(state.into_transport_mode()?));
        }
        Ok(message)
    }

    /// Reads the confirmation: only now the joiner has proved to be there and to hold its key.
    pub fn handle_confirm(&mut self, message: &[u8]) -> Result<(), NoiseError> {
        let Stage::Replied(mut state) = std::mem::replace(&mut self.0, Stage::Over) else {
            return Err(NoiseError::Malformed);
        };
        let mut out = [0; NOISE_TAG];
        match message.len() {
            NOISE_TAG => state.read_message(message, &mut out).map(|_| ()).map_err(Into::into),
            _ => Err(NoiseError::Malformed),
        }
    }
}

impl std::fmt::Debug for JoinResponder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinResponder")
    }
}

#[cfg(test)]
mod tests;
