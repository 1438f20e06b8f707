//! The relayed carrier: `Noise_NNpsk0` with the session's relay key, then records.
//!
//! Frames are a 16-bit big-endian length and a Noise message. After the handshake the two
//! directions part: [`RecordSealer`] and [`RecordOpener`] are owned by different tasks and seal
//! and open in place, so that a byte is written once and read once by the cipher and copied by
//! nobody. Each direction replaces its key (Noise `REKEY`, §4.2) after exactly
//! [`REKEY_RECORDS`] records; nonces go on counting. Records that fail to open end the carrier:
//! there is no resynchronisation.

use adit_protocol::{
    handshake::{NOISE_NNPSK0, relayed_prologue},
    ids::{CarrierNumber, SessionId},
    limits::{MAX_NOISE_MESSAGE, MAX_NOISE_PAYLOAD, NOISE_TAG, REKEY_RECORDS},
};
use aws_lc_rs::aead;
use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::{
    HandshakeState, NoiseError, builder, read_message,
    resolver::{aes_key, nonce},
    write_message,
};

/// Bytes of a frame before the Noise message.
pub const FRAME_HEADER: usize = 2;
/// Bytes of the carrier number before message 1.
pub const CARRIER_LEN: usize = 8;
/// Payload that surely fits into either handshake message.
pub const MAX_HANDSHAKE_PAYLOAD: usize = MAX_NOISE_MESSAGE - CARRIER_LEN - 64;

/// A relayed carrier's handshake between its two messages.
pub struct RelayedHandshake {
    state: HandshakeState,
    carrier: CarrierNumber,
}

impl RelayedHandshake {
    /// Console: starts carrier `carrier`; gives the first frame. `payload` is whole records.
    pub fn initiate(
        psk: &[u8; 32],
        session: SessionId,
        carrier: CarrierNumber,
        payload: &[u8],
    ) -> Result<(Self, BytesMut), NoiseError> {
        let prologue = relayed_prologue(session, carrier);
        let mut state = builder(NOISE_NNPSK0, &prologue)?.psk(0, psk)?.build_initiator()?;
        let message = write_message(&mut state, payload)?;
        let frame = frame(&carrier.0.to_be_bytes(), &message)?;
        Ok((Self { state, carrier }, frame))
    }

    /// Agent: reads the first frame's body; gives the records in it. The caller refuses a
    /// carrier number that is not above all earlier ones of the session.
    pub fn respond(
        psk: &[u8; 32],
        session: SessionId,
        body: &[u8],
    ) -> Result<(Self, Bytes), NoiseError> {
        let carrier = carrier_of(body)?;
        let message = body.get(CARRIER_LEN..).ok_or(NoiseError::Malformed)?;
        let prologue = relayed_prologue(session, carrier);
        let mut state = builder(NOISE_NNPSK0, &prologue)?.psk(0, psk)?.build_responder()?;
        let payload = read_message(&mut state, message)?;
        Ok((Self { state, carrier }, payload.into()))
    }

    /// Agent: gives the second frame and the two directions.
    pub fn reply(
        mut self,
        payload: &[u8],
    ) -> Result<(BytesMut, RecordSealer, RecordOpener), NoiseError> {
        let message = write_message(&mut self.state, payload)?;
        let (sealer, opener) = split(&mut self.state, REKEY_RECORDS)?;
        Ok((frame(&[], &message)?, sealer, opener))
    }

    /// Console: reads the second frame's body; gives the records in it and the two directions.
    pub fn finish(
        mut self,
        body: &[u8],
    ) -> Result<(Bytes, RecordSealer, RecordOpener), NoiseError> {
        let payload = read_message(&mut self.state, body)?;
        let (sealer, opener) = split(&mut self.state, REKEY_RECORDS)?;
        Ok((payload.into(), sealer, opener))
    }

    /// The carrier's number.
    pub fn carrier(&self) -> CarrierNumber {
        self.carrier
    }
}

impl std::fmt::Debug for RelayedHandshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelayedHandshake({})", self.carrier)
    }
}

/// Carrier number of a first frame's body, before anything is authenticated.
pub fn carrier_of(body: &[u8]) -> Result<CarrierNumber, NoiseError> {
    let number = body.first_chunk::<CARRIER_LEN>().ok_or(NoiseError::Malformed)?;
    Ok(CarrierNumber(u64::from_be_bytes(*number)))
}

/// Takes the next whole frame's body out of received bytes; `None` if more are needed.
pub fn take_frame(buffer: &mut BytesMut) -> Option<BytesMut> {
    let len = usize::from(u16::from_be_bytes(*buffer.first_chunk::<FRAME_HEADER>()?));
    if buffer.len() < FRAME_HEADER + len {
        return None;
    }
    let mut frame = buffer.split_to(FRAME_HEADER + len);
    Some(frame.split_off(FRAME_HEADER))
}

fn frame(head: &[u8], message: &[u8]) -> Result<BytesMut, NoiseError> {
    let len = u16::try_from(head.len() + message.len()).map_err(|_| NoiseError::TooLong)?;
    let mut out = BytesMut::with_capacity(FRAME_HEADER + usize::from(len));
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(head);
    out.extend_from_slice(message);
    Ok(out)
}

