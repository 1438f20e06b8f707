//! What the network between this machine and the installation allows, for `netcheck`.
//!
//! All questions are asked at the same time, from sockets of their own, and within
//! [`NETCHECK_TIME`]; what has no answer by then is reported as not known, with the reason.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use adit_net::{
    interfaces::{self, InterfaceAddr, is_private, may_connect},
    portmap::{MapProtocol, probe_gateway},
    proxy::{Dialer, parse_host_port},
    stun::{
        self, FilteringBehaviour, MAX_STUN, MappingBehaviour, StunClient,
        explore::{filtering, hairpin},
    },
    udp::normalise,
};
use adit_protocol::{keys::random, wire};
use futures_util::future::join_all;
use tokio::{
    net::UdpSocket,
    time::{sleep_until, timeout},
};

/// How long all of it takes at most.
pub const NETCHECK_TIME: Duration = Duration::from_secs(3);
/// Time for STUN servers: less than the client would wait for the last repetition.
const STUN_TIME: Duration = Duration::from_millis(1_500);
/// Time for one part of it all.
const PART_TIME: Duration = Duration::from_millis(2_800);
/// Time for the mediator's name to resolve.
const RESOLVE: Duration = Duration::from_millis(800);
/// Relays that are measured.
const MAX_RELAYS: usize = 32;
/// Connections to a relay, the quickest counts.
const CONNECTS: usize = 2;

/// Whom to ask.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// The mediator's address, if it was reached without a proxy.
    pub remote: Option<SocketAddr>,
    /// Its host, with or without a port.
    pub host: String,
    /// UDP ports on which it answers STUN.
    pub stun_ports: Vec<u16>,
    /// Further STUN servers.
    pub stun_addrs: Vec<SocketAddr>,
    /// Relays of the mediator's welcome; `None`: it could not be asked.
    pub relays: Option<Vec<wire::RelayInfo>>,
}

/// What was found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Netcheck {
    /// STUN servers answer over UDP.
    pub udp: bool,
    /// But only those on port 443 do: packets to peers, whose ports are others, are dropped.
    pub only_443: bool,
    /// The internet can be reached over IPv6.
    pub ipv6: bool,
    /// RFC 4787 §4.1: `endpoint-independent`, `address-dependent`,
    /// `address-and-port-dependent`, `unknown`.
    pub mapping: &'static str,
    /// RFC 4787 §5, in the same words.
    pub filtering: &'static str,
    /// RFC 4787 §6. `None`: not known, or there is no NAT.
    pub hairpin: Option<bool>,
    /// Addresses are translated on the way; `None`: not known.
    pub behind_nat: Option<bool>,
    /// How servers see this machine.
    pub public: Vec<SocketAddr>,
    /// Protocols by which the gateway maps ports: `pcp`, `nat-pmp`, `upnp`.
    pub port_mapping: Vec<&'static str>,
    /// In the order in which the mediator named them.
    pub relays: Vec<RelayCheck>,
    /// What could not be found out and why, in plain words.
    pub notes: Vec<String>,
}

/// A relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayCheck {
    /// Its first address.
    pub name: String,
    /// Its region, if it has one.
    pub region: String,
    /// Time of a TCP handshake with it; `None`: it cannot be reached.
    pub rtt: Option<Duration>,
    /// Why not.
    pub problem: Option<String>,
}

