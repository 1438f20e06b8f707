//! A mediator and who talks to it: stand-ins for consoles and agents on real control connections.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adit_control::client::{ConnectConfig, connect};
use adit_net::{identity::DeviceIdentity, proxy::Dialer, tls::Trust};
use adit_protocol::{
    keys::Fingerprint,
    token::EnrollToken,
    wire::{self, frame::Body},
};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Plan;
use crate::{
    children::{Running, ask},
    installation::text,
};

pub(super) const WAIT: Duration = Duration::from_secs(30);
/// What the mediator does not know of an installation that is used again.
const NOTE: &str = "bench.json";
/// `Hello.role` of an agent, a console, and one that enrols.
const AGENT: u32 = 1;
const CONSOLE: u32 = 2;
const ENROLLING: u32 = 4;

/// A mediator in a directory that goes when this does, unless it is kept.
pub(super) struct Site {
    pub(super) dir: PathBuf,
    program: PathBuf,
    pub(super) fingerprint: String,
    pub(super) password: String,
    running: Option<Running>,
    pub(super) port: u16,
    kept: bool,
}

impl Site {
    /// A new one.
    pub(super) fn new(plan: &Plan, name: &str) -> Result<Self> {
        let dir = plan.place.join(format!("adit-bench-{name}-{}", std::process::id()));
        Self::init(plan, dir, false)
    }

    /// The one that is kept, and whether it was there.
    pub(super) fn kept(plan: &Plan, dir: &Path) -> Result<(Self, bool)> {
        if !dir.join(NOTE).exists() {
            let site = Self::init(plan, dir.to_owned(), true)?;
            return Ok((site, false));
        }
        let note: Value = serde_json::from_slice(&fs::read(dir.join(NOTE))?)?;
        let site = Self {
            dir: dir.to_owned(),
            program: plan.programs.join("mediator"),
            fingerprint: text(&note, "fingerprint").to_owned(),
            password: text(&note, "password").to_owned(),
            running: None,
            port: 0,
            kept: true,
        };
        Ok((site, true))
    }

    fn init(plan: &Plan, dir: PathBuf, kept: bool) -> Result<Self> {
        let program = plan.programs.join("mediator");
        let mut command = Command::new(&program);
        command
            .args(["init", "--host", "127.0.0.1", "--port", "0", "--stun-port", "0", "--json"])
            .arg("--data-dir")
            .arg(&dir);
        let made = ask(&command, None)?;
        Ok(Self {
            fingerprint: text(&made, "fingerprint").to_owned(),
            password: text(&made, "admin_password").to_owned(),
            dir,
            program,
            running: None,
            port: 0,
            kept,
        })
    }

    /// Notes what is needed to use it again.
    pub(super) fn keep(&self) -> Result<()> {
        let note = json!({"fingerprint": self.fingerprint, "password": self.password});
        fs::write(self.dir.join(NOTE), note.to_string())?;
        Ok(())
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).arg("--json").arg("--data-dir").arg(&self.dir);
        command
    }

    /// Runs a command of the mediator to its end.
    pub(super) fn run(&self, args: &[&str]) -> Result<()> {
        let done = self.command(args).output()?;
        ensure!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stdout));
        Ok(())
    }

    pub(super) fn serve(&mut self) -> Result<()> {
        let log = self.dir.with_extension("log");
        let mut running = Running::start("mediator", self.command(&["serve"]), &log)?;
        let ready = running.wait("getting ready", WAIT * 20, |e| text(e, "event") == "ready")?;
        self.port = u16::try_from(ready.get("port").and_then(Value::as_u64).unwrap_or(0))?;
        self.running = Some(running);
        Ok(())
    }

    /// Seconds of processors that the mediator has used.
    pub(super) fn cpu(&self) -> Result<f64> {
        crate::cpu::seconds(&[self.running.as_ref().context("it does not run")?.pid()])
    }

    fn address(&self) -> Result<Address> {
        Address::new(self.port, &self.fingerprint)
    }

    async fn connect(&self, me: &Arc<DeviceIdentity>, role: u32, id: &[u8]) -> Result<Device> {
        self.address()?.connect(me, role, id).await
    }

    /// An agent that says yes to every offer.
    pub(super) async fn agent(&self, name: &str) -> Result<Agent> {
        let told = ask(&self.command(&["token", "agent", "--client", "main/bench"]), None)?;
        let token = EnrollToken::decode(text(&told, "token"))?;
        let me = identity()?;
        let device = self.connect(&me, ENROLLING, &[]).await?;
        let enroll = wire::Enroll {
            proof: Some(token.redeem(me.signing.public())?),
            kind: 1,
            name: name.to_owned(),
            noise_cert: Some(me.noise_cert.clone()),
            ..wire::Enroll::default()
        };
        let Body::Enrolled(enrolled) = device.peer.request(Body::Enroll(enroll), WAIT).await?
        else {
            bail!("not enrolled");
        };
        let mut device = self.connect(&me, AGENT, &enrolled.device_id).await?;
        let mut incoming = device.incoming.take().context("no requests")?;
        device.tasks.spawn(async move {
            while let Some(request) = incoming.recv().await {
                let (body, responder) = request.into_parts();
                responder.reply(match body {
                    Body::Offer(_) => {
                        Body::Answer(wire::Answer { noise_msg2: vec![8; 100].into() })
                    }
                    _ => Body::Done(wire::Done {}),
                });
            }
        });
        Ok(Agent { id: enrolled.device_id, device })
    }

    /// A console with the administrator logged in.
    pub(super) async fn console(&self) -> Result<Device> {
        let device = self.connect(&identity()?, CONSOLE, &[]).await?;
        match device.peer.request(login("admin", &self.password), WAIT).await? {
            Body::LoggedIn(_) => Ok(device),
            _ => bail!("not logged in"),
        }
    }
}