fn split(
    state: &mut HandshakeState,
    rekey_after: u64,
) -> Result<(RecordSealer, RecordOpener), NoiseError> {
    if !state.is_handshake_finished() {
        return Err(NoiseError::Malformed);
    }
    let (initiator, responder) = state.dangerously_get_raw_split();
    let (initiator, responder) = (Zeroizing::new(initiator), Zeroizing::new(responder));
    let (out, inn) =
        if state.is_initiator() { (initiator, responder) } else { (responder, initiator) };
    Ok((
        RecordSealer(Direction::new(&out, rekey_after)?),
        RecordOpener(Direction::new(&inn, rekey_after)?),
    ))
}

/// One direction's key and counter.
struct Direction {
    key: aead::LessSafeKey,
    /// INVARIANT: rises with every record, is never used twice with a key.
    next: u64,
    rekey_after: u64,
}

impl Direction {
    fn new(key: &[u8; 32], rekey_after: u64) -> Result<Self, NoiseError> {
        Ok(Self { key: aes_key(key).ok_or(NoiseError::Crypto)?, next: 0, rekey_after })
    }

    /// Nonce of the next record.
    fn nonce(&self) -> Result<aead::Nonce, NoiseError> {
        // 2^64-1 is REKEY's (Noise specification §4.2).
        if self.next == u64::MAX { Err(NoiseError::Nonce) } else { Ok(nonce(self.next)) }
    }

    /// Counts a record that was sealed or opened, and rekeys when it was the last of its key.
    fn advance(&mut self) -> Result<(), NoiseError> {
        self.next += 1;
        if !self.next.is_multiple_of(self.rekey_after) {
            return Ok(());
        }
        let mut key = Zeroizing::new([0u8; 32]);
        let _tag = self
            .key
            .seal_in_place_separate_tag(nonce(u64::MAX), aead::Aad::empty(), &mut key[..])
            .map_err(|_| NoiseError::Crypto)?;
        self.key = aes_key(&key).ok_or(NoiseError::Crypto)?;
        Ok(())
    }
}

/// Our direction of a relayed carrier.
pub struct RecordSealer(Direction);

impl RecordSealer {
    /// Seals the frame at the end of `buffer` in place: from `start` it holds [`FRAME_HEADER`]
    /// bytes of room and then the plaintext; afterwards a whole frame, ready to be sent. Several
    /// frames may stand in one buffer.
    pub fn seal_in_place(&mut self, buffer: &mut BytesMut, start: usize) -> Result<(), NoiseError> {
        let body = start.checked_add(FRAME_HEADER).ok_or(NoiseError::TooLong)?;
        let plain = buffer.len().checked_sub(body).ok_or(NoiseError::Malformed)?;
        if plain > MAX_NOISE_PAYLOAD {
            return Err(NoiseError::TooLong);
        }
        let len = u16::try_from(plain + NOISE_TAG).map_err(|_| NoiseError::TooLong)?;
        let nonce = self.0.nonce()?;
        let in_out = buffer.get_mut(body..).ok_or(NoiseError::Malformed)?;
        let tag = self
            .0
            .key
            .seal_in_place_separate_tag(nonce, aead::Aad::empty(), in_out)
            .map_err(|_| NoiseError::Crypto)?;
        buffer.extend_from_slice(tag.as_ref());
        if let Some(header) = buffer.get_mut(start..body) {
            header.copy_from_slice(&len.to_be_bytes());
        }
        self.0.advance()
    }

    /// Appends a frame with `payload` to `out`, encrypting from one buffer to the other.
    pub fn seal(&mut self, payload: &[u8], out: &mut BytesMut) -> Result<(), NoiseError> {
        if payload.len() > MAX_NOISE_PAYLOAD {
            return Err(NoiseError::TooLong);
        }
        let len = u16::try_from(payload.len() + NOISE_TAG).map_err(|_| NoiseError::TooLong)?;
        let nonce = self.0.nonce()?;
        out.reserve(FRAME_HEADER + usize::from(len));
        out.extend_from_slice(&len.to_be_bytes());
        let start = out.len();
        out.resize(start + usize::from(len), 0);
        let (_, new) = out.split_at_mut(start);
        let (body, tag) = new.split_at_mut(payload.len());
        self.0
            .key
            .seal_out_of_place_scatter(nonce, aead::Aad::empty(), payload, body, &[], tag)
            .map_err(|_| NoiseError::Crypto)?;
        self.0.advance()
    }

    /// Records sealed so far.
    pub fn count(&self) -> u64 {
        self.0.next
    }
}

/// The peer's direction of a relayed carrier.
pub struct RecordOpener(Direction);

impl RecordOpener {
    /// Opens the body of one frame in place; afterwards it is the plaintext.
    pub fn open_in_place(&mut self, body: &mut BytesMut) -> Result<(), NoiseError> {
        let plain = body.len().checked_sub(NOISE_TAG).ok_or(NoiseError::Malformed)?;
        let nonce = self.0.nonce()?;
        self.0
            .key
            .open_in_place(nonce, aead::Aad::empty(), body)
            .map_err(|_| NoiseError::Refused)?;
        body.truncate(plain);
        self.0.advance()
    }

    /// Takes the next frame out of received bytes and opens it; `None` if more are needed.
    pub fn open_next(&mut self, buffer: &mut BytesMut) -> Result<Option<BytesMut>, NoiseError> {
        let Some(mut body) = take_frame(buffer) else { return Ok(None) };
        self.open_in_place(&mut body)?;
        Ok(Some(body))
    }

    /// Records opened so far.
    pub fn count(&self) -> u64 {
        self.0.next
    }
}

impl std::fmt::Debug for RecordSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecordSealer({})", self.0.next)
    }
}

impl std::fmt::Debug for RecordOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecordOpener({})", self.0.next)
    }
}

#[cfg(test)]
mod tests;
