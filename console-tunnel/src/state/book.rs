//! The address book: computers as the mediator described them at login, in lists and in sessions.
//! Enough to ask for a session before the mediator has said anything, also of a computer that was
//! never opened.
//!
//! A convenience, never a decision: what is asked for by it is dropped unless the mediator's own
//! description, which comes first, is the same. One file, of one account, replaced as a whole; one
//! that cannot be read, or is of another account, counts as empty and is made anew. Bounded in
//! number and bytes: what was opened stays, then what was listed last.

use std::collections::{BTreeMap, btree_map};

use adit_protocol::{
    ids::ComputerId,
    keys::{Fingerprint, sha256},
    target::{BUILTIN_REDIRECTORS, Target, Transport},
    wire,
};
use adit_runtime::{cli::CliError, datadir::DataDir};
use bytes::Bytes;
use prost::Message;

use super::{Account, KnownComputer, KnownRedirector, Selector};

const FILE: &str = "book";
/// What earlier versions kept instead.
const FORMER_FILE: &str = "described.toml";
/// First bytes of the file; its last 32 are the SHA-256 of all before.
const MAGIC: &[u8] = b"adit-book 1\n";
/// Largest file that is read or written.
const MAX_BYTES: usize = 2 * 1024 * 1024;
/// Computers that are kept.
pub const MAX_COMPUTERS: usize = 4096;
/// Largest description that is kept: many redirectors are not worth it.
const MAX_DESCRIPTION: usize = 4 * 1024;
/// What an entry takes besides its description.
const ENTRY_HEAD: usize = 1 + 16 + NAME_HASH + 4;
/// Bytes of a name's hash.
const NAME_HASH: usize = 8;

/// Whose book: computers that one person may see are no business of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    installation: String,
    partner: String,
    user: String,
}

impl Owner {
    /// Whoever is logged in.
    pub fn of(account: &Account) -> Self {
        Self {
            installation: account.installation(),
            partner: account.partner.clone(),
            user: account.user.clone().unwrap_or_default(),
        }
    }
}

/// The book of one account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    /// The installation's root, as its mediator proved it last.
    pub root: Option<Fingerprint>,
    /// When computers were listed last, milliseconds since 1970.
    pub listed_ms: u64,
    /// What was opened, the latest first; then the others.
    entries: Vec<Entry>,
}

/// A computer. Only those that are looked for are decoded: there may be thousands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    opened: bool,
    id: ComputerId,
    name: [u8; NAME_HASH],
    /// The mediator's message.
    description: Bytes,
}

impl Book {
    /// Reads the book; an empty one if there is none that can be used.
    pub fn load(directory: &DataDir, owner: &Owner) -> Self {
        let bytes = directory.read(FILE, MAX_BYTES as u64).ok().flatten();
        bytes.and_then(|bytes| Self::decode(Bytes::from(bytes), owner)).unwrap_or_default()
    }

    /// The computer that is meant, if it is the only one that matches.
    pub fn find(&self, selector: &Selector) -> Option<KnownComputer> {
        let name = match selector {
            Selector::Id(_) => [0; NAME_HASH],
            Selector::Name { name, .. } => name_hash(name),
        };
        let may_match = |entry: &&Entry| match selector {
            Selector::Id(id) => entry.id == *id,
            Selector::Name { .. } => entry.name == name,
        };
        let found = self.entries.iter().filter(may_match).filter_map(Entry::read);
        let mut found = found.filter(|computer| selector.matches(computer));
        let first = found.next();
        first.filter(|_| found.next().is_none())
    }

    /// Puts a computer that was opened in front, unless it is there already as it is.
    pub fn opened(&mut self, computer: &KnownComputer) {
        let Some(entry) = Entry::new(computer, true) else { return };
        if !self.entries.contains(&entry) {
            self.entries.retain(|known| known.id != entry.id);
            self.entries.insert(0, entry);
            self.cut();
        }
    }

