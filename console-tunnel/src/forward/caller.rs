//! Whose program connects to a local end.
//!
//! Every user of a computer can connect to its loopback ports, on a terminal server many. A local
//! end serves the programs of whoever runs this console (with `sudo`, of whoever called it), root's,
//! and, if it listens for others, other computers'. On Linux the kernel tells whose a socket is
//! (proc(5), `/proc/net/tcp`); elsewhere nothing does without further rights, and everybody is
//! served.
//!
//! Must never take what cannot be told for one's own: who sends and closes at once is in no table
//! any more. A source address tells nothing: whoever connects chooses among this computer's.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Mutex,
    time::{Duration, Instant},
};

/// The kernel's table is not read in one moment: what is missing is looked for again.
const LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(1);
/// Others can connect as often as they like, but not fill the log.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// Whose programs are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Users {
    /// Those of whoever runs this console.
    #[default]
    Own,
    /// Those of everybody on this computer.
    Any,
}

impl std::str::FromStr for Users {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "own" => Ok(Self::Own),
            "any" => Ok(Self::Any),
            _ => Err("own or any is expected"),
        }
    }
}

/// How a caller is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// Who is let in at a local end.
#[derive(Debug, Default)]
pub(super) struct Callers {
    users: Users,
    warned: Mutex<Option<Instant>>,
}

impl Callers {
    pub(super) fn of(users: Users) -> Self {
        Self { users, ..Self::default() }
    }

    /// Is whoever sends from `source` to our `local` served? Asked of the kernel, beside the
    /// caller's task. `local` may be unspecified: a datagram does not say where it was sent.
    pub(super) async fn serve(
        &self,
        transport: Transport,
        (source, local): (SocketAddr, SocketAddr),
    ) -> bool {
        if self.users == Users::Any {
            return true;
        }
        for look in 1..=LOOKS {
            let asked = tokio::task::spawn_blocking(move || os::is_own(transport, source, local));
            match asked.await {
                Ok(Some(true)) => return true,
                Ok(None) if look < LOOKS => tokio::time::sleep(PAUSE).await,
                // Nobody here sends from there: it is another computer, and this end is for them.
                Ok(None) if !local.ip().to_canonical().is_loopback() && !is_ours(source) => {
                    return true;
                }
                _ => break,
            }
        }
        self.warn(source);
        false
    }

    fn warn(&self, source: SocketAddr) {
        let Ok(mut warned) = self.warned.lock() else { return };
        if warned.is_none_or(|at| at.elapsed() >= WARN_AGAIN) {
            *warned = Some(Instant::now());
            tracing::warn!(%source,
                "a program is not served: it is another user's, or left at once (local.users)");
        }
    }
}

/// Only this computer's own addresses can be bound. In doubt it is one.
fn is_ours(source: SocketAddr) -> bool {
    let ip = source.ip().to_canonical();
    let bound = match (ip, source) {
        (IpAddr::V6(_), SocketAddr::V6(mut scoped)) => {
            scoped.set_port(0);
            UdpSocket::bind(scoped)
        }
        _ => UdpSocket::bind((ip, 0)),
    };
    ip.is_loopback()
        || bound.map_or_else(|error| error.kind() != std::io::ErrorKind::AddrNotAvailable, |_| true)
}