/// Checks the network. `dialer` is the program's, for relays are reached through its proxy, if
/// there is one.
pub async fn netcheck(around: &Around, dialer: &Dialer) -> Netcheck {
    let own = interfaces::local_addresses().await;
    let servers = servers(around, &own).await;
    let first = |v4: bool| servers.iter().copied().find(|s| s.is_ipv4() == v4);
    let main = first(true).or_else(|| first(false));
    let all = async {
        tokio::join!(
            mapping(&servers, true),
            mapping(&servers, false),
            of(main, async |server| filtering(server, id).await),
            of(main, async |server| hairpin(server, id).await),
            gateway(around, &own, dialer),
            measure(around, &own, dialer),
        )
    };
    // Each part has its own, shorter time; this is for the sum of surprises.
    let Ok((v4, v6, filters, turns, port_mapping, relays)) = timeout(NETCHECK_TIME, all).await
    else {
        let notes = vec!["the machine is too busy to check its network".to_owned()];
        return Netcheck { mapping: "unknown", filtering: "unknown", notes, ..Netcheck::default() };
    };
    let public: Vec<_> = v4.0.iter().chain(&v6.0).copied().collect();
    let is_own = |seen: &SocketAddr| own.iter().any(|address| address.ip == seen.ip());
    let behind_nat = public.iter().find(|seen| seen.is_ipv4()).or(public.first());
    let behind_nat = behind_nat.map(|seen| !is_own(seen));
    let judged = match if v4.0.is_empty() { v6.1 } else { v4.1 } {
        // Nothing is mapped where nothing is translated; one server is enough to see that.
        MappingBehaviour::Unknown if behind_nat == Some(false) => {
            MappingBehaviour::EndpointIndependent
        }
        judged => judged,
    };
    let answered: BTreeSet<u16> = v4.2.iter().chain(&v6.2).map(SocketAddr::port).collect();
    let mut check = Netcheck {
        udp: !answered.is_empty(),
        only_443: answered.iter().eq([&443]) && servers.iter().any(|s| s.port() != 443),
        ipv6: !v6.0.is_empty() || first(false).is_none() && own.iter().any(is_global_v6),
        mapping: judged.as_str(),
        filtering: filters.unwrap_or(FilteringBehaviour::Unknown).as_str(),
        hairpin: turns.flatten(),
        behind_nat,
        public,
        port_mapping: port_mapping.iter().copied().map(MapProtocol::as_str).collect(),
        relays,
        notes: Vec::new(),
    };
    check.notes = notes(&check, around, &servers, dialer);
    check
}

/// What a technician should know beyond the values.
fn notes(
    check: &Netcheck,
    around: &Around,
    servers: &[SocketAddr],
    dialer: &Dialer,
) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |text: &str| notes.push(text.to_owned());
    if servers.is_empty() {
        note("no STUN server is known that may be asked: NAT and UDP are not known");
    } else if check.udp
        && !check.only_443
        && check.filtering == FilteringBehaviour::Unknown.as_str()
    {
        note("filtering is not known: the mediator has only one address for such tests");
    }
    if !servers.is_empty() && !servers.iter().any(SocketAddr::is_ipv6) {
        note("the mediator has no IPv6 address: IPv6 is judged by this machine's own addresses");
    }
    if dialer.has_proxy() {
        note("TCP goes through a proxy: UPnP was not tried, relay times include the proxy");
    }
    match &around.relays {
        None => note("relays are not known: the mediator could not be asked"),
        Some(known) if known.is_empty() => {
            note("no relay is registered: without a direct path there is none at all");
        }
        Some(_) if check.relays.iter().all(|relay| relay.rtt.is_none()) => {
            note("no relay can be reached: without a direct path there is none at all");
        }
        Some(_) => {}
    }
    notes
}

fn id() -> Option<[u8; 12]> {
    random().ok()
}

async fn servers(link: &Around, own: &[InterfaceAddr]) -> Vec<SocketAddr> {
    let mut ips: BTreeSet<IpAddr> =
        link.remote.map(|r| r.ip().to_canonical()).into_iter().collect();
    if let Ok((host, port)) = parse_host_port(&link.host, 443)
        && let Ok(Ok(found)) =
            timeout(RESOLVE, tokio::net::lookup_host((host.as_str(), port))).await
    {
        ips.extend(found.take(8).map(|a| a.ip().to_canonical()));
    }
    let subnets = interfaces::own_subnets(own);
    let mut servers: Vec<_> = ips
        .iter()
        .flat_map(|ip| link.stun_ports.iter().map(|port| SocketAddr::new(*ip, *port)))
        .collect();
    let named = link.stun_addrs.iter().copied().map(normalise);
    for server in named.filter(|addr| may_connect(*addr, link.remote, &subnets)) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

async fn of<T>(
    server: Option<SocketAddr>,
    question: impl AsyncFnOnce(SocketAddr) -> T,
) -> Option<T> {
    timeout(PART_TIME, question(server?)).await.ok()
}

/// How servers of one family see a fresh socket, what that tells of the NAT, and who answered.
async fn mapping(
    servers: &[SocketAddr],
    v4: bool,
) -> (Vec<SocketAddr>, MappingBehaviour, Vec<SocketAddr>) {
    let servers: Vec<_> = servers.iter().copied().filter(|s| s.is_ipv4() == v4).collect();
    let any = if v4 { "0.0.0.0:0" } else { "[::]:0" };
    let nothing = (Vec::new(), MappingBehaviour::Unknown, Vec::new());
    // Without randomness answers could be forged.
    if servers.is_empty() || id().is_none() {
        return nothing;
    }
    let Ok(socket) = UdpSocket::bind(any).await else { return nothing };
    let mut client = StunClient::new(&servers, || id().unwrap_or_default(), Instant::now());
    let asking = async {
        let mut buffer = [0; MAX_STUN];
        loop {
            while let Some((to, packet)) = client.poll_transmit() {
                // What is not sent is lost: it is repeated.
                let _ = socket.send_to(&packet, to).await;
            }
            let Some(due) = client.poll_timeout() else { return };
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    let Ok((len, from)) = received else { continue };
                    if let Some(packet) = buffer.get(..len).and_then(stun::parse) {
                        client.handle_packet(normalise(from), &packet, Instant::now());
                    }
                }
                () = sleep_until(due.into()) => client.handle_timeout(Instant::now()),
            }
        }
    };
    // Whoever has not answered by then is not waited for.
    let _ = timeout(STUN_TIME, asking).await;
    let answered = client.answers().map(|(server, _)| server).collect();
    (client.mapped(), client.mapping_behaviour(), answered)
}

