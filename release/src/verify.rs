//! Checks a release: who signed, that every file is what was signed, that none is missing and none
//! came along. Believes nothing in the directory before the signature is checked.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    Findings, envelope,
    key::PublicKey,
    make::{KEY, SIGNED, SUMS, UNSIGNED},
    provenance::{self, Subjects},
};

/// No statement, no list of sums is longer.
const MAX_TEXT: u64 = 1024 * 1024;
/// What a key's fingerprint begins with.
const FINGERPRINT: &str = "sha256:";

/// Findings, or nothing if the release is what the key signed.
pub(crate) fn run(dir: &Path, key: &str) -> Result<Findings> {
    let signed = dir.join(SIGNED);
    if !signed.exists() {
        let unsigned = dir.join(UNSIGNED).exists();
        let why = if unsigned { "is not signed" } else { "is no release, or lacks its signature" };
        return Ok(vec![format!("{} {why}: there is no {SIGNED}", dir.display())]);
    }
    let key = match key.strip_prefix(FINGERPRINT) {
        None => PublicKey::load(Path::new(key))?,
        Some(digits) => {
            if digits.len() != 64 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
                bail!("a fingerprint is {FINGERPRINT} and 64 hexadecimal digits");
            }
            let found = PublicKey::load(&dir.join(KEY))?;
            if !found.fingerprint().eq_ignore_ascii_case(key) {
                let found = found.fingerprint();
                return Ok(vec![format!("{KEY} is another key: {found}, not {key}")]);
            }
            found
        }
    };
    let statement = match envelope::open(&read_text(&signed)?, &key) {
        Ok(statement) => statement,
        Err(error) => return Ok(vec![format!("{SIGNED} {error:#}")]),
    };
    let claims = provenance::read(&statement)?;
    let mut findings = contents(dir, &claims.subjects, &[SIGNED, KEY])?;
    if let Ok(beside) = PublicKey::load(&dir.join(KEY))
        && beside != key
    {
        findings.push(format!("{KEY} is not the key that signed"));
    }
    if findings.is_empty() {
        println!("signed by {}", key.fingerprint());
        println!("commit    {}", claims.commit);
        println!("target    {}", claims.target);
        println!("builder   {}", claims.builder);
        println!("rustc     {}", claims.rustc);
        println!("{} files, all as signed, none missing, none added", claims.subjects.len());
    }
    Ok(findings)
}

/// Compares what lies there with what should, besides files that cannot be in their own digest.
pub(crate) fn contents(dir: &Path, subjects: &Subjects, besides: &[&str]) -> Result<Findings> {
    let mut findings = Findings::new();
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((expected, _)) = subjects.get_key_value(&name) else {
            if !besides.contains(&name.as_str()) {
                findings.push(format!("{name:?} was not signed: it came along"));
            }
            continue;
        };
        seen.insert(expected);
        // Not what a link leads to: that can be changed without changing the directory.
        if !entry.file_type()?.is_file() {
            findings.push(format!("{name} is no regular file"));
        } else if subjects.get(&name) != Some(&provenance::sha256(&entry.path())?) {
            findings.push(format!("{name} is not what was signed"));
        }
    }
    for missing in subjects.keys().filter(|name| !seen.contains(name)) {
        findings.push(format!("{missing} is missing"));
    }
    findings.extend(sums(dir, subjects)?);
    findings.sort();
    Ok(findings)
}

/// Whether who only compares checksums compares with the same.
fn sums(dir: &Path, subjects: &Subjects) -> Result<Findings> {
    let file: PathBuf = dir.join(SUMS);
    if !subjects.contains_key(SUMS) || !file.is_file() {
        return Ok(vec![format!("{SUMS} is missing")]);
    }
    let text = read_text(&file)?;
    let line = |line: &str| line.split_once("  ").map(|(sum, name)| (name.into(), sum.into()));
    let told: Option<Subjects> = text.lines().map(line).collect();
    let mut expected = subjects.clone();
    expected.remove(SUMS);
    let same = told.is_some_and(|told| told == expected);
    Ok(if same { Vec::new() } else { vec![format!("{SUMS} does not name what was signed")] })
}