    /// Adds a computer that is not there, or is described otherwise.
    pub fn noted(&mut self, computer: &KnownComputer) {
        let Some(entry) = Entry::new(computer, false) else { return };
        match self.entries.iter_mut().find(|known| known.id == entry.id) {
            Some(known) => *known = Entry { opened: known.opened, ..entry },
            None => {
                let at = self.entries.iter().take_while(|known| known.opened).count();
                self.entries.insert(at, entry);
                self.cut();
            }
        }
    }

    /// Takes a list from the mediator. `complete`: there are no others any more.
    pub fn listed(&mut self, computers: &[KnownComputer], complete: bool, now_ms: u64) {
        let fresh = computers.iter().filter_map(|computer| Entry::new(computer, false));
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: BTreeMap<ComputerId, usize> = BTreeMap::new();
        for entry in fresh {
            if let btree_map::Entry::Vacant(place) = places.entry(entry.id) {
                place.insert(entries.len());
                entries.push(entry);
            }
        }
        let mut before = Vec::new();
        let mut after = Vec::new();
        for known in self.entries.drain(..) {
            let newer = places.get(&known.id).and_then(|at| entries.get_mut(*at));
            match newer {
                Some(newer) if known.opened => {
                    before.push(Entry { opened: true, ..newer.clone() });
                    newer.opened = true;
                }
                Some(_) => {}
                None if complete => {}
                None if known.opened => before.push(known),
                None => after.push(known),
            }
        }
        // Those that stand in front already.
        entries.retain(|entry| !entry.opened);
        self.entries = before.into_iter().chain(entries).chain(after).collect();
        self.listed_ms = now_ms;
        self.cut();
    }

    /// Keeps the bounds.
    fn cut(&mut self) {
        self.entries.truncate(MAX_COMPUTERS);
        // Room for what stands before the entries and behind them.
        let mut room = MAX_BYTES - 16 * 1024;
        let fitting = self.entries.iter().take_while(|entry| {
            let left = room.checked_sub(ENTRY_HEAD + entry.description.len());
            room = left.unwrap_or_default();
            left.is_some()
        });
        let count = fitting.count();
        self.entries.truncate(count);
    }

    fn encode(&self, owner: &Owner) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for text in [&owner.installation, &owner.partner, &owner.user] {
            put(&mut out, text.as_bytes());
        }
        put(&mut out, self.root.as_ref().map_or(&[][..], |root| &root.0));
        out.extend(self.listed_ms.to_be_bytes());
        for entry in &self.entries {
            out.push(u8::from(entry.opened));
            out.extend(entry.id.0);
            out.extend(entry.name);
            put(&mut out, &entry.description);
        }
        let sum = sha256(&out);
        out.extend(sum);
        out
    }

    fn decode(bytes: Bytes, owner: &Owner) -> Option<Self> {
        let body = bytes.len().checked_sub(32)?;
        let (text, sum) = bytes.split_at_checked(body)?;
        if sha256(text) != sum || !text.starts_with(MAGIC) {
            return None;
        }
        let mut rest = bytes.slice(MAGIC.len()..body);
        let [installation, partner, user] = [take(&mut rest)?, take(&mut rest)?, take(&mut rest)?];
        if installation != owner.installation || partner != owner.partner || user != owner.user {
            return None;
        }
        let root = take(&mut rest)?;
        let root = <[u8; 32]>::try_from(root.as_ref()).ok().map(Fingerprint);
        let listed_ms = u64::from_be_bytes(split(&mut rest, 8)?.as_ref().try_into().ok()?);
        let mut entries = Vec::new();
        while !rest.is_empty() && entries.len() < MAX_COMPUTERS {
            entries.push(Entry {
                opened: split(&mut rest, 1)?.as_ref() == [1],
                id: ComputerId(split(&mut rest, 16)?.as_ref().try_into().ok()?),
                name: split(&mut rest, NAME_HASH)?.as_ref().try_into().ok()?,
                description: take(&mut rest)?,
            });
        }
        Some(Self { root, listed_ms, entries })
    }
}

