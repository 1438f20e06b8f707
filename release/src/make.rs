//! Makes a release: a directory with programs, bills of materials, checksums and the statement,
//! plainly not signed; and signs one.
//!
//! Never both in one go: build scripts of every dependency run as whoever builds, and must find no
//! key in a file of theirs or in the memory of a process of theirs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    Common, Findings,
    build::{self, Built, Recipe, Surroundings},
    envelope,
    key::SigningKey,
    provenance::{self, Facts, Subjects},
    verify,
};

/// Checksums, as `sha256sum -c` reads them.
pub(crate) const SUMS: &str = "SHA256SUMS";
/// The statement in its signed envelope.
pub(crate) const SIGNED: &str = "provenance.dsse.json";
/// The statement of a release that nobody signed.
pub(crate) const UNSIGNED: &str = "provenance.json";
/// The key that signed, for those who know its fingerprint.
pub(crate) const KEY: &str = "release-key.pem";
/// Set by `cargo xtask`: the program that makes bills of materials.
const XTASK: &str = "ADIT_XTASK";

/// How to make one.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Must be empty or absent
    #[arg(long, value_name = "DIR", default_value = "target/dist")]
    output: PathBuf,
    /// Who builds, as a URI: what the statement names as the builder
    #[arg(long, value_name = "URI", default_value = "urn:adit:builder:unattended")]
    builder: String,
}

/// Builds HEAD and writes the directory.
pub(crate) fn run(options: &Options) -> Result<()> {
    let recipe = Recipe::of_head(&options.common, true)?;
    let output = &options.output;
    fs::create_dir_all(output).with_context(|| output.display().to_string())?;
    ensure!(fs::read_dir(output)?.next().is_none(), "{} is not empty", output.display());
    let work = work_dir(&options.common)?;
    let surroundings = Surroundings {
        root: work.path().join("build"),
        timezone: "UTC",
        locale: "C",
        umask: "022",
        hostname: None,
    };
    println!("building {} of {}", recipe.programs.join(", "), recipe.commit);
    let built = recipe.build(&surroundings)?;
    for (name, file) in &built.programs {
        install(file, &output.join(name), 0o755)?;
    }
    bills(&recipe, &built, work.path(), output)?;
    finish(output, &recipe, &built, &options.builder)
}

/// Where to build; gone afterwards.
pub(crate) fn work_dir(common: &Common) -> Result<tempfile::TempDir> {
    let base = common.work_dir.clone().unwrap_or_else(env::temp_dir);
    fs::create_dir_all(&base)?;
    tempfile::Builder::new().prefix("adit-release-").tempdir_in(base).context("--work-dir")
}

/// Bills of materials of the commit, not of the work tree.
fn bills(recipe: &Recipe, built: &Built, work: &Path, output: &Path) -> Result<()> {
    let bills = work.join("bills");
    let xtask = env::var_os(XTASK).context("run this by cargo xtask release")?;
    let mut sbom = Command::new(xtask);
    sbom.args(["sbom", "--target", &recipe.target, "--root"]).arg(&built.source);
    build::run(sbom.arg("--output").arg(&bills).current_dir(&recipe.repository))?;
    for program in &recipe.programs {
        let name = format!("{program}-{}.cdx.json", recipe.target);
        install(&bills.join(&name), &output.join(&name), 0o644)?;
    }
    Ok(())
}

fn finish(output: &Path, recipe: &Recipe, built: &Built, builder: &str) -> Result<()> {
    let mut subjects = digests(output)?;
    let line = |(name, digest): (&String, &String)| format!("{digest}  {name}\n");
    write(&output.join(SUMS), &subjects.iter().map(line).collect::<String>())?;
    subjects.insert(SUMS.to_owned(), provenance::sha256(&output.join(SUMS))?);
    let facts = Facts {
        commit: &recipe.commit,
        lock: provenance::sha256(&built.source.join("Cargo.lock"))?,
        target: &recipe.target,
        programs: &recipe.programs,
        builder,
        tools: &built.tools,
    };
    write(&output.join(UNSIGNED), &provenance::statement(&facts, &subjects))?;
    println!("{} holds {} files of {}", output.display(), subjects.len() + 1, recipe.commit);
    println!(
        "NOT SIGNED: anybody could have made it. Where the key is, build it again and sign it:"
    );
    println!("  cargo xtask release reproduce --against DIR");
    println!("  cargo xtask release sign DIR --commit {} --sign-key FILE", recipe.commit);
    Ok(())
}

