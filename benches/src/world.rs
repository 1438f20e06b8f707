//! Two network namespaces joined by a veth pair, with cubic on every route.
//!
//! A namespace inherits the host's congestion control, and the sysctl that would change it is not
//! always writable; a route's own setting always is. [`World::check`] looks at what the sockets
//! really use.

use std::{
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, bail, ensure};

use crate::children::output;

/// Addresses of the two sides. Private, so that nothing takes them for a way to the internet.
const SUBNET: &str = "10.199.77.0/30";

/// Where a process runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// Console and source.
    Near,
    /// Agent, sink, relay and mediator.
    Far,
}

impl Side {
    /// The address that the other side knows.
    pub(crate) fn ip(self) -> Ipv4Addr {
        match self {
            Self::Near => Ipv4Addr::new(10, 199, 77, 1),
            Self::Far => Ipv4Addr::new(10, 199, 77, 2),
        }
    }
}

/// The namespaces; they go with it.
pub(crate) struct World {
    names: [String; 2],
}

impl World {
    /// Makes them. Needs root.
    pub(crate) fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root: run `sudo -E cargo xtask bench`"
        );
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let world = Self { names: [format!("adit-near-{id}"), format!("adit-far-{id}")] };
        let [near, far] = &world.names;
        ip(&["netns", "add", near])?;
        ip(&["netns", "add", far])?;
        ip(&["link", "add", "veth0", "netns", near, "type", "veth"]
            .into_iter()
            .chain(["peer", "name", "veth0", "netns", far])
            .collect::<Vec<_>>())?;
        for side in [Side::Near, Side::Far] {
            world.set_up(side)?;
        }
        Ok(world)
    }

    fn set_up(&self, side: Side) -> Result<()> {
        let address = side.ip().to_string();
        let name = self.name(side);
        ip(&["-n", name, "addr", "add", &format!("{address}/30"), "dev", "veth0"])?;
        for device in ["lo", "veth0"] {
            ip(&["-n", name, "link", "set", device, "up"])?;
        }
        let change = |words: &[&str]| {
            ip(&[&["-n", name, "route", "change"], words, &["congctl", "cubic"]].concat())
        };
        let kernel = ["proto", "kernel", "scope"];
        let local = |what: &str, device: &str, source: &str| {
            let head = ["local", what, "dev", device];
            change(&[&head[..], &kernel, &["host", "src", source, "table", "local"]].concat())
        };
        local("127.0.0.0/8", "lo", "127.0.0.1")?;
        local("127.0.0.1", "lo", "127.0.0.1")?;
        local(&address, "veth0", &address)?;
        change(&[&[SUBNET, "dev", "veth0"][..], &kernel, &["link", "src", &address]].concat())
    }

    fn name(&self, side: Side) -> &str {
        let [near, far] = &self.names;
        match side {
            Side::Near => near,
            Side::Far => far,
        }
    }

    /// A command that runs there. `ip netns exec` becomes the program: its process id is the
    /// program's.
    pub(crate) fn command(&self, side: Side, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(side)]).arg(program);
        command
    }

    /// Which congestion control the open TCP connections have; an error if one is not cubic.
    pub(crate) fn check(&self) -> Result<()> {
        for side in [Side::Near, Side::Far] {
            let mut ss = self.command(side, "ss");
            ss.args(["-H", "-t", "-i", "-n", "state", "established"]);
            let text = output(&mut ss)?;
            let words: Vec<&str> = text.split_whitespace().collect();
            for other in ["bbr", "reno", "dctcp", "vegas", "westwood", "htcp"] {
                if words.contains(&other) {
                    bail!("a connection of the bench uses {other} instead of cubic");
                }
            }
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = ip(&["netns", "del", name]) {
                eprintln!("note: network namespace {name} stays behind: {error:#}");
            }
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    output(Command::new("ip").args(args)).map(drop)
}
