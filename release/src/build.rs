//! One build: a clean clone of one commit, compiled in surroundings of its own.
//!
//! What must not reach the bits is kept out: paths are mapped to fixed names, the environment is
//! made anew, settings of whoever builds are not read, and nothing is fetched while compiling.
//! What must, is named by the commit: sources, `Cargo.lock`, toolchain, the time of the commit.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::packed;

/// Packages and programs of a release. Always resolved together: one program alone would otherwise
/// be built with fewer features of shared crates, and have other bits than in a release.
const PROGRAMS: [(&str, &str); 4] = [
    ("adit-mediator", "mediator"),
    ("adit-relay", "relay"),
    ("adit-agent", "agent-tunnel"),
    ("adit-console", "console-tunnel"),
];
/// What paths are called in the bits.
const NAMES: [&str; 3] = ["/adit", "/cargo", "/target"];
/// As many digits of the commit as `--version` tells (crates/runtime/build.rs).
const COMMIT_DIGITS: usize = 12;
/// Passed on from whoever builds: where tools are. Windows' compilers need the latter.
const KEPT: [&str; 7] = [
    "PATH",
    "SystemRoot",
    "SystemDrive",
    "ProgramFiles",
    "ProgramFiles(x86)",
    "ProgramData",
    "windir",
];
/// A path shorter than this may be in the bits by chance or with reason, such as `/root`.
const MIN_TELLING_PATH: usize = 8;

/// What is built.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// The repository and the commit that is cloned of it.
    pub(crate) repository: PathBuf,
    pub(crate) commit: String,
    pub(crate) target: String,
    pub(crate) release: bool,
    /// Packages that are resolved together, and the programs of them that are built.
    pub(crate) packages: Vec<String>,
    pub(crate) programs: Vec<String>,
    pub(crate) jobs: Option<u32>,
}

/// Where and how: what must make no difference.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Empty or absent; sources, home and all that is compiled lie below it.
    pub(crate) root: PathBuf,
    pub(crate) timezone: &'static str,
    pub(crate) locale: &'static str,
    pub(crate) umask: &'static str,
    /// Another name of the machine, where it can be given one without anybody noticing.
    pub(crate) hostname: Option<&'static str>,
}

/// What was built, and with what.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) source: PathBuf,
    /// Programs by name.
    pub(crate) programs: Vec<(String, PathBuf)>,
    pub(crate) tools: Tools,
}

/// Versions of what compiles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Tools {
    pub(crate) rustc: String,
    pub(crate) cargo: String,
    pub(crate) cc: String,
}

impl Recipe {
    /// Of HEAD; refuses a work tree with changes, since they would not be in what is built.
    pub(crate) fn of_head(options: &crate::Common, release: bool) -> Result<Self> {
        let repository = PathBuf::from(git(Path::new("."), &["rev-parse", "--show-toplevel"])?);
        let changes = git(&repository, &["status", "--porcelain"])?;
        let count = changes.lines().count();
        if count > 0 && !options.allow_dirty {
            bail!(
                "the work tree has {count} changes; commit them, or leave them out: --allow-dirty"
            );
        }
        if count > 0 {
            println!("note: {count} changes of the work tree are not in what is built");
        }
        let known = |name: &String| PROGRAMS.iter().any(|(_, program)| program == name);
        if let Some(name) = options.programs.iter().find(|name| !known(name)) {
            bail!("no such program: {name}; there are {}", PROGRAMS.map(|(_, p)| p).join(", "));
        }
        let wanted =
            |p: &&&str| options.programs.is_empty() || options.programs.iter().any(|o| o == **p);
        Ok(Self {
            commit: git(&repository, &["rev-parse", "HEAD"])?,
            repository,
            target: options.target.clone().map_or_else(host, Ok)?,
            release,
            packages: PROGRAMS.iter().map(|(package, _)| (*package).to_owned()).collect(),
            programs: PROGRAMS.map(|(_, p)| p).iter().filter(wanted).map(|p| (*p).into()).collect(),
            jobs: options.jobs,
        })
    }

