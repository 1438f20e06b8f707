//! The direct carrier: one QUIC connection over one validated pair of addresses.
//!
//! The first stream greets and then carries what belongs to no channel; each TCP channel has a
//! stream of its own; datagrams of UDP flows travel as QUIC datagrams.

use std::{sync::Arc, time::Duration};

use adit_core::{punch::LocalSocket, resume::Transmit};
use adit_protocol::{
    ids::{CarrierNumber, ChannelId},
    record::Record,
    ticket::Role,
};
use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::{
    carrier::{CarrierEnd, Life, StreamDecoder, join},
    shared::Shared,
};

/// Time for the greeting on a new connection.
pub(crate) const GREETING: Duration = Duration::from_secs(5);
/// Pieces taken from a stream at once.
const READ_PIECES: usize = 32;
/// Bytes given to a stream at once.
const WRITE_BATCH: usize = 256 * 1024;
/// Largest `Data` record: smaller than the batch, so that headers stay rare and acks get through.
const MAX_DATA: usize = 64 * 1024;
/// Bytes of a `Datagram` record's header at most.
const DATAGRAM_HEADER: usize = 24;

/// A connection after the greeting.
#[derive(Clone)]
pub(crate) struct Direct {
    pub(crate) number: CarrierNumber,
    /// Through which it runs.
    pub(crate) socket: LocalSocket,
    pub(crate) connection: Connection,
    pub(crate) life: Arc<Life>,
    pub(crate) tasks: TaskTracker,
}

/// Console: greets.
pub(crate) async fn greet(
    connection: &Connection,
    number: CarrierNumber,
) -> Result<(SendStream, RecvStream), CarrierEnd> {
    let (mut send, mut recv) = connection.open_bi().await?;
    let mut out = BytesMut::new();
    Record::Hello { carrier: number }.encode(&mut out);
    send.write_all(&out).await.map_err(std::io::Error::from)?;
    match read_greeting(&mut recv).await? {
        Record::Welcome { carrier } if carrier == number => Ok((send, recv)),
        _ => Err(adit_protocol::record::InvalidRecord.into()),
    }
}

/// Agent: waits for the console's greeting; `accept` says whether the number may be used.
pub(crate) async fn be_greeted(
    connection: &Connection,
    accept: impl FnOnce(CarrierNumber) -> bool,
) -> Result<(CarrierNumber, SendStream, RecvStream), CarrierEnd> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    let Record::Hello { carrier } = read_greeting(&mut recv).await? else {
        return Err(adit_protocol::record::InvalidRecord.into());
    };
    if !accept(carrier) {
        return Err(CarrierEnd::Closed);
    }
    let mut out = BytesMut::new();
    Record::Welcome { carrier }.encode(&mut out);
    send.write_all(&out).await.map_err(std::io::Error::from)?;
    Ok((carrier, send, recv))
}

/// Reads one greeting and not a byte more.
async fn read_greeting(recv: &mut RecvStream) -> Result<Record, CarrierEnd> {
    let mut buffer = BytesMut::new();
    loop {
        if let Some((record, _)) = Record::decode(&buffer)? {
            return Ok(record);
        }
        let mut byte = [0; 1];
        recv.read_exact(&mut byte).await.map_err(std::io::Error::other)?;
        buffer.extend_from_slice(&byte);
    }
}

/// Runs the connection until it ends or breaks a rule.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    direct: Direct,
    send: SendStream,
    recv: RecvStream,
    transmit: Arc<Notify>,
) -> CarrierEnd {
    let _ = send.set_priority(1); // before bulk
    let end = tokio::select! {
        end = send_shared(shared, &direct, send, &transmit) => end,
        end = receive(shared, &direct, recv) => end,
        end = receive_datagrams(shared, &direct) => end,
        end = accept_streams(shared, &direct) => end,
        end = direct.connection.closed() => Err(end.into()),
    };
    end.err().unwrap_or(CarrierEnd::Closed)
}

