//! The machine's own addresses, when they change, and which addresses must never be probed.
//!
//! Addresses are hints for candidates. They must never serve as proof of where somebody is.

#[cfg(target_os = "linux")]
mod news;
mod probe;
mod wake;

use std::{
    cmp::Reverse,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use n0_watcher::Watcher as _;
use netwatch::{
    interfaces::{self, HomeRouter, Interface, State},
    netmon::Monitor,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use wake::SleepWatch;

pub use probe::{forbidden_probe_target, innermost, is_private, may_connect};

/// Addresses reported; a host with hundreds of containers has more than anyone wants to probe.
pub const MAX_ADDRESSES: usize = 64;
/// Changes waiting to be read. More would say the same: look again.
const CHANGES: usize = 4;
/// News come in bursts: an address goes, another comes, then its routes.
const SETTLE: Duration = Duration::from_millis(40);

/// An address of an interface that is up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceAddr {
    /// The address.
    pub ip: IpAddr,
    /// The address with the length of its subnet's prefix.
    pub net: IpNet,
    /// The interface.
    pub name: String,
    /// Probably of no use to a peer: containers, virtual machines, tunnels, link-local, or
    /// about to expire. To be tried last.
    pub junk: bool,
    /// Of the machine alone.
    pub loopback: bool,
}

/// Something about the interfaces changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The addresses now, as from [`local_addresses`].
    pub addresses: Vec<InterfaceAddr>,
    /// Addresses, default route or interfaces that matter changed; otherwise details did.
    pub major: bool,
    /// The machine slept: every connection is suspect even if nothing else changed.
    pub resumed: bool,
}

/// Change events are not to be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch network interfaces: {0}")]
pub struct WatchError(String);

/// The addresses of all interfaces that are up: the useful first, junk after, loopback last.
pub async fn local_addresses() -> Vec<InterfaceAddr> {
    ranked(&State::new().await)
}

/// The subnets of the machine, for [`forbidden_probe_target`].
pub fn own_subnets(addresses: &[InterfaceAddr]) -> Vec<IpNet> {
    addresses.iter().filter(|a| !a.loopback).map(|a| a.net.trunc()).collect()
}

/// Reports changes until `cancel`. A reader that lags misses only what a later change repeats.
pub async fn watch(
    tasks: &TaskTracker,
    cancel: CancellationToken,
) -> Result<mpsc::Receiver<Change>, WatchError> {
    let monitor = Monitor::new().await.map_err(|e| WatchError(e.to_string()))?;
    let (changes, receiver) = mpsc::channel(CHANGES);
    tasks.spawn(async move {
        let reporting = report(&monitor, &changes);
        cancel.run_until_cancelled(reporting).await;
    });
    Ok(receiver)
}

async fn report(monitor: &Monitor, changes: &mpsc::Sender<Change>) {
    let mut states = monitor.interface_state();
    let mut old = Seen::of(&states.get()).await;
    let mut news = News::open();
    let mut sleep = SleepWatch::new(Instant::now(), SystemTime::now());
    let mut tick = tokio::time::interval(wake::TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut resumed = false;
        tokio::select! {
            updated = states.updated() => if updated.is_err() { return },
            () = news.next() => tokio::time::sleep(SETTLE).await,
            _ = tick.tick() => {
                resumed = sleep.tick(Instant::now(), SystemTime::now());
                if !resumed {
                    continue;
                }
            }
        }
        let new = Seen::of(&State::new().await).await;
        let major = new.differs_much(&old);
        if !resumed && new == old {
            continue;
        }
        debug!(major, resumed, "network interfaces changed");
        let change = Change { addresses: new.addresses.clone(), major, resumed };
        old = new;
        // Waiting, not dropping: what changes meanwhile is seen at the next look.
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

/// What a change is told by.
#[derive(PartialEq, Eq)]
struct Seen {
    addresses: Vec<InterfaceAddr>,
    default_route: Option<String>,
    gateway: Option<IpAddr>,
}

impl Seen {
    async fn of(state: &State) -> Self {
        // Asks the system synchronously; without an answer the rest still counts.
        let gateway = tokio::task::spawn_blocking(|| HomeRouter::new().map(|r| r.gateway)).await;
        Self {
            addresses: ranked(state),
            default_route: state.default_route_interface.clone(),
            gateway: gateway.ok().flatten(),
        }
    }

    /// Containers that come and go are no reason to try all paths again.
    fn differs_much(&self, old: &Self) -> bool {
        let that_matter = |seen: &Self| {
            let addresses = seen.addresses.iter().filter(|a| !a.junk && !a.loopback);
            addresses.map(|a| (a.ip, a.name.clone())).collect::<Vec<_>>()
        };
        self.gateway != old.gateway
            || self.default_route != old.default_route
            || that_matter(self) != that_matter(old)
    }
}

/// Where the system has no news that we can read, the library's watcher does alone.
struct News {
    #[cfg(target_os = "linux")]
    source: Option<news::News>,
}

impl News {
    fn open() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            source: news::News::open().inspect_err(|error| debug!(%error, "no news of links")).ok(),
        }
    }

    async fn next(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some(source) = &mut self.source {
            return source.next().await;
        }
        std::future::pending().await
    }
}

