//! Threads that compare passwords with their hashes: few, and behind everything else that wants
//! a processor, so that a flood of logins takes what others leave.
//!
//! Must never be handed more than its threads can take at once: who waits, waits with a deadline
//! in [`super::guess`], for a permit that goes with the password until it is compared. Whoever
//! asked may be gone by then; the processor is not free before.

use std::sync::{
    Arc, Mutex, PoisonError,
    mpsc::{Receiver, SyncSender, sync_channel},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use zeroize::Zeroizing;

use crate::password;

/// How far behind (nice values, sched(7)): a seventieth of what an equal would get, so that logins
/// go on, if slowly, on a machine that has more to do than it can.
const BEHIND: i32 = 19;

/// A comparison to make.
struct Job {
    password: Zeroizing<String>,
    hash: String,
    told: oneshot::Sender<bool>,
    _processor: OwnedSemaphorePermit,
}

/// Hands passwords to the threads, which end with it.
pub(super) struct Hashing(SyncSender<Job>);

impl Hashing {
    /// So many threads; `None` if the system gives none.
    pub(super) fn start(threads: usize) -> Option<Self> {
        let (jobs, queue) = sync_channel(threads);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name("passwords".to_owned());
            thread.spawn(move || run(&queue)).ok()?;
        }
        Some(Self(jobs))
    }

    /// Is it the right password? `None`: nobody can tell.
    pub(super) async fn verify(
        &self,
        password: Zeroizing<String>,
        hash: String,
        processor: OwnedSemaphorePermit,
    ) -> Option<bool> {
        let (told, answer) = oneshot::channel();
        let job = Job { password, hash, told, _processor: processor };
        self.0.try_send(job).ok()?;
        answer.await.ok()
    }
}

fn run(queue: &Mutex<Receiver<Job>>) {
    // Without it all works, only not as smoothly. Of this thread alone, on Linux.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(BEHIND);
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { password, hash, told, _processor }) = next else { return };
        // Whoever asked may have gone.
        let _ = told.send(password::verify(&password, &hash));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passwords_are_told_apart_by_threads_that_stand_behind() {
        let hashing = Hashing::start(2).unwrap();
        let hash = password::hash("horse battery staple").unwrap();
        let processors = Arc::new(tokio::sync::Semaphore::new(2));
        let ask = async |word: &str| {
            let processor = Arc::clone(&processors).acquire_owned().await.unwrap();
            hashing.verify(Zeroizing::new(word.to_owned()), hash.clone(), processor).await
        };
        let told = tokio::join!(ask("horse battery staple"), ask("another"), ask("a third"));
        assert_eq!(told, (Some(true), Some(false), Some(false)));
        #[cfg(target_os = "linux")]
        {
            let own = std::fs::read_dir("/proc/self/task").unwrap();
            let nice: Vec<i32> = own
                .filter_map(|task| {
                    let dir = task.ok()?.path();
                    let name = std::fs::read_to_string(dir.join("comm")).ok()?;
                    let stat = std::fs::read_to_string(dir.join("stat")).ok()?;
                    // The 19th field, counted after the name in parentheses.
                    let value = stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.to_owned();
                    (name.trim() == "passwords").then(|| value.parse().unwrap())
                })
                .collect();
            let mine = rustix::process::getpriority_process(None).unwrap();
            assert!(nice.len() >= 2 && nice.iter().all(|own| *own == (mine + BEHIND).min(19)));
        }
    }
}