async fn send_shared(
    shared: &Shared,
    direct: &Direct,
    mut send: SendStream,
    transmit: &Notify,
) -> Result<(), CarrierEnd> {
    let mut out = BytesMut::new();
    loop {
        let number = direct.number;
        let room = direct.connection.max_datagram_size().unwrap_or(0);
        let room = room.saturating_sub(DATAGRAM_HEADER);
        let (records, datagrams) = shared.with(|resume, now| {
            let mut datagrams: Vec<Transmit> = Vec::new();
            while datagrams.len() < READ_PIECES
                && let Some(t) = resume.poll_datagram(number, room)
            {
                datagrams.push(t);
            }
            let mut records = 0;
            while let Some(t) = resume.poll_transmit(number, MAX_DATA, now) {
                t.record.encode(&mut out);
                records += 1;
            }
            (records, datagrams)
        });
        if records == 0 && datagrams.is_empty() {
            transmit.notified().await;
            continue;
        }
        direct.life.count_sent();
        for t in datagrams {
            let mut datagram = BytesMut::with_capacity(DATAGRAM_HEADER + t.payload.len());
            t.record.encode(&mut datagram);
            datagram.extend_from_slice(&t.payload);
            // Too large or a full buffer: dropped, as a network would.
            let _ = direct.connection.send_datagram(datagram.freeze());
        }
        if !out.is_empty() {
            let bytes = out.split().freeze();
            send.write_all_chunks(&mut [bytes]).await.map_err(std::io::Error::from)?;
        }
    }
}

async fn receive(shared: &Shared, direct: &Direct, recv: RecvStream) -> Result<(), CarrierEnd> {
    receive_stream(shared, direct, recv, StreamDecoder::default()).await?;
    Err(CarrierEnd::Closed)
}

fn take_in(
    shared: &Shared,
    direct: &Direct,
    decoder: &mut StreamDecoder,
) -> Result<(), CarrierEnd> {
    shared.with(|resume, now| decoder.take_in(resume, direct.number, &direct.life, now))?;
    Ok(())
}

async fn receive_datagrams(shared: &Shared, direct: &Direct) -> Result<(), CarrierEnd> {
    loop {
        let mut datagram = direct.connection.read_datagram().await?;
        direct.life.count_received();
        let Some((record, len)) = Record::decode(&datagram)? else { continue };
        let payload = datagram.split_off(len.min(datagram.len()));
        if payload.len() != record.payload_len() {
            continue;
        }
        let number = direct.number;
        shared.with(|resume, now| resume.handle_datagram(number, &record, payload, now))?;
    }
}

/// Agent: a stream for each channel that the console opens or moves here.
async fn accept_streams(shared: &Arc<Shared>, direct: &Direct) -> Result<(), CarrierEnd> {
    if shared.role() == Role::Console {
        return std::future::pending().await; // nobody else opens streams
    }
    loop {
        let (send, recv) = direct.connection.accept_bi().await?;
        let (shared, direct) = (shared.clone(), direct.clone());
        direct.tasks.clone().spawn(async move {
            if let Err(end) = accepted_stream(&shared, &direct, send, recv).await {
                fail(&direct, &end);
            }
        });
    }
}

async fn accepted_stream(
    shared: &Arc<Shared>,
    direct: &Direct,
    send: SendStream,
    mut recv: RecvStream,
) -> Result<(), CarrierEnd> {
    let mut decoder = StreamDecoder::default();
    let first = loop {
        match recv.read_chunk(MAX_DATA, true).await.map_err(std::io::Error::from)? {
            Some(chunk) => decoder.feed(chunk.bytes)?,
            None => return Ok(()),
        }
        if let Some(channel) = decoder.first() {
            break channel;
        }
    };
    let id = first.ok_or(adit_protocol::record::InvalidRecord)?;
    take_in(shared, direct, &mut decoder)?;
    shared.driver_room().await;
    run_stream(shared, direct, id, send, recv, decoder).await
}

/// Console: opens a stream for a channel.
pub(crate) async fn open_stream(shared: Arc<Shared>, direct: Direct, id: ChannelId) {
    let result = async {
        let (send, recv) = direct.connection.open_bi().await?;
        run_stream(&shared, &direct, id, send, recv, StreamDecoder::default()).await
    };
    if let Err(end) = result.await {
        fail(&direct, &end);
    }
}

/// A broken rule on one stream ends the carrier; its loss is none of the channels'.
fn fail(direct: &Direct, end: &CarrierEnd) {
    if matches!(end, CarrierEnd::Violation(_) | CarrierEnd::Record(_)) {
        tracing::warn!(carrier = %direct.number, %end, "direct carrier closed");
        direct.connection.close(quinn::VarInt::from_u32(1), b"protocol");
    }
}

