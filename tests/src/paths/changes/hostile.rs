//! Strangers: what an agent's UDP port says to them, and what they can do to a session.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use adit_core::punch::{
    BIRTHDAY_PROBES, BIRTHDAY_TOTAL_PROBES, HARD_ROUND_GAPS, UNVERIFIED_BURST, UNVERIFIED_INTERVAL,
};
use anyhow::{Context as _, Result, ensure};
use rustix::net::{self, AddressFamily, SendFlags, SocketType};

use super::{STALL, Scene, Seen, scene};
use crate::{
    capture,
    paths::world::{Felt, Place, RATE, World},
    process::{pause, text},
};

/// Time for a direct carrier.
const SOON: Duration = Duration::from_secs(5);
/// How long strangers listen for an answer.
const LISTEN: Duration = Duration::from_millis(1500);
/// Where STUN answers are made to point: the second mediator's host, which is the attacker's.
const ATTACKER: &str = "203.0.113.20";
/// In whose name packets are sent: the second relay's host.
const VICTIM: &str = "203.0.113.40:5555";
/// What one check that never arrived can draw later, from whatever address: an answer and one round
/// of checks. The first packet of a pair is such a one, since it is made to die on its way.
const HELD_BACK: usize = 7;
/// Packets that an address may get before it answered anything.
const MOST_PACKETS: u64 = 60;

pub(super) fn scenes() -> Vec<Scene> {
    vec![
        scene("scan", "a stranger sends STUN, QUIC and noise to the agent's port", |p| {
            stranger(p, false)
        }),
        scene("replay", "a stranger sends the console's own packets from another address", |p| {
            stranger(p, true)
        }),
        scene("spoof", "a stranger sends the console's packets in a third party's name", reflected),
        scene("worst-case", "a port is guessed that cannot be hit, for 40 s", |p| flood(p, 40)),
        Scene {
            long: true,
            ..scene("worst-case-10m", "a port is guessed that cannot be hit, for 10 minutes", |p| {
                flood(p, 600)
            })
        },
        scene("stun-lies", "somebody on the path rewrites the console's STUN answers", stun_lies),
    ]
}

/// A UDP packet of a capture.
struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    payload: Vec<u8>,
}

fn stranger(place: &Place<'_>, replay: bool) -> Result<Seen> {
    let mut world = World::prepare(place, "open+open", true)?;
    world.run_servers()?;
    let direct = world.open_until("direct", SOON)?;
    let target: SocketAddr = text(&direct, "remote").parse().context("remote")?;
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    let packets = if replay { console_packets(&world, target)? } else { noise() };
    ensure!(!packets.is_empty(), "no packets to send");
    let sent = packets.len();
    let answers = world.lab()?.within("med2", || send_all(target, &packets))?;
    pause(Duration::from_secs(2));
    ensure!(world.active()? == "direct", "the session left its path");
    let events = world.console()?.events();
    let remotes: BTreeSet<_> = events.iter().map(|e| text(e, "remote").to_owned()).collect();
    ensure!(!remotes.iter().any(|r| r.starts_with(ATTACKER)), "the session went to the attacker");
    let flowed = flow.finish()?;
    world.close()?;
    let mut seen = Seen::note(format!("{sent} packets, {} answers", answers.len()));
    seen.stall = Some(flowed.stall_since(Instant::now() - Duration::from_secs(60)));
    // A copy of a check that arrived draws nothing; of the one that did not, no more than this.
    let allowed = if replay { HELD_BACK } else { 0 };
    if answers.len() > allowed {
        seen.problems.push(format!("{} answers to a stranger, allowed {allowed}", answers.len()));
    }
    Ok(seen)
}

fn send_all(target: SocketAddr, packets: &[Vec<u8>]) -> Result<Vec<usize>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    for packet in packets {
        socket.send_to(packet, target)?;
        pause(Duration::from_millis(2));
    }
    let (mut answers, mut buffer) = (Vec::new(), [0; 2048]);
    let deadline = Instant::now() + LISTEN;
    while Instant::now() < deadline {
        if let Ok((n, _)) = socket.recv_from(&mut buffer) {
            answers.push(n);
        }
    }
    Ok(answers)
}

