//! splice(2) between two TCP connections through borrowed pipes.
//!
//! A direction borrows a pipe when its source is readable and gives it back when the source ran
//! dry and the pipe is empty. Must never give back a pipe with bytes in it. Where little comes at
//! a time, as keystrokes do, reading and writing it takes half the system calls of a pipe.

use std::{
    io,
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    net::RecvFlags,
    pipe::{SpliceFlags, splice},
};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, task::yield_now};

use super::{
    Engine, Meter,
    pool::{Pipe, PipePool},
};

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
/// Bytes after which a busy direction lets other tasks of its thread run.
const TURN: usize = 4 * 1024 * 1024;
/// What is read and written without a pipe. On the stack, in no future.
const LITTLE: usize = 4 * 1024;

/// Both directions, until both sources ended or anything failed.
pub(super) async fn both_ways(
    console: &TcpStream,
    agent: &TcpStream,
    engine: &Engine,
    meter: &Meter,
) -> io::Result<()> {
    let up = one_way(console, agent, engine, &meter.up);
    let down = one_way(agent, console, engine, &meter.down);
    tokio::select! {
        biased;
        result = async { tokio::try_join!(up, down).map(|_| ()) } => result,
        // A reset is noticed even while the direction that would read it waits for the other
        // end to take what it has.
        error = failure(console) => Err(error),
        error = failure(agent) => Err(error),
    }
}

async fn failure(socket: &TcpStream) -> io::Error {
    match socket.ready(Interest::ERROR).await {
        Ok(_) => match socket.take_error() {
            Ok(Some(error)) | Err(error) => error,
            // Another call took the error already.
            Ok(None) => io::ErrorKind::ConnectionReset.into(),
        },
        Err(error) => error,
    }
}

async fn one_way(
    from: &TcpStream,
    to: &TcpStream,
    engine: &Engine,
    count: &AtomicU64,
) -> io::Result<()> {
    // Whether little came when bytes came last.
    let mut sparse = true;
    loop {
        from.readable().await?;
        if sparse {
            match little(from, to, count)? {
                Little::Dry => continue,
                Little::Ended => return SockRef::from(to).shutdown(std::net::Shutdown::Write),
                Little::More => {}
                Little::Left(rest) => {
                    write_all(to, &rest, count).await?;
                    continue;
                }
            }
        }
        let before = count.load(Ordering::Relaxed);
        let ended = match engine.pipes.take() {
            Some(pipe) => {
                let mut loan = Loan { pool: &engine.pipes, pipe: Some(pipe), held: 0 };
                pump(from, to, &mut loan, count).await?
            }
            None => copy(from, to, engine, count).await?,
        };
        if ended {
            return SockRef::from(to).shutdown(std::net::Shutdown::Write);
        }
        sparse = count.load(Ordering::Relaxed).wrapping_sub(before) < LITTLE as u64;
    }
}

/// What became of a read of at most [`LITTLE`] bytes.
enum Little {
    /// All is written, and the source has no more.
    Dry,
    /// All is written, and the source may have more.
    More,
    /// The source ended.
    Ended,
    /// This could not be written at once.
    Left(Vec<u8>),
}

fn little(from: &TcpStream, to: &TcpStream, count: &AtomicU64) -> io::Result<Little> {
    let mut buffer = [0; LITTLE];
    let mut got = None;
    let read = || match rustix::net::recv(from.as_fd(), &mut buffer, RecvFlags::empty()) {
        Ok((_, n)) => {
            got = Some(n);
            // A buffer not filled means a stream run dry (epoll(7), question 9): the readiness
            // goes without another call that says so.
            if n > 0 && n < LITTLE { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        }
        Err(error) => Err(error.into()),
    };
    match from.try_io(Interest::READABLE, read) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        Err(e) => return Err(e),
    }
    let n = match got {
        None => return Ok(Little::Dry),
        Some(0) => return Ok(Little::Ended),
        Some(n) => n,
    };
    let bytes = buffer.get(..n).unwrap_or_default();
    let written = match to.try_write(bytes) {
        Ok(written) => written,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
        Err(e) => return Err(e),
    };
    count.fetch_add(written as u64, Ordering::Relaxed);
    let rest = bytes.get(written..).unwrap_or_default();
    Ok(match rest {
        [] if n < LITTLE => Little::Dry,
        [] => Little::More,
        rest => Little::Left(rest.to_vec()),
    })
}

/// A borrowed pipe, given back or, with bytes still in it, discarded.
struct Loan<'a> {
    pool: &'a PipePool,
    pipe: Option<Pipe>,
    held: usize,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        match self.pipe.take() {
            Some(pipe) if self.held == 0 => self.pool.give(pipe),
            Some(pipe) => self.pool.discard(pipe),
            None => {}
        }
    }
}

/// Moves bytes until the source has none (false) or ended (true).
async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    loan: &mut Loan<'_>,
    count: &AtomicU64,
) -> io::Result<bool> {
    let mut turn = 0;
    loop {
        let Some(pipe) = &loan.pipe else { return Ok(false) };
        let size = pipe.size;
        let fill = || Ok(splice(from.as_fd(), None, &pipe.write, None, size, FLAGS)?);
        match from.try_io(Interest::READABLE, fill) {
            Ok(0) => return Ok(true),
            Ok(n) => loan.held = n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
        while loan.held > 0 {
            let left = loan.held;
            let empty = || Ok(splice(&pipe.read, None, to.as_fd(), None, left, FLAGS)?);
            match to.try_io(Interest::WRITABLE, empty) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    loan.held = left.saturating_sub(n);
                    turn += n;
                    count.fetch_add(n as u64, Ordering::Relaxed);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                Err(e) => return Err(e),
            }
        }
        if turn >= TURN {
            turn = 0;
            yield_now().await;
        }
    }
}

/// As [`pump`], through a buffer: there is no pipe to be had.
async fn copy(
    from: &TcpStream,
    to: &TcpStream,
    engine: &Engine,
    count: &AtomicU64,
) -> io::Result<bool> {
    let mut buffer = engine.buffers.take();
    let result = async {
        loop {
            let n = match from.try_read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            };
            write_all(to, buffer.get(..n).unwrap_or_default(), count).await?;
            yield_now().await;
        }
    }
    .await;
    engine.buffers.give(buffer);
    result
}

async fn write_all(to: &TcpStream, mut rest: &[u8], count: &AtomicU64) -> io::Result<()> {
    while !rest.is_empty() {
        match to.try_write(rest) {
            Ok(n) => {
                rest = rest.get(n..).unwrap_or_default();
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
