//! What a process knows of relays beyond any session: which there are, how far away they are,
//! and whether this network lets raw joins pass.
//!
//! Round trips are measured in the background, by connecting and closing; through a proxy that
//! says nothing, so there the joins themselves measure. Short-lived consoles keep what they
//! learnt in a file, with the nearest relays' addresses: the next console connects to them before
//! the mediator has named any. Must never delay the opening of a session.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adit_net::{
    interfaces::{self, may_connect},
    proxy::{Dialer, parse_host_port},
};
use adit_protocol::{keys::random, wire};
use futures_util::{StreamExt, stream};
use ipnet::IpNet;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    keeper::replace,
    relays::{RelayKey, Rtts},
};

/// Relays that are measured, and told to peers.
pub(crate) const MAX_MEASURED: usize = 64;
/// Addresses of a relay that are tried.
pub(crate) const MAX_ADDRESSES: usize = 4;
/// Sessions are being opened just when the mediator names relays: measuring waits so long.
const SETTLE: Duration = Duration::from_millis(300);
/// Measured at the same time.
const CONCURRENT: usize = 8;
/// Time for one connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Connections for one figure; the quickest counts.
const SAMPLES: usize = 2;
/// Measured again after this, plus up to a quarter of it.
const AGAIN: Duration = Duration::from_secs(30 * 60);
/// Figures younger than this are not measured again because a connection came back.
const FRESH: Duration = Duration::from_secs(5 * 60);
/// Networks whose way is remembered.
const MAX_NETWORKS: usize = 16;
/// Largest file that is read.
const MAX_FILE: u64 = 64 * 1024;
/// Figures in the file older than this are of no use.
const MAX_AGE_S: u64 = 7 * 24 * 3600;
/// Relays whose addresses the file keeps, the nearest ones.
const MAX_REMEMBERED: usize = 16;
/// Longest address that is kept.
const MAX_ADDRESS: usize = 300;
/// First line of the file.
const FILE_HEADER: &str = "adit-relays 1";

/// How a relay is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Raw,
    Tls,
}

impl Way {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Tls => "tls",
        }
    }
}

/// A relay of the installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayStatus {
    /// Its first address.
    pub name: String,
    /// Its region, as its administrator called it.
    pub region: String,
    /// Its identity key.
    pub identity: [u8; 32],
    /// Round trip from here, if measured.
    pub rtt: Option<Duration>,
    pub(crate) addresses: Vec<String>,
}

impl RelayStatus {
    /// For fuzzing: reads a file of what was learnt, which must read back as it was.
    #[doc(hidden)]
    pub fn fuzz_file(text: &str) -> bool {
        let fresh = || State {
            network: Some(IpAddr::from([192, 0, 2, 7])),
            of: "m.example:443".to_owned(),
            ..State::default()
        };
        let (mut first, mut second) = (fresh(), fresh());
        read_state(text, &mut first, 2000);
        let written = write_state(&first);
        read_state(&written, &mut second, 2000);
        assert_eq!(write_state(&second), written, "it does not read back");
        assert!(first.rtts.len() <= MAX_MEASURED && first.ways.len() <= MAX_NETWORKS);
        !first.rtts.is_empty() || !first.ways.is_empty() || !first.remembered.is_empty()
    }
}

/// Own address towards the internet: another one is another network.
type Network = Option<IpAddr>;

#[derive(Default)]
struct State {
    listed: Vec<RelayStatus>,
    /// With the time of measuring, Unix seconds.
    rtts: BTreeMap<RelayKey, (Duration, u64)>,
    ways: VecDeque<(Network, Way)>,
    network: Network,
    own_nets: Vec<IpNet>,
    mediator: Option<SocketAddr>,
    /// Not before this is measured.
    quiet_until: Option<Instant>,
    /// Relays of an earlier process at the same mediator, the nearest first.
    remembered: Vec<(RelayKey, String)>,
    /// Name of the mediator.
    of: String,
}

/// Shared by the sessions of a process.
pub(crate) struct Memory {
    dialer: Arc<Dialer>,
    file: Option<PathBuf>,
    state: Mutex<State>,
    wake: Notify,
    learnt: Notify,
    /// Counts measurements.
    measured: watch::Sender<u64>,
}