#[cfg(target_os = "linux")]
mod os {
    use std::{
        fs,
        net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    };

    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
    };

    use super::Transport;

    /// linux/sock_diag.h, linux/netlink.h, bits/socket.h, netinet/in.h.
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const IPPROTO_TCP: u8 = 6;
    /// Bytes of both structures.
    const REQUEST_LEN: usize = 16 + 56;

    /// A socket's owner. Of one that its program closed nobody is told.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Owner {
        pub(super) uid: u32,
        pub(super) closed: bool,
    }

    /// Whose programs are served beside root's: whose this program is, and if root runs it for
    /// somebody, that user's, as the browser of whoever said `sudo`.
    fn own() -> [Option<u32>; 2] {
        let own = rustix::process::geteuid();
        let caller = own.is_root().then(|| std::env::var("SUDO_UID").ok()?.parse().ok()).flatten();
        [Some(own.as_raw()), caller]
    }

    /// `None`: it is not in the table.
    pub(super) fn is_own(
        transport: Transport,
        source: SocketAddr,
        local: SocketAddr,
    ) -> Option<bool> {
        // One lookup, where it finds anything: the tables take milliseconds to read where they are
        // large, in which a session's first flight leaves without the first bytes.
        let asked = (transport == Transport::Tcp).then(|| asked(source, local)).flatten();
        let owners = match asked {
            Some(owner) => vec![owner],
            None => owners(&tables(transport), transport, source, local),
        };
        let own = own();
        (!owners.is_empty()).then(|| owners.iter().all(|owner| is_served(&own, *owner)))
    }

    /// One whose program is gone could be anybody's, and the kernel may say root's.
    pub(super) fn is_served(own: &[Option<u32>], owner: Owner) -> bool {
        !owner.closed && (owner.uid == 0 || own.contains(&Some(owner.uid)))
    }

    /// Whose socket the other end of a TCP connection is, by sock_diag(7). `None`: the kernel does
    /// not say.
    pub(super) fn asked(source: SocketAddr, local: SocketAddr) -> Option<Owner> {
        let (from, to) = (source.ip().to_canonical(), local.ip().to_canonical());
        let family = match (from, to) {
            (IpAddr::V4(_), IpAddr::V4(_)) => AF_INET,
            (IpAddr::V6(_), IpAddr::V6(_)) => AF_INET6,
            _ => return None,
        };
        // struct inet_diag_req_v2 behind struct nlmsghdr (linux/inet_diag.h, linux/netlink.h).
        let mut wish = Vec::with_capacity(REQUEST_LEN);
        wish.extend_from_slice(&u32::try_from(REQUEST_LEN).ok()?.to_ne_bytes());
        wish.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        wish.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        wish.extend_from_slice(&[0; 8]);
        wish.extend_from_slice(&[family, IPPROTO_TCP, 0, 0]);
        wish.extend_from_slice(&u32::MAX.to_ne_bytes());
        let pair = sockid(source.port(), from, local.port(), to);
        wish.extend_from_slice(&pair);
        // Any interface, any cookie.
        wish.extend_from_slice(&[0; 4]);
        wish.extend_from_slice(&[0xff; 8]);
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )
        .ok()?;
        send(&socket, &wish, SendFlags::empty()).ok()?;
        let mut told = [0_u8; 512];
        // The kernel has answered when the call returns.
        let (len, _) = recv(&socket, &mut told[..], RecvFlags::DONTWAIT).ok()?;
        let told = told.get(..len)?;
        let word = |at: usize| Some(u32::from_ne_bytes(told.get(at..at + 4)?.try_into().ok()?));
        // A listener is found, too, where no connection is.
        if told.get(4..6)? != SOCK_DIAG_BY_FAMILY.to_ne_bytes() || told.get(20..56)? != pair {
            return None;
        }
        Some(Owner { uid: word(80)?, closed: word(84)? == 0 })
    }

    /// The beginning of struct inet_diag_sockid.
    fn sockid(port: u16, from: IpAddr, to_port: u16, to: IpAddr) -> Vec<u8> {
        let wide = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => {
                let mut wide = [0; 16];
                wide.iter_mut().zip(ip.octets()).for_each(|(to, from)| *to = from);
                wide
            }
            IpAddr::V6(ip) => ip.octets(),
        };
        [&port.to_be_bytes()[..], &to_port.to_be_bytes(), &wide(from), &wide(to)].concat()
    }

    fn tables(transport: Transport) -> String {
        let names = match transport {
            Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
            Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        };
        let read = |name| fs::read_to_string(name).unwrap_or_default();
        names.map(read).concat()
    }

    /// Whose the sockets are that the other end of this connection can be.
    pub(super) fn owners(
        tables: &str,
        transport: Transport,
        source: SocketAddr,
        local: SocketAddr,
    ) -> Vec<Owner> {
        let canonical = |at: SocketAddr| (at.ip().to_canonical(), at.port());
        let (source, local) = (canonical(source), canonical(local));
        let fits = |from: (IpAddr, u16), to: (IpAddr, u16)| match transport {
            Transport::Tcp => from == source && to == local,
            // Sockets for datagrams need neither an address of their own nor a peer's, and may
            // send from another address than their own (ip(7), IP_PKTINFO).
            Transport::Udp => {
                let to_us = to.1 == local.1 && (to.0 == local.0 || local.0.is_unspecified());
                from.1 == source.1 && (to_us || to.1 == 0)
            }
        };
        let of = |line: &str| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let address = |at: usize| address(fields.get(at)?);
            let number = |at: usize| fields.get(at)?.parse::<u32>().ok();
            let found = fits(address(1)?, address(2)?);
            found.then_some(Owner { uid: number(7)?, closed: fields.get(9) == Some(&"0") })
        };
        tables.lines().filter_map(of).collect()
    }

    /// `0100007F:1F90`: words in the machine's own order, the port not.
    fn address(text: &str) -> Option<(IpAddr, u16)> {
        let (ip, port) = text.split_once(':')?;
        let word = |n: usize| {
            let digits = ip.get(n * 8..n * 8 + 8)?;
            u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
        };
        let ip = match ip.len() {
            8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
            32 => {
                let words = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
                IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?))
            }
            _ => return None,
        };
        Some((ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
    }
}