impl Entry {
    fn new(computer: &KnownComputer, opened: bool) -> Option<Self> {
        let mut description = computer.to_wire();
        if is_builtin(&computer.redirectors) {
            // Every computer's: they are known without being told.
            description.redirectors.clear();
        }
        let description = description.encode_to_vec();
        (description.len() <= MAX_DESCRIPTION).then(|| Self {
            opened,
            id: computer.id,
            name: name_hash(&computer.name),
            description: description.into(),
        })
    }

    fn read(&self) -> Option<KnownComputer> {
        KnownComputer::from_wire(wire::Computer::decode(self.description.clone()).ok()?)
    }
}

/// Changes the book on disk. Whether that works changes nothing for the command.
pub fn update(directory: &DataDir, owner: &Owner, change: impl FnOnce(&mut Book)) {
    if let Err(error) = try_update(directory, owner, change) {
        tracing::debug!(%error, "address book not written");
    }
}

fn try_update(
    directory: &DataDir,
    owner: &Owner,
    change: impl FnOnce(&mut Book),
) -> Result<(), CliError> {
    // Another console that writes at this moment knows as much.
    let _lock = directory.lock(FILE)?;
    let before = Book::load(directory, owner);
    let mut book = before.clone();
    change(&mut book);
    if book != before {
        directory.write_atomic(FILE, &book.encode(owner), 0o600)?;
        if directory.has(FORMER_FILE) {
            remove(directory, FORMER_FILE)?;
        }
    }
    Ok(())
}

/// Forgets all computers.
pub fn forget(directory: &DataDir) -> Result<(), CliError> {
    remove(directory, FORMER_FILE)?;
    remove(directory, FILE)
}

fn remove(directory: &DataDir, name: &str) -> Result<(), CliError> {
    let path = directory.file(name)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CliError::failed(
            "data_dir_unwritable",
            format!("cannot remove {}: {error}", path.display()),
        )),
        _ => Ok(()),
    }
}

/// Of the name as it is compared.
fn name_hash(name: &str) -> [u8; NAME_HASH] {
    let hash = sha256(name.to_lowercase().as_bytes());
    hash.first_chunk().copied().unwrap_or_default()
}

