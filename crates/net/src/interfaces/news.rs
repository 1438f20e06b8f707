//! The kernel's news of links, addresses and routes, as fast as it tells them.
//!
//! Only that there is news counts: what changed is read from the system afterwards. Where there
//! is no such source the slower library watcher does alone.

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
        socket_with,
    },
};
use tokio::io::unix::AsyncFd;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`,
/// `RTMGRP_IPV6_ROUTE` (rtnetlink(7)). Links are what tells of an interface going down: the
/// kernel removes its IPv4 routes without a word.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Messages taken at once; more are taken the next time.
const MAX_READS: usize = 256;

#[derive(Debug)]
pub(super) struct News(AsyncFd<OwnedFd>);

impl News {
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::RAW;
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        #[expect(deprecated, reason = "sound for an OwnedFd, whose descriptor stays the same")]
        let source = AsyncFd::new(socket)?;
        Ok(Self(source))
    }

    /// Waits until there is news, and takes all there is. Never returns if the source broke.
    pub(super) async fn next(&mut self) {
        let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
        let mut buffer = [0; 8_192];
        for _ in 0..MAX_READS {
            // An overrun (ENOBUFS) is news too: something was missed.
            if let Err(Errno::AGAIN) = recv(ready.get_inner(), &mut buffer, RecvFlags::DONTWAIT) {
                ready.clear_ready();
                return;
            }
        }
    }
}