fn write_signed(output: &Path, statement: &str, key: &SigningKey) -> Result<()> {
    let public = key.public()?;
    write(&output.join(SIGNED), &envelope::sign(statement.as_bytes(), key)?)?;
    write(&output.join(KEY), &public.to_pem())?;
    println!("signed by {}", public.fingerprint());
    Ok(())
}

/// Signs what was built, if it is whole and of the commit that whoever signs means: all else that
/// it says of itself came from where it was built.
pub(crate) fn sign(dir: &Path, commit: &str, key: &Path) -> Result<Findings> {
    let unsigned = dir.join(UNSIGNED);
    let statement = verify::read_text(&unsigned)
        .with_context(|| format!("{} is no unsigned release", dir.display()))?;
    let claims = provenance::read(statement.as_bytes())?;
    let mut findings = verify::contents(dir, &claims.subjects, &[UNSIGNED])?;
    if claims.commit != commit {
        findings.push(format!("it is of commit {}, not of {commit}", claims.commit));
    }
    println!("commit {}, for {}", claims.commit, claims.target);
    println!("built by {} with {}", claims.builder, claims.rustc);
    claims.subjects.iter().for_each(|(name, digest)| println!("{digest}  {name}"));
    if findings.is_empty() {
        write_signed(dir, &statement, &SigningKey::load(key)?)?;
        fs::remove_file(unsigned)?;
    }
    Ok(findings)
}

fn digests(directory: &Path) -> Result<Subjects> {
    let mut digests = Subjects::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a file's name is no text")?;
        digests.insert(name, provenance::sha256(&entry.path())?);
    }
    Ok(digests)
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    set_mode(to, mode)
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| file.display().to_string())?;
    set_mode(file, 0o644)
}

#[cfg(unix)]
fn set_mode(file: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(mode))?)
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) -> Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{build::Tools, key};

    /// A release of two files in `dir`; with a key, signed by it.
    pub(crate) fn release(dir: &Path, key: Option<&Path>) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in [("relay", "bits"), ("relay-t.cdx.json", "{}")] {
            fs::write(dir.join(name), text).unwrap();
        }
        let source = tempfile::tempdir().unwrap();
        fs::write(source.path().join("Cargo.lock"), "version = 4\n").unwrap();
        let recipe = Recipe {
            repository: PathBuf::new(),
            commit: "c0ffee".into(),
            target: "t".into(),
            release: true,
            packages: Vec::new(),
            programs: vec!["relay".into()],
            jobs: None,
        };
        let tools = Tools { rustc: "rustc 1".into(), cargo: "cargo 1".into(), cc: "cc 1".into() };
        let built = Built { source: source.path().into(), programs: Vec::new(), tools };
        finish(dir, &recipe, &built, "urn:b").unwrap();
        if let Some(key) = key {
            assert!(sign(dir, "c0ffee", key).unwrap().is_empty());
        }
    }

    #[test]
    fn what_was_built_can_be_signed_elsewhere_unless_it_was_changed() {
        let root = tempfile::tempdir().unwrap();
        let (dir, file) = (root.path().join("release"), root.path().join("key"));
        let public = key::generate(&file).unwrap().fingerprint();
        release(&dir, None);
        assert!(verify::run(&dir, &public).unwrap()[0].contains("not signed"));
        fs::write(dir.join("relay"), "other bits").unwrap();
        assert_eq!(sign(&dir, "c0ffee", &file).unwrap().len(), 1);
        assert!(!dir.join(SIGNED).exists());
        fs::write(dir.join("relay"), "bits").unwrap();
        // Another commit than the one that is meant is not signed, however whole.
        assert!(sign(&dir, "c0ffee0", &file).unwrap()[0].contains("of commit c0ffee,"));
        assert!(!dir.join(SIGNED).exists());
        assert!(sign(&dir, "c0ffee", &file).unwrap().is_empty());
        assert!(verify::run(&dir, &public).unwrap().is_empty());
        // The same bytes whenever and wherever it is signed.
        let again = root.path().join("again");
        release(&again, Some(&file));
        assert_eq!(digests(&dir).unwrap(), digests(&again).unwrap());
    }
}
