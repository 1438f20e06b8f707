//! A session's channels behind one lock, and who is woken by what happens to them.
//!
//! Channel and carrier tasks call [`Shared::with`] for a few microseconds at a time and never
//! hold the lock over an await; each call ends by handing the machine's events to the tasks that
//! wait for them. What no task is responsible for goes to the session's driver.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use adit_core::resume::{ChannelEnd, Event, Pool, Resume};
use adit_protocol::{
    code::ChannelCode,
    ids::{CarrierNumber, ChannelId},
    ticket::Role,
};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};

/// Events that wait for the driver before carriers stop reading: each is a peer's doing.
const DRIVER_QUEUE: usize = 1024;
/// Datagrams of one flow that wait for its local socket.
const FLOW_QUEUE: usize = 128;

/// Wakes the two halves of a channel's local connection.
#[derive(Debug, Default)]
pub(crate) struct ChannelWake {
    pub(crate) deliver: Notify,
    pub(crate) capacity: Notify,
}

/// How far a channel has come, for those who wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    Opening,
    Open,
    Over(ChannelEnd),
}

struct ChannelEntry {
    wake: Arc<ChannelWake>,
    progress: watch::Sender<Progress>,
    flow: Option<mpsc::Sender<Bytes>>,
    started: Instant,
}

/// What a channel's owner holds.
pub(crate) struct ChannelTap {
    pub(crate) id: ChannelId,
    pub(crate) wake: Arc<ChannelWake>,
    pub(crate) progress: watch::Receiver<Progress>,
}

#[derive(Default)]
struct Wakers {
    channels: BTreeMap<ChannelId, ChannelEntry>,
    carriers: BTreeMap<CarrierNumber, Arc<Notify>>,
    streams: BTreeMap<(CarrierNumber, ChannelId), Arc<Notify>>,
    driver: VecDeque<DriverEvent>,
}

/// What only the driver can do.
#[derive(Debug)]
pub(crate) enum DriverEvent {
    /// A channel needs a stream on a direct carrier.
    NeedStream(CarrierNumber, ChannelId),
    /// Something of the machine.
    Machine(Event),
    /// A channel was opened or ended.
    Channel(ChannelId, std::time::Duration, Progress),
}

pub(crate) struct Shared {
    inner: Mutex<(Resume, Wakers)>,
    driver_wake: Notify,
    /// The driver has caught up.
    room_wake: Notify,
    /// Has the driver's queue as many events as may wait? Read without the lock for every batch
    /// of packets; whoever adds one event more, adds it under the lock.
    full: AtomicBool,
    timer_wake: Notify,
    role: Role,
}

impl Shared {
    /// `pool`: what the sessions of this process keep together.
    pub(crate) fn new(role: Role, pool: Pool) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new((Resume::with_pool(role, pool), Wakers::default())),
            driver_wake: Notify::new(),
            room_wake: Notify::new(),
            full: AtomicBool::new(false),
            timer_wake: Notify::new(),
            role,
        })
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    fn lock(&self) -> MutexGuard<'_, (Resume, Wakers)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the machine, then wakes whom it concerns.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Resume, Instant) -> R) -> R {
        let mut guard = self.lock();
        let (resume, wakers) = &mut *guard;
        let result = f(resume, Instant::now());
        if wakers.dispatch(resume) {
            self.wake_driver(wakers);
        }
        if resume.take_timer_moved() {
            self.timer_wake.notify_one();
        }
        result
    }

    /// Opens a channel and registers its owner in one step, so that no event is missed.
    pub(crate) fn register(
        &self,
        open: impl FnOnce(&mut Resume, Instant) -> Option<ChannelId>,
    ) -> Option<ChannelTap> {
        let mut guard = self.lock();
        let (resume, wakers) = &mut *guard;
        let id = open(resume, Instant::now())?;
        let tap = wakers.tap(id);
        if wakers.dispatch(resume) {
            self.wake_driver(wakers);
        }
        Some(tap)
    }

    /// Under the lock: there is more for the driver.
    fn wake_driver(&self, wakers: &Wakers) {
        self.full.store(wakers.driver.len() >= DRIVER_QUEUE, Ordering::Relaxed);
        self.driver_wake.notify_one();
    }

    /// Registers for the datagrams of a flow.
    pub(crate) fn register_flow(&self, id: ChannelId) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(FLOW_QUEUE);
        if let Some(entry) = self.lock().1.channels.get_mut(&id) {
            entry.flow = Some(sender);
        }
        receiver
    }

    /// Registers the transmitter of a carrier's shared connection.
    pub(crate) fn register_carrier(&self, number: CarrierNumber) -> Arc<Notify> {
        self.lock().1.carriers.entry(number).or_default().clone()
    }

    /// Registers the transmitter of a channel's stream; `None` if it has one.
    pub(crate) fn register_stream(
        &self,
        number: CarrierNumber,
        id: ChannelId,
    ) -> Option<Arc<Notify>> {
        let mut guard = self.lock();
        let streams = &mut guard.1.streams;
        if streams.contains_key(&(number, id)) {
            return None;
        }
        let notify = Arc::new(Notify::new());
        notify.notify_one(); // there may be something already
        streams.insert((number, id), notify.clone());
        Some(notify)
    }

    pub(crate) fn forget_stream(&self, number: CarrierNumber, id: ChannelId) {
        self.lock().1.streams.remove(&(number, id));
    }

    pub(crate) fn forget_carrier(&self, number: CarrierNumber) {
        let mut guard = self.lock();
        guard.1.carriers.remove(&number);
        guard.1.streams.retain(|(n, _), _| *n != number);
    }

    /// The machine's next timeout may have become earlier.
    pub(crate) async fn timer_moved(&self) {
        self.timer_wake.notified().await;
    }

    /// Waits until the driver has room for what a carrier brings next: a peer that asks faster
    /// than it is served waits, as with any connection, and nothing piles up here.
    pub(crate) async fn driver_room(&self) {
        while self.full.load(Ordering::Relaxed) {
            let room = self.room_wake.notified();
            if self.lock().1.driver.len() < DRIVER_QUEUE {
                return;
            }
            room.await;
        }
    }

    #[cfg(test)]
    pub(crate) fn driver_waiting(&self) -> usize {
        self.lock().1.driver.len()
    }

    /// The driver's next event.
    pub(crate) async fn driver_event(&self) -> DriverEvent {
        loop {
            let (event, left) = {
                let driver = &mut self.lock().1.driver;
                let event = driver.pop_front();
                self.full.store(driver.len() >= DRIVER_QUEUE, Ordering::Relaxed);
                (event, driver.len())
            };
            if let Some(event) = event {
                if left + 1 == DRIVER_QUEUE {
                    self.room_wake.notify_waiters();
                }
                return event;
            }
            self.driver_wake.notified().await;
        }
    }
}