    /// Clones, fetches and builds. The work is done below `surroundings.root`, which stays.
    pub(crate) fn build(&self, surroundings: &Surroundings) -> Result<Built> {
        let root = &surroundings.root;
        fs::create_dir_all(root)?;
        // Linkers and rustc tell resolved paths.
        let root = fs::canonicalize(root)?;
        refuse_settings_above(&root)?;
        let [source, home, output, temporary] =
            ["source", "home", "output", "tmp"].map(|name| root.join(name));
        for new in [&home, &output, &temporary] {
            fs::create_dir(new).with_context(|| new.display().to_string())?;
        }
        let time = self.clone_to(&source)?;
        // With the settings of whoever builds: proxies, mirrors.
        let mut fetch = Command::new("cargo");
        fetch.args(["fetch", "--quiet", "--locked", "--target", &self.target]);
        run(fetch.current_dir(&source).env_remove("RUSTUP_TOOLCHAIN"))?;
        if let Some(packed) = user_cargo_home().map(|home| home.join("registry").join("cache")) {
            packed::check(&source.join("Cargo.lock"), &packed)?;
        }
        let cargo_home = home.join("cargo");
        lend_registry(&cargo_home)?;

        let prepare = |command: &mut Command| {
            command.current_dir(&source).env_clear();
            command.envs(KEPT.iter().filter_map(|name| Some((name, env::var_os(name)?))));
            command.envs(rustup_home().map(|dir| ("RUSTUP_HOME", dir)));
            command.env("HOME", &home).env("CARGO_HOME", &cargo_home).env("TMPDIR", &temporary);
            command.env("TZ", surroundings.timezone).env("LC_ALL", surroundings.locale);
            command.env("SOURCE_DATE_EPOCH", &time).env("ZERO_AR_DATE", "1");
            let commit = self.commit.get(..COMMIT_DIGITS).unwrap_or(&self.commit);
            command.env("ADIT_COMMIT", commit);
        };
        let ask = |program: &str, arg: &str| {
            let mut command = Command::new(program);
            prepare(&mut command);
            output_of(command.arg(arg))
        };
        let rustc = ask("rustc", "-vV")?;
        // Not every platform has these under these names.
        let first = |text: Result<String>| text.ok()?.lines().next().map(str::to_owned);
        let c = [ask("cc", "--version"), ask("ld", "--version")].into_iter().filter_map(first);
        let tools = Tools {
            cc: c.collect::<Vec<_>>().join("; "),
            cargo: ask("cargo", "-V")?,
            rustc: rustc.lines().collect::<Vec<_>>().join("; "),
        };
        let sysroot = {
            let mut command = Command::new("rustc");
            prepare(&mut command);
            PathBuf::from(output_of(command.args(["--print", "sysroot"]))?)
        };
        let hash = rustc.lines().find_map(|line| line.strip_prefix("commit-hash: "));
        let registry = cargo_home.join("registry").join("src");
        let mut maps: Vec<(PathBuf, String)> =
            [&source, &registry, &output].into_iter().cloned().zip(NAMES.map(Into::into)).collect();
        // The standard library's own name for itself, where its sources are installed.
        let std = sysroot.join("lib/rustlib/src/rust");
        maps.push((std, format!("/rustc/{}", hash.unwrap_or("unknown"))));

        let mut cargo = self.cargo(surroundings);
        prepare(&mut cargo);
        cargo.env("CARGO_TARGET_DIR", &output).env("CARGO_INCREMENTAL", "0");
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&maps, "--remap-path-prefix=", "\u{1f}"));
        for name in ["CFLAGS", "CXXFLAGS"] {
            cargo.env(name, flags(&maps, "-ffile-prefix-map=", " "));
        }
        run(&mut cargo)?;

        let profile = if self.release { "release" } else { "debug" };
        let built = output.join(&self.target).join(profile);
        let exe = if self.target.contains("windows") { ".exe" } else { "" };
        let of = |name: &String| (format!("{name}{exe}"), built.join(format!("{name}{exe}")));
        let programs: Vec<_> = self.programs.iter().map(of).collect();
        for (name, file) in &programs {
            refuse_paths(name, &fs::read(file).context("was not built")?, &self.told(&root))?;
        }
        Ok(Built { source, programs, tools })
    }

    /// The sources, and when they were committed (seconds since 1970).
    fn clone_to(&self, source: &Path) -> Result<String> {
        // No setting of whoever builds may change what lies there, where that is, or what is told
        // of it, nor run anything: neither attributes and filters, nor templates with hooks. Only
        // whose repository it is must not matter, which git takes from such a file alone.
        let home = tempfile::tempdir()?;
        let settings = home.path().join("settings");
        fs::write(&settings, "[safe]\n\tdirectory = *\n[core]\n\tautocrlf = false\n")?;
        let git = || {
            let mut git = Command::new("git");
            for (name, _) in env::vars_os() {
                if name.to_string_lossy().starts_with("GIT_") {
                    git.env_remove(name);
                }
            }
            git.env("GIT_CONFIG_GLOBAL", &settings).env("GIT_CONFIG_NOSYSTEM", "1");
            git.env("GIT_ATTR_NOSYSTEM", "1").env("GIT_TEMPLATE_DIR", "");
            git.env("HOME", home.path()).env("XDG_CONFIG_HOME", home.path());
            git
        };
        let mut clone = git();
        clone.args(["clone", "--quiet", "--no-checkout", "--no-hardlinks", "--"]);
        run(clone.arg(&self.repository).arg(source))?;
        let mut checkout = git();
        checkout.args(["checkout", "--quiet", "--detach"]);
        run(checkout.arg(&self.commit).current_dir(source))?;
        output_of(git().args(["log", "-1", "--format=%ct"]).current_dir(source))
    }

    /// The build's command; a shell sets what a process cannot be given from outside.
    fn cargo(&self, surroundings: &Surroundings) -> Command {
        let mut args = vec!["cargo", "build", "--quiet", "--locked", "--offline"];
        args.extend(["--target", &self.target]);
        args.extend(self.release.then_some("--release"));
        self.packages.iter().for_each(|package| args.extend(["--package", package]));
        self.programs.iter().for_each(|program| args.extend(["--bin", program]));
        let jobs = self.jobs.map(|jobs| jobs.to_string());
        jobs.iter().for_each(|jobs| args.extend(["--jobs", jobs]));
        let mut command;
        if cfg!(unix) {
            let mut script = format!("umask {} && exec \"$@\"", surroundings.umask);
            command = Command::new("sh");
            if let Some(name) = surroundings.hostname {
                script = format!("echo {name} > /proc/sys/kernel/hostname && {script}");
                command = Command::new("unshare");
                command.args(["--uts", "sh"]);
            }
            command.args(["-c", &script, "sh"]).args(&args);
        } else {
            command = Command::new("cargo");
            command.args(args.get(1..).unwrap_or_default());
        }
        command
    }

    /// Paths of this machine that a program would betray it by.
    fn told(&self, root: &Path) -> Vec<String> {
        let home = env::home_dir();
        let tree = fs::canonicalize(&self.repository).ok();
        let paths = [Some(root.to_owned()), user_cargo_home(), rustup_home(), home, tree];
        let text = |path: PathBuf| path.to_str().map(str::to_owned);
        let telling = |path: &String| path.len() >= MIN_TELLING_PATH;
        paths.into_iter().flatten().filter_map(text).filter(telling).collect()
    }
}

