//! Whose program connects to a local end.
//!
//! Every user of a computer can connect to its loopback ports, on a terminal server many. A local
//! end on loopback serves the programs of whoever runs this console, and root's. On Linux the
//! kernel tells whose a socket is (proc(5), `/proc/net/tcp`); elsewhere nothing does without
//! further rights, and everybody is served.
//!
//! Must never take what cannot be told for one's own: who sends and closes at once is in no table
//! any more.

use std::{net::SocketAddr, time::Duration};

/// The kernel's table is not read in one moment: what is missing is looked for again.
const LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(1);

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

/// Is whoever connects from `source` served here? Asked of the kernel, beside the caller's task.
pub(super) async fn is_served(
    users: Users,
    transport: Transport,
    (source, local): (SocketAddr, SocketAddr),
) -> bool {
    // Others than this computer's users were let in on purpose, and nothing tells who they are.
    if users == Users::Any || !source.ip().to_canonical().is_loopback() {
        return true;
    }
    for _ in 0..LOOKS {
        let asked = tokio::task::spawn_blocking(move || os::is_own(transport, source, local));
        match asked.await {
            Ok(None) => tokio::time::sleep(PAUSE).await,
            known => return known.ok().flatten().unwrap_or(false),
        }
    }
    os::may_be_own()
}

#[cfg(target_os = "linux")]
mod os {
    use std::{
        fs,
        net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    };

    use super::Transport;

    /// A socket's owner. Of one that its program closed nobody is told.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Owner {
        pub(super) uid: u32,
        pub(super) closed: bool,
    }

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// `None`: it is not in the table.
    pub(super) fn is_own(
        transport: Transport,
        source: SocketAddr,
        local: SocketAddr,
    ) -> Option<bool> {
        let owners = owners(&tables(transport), transport, source, local);
        let other = owners.iter().find(|owner| !is_served(own(), **owner));
        if let Some(other) = other {
            tracing::warn!(uid = other.uid, closed = other.closed, %source,
                "another user of this computer, or one who left at once, is not served");
        }
        (!owners.is_empty()).then_some(other.is_none())
    }

    /// Whoever sent a datagram is gone.
    pub(super) fn may_be_own() -> bool {
        own() == 0
    }

    /// Root may do as anybody anyway.
    pub(super) fn is_served(own: u32, owner: Owner) -> bool {
        owner.uid == own && (own == 0 || !owner.closed) || owner.uid == 0 && !owner.closed
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
            // Sockets for datagrams need neither an address of their own nor a peer's.
            Transport::Udp => {
                from.1 == source.1
                    && (from.0 == source.0 || from.0.is_unspecified())
                    && (to == local || to.1 == 0)
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

    pub(super) fn may_be_own() -> bool {
        true
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::{TcpListener, TcpStream, UdpSocket};

    use super::{
        os::{Owner, is_served, owners},
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
    }

    #[test]
    fn only_who_is_known_to_be_oneself_or_root_is_served() {
        let of = |uid, closed| Owner { uid, closed };
        assert!(is_served(1000, of(1000, false)) && is_served(1000, of(0, false)));
        for other in [of(1001, false), of(0, true), of(1000, true), of(1001, true)] {
            assert!(!is_served(1000, other), "{other:?}");
        }
        assert!(is_served(0, of(0, true)) && !is_served(0, of(1000, false)));
    }

    #[tokio::test]
    async fn ones_own_programs_are_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        let _client = TcpStream::connect(local).await.unwrap();
        let (_stream, source) = listener.accept().await.unwrap();
        assert!(is_served_own(Transport::Tcp, source, local).await);
        let client = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let source = SocketAddr::new(local.ip(), client.local_addr().unwrap().port());
        assert!(is_served_own(Transport::Udp, source, at("127.0.0.1:9")).await);
    }

    /// As root, who alone may start programs as somebody else.
    #[tokio::test]
    async fn programs_of_other_users_are_not_served() {
        use std::os::unix::process::CommandExt;

        if !rustix::process::geteuid().is_root() {
            eprintln!("not shown: start this test as root");
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; read -t 20 <&3", local.port());
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &script]).uid(64_321).gid(64_321);
        let mut client = tokio::process::Command::from(command);
        let _client = client.kill_on_drop(true).spawn().unwrap();
        let (_stream, source) = listener.accept().await.unwrap();
        assert!(!is_served_own(Transport::Tcp, source, local).await);
        assert!(super::is_served(Users::Any, Transport::Tcp, (source, local)).await);
    }

    async fn is_served_own(transport: Transport, source: SocketAddr, local: SocketAddr) -> bool {
        super::is_served(Users::Own, transport, (source, local)).await
    }
}
