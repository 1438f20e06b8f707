//! Known advisories against `Cargo.lock` and the toolchain, from a checkout of the RustSec advisory
//! database (`crates/NAME/ID.md`, TOML in front of the text).
//!
//! Fetches nothing: the directory is given (`--db DIR`, `ADIT_ADVISORY_DB`) or is where cargo-audit
//! and cargo-deny keep theirs. Everything locked is judged, compiled or not. What is known and
//! accepted stands in `deny.toml`, with the reason; an acceptance that nothing needs is a finding,
//! and so is an advisory that cannot be read.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::semver::{Version, VersionReq};
use toml::{Table, Value};

use super::Findings;
use crate::process;

/// Names the database for checks that are run without arguments.
const DATABASE: &str = "ADIT_ADVISORY_DB";
const FENCE: &str = "```";
/// Collections of the database: what `Cargo.lock` holds, and what comes with the toolchain.
const CRATES: &str = "crates";
const RUST: &str = "rust";

/// One advisory, as far as it decides.
#[derive(Debug)]
struct Advisory {
    id: String,
    collection: &'static str,
    package: String,
    title: String,
    /// As the database writes it; such dates sort as text.
    date: String,
    /// "unmaintained", "unsound" or "notice"; none for a vulnerability.
    informational: Option<String>,
    withdrawn: bool,
    /// Versions to which it does not apply.
    patched: Vec<VersionReq>,
    unaffected: Vec<VersionReq>,
}

/// Something of ours that an advisory may be about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Used {
    collection: &'static str,
    name: String,
    version: Version,
}

/// `cargo xtask ci advisories --db DIR [--max-age DAYS]`: fails if there is a finding.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (mut database, mut max_age) = (None, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--db" => database = Some(PathBuf::from(value)),
            "--max-age" => max_age = Some(value.parse().context("--max-age is a number of days")?),
            _ => bail!("usage: cargo xtask ci advisories [--db DIR] [--max-age DAYS]"),
        }
    }
    let database = database.or_else(found).with_context(|| {
        format!("no advisory database is here: give its checkout with --db DIR or {DATABASE}")
    })?;
    let findings = check_against(&database, max_age)?;
    findings.iter().for_each(|finding| println!("{finding}"));
    ensure!(findings.is_empty(), "{} findings", findings.len());
    Ok(())
}

/// The same among the other checks, where a database is there.
pub(crate) fn check_workspace() -> Result<Findings> {
    match found() {
        Some(database) => check_against(&database, None),
        None => {
            println!("note  no advisory database is here ({DATABASE}): advisories are not checked");
            Ok(Vec::new())
        }
    }
}

/// What is named by the environment, or what other tools fetched.
fn found() -> Option<PathBuf> {
    if let Some(named) = env::var_os(DATABASE) {
        return Some(named.into());
    }
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")))?;
    let denys = fs::read_dir(home.join("advisory-dbs")).into_iter().flatten().flatten();
    let mut places: Vec<_> = denys.map(|entry| entry.path()).collect();
    places.push(home.join("advisory-db"));
    places.into_iter().find(|place| place.join(CRATES).is_dir())
}

fn check_against(database: &Path, max_age: Option<i64>) -> Result<Findings> {
    let (advisories, mut findings) = load(database)?;
    let newest = advisories.iter().map(|a| a.date.as_str()).max().unwrap_or_default();
    println!("note  {} advisories are known, the newest of {newest}", advisories.len());
    if let Some(days) = max_age {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 86_400;
        let age = i64::try_from(now)? - day(newest).context("the newest advisory has no date")?;
        if age > days {
            findings.push(format!("the advisory database ends {age} days ago: fetch it anew"));
        }
    }
    let read = |name: &str| fs::read_to_string(process::root().join(name)).context(name.to_owned());
    let mut used = locked(&read("Cargo.lock")?)?;
    used.extend(toolchain(&read("rust-toolchain.toml")?)?);
    findings.extend(check(&advisories, &used, &accepted(&read("deny.toml")?)?));
    Ok(findings)
}

