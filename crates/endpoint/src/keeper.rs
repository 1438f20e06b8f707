//! What this end must still have after a crash: receipts, the heads of audit logs that it saw,
//! alerts. One task writes, many callers share an fsync.
//!
//! Files, all 0600 in the program's own directory: `receipts/N.jsonl` (appended, at most
//! [`MAX_SEGMENTS`] of [`MAX_SEGMENT`] bytes, the oldest goes first), `receipts/sent` (what the
//! mediator has acknowledged), those of `counterparts`, `witness` (replaced as a whole), and those of `alerts`. Several
//! consoles may share a directory: lines are appended with one write each.
//!
//! Must never say that a line is durable before it is.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{error, warn};

use crate::alerts::Pace;

/// Bytes of a file of receipts.
pub(crate) const MAX_SEGMENT: u64 = 8 * 1024 * 1024;
/// Files of receipts.
pub(crate) const MAX_SEGMENTS: u64 = 16;
/// Bytes of the list of heads.
const MAX_WITNESS: u64 = 4 * 1024 * 1024;
/// Lines that wait for the disk.
const MAX_WAITING: usize = 4096;
/// Lines written with one fsync.
const MAX_BATCH: usize = 256;
pub(crate) const RECEIPTS: &str = "receipts";
const SENT: &str = "sent";
const WITNESS: &str = "witness";

/// The files could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeepError {
    /// The system does not let it.
    #[error("cannot keep records in {path}: {reason}")]
    Io {
        /// File or folder.
        path: String,
        /// Why.
        reason: String,
    },
    /// What a file holds cannot be what was written to it.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// File.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl KeepError {
    pub(crate) fn new(path: &Path, reason: impl ToString) -> Self {
        Self::Io { path: path.display().to_string(), reason: reason.to_string() }
    }

    pub(crate) fn damaged(path: &Path, reason: impl ToString) -> Self {
        Self::Damaged { path: path.display().to_string(), reason: reason.to_string() }
    }

    /// Whether it is for what the file holds.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

/// How far the mediator has acknowledged receipts: a file's number and a place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

struct Job {
    line: String,
    done: oneshot::Sender<bool>,
}

/// Hands lines to the writing task. Without a directory (tests, netcheck) nothing is kept.
pub(crate) struct Keeper {
    directory: Option<PathBuf>,
    jobs: mpsc::Sender<Job>,
    /// The newest list of heads, until it is on disk.
    witness: Mutex<Option<String>>,
    /// Of alerts.
    pub(crate) pace: Mutex<Pace>,
    /// Something waits for the disk.
    work: Notify,
    /// How many receipts were written: news for the sender.
    pub(crate) written: watch::Sender<u64>,
    /// How often counterparts of receipts were found to be missing.
    pub(crate) wanted: watch::Sender<u64>,
}

impl Keeper {
    /// Prepares the directory. The future writes for as long as it is polled.
    pub(crate) fn start(
        directory: Option<PathBuf>,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + use<>), KeepError> {
        if let Some(directory) = &directory {
            prepare(&directory.join(RECEIPTS))?;
        }
        let (jobs, queue) = mpsc::channel(MAX_WAITING);
        let keeper = Arc::new(Self {
            directory,
            jobs,
            witness: Mutex::new(None),
            pace: Mutex::default(),
            work: Notify::new(),
            written: watch::Sender::new(0),
            wanted: watch::Sender::new(0),
        });
        let run = run(keeper.clone(), queue);
        Ok((keeper, run))
    }

    /// The program's own directory.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Appends a receipt; the answer says whether it is durable.
    pub(crate) fn receipt(&self, line: String) -> oneshot::Receiver<bool> {
        let (done, durable) = oneshot::channel();
        if let Err(error) = self.jobs.try_send(Job { line, done }) {
            warn!("too many receipts wait for the disk");
            // Dropping it tells the caller.
            drop(error);
        }
        durable
    }

    /// Replaces the list of heads, within moments.
    pub(crate) fn heads(&self, text: String) {
        *self.pending() = Some(text);
        self.work.notify_one();
    }

    /// The list of heads as it is on disk.
    pub(crate) fn read_heads(&self) -> Result<String, KeepError> {
        let Some(directory) = &self.directory else { return Ok(String::new()) };
        read_all(&directory.join(WITNESS), MAX_WITNESS)
    }

