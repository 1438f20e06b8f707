//! A program's time of day, moved while it runs: `natlab/clock.rs` preloaded into it.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::lab::folder;

/// The library's file name.
const LIBRARY: &str = "clock.so";
/// The offset's file name.
const OFFSET: &str = "clock";

/// An offset that programs with [`environment`] of its directory go by.
pub struct Clock {
    dir: PathBuf,
}

impl Clock {
    /// Makes the library and a clock that is right.
    pub fn new(dir: &Path) -> Result<Self> {
        let mut command = Command::new("rustc");
        command.args(["--edition", "2024", "-O", "-o"]).arg(dir.join(LIBRARY));
        let done = command.arg(folder().join("natlab/clock.rs")).output()?;
        ensure!(done.status.success(), "rustc: {}", String::from_utf8_lossy(&done.stderr));
        fs::write(dir.join(OFFSET), 0_i64.to_ne_bytes())?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Puts it so many seconds beside the right time, from now on.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // In place: programs have the file mapped.
        let mut file = File::options().write(true).open(self.dir.join(OFFSET))?;
        Ok(file.write_all(&seconds.to_ne_bytes())?)
    }
}

/// What a program must find in its environment to go by the clock in `dir`.
pub fn environment(dir: &Path) -> [(&'static str, PathBuf); 2] {
    [("LD_PRELOAD", dir.join(LIBRARY)), ("NATLAB_CLOCK", dir.join(OFFSET))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_the_time_of_day_of_one_program() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new(dir.path()).unwrap();
        let seconds = || -> i64 {
            let mut date = Command::new("date");
            let out = date.arg("+%s").envs(environment(dir.path())).output().unwrap();
            String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
        };
        let right = seconds();
        clock.set(-86_400).unwrap();
        assert!((seconds() + 86_400 - right).abs() < 60);
    }
}
