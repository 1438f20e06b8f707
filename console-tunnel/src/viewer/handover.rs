//! Handing a secret to a viewer on Unix: a private folder, a socket that answers once, a pipe that
//! is read once, an agent that lives as long as the viewer.
//!
//! The folder is this user's alone (0700) and holds no secret: a socket, a pipe, links. Must never
//! write a secret into a file, an argument or a variable.

use std::{
    ffi::OsString,
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use adit_protocol::keys::random;
use adit_runtime::cli::CliError;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream, unix::pipe},
    process::{Child, Command},
    task::JoinSet,
};
use zeroize::Zeroizing;

use super::{
    credential::{Handover, Usable, Way},
    vncfile,
};

/// Name of the link to this program by which OpenSSH asks for a password.
pub const ASKPASS: &str = "adit-askpass";
/// The socket beside it.
const SOCKET: &str = "answer";
/// Bytes of a question.
const MAX_PROMPT: usize = 4096;
/// Time for a question, or for its answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often something that comes soon is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Time for an agent to listen.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a key to be added.
const ADD_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer follows.
const TELL: u8 = 1;
/// The person at the terminal has to answer.
const ASK: u8 = 2;

/// What lives as long as the viewer.
pub struct Keeper {
    folder: Folder,
    _tasks: JoinSet<()>,
    _agent: Option<Child>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("folder", &self.folder.0).finish_non_exhaustive()
    }
}

/// Prepares the way; what is prepared lasts until the handover is dropped.
pub async fn prepare(way: Way, usable: Usable) -> Result<Handover, CliError> {
    let folder = Folder::make()?;
    match way {
        Way::Stdin => Ok(Handover {
            // Read before anything else, and not asked for a domain.
            arguments: vec!["/from-stdin:force".to_owned()],
            stdin: Some(line(&usable.secret)),
            ..Handover::default()
        }),
        Way::Askpass => askpass(folder, usable.secret),
        Way::Pipe => pipe(folder, &usable.secret),
        Way::Agent => agent(folder, &usable.secret).await,
    }
}