async fn gateway(link: &Around, own: &[InterfaceAddr], dialer: &Dialer) -> Vec<MapProtocol> {
    let loopback = link.remote.is_some_and(|r| r.ip().to_canonical().is_loopback());
    let has_v4 = own.iter().any(|a| a.ip.is_ipv4() && !a.loopback);
    if loopback || !has_v4 {
        return Vec::new(); // there is nothing to be mapped towards the mediator
    }
    timeout(PART_TIME, probe_gateway(!dialer.has_proxy())).await.unwrap_or_default()
}

async fn measure(link: &Around, own: &[InterfaceAddr], dialer: &Dialer) -> Vec<RelayCheck> {
    let subnets = interfaces::own_subnets(own);
    let admits = |addr: SocketAddr| may_connect(addr, link.remote, &subnets);
    let checks = link.relays.iter().flatten().take(MAX_RELAYS).map(async |relay| {
        let name = relay.addresses.first().cloned().unwrap_or_default();
        let region = relay.region.clone();
        let (mut rtt, mut problem) = (None, None);
        let connects = async {
            for _ in 0..CONNECTS {
                match connect(relay, dialer, &admits).await {
                    Ok(took) => rtt = Some(rtt.map_or(took, |before: Duration| before.min(took))),
                    Err(why) => return problem = Some(why),
                }
            }
        };
        let in_time = timeout(PART_TIME, connects).await.is_ok();
        if !in_time && rtt.is_none() {
            problem = Some("did not answer in time".to_owned());
        }
        RelayCheck { name, region, rtt, problem: problem.filter(|_| rtt.is_none()) }
    });
    join_all(checks).await
}

async fn connect(
    relay: &wire::RelayInfo,
    dialer: &Dialer,
    admits: &(dyn Fn(SocketAddr) -> bool + Send + Sync),
) -> Result<Duration, String> {
    let mut problem = "it has no address".to_owned();
    for address in relay.addresses.iter().take(4) {
        let (host, port) = parse_host_port(address, 443).map_err(|error| error.to_string())?;
        let began = Instant::now();
        match dialer.dial_where(&host, port, PART_TIME, admits).await {
            Ok(_) => return Ok(began.elapsed()),
            Err(error) => problem = error.to_string(),
        }
    }
    Err(problem)
}

fn is_global_v6(addr: &InterfaceAddr) -> bool {
    addr.ip.is_ipv6() && !addr.junk && !addr.loopback && !is_private(addr.ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_could_not_be_found_out() {
        let nothing = Netcheck { mapping: "unknown", filtering: "unknown", ..Netcheck::default() };
        let server = ["203.0.113.10:3478".parse().unwrap()];
        let none = Around { relays: Some(Vec::new()), ..Around::default() };
        let words = notes(&nothing, &none, &server, &Dialer::direct()).join("\n");
        assert!(words.contains("no relay is registered") && !words.contains("filtering"));
        let udp = Netcheck { udp: true, ..nothing };
        let words = notes(&udp, &Around::default(), &[], &Dialer::direct()).join("\n");
        assert!(words.contains("no STUN server") && words.contains("could not be asked"));
        let words = notes(&udp, &none, &server, &Dialer::direct()).join("\n");
        assert!(words.contains("filtering is not known"));
    }
}
