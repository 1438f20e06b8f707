//! Single packets with a low TTL, beside everything else that a socket sends.
//!
//! The TTL travels in a control message of that one packet. It must never be set on the socket:
//! QUIC shares it.

use std::{io, net::SocketAddr};

use socket2::SockRef;

/// Sends one packet over IPv4 with this TTL. `false`: this system cannot do that.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn send_with_ttl(
    socket: &SockRef<'_>,
    to: SocketAddr,
    packet: &[u8],
    ttl: u8,
) -> io::Result<bool> {
    use std::io::IoSlice;

    use socket2::MsgHdr;

    if !to.is_ipv4() {
        return Ok(false);
    }
    let to = to.into();
    let buffers = [IoSlice::new(packet)];
    let control = ttl_message(ttl);
    let message = MsgHdr::new().with_addr(&to).with_buffers(&buffers).with_control(&control);
    socket.sendmsg(&message, 0).map(|_| true)
}

/// Sends one packet over IPv4 with this TTL. `false`: this system cannot do that.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn send_with_ttl(_: &SockRef<'_>, _: SocketAddr, _: &[u8], _: u8) -> io::Result<bool> {
    Ok(false)
}

/// `struct cmsghdr` with an `int`: cmsg(3), ip(7).
#[cfg(any(target_os = "linux", target_os = "android"))]
fn ttl_message(ttl: u8) -> Vec<u8> {
    const IPPROTO_IP: i32 = 0;
    const IP_TTL: i32 = 2;
    // Length of the header and of the value; all of it is padded to whole words.
    const WORD: usize = size_of::<usize>();
    const LEN: usize = WORD + 2 * size_of::<i32>() + size_of::<i32>();

    let mut message = Vec::with_capacity(LEN.next_multiple_of(WORD));
    message.extend(LEN.to_ne_bytes());
    message.extend(IPPROTO_IP.to_ne_bytes());
    message.extend(IP_TTL.to_ne_bytes());
    message.extend(i32::from(ttl).to_ne_bytes());
    message.resize(LEN.next_multiple_of(WORD), 0);
    message
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// The system takes the control message, and the socket's own TTL stays.
    #[test]
    fn one_packet_has_a_low_ttl() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = sender.ttl().unwrap();
        let to = receiver.local_addr().unwrap();
        assert!(send_with_ttl(&SockRef::from(&sender), to, b"knock", 1).unwrap());
        let mut buffer = [0; 16];
        let (len, from) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"knock"[..], sender.local_addr().unwrap()));
        assert_eq!(sender.ttl().unwrap(), before);
        // A TTL of 0 is refused: so it is read at all.
        assert!(send_with_ttl(&SockRef::from(&sender), to, b"knock", 0).is_err());
    }
}