/// Whether these are just the redirectors that every computer has.
fn is_builtin(redirectors: &[KnownRedirector]) -> bool {
    redirectors.len() == BUILTIN_REDIRECTORS.len()
        && redirectors.iter().zip(BUILTIN_REDIRECTORS).all(|(own, builtin)| {
            let target = Target::new("127.0.0.1", builtin.port, Transport::Tcp);
            own.name == builtin.name
                && own.viewer == builtin.viewer
                && Ok(&own.target) == target.as_ref()
        })
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

fn take(rest: &mut Bytes) -> Option<Bytes> {
    let len = u32::from_be_bytes(split(rest, 4)?.as_ref().try_into().ok()?);
    split(rest, usize::try_from(len).ok()?)
}

fn split(rest: &mut Bytes, len: usize) -> Option<Bytes> {
    (len <= rest.len()).then(|| rest.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::computer::tests::computer;

    fn owner(user: &str) -> Owner {
        Owner { installation: "i".into(), partner: "p".into(), user: user.into() }
    }

    fn directory() -> (tempfile::TempDir, DataDir) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path().join("d")).unwrap();
        (temporary, directory)
    }

    #[test]
    fn what_was_described_is_found_unless_it_became_ambiguous() {
        let (_temporary, directory) = directory();
        let ann = owner("ann");
        let find = |text: &str| Book::load(&directory, &ann).find(&Selector::from(text));
        let pc = computer(1, "p/a", "PC");
        update(&directory, &ann, |book| book.listed(std::slice::from_ref(&pc), true, 7));
        assert_eq!(find("pc").unwrap().to_wire(), pc.to_wire());
        assert_eq!(find(&pc.id.to_string()).unwrap().to_wire(), pc.to_wire());
        assert!(find("a/pc").is_some() && find("b/pc").is_none() && find("p").is_none());
        // Described otherwise: another key.
        let newer = computer(1, "p/a", "pc");
        update(&directory, &ann, |book| book.opened(&newer));
        assert_eq!(find("pc").unwrap().to_wire(), newer.to_wire());
        assert_ne!(newer.to_wire(), pc.to_wire());
        update(&directory, &ann, |book| book.opened(&computer(3, "p/b", "pc")));
        assert!(find("pc").is_none() && find("p/b/pc").is_some());
        // Somebody else sees nothing of it, and begins anew.
        let bob = owner("bob");
        assert_eq!(Book::load(&directory, &bob), Book::default());
        forget(&directory).unwrap();
        forget(&directory).unwrap();
        assert!(find("p/b/pc").is_none());
    }

    #[test]
    fn any_damage_makes_it_empty_and_it_is_made_anew() {
        let (_temporary, directory) = directory();
        let ann = owner("ann");
        let pc = computer(1, "p/a", "pc");
        update(&directory, &ann, |book| book.opened(&pc));
        let good = directory.read(FILE, 10_000).unwrap().unwrap();
        assert!(Book::load(&directory, &ann).find(&Selector::from("pc")).is_some());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            for bad in [&bad[..], &good[..at]] {
                directory.write_atomic(FILE, bad, 0o600).unwrap();
                assert_eq!(Book::load(&directory, &ann), Book::default(), "{at}");
            }
            // Nothing is read beyond its end, whatever a length says.
            let sum = sha256(&bad[..good.len() - 32]);
            bad.truncate(good.len() - 32);
            bad.extend(sum);
            let _ = Book::decode(bad.into(), &ann);
        }
        update(&directory, &ann, |book| book.opened(&pc));
        assert!(Book::load(&directory, &ann).find(&Selector::from("pc")).is_some());
    }

    #[test]
    fn lists_replace_add_and_when_they_are_complete_remove() {
        let mut book = Book::default();
        let [one, two, three] = [1, 2, 3].map(|n| computer(n, "p/a", &format!("pc{n}")));
        let names = |book: &Book| -> Vec<String> {
            book.entries.iter().map(|entry| entry.read().unwrap().name).collect()
        };
        book.listed(&[one.clone(), two.clone()], false, 1);
        book.opened(&two);
        assert_eq!(names(&book), ["pc2", "pc1"]);
        book.listed(std::slice::from_ref(&three), false, 2);
        assert_eq!(names(&book), ["pc2", "pc3", "pc1"]);
        let renamed = KnownComputer { name: "new".into(), ..two.clone() };
        book.listed(&[one, renamed.clone(), renamed], true, 3);
        assert_eq!((names(&book), book.listed_ms), (vec!["new".into(), "pc1".into()], 3));
        assert!(book.find(&Selector::from("pc2")).is_none());
        book.noted(&three);
        book.noted(&KnownComputer { name: "newer".into(), ..two });
        assert_eq!(names(&book), ["newer", "pc3", "pc1"]);
        book.listed(&[computer(2, "p/a", "new"), computer(1, "p/a", "pc1")], true, 3);
        assert!(book.find(&Selector::from("new")).is_some());
    }

    #[test]
    fn thousands_are_bounded_and_what_was_opened_stays() {
        let one = computer(1, "p/a", "opened");
        let mut book = Book::default();
        book.opened(&one);
        let many: Vec<KnownComputer> = (0..10_000_u32)
            .map(|n| {
                let mut id = [0; 16];
                id[..4].copy_from_slice(&n.to_be_bytes());
                let name = format!("{}{n}", "x".repeat(200));
                KnownComputer { id: ComputerId(id), name, ..one.clone() }
            })
            .collect();
        book.listed(&many, false, 1);
        let encoded = book.encode(&owner("ann"));
        assert!(encoded.len() <= MAX_BYTES && book.entries.len() <= MAX_COMPUTERS);
        assert!(book.entries.len() > 3000, "{}", book.entries.len());
        assert_eq!(Book::decode(encoded.into(), &owner("ann")), Some(book.clone()));
        assert!(book.find(&Selector::from("opened")).is_some());
    }
}