/// What scanners send: STUN requests of all sorts, QUIC that wants a version negotiation, a retry
/// or a stateless reset, and noise.
fn noise() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let stun = |kind: [u8; 2], attributes: &[u8]| {
        let length = u16::try_from(attributes.len()).unwrap_or_default().to_be_bytes();
        let cookie = [0x21, 0x12, 0xa4, 0x42];
        [&kind[..], &length, &cookie, b"transaction1", attributes].concat()
    };
    packets.push(stun([0, 1], &[]));
    packets.push(stun([0, 1], &[0x00, 0x03, 0, 4, 0, 0, 0, 6]));
    packets.push(stun([0, 1], &[&[0x00, 0x26, 0, 200][..], &[0; 200]].concat()));
    packets.push(stun([0, 1], b"\x00\x06\x00\x20aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));
    packets.push(stun([1, 1], &[]));
    packets.push(stun([0, 0x11], &[]));
    for version in [[0, 0, 0, 1], [0x1a, 0x2a, 0x3a, 0x4a], [0, 0, 0, 0], [0x6b, 0x33, 0x43, 0xcf]]
    {
        // Initial, long header, 8-byte connection ids, padded to 1,200 bytes.
        let mut initial = vec![0xc3];
        initial.extend(version);
        initial.extend([8, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 9, 9, 9, 9, 9, 9, 0, 0x44, 0x80]);
        initial.resize(1200, 0x55);
        packets.push(initial);
    }
    for length in [1, 20, 21, 43, 100, 600, 1200, 1400] {
        // Short headers, the first byte in all colours.
        for first in [0x40, 0x5c, 0x7f, 0x00, 0x80, 0xff, 0x16] {
            let mut packet = vec![0; length];
            crate::peer::fill(&mut packet, length as u64 + first, 0);
            if let (Some(byte), Ok(first)) = (packet.first_mut(), u8::try_from(first)) {
                *byte = first;
            }
            packets.push(packet);
        }
    }
    packets
}

/// Everything that the console sent to the agent's port so far, and once more with a bit changed.
fn console_packets(world: &World, target: SocketAddr) -> Result<Vec<Vec<u8>>> {
    let pcap = capture::read(&world.site.artifacts().join("internet.pcap"))?;
    let mut packets = Vec::new();
    let wanted =
        datagrams(&pcap).into_iter().filter(|d| d.to == target && d.from.ip() != target.ip());
    for datagram in wanted.take(300) {
        let mut forged = datagram.payload.clone();
        if let Some(byte) = forged.get_mut(datagram.payload.len() / 2) {
            *byte ^= 1;
        }
        packets.extend([datagram.payload, forged]);
    }
    Ok(packets)
}

/// Whoever is named as a check's source gets no flood of answers by it.
fn reflected(place: &Place<'_>) -> Result<Seen> {
    let mut world = World::prepare(place, "open+open", true)?;
    world.run_servers()?;
    let direct = world.open_until("direct", SOON)?;
    let agent: SocketAddrV4 = text(&direct, "remote").parse().context("remote")?;
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    let since = Instant::now();
    let packets = [console_packets(&world, agent.into())?, noise()].concat();
    let victim: SocketAddrV4 = VICTIM.parse()?;
    world.lab()?.within("med2", || {
        let raw = net::socket(AddressFamily::INET, SocketType::RAW, Some(net::ipproto::RAW))?;
        for packet in &packets {
            let spoofed = datagram(victim, agent, packet)?;
            net::sendto(&raw, &spoofed, SendFlags::empty(), &agent)?;
            pause(Duration::from_millis(2));
        }
        Ok(())
    })?;
    pause(LISTEN);
    let mut seen = Seen::felt(
        &Felt { stall: flow.finish()?.stall_since(since), direct: None, bytes: 0 },
        STALL,
        None,
    );
    ensure!(world.active()? == "direct", "the session left its path");
    let pcap = capture::read(&world.site.artifacts().join("internet.pcap"))?;
    let all = datagrams(&pcap);
    let arrived = all.iter().filter(|d| d.from == victim.into() && d.to == agent.into()).count();
    ensure!(arrived >= packets.len(), "{arrived} of {} spoofed packets arrived", packets.len());
    let to_victim = all.iter().filter(|d| d.to.ip() == *victim.ip() && d.from.ip() == *agent.ip());
    let answers = to_victim.count();
    seen.note = format!("{arrived} packets, {answers} answers to the third party");
    if answers > HELD_BACK {
        seen.problems.push(format!("{answers} answers, allowed {HELD_BACK}"));
    }
    world.close()?;
    Ok(seen)
}

/// A UDP packet over IPv4 as a raw socket takes it; the kernel completes the header.
fn datagram(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(payload.len() + 8)?;
    let mut packet = vec![0x45, 0];
    packet.extend((length + 20).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]); // no checksum
    packet.extend(payload);
    Ok(packet)
}

/// UDP over IPv4 in a capture of raw IP packets.
fn datagrams(pcap: &[u8]) -> Vec<Datagram> {
    let mut found = Vec::new();
    let mut rest = pcap.get(24..).unwrap_or_default();
    let number = |b: &[u8]| u32::from_ne_bytes(b.try_into().unwrap_or_default()) as usize;
    while let Some((head, after)) = rest.split_at_checked(16) {
        let Some((packet, after)) = after.split_at_checked(number(&head[8..12])) else { break };
        rest = after;
        if packet.first() != Some(&0x45) || packet.get(9) != Some(&17) || packet.len() < 28 {
            continue;
        }
        let address = |at: usize| {
            let ip: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            let port: [u8; 2] =
                packet.get(20 + (at - 12) / 2..22 + (at - 12) / 2)?.try_into().ok()?;
            Some(SocketAddr::from((ip, u16::from_be_bytes(port))))
        };
        if let (Some(from), Some(to)) = (address(12), address(16)) {
            found.push(Datagram { from, to, payload: packet[28..].to_vec() });
        }
    }
    found
}

