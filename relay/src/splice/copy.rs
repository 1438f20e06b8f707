//! Copying through pooled buffers: for TLS ends, and for systems without splice(2).
//!
//! A direction holds a buffer only while it has bytes in hand. Must never let one direction's
//! slow reader stop the other direction.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Leg, Meter, pool::BufferPool};

/// Both directions, until both sources ended or anything failed.
pub(super) async fn both_ways(
    console: &mut Leg,
    agent: &mut Leg,
    buffers: &BufferPool,
    meter: &Meter,
) -> io::Result<()> {
    let (mut up, mut down) = (Flow::new(buffers), Flow::new(buffers));
    poll_fn(|cx| {
        let up = up.poll(cx, console, agent, &meter.up)?;
        let down = down.poll(cx, agent, console, &meter.down)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction.
struct Flow<'a> {
    buffers: &'a BufferPool,
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    unflushed: bool,
    source_ended: bool,
    done: bool,
}

impl<'a> Flow<'a> {
    fn new(buffers: &'a BufferPool) -> Self {
        Self {
            buffers,
            buffer: None,
            start: 0,
            end: 0,
            unflushed: false,
            source_ended: false,
            done: false,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Leg,
        to: &mut Leg,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        while !self.done {
            let dry = self.poll_fill(cx, from)?.is_pending();
            if self.start < self.end {
                ready!(self.poll_drain(cx, to, count))?;
                continue;
            }
            self.release();
            if self.unflushed {
                ready!(Pin::new(&mut *to).poll_flush(cx))?;
                self.unflushed = false;
            }
            if self.source_ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.done = true;
            } else if dry {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what there is; pending if the source would say more later.
    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut Leg) -> Poll<io::Result<()>> {
        while !self.source_ended {
            let buffer = self.buffer.get_or_insert_with(|| self.buffers.take());
            let free = buffer.get_mut(self.end..).unwrap_or_default();
            if free.is_empty() {
                break;
            }
            let mut read = ReadBuf::new(free);
            ready!(Pin::new(&mut *from).poll_read(cx, &mut read))?;
            let n = read.filled().len();
            self.source_ended = n == 0;
            self.end += n;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Leg,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        while self.start < self.end {
            let bytes =
                self.buffer.as_deref().and_then(|b| b.get(self.start..self.end)).unwrap_or(&[]);
            let n = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += n;
            self.unflushed = true;
            count.fetch_add(n as u64, Ordering::Relaxed);
        }
        (self.start, self.end) = (0, 0);
        Poll::Ready(Ok(()))
    }

    fn release(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.buffers.give(buffer);
        }
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

impl AsyncRead for Leg {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Raw(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Leg {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Raw(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Raw(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Raw(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