#[cfg(not(target_os = "linux"))]
mod os {
    use std::net::SocketAddr;

    use super::Transport;

    pub(super) fn is_own(_: Transport, _: SocketAddr, _: SocketAddr) -> Option<bool> {
        Some(true)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::{TcpListener, TcpStream, UdpSocket};

    use super::{
        os::{Owner, asked, is_served, owners},
        *,
    };

    #[expect(clippy::unwrap_used, reason = "a test's own address")]
    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn owners_are_read_of_the_callers_socket_and_no_other() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000  0 7 1 0\n\
            1: 0100007F:9C40 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001  0 8 1 0\n\
            2: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000  0 9 1 0\n\
            3: 0100007F:9C41 0100007F:1F90 06 00000000:00000000 03:000003D6 00000000     0  0 0 3 0\n\
            4: 0000000000000000FFFF00000100007F:9C42 0000000000000000FFFF00000100007F:1F90 01 00000000:00000000 00:00000000 00000000  1002  0 8 1 0\n\
            5: 00000000000000000000000001000000:9C43 00000000000000000000000001000000:1F90 01 00000000:00000000 00:00000000 00000000  1003  0 8 1 0\n\
            nonsense\n";
        let of = |source, local| owners(tcp, Transport::Tcp, at(source), at(local));
        let open = |uid| vec![Owner { uid, closed: false }];
        assert_eq!(of("127.0.0.1:40000", "127.0.0.1:8080"), open(1001));
        assert_eq!(of("127.0.0.1:40001", "127.0.0.1:8080"), [Owner { uid: 0, closed: true }]);
        assert_eq!(of("127.0.0.1:40002", "127.0.0.1:8080"), open(1002));
        assert_eq!(of("[::1]:40003", "[::1]:8080"), open(1003));
        assert_eq!(of("127.0.0.1:40000", "127.0.0.1:8081"), []);
        let udp = "0: 00000000:9C40 00000000:0000 07 00000000:00000000 00:00000000 00000000  1001  0 8 2 0 0\n\
            1: 0100007F:9C41 0100007F:0035 01 00000000:00000000 00:00000000 00000000  1002  0 8 2 0 0\n";
        let of = |source| owners(udp, Transport::Udp, at(source), at("127.0.0.1:8080"));
        assert_eq!(of("127.0.0.1:40000"), open(1001));
        assert_eq!(of("127.0.0.1:40001"), [], "it sends to somebody else");
        assert_eq!(of("127.0.0.2:40000"), open(1001), "it says that it is somewhere else");
    }

