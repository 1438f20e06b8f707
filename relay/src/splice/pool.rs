//! Pools of what copying needs while bytes move: pipes on Linux, buffers otherwise.
//!
//! Unprivileged users share a budget of pipe memory (`pipe-user-pages-soft`, 64 MiB by default)
//! with all their other processes. So only so many pipes are large; when the kernel refuses to
//! enlarge one, it is used as it is, and when it gives none at all, copying goes through a
//! buffer. Must never hand out a pipe with bytes in it.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(target_os = "linux")]
pub use pipes::{Pipe, PipePool};

/// Buffer of a copied direction: several TLS records (RFC 8446 §5.1) in one system call.
pub const BUFFER_SIZE: usize = 128 * 1024;
/// Free buffers kept.
const MAX_FREE_BUFFERS: usize = 64;

/// What all pairs of a relay share.
#[derive(Debug)]
pub struct Engine {
    /// Use splice(2) where possible; off only for comparison.
    pub splice: bool,
    /// Buffers for copying.
    pub buffers: BufferPool,
    /// Pipes for splicing.
    #[cfg(target_os = "linux")]
    pub pipes: PipePool,
}

impl Engine {
    /// With at most `max_pipes` pipes (two descriptors each) at once.
    pub fn new(max_pipes: usize) -> Self {
        #[cfg(not(target_os = "linux"))]
        let _ = max_pipes;
        Self {
            splice: cfg!(target_os = "linux"),
            buffers: BufferPool::default(),
            #[cfg(target_os = "linux")]
            pipes: PipePool::new(max_pipes),
        }
    }
}

/// Buffers for directions that are copied.
#[derive(Debug, Default)]
pub struct BufferPool {
    free: Mutex<Vec<Box<[u8]>>>,
}

impl BufferPool {
    /// A buffer of [`BUFFER_SIZE`] bytes with anything in it.
    pub fn take(&self) -> Box<[u8]> {
        lock(&self.free).pop().unwrap_or_else(|| vec![0; BUFFER_SIZE].into_boxed_slice())
    }

    /// Gives one back.
    pub fn give(&self, buffer: Box<[u8]>) {
        let mut free = lock(&self.free);
        if free.len() < MAX_FREE_BUFFERS {
            free.push(buffer);
        }
    }
}

/// A poisoned pool is still a pool: its content is a plain list.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(target_os = "linux")]
mod pipes {
    use std::{io, os::fd::OwnedFd, sync::Mutex};

    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

    use super::lock;

    /// Size of a large pipe. A pipe holds one page fragment a slot, with 1,500-byte packets
    /// hardly more than a packet: 256 slots carry a full receive window at once.
    const LARGE: usize = 1024 * 1024;
    /// Large pipes at once: half of an ordinary user's budget, the rest is for small ones.
    const MAX_LARGE: usize = 32;
    /// What the kernel gives unasked.
    const DEFAULT: usize = 64 * 1024;
    /// Free pipes kept of the default size.
    const MAX_FREE_SMALL: usize = 64;

    /// Both ends of an empty pipe, non-blocking.
    #[derive(Debug)]
    pub struct Pipe {
        /// Where bytes come out.
        pub read: OwnedFd,
        /// Where bytes go in.
        pub write: OwnedFd,
        /// Bytes to ask for at once.
        pub size: usize,
    }

    #[derive(Debug)]
    struct State {
        large: Vec<Pipe>,
        small: Vec<Pipe>,
        /// Large pipes in existence.
        large_made: usize,
        /// How many may exist; lowered when the kernel refuses one.
        large_max: usize,
        made: usize,
    }

    /// Pipes that no direction uses at present.
    #[derive(Debug)]
    pub struct PipePool {
        state: Mutex<State>,
        max: usize,
    }

    impl PipePool {
        /// With at most `max` pipes in existence.
        pub fn new(max: usize) -> Self {
            let (large, small) = (Vec::new(), Vec::new());
            let state = State { large, small, large_made: 0, large_max: MAX_LARGE, made: 0 };
            Self { state: Mutex::new(state), max }
        }

        /// An empty pipe, the largest to be had; none if there are too many or the kernel has
        /// none to give.
        pub fn take(&self) -> Option<Pipe> {
            let mut state = lock(&self.state);
            let want_large = state.large_made < state.large_max;
            if let Some(pipe) = state.large.pop() {
                return Some(pipe);
            }
            if !want_large && let Some(pipe) = state.small.pop() {
                return Some(pipe);
            }
            if state.made >= self.max {
                return state.small.pop();
            }
            let mut pipe = make().ok()?;
            state.made += 1;
            if want_large {
                match fcntl_setpipe_size(&pipe.write, LARGE) {
                    Ok(size) => {
                        pipe.size = size;
                        state.large_made += 1;
                    }
                    // The user's budget is spent: do not try again and again.
                    Err(_) => state.large_max = state.large_made,
                }
            }
            Some(pipe)
        }

        /// Gives an empty pipe back.
        pub fn give(&self, pipe: Pipe) {
            let mut state = lock(&self.state);
            if pipe.size > DEFAULT {
                state.large.push(pipe);
            } else if state.small.len() < MAX_FREE_SMALL {
                state.small.push(pipe);
            } else {
                state.made = state.made.saturating_sub(1);
            }
        }

        /// Closes a pipe that may still hold bytes.
        pub fn discard(&self, pipe: Pipe) {
            let mut state = lock(&self.state);
            state.made = state.made.saturating_sub(1);
            if pipe.size > DEFAULT {
                state.large_made = state.large_made.saturating_sub(1);
            }
        }

        /// Pipes in existence, and those of them that are free.
        pub fn counts(&self) -> (usize, usize) {
            let state = lock(&self.state);
            (state.made, state.large.len() + state.small.len())
        }
    }

    fn make() -> io::Result<Pipe> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        Ok(Pipe { read, write, size: DEFAULT })
    }
}
