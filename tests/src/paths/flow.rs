//! A numbered stream both ways through a session, for as long as a test wants: which bytes came,
//! and when none did.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    peer::{Check, fill},
    process::pause,
};

/// Bytes sent at once.
const PIECE: usize = 4096;
/// Pauses below this are not noted.
const NOTED: Duration = Duration::from_millis(30);
/// How often an end that rests looks whether it may go on.
const HELD: Duration = Duration::from_millis(5);
/// How often a reader looks whether it should give up.
const LOOK: Duration = Duration::from_millis(200);
/// Time for the ends of the streams once they were sent.
const END: Duration = Duration::from_secs(20);

/// What one end received.
#[derive(Clone, Debug, Default)]
struct Half {
    bytes: u64,
    intact: bool,
    ended: bool,
    /// Pauses: when each was over, and its length.
    pauses: Vec<(Instant, Duration)>,
}

/// A stream both ways. Both ends are in this process, each in its own network namespace.
pub struct Flow {
    shared: Arc<Shared>,
    near: JoinHandle<Result<Half>>,
    far: JoinHandle<Result<Half>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    give_up: Mutex<Option<Instant>>,
    /// Sent by the near and by the far end.
    sent: [AtomicU64; 2],
    /// The near, the far end rests.
    held: [AtomicBool; 2],
}

/// One end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowEnd {
    /// The one that connected: beside the console.
    Near,
    /// The one that accepted: beside the agent.
    Far,
}

/// What came of a flow.
#[derive(Debug)]
pub struct Flowed {
    /// Bytes from the far to the near end, and back.
    pub bytes: (u64, u64),
    /// Of the near end, which got what the far one sent, and of the far end.
    pauses: [Vec<(Instant, Duration)>; 2],
}

impl Flowed {
    /// As [`Self::stall_since`], but of a pause that began before `since`, when there was no path
    /// at all, only what came after counts.
    pub fn stall_after(&self, since: Instant) -> Duration {
        self.pauses.iter().map(|p| left_after(p, since)).max().unwrap_or_default()
    }

    /// The same of what this end sent once it went on after a rest, before it rested `until` then.
    pub fn stall_after_rest(&self, sender: FlowEnd, went_on: Instant, until: Instant) -> Duration {
        let [near, far] = &self.pauses;
        let pauses = if sender == FlowEnd::Near { far } else { near };
        let of_it: Vec<_> = pauses.iter().filter(|(over, _)| *over <= until).copied().collect();
        left_after(&of_it, went_on)
    }

    /// The longest pause, in either direction, that ended after `since`.
    pub fn stall_since(&self, since: Instant) -> Duration {
        let later = self.pauses.iter().flatten().filter(|(over, _)| *over >= since);
        later.map(|(_, length)| *length).max().unwrap_or_default()
    }
}

/// What lasted longest after `since` of these pauses.
fn left_after(pauses: &[(Instant, Duration)], since: Instant) -> Duration {
    let left = |(over, length): &(Instant, Duration)| {
        over.checked_duration_since(since).map(|after| after.min(*length))
    };
    pauses.iter().filter_map(left).max().unwrap_or_default()
}

/// Waits beside the agent for flows.
pub struct FlowServer {
    listener: TcpListener,
}

impl FlowServer {
    /// Binds in the calling thread's namespace.
    pub fn bind(addr: SocketAddr) -> Result<Self> {
        Ok(Self { listener: TcpListener::bind(addr)? })
    }
}

impl Flow {
    /// Connects to `local` in the calling thread's namespace; `rate` bytes a second each way.
    pub fn start(server: &FlowServer, local: SocketAddr, seed: u64, rate: u64) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let listener = server.listener.try_clone()?;
        let near = TcpStream::connect(local).with_context(|| format!("connect {local}"))?;
        let far = Arc::clone(&shared);
        let far = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            exchange(&stream, &far, 1, seed, rate)
        });
        let ours = Arc::clone(&shared);
        let near = thread::spawn(move || exchange(&near, &ours, 0, seed, rate));
        Ok(Self { shared, near, far })
    }

    /// Neither end sends anything until it is let [`Self::go`].
    pub fn rest(&self) {
        self.shared.held.iter().for_each(|held| held.store(true, Ordering::Relaxed));
    }

    /// This end goes on.
    pub fn go(&self, end: FlowEnd) {
        self.shared.held[end as usize].store(false, Ordering::Relaxed);
    }

    /// Ends both streams; everything sent must have come, unchanged and in order.
    pub fn finish(self) -> Result<Flowed> {
        self.shared.stop.store(true, Ordering::Relaxed);
        *self.shared.give_up.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now() + END);
        let join = |half: JoinHandle<Result<Half>>| {
            half.join().unwrap_or_else(|_| bail!("a thread panicked"))
        };
        let (near, far) = (join(self.near), join(self.far));
        let (near, far) = (near.context("console's end")?, far.context("agent's end")?);
        for (half, sender, end) in [(&near, 1, "console"), (&far, 0, "agent")] {
            let sent = self.shared.sent[sender].load(Ordering::Relaxed);
            ensure!(half.intact, "bytes changed towards the {end}, in {} bytes", half.bytes);
            ensure!(half.ended, "no end at the {end} after {} of {sent} bytes", half.bytes);
            ensure!(half.bytes == sent, "{} of {sent} bytes came to the {end}", half.bytes);
        }
        let bytes = (near.bytes, far.bytes);
        Ok(Flowed { bytes, pauses: [near.pauses, far.pauses] })
    }
}

