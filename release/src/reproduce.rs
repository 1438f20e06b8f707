//! The proof that a commit has one set of bits: two builds that share sources, tools and nothing
//! else, or one build and a release that somebody else made.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    Common, Findings,
    build::{Recipe, Surroundings},
    compare, make,
};

/// What is built and compared.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Without optimisation: quicker, and about other bits than those that are shipped
    #[arg(long)]
    debug: bool,
    /// Compare one build with this release instead of with a second build
    #[arg(long, value_name = "DIR", conflicts_with = "debug")]
    against: Option<PathBuf>,
}

/// Builds and compares HEAD.
pub(crate) fn run(options: &Options) -> Result<Findings> {
    let recipe = Recipe::of_head(&options.common, !options.debug)?;
    let work = make::work_dir(&options.common)?;
    println!("reproducing {} of {}", recipe.programs.join(", "), recipe.commit);
    match &options.against {
        None => twice(&recipe, work.path()),
        Some(release) => {
            let [_, other] = surroundings(work.path());
            let built = recipe.build(&other)?;
            println!("with {}; {}", built.tools.rustc, built.tools.cc);
            let pair =
                |(name, file): &(String, PathBuf)| (name.clone(), release.join(name), file.clone());
            judge(built.programs.iter().map(pair))
        }
    }
}

/// Builds twice, in surroundings that differ in all that we can make differ.
pub(crate) fn twice(recipe: &Recipe, work: &Path) -> Result<Findings> {
    let both = surroundings(work);
    let mut built = Vec::new();
    for (surroundings, name) in both.iter().zip(["first", "second"]) {
        let Surroundings { root, timezone, locale, umask, hostname } = surroundings;
        let machine = hostname.map(|name| format!(", machine {name}")).unwrap_or_default();
        let root = root.display();
        println!(
            "{name} build: {root}, time zone {timezone}, locale {locale}, umask {umask}{machine}"
        );
        built.push(recipe.build(surroundings)?.programs);
        if recipe.release && name == "first" {
            // Gigabytes, and no help to the second: only what is compared stays.
            keep_programs(work, &mut built, surroundings)?;
        }
    }
    let [one, two] = built.as_slice() else { return Ok(Findings::new()) };
    let pair = |((name, a), (_, b)): (&(String, PathBuf), &(String, PathBuf))| {
        (name.clone(), a.clone(), b.clone())
    };
    judge(one.iter().zip(two).map(pair))
}

fn keep_programs(
    work: &Path,
    built: &mut [Vec<(String, PathBuf)>],
    surroundings: &Surroundings,
) -> Result<()> {
    let kept = work.join("kept");
    fs::create_dir_all(&kept)?;
    for (name, file) in built.iter_mut().flatten() {
        let to = kept.join(&*name);
        fs::copy(&*file, &to)?;
        *file = to;
    }
    fs::remove_dir_all(&surroundings.root).context("the first build cannot be removed")
}

/// Other places, of other lengths and depths; another zone, language, mask and machine's name.
fn surroundings(work: &Path) -> [Surroundings; 2] {
    [
        Surroundings {
            root: work.join("one"),
            timezone: "UTC",
            locale: "C",
            umask: "022",
            hostname: None,
        },
        Surroundings {
            root: work.join("another").join("place-with-a-longer-name"),
            timezone: "Asia/Kathmandu",
            locale: "C.UTF-8",
            umask: "077",
            hostname: may_rename().then_some("another-machine"),
        },
    ]
}

/// Whether this process may give a child another machine's name (Linux, root).
fn may_rename() -> bool {
    let mut probe = Command::new("unshare");
    let script = "echo probe > /proc/sys/kernel/hostname";
    probe.args(["--uts", "sh", "-c", script]).stdout(Stdio::null()).stderr(Stdio::null());
    cfg!(target_os = "linux") && probe.status().is_ok_and(|status| status.success())
}

fn judge(pairs: impl Iterator<Item = (String, PathBuf, PathBuf)>) -> Result<Findings> {
    let mut findings = Findings::new();
    for (name, one, two) in pairs {
        let read = |file: &Path| fs::read(file).with_context(|| file.display().to_string());
        match compare::difference(&read(&one)?, &read(&two)?) {
            Some(difference) => findings.push(format!("{name} {difference}")),
            None => println!("same bits: {}  {name}", crate::provenance::sha256(&one)?),
        }
    }
    Ok(findings)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    #[test]
    fn a_program_with_all_that_ours_have_has_the_same_bits_twice() {
        let fixture = Fixture::new("");
        assert_eq!(fixture.twice().unwrap(), Findings::new());
    }

    #[test]
    fn what_differs_between_two_builds_is_named() {
        for (culprit, section) in [
            // What the environment says reaches the bits by a build script.
            (
                r#"println!("cargo:rustc-env=CULPRIT={}", std::env::var("TZ").unwrap());"#,
                "Kathmandu",
            ),
            (
                r#"println!("cargo:rustc-env=CULPRIT={:?}", std::time::SystemTime::now());"#,
                ".rodata",
            ),
        ] {
            let found = Fixture::new(culprit).twice().unwrap().join("\n");
            assert!(found.starts_with("fixture ") && found.contains(section), "{found}");
        }
    }

    #[test]
    fn a_program_that_holds_the_path_of_its_sources_is_refused() {
        let culprit = r#"println!("cargo:rustc-env=CULPRIT={}", env!("CARGO_MANIFEST_DIR"));"#;
        let fixture = Fixture::new(culprit);
        let error = format!("{:#}", fixture.twice().unwrap_err());
        assert!(error.contains("fixture holds a path of this machine: "), "{error}");
    }
}
