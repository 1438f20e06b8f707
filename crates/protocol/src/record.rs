//! Records: what flows inside a carrier, after encryption (docs/protocol.md, "Records").
//!
//! A record is a header (type byte and QUIC variable-length integers, RFC 9000 §16), for
//! [`Record::Data`] and [`Record::Datagram`] followed by as many bytes as the header says. On a
//! relayed carrier records fill Noise messages; on a direct carrier each channel has a QUIC
//! stream of its own. Payload bytes are never copied here: the decoder gives the length.

use bytes::{BufMut, BytesMut};

use crate::{
    code::ChannelCode,
    ids::{CarrierNumber, ChannelId},
    limits::{MAX_HOST_LEN, MAX_RECORD_HEADER},
    target::{Target, Transport},
};

/// Bytes of a peer that are no record; kills the carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed record")]
pub struct InvalidRecord;

/// A record, without the payload bytes of `Data` and `Datagram`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// Console: connect a new channel; is also its first attach.
    Open {
        /// New id, above all before.
        channel: ChannelId,
        /// Where to.
        target: Target,
        /// Absolute offset up to which the opener accepts data.
        credit: u64,
    },
    /// Agent: the target is connected.
    Opened {
        /// Which.
        channel: ChannelId,
        /// Absolute offset up to which the agent accepts data.
        credit: u64,
    },
    /// Agent: the channel does not come about.
    Refused {
        /// Which.
        channel: ChannelId,
        /// Why.
        code: ChannelCode,
    },
    /// Both: the channel goes on on this carrier.
    Attach {
        /// Which.
        channel: ChannelId,
        /// Grows with each move; an older one is ignored.
        epoch: u64,
        /// All bytes below this offset have arrived.
        received: u64,
        /// Absolute offset up to which data is accepted.
        credit: u64,
    },
    /// Bytes of the channel's stream.
    Data {
        /// Which.
        channel: ChannelId,
        /// Of the first byte.
        offset: u64,
        /// How many follow the header.
        len: u32,
    },
    /// Progress of the receiver.
    Ack {
        /// Which.
        channel: ChannelId,
        /// All bytes below were written to the local socket.
        delivered: u64,
        /// Absolute offset up to which data is accepted.
        credit: u64,
    },
    /// The stream ends here.
    Fin {
        /// Which.
        channel: ChannelId,
        /// Its length.
        final_offset: u64,
    },
    /// The channel ends at once.
    Reset {
        /// Which.
        channel: ChannelId,
        /// Why.
        code: ChannelCode,
    },
    /// A piece of a UDP datagram.
    Datagram {
        /// Which flow.
        channel: ChannelId,
        /// Number of the datagram, to put pieces together.
        id: u32,
        /// Which piece.
        piece: u8,
        /// Of how many, at least 1.
        pieces: u8,
        /// How many bytes follow the header.
        len: u32,
    },
    /// Agent: asks the console to leave the carrier.
    Move {
        /// The carrier that seems dead.
        suspect: CarrierNumber,
    },
    /// Both: measures the round trip and shows life.
    Ping {
        /// Echoed.
        nonce: u64,
    },
    /// Answer to `Ping`.
    Pong {
        /// Of the ping.
        nonce: u64,
    },
    /// Console: join this slot of a relay, and keep it joined.
    JoinRelay {
        /// First 4 bytes of the relay's identity, as a big-endian number: the two ends' lists of
        /// relays need not be the same.
        relay: u32,
        /// Connection slot at the relay.
        slot: u32,
    },
    /// Console: all slots of this relay are left.
    LeaveRelay {
        /// As in `JoinRelay`.
        relay: u32,
    },
    /// Console: first record on a direct connection.
    Hello {
        /// Number of the carrier.
        carrier: CarrierNumber,
    },
    /// Agent: the direct carrier may be used.
    Welcome {
        /// Number of the carrier.
        carrier: CarrierNumber,
    },
    /// Both: the session ends.
    Close {
        /// Why: a stable word, `a-z` and `_`, at most [`MAX_REASON`] bytes.
        reason: Box<str>,
    },
}