/// Where a mediator is, and its root key.
#[derive(Clone, Copy)]
pub(super) struct Address {
    port: u16,
    fingerprint: Fingerprint,
}

impl Address {
    pub(super) fn new(port: u16, fingerprint: &str) -> Result<Self> {
        Ok(Self { port, fingerprint: fingerprint.parse()? })
    }

    /// The same mediator behind another port.
    pub(super) fn at(self, port: u16) -> Self {
        Self { port, ..self }
    }

    pub(super) fn port(self) -> u16 {
        self.port
    }

    /// A console of a stranger.
    pub(super) async fn stranger(&self) -> Result<Device> {
        self.connect(&identity()?, CONSOLE, &[]).await
    }

    async fn connect(&self, me: &Arc<DeviceIdentity>, role: u32, id: &[u8]) -> Result<Device> {
        let config = ConnectConfig {
            hosts: vec![format!("127.0.0.1:{}", self.port)],
            trust: Trust::Root(self.fingerprint),
            identity: Arc::clone(me),
            dialer: Dialer::direct(),
            hello: hello(me, role, id),
            pipelined: Vec::new(),
            ahead: Default::default(),
            timeout: WAIT,
        };
        let (connected, driver) = connect(&config).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            driver.await;
        });
        Ok(Device {
            peer: connected.peer,
            identity: Arc::clone(me),
            incoming: Some(connected.incoming),
            tasks,
        })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.running = None;
        if !self.kept {
            // Best effort: what is left is in the system's directory for such files.
            let _ = fs::remove_dir_all(&self.dir);
            let _ = fs::remove_file(self.dir.with_extension("log"));
        }
    }
}

/// One end of a control connection.
pub(super) struct Device {
    pub(super) peer: adit_control::Peer,
    pub(super) identity: Arc<DeviceIdentity>,
    incoming: Option<adit_control::Incoming>,
    tasks: JoinSet<()>,
}

/// An agent that is online.
pub(super) struct Agent {
    pub(super) id: Bytes,
    pub(super) device: Device,
}

pub(super) fn login(user: &str, password: &str) -> Body {
    Body::Login(wire::Login {
        user: user.to_owned(),
        password: password.to_owned(),
        totp: String::new(),
    })
}

fn hello(me: &DeviceIdentity, role: u32, id: &[u8]) -> wire::Hello {
    wire::Hello {
        role,
        protocol: 1,
        version: "bench".to_owned(),
        device_id: Bytes::copy_from_slice(id),
        noise_cert: Some(me.noise_cert.clone()),
        ..wire::Hello::default()
    }
}

fn identity() -> Result<Arc<DeviceIdentity>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    Ok(Arc::new(DeviceIdentity::generate(u64::try_from(now)?)?))
}