fn exchange(
    stream: &TcpStream,
    shared: &Arc<Shared>,
    me: usize,
    seed: u64,
    rate: u64,
) -> Result<Half> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, shared, me, seed + me as u64, rate));
        let half = receive(stream, shared, seed + 1 - me as u64);
        if !matches!(half, Ok(Half { ended: true, .. })) {
            // The sender may wait for room that never comes.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let sent = sender.join().unwrap_or_else(|_| bail!("a thread panicked"));
        sent.context("sending")?;
        half
    })
}

fn send(mut out: &TcpStream, shared: &Shared, me: usize, seed: u64, rate: u64) -> Result<()> {
    let mut begin = Instant::now();
    let mut piece = [0; PIECE];
    let mut offset = 0_u64;
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.held[me].load(Ordering::Relaxed) {
            pause(HELD);
            begin += HELD; // nothing is made up for
            continue;
        }
        fill(&mut piece, seed, offset);
        out.write_all(&piece)?;
        offset += PIECE as u64;
        shared.sent[me].store(offset, Ordering::Relaxed);
        let due = begin + Duration::from_micros(offset * 1_000_000 / rate);
        pause(due.saturating_duration_since(Instant::now()));
    }
    out.shutdown(Shutdown::Write)?;
    Ok(())
}

fn receive(mut from: &TcpStream, shared: &Shared, seed: u64) -> Result<Half> {
    let mut check = Check::new(seed);
    let mut half = Half::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut last = None::<Instant>;
    loop {
        let read = from.read(&mut buffer);
        let now = Instant::now();
        match read {
            Ok(n) => {
                if let Some(pause) = last.map(|l| now - l).filter(|p| *p >= NOTED) {
                    half.pauses.push((now, pause));
                }
                last = Some(now);
                check.take(buffer.get(..n).unwrap_or_default());
                if n == 0 {
                    half.ended = true;
                    break;
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let give_up = *shared.give_up.lock().unwrap_or_else(PoisonError::into_inner);
                if give_up.is_some_and(|at| now >= at) {
                    break;
                }
            }
            Err(e) => return Err(e).with_context(|| format!("after {} bytes", check.offset)),
        }
    }
    (half.bytes, half.intact) = (check.offset, check.intact);
    Ok(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_no_stall_and_hides_none() {
        let t0 = Instant::now();
        let s = |n: f64| Duration::from_secs_f64(n);
        let back = t0 + s(10.0);
        let flowed = |pauses| Flowed { bytes: (0, 0), pauses: [Vec::new(), pauses] };
        let first = (back + s(0.2), s(9.2));
        assert_eq!(flowed(vec![first]).stall_after(back), s(0.2));
        // A second pause counts wholly, however short it is beside the outage.
        assert_eq!(flowed(vec![first, (back + s(5.0), s(3.0))]).stall_after(back), s(3.0));
        assert_eq!(flowed(vec![(back - s(1.0), s(9.2))]).stall_after(back), s(0.0));
        // Of several rests, each by itself.
        let rests = flowed(vec![first, (back + s(8.0), s(6.0))]);
        let of = |end, from, until| rests.stall_after_rest(end, back + s(from), back + s(until));
        assert_eq!(of(FlowEnd::Near, 0.0, 7.5), s(0.2));
        assert_eq!(of(FlowEnd::Near, 7.5, 9.0), s(0.5));
        assert_eq!(of(FlowEnd::Far, 0.0, 9.0), s(0.0));
    }

    #[test]
    fn rests_and_goes_on_end_by_end() {
        let server = FlowServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let local = server.listener.local_addr().unwrap();
        let flow = Flow::start(&server, local, 7, 1_000_000).unwrap();
        pause(Duration::from_millis(100));
        flow.rest();
        pause(Duration::from_millis(100));
        let sent = || [0, 1].map(|end| flow.shared.sent[end].load(Ordering::Relaxed));
        let before = sent();
        pause(Duration::from_millis(100));
        assert_eq!(sent(), before);
        flow.go(FlowEnd::Far);
        pause(Duration::from_millis(200));
        assert!(sent()[0] == before[0] && sent()[1] > before[1], "{before:?} {:?}", sent());
        flow.finish().unwrap();
    }

    #[test]
    fn notices_pauses_and_finds_everything_intact() {
        let server = FlowServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let local = server.listener.local_addr().unwrap();
        let begin = Instant::now();
        let flow = Flow::start(&server, local, 7, 1_000_000).unwrap();
        pause(Duration::from_millis(300));
        let flowed = flow.finish().unwrap();
        assert!(flowed.bytes.0 > 50_000 && flowed.bytes.1 > 50_000, "{flowed:?}");
        assert!(flowed.stall_since(begin) < Duration::from_millis(250), "{flowed:?}");
    }
}