    /// Forgets the heads seen, keeping them beside.
    pub(crate) fn forget_heads(&self) -> Result<(), KeepError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = directory.join(WITNESS);
        match fs::rename(&path, directory.join("witness.before")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(KeepError::new(&path, error))
            }
            _ => Ok(()),
        }
    }

    /// Waits until what was handed over is on disk.
    pub(crate) async fn flush(&self) {
        let _ = self.receipt(String::new()).await;
    }

    fn pending(&self) -> MutexGuard<'_, Option<String>> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receipts that the mediator has not acknowledged: lines, and where they end.
    pub(crate) fn unsent(&self, most: usize) -> Result<(Vec<String>, Place), KeepError> {
        let Some(directory) = &self.directory else { return Ok((Vec::new(), Place::default())) };
        let directory = directory.join(RECEIPTS);
        let sent = read_all(&directory.join(SENT), 64)?;
        let mut place = parse_place(&sent).unwrap_or_default();
        for segment in segments(&directory)? {
            if segment < place.segment {
                continue;
            }
            if segment > place.segment {
                place = Place { segment, offset: 0 };
            }
            let path = directory.join(name(segment));
            let (lines, end) = read_lines(&path, place.offset, most)?;
            place.offset = end;
            if !lines.is_empty() {
                return Ok((lines, place));
            }
        }
        Ok((Vec::new(), place))
    }

    /// The mediator has acknowledged everything up to here.
    pub(crate) fn acknowledged(&self, place: Place) -> Result<(), KeepError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = directory.join(RECEIPTS).join(SENT);
        // Another console may have come further.
        let before = read_all(&path, 64).ok().and_then(|text| parse_place(&text));
        if before.is_some_and(|before| before >= place) {
            return Ok(());
        }
        let text = format!("{} {}\n", place.segment, place.offset);
        replace(&path, text.as_bytes(), false).map_err(|error| KeepError::new(&path, error))
    }
}

/// All receipts kept in a program's directory, oldest first; lines that a crash cut are left out.
pub fn export(directory: &Path, mut each: impl FnMut(&str) -> io::Result<()>) -> io::Result<u64> {
    let directory = directory.join(RECEIPTS);
    let mut count = 0;
    let listed = segments(&directory).map_err(io::Error::other)?;
    for segment in listed {
        let text = read_all(&directory.join(name(segment)), 2 * MAX_SEGMENT);
        for line in text.map_err(io::Error::other)?.lines().filter(|line| is_whole(line)) {
            each(line)?;
            count += 1;
        }
    }
    Ok(count)
}

async fn run(keeper: Arc<Keeper>, mut queue: mpsc::Receiver<Job>) {
    let directory = keeper.directory.clone();
    let mut batch: Vec<Job> = Vec::new();
    loop {
        tokio::select! {
            biased;
            got = queue.recv_many(&mut batch, MAX_BATCH) => if got == 0 { return },
            () = keeper.work.notified() => {}
        }
        let heads = keeper.pending().take();
        let jobs = std::mem::take(&mut batch);
        let lines: String =
            jobs.iter().filter(|j| !j.line.is_empty()).fold(String::new(), |mut text, job| {
                text.push_str(&job.line);
                text.push('\n');
                text
            });
        let some = !lines.is_empty();
        let place = directory.clone();
        // Receipts first: the first byte waits for them.
        let durable = blocking(move || match (&place, lines.is_empty()) {
            (Some(directory), false) => append_receipts(&directory.join(RECEIPTS), &lines),
            _ => Ok(()),
        });
        let durable = durable.await.inspect_err(|error| error!(%error, "receipts are not kept"));
        for job in jobs {
            // Who asked may have gone.
            let _ = job.done.send(durable.is_ok());
        }
        if some {
            keeper.written.send_modify(|n| *n += 1);
        }
        if let (Some(text), Some(directory)) = (heads, directory.clone()) {
            let path = directory.join(WITNESS);
            let replaced = blocking(move || {
                replace(&path, text.as_bytes(), true).map_err(|e| KeepError::new(&path, e))
            });
            if let Err(error) = replaced.await {
                error!(%error, "the last head of the audit log is not kept");
            }
        }
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<(), KeepError> + Send + 'static,
) -> Result<(), KeepError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(KeepError::new(Path::new(RECEIPTS), error)),
    }
}

fn prepare(directory: &Path) -> Result<(), KeepError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    let made = builder.create(directory);
    // Receipts are gone with a folder that a power cut takes; who made it may have been killed
    // before this.
    made.and_then(|()| directory.parent().map_or(Ok(()), sync_directory))
        .map_err(|error| KeepError::new(directory, error))
}

fn append_receipts(directory: &Path, lines: &str) -> Result<(), KeepError> {
    let mut current = segments(directory)?.last().copied().unwrap_or(1);
    let path = directory.join(name(current));
    if fs::metadata(&path).is_ok_and(|meta| meta.len() >= MAX_SEGMENT) {
        current += 1;
        let oldest = current.saturating_sub(MAX_SEGMENTS);
        for old in segments(directory)?.into_iter().filter(|n| *n <= oldest) {
            let path = directory.join(name(old));
            fs::remove_file(&path).map_err(|error| KeepError::new(&path, error))?;
        }
    }
    let path = directory.join(name(current));
    append(&path, lines.as_bytes()).map_err(|error| KeepError::new(&path, error))
}