fn line(secret: &str) -> Zeroizing<String> {
    let mut line = Zeroizing::new(String::with_capacity(secret.len() + 1));
    line.push_str(secret);
    line.push('\n');
    line
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::failed("credential_failed", format!("cannot hand over the credential: {error}"))
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, CliError> {
        // Where sockets of a user belong; paths of sockets are short.
        let parent = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_dir())
            .unwrap_or_else(std::env::temp_dir);
        let chance: [u8; 8] = random().map_err(failed)?;
        let path = parent.join(format!("adit-{:016x}", u64::from_be_bytes(chance)));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Only what is ours is in it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn askpass(folder: Folder, secret: Zeroizing<String>) -> Result<Handover, CliError> {
    let program = std::env::current_exe().map_err(failed)?;
    let link = folder.file(ASKPASS);
    std::os::unix::fs::symlink(program, &link).map_err(failed)?;
    let listener = UnixListener::bind(folder.file(SOCKET)).map_err(failed)?;
    let owner = std::fs::metadata(&folder.0).map_err(failed)?.uid();
    let mut tasks = JoinSet::new();
    tasks.spawn(answer(listener, owner, secret));
    let arguments = [
        // The one that was asked for, and once: a wrong one must not lock the account.
        "-oPreferredAuthentications=password,keyboard-interactive",
        "-oPubkeyAuthentication=no",
        "-oNumberOfPasswordPrompts=1",
    ];
    Ok(Handover {
        arguments: arguments.map(str::to_owned).to_vec(),
        behind: Some("ssh"),
        variables: vec![
            ("SSH_ASKPASS", link.into_os_string()),
            ("SSH_ASKPASS_REQUIRE", OsString::from("force")),
        ],
        stdin: None,
        keeper: Some(Keeper { folder, _tasks: tasks, _agent: None }),
    })
}

/// Answers questions; the secret once, and only to one for a password, from a process of this
/// user's.
async fn answer(listener: UnixListener, owner: u32, secret: Zeroizing<String>) {
    let mut secret = Some(secret);
    while let Ok((stream, _)) = listener.accept().await {
        let mine = stream.peer_cred().is_ok_and(|peer| peer.uid() == owner);
        if !mine {
            tracing::warn!("another user asked for a password");
            continue;
        }
        let asked = tokio::time::timeout(ASK_TIMEOUT, answer_one(stream, &mut secret)).await;
        if !matches!(asked, Ok(Ok(()))) {
            tracing::debug!("a question for a password was not answered");
        }
    }
}

async fn answer_one(
    mut stream: UnixStream,
    secret: &mut Option<Zeroizing<String>>,
) -> std::io::Result<()> {
    let mut prompt = Vec::new();
    let limit = u64::try_from(MAX_PROMPT).unwrap_or(u64::MAX);
    (&mut stream).take(limit).read_to_end(&mut prompt).await?;
    let prompt = String::from_utf8_lossy(&prompt);
    if !is_for_password(&prompt) {
        return stream.write_all(&[ASK]).await;
    }
    let Some(secret) = secret.take() else { return Ok(()) };
    let mut answer = Zeroizing::new(Vec::with_capacity(1 + secret.len()));
    answer.push(TELL);
    answer.extend_from_slice(secret.as_bytes());
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

/// OpenSSH's question for a password, or a server's in its words; never one about a key.
fn is_for_password(prompt: &str) -> bool {
    let last = prompt.trim_end().lines().next_back().unwrap_or_default().to_lowercase();
    last.ends_with("password:") && prompt.len() < 512
}

/// This program, started by OpenSSH under the name [`ASKPASS`]: fetches the answer and prints it.
/// `None` if that is not what it was started for.
pub fn run_askpass() -> Option<std::process::ExitCode> {
    let mut arguments = std::env::args_os();
    let own = PathBuf::from(arguments.next()?);
    if own.file_name()? != ASKPASS {
        return None;
    }
    let prompt = arguments.next().unwrap_or_default().into_encoded_bytes();
    let answered = fetch(&own.with_file_name(SOCKET), &prompt);
    let printed = answered.and_then(|answer| {
        let mut stdout = std::io::stdout();
        stdout.write_all(&answer)?;
        stdout.write_all(b"\n")?;
        stdout.flush()
    });
    Some(match printed {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(_) => std::process::ExitCode::FAILURE,
    })
}

fn fetch(socket: &Path, prompt: &[u8]) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    stream.write_all(prompt.get(..prompt.len().min(MAX_PROMPT)).unwrap_or_default())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Allocated once, so that growing leaves no copy behind.
    let mut answer = Zeroizing::new(Vec::with_capacity(64 * 1024));
    stream.take(64 * 1024).read_to_end(&mut answer)?;
    match answer.split_first() {
        Some((&TELL, secret)) => Ok(Zeroizing::new(secret.to_vec())),
        Some((&ASK, _)) => ask_terminal(prompt),
        _ => Err(std::io::ErrorKind::PermissionDenied.into()),
    }
}

/// Whatever else OpenSSH wants to know, such as whether a host key is the right one.
fn ask_terminal(prompt: &[u8]) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut terminal = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    let shown = adit_runtime::cli::escape_text(&String::from_utf8_lossy(prompt));
    terminal.write_all(shown.as_bytes())?;
    let mut answer = Zeroizing::new(Vec::with_capacity(1024));
    let mut byte = [0];
    while answer.len() < 1024 && terminal.read(&mut byte)? == 1 && byte != *b"\n" {
        answer.extend_from_slice(&byte);
    }
    Ok(answer)
}

fn pipe(folder: Folder, secret: &str) -> Result<Handover, CliError> {
    let path = folder.file("passwd");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
        .map_err(failed)?;
    let content = Zeroizing::new(vncfile::obfuscate(secret));
    let argument = format!("-PasswordFile={}", path.display());
    let mut tasks = JoinSet::new();
    tasks.spawn(write_once(path, content));
    Ok(Handover {
        arguments: vec![argument],
        keeper: Some(Keeper { folder, _tasks: tasks, _agent: None }),
        ..Handover::default()
    })
}