async fn run_stream(
    shared: &Arc<Shared>,
    direct: &Direct,
    id: ChannelId,
    send: SendStream,
    recv: RecvStream,
    decoder: StreamDecoder,
) -> Result<(), CarrierEnd> {
    let Some(notify) = shared.register_stream(direct.number, id) else {
        return Err(adit_protocol::record::InvalidRecord.into());
    };
    let result = tokio::try_join!(
        send_stream(shared, direct, id, send, &notify),
        receive_stream(shared, direct, recv, decoder),
    );
    shared.forget_stream(direct.number, id);
    result.map(|_| ())
}

async fn send_stream(
    shared: &Shared,
    direct: &Direct,
    id: ChannelId,
    mut send: SendStream,
    notify: &Notify,
) -> Result<(), CarrierEnd> {
    let mut batch = Batch::default();
    loop {
        let live = shared.with(|resume, now| {
            let mut room = WRITE_BATCH;
            while room > 0
                && let Some(t) =
                    resume.poll_transmit_stream(direct.number, id, room.min(MAX_DATA), now)
            {
                room = room.saturating_sub(t.payload.len());
                batch.push(t);
            }
            resume.is_live(id)
        });
        let mut chunks = batch.take();
        if chunks.is_empty() {
            if !live {
                let _ = send.finish();
                return Ok(());
            }
            notify.notified().await;
            continue;
        }
        direct.life.count_sent();
        send.write_all_chunks(&mut chunks).await.map_err(std::io::Error::from)?;
    }
}

/// What a channel's stream is given at once. `Data` that follows on `Data` joins its record: quinn
/// searches all pieces in flight for every packet, so that each piece saved counts.
#[derive(Default)]
struct Batch {
    chunks: Vec<Bytes>,
    header: BytesMut,
    /// The last record, if it is `Data`, and where its header is.
    open: Option<(usize, Record)>,
}

impl Batch {
    fn push(&mut self, transmit: Transmit) {
        let Transmit { mut record, payload } = transmit;
        let mut at = self.chunks.len();
        if let Some((start, joined)) =
            self.open.take().and_then(|(s, r)| Some((s, join(&r, &record)?)))
        {
            (at, record) = (start, joined);
        }
        record.encode(&mut self.header);
        let header = self.header.split().freeze();
        match self.chunks.get_mut(at) {
            Some(earlier) => *earlier = header,
            None => self.chunks.push(header),
        }
        if !payload.is_empty() {
            self.chunks.push(payload);
        }
        self.open = matches!(record, Record::Data { .. }).then_some((at, record));
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.open = None;
        std::mem::take(&mut self.chunks)
    }
}

async fn receive_stream(
    shared: &Shared,
    direct: &Direct,
    mut recv: RecvStream,
    mut decoder: StreamDecoder,
) -> Result<(), CarrierEnd> {
    let mut pieces = [const { Bytes::new() }; READ_PIECES];
    loop {
        let read = recv.read_chunks(&mut pieces).await.map_err(std::io::Error::from)?;
        let Some(n) = read else { return Ok(()) };
        for piece in pieces.iter_mut().take(n) {
            decoder.feed(std::mem::take(piece))?;
        }
        direct.life.count_received();
        take_in(shared, direct, &mut decoder)?;
        shared.driver_room().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_in_one_piece_travels_in_one_record() {
        let channel = ChannelId(3);
        let data = |offset, text: &'static str| Transmit {
            record: Record::Data { channel, offset, len: u32::try_from(text.len()).unwrap() },
            payload: Bytes::from_static(text.as_bytes()),
        };
        let ack = Transmit {
            record: Record::Ack { channel, delivered: 1, credit: 2 },
            payload: Bytes::new(),
        };
        let mut batch = Batch::default();
        for t in [data(5, "ab"), data(7, "cde"), ack.clone(), data(10, "f"), data(20, "g")] {
            batch.push(t);
        }
        let mut decoder = StreamDecoder::default();
        let chunks = batch.take();
        assert_eq!(chunks.len(), 8);
        chunks.into_iter().for_each(|c| decoder.feed(c).unwrap());
        let data = |offset, pieces: &[&'static str]| {
            Err((offset, pieces.iter().copied().map(Bytes::from).collect()))
        };
        let expected =
            [data(5, &["ab", "cde"]), Ok(ack.record), data(10, &["f"]), data(20, &["g"])];
        assert_eq!(decoder.items(), expected);
        assert!(batch.take().is_empty());
    }
}
