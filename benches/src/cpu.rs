//! CPU time of processes, as the kernel has counted it.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, Result, ensure};

/// `_SC_CLK_TCK`, which Linux fixes at 100 for what `/proc` shows.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds that these processes have used so far, in user and kernel mode.
pub(crate) fn seconds(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0u64;
    for pid in pids {
        let stat = Stat::of(*pid).with_context(|| format!("process {pid} is gone"))?;
        ticks += stat.ticks;
    }
    #[expect(clippy::cast_precision_loss, reason = "years of ticks fit")]
    let ticks = ticks as f64;
    Ok(ticks / TICKS_PER_SECOND)
}

/// A process and all that descend from it.
pub(crate) fn family(root: u32) -> Result<Vec<u32>> {
    let mut parents: BTreeMap<u32, u32> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok())
            && let Some(stat) = Stat::of(pid)
        {
            parents.insert(pid, stat.parent);
        }
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(parents.iter().filter(|(_, p)| **p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(family)
}

/// Puts this process and all that it has started on these processors (`taskset`'s notation).
pub(crate) fn place_family(processors: &str) -> Result<()> {
    for pid in family(std::process::id())? {
        let pid = pid.to_string();
        let done = Command::new("taskset")
            .args(["--all-tasks", "--cpu-list", "--pid", processors, &pid])
            .output()
            .context("taskset (package util-linux)")?;
        // One that has just ended needs no place.
        let gone = !std::path::Path::new("/proc").join(&pid).exists();
        ensure!(done.status.success() || gone, "taskset cannot place process {pid}");
    }
    Ok(())
}

/// How many processes want to run, averaged over a minute: a crowded machine is no place to
/// measure throughput.
pub(crate) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

struct Stat {
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold spaces and parentheses; what follows the last one does not.
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let user: u64 = fields.nth(9)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        Some(Self { parent, ticks: user + system })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_time_is_counted_and_own_family_found() {
        let me = std::process::id();
        let before = seconds(&[me]).unwrap();
        let mut x = 1u64;
        for i in 0..200_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(i | 1));
        }
        assert!(seconds(&[me]).unwrap() > before, "{x}");
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(family(me).unwrap().contains(&child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