fn ranked(state: &State) -> Vec<InterfaceAddr> {
    let mut found: Vec<InterfaceAddr> =
        state.interfaces.values().filter(|i| i.is_up()).flat_map(addresses_of).collect();
    let preferred = state.default_route_interface.as_deref();
    found.sort_by_cached_key(|a| {
        let default_route = preferred == Some(a.name.as_str());
        (a.loopback, a.junk, Reverse(default_route), Reverse(a.ip.is_ipv6()), a.name.clone(), a.ip)
    });
    found.dedup_by_key(|a| a.ip);
    found.truncate(MAX_ADDRESSES);
    found
}

fn addresses_of(interface: &Interface) -> impl Iterator<Item = InterfaceAddr> + '_ {
    let junk_name = is_junk_name(interface.name());
    interface.addrs().filter_map(move |net| {
        let (net, stale) = match net {
            interfaces::IpNet::V4(net) => {
                (IpNet::V4(Ipv4Net::new(net.addr(), net.prefix_len()).ok()?), false)
            }
            interfaces::IpNet::V6 { net, flags, .. } => {
                if flags.tentative || flags.duplicated {
                    return None;
                }
                (IpNet::V6(Ipv6Net::new(net.addr(), net.prefix_len()).ok()?), flags.deprecated)
            }
        };
        let ip = net.addr();
        if ip.is_unspecified() || ip.is_multicast() {
            return None;
        }
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        Some(InterfaceAddr {
            ip,
            net,
            name: interface.name().to_owned(),
            junk: junk_name || link_local || stale,
            loopback: ip.is_loopback(),
        })
    })
}

/// Names that container engines, hypervisors and tunnels give, by how they begin.
const JUNK_NAMES: &[&str] = &[
    "docker",
    "br-",
    "veth",
    "virbr",
    "vmnet",
    "vboxnet",
    "lxc",
    "lxd",
    "incus",
    "cni",
    "flannel",
    "cali",
    "cilium",
    "podman",
    "kube",
    "ovs",
    "tun",
    "tap",
    "wg",
    "utun",
    "zt",
    "ppp",
    "tailscale",
    "dummy",
    "nebula",
    "netbird",
    "nordlynx",
    "gre",
    "sit",
    "ip6tnl",
    "tunl",
    "vti",
    "erspan",
    "vxlan",
    "geneve",
    "azv",
    "weave",
    "nerdctl",
    "waydroid",
    "p2p-",
    "ifb",
    "awdl",
    "llw",
    "anpi",
    "gif",
    "stf",
    "bridge",
    "vethernet",
    "hyper-v",
    "vmware",
    "virtualbox",
    "vnet",
    "macvtap",
    "ipvl",
    "local area connection*",
    "openvpn",
    "wireguard",
    "zerotier",
    "npcap",
    "bluetooth",
];

fn is_junk_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    JUNK_NAMES.iter().any(|junk| name.starts_with(junk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_container_and_tunnel_interfaces_by_name() {
        for junk in ["docker0", "br-3f2a", "veth12ab", "virbr0", "tun0", "utun4", "vEthernet (WSL)"]
        {
            assert!(is_junk_name(junk), "{junk}");
        }
        for good in ["eth0", "enp3s0", "wlan0", "en0", "br0", "bond0", "Ethernet 2", "Wi-Fi"] {
            assert!(!is_junk_name(good), "{good}");
        }
    }

    #[tokio::test]
    async fn finds_loopback_and_ranks_it_last() {
        let found = local_addresses().await;
        let first_loopback = found.iter().position(|a| a.loopback).expect("a loopback address");
        assert!(found[first_loopback..].iter().all(|a| a.loopback));
        let usable = &found[..first_loopback];
        assert!(usable.is_sorted_by_key(|a| a.junk));
        assert!(own_subnets(&found).iter().all(|net| !net.addr().is_loopback()));
    }

    #[tokio::test]
    async fn watching_ends_when_told() {
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let mut changes = watch(&tasks, cancel.clone()).await.unwrap();
        cancel.cancel();
        tasks.close();
        tasks.wait().await;
        while changes.recv().await.is_some() {}
    }
}
