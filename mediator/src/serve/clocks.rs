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
use crate::store::{StoreError, Writer};

/// Devices whose clocks are remembered. When there are more, those that are right go first; then,
/// of the partner with the most, the one that was silent for longest.
const MAX_DEVICES: usize = 65_536;

/// Devices of a partner that are told apart when it comes to recording each once a minute: its
/// others wait for each other, and nobody else's for them.
const MAX_RECORDED_OF_PARTNER: usize = 1024;

/// What devices said of their clocks, since the mediator started.
pub(crate) struct Clocks {
    devices: Mutex<BTreeMap<[u8; 32], Compared>>,
    seldom: Seldom,
    started: Instant,
}

/// Milliseconds by which a clock is ahead of the mediator's.
#[derive(Clone, Debug, Default)]
struct Compared {
    now: i64,
    /// As it was recorded last; a clock that nothing is recorded of is right.
    recorded: i64,
    /// In whose log.
    partner_id: String,
    /// When it told, milliseconds since the mediator started.
    told_ms: u64,
}

impl Compared {
    /// Nothing is known of it that is not known of any other.
    fn is_plain(&self) -> bool {
        !is_off(self.now) && !is_off(self.recorded)
    }
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
        let (devices, seldom) = (Mutex::default(), Seldom::default());
        Self { devices, seldom, started: Instant::now() }
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
    /// earlier version says nothing (0). A change counts as recorded once [`Clocks::recorded`] says
    /// so.
    fn note(
        &self,
        (device, partner_id): (PublicKey, &str),
        own_ms: u64,
        now_ms: u64,
    ) -> Option<Change> {
        // By a clock that does not jump, since the wall clock is what is in doubt here.
        let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.note_at((device, partner_id), own_ms, now_ms, since)
    }

    fn note_at(
        &self,
        (device, partner_id): (PublicKey, &str),
        own_ms: u64,
        now_ms: u64,
        told_ms: u64,
    ) -> Option<Change> {
        if own_ms == 0 {
            return None;
        }
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let offset = signed(own_ms).saturating_sub(signed(now_ms));
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.len() >= MAX_DEVICES && !devices.contains_key(&device.0) {
            make_room(&mut devices);
        }
        let one = devices.entry(device.0).or_default();
        (one.now, one.told_ms) = (offset, told_ms);
        partner_id.clone_into(&mut one.partner_id);
        let change = match (is_off(one.recorded), is_off(offset)) {
            (false, false) => return None,
            (true, false) => Change::Right(offset),
            (true, true) if !is_off(offset.saturating_sub(one.recorded)) => return None,
            (_, true) => Change::Off(offset),
        };
        let group = (partner_id.as_bytes(), MAX_RECORDED_OF_PARTNER);
        self.seldom.note_within(group, &device.0, told_ms)?;
        Some(change)
    }

    /// A change is durable in the log.
    fn recorded(&self, device: PublicKey, change: Change) {
        let (Change::Off(offset) | Change::Right(offset)) = change;
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = devices.get_mut(&device.0) {
            one.recorded = offset;
        }
    }
}

