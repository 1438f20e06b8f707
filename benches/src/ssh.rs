//! The peer of the relayed carrier: OpenSSH's port forwarding with AES-256-GCM, its own server
//! with fresh keys on a high port.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    children::{Running, output, pause},
    cpu,
    world::{Side, World},
};

const CIPHER: &str = "aes256-gcm@openssh.com";
const PORT: u16 = 2022;
/// Where the client listens, in the near namespace.
const LOCAL: &str = "127.0.0.1:2122";
/// OpenSSH insists on this directory when root starts it.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";
const START: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// A forward that is up.
pub(crate) struct Ssh {
    client: Running,
    server: Running,
    made: bool,
}

impl Ssh {
    /// Starts server and client; the forward leads to `target` in the far namespace.
    pub(crate) fn start(world: &World, dir: &Path, target: &str) -> Result<Self> {
        fs::create_dir(dir)?;
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key));
            output(&mut keygen)?;
        }
        fs::copy(dir.join("user.pub"), dir.join("authorized"))?;
        let (at, ip) = (dir.display(), Side::Far.ip());
        let config = format!(
            "Port {PORT}\nListenAddress {ip}\nHostKey {at}/host\nCiphers {CIPHER}\n\
             AuthorizedKeysFile {at}/authorized\nStrictModes no\nPidFile none\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin prohibit-password\n\
             AllowTcpForwarding yes\nCompression no\nUseDNS no\n"
        );
        fs::write(dir.join("config"), config)?;
        let made = !Path::new(PRIVILEGE_SEPARATION).exists();
        if made {
            fs::create_dir(PRIVILEGE_SEPARATION)?;
        }
        let mut command = world.command(Side::Far, find("sshd")?);
        command.args(["-D", "-e", "-f"]).arg(dir.join("config"));
        let server = Running::start("sshd", command, &dir.join("sshd.log"))?;

        let mut command = world.command(Side::Near, "ssh");
        command.args(["-N", "-c", CIPHER, "-L", &format!("{LOCAL}:{target}")]);
        command.args(["-p", &PORT.to_string(), "-i"]).arg(dir.join("user"));
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ExitOnForwardFailure=yes",
            "IdentitiesOnly=yes",
            "Compression=no",
            "ControlMaster=no",
            "ConnectionAttempts=10",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command.args(["-F", "/dev/null"]).arg(format!("root@{ip}"));
        let client = Running::start("ssh", command, &dir.join("ssh.log"))?;
        let ssh = Self { client, server, made };
        ssh.wait_listening(world)?;
        Ok(ssh)
    }

    fn wait_listening(&self, world: &World) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let mut ss = world.command(Side::Near, "ss");
            if output(ss.args(["-H", "-l", "-t", "-n"]))?.contains(LOCAL) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "ssh does not listen: see its log");
            pause(LOOK);
        }
    }

    /// Where it listens.
    pub(crate) fn local(&self) -> &'static str {
        LOCAL
    }

    /// The client and all processes of the server.
    pub(crate) fn pids(&self) -> Result<Vec<(&'static str, u32)>> {
        let mut pids = vec![("ssh", self.client.pid())];
        pids.extend(cpu::family(self.server.pid())?.into_iter().map(|pid| ("sshd", pid)));
        Ok(pids)
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.client.stop();
        self.server.stop();
        if self.made {
            // Not ours any more if something is in it.
            let _ = fs::remove_dir(PRIVILEGE_SEPARATION);
        }
    }
}

/// Version as `ssh -V` tells it.
pub(crate) fn version() -> Option<String> {
    let out = Command::new("ssh").arg("-V").output().ok()?;
    Some(String::from_utf8_lossy(&out.stderr).trim().to_owned())
}

/// sshd wants to be called by its whole path, which is not always in an administrator's PATH.
fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is missing: install openssh-server"))
}
