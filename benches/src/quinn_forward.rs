//! The peer of the direct carrier: a forward of TCP connections over bare quinn, with the same
//! transport settings, TLS, socket buffers and kind of runtime, and nothing else. One TCP
//! connection is one stream; bytes are handed on without a copy of our own.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    sync::Arc,
};

use adit_net::{
    quic::{endpoint_config, transport_config},
    tls::{quic_client_config, quic_server_config},
    udp::SOCKET_BUFFER,
};
use adit_protocol::keys::{PublicKey, SigningKey};
use anyhow::{Context as _, Result};
use bytes::{Buf as _, Bytes, BytesMut};
use quinn::{Endpoint, RecvStream, SendStream, TokioRuntime};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    task::JoinSet,
};

/// Bytes read from TCP at once.
const READ_SIZE: usize = 64 * 1024;
/// A read buffer with less room than this is replaced.
const MIN_ROOM: usize = 8 * 1024;
/// Pieces taken from a stream at once.
const PIECES: usize = 32;

/// The far end: accepts streams and connects each to `target`.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn serve(addr: &str, target: &str) -> Result<()> {
    let (addr, target): (SocketAddr, SocketAddr) = (addr.parse()?, target.parse()?);
    let key = SigningKey::generate()?;
    let mut config = quic_server_config(&key, Arc::new(|_| true))?;
    config.transport_config(Arc::new(transport_config())).migration(false);
    let endpoint = endpoint(addr, Some(config))?;
    let public = key.public().to_bytes();
    println!("{}", json!({"event": "ready", "addr": endpoint.local_addr()?, "key": &public[..]}));
    let mut tasks = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        tasks.spawn(async move {
            let connection = incoming.await?;
            let mut streams = JoinSet::new();
            while let Ok((send, recv)) = connection.accept_bi().await {
                streams.spawn(async move {
                    let tcp = TcpStream::connect(target).await?;
                    copy(tcp, send, recv).await
                });
            }
            anyhow::Ok(())
        });
    }
    Ok(())
}

/// The near end: accepts TCP connections and opens a stream for each.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn forward(local: &str, remote: &str, key: &str) -> Result<()> {
    let key: Vec<u8> = serde_json::from_str(key)?;
    let hash = PublicKey::from_slice(&key)?.fingerprint().0;
    let mut config = quic_client_config(&SigningKey::generate()?, hash)?;
    config.transport_config(Arc::new(transport_config()));
    let remote: SocketAddr = remote.parse()?;
    let any = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let endpoint = endpoint(any.parse()?, None)?;
    let connection = endpoint.connect_with(config, remote, "adit.invalid")?.await?;
    let listener = TcpListener::bind(local).await?;
    println!("{}", json!({"event": "ready", "addr": listener.local_addr()?}));
    let mut tasks = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await?;
        let (send, recv) = connection.open_bi().await?;
        tasks.spawn(copy(tcp, send, recv));
    }
}

fn endpoint(addr: SocketAddr, server: Option<quinn::ServerConfig>) -> Result<Endpoint> {
    let socket = std::net::UdpSocket::bind(addr).with_context(|| addr.to_string())?;
    let buffers = socket2::SockRef::from(&socket);
    buffers.set_recv_buffer_size(SOCKET_BUFFER)?;
    buffers.set_send_buffer_size(SOCKET_BUFFER)?;
    Ok(Endpoint::new(endpoint_config(), server, socket, Arc::new(TokioRuntime))?)
}

async fn copy(mut tcp: TcpStream, send: SendStream, recv: RecvStream) -> Result<()> {
    tcp.set_nodelay(true)?;
    let (read, write) = tcp.split();
    tokio::try_join!(up(read, send), down(recv, write))?;
    Ok(())
}

async fn up(mut read: ReadHalf<'_>, mut send: SendStream) -> Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < MIN_ROOM {
            buffer.reserve(READ_SIZE);
        }
        if read.read_buf(&mut buffer).await? == 0 {
            send.finish()?;
            return Ok(());
        }
        send.write_chunk(buffer.split().freeze()).await?;
    }
}

async fn down(mut recv: RecvStream, mut write: WriteHalf<'_>) -> Result<()> {
    let mut pieces = [const { Bytes::new() }; PIECES];
    while let Some(n) = recv.read_chunks(&mut pieces).await? {
        let mut rest = pieces.get_mut(..n).unwrap_or_default();
        while !rest.is_empty() {
            let slices: Vec<IoSlice<'_>> = rest.iter().map(|p| IoSlice::new(p)).collect();
            let mut written = write.write_vectored(&slices).await?;
            if written == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            let mut done = 0;
            for piece in rest.iter_mut() {
                let part = written.min(piece.len());
                written -= part;
                piece.advance(part);
                if !piece.is_empty() {
                    break;
                }
                *piece = Bytes::new();
                done += 1;
            }
            rest = std::mem::take(&mut rest).split_at_mut(done).1;
        }
    }
    write.shutdown().await?;
    Ok(())
}
