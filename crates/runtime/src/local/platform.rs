//! Unix sockets on Unix, a named pipe on Windows. The only module that tells them apart.

#[cfg(unix)]
pub(super) use unix::*;
#[cfg(windows)]
pub(super) use windows::*;

#[cfg(unix)]
mod unix {
    use std::io;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    use tokio::net::{UnixListener, UnixStream};

    pub(in crate::local) type Stream = UnixStream;

    /// Portable room for a path in `sockaddr_un` with its final zero: 104 on macOS, 108 on
    /// Linux.
    const MAX_PATH_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

    #[derive(Debug)]
    pub(in crate::local) struct Listener {
        listener: UnixListener,
        path: PathBuf,
    }

    impl Listener {
        /// The caller holds the lock, so an existing socket file belongs to nobody.
        pub(in crate::local) fn bind(path: &Path) -> io::Result<Self> {
            match std::fs::symlink_metadata(path) {
                Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
                Ok(_) => return Err(io::Error::other("something else has its name")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let short = ShortPath::of(path)?;
            let listener = UnixListener::bind(&short.path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            Ok(Self { listener, path: path.to_owned() })
        }

        /// The next connection of our own user or root; others are dropped.
        pub(in crate::local) async fn accept(&mut self) -> io::Result<Stream> {
            loop {
                let (stream, _) = self.listener.accept().await?;
                let user = stream.peer_cred()?.uid();
                if user == 0 || user == rustix::process::geteuid().as_raw() {
                    return Ok(stream);
                }
                tracing::warn!(user, "refused a local connection of another user");
            }
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            // Nothing to be done if it fails: the next start replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    pub(in crate::local) async fn connect(path: &Path) -> io::Result<Stream> {
        let short = ShortPath::of(path)?;
        UnixStream::connect(&short.path).await
    }

    /// A name of the same file that fits into an address.
    struct ShortPath {
        path: PathBuf,
        /// Keeps the short name valid.
        _directory: Option<std::fs::File>,
    }

    impl ShortPath {
        fn of(path: &Path) -> io::Result<Self> {
            if path.as_os_str().len() <= MAX_PATH_BYTES {
                return Ok(Self { path: path.to_owned(), _directory: None });
            }
            Self::through_descriptor(path)
        }

        /// Linux names an open directory by its descriptor.
        #[cfg(target_os = "linux")]
        fn through_descriptor(path: &Path) -> io::Result<Self> {
            use std::os::fd::AsRawFd;
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let directory = std::fs::File::open(parent)?;
            let short = format!("/proc/self/fd/{}", directory.as_raw_fd());
            Ok(Self { path: Path::new(&short).join(name), _directory: Some(directory) })
        }

        #[cfg(not(target_os = "linux"))]
        fn through_descriptor(_path: &Path) -> io::Result<Self> {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("its path is longer than {MAX_PATH_BYTES} bytes"),
            ))
        }
    }
}

#[cfg(windows)]
mod windows {
    use std::io;
    use std::path::Path;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use std::time::Duration;

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio::net::windows::named_pipe::{
        ClientOptions, NamedPipeClient, NamedPipeServer, ServerOptions,
    };

    /// All instances of the pipe are taken (winerror.h ERROR_PIPE_BUSY).
    const ERROR_PIPE_BUSY: i32 = 231;

    /// Between attempts to reach a busy pipe; the caller's deadline ends them.
    const BUSY_PAUSE: Duration = Duration::from_millis(50);

    /// Either end of a pipe.
    pub(in crate::local) enum Stream {
        Server(NamedPipeServer),
        Client(NamedPipeClient),
    }

    #[derive(Debug)]
    pub(in crate::local) struct Listener {
        name: String,
        /// The instance that the next client gets; one exists at all times.
        next: NamedPipeServer,
    }

    impl Listener {
        pub(in crate::local) fn bind(path: &Path) -> io::Result<Self> {
            let name = pipe_name(path);
            // First instance: nobody else's pipe may answer in our name.
            let next = ServerOptions::new()
                .first_pipe_instance(true)
                .reject_remote_clients(true)
                .create(&name)?;
            Ok(Self { name, next })
        }

        pub(in crate::local) async fn accept(&mut self) -> io::Result<Stream> {
            self.next.connect().await?;
            let next = ServerOptions::new().reject_remote_clients(true).create(&self.name)?;
            Ok(Stream::Server(std::mem::replace(&mut self.next, next)))
        }
    }

    pub(in crate::local) async fn connect(path: &Path) -> io::Result<Stream> {
        let name = pipe_name(path);
        loop {
            match ClientOptions::new().open(&name) {
                Ok(client) => return Ok(Stream::Client(client)),
                Err(error) if error.raw_os_error() == Some(ERROR_PIPE_BUSY) => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Pipes have one flat name space: the path's FNV-1a hash keeps data directories apart.
    fn pipe_name(path: &Path) -> String {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let hash = path
            .to_string_lossy()
            .to_lowercase()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!(r"\\.\pipe\adit-{hash:016x}")
    }

    impl AsyncRead for Stream {
        fn poll_read(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.get_mut() {
                Self::Server(pipe) => Pin::new(pipe).poll_read(context, buffer),
                Self::Client(pipe) => Pin::new(pipe).poll_read(context, buffer),
            }
        }
    }

    impl AsyncWrite for Stream {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            match self.get_mut() {
                Self::Server(pipe) => Pin::new(pipe).poll_write(context, bytes),
                Self::Client(pipe) => Pin::new(pipe).poll_write(context, bytes),
            }
        }

        fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            match self.get_mut() {
                Self::Server(pipe) => Pin::new(pipe).poll_flush(context),
                Self::Client(pipe) => Pin::new(pipe).poll_flush(context),
            }
        }

        fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            match self.get_mut() {
                Self::Server(pipe) => Pin::new(pipe).poll_shutdown(context),
                Self::Client(pipe) => Pin::new(pipe).poll_shutdown(context),
            }
        }
    }
}