/// Waits for a reader, gives it the content, and takes the pipe away.
async fn write_once(path: PathBuf, content: Zeroizing<[u8; 8]>) {
    loop {
        let is_pipe = std::fs::symlink_metadata(&path).is_ok_and(|file| file.file_type().is_fifo());
        if !is_pipe {
            return;
        }
        match pipe::OpenOptions::new().open_sender(&path) {
            Ok(mut sender) => {
                if let Err(error) = sender.write_all(&content[..]).await {
                    tracing::debug!(%error, "the viewer did not read its password");
                }
                let _ = std::fs::remove_file(&path);
                return;
            }
            // Nobody reads yet.
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn agent(folder: Folder, key: &str) -> Result<Handover, CliError> {
    let socket = folder.file("agent");
    let mut agent = Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("ssh-agent: {error}")))?;
    let listens = async {
        while !socket.exists() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = listens => {}
        _ = agent.wait() => return Err(failed("ssh-agent ended")),
        () = tokio::time::sleep(AGENT_TIMEOUT) => return Err(failed("ssh-agent does not listen")),
    }
    let mut add = Command::new("ssh-add")
        .args(["-q", "-"])
        .env("SSH_AUTH_SOCK", &socket)
        .env("SSH_ASKPASS_REQUIRE", "never")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("ssh-add: {error}")))?;
    if let Some(mut stdin) = add.stdin.take() {
        // A key file ends with a line feed; some that were pasted do not.
        stdin.write_all(line(key.trim_end()).as_bytes()).await.map_err(failed)?;
    }
    let added = tokio::time::timeout(ADD_TIMEOUT, add.wait()).await;
    if !matches!(&added, Ok(Ok(status)) if status.success()) {
        let text = "ssh-add does not take the stored key: it must be a private key without \
                    passphrase";
        return Err(failed(text));
    }
    let arguments = vec![
        format!("-oIdentityAgent={}", socket.display()),
        // No other key of this user's, and this one nowhere else.
        "-oIdentityFile=none".to_owned(),
        "-oPreferredAuthentications=publickey".to_owned(),
        "-oForwardAgent=no".to_owned(),
    ];
    Ok(Handover {
        arguments,
        behind: Some("ssh"),
        keeper: Some(Keeper { folder, _tasks: JoinSet::new(), _agent: Some(agent) }),
        ..Handover::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_question_for_a_password_is_answered() {
        for yes in ["root@127.0.0.1's password: ", "(root@127.0.0.1) Password:", "Password: "] {
            assert!(is_for_password(yes), "{yes}");
        }
        for no in [
            "Are you sure you want to continue connecting (yes/no/[fingerprint])? ",
            "Enter passphrase for key '/home/a/.ssh/id': ",
            "Verification code: ",
            "",
        ] {
            assert!(!is_for_password(no), "{no}");
        }
    }

    #[tokio::test]
    async fn the_secret_is_told_once_and_the_folder_goes_with_the_viewer() {
        let usable = Usable {
            user: None,
            kind: "password".into(),
            secret: Zeroizing::new("hunter2".into()),
        };
        let handover = prepare(Way::Askpass, usable).await.unwrap();
        let told = format!("{:?} {:?}", handover.arguments, handover.variables);
        assert!(!told.contains("hunter2"));
        let link = PathBuf::from(&handover.variables[0].1);
        let socket = link.with_file_name(SOCKET);
        let mode = std::fs::metadata(link.parent().unwrap()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        let ask = |prompt: &'static str| {
            let socket = socket.clone();
            tokio::task::spawn_blocking(move || {
                let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
                stream.write_all(prompt.as_bytes()).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                answer
            })
        };
        assert_eq!(ask("continue (yes/no)? ").await.unwrap(), [ASK]);
        assert_eq!(ask("root's password: ").await.unwrap(), b"\x01hunter2");
        assert_eq!(ask("root's password: ").await.unwrap(), b"");
        drop(handover);
        assert!(!link.parent().unwrap().exists());
    }

    #[tokio::test]
    async fn a_vnc_password_is_read_once_from_a_pipe() {
        let usable = Usable {
            user: None,
            kind: "password".into(),
            secret: Zeroizing::new("password".into()),
        };
        let handover = prepare(Way::Pipe, usable).await.unwrap();
        let path = handover.arguments[0].strip_prefix("-PasswordFile=").unwrap().to_owned();
        let read = tokio::task::spawn_blocking({
            let path = path.clone();
            move || std::fs::read(path).unwrap()
        });
        assert_eq!(read.await.unwrap(), vncfile::obfuscate("password"));
        while Path::new(&path).exists() {
            tokio::time::sleep(LOOK).await;
        }
    }
}