mod kind {
    pub(super) const OPEN: u8 = 1;
    pub(super) const OPENED: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const ATTACH: u8 = 4;
    pub(super) const DATA: u8 = 5;
    pub(super) const ACK: u8 = 6;
    pub(super) const FIN: u8 = 7;
    pub(super) const RESET: u8 = 8;
    pub(super) const DATAGRAM: u8 = 9;
    pub(super) const MOVE: u8 = 10;
    pub(super) const PING: u8 = 11;
    pub(super) const PONG: u8 = 12;
    pub(super) const JOIN_RELAY: u8 = 13;
    pub(super) const HELLO: u8 = 14;
    pub(super) const WELCOME: u8 = 15;
    pub(super) const CLOSE: u8 = 16;
    pub(super) const LEAVE_RELAY: u8 = 17;
}

impl Record {
    /// Appends the header; the caller appends the payload of `Data` and `Datagram`.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut w = Writer(out);
        match self {
            Self::Open { channel, target, credit } => {
                w.head(kind::OPEN, *channel).int(*credit).byte(target.transport() as u8);
                w.int(target.port().into()).int(target.host().len() as u64);
                w.0.put_slice(target.host().as_bytes());
            }
            Self::Opened { channel, credit } => _ = w.head(kind::OPENED, *channel).int(*credit),
            Self::Refused { channel, code } => {
                w.head(kind::REFUSED, *channel).byte(*code as u8);
            }
            Self::Attach { channel, epoch, received, credit } => {
                w.head(kind::ATTACH, *channel).int(*epoch).int(*received).int(*credit);
            }
            Self::Data { channel, offset, len } => {
                w.head(kind::DATA, *channel).int(*offset).int((*len).into());
            }
            Self::Ack { channel, delivered, credit } => {
                w.head(kind::ACK, *channel).int(*delivered).int(*credit);
            }
            Self::Fin { channel, final_offset } => {
                w.head(kind::FIN, *channel).int(*final_offset);
            }
            Self::Reset { channel, code } => _ = w.head(kind::RESET, *channel).byte(*code as u8),
            Self::Datagram { channel, id, piece, pieces, len } => {
                w.head(kind::DATAGRAM, *channel).int((*id).into()).byte(*piece).byte(*pieces);
                w.int((*len).into());
            }
            Self::Move { suspect } => _ = w.byte(kind::MOVE).int(suspect.0),
            Self::Ping { nonce } => _ = w.byte(kind::PING).int(*nonce),
            Self::Pong { nonce } => _ = w.byte(kind::PONG).int(*nonce),
            Self::JoinRelay { relay, slot } => {
                w.byte(kind::JOIN_RELAY).int((*relay).into()).int((*slot).into());
            }
            Self::LeaveRelay { relay } => _ = w.byte(kind::LEAVE_RELAY).int((*relay).into()),
            Self::Hello { carrier } => _ = w.byte(kind::HELLO).int(carrier.0),
            Self::Welcome { carrier } => _ = w.byte(kind::WELCOME).int(carrier.0),
            Self::Close { reason } => {
                let reason = if is_reason(reason) { reason } else { "closed" };
                w.byte(kind::CLOSE).int(reason.len() as u64);
                w.0.put_slice(reason.as_bytes());
            }
        }
    }

    /// Reads a header from the front of `buf`: the record and the header's length, or `None` if
    /// more bytes are needed. An error means that the peer broke the protocol.
    pub fn decode(buf: &[u8]) -> Result<Option<(Self, usize)>, InvalidRecord> {
        let mut r = Reader { buf, at: 0 };
        match r.record() {
            Ok(record) => Ok(Some((record, r.at))),
            Err(Stop::Short) if buf.len() < MAX_RECORD_HEADER => Ok(None),
            Err(_) => Err(InvalidRecord),
        }
    }

    /// The channel it belongs to, if to one.
    pub fn channel(&self) -> Option<ChannelId> {
        match self {
            Self::Open { channel, .. }
            | Self::Opened { channel, .. }
            | Self::Refused { channel, .. }
            | Self::Attach { channel, .. }
            | Self::Data { channel, .. }
            | Self::Ack { channel, .. }
            | Self::Fin { channel, .. }
            | Self::Reset { channel, .. }
            | Self::Datagram { channel, .. } => Some(*channel),
            Self::Move { .. }
            | Self::Ping { .. }
            | Self::Pong { .. }
            | Self::JoinRelay { .. }
            | Self::LeaveRelay { .. }
            | Self::Hello { .. }
            | Self::Welcome { .. }
            | Self::Close { .. } => None,
        }
    }

    /// Payload bytes that follow the header.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Data { len, .. } | Self::Datagram { len, .. } => *len as usize,
            _ => 0,
        }
    }
}

