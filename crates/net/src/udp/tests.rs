//! The socket on loopback, and fed with receives that loopback would not make.

use std::{collections::VecDeque, future::poll_fn};

use quinn::udp::EcnCodepoint;

use super::*;
use crate::stun::{encode_binding_request, encode_check, parse};

/// Sender, bytes, stride.
type Receive = io::Result<(SocketAddr, Vec<u8>, usize)>;

/// A socket whose receives are scripted.
#[derive(Debug, Default)]
struct Scripted(Mutex<VecDeque<Receive>>);

#[derive(Debug)]
struct Ready;

impl UdpPoller for Ready {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Scripted {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Ready)
    }

    fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Some(next) = self.0.lock().unwrap().pop_front() else { return Poll::Pending };
        let (addr, bytes, stride) = next?;
        bufs[0][..bytes.len()].copy_from_slice(&bytes);
        let ecn = Some(EcnCodepoint::Ect0);
        metas[0] = RecvMeta { addr, len: bytes.len(), stride, ecn, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok("[::]:9".parse().unwrap())
    }
}

fn scripted(script: &Arc<Scripted>) -> (Arc<DemuxSocket>, mpsc::Receiver<StunDatagram>) {
    let direct = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    DemuxSocket::from_parts(script.clone(), direct).unwrap()
}

fn peer() -> SocketAddr {
    "192.0.2.7:40000".parse().unwrap()
}

fn mapped_peer() -> SocketAddr {
    "[::ffff:192.0.2.7]:40000".parse().unwrap()
}

type Seen = (RecvMeta, Vec<u8>);

/// What quinn would see of the next receive, or `None` if it has to wait.
fn receive(socket: &DemuxSocket) -> Option<io::Result<Vec<Seen>>> {
    let mut space = [vec![0; 4096], vec![0; 4096]];
    let mut metas = [RecvMeta::default(); 2];
    let [a, b] = &mut space;
    let mut bufs = [IoSliceMut::new(a), IoSliceMut::new(b)];
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let Poll::Ready(count) = socket.poll_recv(&mut cx, &mut bufs, &mut metas) else { return None };
    Some(count.map(|count| {
        let received = metas.iter().zip(&space).take(count);
        received.map(|(meta, bytes)| (*meta, bytes[..meta.len].to_vec())).collect()
    }))
}

#[test]
fn mixed_receives_are_sorted_and_strangers_wait() {
    let script = Arc::new(Scripted::default());
    let (socket, mut stun) = scripted(&script);
    let check = encode_check([1; 12], &[2; 16], &[3; 32], 4);
    let quic = |n: u8| vec![0x40 | n; check.len()];
    let mixed = [quic(1), check.clone(), quic(2), check.clone()].concat();
    let push = |from| script.0.lock().unwrap().push_back(Ok((from, mixed.clone(), check.len())));

    push(mapped_peer());
    let seen = receive(&socket).unwrap().unwrap();
    assert_eq!(seen[0].1, b"", "not admitted");
    for _ in 0..2 {
        let got = stun.try_recv().unwrap();
        assert_eq!((got.from, &got.payload[..]), (peer(), &check[..]));
    }

    // Admission hands over what was held, as it came.
    assert!(receive(&socket).is_none());
    assert!(socket.admit(peer()));
    let seen = receive(&socket).unwrap().unwrap();
    let packets: Vec<_> = seen.iter().map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(packets, [quic(1), quic(2)]);
    assert!(seen.iter().all(|(meta, _)| meta.addr == mapped_peer()
        && meta.stride == meta.len
        && meta.ecn == Some(EcnCodepoint::Ect0)));
    assert!(receive(&socket).is_none());

    push(mapped_peer());
    let seen = receive(&socket).unwrap().unwrap();
    assert_eq!(seen[0].1, [quic(1), quic(2)].concat());
    assert_eq!(seen[0].0.stride, check.len());
}

#[test]
fn an_address_stays_admitted_until_its_last_holder_leaves() {
    let script = Arc::new(Scripted::default());
    let (socket, _stun) = scripted(&script);
    socket.revoke(peer());
    assert!(socket.admit(peer()) && socket.admit(mapped_peer()));
    socket.revoke(peer());
    assert!(socket.is_admitted(peer()));
    socket.revoke(peer());
    assert!(!socket.is_admitted(peer()));
    for n in 0..MAX_ADMITTED as u32 {
        assert!(socket.admit(SocketAddr::new(std::net::Ipv4Addr::from_bits(n).into(), 9)));
    }
    assert!(!socket.admit(peer()));
}

#[test]
fn errors_of_the_network_end_nothing() {
    let script = Arc::new(Scripted::default());
    let (socket, _stun) = scripted(&script);
    assert!(socket.admit(peer()));
    for kind in [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::NetworkDown,
        io::ErrorKind::ConnectionReset,
    ] {
        script.0.lock().unwrap().push_back(Err(kind.into()));
        assert!(receive(&socket).is_none(), "{kind}");
    }
    script.0.lock().unwrap().push_back(Ok((peer(), vec![0x41; 30], 30)));
    assert_eq!(receive(&socket).unwrap().unwrap()[0].1, [0x41; 30]);
    let transmit = Transmit {
        destination: peer(),
        ecn: None,
        contents: &[0x41; 30],
        segment_size: None,
        src_ip: None,
    };
    assert!(AsyncUdpSocket::try_send(&*socket, &transmit).is_ok());
    // This one is bound to IPv4.
    assert!(!socket.send_stun("[2001:db8::1]:9".parse().unwrap(), &[0; 20]));
}

#[test]
fn a_stun_flood_is_dropped_not_queued_without_end() {
    let script = Arc::new(Scripted::default());
    let (socket, mut stun) = scripted(&script);
    for _ in 0..STUN_QUEUE + 10 {
        script.0.lock().unwrap().push_back(Ok((peer(), encode_binding_request([1; 12]), 20)));
    }
    while receive(&socket).is_some() {}
    assert_eq!(socket.dropped().stun, 10);
    assert_eq!(std::iter::from_fn(|| stun.try_recv().ok()).count(), STUN_QUEUE);
}

#[tokio::test]
async fn stun_crosses_loopback_in_both_families() {
    for addr in ["127.0.0.1:0", "[::1]:0"] {
        let (a, _) = DemuxSocket::bind(addr.parse().unwrap()).unwrap();
        let (b, mut stun) = DemuxSocket::bind(addr.parse().unwrap()).unwrap();
        assert!(a.send_stun(b.local_addr(), &encode_binding_request([7; 12])));
        let got = loop {
            if let Ok(got) = stun.try_recv() {
                break got;
            }
            poll_fn(|cx| {
                let mut space = vec![0; 65_535];
                let (mut bufs, mut metas) = ([IoSliceMut::new(&mut space)], [RecvMeta::default()]);
                b.poll_recv(cx, &mut bufs, &mut metas)
            })
            .await
            .unwrap();
        };
        assert_eq!(got.from, a.local_addr());
        assert_eq!(parse(&got.payload).unwrap().transaction_id, [7; 12]);
    }
}
