//! A disk that loses power: what is on it after any of the acts that the shim wrote down.
//!
//! What was synced is there. Of what was not, as POSIX allows: of each write all, none, or the
//! first or last sectors; of each name that was made, changed or removed in a folder that was not
//! synced since, the new state or the old. A file without a name, or in a folder without one, is
//! gone.

#![allow(unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use super::shim::{Act, Op};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// A small generator, so that a failure can be repeated. `None`: the worst, all that may be lost
/// is lost.
pub struct Dice(pub Option<u64>);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        let Some(state) = &mut self.0 else { return 0 };
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*state >> 33).unwrap() % sides
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    Folder,
    File(usize),
}

type Names = BTreeMap<String, Node>;

/// A change of a file that is not on disk yet.
#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

#[derive(Clone, Default)]
struct Contents {
    kept: Vec<u8>,
    waiting: Vec<Change>,
}

/// A change of a name that is not on disk yet.
#[derive(Clone)]
struct Entry {
    path: String,
    /// `None`: it goes.
    node: Option<Node>,
    /// The name that it had, which goes with it.
    from: Option<String>,
}

/// A folder with all that is in it.
#[derive(Clone, Default)]
pub struct Disk {
    files: Vec<Contents>,
    /// As programs see them.
    seen: Names,
    /// As they are on disk.
    kept: Names,
    waiting: Vec<Entry>,
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn is_file(name: &str) -> bool {
    // The index of the log in shared memory is made anew, and sockets are no files.
    !name.ends_with("-shm") && !name.ends_with(".sock")
}

impl Disk {
    /// As it is now, all of it on disk.
    pub fn read(folder: &Path) -> Self {
        let mut disk = Self::default();
        let mut left = vec![(folder.to_path_buf(), String::new())];
        while let Some((path, name)) = left.pop() {
            for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
                let own = entry.file_name().into_string().unwrap();
                let inner = if name.is_empty() { own } else { format!("{name}/{own}") };
                if entry.file_type().unwrap().is_dir() {
                    disk.seen.insert(inner.clone(), Node::Folder);
                    left.push((entry.path(), inner));
                } else if is_file(&inner) {
                    let kept = fs::read(entry.path()).unwrap();
                    disk.files.push(Contents { kept, waiting: Vec::new() });
                    disk.seen.insert(inner, Node::File(disk.files.len() - 1));
                }
            }
        }
        disk.kept = disk.seen.clone();
        disk
    }

    /// Does what a program did.
    pub fn act(&mut self, op: &Op) {
        let file = match self.seen.get(&op.path) {
            Some(Node::File(file)) => Some(*file),
            _ => None,
        };
        match (&op.act, file) {
            (Act::Write { offset, bytes }, Some(file)) => {
                self.files[file].waiting.push(Change::Write(*offset, bytes.clone()));
            }
            (Act::Truncate(size), Some(file)) => {
                self.files[file].waiting.push(Change::Truncate(*size));
            }
            (Act::Sync, Some(file)) => {
                let Contents { kept, waiting } = &mut self.files[file];
                waiting.drain(..).for_each(|change| whole(kept, &change));
            }
            (Act::Sync, None) => {
                let all = std::mem::take(&mut self.waiting);
                let (now, later) =
                    all.into_iter().partition(|entry| folder_of(&entry.path) == op.path);
                self.waiting = later;
                Vec::into_iter(now).for_each(|entry: Entry| name(&mut self.kept, &entry));
            }
            (Act::Made, _) => {
                self.files.push(Contents::default());
                let node = Some(Node::File(self.files.len() - 1));
                self.name(Entry { path: op.path.clone(), node, from: None });
            }
            (Act::FolderMade, _) => {
                self.name(Entry { path: op.path.clone(), node: Some(Node::Folder), from: None });
            }
            (Act::Removed, _) => {
                self.name(Entry { path: op.path.clone(), node: None, from: None });
            }
            (Act::Renamed(to), Some(_)) => {
                let node = self.seen.get(&op.path).copied();
                self.name(Entry { path: to.clone(), node, from: Some(op.path.clone()) });
            }
            // Of what lost its name before.
            (Act::Write { .. } | Act::Truncate(_) | Act::Renamed(_), None) => {}
        }
    }

    fn name(&mut self, entry: Entry) {
        name(&mut self.seen, &entry);
        self.waiting.push(entry);
    }

    /// The power goes.
    pub fn cut(mut self, dice: &mut Dice) -> Self {
        for contents in &mut self.files {
            for change in std::mem::take(&mut contents.waiting) {
                let kept = &mut contents.kept;
                match (&change, dice.roll(4)) {
                    (_, 0) | (Change::Truncate(_), 2) => {}
                    (Change::Write(offset, bytes), 2) => {
                        let keep = dice.roll(bytes.len() / SECTOR + 1) * SECTOR;
                        put(kept, *offset, &bytes[..keep]);
                    }
                    (Change::Write(offset, bytes), 3) => {
                        let skip = dice.roll(bytes.len() / SECTOR + 1) * SECTOR;
                        put(kept, *offset + skip, &bytes[skip..]);
                    }
                    _ => whole(kept, &change),
                }
            }
        }
        for entry in std::mem::take(&mut self.waiting) {
            if dice.roll(2) == 1 {
                name(&mut self.kept, &entry);
            }
        }
        self
    }

    /// What is on disk takes the place of what is in the folder.
    pub fn write(&self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let gone =
                if entry.is_dir() { fs::remove_dir_all(entry) } else { fs::remove_file(entry) };
            gone.unwrap();
        }
        // Folders come before what is in them.
        for (path, node) in &self.kept {
            let there =
                folder_of(path).is_empty() || self.kept.get(folder_of(path)) == Some(&Node::Folder);
            let path = folder.join(path);
            match node {
                Node::Folder => fs::DirBuilder::new().mode(0o700).create(path).unwrap(),
                Node::File(file) if there => {
                    fs::write(&path, &self.files[*file].kept).unwrap();
                    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
                }
                Node::File(_) => {}
            }
        }
    }
}

fn name(names: &mut Names, entry: &Entry) {
    if let Some(from) = &entry.from
        && names.get(from) == entry.node.as_ref()
    {
        names.remove(from);
    }
    match entry.node {
        Some(node) => names.insert(entry.path.clone(), node),
        None => names.remove(&entry.path),
    };
}

fn whole(file: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, bytes) => put(file, *offset, bytes),
        Change::Truncate(size) => file.resize(*size, 0),
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if file.len() < offset + bytes.len() {
        file.resize(offset + bytes.len(), 0);
    }
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}