/// One write and one fsync. A line that a crash left incomplete is ended first.
pub(crate) fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = !path.exists();
    let mut file = options().read(true).append(true).create(true).open(path)?;
    let len = file.seek(SeekFrom::End(0))?;
    let mut cut = false;
    if len > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        cut = last != [b'\n'];
    }
    if cut {
        file.write_all(b"\n")?;
    }
    file.write_all(bytes)?;
    file.sync_data()?;
    match path.parent() {
        Some(parent) if fresh => sync_directory(parent),
        _ => Ok(()),
    }
}

pub(crate) fn replace(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut file = options().write(true).create(true).truncate(true).open(&beside)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(parent) if durable => sync_directory(parent),
        _ => Ok(()),
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

fn name(segment: u64) -> String {
    format!("{segment}.jsonl")
}

/// Numbers of the files of receipts, oldest first.
fn segments(directory: &Path) -> Result<Vec<u64>, KeepError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(KeepError::new(directory, error)),
    };
    let number = |entry: fs::DirEntry| {
        entry.file_name().to_str()?.strip_suffix(".jsonl")?.parse::<u64>().ok()
    };
    let mut numbers: Vec<u64> = entries.filter_map(Result::ok).filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Whole lines from an offset on, and where they end.
fn read_lines(path: &Path, offset: u64, most: usize) -> Result<(Vec<String>, u64), KeepError> {
    let failed = |error: io::Error| KeepError::new(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let at = offset.min(len);
    file.seek(SeekFrom::Start(at)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(2 * MAX_SEGMENT).read_to_end(&mut bytes).map_err(failed)?;
    let (mut lines, mut end) = (Vec::new(), at);
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        if lines.len() >= most || line.last() != Some(&b'\n') {
            break;
        }
        end += line.len() as u64;
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches('\n');
        if is_whole(text) {
            lines.push(text.to_owned());
        }
    }
    Ok((lines, end))
}

fn is_whole(line: &str) -> bool {
    line.starts_with('{') && line.ends_with('}')
}

fn parse_place(text: &str) -> Option<Place> {
    let (segment, offset) = text.trim().split_once(' ')?;
    Some(Place { segment: segment.parse().ok()?, offset: offset.parse().ok()? })
}

pub(crate) fn read_all(path: &Path, max: u64) -> Result<String, KeepError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(KeepError::new(path, error)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| KeepError::new(path, error))?;
    if bytes.len() as u64 > max {
        return Err(KeepError::damaged(path, "it is larger than this program makes it"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn receipts_survive_in_order_are_bounded_and_sent_once() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("d");
        let (keeper, run) = Keeper::start(Some(directory.clone())).unwrap();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(run);
        let waiting: Vec<_> = (0..50).map(|n| keeper.receipt(format!("{{{n}}}"))).collect();
        for durable in waiting {
            assert!(durable.await.unwrap());
        }
        // A crash in the middle of a line.
        let path = directory.join(RECEIPTS).join("1.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"cut").unwrap();
        assert!(keeper.receipt("{50}".into()).await.unwrap());
        let mut all = Vec::new();
        export(&directory, |line| {
            all.push(line.to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(all, (0..51).map(|n| format!("{{{n}}}")).collect::<Vec<_>>());
        let mut sent = Vec::new();
        loop {
            let (lines, place) = keeper.unsent(7).unwrap();
            if lines.is_empty() {
                break;
            }
            sent.extend(lines);
            keeper.acknowledged(place).unwrap();
        }
        assert_eq!(sent, all);
        // Full files make room by the oldest.
        for n in 2..=MAX_SEGMENTS + 3 {
            let path = directory.join(RECEIPTS).join(name(n));
            File::create(&path).unwrap().set_len(MAX_SEGMENT).unwrap();
        }
        assert!(keeper.receipt("{51}".into()).await.unwrap());
        let left = segments(&directory.join(RECEIPTS)).unwrap();
        assert_eq!(left.len() as u64, MAX_SEGMENTS);
        assert_eq!(left.last(), Some(&(MAX_SEGMENTS + 4)));
    }

    #[tokio::test]
    async fn a_receipt_that_cannot_be_written_is_not_durable() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("d");
        let (keeper, run) = Keeper::start(Some(directory.clone())).unwrap();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(run);
        fs::remove_dir_all(directory.join(RECEIPTS)).unwrap();
        fs::write(directory.join(RECEIPTS), b"").unwrap();
        assert!(!keeper.receipt("{}".into()).await.unwrap());
    }
}