/// Longest reason in `Close`, bytes.
pub const MAX_REASON: usize = 64;

/// Reasons end up in logs, audit and on screens: words, nothing else.
fn is_reason(text: &str) -> bool {
    (1..=MAX_REASON).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// Largest value of a variable-length integer.
pub const MAX_VARINT: u64 = (1 << 62) - 1;

struct Writer<'a>(&'a mut BytesMut);

impl Writer<'_> {
    fn byte(&mut self, b: u8) -> &mut Self {
        self.0.put_u8(b);
        self
    }
    /// RFC 9000 §16; values above 2^62-1 cannot occur (offsets start at 0) and are capped.
    fn int(&mut self, n: u64) -> &mut Self {
        match n {
            0..=0x3f => self.0.put_uint(n, 1),
            0x40..=0x3fff => self.0.put_uint(n | 0x4000, 2),
            0x4000..=0x3fff_ffff => self.0.put_uint(n | 0x8000_0000, 4),
            _ => self.0.put_u64(n.min(MAX_VARINT) | 0xc000_0000_0000_0000),
        }
        self
    }
    fn head(&mut self, kind: u8, channel: ChannelId) -> &mut Self {
        self.byte(kind).int(channel.0)
    }
}

enum Stop {
    Short,
    Bad,
}