impl Memory {
    /// `of`: the mediator, as the program calls it; what is remembered of relays is of this one.
    pub(crate) fn new(dialer: Arc<Dialer>, file: Option<PathBuf>, of: String) -> Arc<Self> {
        let mut state = State { network: network(), of, ..State::default() };
        if let Some(text) = file.as_ref().and_then(read_bounded) {
            read_state(&text, &mut state, unix_s());
        }
        Arc::new(Self {
            dialer,
            file,
            state: Mutex::new(state),
            wake: Notify::new(),
            learnt: Notify::new(),
            measured: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mediator told which relays there are; `mediator`: where it was reached.
    pub(crate) fn set_relays(&self, relays: &[wire::RelayInfo], mediator: Option<SocketAddr>) {
        let listed = relays.iter().take(MAX_MEASURED).filter_map(|relay| {
            Some(RelayStatus {
                name: relay.addresses.first()?.clone(),
                region: relay.region.clone(),
                identity: relay.identity.as_ref().try_into().ok()?,
                rtt: None,
                addresses: relay.addresses.iter().take(MAX_ADDRESSES).cloned().collect(),
            })
        });
        {
            let mut state = self.state();
            (state.listed, state.mediator) = (listed.collect(), mediator);
            state.quiet_until = Some(Instant::now() + SETTLE);
        }
        self.wake.notify_one();
    }

    /// First addresses of the nearest relays of an earlier process.
    pub(crate) fn remembered(&self, count: usize) -> Vec<String> {
        self.state().remembered.iter().take(count).map(|(_, address)| address.clone()).collect()
    }

    pub(crate) fn network_changed(&self) {
        let network = network();
        {
            let mut state = self.state();
            if state.network != network {
                state.network = network;
                state.rtts.clear();
            }
        }
        self.wake.notify_one();
    }

    /// What was measured, for the peer.
    pub(crate) fn rtts(&self) -> Rtts {
        let state = self.state();
        state.rtts.iter().map(|(key, (rtt, _))| (*key, *rtt)).take(MAX_MEASURED).collect()
    }

    /// All relays of the installation.
    pub(crate) fn list(&self) -> Vec<RelayStatus> {
        let state = self.state();
        let rtt = |key: &RelayKey| state.rtts.get(key).map(|(rtt, _)| *rtt);
        state
            .listed
            .iter()
            .map(|relay| RelayStatus { rtt: rtt(&relay.identity), ..relay.clone() })
            .collect()
    }

    /// Figures changed.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.measured.subscribe()
    }

    /// A join took this long between message and answer.
    pub(crate) fn joined(&self, key: RelayKey, rtt: Duration, way: Way) {
        {
            let mut state = self.state();
            let network = state.network;
            if state.rtts.len() < 2 * MAX_MEASURED || state.rtts.contains_key(&key) {
                // An estimate of a busy moment does not replace a measured one.
                let better = state.rtts.get(&key).is_none_or(|(known, _)| rtt < *known);
                if better {
                    state.rtts.insert(key, (rtt, unix_s()));
                }
            }
            state.ways.retain(|(n, _)| *n != network);
            state.ways.push_back((network, way));
            if state.ways.len() > MAX_NETWORKS {
                state.ways.pop_front();
            }
        }
        self.learnt.notify_one();
    }

    /// How the last join on this network succeeded.
    pub(crate) fn way(&self) -> Option<Way> {
        let state = self.state();
        state.ways.iter().find(|(n, _)| *n == state.network).map(|(_, way)| *way)
    }

    /// May this program connect there on the mediator's word?
    pub(crate) fn admits(&self, target: SocketAddr) -> bool {
        let state = self.state();
        may_connect(target, state.mediator, &state.own_nets)
    }

    /// Measures until cancelled.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let _ = cancel.run_until_cancelled(self.keep_measuring()).await;
    }

    async fn keep_measuring(&self) {
        // As it was read.
        let mut saved = write_state(&self.state());
        loop {
            self.save(&mut saved).await;
            let quiet_until = self.state().quiet_until.take();
            if let Some(until) = quiet_until {
                tokio::time::sleep_until(until).await;
            }
            let nets = interfaces::local_addresses().await.into_iter().map(|a| a.net).collect();
            self.state().own_nets = nets;
            self.measure(false).await;
            let jitter = u32::from(random::<1>().map_or(0, |[b]| b));
            let again = Instant::now() + AGAIN + AGAIN / 4 * jitter / 256;
            loop {
                self.save(&mut saved).await;
                tokio::select! {
                    () = self.wake.notified() => break,
                    () = self.learnt.notified() => {}
                    () = tokio::time::sleep_until(again) => break,
                }
            }
        }
    }

    /// Keeps in the file what a program without sessions was told: for the first session of a later
    /// one. Figures that are missing are measured for this long at most.
    pub(crate) async fn learn(
        &self,
        relays: &[wire::RelayInfo],
        mediator: Option<SocketAddr>,
        time: Duration,
    ) {
        let mut saved = write_state(&self.state());
        self.set_relays(relays, mediator);
        let nets = interfaces::local_addresses().await.into_iter().map(|a| a.net).collect();
        self.state().own_nets = nets;
        // What was measured until then counts.
        let _ = tokio::time::timeout(time, self.measure(false)).await;
        self.save(&mut saved).await;
    }

    async fn save(&self, saved: &mut String) {
        let Some(file) = self.file.clone() else { return };
        let text = write_state(&self.state());
        if text != *saved {
            saved.clone_from(&text);
            // A cache that cannot be written costs the next console a measurement.
            let _ = tokio::task::spawn_blocking(move || save(&file, &text)).await;
        }
    }

    /// Measures what has no figure, or all.
    pub(crate) async fn measure(&self, all: bool) {
        let now = unix_s();
        let due: Vec<RelayStatus> = {
            let state = self.state();
            let fresh = |key: &RelayKey| {
                let age = state.rtts.get(key).map(|(_, at)| now.saturating_sub(*at));
                age.is_some_and(|age| age < FRESH.as_secs())
            };
            state.listed.iter().filter(|r| all || !fresh(&r.identity)).cloned().collect()
        };
        let measured = stream::iter(due)
            .map(|relay| async move { (relay.identity, self.measure_one(&relay).await) })
            .buffer_unordered(CONCURRENT);
        tokio::pin!(measured);
        let mut news = false;
        // Each as it comes: who waits for all of them may be cut short.
        while let Some((key, rtt)) = measured.next().await {
            let Some(rtt) = rtt else { continue };
            debug!(relay = ?key.first_chunk::<4>(), ?rtt, "relay measured");
            self.state().rtts.insert(key, (rtt, unix_s()));
            news = true;
        }
        {
            let mut state = self.state();
            let listed: Vec<_> = state.listed.iter().map(|l| l.identity).collect();
            state.rtts.retain(|key, _| listed.is_empty() || listed.contains(key));
        }
        if news || all {
            self.measured.send_modify(|n| *n += 1);
        }
    }

    async fn measure_one(&self, relay: &RelayStatus) -> Option<Duration> {
        for address in &relay.addresses {
            let Ok((host, port)) = parse_host_port(address, 443) else { continue };
            if self.dialer.uses_proxy(&host, port) {
                continue;
            }
            let mut best: Option<Duration> = None;
            for _ in 0..SAMPLES {
                let began = Instant::now();
                let admits = |address| self.admits(address);
                let dial = self.dialer.dial_where(&host, port, CONNECT, &admits);
                let Ok(dialed) = dial.await else { break };
                drop(dialed);
                let took = began.elapsed();
                best = Some(best.map_or(took, |b| b.min(took)));
            }
            if best.is_some() {
                return best;
            }
        }
        None
    }
}

/// Which own address the system uses towards the internet; asking sends nothing.
fn network() -> Network {
    // Documentation addresses (RFC 5737, RFC 3849): only the routing table is asked.
    let there: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    there.into_iter().find_map(|(any, there)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((there, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

// ---------------------------------------------------------------- file

fn read_bounded(file: &PathBuf) -> Option<String> {
    let len = std::fs::metadata(file).ok()?.len();
    (len <= MAX_FILE).then(|| std::fs::read_to_string(file).ok()).flatten()
}

fn save(file: &Path, text: &str) -> std::io::Result<()> {
    // Replaced as a whole: another console may read it at this moment.
    replace(file, text.as_bytes(), false)
}

fn write_state(state: &State) -> String {
    let shown = |n: &Network| n.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
    let mut text = format!("{FILE_HEADER}\nnetwork {}\n", shown(&state.network));
    if let Some(mediator) = state.mediator {
        text.push_str(&format!("mediator {mediator}\n"));
    }
    text.push_str(&format!("of {}\n", state.of));
    for (key, address) in nearest(state) {
        text.push_str(&format!("relay {} {address}\n", hex(&key)));
    }
    for (network, way) in &state.ways {
        text.push_str(&format!("way {} {}\n", shown(network), way.as_str()));
    }
    for (key, (rtt, at)) in &state.rtts {
        let key = hex(key);
        text.push_str(&format!("rtt {key} {} {at}\n", rtt.as_micros()));
    }
    text
}

fn hex(key: &RelayKey) -> String {
    key.iter().map(|b| format!("{b:02x}")).collect()
}

/// The relays to be remembered: those that the mediator named, else those of before.
fn nearest(state: &State) -> Vec<(RelayKey, String)> {
    if state.listed.is_empty() {
        return state.remembered.clone();
    }
    let rtt = |key: &RelayKey| state.rtts.get(key).map_or(Duration::MAX, |(rtt, _)| *rtt);
    let listed = state.listed.iter().filter(|relay| fits(&relay.name));
    let mut all: Vec<_> =
        listed.map(|relay| (rtt(&relay.identity), relay.identity, relay.name.clone())).collect();
    all.sort_unstable();
    all.into_iter().take(MAX_REMEMBERED).map(|(_, key, name)| (key, name)).collect()
}

/// Whether an address can stand in a line, and comes back from it as it was.
fn fits(address: &str) -> bool {
    (1..=MAX_ADDRESS).contains(&address.len()) && !address.contains(char::is_whitespace)
}

/// Whatever cannot be read is left out: it is a cache.
fn read_state(text: &str, state: &mut State, now_s: u64) {
    let mut lines = text.lines();
    if lines.next() != Some(FILE_HEADER) {
        return;
    }
    let (mut same, mut same_mediator) = (false, false);
    for line in lines {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("network"), Some(network), None, None) => {
                same = network.parse().ok() == state.network;
            }
            // Where it was reached on this network: relays are admitted by the same rule as then.
            (Some("mediator"), Some(mediator), None, None) if same => {
                state.mediator = mediator.parse().ok();
            }
            (Some("of"), Some(of), None, None) => same_mediator = of == state.of,
            (Some("relay"), Some(key), Some(address), None)
                if same_mediator && state.remembered.len() < MAX_REMEMBERED && fits(address) =>
            {
                if let Some(key) = unhex(key) {
                    state.remembered.push((key, address.to_owned()));
                }
            }
            (Some("way"), Some(network), Some(way), None) if state.ways.len() < MAX_NETWORKS => {
                let way = if way == "tls" { Way::Tls } else { Way::Raw };
                state.ways.push_back((network.parse().ok(), way));
            }
            (Some("rtt"), Some(key), Some(us), Some(at)) if same => {
                let (Some(key), Ok(us), Ok(at)) = (unhex(key), us.parse(), at.parse::<u64>())
                else {
                    continue;
                };
                if now_s.saturating_sub(at) < MAX_AGE_S && state.rtts.len() < MAX_MEASURED {
                    state.rtts.insert(key, (Duration::from_micros(us), at.min(now_s)));
                }
            }
            _ => {}
        }
    }
}

fn unhex(text: &str) -> Option<RelayKey> {
    let mut key = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn what_was_learnt_is_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("relays");
        // As earlier versions wrote it.
        std::fs::write(&file, "old").unwrap();
        save(&file, "new").unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_file_gives_back_what_was_learnt_on_this_network_only() {
        let here = Some("192.0.2.7".parse().unwrap());
        let of = || "m.example:443".to_owned();
        let mut state = State { network: here, of: of(), ..State::default() };
        let relay = |n: u8| RelayStatus {
            name: format!("r{n}.example:443"),
            region: String::new(),
            identity: [n; 32],
            rtt: None,
            addresses: Vec::new(),
        };
        state.listed = vec![relay(6), relay(7)];
        state.mediator = Some("10.0.0.1:443".parse().unwrap());
        state.rtts.insert([7; 32], (Duration::from_micros(12_345), 1000));
        state.ways.push_back((here, Way::Tls));
        state.ways.push_back((None, Way::Raw));
        let text = write_state(&state);

        let mut same = State { network: here, of: of(), ..State::default() };
        read_state(&text, &mut same, 2000);
        assert_eq!((&same.rtts, &same.ways), (&state.rtts, &state.ways));
        assert_eq!((same.mediator, same.remembered.len()), (state.mediator, 2));
        assert_eq!(same.remembered[0], ([7; 32], "r7.example:443".into()), "the nearest first");
        assert_eq!(write_state(&same), text);
        let mut other = State { of: "other:443".into(), ..State::default() };
        read_state(&text, &mut other, 2000);
        assert!(other.rtts.is_empty() && other.ways.len() == 2);
        assert!(other.remembered.is_empty() && other.mediator.is_none());
        let mut late = State { network: here, ..State::default() };
        read_state(&text, &mut late, 2000 + MAX_AGE_S);
        assert!(late.rtts.is_empty());
        for bad in ["", "adit-relays 2\nrtt x", "adit-relays 1\nnetwork 192.0.2.7\nrtt é 1 1\nway"]
        {
            let mut state = State { network: here, ..State::default() };
            read_state(bad, &mut state, 2000);
            assert!(state.rtts.is_empty() && state.ways.is_empty());
        }
    }
}
