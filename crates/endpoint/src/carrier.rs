//! What relayed and direct carriers have in common: taking in records, counting signs of life.

use std::sync::atomic::{AtomicU64, Ordering};

use adit_core::resume::{Resume, Transmit, Violation};
use adit_protocol::{
    ids::{CarrierNumber, ChannelId},
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
    fn count_data(&self, pieces: usize) {
        self.data.fetch_add(pieces as u64, Ordering::Relaxed);
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
fn take_in(
    resume: &mut Resume,
    number: CarrierNumber,
    record: &Record,
    payload: Bytes,
    life: &Life,
    now: Instant,
) -> Result<(), Violation> {
    match record {
        Record::Data { channel, offset, .. } => {
            life.count_data(1);
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
    let mut last = Unwritten::default();
    while out.len() + last.len + LEAST_ROOM < limit {
        let budget = limit - out.len() - last.len - LEAST_ROOM;
        let Some(transmit) = resume.poll_transmit(number, budget, now) else { break };
        last.push(transmit, out);
    }
    last.write(out);
    out.len() > start
}

/// `Data` at the end of a message, not written yet because what follows may join it: data that go
/// on where others end reach the peer in one piece, which it need not copy to put it together.
/// Its header fits into what [`LEAST_ROOM`] leaves beside the largest.
#[derive(Default)]
struct Unwritten {
    record: Option<Record>,
    payload: Vec<Bytes>,
    len: usize,
}

impl Unwritten {
    fn push(&mut self, transmit: Transmit, out: &mut BytesMut) {
        let Transmit { mut record, payload } = transmit;
        match self.record.as_ref().and_then(|last| join(last, &record)) {
            Some(joined) => record = joined,
            None => self.write(out),
        }
        if matches!(record, Record::Data { .. }) {
            self.record = Some(record);
            self.len += payload.len();
            self.payload.push(payload);
        } else {
            record.encode(out);
            out.extend_from_slice(&payload);
        }
    }

    fn write(&mut self, out: &mut BytesMut) {
        if let Some(record) = self.record.take() {
            record.encode(out);
            self.payload.drain(..).for_each(|payload| out.extend_from_slice(&payload));
            self.len = 0;
        }
    }
}

/// Two records of a channel's data as one, if the second goes on where the first ends.
pub(crate) fn join(first: &Record, second: &Record) -> Option<Record> {
    match (first, second) {
        (
            Record::Data { channel, offset, len },
            Record::Data { channel: same, offset: next, len: more },
        ) if channel == same && offset.checked_add(u64::from(*len)) == Some(*next) => {
            Some(Record::Data { channel: *channel, offset: *offset, len: len.checked_add(*more)? })
        }
        _ => None,
    }
}

/// Items for which a decoder keeps room.
const KEPT_ITEMS: usize = 64;

/// Reads records from the pieces in which a stream arrives, without copying payload.
#[derive(Debug, Default)]
pub(crate) struct StreamDecoder {
    /// Start of a header that is not whole yet.
    partial: BytesMut,
    /// `Data` whose bytes are still coming.
    coming: Option<Coming>,
    /// What is complete and not taken in yet.
    items: Vec<Item>,
    /// The bytes of those items, in their order.
    pieces: Vec<Bytes>,
}

#[derive(Debug, Clone, Copy)]
struct Coming {
    channel: ChannelId,
    /// Of the next byte.
    offset: u64,
    left: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Item {
    Record(Record),
    /// Bytes of a channel from `offset` to `end`, in so many pieces: a packet is a piece, and
    /// looking the channel up for each of them would show in the bill.
    Data {
        channel: ChannelId,
        offset: u64,
        end: u64,
        pieces: usize,
    },
}

impl StreamDecoder {
    /// Takes in a piece of the stream.
    pub(crate) fn feed(&mut self, mut piece: Bytes) -> Result<(), InvalidRecord> {
        while !piece.is_empty() {
            if let Some(coming) = self.coming.take() {
                let payload = piece.split_to(coming.left.min(piece.len()));
                let (offset, left) =
                    (coming.offset + payload.len() as u64, coming.left - payload.len());
                self.coming = (left > 0).then_some(Coming { offset, left, ..coming });
                self.add(coming.channel, coming.offset, payload);
                continue;
            }
            let Some(record) = self.header(&mut piece)? else { return Ok(()) };
            match record {
                Record::Data { channel, offset, len } if len > 0 => {
                    offset.checked_add(len.into()).ok_or(InvalidRecord)?;
                    self.coming = Some(Coming { channel, offset, left: len as usize });
                }
                // Datagrams do not travel in streams.
                Record::Datagram { .. } => return Err(InvalidRecord),
                record => self.items.push(Item::Record(record)),
            }
        }
        Ok(())
    }

    fn add(&mut self, to: ChannelId, at: u64, payload: Bytes) {
        let behind = at + payload.len() as u64;
        match self.items.last_mut() {
            Some(Item::Data { channel, end, pieces, .. }) if *channel == to && *end == at => {
                *end = behind;
                *pieces += 1;
            }
            _ => self.items.push(Item::Data { channel: to, offset: at, end: behind, pieces: 1 }),
        }
        self.pieces.push(payload);
    }

    /// The channel that the first item is about; `None` if there is no item.
    pub(crate) fn first(&self) -> Option<Option<ChannelId>> {
        self.items.first().map(|item| match item {
            Item::Record(record) => record.channel(),
            Item::Data { channel, .. } => Some(*channel),
        })
    }

    /// Records and, for `Data`, where they begin and their pieces.
    #[cfg(test)]
    pub(crate) fn items(&self) -> Vec<Result<Record, (u64, Vec<Bytes>)>> {
        let mut all = self.pieces.iter().cloned();
        let item = |item: &Item| match item {
            Item::Record(record) => Ok(record.clone()),
            Item::Data { offset, pieces, .. } => {
                Err((*offset, all.by_ref().take(*pieces).collect()))
            }
        };
        self.items.iter().map(item).collect()
    }

    /// Hands what is complete to the machine.
    pub(crate) fn take_in(
        &mut self,
        resume: &mut Resume,
        number: CarrierNumber,
        life: &Life,
        now: Instant,
    ) -> Result<(), Violation> {
        let mut all = self.pieces.drain(..);
        for item in self.items.drain(..) {
            match item {
                Item::Record(record) => {
                    take_in(resume, number, &record, Bytes::new(), life, now)?;
                }
                Item::Data { channel, offset, pieces, .. } => {
                    life.count_data(pieces);
                    let mut own = all.by_ref().take(pieces);
                    let taken = resume.handle_pieces(number, channel, offset, own.by_ref());
                    own.for_each(drop); // those of a channel that is over
                    taken?;
                }
            }
        }
        // Of a read full of tiny records the room for thousands of items would stay, in each of a
        // thousand streams, counted by nobody.
        drop(all);
        self.items.shrink_to(KEPT_ITEMS);
        self.pieces.shrink_to(KEPT_ITEMS);
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

    #[test]
    fn stream_decoder_does_not_care_where_pieces_end() {
        let channel = ChannelId(700);
        let mut wire = BytesMut::new();
        let ack = Record::Ack { channel, delivered: 9, credit: 1 << 20 };
        ack.encode(&mut wire);
        // Two records, one after the other, and one that is not.
        for (offset, len) in [(5, 200), (205, 100), (900, 50)] {
            Record::Data { channel, offset, len }.encode(&mut wire);
            wire.extend((offset..offset + u64::from(len)).map(|at| (at % 251) as u8));
        }
        ack.encode(&mut wire);
        for size in [1, 2, 3, 7, 100, 1000] {
            let mut decoder = StreamDecoder::default();
            for piece in wire.chunks(size) {
                decoder.feed(Bytes::copy_from_slice(piece)).unwrap();
            }
            let items = decoder.items();
            let [first, Err(one), Err(other), last] = items.as_slice() else { panic!("{items:?}") };
            assert_eq!((first, last), (&Ok(ack.clone()), &Ok(ack.clone())), "{size}");
            for ((offset, pieces), (from, to)) in [(one, (5, 305)), (other, (900, 950))] {
                let expected: Vec<u8> = (from..to).map(|at| (at % 251) as u8).collect();
                assert_eq!((*offset, pieces.concat()), (from, expected), "{size}");
            }
        }
    }

    /// Whatever waits, a message holds no more than it may, and what belongs together arrives in
    /// one piece.
    #[test]
    fn messages_are_full_and_not_more_than_that() {
        use adit_core::resume::Shape;
        use adit_protocol::target::{Target, Transport};
        let now = Instant::now();
        let number = CarrierNumber(1);
        let narrow = (600..2000).step_by(7).map(|limit| (limit, 6));
        for (limit, channels) in narrow.chain([(MAX_NOISE_PAYLOAD, 6), (MAX_NOISE_PAYLOAD, 1)]) {
            let mut console = Resume::new(adit_protocol::ticket::Role::Console);
            console.carrier_up(number, Shape::Shared);
            console.prefer(number, number, now);
            for n in 0..channels {
                let host = format!("{}n{n}", "long.".repeat(48));
                let target = Target::parse(&format!("{host}:22"), Transport::Tcp).unwrap();
                let id = console.open(target, now).unwrap();
                let opened = Record::Opened { channel: id, credit: 1 << 20 };
                console.handle_record(number, &opened, now).unwrap();
                console.handle_local_data(id, vec![7; 40_000].into(), now);
                console.handle_local_data(id, vec![8; 40_000].into(), now);
            }
            let (mut sent, mut largest) = (0, 0);
            loop {
                let mut out = BytesMut::new();
                if !fill_message(&mut console, number, &mut out, limit, now) {
                    break;
                }
                assert!(out.len() <= limit, "{} of {limit}", out.len());
                while !out.is_empty() {
                    let (record, len) = Record::decode(&out).unwrap().unwrap();
                    out.advance(len + record.payload_len());
                    sent += record.payload_len();
                    largest = largest.max(record.payload_len());
                }
            }
            assert_eq!(sent, channels * 80_000, "{limit}");
            assert!(channels > 1 || largest > 60_000, "{largest}");
        }
    }

    #[test]
    fn a_read_full_of_tiny_records_leaves_no_room_behind() {
        let mut resume = Resume::new(adit_protocol::ticket::Role::Agent);
        let mut wire = BytesMut::new();
        for channel in 1..20_000 {
            Record::Fin { channel: ChannelId(channel), final_offset: 0 }.encode(&mut wire);
        }
        let mut decoder = StreamDecoder::default();
        decoder.feed(wire.freeze()).unwrap();
        let (number, life) = (CarrierNumber(1), Life::default());
        decoder.take_in(&mut resume, number, &life, Instant::now()).unwrap();
        assert!(decoder.items.capacity() <= KEPT_ITEMS && decoder.pieces.is_empty());
    }

    /// What comes late for a channel that is over is not taken for the next one's.
    #[test]
    fn pieces_of_a_channel_that_is_over_go_to_nobody() {
        use adit_core::resume::{Deliverable, Shape};
        use adit_protocol::{
            code::ChannelCode,
            target::{Target, Transport},
        };
        let (mut resume, now) = (Resume::new(adit_protocol::ticket::Role::Agent), Instant::now());
        let number = CarrierNumber(1);
        resume.carrier_up(number, Shape::Streams);
        let target = Target::parse("127.0.0.1:22", Transport::Tcp).unwrap();
        for id in [1, 2] {
            let target = target.clone();
            let open = Record::Open { channel: ChannelId(id), target, credit: 0 };
            resume.handle_record(number, &open, now).unwrap();
            resume.connected(ChannelId(id), now);
        }
        resume.reset(ChannelId(1), ChannelCode::LocalReset);
        let mut decoder = StreamDecoder::default();
        for (id, text) in [(1, "late"), (2, "in time")] {
            let mut wire = BytesMut::new();
            let len = u32::try_from(text.len()).unwrap();
            Record::Data { channel: ChannelId(id), offset: 0, len }.encode(&mut wire);
            decoder.feed(wire.freeze()).unwrap();
            text.bytes().for_each(|b| decoder.feed(vec![b].into()).unwrap());
        }
        decoder.take_in(&mut resume, number, &Life::default(), now).unwrap();
        let mut got = Vec::new();
        while let Some(Deliverable::Bytes(bytes)) = resume.take_deliverable(ChannelId(2)) {
            got.extend_from_slice(&bytes);
        }
        assert_eq!(got, b"in time");
    }
}
