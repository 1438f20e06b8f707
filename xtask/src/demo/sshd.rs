//! The machine's sshd with a configuration of its own: loopback, a high port, one fresh key.
//!
//! Where there is none, or it does not let its own user in even without a tunnel, the
//! demonstration says so and goes on without it: that is the machine's affair, not Adit's.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    children::{Running, finish},
    installation::Installation,
    report::say,
};
use crate::process;

const START: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// OpenSSH insists on this directory when root starts it.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";

/// A running sshd that is known to let us in.
pub(crate) struct Sshd {
    dir: PathBuf,
    port: u16,
    user: String,
    /// Whether [`PRIVILEGE_SEPARATION`] was not there before.
    made: bool,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if self.made {
            // Not ours any more if something is in it.
            let _ = fs::remove_dir(PRIVILEGE_SEPARATION);
        }
    }
}

impl Sshd {
    /// Starts it, if the machine has it.
    pub(crate) fn start(dir: &Path, place: &mut Installation) -> Result<Option<Self>> {
        let programs = (process::find("sshd"), process::find("ssh"), process::find("ssh-keygen"));
        let (Some(sshd), Some(_), Some(_)) = programs else {
            say("this machine has no sshd: the HTTP server has to do");
            return Ok(None);
        };
        match Self::run(&sshd, dir, place) {
            Ok(ready) => Ok(Some(ready)),
            Err(error) => {
                place.stop().check()?;
                say(&format!("this machine's sshd cannot be used, without any tunnel: {error:#}"));
                Ok(None)
            }
        }
    }

    fn run(sshd: &Path, dir: &Path, place: &mut Installation) -> Result<Self> {
        fs::create_dir(dir)?;
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key));
            finish("ssh-keygen", &keygen, None)?;
        }
        fs::copy(dir.join("user.pub"), dir.join("authorized"))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let at = dir.display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\n\
             AuthorizedKeysFile {at}/authorized\nStrictModes no\nPidFile none\n\
             PasswordAuthentication no\nPermitRootLogin prohibit-password\nUsePAM no\n"
        );
        fs::write(dir.join("config"), config)?;
        let user = process::output(Command::new("id").arg("-un"))?.trim().to_owned();
        let made = user == "root" && !Path::new(PRIVILEGE_SEPARATION).exists();
        if made {
            fs::create_dir(PRIVILEGE_SEPARATION)?;
        }
        let mut command = Command::new(sshd);
        command.args(["-D", "-e", "-f"]).arg(dir.join("config"));
        let mut running = Running::start("sshd", &command, &dir.join("log"), place.stop())?;
        let ready = Self { dir: dir.to_owned(), port, user, made };
        let direct = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let deadline = Instant::now() + START;
        while TcpStream::connect(direct).is_err() {
            running.check()?;
            ensure!(Instant::now() < deadline, "it does not listen");
            place.stop().check()?;
            place.stop().pause(LOOK);
        }
        ready.log_in(direct)?;
        place.keep("sshd", running);
        Ok(ready)
    }

    /// Its port on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Runs a command over ssh; how long it took.
    pub(crate) fn log_in(&self, at: SocketAddr) -> Result<Duration> {
        let start = Instant::now();
        let mut ssh = Command::new("ssh");
        ssh.args(self.arguments(at)).arg("echo adit-demo");
        let out = finish("ssh", &ssh, None)?;
        ensure!(out.trim() == "adit-demo", "ssh printed {out:?}");
        Ok(start.elapsed())
    }

    /// What follows `ssh` on a command line.
    pub(crate) fn arguments(&self, at: SocketAddr) -> Vec<String> {
        let known = self.dir.join("known_hosts");
        let key = self.dir.join("user");
        let mut words: Vec<String> =
            ["-p", &at.port().to_string(), "-i", &key.to_string_lossy()].map(str::to_owned).into();
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=accept-new",
            "LogLevel=ERROR",
            "ConnectTimeout=15",
            "IdentitiesOnly=yes",
            &format!("UserKnownHostsFile={}", known.display()),
        ] {
            words.extend(["-o".to_owned(), option.to_owned()]);
        }
        words.push(format!("{}@{}", self.user, at.ip()));
        words
    }
}
