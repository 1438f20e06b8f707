//! Packets recorded on the wire, searched for plaintext that should not be there.

use std::{collections::HashSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::peer::fill;

/// Length of the blocks that are looked for: the AES block, and far beyond coincidence.
const BLOCK: usize = 16;
/// Length of a pcap file's header.
const PCAP_HEADER: usize = 24;

/// Every aligned 16-byte block of a pattern. Any leak of 31 bytes in a row holds a whole one.
pub struct Needles(HashSet<[u8; BLOCK]>);

impl Needles {
    /// Of the first `length` bytes of the pattern with that seed.
    pub fn of_pattern(seed: u64, length: usize) -> Self {
        let mut text = vec![0; length];
        fill(&mut text, seed, 0);
        Self(text.as_chunks().0.iter().copied().collect())
    }

    /// How many blocks of the pattern occur in the bytes, at any offset.
    pub fn count(&self, bytes: &[u8]) -> usize {
        let windows = bytes.windows(BLOCK).filter_map(|w| <&[u8; BLOCK]>::try_from(w).ok());
        windows.filter(|w| self.0.contains(*w)).count()
    }
}

/// The bytes of a capture, which must not be empty.
pub fn read(pcap: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(pcap).with_context(|| pcap.display().to_string())?;
    ensure!(bytes.len() > PCAP_HEADER, "{} holds no packets", pcap.display());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_leak_at_any_offset() {
        let needles = Needles::of_pattern(7, 64 * 1024);
        let mut leak = vec![0; 40];
        fill(&mut leak, 7, 4096 - 8);
        let mut bytes = vec![0xaa; 1000];
        assert_eq!(needles.count(&bytes), 0);
        bytes.splice(501..501, leak);
        assert_eq!(needles.count(&bytes), 2);
        let mut other = vec![0; 1000];
        fill(&mut other, 8, 0);
        assert_eq!(needles.count(&other), 0);
    }
}