/// Forgets devices until there is room for another.
fn make_room(devices: &mut BTreeMap<[u8; 32], Compared>) {
    devices.retain(|_, one| !one.is_plain());
    while devices.len() >= MAX_DEVICES {
        let mut of_partner = BTreeMap::<&str, usize>::new();
        for one in devices.values() {
            *of_partner.entry(&one.partner_id).or_default() += 1;
        }
        let most = of_partner.into_iter().max_by_key(|(_, count)| *count);
        let Some((most, _)) = most else { return };
        let theirs = devices.iter().filter(|(_, one)| one.partner_id == most);
        let Some((oldest, _)) = theirs.min_by_key(|(_, one)| one.told_ms) else { return };
        let oldest = *oldest;
        devices.remove(&oldest);
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
    let (clocks, identity) = (&line.shared.broker.clocks, line.identity);
    let Some(change) = clocks.note((identity, partner_id), shown.0, shown.1) else { return };
    let device = identity.fingerprint();
    match change {
        Change::Off(offset) => tracing::warn!(%device, source = %line.source, offset_ms = offset,
            "a device's clock is not the mediator's: set one of them"),
        Change::Right(offset) => tracing::info!(%device, source = %line.source, offset_ms = offset,
            "a device's clock is right again"),
    }
    let source = line.source.to_string();
    let about = |event: Event| about(event.source(source));
    let written = record(&line.shared.writer, clocks, (identity, partner_id), change, about).await;
    if let Err(error) = written {
        tracing::error!(%error, "a device's clock was not recorded; it is tried again when it tells");
    }
}

/// Writes a change into a partner's log.
async fn record(
    writer: &Writer,
    clocks: &Clocks,
    (device, partner_id): (PublicKey, &str),
    change: Change,
    about: impl FnOnce(Event) -> Event,
) -> Result<(), StoreError> {
    let (name, offset) = match change {
        Change::Off(offset) => ("clock.off", offset),
        Change::Right(offset) => ("clock.right", offset),
    };
    let event = Event::new(name, Level::Informational)
        .device(device.fingerprint().to_string())
        .outcome("reported")
        .extra("offset_ms", offset);
    let (event, partner_id) = (about(event), partner_id.to_owned());
    let _room = writer.room(1).await?;
    let write = writer
        .write(move |tx| Box::pin(async move { tx.append(&partner_id, event).await.map(|_| ()) }));
    write.await?;
    clocks.recorded(device, change);
    Ok(())
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
                    clocks.note((device, "p"), *own, NOW)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&[0, NOW, NOW + 30_000, NOW - 30_000]), [None; 4]);
        assert_eq!(told(&[NOW + 30_001]), [Some(Change::Off(30_001))]);
        assert_eq!(told(&[NOW - 86_400_000]), [Some(Change::Off(-86_400_000))]);
        assert_eq!(told(&[u64::MAX]), [Some(Change::Off(i64::MAX - 1_800_000_000_000))]);

        let after = |recorded: i64, own: u64| {
            let clocks = Clocks::default();
            let known = Compared { now: recorded, recorded, ..Compared::default() };
            clocks.devices.lock().unwrap().insert(device.0, known);
            let change = clocks.note((device, "p"), own, NOW);
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
        let recorded = (1..1000)
            .filter(|n| clocks.note((device, "p"), NOW + n * 100_000, NOW).is_some())
            .count();
        assert_eq!(recorded, 1);
        assert_eq!(clocks.offset(device), Some(99_900_000), "it is shown all the same");
    }

    #[test]
    fn a_partner_whose_clocks_are_all_wrong_keeps_nobody_elses_from_being_recorded() {
        let clocks = Clocks::default();
        let key = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            PublicKey(key)
        };
        let off = |n: u32, partner| clocks.note((key(n), partner), NOW + 100_000, NOW);
        let recorded = (0..9_000).filter(|n| off(*n, "p").is_some()).count();
        assert_eq!(recorded, MAX_RECORDED_OF_PARTNER + 1);
        assert_eq!(off(9_001, "q"), Some(Change::Off(100_000)));
    }

    #[test]
    fn any_number_of_devices_takes_bounded_memory_and_those_that_are_off_stay() {
        let clocks = Clocks::default();
        let key = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            PublicKey(key)
        };
        clocks.note((key(u32::MAX), "p"), NOW + 100_000, NOW);
        for n in 0..u32::try_from(MAX_DEVICES).unwrap() + 10 {
            clocks.note((key(n), "p"), NOW, NOW);
        }
        assert!(clocks.devices.lock().unwrap().len() <= MAX_DEVICES);
        assert_eq!(clocks.offset(key(u32::MAX)), Some(100_000));
        // Whatever number of keys one partner's people log in with, all with wrong clocks: others'
        // stay, and new ones' are compared.
        let fresh = |n| (key(u32::MAX - n), "p");
        clocks.note(fresh(1), NOW + 200_000, NOW);
        {
            let mut devices = clocks.devices.lock().unwrap();
            for n in 0..u32::try_from(MAX_DEVICES).unwrap() {
                let (now, partner_id) = (100_000, "mallory".to_owned());
                let one = Compared { now, partner_id, told_ms: 1, ..Compared::default() };
                if devices.len() < MAX_DEVICES {
                    devices.insert(key(n).0, one);
                }
            }
            devices.retain(|_, one| !one.is_plain());
        }
        for n in 0..10 {
            let n = u32::try_from(MAX_DEVICES).unwrap() + n;
            clocks.note((key(n), "mallory"), NOW + 100_000, NOW);
        }
        assert_eq!(clocks.note(fresh(2), NOW + 300_000, NOW), Some(Change::Off(300_000)));
        let others = [fresh(0), fresh(1), fresh(2)].map(|(key, _)| clocks.offset(key));
        assert_eq!(others, [Some(100_000), Some(200_000), Some(300_000)]);
        assert!(clocks.devices.lock().unwrap().len() <= MAX_DEVICES);
    }

    /// What the log of a partner says, minute by minute, and what becomes of a change that could
    /// not be written.
    #[tokio::test]
    async fn the_log_tells_when_a_clock_is_off_and_when_it_is_right_again() {
        let fixture = crate::store::tests::Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("acme").await.id;
        let (clocks, device) = (Clocks::default(), PublicKey([1; 32]));
        let told =
            |own_ms, minute: u64| clocks.note_at((device, "p"), own_ms, NOW, minute * 60_000);
        let record = async |partner: &str, change| {
            let of = (device, partner);
            super::record(&running.writer, &clocks, of, change, |event| event).await
        };
        let (off, right) = (Change::Off(90_000), Change::Right(5));
        for (own_ms, minute, change) in [(NOW + 90_000, 0, off), (NOW + 5, 5, right)] {
            assert_eq!(told(own_ms, minute), Some(change));
            // There is no such log: the change still is to be recorded.
            assert!(record("nobody", change).await.is_err());
            assert_eq!(told(own_ms, minute + 1), Some(change));
            record(&partner, change).await.unwrap();
            assert_eq!(told(own_ms, minute + 2), None);
        }
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT event FROM audit_entry WHERE event LIKE 'clock.%' ORDER BY seq",
        )
        .fetch_all(&running.store.readers)
        .await
        .unwrap();
        assert_eq!(rows, ["clock.off", "clock.right"]);
        running.close().await;
    }
}