fn check(advisories: &[Advisory], used: &BTreeSet<Used>, accepted: &BTreeSet<String>) -> Findings {
    let (mut findings, mut needed) = (Vec::new(), BTreeSet::new());
    for advisory in advisories {
        for used in used.iter().filter(|used| advisory.is_about(used)) {
            if accepted.contains(&advisory.id) {
                needed.insert(&advisory.id);
                continue;
            }
            let Advisory { id, title, informational, patched, .. } = advisory;
            let kind = informational.as_deref().unwrap_or("vulnerable");
            let patched: Vec<_> = patched.iter().map(ToString::to_string).collect();
            let way_out = match patched.as_slice() {
                [] => "no version is patched".to_owned(),
                versions => format!("patched: {}", versions.join(" or ")),
            };
            let Used { name, version, .. } = used;
            findings.push(format!("{name} {version} is {kind}: {title} ({id}; {way_out})"));
        }
    }
    for unused in accepted.iter().filter(|id| !needed.contains(id)) {
        findings.push(format!("deny.toml accepts {unused}, which nothing needs"));
    }
    findings
}

impl Advisory {
    fn is_about(&self, used: &Used) -> bool {
        let covers = |list: &[VersionReq]| list.iter().any(|req| req.matches(&used.version));
        !self.withdrawn
            && (self.collection, &self.package) == (used.collection, &used.name)
            && !covers(&self.patched)
            && !covers(&self.unaffected)
    }

    fn parse(collection: &'static str, text: &str) -> Result<Self> {
        let front = text.strip_prefix(FENCE).and_then(|rest| rest.strip_prefix("toml"));
        let (front, rest) = front
            .and_then(|front| front.split_once(&format!("\n{FENCE}")))
            .context("does not begin with TOML")?;
        let front: Table = front.parse()?;
        let advisory = front.get("advisory").context("[advisory] is missing")?;
        let text = |key| advisory.get(key).and_then(Value::as_str).map(str::to_owned);
        let demand = |key| text(key).with_context(|| format!("{key} is missing"));
        let versions = front.get("versions").context("[versions] is missing")?;
        // An advisory may leave either out; what is there must be understood.
        let list = |key: &str| -> Result<Vec<VersionReq>> {
            let Some(list) = versions.get(key) else { return Ok(Vec::new()) };
            let list = list.as_array().with_context(|| format!("{key} is no list"))?;
            let one = |value: &Value| {
                let text = value.as_str().with_context(|| format!("{key} is no list of text"))?;
                VersionReq::parse(text).with_context(|| text.to_owned())
            };
            list.iter().map(one).collect()
        };
        let title = rest.lines().find_map(|line| line.strip_prefix("# "));
        Ok(Self {
            id: demand("id")?,
            collection,
            package: demand("package")?,
            title: title.unwrap_or_default().trim().to_owned(),
            date: demand("date")?,
            informational: text("informational"),
            withdrawn: advisory.get("withdrawn").is_some(),
            patched: list("patched")?,
            unaffected: list("unaffected")?,
        })
    }
}

/// All advisories of a checkout, and findings about those that cannot be read.
fn load(database: &Path) -> Result<(Vec<Advisory>, Findings)> {
    let (mut advisories, mut findings) = (Vec::new(), Findings::new());
    for collection in [CRATES, RUST] {
        let directory = database.join(collection);
        let packages = fs::read_dir(&directory).with_context(|| {
            format!("{} is no checkout of the advisory database", database.display())
        })?;
        for package in packages {
            for file in fs::read_dir(package?.path())? {
                let file = file?.path();
                if file.extension().is_none_or(|extension| extension != "md") {
                    continue;
                }
                match Advisory::parse(collection, &fs::read_to_string(&file)?) {
                    Ok(advisory) => advisories.push(advisory),
                    Err(error) => findings.push(format!("{}: {error:#}", file.display())),
                }
            }
        }
    }
    ensure!(!advisories.is_empty(), "{} holds no advisory", database.display());
    advisories.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((advisories, findings))
}