pub(crate) fn read_text(file: &Path) -> Result<String> {
    let mut text = String::new();
    let open = fs::File::open(file).with_context(|| file.display().to_string())?;
    let read = open.take(MAX_TEXT + 1).read_to_string(&mut text);
    let read = read.with_context(|| file.display().to_string())?;
    if read as u64 > MAX_TEXT {
        bail!("{} is too long", file.display());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{key, make::tests::release};

    /// A signed release, its key's fingerprint and the key.
    fn signed() -> (tempfile::TempDir, PathBuf, String) {
        let root = tempfile::tempdir().unwrap();
        let (dir, file) = (root.path().join("release"), root.path().join("key"));
        let public = key::generate(&file).unwrap();
        release(&dir, Some(&file));
        (root, dir, public.fingerprint())
    }

    #[test]
    fn a_release_holds_by_fingerprint_and_by_key_and_for_no_other_key() {
        let (root, dir, fingerprint) = signed();
        let file = root.path().join("key.pub");
        assert_eq!(run(&dir, &fingerprint).unwrap(), Findings::new());
        assert_eq!(run(&dir, file.to_str().unwrap()).unwrap(), Findings::new());
        let other = root.path().join("other");
        let stranger = key::generate(&other).unwrap();
        assert!(run(&dir, &stranger.fingerprint()).unwrap()[0].contains("is another key"));
        let stranger = root.path().join("other.pub");
        assert!(run(&dir, stranger.to_str().unwrap()).unwrap()[0].contains("is not signed by"));
        assert!(run(&dir, "sha256:12").is_err() && run(&dir, "nowhere.pem").is_err());
        // Whoever signs it anew with a key of his own has another fingerprint.
        let anew = root.path().join("anew");
        release(&anew, Some(&other));
        assert!(run(&anew, &fingerprint).unwrap()[0].contains("is another key"));
        fs::copy(root.path().join("key.pub"), anew.join(KEY)).unwrap();
        assert!(run(&anew, &fingerprint).unwrap()[0].contains("is not signed by"));
    }

    #[test]
    fn whatever_was_changed_taken_or_added_is_named() {
        let change = |change: &dyn Fn(&Path)| {
            let (_root, dir, fingerprint) = signed();
            change(&dir);
            run(&dir, &fingerprint).unwrap().join("\n")
        };
        let found = change(&|dir| fs::write(dir.join("relay"), "bitz").unwrap());
        assert_eq!(found, "relay is not what was signed");
        let found = change(&|dir| fs::remove_file(dir.join("relay-t.cdx.json")).unwrap());
        assert_eq!(found, "relay-t.cdx.json is missing");
        let found = change(&|dir| fs::write(dir.join("extra"), "").unwrap());
        assert_eq!(found, "\"extra\" was not signed: it came along");
        let found = change(&|dir| fs::create_dir(dir.join("more")).unwrap());
        assert!(found.contains("\"more\" was not signed"), "{found}");
        let found = change(&|dir| {
            let sums = read_text(&dir.join(SUMS)).unwrap();
            fs::write(dir.join(SUMS), sums.replace("  relay\n", "  relax\n")).unwrap();
        });
        assert!(found.contains("SHA256SUMS is not what was signed"), "{found}");
        let found = change(&|dir| fs::remove_file(dir.join(SIGNED)).unwrap());
        assert!(found.contains("lacks its signature"), "{found}");
        #[cfg(unix)]
        {
            let found = change(&|dir| {
                fs::rename(dir.join("relay"), dir.join("../relay")).unwrap();
                std::os::unix::fs::symlink("../relay", dir.join("relay")).unwrap();
            });
            assert_eq!(found, "relay is no regular file");
        }
    }

    /// What docs/release.md tells outsiders to type, typed.
    #[test]
    #[cfg(target_os = "linux")]
    fn standard_tools_verify_a_release_as_the_documentation_says() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/release.md");
        let docs = fs::read_to_string(docs).unwrap();
        let (_, rest) = docs.split_once("```sh\n# standard tools").unwrap();
        let (script, _) = rest.split_once("```").unwrap();
        let (_root, dir, fingerprint) = signed();
        let check = |fingerprint: &str| {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-eu", "-c", &format!("#{script}")]).current_dir(&dir);
            shell.env("KEY", fingerprint.trim_start_matches(FINGERPRINT));
            let told = shell.output().unwrap();
            let text = [told.stdout, told.stderr].concat();
            (told.status.success(), String::from_utf8(text).unwrap())
        };
        let (good, told) = check(&fingerprint);
        assert!(good && told.contains("relay: OK"), "{told}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 5, "it leaves nothing behind");
        assert!(!check(&"0".repeat(64)).0, "any key");
        let envelope = read_text(&dir.join(SIGNED)).unwrap();
        for (name, spoilt) in [
            ("relay", "bitz".to_owned()),
            (SUMS, read_text(&dir.join(SUMS)).unwrap() + "\n"),
            (SIGNED, envelope.replace("\"payload\": \"e", "\"payload\": \"f")),
        ] {
            let kept = fs::read(dir.join(name)).unwrap();
            fs::write(dir.join(name), spoilt).unwrap();
            let (good, told) = check(&fingerprint);
            assert!(!good, "{name}: {told}");
            fs::write(dir.join(name), kept).unwrap();
        }
        assert!(check(&fingerprint).0);
    }
}
