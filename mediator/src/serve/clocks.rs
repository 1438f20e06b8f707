//! The clocks of devices, compared with the mediator's (SP 800-46r2): told to operators in lists,
//! as a metric, in the log, and as an audit event when one begins to be off, changes by much, or
//! is right again.
//!
//! Nothing is decided by what a device says of its clock, and one that says something else each
//! time fills no log.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use adit_control::MAX_SKEW;
use adit_ledger::{Event, Level};
use adit_protocol::keys::PublicKey;

use super::{connection::Line, seldom::Seldom};

/// Devices whose clocks are remembered.
const MAX_DEVICES: usize = 65_536;

/// What devices said of their clocks, since the mediator started.
pub(crate) struct Clocks {
    devices: Mutex<BTreeMap<[u8; 32], Compared>>,
    recorded: Seldom,
    started: Instant,
}

/// Milliseconds by which a clock is ahead of the mediator's.
#[derive(Clone, Copy, Debug, Default)]
struct Compared {
    now: i64,
    /// As it was recorded last; a clock that nothing is recorded of is right.
    recorded: i64,
}

/// A change that is to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is off by this much now, milliseconds.
    Off(i64),
    /// It was off, and is not any more.
    Right(i64),
}

impl Default for Clocks {
    fn default() -> Self {
        let (devices, recorded) = (Mutex::default(), Seldom::default());
        Self { devices, recorded, started: Instant::now() }
    }
}

impl Clocks {
    /// By how much this device's clock was ahead when it last told.
    pub(crate) fn offset(&self, device: PublicKey) -> Option<i64> {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.get(&device.0).map(|compared| compared.now)
    }

    /// Devices whose clocks are off.
    pub(crate) fn off(&self) -> usize {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.values().filter(|compared| is_off(compared.now)).count()
    }

    /// Notes what a device's clock showed when the mediator's showed `now_ms`. A device of an
    /// earlier version says nothing (0).
    fn note(&self, device: PublicKey, own_ms: u64, now_ms: u64) -> Option<Change> {
        if own_ms == 0 {
            return None;
        }
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let offset = signed(own_ms).saturating_sub(signed(now_ms));
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.len() >= MAX_DEVICES && !devices.contains_key(&device.0) {
            devices.retain(|_, one| is_off(one.now));
            if devices.len() >= MAX_DEVICES {
                return None;
            }
        }
        let one = devices.entry(device.0).or_default();
        one.now = offset;
        let change = match (is_off(one.recorded), is_off(offset)) {
            (false, false) => return None,
            (true, false) => Change::Right(offset),
            (true, true) if !is_off(offset.saturating_sub(one.recorded)) => return None,
            (_, true) => Change::Off(offset),
        };
        // By a clock that does not jump, since the wall clock is what is in doubt here.
        let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.recorded.note(&device.0, since)?;
        one.recorded = offset;
        Some(change)
    }
}

fn is_off(offset_ms: i64) -> bool {
    u128::from(offset_ms.unsigned_abs()) > MAX_SKEW.as_millis()
}

/// Compares a device's clock, `shown` as in `Line::clock`, and records in a partner's log what has
/// changed; `about` names the device.
pub(super) async fn compare(
    line: &Line,
    shown: (u64, u64),
    partner_id: &str,
    about: impl FnOnce(Event) -> Event,
) {
    let clocks = &line.shared.broker.clocks;
    let Some(change) = clocks.note(line.identity, shown.0, shown.1) else { return };
    let device = line.identity.fingerprint();
    let (name, offset) = match change {
        Change::Off(offset) => {
            tracing::warn!(%device, source = %line.source, offset_ms = offset,
                "a device's clock is not the mediator's: set one of them");
            ("clock.off", offset)
        }
        Change::Right(offset) => {
            tracing::info!(%device, source = %line.source, offset_ms = offset,
                "a device's clock is right again");
            ("clock.right", offset)
        }
    };
    let event = Event::new(name, Level::Informational)
        .device(device.to_string())
        .source(line.source.to_string())
        .outcome("reported")
        .extra("offset_ms", offset);
    let (event, partner_id) = (about(event), partner_id.to_owned());
    let Ok(_room) = line.shared.writer.room(1).await else { return };
    let written = line
        .shared
        .writer
        .write(move |tx| Box::pin(async move { tx.append(&partner_id, event).await.map(|_| ()) }));
    if let Err(error) = written.await {
        tracing::error!(%error, "a device's clock was not recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn a_clock_is_recorded_when_it_goes_wrong_changes_by_much_or_is_right_again() {
        let device = PublicKey([1; 32]);
        let told = |said: &[u64]| {
            said.iter()
                .map(|own| {
                    // Each as if a minute had passed.
                    let clocks = Clocks::default();
                    clocks.devices.lock().unwrap().insert(device.0, Compared::default());
                    clocks.note(device, *own, NOW)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&[0, NOW, NOW + 30_000, NOW - 30_000]), [None; 4]);
        assert_eq!(told(&[NOW + 30_001]), [Some(Change::Off(30_001))]);
        assert_eq!(told(&[NOW - 86_400_000]), [Some(Change::Off(-86_400_000))]);
        assert_eq!(told(&[u64::MAX]), [Some(Change::Off(i64::MAX - 1_800_000_000_000))]);

        let after = |recorded: i64, own: u64| {
            let clocks = Clocks::default();
            let known = Compared { now: recorded, recorded };
            clocks.devices.lock().unwrap().insert(device.0, known);
            let change = clocks.note(device, own, NOW);
            (change, clocks.off())
        };
        assert_eq!(after(60_000, NOW + 61_000), (None, 1));
        assert_eq!(after(60_000, NOW + 91_000), (Some(Change::Off(91_000)), 1));
        assert_eq!(after(60_000, NOW - 60_000), (Some(Change::Off(-60_000)), 1));
        assert_eq!(after(60_000, NOW + 2), (Some(Change::Right(2)), 0));
    }

    #[test]
    fn a_device_that_says_something_else_each_time_is_recorded_once_a_minute() {
        let clocks = Clocks::default();
        let device = PublicKey([1; 32]);
        let recorded =
            (1..1000).filter(|n| clocks.note(device, NOW + n * 100_000, NOW).is_some()).count();
        assert_eq!(recorded, 1);
        assert_eq!(clocks.offset(device), Some(99_900_000), "it is shown all the same");
    }

    #[test]
    fn any_number_of_devices_takes_bounded_memory_and_those_that_are_off_stay() {
        let clocks = Clocks::default();
        let key = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            PublicKey(key)
        };
        clocks.note(key(u32::MAX), NOW + 100_000, NOW);
        for n in 0..u32::try_from(MAX_DEVICES).unwrap() + 10 {
            clocks.note(key(n), NOW, NOW);
        }
        assert!(clocks.devices.lock().unwrap().len() <= MAX_DEVICES);
        assert_eq!(clocks.offset(key(u32::MAX)), Some(100_000));
    }
}