impl Wakers {
    fn tap(&mut self, id: ChannelId) -> ChannelTap {
        let entry = self.channels.entry(id).or_insert_with(|| ChannelEntry {
            wake: Arc::default(),
            progress: watch::channel(Progress::Opening).0,
            flow: None,
            started: Instant::now(),
        });
        ChannelTap { id, wake: entry.wake.clone(), progress: entry.progress.subscribe() }
    }

    /// Hands out the machine's events; `true` if the driver has something to do.
    fn dispatch(&mut self, resume: &mut Resume) -> bool {
        let before = self.driver.len();
        while let Some(event) = resume.poll_event() {
            match event {
                Event::Transmit(number) => {
                    if let Some(notify) = self.carriers.get(&number) {
                        notify.notify_one();
                    }
                }
                Event::TransmitStream(number, id) => match self.streams.get(&(number, id)) {
                    Some(notify) => notify.notify_one(),
                    None => self.driver.push_back(DriverEvent::NeedStream(number, id)),
                },
                Event::Deliver(id) => self.wake(id, |w| w.deliver.notify_one()),
                Event::Capacity(id) => self.wake(id, |w| w.capacity.notify_one()),
                Event::Datagram(id, data) => {
                    let flow = self.channels.get(&id).and_then(|c| c.flow.as_ref());
                    // A full queue drops, as a socket buffer would.
                    let _ = flow.map(|f| f.try_send(data));
                }
                Event::Opened(id) => self.progress(id, Progress::Open),
                Event::Closed(id, end) => {
                    self.progress(id, Progress::Over(end));
                    self.wake(id, |w| {
                        w.deliver.notify_one();
                        w.capacity.notify_one();
                    });
                    let streams = self.streams.iter().filter(|((_, channel), _)| *channel == id);
                    streams.for_each(|(_, notify)| notify.notify_one());
                    self.channels.remove(&id);
                }
                event => self.driver.push_back(DriverEvent::Machine(event)),
            }
        }
        self.driver.len() > before
    }

    fn wake(&self, id: ChannelId, f: impl FnOnce(&ChannelWake)) {
        if let Some(entry) = self.channels.get(&id) {
            f(&entry.wake);
        }
    }

    fn progress(&mut self, id: ChannelId, progress: Progress) {
        if let Some(entry) = self.channels.get(&id) {
            let _ = entry.progress.send_replace(progress.clone());
            self.driver.push_back(DriverEvent::Channel(id, entry.started.elapsed(), progress));
        }
    }
}

impl Progress {
    /// The code of an end that was not regular.
    pub(crate) fn code(&self) -> Option<ChannelCode> {
        match self {
            Self::Over(end) => end.code,
            _ => None,
        }
    }
}
