//! Two builds, bit for bit; where they differ, in which section, and what stands there.

use std::fmt::Write as _;

/// How much of what stands around a difference is shown.
const SHOWN: usize = 64;
/// ELF's type of sections that take no room in the file (System V ABI, "Section Header").
const SHT_NOBITS: u32 = 8;
/// What programs say; a path or a time in it is the usual culprit, so it is shown first.
const WORDS: &str = ".rodata";

/// Says how two files differ, or nothing.
pub(crate) fn difference(one: &[u8], two: &[u8]) -> Option<String> {
    let at = first_difference(one, two)?;
    let mut told = match one.len() == two.len() {
        true => format!("differs from byte {at} on"),
        false => format!("has {} bytes and {}, differs from byte {at} on", one.len(), two.len()),
    };
    let (mine, theirs) = (sections(one), sections(two));
    let mut differing = Vec::new();
    if let (Some(mine), Some(theirs)) = (&mine, &theirs) {
        for (name, bytes) in mine {
            let other = theirs.iter().find(|(other, _)| other == name).map(|(_, bytes)| *bytes);
            if other != Some(*bytes) {
                differing.push((*name, *bytes, other.unwrap_or_default()));
            }
        }
    }
    if !differing.is_empty() {
        let names: Vec<_> = differing.iter().map(|(name, ..)| *name).collect();
        let _ = write!(told, "; sections that differ: {}", names.join(", "));
    }
    let telling = differing.iter().find(|(name, ..)| *name == WORDS).or(differing.first());
    let (a, b) = telling.map_or((one, two), |(_, a, b)| (*a, *b));
    let at = first_difference(a, b).unwrap_or_default();
    let _ = write!(told, "\n    one: {}\n    two: {}", around(a, at), around(b, at));
    Some(told)
}

/// Where something begins in something longer.
pub(crate) fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut from = 0;
    loop {
        let rest = bytes.get(from..)?;
        let at = from + rest.iter().position(|byte| *byte == first)?;
        if bytes.get(at..)?.starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
}

fn first_difference(one: &[u8], two: &[u8]) -> Option<usize> {
    let differing = one.iter().zip(two).position(|(a, b)| a != b);
    differing.or_else(|| (one.len() != two.len()).then(|| one.len().min(two.len())))
}

/// What stands there, with dots for what cannot be shown.
fn around(bytes: &[u8], at: usize) -> String {
    let from = at.saturating_sub(SHOWN / 2);
    let to = bytes.len().min(from + SHOWN);
    let show = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' };
    bytes.get(from..to).unwrap_or_default().iter().map(show).collect()
}

/// Sections of a 64-bit little-endian ELF file, in their order; nothing for any other file.
fn sections(file: &[u8]) -> Option<Vec<(&str, &[u8])>> {
    file.strip_prefix(b"\x7fELF\x02\x01")?;
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(part(file, at)?)));
    let word = |at: usize| Some(u32::from_le_bytes(part(file, at)?));
    let long = |at: usize| usize::try_from(u64::from_le_bytes(part(file, at)?)).ok();
    let (table, size, count, names) = (long(0x28)?, half(0x3a)?, half(0x3c)?, half(0x3e)?);
    let header = |index: usize| table.checked_add(size.checked_mul(index)?);
    let content = |at: usize| {
        let from = long(at.checked_add(0x18)?)?;
        file.get(from..from.checked_add(long(at.checked_add(0x20)?)?)?)
    };
    let names = content(header(names)?)?;
    let mut found = Vec::new();
    for at in (0..count).map_while(header) {
        let name = names.get(usize::try_from(word(at)?).ok()?..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let empty = word(at.checked_add(4)?)? == SHT_NOBITS;
        let bytes = if empty { Some(&[][..]) } else { content(at) };
        found.push((std::str::from_utf8(name).ok()?, bytes?));
    }
    Some(found)
}

fn part<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_told_with_what_stands_there() {
        assert_eq!(difference(b"same", b"same"), None);
        let told = difference(b"built at 10:00 by me", b"built at 11:00 by me").unwrap();
        assert!(told.contains("from byte 10 on"), "{told}");
        assert!(told.contains("built.at.10:00") && told.contains("built.at.11:00"), "{told}");
        let told = difference(b"same", b"same and more").unwrap();
        assert!(told.contains("4 bytes and 13") && told.contains("byte 4 on"), "{told}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn sections_are_named() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let found = sections(&own).unwrap();
        let (_, words) = found.iter().find(|(name, _)| *name == WORDS).unwrap();
        let at = position(&own, words).unwrap();
        let mut other = own.clone();
        other[at + words.len() / 2] ^= 1;
        let told = difference(&own, &other).unwrap();
        assert!(told.contains("sections that differ: .rodata\n"), "{told}");
        // Whatever is cut off or broken is no ELF file, and no panic.
        for end in [0, 6, 0x3f, 0x40, own.len() / 2] {
            let _ = difference(&own[..end], &other);
        }
        other[0x28..0x30].fill(0xff);
        assert!(sections(&other).is_none() && difference(&own, &other).is_some());
    }

    #[test]
    fn positions_are_found() {
        assert_eq!(position(b"aab aac", b"aac"), Some(4));
        assert_eq!((position(b"aab", b"c"), position(b"", b"c")), (None, None));
    }
}
