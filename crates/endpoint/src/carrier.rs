//! What relayed and direct carriers have in common: taking in records, counting signs of life.

use std::sync::atomic::{AtomicU64, Ordering};

use adit_core::resume::{Resume, Violation};
use adit_protocol::{
    ids::CarrierNumber,
    limits::{MAX_NOISE_PAYLOAD, MAX_RECORD_HEADER},
    record::{InvalidRecord, Record},
};
use bytes::{Buf, Bytes, BytesMut};
use std::time::Instant;

/// Signs of life of a carrier, counted by its tasks and read by the driver.
#[derive(Debug, Default)]
pub(crate) struct Life {
    received: AtomicU64,
    acknowledged: AtomicU64,
    sent: AtomicU64,
    data: AtomicU64,
    pace: AtomicU64,
}

impl Life {
    pub(crate) fn count_received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn count_acknowledged(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn count_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }
    /// How much of what was received is somebody's data.
    pub(crate) fn data(&self) -> u64 {
        self.data.load(Ordering::Relaxed)
    }
    /// Bytes per second that may be sent; 0: as many as there are.
    pub(crate) fn pace(&self) -> u64 {
        self.pace.load(Ordering::Relaxed)
    }
    pub(crate) fn set_pace(&self, rate: Option<u64>) {
        self.pace.store(rate.unwrap_or(0), Ordering::Relaxed);
    }
    /// Received, acknowledged, sent.
    pub(crate) fn read(&self) -> (u64, u64, u64) {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (get(&self.received), get(&self.acknowledged), get(&self.sent))
    }
}

/// Why a carrier ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CarrierEnd {
    #[error("connection lost: {0}")]
    Io(#[from] std::io::Error),
    #[error("connection lost: {0}")]
    Quic(#[from] quinn::ConnectionError),
    #[error("{0}")]
    Noise(#[from] adit_net::noise::NoiseError),
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("{0}")]
    Record(#[from] InvalidRecord),
    #[error("peer closed the connection")]
    Closed,
    #[error("stopped")]
    Stopped,
}

impl CarrierEnd {
    /// A stable word for records.
    pub(crate) fn word(&self) -> &'static str {
        use std::io::ErrorKind as E;
        match self {
            Self::Io(error) => match error.kind() {
                E::ConnectionReset | E::BrokenPipe | E::ConnectionAborted => "reset",
                E::TimedOut => "timed_out",
                E::UnexpectedEof => "closed",
                _ => "lost",
            },
            Self::Quic(quinn::ConnectionError::TimedOut) => "timed_out",
            Self::Quic(quinn::ConnectionError::Reset) => "reset",
            Self::Quic(_) => "closed",
            Self::Noise(_) | Self::Violation(_) | Self::Record(_) => "protocol",
            Self::Closed => "closed",
            Self::Stopped => "left",
        }
    }
}

/// Takes in one record with its payload.
pub(crate) fn take_in(
    resume: &mut Resume,
    number: CarrierNumber,
    record: &Record,
    payload: Bytes,
    life: &Life,
    now: Instant,
) -> Result<(), Violation> {
    match record {
        Record::Data { channel, offset, .. } => {
            life.data.fetch_add(1, Ordering::Relaxed);
            resume.handle_data(number, *channel, *offset, payload)
        }
        Record::Datagram { .. } => resume.handle_datagram(number, record, payload, now),
        record => {
            if matches!(record, Record::Ack { .. } | Record::Pong { .. } | Record::Attach { .. }) {
                life.count_acknowledged();
            }
            resume.handle_record(number, record, now)
        }
    }
}

/// Takes in a decrypted message of whole records.
pub(crate) fn take_in_message(
    resume: &mut Resume,
    number: CarrierNumber,
    mut body: Bytes,
    life: &Life,
    now: Instant,
) -> Result<(), CarrierEnd> {
    life.count_received();
    while !body.is_empty() {
        let (record, len) = Record::decode(&body)?.ok_or(InvalidRecord)?;
        body.advance(len);
        if record.payload_len() > body.len() {
            return Err(InvalidRecord.into());
        }
        let payload = body.split_to(record.payload_len());
        take_in(resume, number, &record, payload, life, now)?;
    }
    Ok(())
}

/// Room that must be left in a message before another record is asked for.
const LEAST_ROOM: usize = MAX_RECORD_HEADER + 64;

/// Appends as many records as fit into one message; `false` if there was nothing to send.
pub(crate) fn fill_message(
    resume: &mut Resume,
    number: CarrierNumber,
    out: &mut BytesMut,
    limit: usize,
    now: Instant,
) -> bool {
    let start = out.len();
    let limit = start + limit.min(MAX_NOISE_PAYLOAD);
    while out.len() + LEAST_ROOM < limit {
        let budget = limit - out.len() - LEAST_ROOM;
        let Some(transmit) = resume.poll_transmit(number, budget, now) else { break };
        transmit.record.encode(out);
        out.extend_from_slice(&transmit.payload);
    }
    out.len() > start
}

/// Reads records from the pieces in which a stream arrives, without copying payload.
#[derive(Debug, Default)]
pub(crate) struct StreamDecoder {
    /// Start of a header that is not whole yet.
    partial: BytesMut,
    /// `Data` whose bytes are still coming: record, next offset, bytes to come.
    data: Option<(adit_protocol::ids::ChannelId, u64, usize)>,
}

/// A record or a part of its data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) record: Record,
    pub(crate) payload: Bytes,
}