/// The agent's network lets UDP pass with the mediators only, so that no probe is ever answered:
/// what both ends send each other nevertheless.
fn flood(place: &Place<'_>, seconds: u64) -> Result<Seen> {
    let scenario = "port-restricted+symmetric:allow=udp-to@203.0.113.0";
    let mut world = World::prepare(place, scenario, true)?;
    world.run_servers()?;
    let begin = Instant::now();
    world.open_until("relayed", Duration::from_secs(10))?;
    pause(Duration::from_secs(seconds));
    world.use_it()?;
    let console = text(&world.lab()?.info()["hosts"]["agent"], "kind").to_owned();
    let pcap = capture::read(&world.site.artifacts().join("internet.pcap"))?;
    let to_agent: Vec<_> =
        datagrams(&pcap).into_iter().filter(|d| d.to.ip().to_string() == "198.51.100.20").collect();
    let probes = to_agent.iter().filter(|d| d.from.ip().to_string() == "198.51.100.10").count();
    let bytes: usize = to_agent.iter().map(|d| d.payload.len() + 28).sum();
    let ports: BTreeSet<_> = to_agent.iter().map(|d| d.to.port()).collect();
    let mut seen = Seen::note(format!(
        "{probes} packets ({} kB) to {} ports of a {console} NAT",
        bytes / 1000,
        ports.len()
    ));
    let allowed = most_in_vain(begin.elapsed());
    let _ = write!(seen.note, "; the caps allow {allowed}");
    if probes as u64 > allowed {
        seen.problems.push(format!("{probes} packets in {seconds} s, allowed {allowed}"));
    }
    world.close()?;
    Ok(seen)
}

/// What the caps of the punching machine leave to the end that guesses, if no network changes:
/// rounds of guesses at growing gaps, and ordinary checks. That it keeps them, whatever happens, is
/// shown in the simulated world (`guessing_in_vain_never_exceeds_its_caps`).
fn most_in_vain(elapsed: Duration) -> u64 {
    let starts = HARD_ROUND_GAPS.iter().scan(Duration::ZERO, |at, gap| {
        *at += *gap;
        Some(*at)
    });
    let rounds = 1 + starts.filter(|at| *at <= elapsed).count();
    let guesses = (rounds * BIRTHDAY_PROBES) as u64;
    let checks = elapsed.as_millis() / UNVERIFIED_INTERVAL.as_millis() + 1;
    let checks = u64::from(UNVERIFIED_BURST) + u64::try_from(checks).unwrap_or(u64::MAX);
    guesses.min(BIRTHDAY_TOTAL_PROBES).saturating_add(checks)
}

fn stun_lies(place: &Place<'_>) -> Result<Seen> {
    let mut world = World::prepare(place, "port-restricted+port-restricted", true)?;
    world.ctl(&format!("set console-nat spoof={ATTACKER}:4444"))?;
    world.run_servers()?;
    world.open_until("relayed", Duration::from_secs(10))?;
    world.use_it()?;
    pause(Duration::from_secs(4));
    world.use_it()?;
    let events = world.console()?.events();
    let went = events.iter().any(|e| text(e, "remote").starts_with(ATTACKER));
    ensure!(!went, "the session went to the attacker");
    let pcap = capture::read(&world.site.artifacts().join("internet.pcap"))?;
    let at_attacker = |d: &&Datagram| d.to.ip().to_string() == ATTACKER;
    let got = datagrams(&pcap).iter().filter(at_attacker).count() as u64;
    let mut seen = Seen::note(format!("{}; {got} packets went to the attacker", world.active()?));
    if got > MOST_PACKETS {
        seen.problems.push(format!("{got} packets to an address that never answered"));
    }
    world.close()?;
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_captures() {
        let mut packet = vec![0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        packet.extend([0, 9, 0, 10, 0, 11, 0, 0, 7, 7, 7]);
        let mut pcap = vec![0; 24];
        for n in [0, 0, 31, 31_u32] {
            pcap.extend(n.to_ne_bytes());
        }
        pcap.extend(&packet);
        let found = datagrams(&pcap);
        let one = found.first().unwrap();
        assert_eq!(one.from, "1.2.3.4:9".parse().unwrap());
        assert_eq!(one.to, "5.6.7.8:10".parse().unwrap());
        assert_eq!(one.payload, [7, 7, 7]);
    }
}
