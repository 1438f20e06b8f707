//! Runs a test command, passes on what it prints, and counts what passed and failed.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// How many tests.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Count {
    /// Adds another's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Adds what a summary line of nextest or libtest says. Lines of libtest begin at the margin:
    /// indented ones are what nextest repeats of a failed test.
    fn read(&mut self, line: &str) {
        let nextest = line.contains(" tests run: ") || line.contains(" test run: ");
        if !nextest && !line.starts_with("test result: ") {
            return;
        }
        let words: Vec<_> =
            line.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
        for pair in words.windows(2) {
            let [number, what] = pair else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match *what {
                "passed" => self.passed += number,
                "failed" | "timed" | "exec" => self.failed += number,
                "skipped" | "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// Runs the command and counts. An error if it failed without a failed test, as when it does not
/// compile.
pub(crate) fn run(command: &mut Command) -> Result<Count> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = process::text(command);
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (a, b) = thread::scope(|scope| {
        let err = scope.spawn(|| err.map(pass_on).unwrap_or_default());
        let out = out.map(pass_on).unwrap_or_default();
        (out, err.join().unwrap_or_default())
    });
    let status = child.wait()?;
    let mut count = a;
    count.add(&b);
    if !status.success() && count.failed == 0 {
        bail!("{name} failed ({status})");
    }
    Ok(count)
}

fn pass_on(from: impl Read) -> Count {
    let mut count = Count::default();
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        let text = String::from_utf8_lossy(&line);
        eprint!("{text}");
        count.read(&text);
        line.clear();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (usize, usize, usize) {
        let mut count = Count::default();
        count.read(line);
        (count.passed, count.failed, count.skipped)
    }

    #[test]
    fn reads_summaries() {
        for (line, expected) in [
            ("     Summary [   0.1s] 3 tests run: 3 passed, 0 skipped\n", (3, 0, 0)),
            ("  Summary [  9.0s] 5 tests run: 3 passed (1 slow), 2 failed, 1 skipped", (3, 2, 1)),
            ("  Summary [  9.0s] 2/9 tests run: 1 passed, 1 timed out, 0 skipped", (1, 1, 0)),
            ("  Summary [  9.0s] 1 test run: 1 passed, 0 skipped", (1, 0, 0)),
            (
                "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
                (12, 0, 1),
            ),
            ("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured", (1, 2, 0)),
            ("a test says: 3 passed, 4 failed", (0, 0, 0)),
            ("    test result: FAILED. 0 passed; 1 failed; 0 ignored", (0, 0, 0)),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }

    #[test]
    fn a_command_that_breaks_is_an_error_and_not_zero_tests() {
        assert!(run(Command::new("sh").args(["-c", "exit 3"])).is_err());
        let count =
            run(Command::new("sh")
                .args(["-c", "echo 'test result: F. 0 passed; 1 failed'; exit 1"]));
        assert_eq!(count.unwrap().failed, 1);
    }
}