impl StreamDecoder {
    /// Takes in a piece and appends what it completes.
    pub(crate) fn feed(
        &mut self,
        mut piece: Bytes,
        out: &mut Vec<Item>,
    ) -> Result<(), InvalidRecord> {
        while !piece.is_empty() {
            if let Some((channel, offset, left)) = self.data.take() {
                let payload = piece.split_to(left.min(piece.len()));
                let (n, left) = (payload.len(), left - payload.len());
                if left > 0 {
                    self.data = Some((channel, offset + n as u64, left));
                }
                let len = u32::try_from(n).map_err(|_| InvalidRecord)?;
                out.push(Item { record: Record::Data { channel, offset, len }, payload });
                continue;
            }
            let Some(record) = self.header(&mut piece)? else { return Ok(()) };
            match record {
                Record::Data { channel, offset, len } if len > 0 => {
                    offset.checked_add(len.into()).ok_or(InvalidRecord)?;
                    self.data = Some((channel, offset, len as usize));
                }
                // Datagrams do not travel in streams.
                Record::Datagram { .. } => return Err(InvalidRecord),
                record => out.push(Item { record, payload: Bytes::new() }),
            }
        }
        Ok(())
    }

    fn header(&mut self, piece: &mut Bytes) -> Result<Option<Record>, InvalidRecord> {
        if self.partial.is_empty() {
            if let Some((record, len)) = Record::decode(piece)? {
                piece.advance(len);
                return Ok(Some(record));
            }
            self.partial.extend_from_slice(piece);
            piece.clear();
            return Ok(None);
        }
        let had = self.partial.len();
        let more = piece.len().min(MAX_RECORD_HEADER.saturating_sub(had));
        self.partial.extend_from_slice(piece.get(..more).unwrap_or_default());
        match Record::decode(&self.partial)? {
            Some((record, len)) => {
                piece.advance(len.saturating_sub(had));
                self.partial.clear();
                Ok(Some(record))
            }
            None => {
                piece.clear();
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adit_protocol::ids::ChannelId;

    #[test]
    fn stream_decoder_does_not_care_where_pieces_end() {
        let channel = ChannelId(700);
        let mut wire = BytesMut::new();
        let ack = Record::Ack { channel, delivered: 9, credit: 1 << 20 };
        ack.encode(&mut wire);
        Record::Data { channel, offset: 5, len: 300 }.encode(&mut wire);
        wire.extend((0..300u16).map(|i| u8::try_from(i % 251).unwrap()));
        ack.encode(&mut wire);
        for size in [1, 2, 3, 7, 100, 1000] {
            let (mut decoder, mut out) = (StreamDecoder::default(), vec![]);
            for piece in wire.chunks(size) {
                decoder.feed(Bytes::copy_from_slice(piece), &mut out).unwrap();
            }
            assert_eq!(out.first().unwrap().record, ack);
            assert_eq!(out.last().unwrap().record, ack);
            let mut at = 5;
            for item in &out[1..out.len() - 1] {
                let Record::Data { offset, len, .. } = item.record else { panic!() };
                assert_eq!((offset, len as usize), (at, item.payload.len()));
                for (i, b) in item.payload.iter().enumerate() {
                    assert_eq!(u64::from(*b), (offset - 5 + i as u64) % 251);
                }
                at += u64::from(len);
            }
            assert_eq!(at, 305);
        }
    }
}
