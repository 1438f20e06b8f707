//! Replays the committed fuzz corpus: nothing in it may break a decoder's promises, examples that
//! were valid stay valid, and every decoder has a corpus, by which it is a target.
//!
//! `ADIT_WRITE_CORPUS=1 cargo test -p adit-tests --test corpus` writes missing valid examples.

use std::{collections::BTreeSet, fs, path::PathBuf};

use adit_tests::{decoders::DECODERS, lab::folder};

fn corpus(name: &str) -> PathBuf {
    folder().join("fuzz/corpus").join(name)
}

#[test]
fn corpus_keeps_all_promises() {
    let write = std::env::var_os("ADIT_WRITE_CORPUS").is_some();
    for decoder in DECODERS {
        let dir = corpus(decoder.name);
        let examples = (decoder.valid)();
        assert!(!examples.is_empty(), "{} has no valid example", decoder.name);
        for (n, example) in examples.iter().enumerate() {
            assert!((decoder.accepts)(example), "{}: example {n} is refused", decoder.name);
            let file = dir.join(format!("valid-{n}"));
            if write && !file.exists() {
                fs::create_dir_all(&dir).unwrap();
                fs::write(file, example).unwrap();
            }
        }
        let mut valid = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let accepted = (decoder.accepts)(&bytes);
            if path.file_name().unwrap().to_string_lossy().starts_with("valid-") {
                assert!(accepted, "{} is refused now", path.display());
                valid += 1;
            }
            // Its neighbours: cut short, and with one bit changed.
            for at in 0..bytes.len().min(512) {
                let _ = (decoder.accepts)(&bytes[..at]);
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                let _ = (decoder.accepts)(&changed);
            }
        }
        assert!(valid > 0, "{} has no valid example in its corpus", decoder.name);
    }
}

/// `cargo xtask fuzz` takes the names of its targets from the corpus.
#[test]
fn every_decoder_has_its_fuzz_target() {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let targets: BTreeSet<String> =
        fs::read_dir(folder().join("fuzz/corpus")).unwrap().map(name).collect();
    let decoders: BTreeSet<String> = DECODERS.iter().map(|d| d.name.to_owned()).collect();
    assert_eq!(targets, decoders);
}