    #[test]
    fn only_who_is_known_to_be_oneself_or_root_is_served() {
        let of = |uid, closed| Owner { uid, closed };
        let me = [Some(1000), None];
        assert!(is_served(&me, of(1000, false)) && is_served(&me, of(0, false)));
        for other in [of(1001, false), of(0, true), of(1000, true), of(1001, true)] {
            assert!(!is_served(&me, other), "{other:?}");
        }
        let root = [Some(0), None];
        assert!(is_served(&root, of(0, false)));
        assert!(!is_served(&root, of(0, true)) && !is_served(&root, of(1000, false)));
        let for_somebody = [Some(0), Some(1000)];
        assert!(is_served(&for_somebody, of(1000, false)));
        assert!(!is_served(&for_somebody, of(1001, false)));
    }

    #[tokio::test]
    async fn ones_own_programs_are_served_and_who_left_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        let client = TcpStream::connect(local).await.unwrap();
        let (_stream, source) = listener.accept().await.unwrap();
        assert!(is_served_own(Transport::Tcp, source, local).await);
        let me = rustix::process::geteuid().as_raw();
        assert_eq!(
            asked(source, local),
            Some(Owner { uid: me, closed: false }),
            "no table is read"
        );
        assert_eq!(asked(at("127.0.0.1:1"), local), None);
        drop(client);
        assert!(!is_served_own(Transport::Tcp, source, local).await);
        let client = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let source = SocketAddr::new(local.ip(), client.local_addr().unwrap().port());
        assert!(is_served_own(Transport::Udp, source, at("127.0.0.1:9")).await);
        // A datagram to an end on all addresses does not say to which.
        client.connect("127.0.0.1:9").await.unwrap();
        let source = client.local_addr().unwrap();
        assert!(is_served_own(Transport::Udp, source, at("0.0.0.0:9")).await);
        assert!(!is_served_own(Transport::Udp, source, at("0.0.0.0:10")).await);
    }

    /// 192.0.2.0/24 is nobody's (RFC 5737).
    #[tokio::test]
    async fn other_computers_are_served_where_an_end_is_for_them() {
        let elsewhere = at("192.0.2.1:40000");
        assert!(is_served_own(Transport::Tcp, elsewhere, at("198.51.100.1:8080")).await);
        assert!(is_served_own(Transport::Udp, elsewhere, at("0.0.0.0:8080")).await);
        assert!(!is_served_own(Transport::Tcp, elsewhere, at("127.0.0.1:8080")).await);
        assert!(!is_served_own(Transport::Tcp, at("127.0.0.9:1"), at("0.0.0.0:8080")).await);
    }

    /// As root, who alone may start programs as somebody else. From an address that is not
    /// loopback's as well, if this computer has one.
    #[tokio::test]
    async fn programs_of_other_users_are_not_served() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not shown: start this test as root");
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        let _client = other_user(&format!("127.0.0.1:{}", local.port()), "127.0.0.1");
        let (_stream, source) = listener.accept().await.unwrap();
        assert!(!is_served_own(Transport::Tcp, source, local).await);
        let any = Callers::of(Users::Any);
        assert!(any.serve(Transport::Tcp, (source, local)).await);
        let probe = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        // Connecting a socket for datagrams sends nothing.
        if probe.connect("192.0.2.1:9").await.is_err() {
            return;
        }
        let from = probe.local_addr().unwrap().ip();
        let _client = other_user(&format!("127.0.0.1:{}", local.port()), &from.to_string());
        let (_stream, source) = listener.accept().await.unwrap();
        assert_eq!(source.ip(), from);
        assert!(!is_served_own(Transport::Tcp, source, local).await);
    }

    /// Another user's program that connects there from this address, and stays.
    #[expect(clippy::unwrap_used, reason = "a test's own program")]
    fn other_user(to: &str, from: &str) -> tokio::process::Child {
        use std::os::unix::process::CommandExt;

        const SCRIPT: &str = "import socket,sys,time
host, port = sys.argv[1].split(':')
s = socket.create_connection((host, int(port)), source_address=(sys.argv[2], 0))
time.sleep(20)";
        let mut command = std::process::Command::new("python3");
        command.args(["-c", SCRIPT, to, from]).uid(64_321).gid(64_321);
        let mut client = tokio::process::Command::from(command);
        client.kill_on_drop(true).spawn().unwrap()
    }

    async fn is_served_own(transport: Transport, source: SocketAddr, local: SocketAddr) -> bool {
        Callers::of(Users::Own).serve(transport, (source, local)).await
    }
}