fn flags(maps: &[(PathBuf, String)], option: &str, between: &str) -> String {
    let flag = |(from, to): &(PathBuf, String)| format!("{option}{}={to}", from.display());
    maps.iter().map(flag).collect::<Vec<_>>().join(between)
}

/// Cargo reads settings of every directory above the sources.
fn refuse_settings_above(root: &Path) -> Result<()> {
    for above in root.ancestors() {
        for name in [".cargo/config.toml", ".cargo/config"] {
            let file = above.join(name);
            ensure!(
                !file.exists(),
                "{} would be read by the build: give another --work-dir",
                file.display()
            );
        }
    }
    ensure!(
        !root.to_string_lossy().contains(char::is_whitespace),
        "{} has a space, which flags of C compilers cannot have: give another --work-dir",
        root.display()
    );
    Ok(())
}

fn refuse_paths(name: &str, bits: &[u8], paths: &[String]) -> Result<()> {
    let found = paths.iter().find(|path| crate::compare::position(bits, path.as_bytes()).is_some());
    match found {
        Some(path) => bail!("{name} holds a path of this machine: {path}"),
        None => Ok(()),
    }
}

/// A home for cargo with the packed crates that were fetched and nothing else: it unpacks them
/// again, so that not only their names are elsewhere.
fn lend_registry(cargo_home: &Path) -> Result<()> {
    let (from, to) =
        (user_cargo_home().map(|home| home.join("registry")), cargo_home.join("registry"));
    fs::create_dir_all(&to)?;
    for name in ["cache", "index"] {
        let Some(from) = from.as_ref().map(|from| from.join(name)).filter(|from| from.is_dir())
        else {
            continue;
        };
        #[cfg(unix)]
        std::os::unix::fs::symlink(from, to.join(name))?;
        #[cfg(windows)]
        std::os::windows::fs::symlink_dir(from, to.join(name))?;
    }
    // Mirrors have names of their own in the registry's directory.
    let settings = user_cargo_home().map(|home| home.join("config.toml"));
    if let Some(text) = settings.and_then(|file| fs::read_to_string(file).ok()) {
        let mut settings: toml::Table = text.parse().context("config.toml of cargo")?;
        settings.retain(|name, _| ["source", "registries"].contains(&name));
        fs::write(cargo_home.join("config.toml"), settings.to_string())?;
    }
    Ok(())
}

fn user_cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))
}

fn rustup_home() -> Option<PathBuf> {
    let named = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    named.or_else(|| Some(env::home_dir()?.join(".rustup"))).filter(|dir| dir.is_dir())
}

/// The target triple of this machine.
pub(crate) fn host() -> Result<String> {
    let told = output_of(Command::new("rustc").arg("-vV"))?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

/// What git answers, without the line's end.
pub(crate) fn git(directory: &Path, args: &[&str]) -> Result<String> {
    output_of(Command::new("git").args(args).current_dir(directory))
}

/// Runs a command with our own stdio and fails if it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_owned();
    let status = command.status().with_context(|| format!("cannot start {}", name.display()))?;
    ensure!(status.success(), "{} failed ({status})", name.display());
    Ok(())
}

fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_owned();
    let told = command.output().with_context(|| format!("cannot start {}", name.display()))?;
    let error = String::from_utf8_lossy(&told.stderr);
    ensure!(told.status.success(), "{} failed: {}", name.display(), error.trim());
    Ok(String::from_utf8_lossy(&told.stdout).trim().to_owned())
}
