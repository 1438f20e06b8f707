//! What is remembered of channels that are over, so that a late or repeated word about them gets
//! the right answer, and a last word that died with its carrier is said again.

use std::collections::{BTreeMap, BTreeSet};

use adit_protocol::{
    code::ChannelCode,
    ids::{CarrierNumber, ChannelId},
    record::Record,
};

/// Channels remembered; older ones are answered with `Reset{Unknown}`.
const MAX_TOMBSTONES: usize = 1024;
/// Ids that may be ahead of the lowest one not yet seen.
const MAX_ID_GAP: usize = 4096;

/// How a channel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Epitaph {
    /// Both ways by `Fin`: offset received, and the final acknowledgement.
    Clean {
        received: u64,
        ack: u64,
    },
    Refused(ChannelCode),
    Reset(ChannelCode),
}

impl Epitaph {
    pub(super) fn last_word(self, channel: ChannelId) -> Record {
        match self {
            Self::Clean { received, ack } => {
                Record::Ack { channel, delivered: ack, credit: received }
            }
            Self::Refused(code) => Record::Refused { channel, code },
            Self::Reset(code) => Record::Reset { channel, code },
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Tombstones {
    dead: BTreeMap<ChannelId, (Epitaph, Option<CarrierNumber>)>,
    /// All ids below were opened at some time.
    floor: u64,
    above: BTreeSet<u64>,
}

impl Tombstones {
    /// Notes that an id is used. `false` if the peer jumps too far ahead.
    pub(super) fn see(&mut self, id: ChannelId) -> bool {
        self.floor = self.floor.max(1);
        if id.0 >= self.floor {
            self.above.insert(id.0);
        }
        while self.above.remove(&self.floor) {
            self.floor += 1;
        }
        self.above.len() <= MAX_ID_GAP
    }

    pub(super) fn seen(&self, id: ChannelId) -> bool {
        id.0 < self.floor || self.above.contains(&id.0)
    }

    /// `carrier`: on which the last word is sent, if on any yet.
    pub(super) fn bury(&mut self, id: ChannelId, how: Epitaph, carrier: Option<CarrierNumber>) {
        self.dead.insert(id, (how, carrier));
        while self.dead.len() > MAX_TOMBSTONES {
            self.dead.pop_first();
        }
    }

    pub(super) fn epitaph(&self, id: ChannelId) -> Option<Epitaph> {
        self.dead.get(&id).map(|d| d.0)
    }

    /// The last words that may have died with this carrier are to be said again.
    pub(super) fn carrier_down(&mut self, carrier: CarrierNumber) {
        for (_, on) in self.dead.values_mut() {
            on.take_if(|c| *c == carrier);
        }
    }

    /// Last words that no live carrier carries; they are now considered sent on `carrier`.
    pub(super) fn unsaid(&mut self, carrier: CarrierNumber) -> Vec<Record> {
        self.dead
            .iter_mut()
            .filter(|(_, (_, on))| on.is_none())
            .map(|(id, (how, on))| {
                *on = Some(carrier);
                how.last_word(*id)
            })
            .collect()
    }
}