struct Reader<'a> {
    buf: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Stop> {
        let end = self.at.checked_add(n).ok_or(Stop::Bad)?;
        let out = self.buf.get(self.at..end).ok_or(Stop::Short)?;
        self.at = end;
        Ok(out)
    }
    fn byte(&mut self) -> Result<u8, Stop> {
        self.take(1)?.first().copied().ok_or(Stop::Short)
    }
    fn int(&mut self) -> Result<u64, Stop> {
        let first = self.byte()?;
        let extra = (1usize << (first >> 6)) - 1;
        let rest = self.take(extra)?;
        Ok(rest.iter().fold(u64::from(first & 0x3f), |n, b| n << 8 | u64::from(*b)))
    }
    fn u32(&mut self) -> Result<u32, Stop> {
        u32::try_from(self.int()?).map_err(|_| Stop::Bad)
    }
    fn channel(&mut self) -> Result<ChannelId, Stop> {
        self.int().map(ChannelId)
    }
    fn code(&mut self) -> Result<ChannelCode, Stop> {
        self.byte().map(ChannelCode::from_u8)
    }
    fn target(&mut self) -> Result<Target, Stop> {
        let transport = Transport::from_number(self.byte()?.into()).map_err(|_| Stop::Bad)?;
        let port = u16::try_from(self.int()?).map_err(|_| Stop::Bad)?;
        let len = usize::try_from(self.int()?).map_err(|_| Stop::Bad)?;
        if len > MAX_HOST_LEN {
            return Err(Stop::Bad);
        }
        let host = std::str::from_utf8(self.take(len)?).map_err(|_| Stop::Bad)?;
        Target::new(host, port, transport).map_err(|_| Stop::Bad)
    }

    fn record(&mut self) -> Result<Record, Stop> {
        Ok(match self.byte()? {
            kind::OPEN => {
                let (channel, credit) = (self.channel()?, self.int()?);
                Record::Open { channel, credit, target: self.target()? }
            }
            kind::OPENED => Record::Opened { channel: self.channel()?, credit: self.int()? },
            kind::REFUSED => Record::Refused { channel: self.channel()?, code: self.code()? },
            kind::ATTACH => Record::Attach {
                channel: self.channel()?,
                epoch: self.int()?,
                received: self.int()?,
                credit: self.int()?,
            },
            kind::DATA => {
                Record::Data { channel: self.channel()?, offset: self.int()?, len: self.u32()? }
            }
            kind::ACK => Record::Ack {
                channel: self.channel()?,
                delivered: self.int()?,
                credit: self.int()?,
            },
            kind::FIN => Record::Fin { channel: self.channel()?, final_offset: self.int()? },
            kind::RESET => Record::Reset { channel: self.channel()?, code: self.code()? },
            kind::DATAGRAM => Record::Datagram {
                channel: self.channel()?,
                id: self.u32()?,
                piece: self.byte()?,
                pieces: self.byte()?,
                len: self.u32()?,
            },
            kind::MOVE => Record::Move { suspect: CarrierNumber(self.int()?) },
            kind::PING => Record::Ping { nonce: self.int()? },
            kind::PONG => Record::Pong { nonce: self.int()? },
            kind::JOIN_RELAY => Record::JoinRelay { relay: self.u32()?, slot: self.u32()? },
            kind::LEAVE_RELAY => Record::LeaveRelay { relay: self.u32()? },
            kind::HELLO => Record::Hello { carrier: CarrierNumber(self.int()?) },
            kind::WELCOME => Record::Welcome { carrier: CarrierNumber(self.int()?) },
            kind::CLOSE => {
                let len = usize::try_from(self.int()?).map_err(|_| Stop::Bad)?;
                if len > MAX_REASON {
                    return Err(Stop::Bad);
                }
                let reason = std::str::from_utf8(self.take(len)?).map_err(|_| Stop::Bad)?;
                if !is_reason(reason) {
                    return Err(Stop::Bad);
                }
                Record::Close { reason: reason.into() }
            }
            _ => return Err(Stop::Bad),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let ch = || (0..MAX_VARINT).prop_map(ChannelId);
        let n = || 0..=MAX_VARINT;
        let code = || any::<u8>().prop_map(ChannelCode::from_u8);
        let target = ("[a-z][a-z0-9]{0,20}(\\.[a-z][a-z0-9]{0,20}){0,3}", 1..=u16::MAX)
            .prop_map(|(h, p)| Target::new(&h, p, Transport::Tcp).unwrap());
        prop_oneof![
            (ch(), target, n()).prop_map(|(channel, target, credit)| Record::Open {
                channel,
                target,
                credit
            }),
            (ch(), n()).prop_map(|(channel, credit)| Record::Opened { channel, credit }),
            (ch(), code()).prop_map(|(channel, code)| Record::Refused { channel, code }),
            (ch(), n(), n(), n()).prop_map(|(channel, epoch, received, credit)| Record::Attach {
                channel,
                epoch,
                received,
                credit
            }),
            (ch(), n(), any::<u32>()).prop_map(|(channel, offset, len)| Record::Data {
                channel,
                offset,
                len
            }),
            (ch(), n(), n()).prop_map(|(channel, delivered, credit)| Record::Ack {
                channel,
                delivered,
                credit
            }),
            (ch(), any::<u32>(), any::<u8>(), any::<u8>(), any::<u32>()).prop_map(
                |(channel, id, piece, pieces, len)| Record::Datagram {
                    channel,
                    id,
                    piece,
                    pieces,
                    len
                }
            ),
            n().prop_map(|nonce| Record::Ping { nonce }),
            "[a-z_]{1,64}".prop_map(|r| Record::Close { reason: r.into() }),
        ]
    }

    proptest! {
        #[test]
        fn reads_back_and_waits_for_the_whole_header(r in any_record()) {
            let mut buf = BytesMut::new();
            r.encode(&mut buf);
            prop_assert!(buf.len() <= MAX_RECORD_HEADER);
            prop_assert_eq!(Record::decode(&buf), Ok(Some((r, buf.len()))));
            for cut in 0..buf.len() {
                prop_assert_eq!(Record::decode(&buf[..cut]), Ok(None));
            }
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Record::decode(&bytes);
        }
    }
}