/// What was fetched from a registry; the workspace's own packages are nobody's advisory.
fn locked(lock: &str) -> Result<BTreeSet<Used>> {
    let lock: Table = lock.parse().context("Cargo.lock")?;
    let packages = lock.get("package").and_then(Value::as_array).context("Cargo.lock is empty")?;
    let foreign = packages.iter().filter(|package| package.get("source").is_some());
    foreign
        .map(|package| {
            let text = |key| package.get(key).and_then(Value::as_str);
            let (name, version) = text("name").zip(text("version")).context("Cargo.lock")?;
            Ok(Used { collection: CRATES, name: name.into(), version: Version::parse(version)? })
        })
        .collect()
}

/// The standard library and tools of the toolchain that `rust-toolchain.toml` pins.
fn toolchain(file: &str) -> Result<BTreeSet<Used>> {
    let file: Table = file.parse().context("rust-toolchain.toml")?;
    let channel = file.get("toolchain").and_then(|t| t.get("channel")).and_then(Value::as_str);
    let version = Version::parse(channel.context("rust-toolchain.toml names no channel")?)
        .context("rust-toolchain.toml pins no version")?;
    let of =
        |name: &str| Used { collection: RUST, name: name.to_owned(), version: version.clone() };
    Ok(["std", "rustc", "cargo", "rustdoc"].into_iter().map(of).collect())
}

/// What `deny.toml` accepts, by id; without a reason it accepts nothing.
fn accepted(deny: &str) -> Result<BTreeSet<String>> {
    let deny: Table = deny.parse().context("deny.toml")?;
    let list = deny.get("advisories").and_then(|a| a.get("ignore")).and_then(Value::as_array);
    let one = |value: &Value| {
        let text = |key| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let id = text("id").with_context(|| format!("deny.toml: {value} names no id"))?;
        text("reason").with_context(|| format!("deny.toml: {id}: state a reason"))?;
        Ok(id.to_owned())
    };
    list.into_iter().flatten().map(one).collect()
}

/// Days from 1970-01-01 to `YYYY-MM-DD` (Hinnant's `days_from_civil`).
fn day(date: &str) -> Option<i64> {
    let mut parts = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(more: &str, versions: &str) -> String {
        format!(
            "```toml\n[advisory]\nid = \"RUSTSEC-2026-9001\"\npackage = \"hole\"\n\
             date = \"2026-01-31\"\n{more}\n[versions]\n{versions}\n```\n\n# It has a hole\n\nText.\n"
        )
    }

    fn advisory(more: &str, versions: &str) -> Advisory {
        Advisory::parse(CRATES, &text(more, versions)).unwrap()
    }

    fn lock(version: &str) -> BTreeSet<Used> {
        locked(&format!(
            "[[package]]\nname = \"hole\"\nversion = \"{version}\"\nsource = \"registry+x\"\n"
        ))
        .unwrap()
    }

    fn found(advisory: Advisory, version: &str) -> String {
        check(&[advisory], &lock(version), &BTreeSet::new()).join("\n")
    }

    #[test]
    fn versions_that_are_neither_patched_nor_unaffected_are_found() {
        let versions = r#"patched = [">= 1.2.3, < 1.3.0", ">= 1.3.4"]
                          unaffected = ["<= 0.1.2"]"#;
        for (version, sound) in [
            ("0.1.2", true),
            ("0.1.3", false),
            ("1.2.2", false),
            ("1.2.3", true),
            ("1.3.0", false),
            ("1.3.3", false),
            ("1.3.4", true),
            ("2.0.0", true),
            ("1.3.4-rc.1", false),
        ] {
            let found = found(advisory("", versions), version);
            assert_eq!(found.is_empty(), sound, "{version}: {found}");
        }
        let found = found(advisory("", versions), "1.2.2");
        assert_eq!(
            found,
            "hole 1.2.2 is vulnerable: It has a hole (RUSTSEC-2026-9001; \
             patched: >=1.2.3, <1.3.0 or >=1.3.4)"
        );
    }

    #[test]
    fn what_is_nobodys_any_more_is_found_and_what_was_withdrawn_is_not() {
        let told = found(advisory("informational = \"unmaintained\"", "patched = []"), "1.0.0");
        assert!(told.contains("hole 1.0.0 is unmaintained") && told.contains("no version"));
        assert_eq!(found(advisory("withdrawn = \"2026-02-01\"", "patched = []"), "1.0.0"), "");
        // A package of the toolchain of the same name, and one of ours, are something else.
        let std = Advisory { collection: RUST, ..advisory("", "patched = []") };
        assert_eq!(found(std, "1.0.0"), "");
        let ours = locked("[[package]]\nname = \"hole\"\nversion = \"1.0.0\"\n").unwrap();
        assert!(ours.is_empty());
    }

    #[test]
    fn the_toolchain_is_judged_too() {
        let pinned = toolchain("[toolchain]\nchannel = \"1.95.0\"\n").unwrap();
        let mut advisory = Advisory::parse(RUST, &text("", "patched = [\">= 1.95.1\"]")).unwrap();
        advisory.package = "std".into();
        assert_eq!(check(&[advisory], &pinned, &BTreeSet::new()).len(), 1);
        assert!(toolchain("[toolchain]\nchannel = \"stable\"\n").is_err());
    }

    #[test]
    fn what_is_accepted_has_a_reason_and_is_needed() {
        let deny = r#"[advisories]
            ignore = [{ id = "RUSTSEC-2026-9001", reason = "not reached" }]"#;
        let accepted = accepted(deny).unwrap();
        let advisories = [advisory("", "patched = [\">= 2\"]")];
        assert!(check(&advisories, &lock("1.0.0"), &accepted).is_empty());
        let found = check(&advisories, &lock("2.0.0"), &accepted).join("\n");
        assert_eq!(found, "deny.toml accepts RUSTSEC-2026-9001, which nothing needs");
        let error = super::accepted(&deny.replace("not reached", "")).unwrap_err().to_string();
        assert!(error.contains("state a reason"), "{error}");
    }

    #[test]
    fn an_advisory_that_cannot_be_read_is_a_finding_and_an_empty_database_an_error() {
        let root = env::temp_dir().join(format!("adit-advisories-{}", std::process::id()));
        let of = |name: &str| root.join(CRATES).join(name);
        fs::create_dir_all(of("hole")).unwrap();
        assert!(load(&root).is_err(), "half a checkout");
        fs::create_dir_all(root.join(RUST)).unwrap();
        assert!(load(&root).unwrap_err().to_string().contains("holds no advisory"));
        fs::write(of("hole").join("RUSTSEC-2026-9001.md"), text("", "patched = []")).unwrap();
        for (name, spoilt) in [
            ("front", "# No front\n".to_owned()),
            ("range", text("", "patched = [\"newer\"]")),
            ("list", text("", "patched = \"1.0\"")),
            ("versions", text("", "").replace("[versions]", "")),
        ] {
            fs::write(of("hole").join(format!("{name}.md")), spoilt).unwrap();
        }
        let (advisories, findings) = load(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!((advisories.len(), findings.len()), (1, 4), "{findings:?}");
    }

    #[test]
    fn days_are_counted() {
        assert_eq!(day("1970-01-01"), Some(0));
        assert_eq!(day("2000-03-01"), Some(11_017));
        assert_eq!(day("2026-11-23"), Some(20_780));
        assert_eq!((day("2026-13-01"), day("today")), (None, None));
    }
}
