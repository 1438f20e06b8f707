//! The console's end of `-D`: a SOCKS5 server (RFC 1928) for programs on this machine.
//!
//! Only CONNECT, only without authentication. Reads exactly the bytes of the handshake and not
//! one of what follows, since those belong to the channel; at most 519 bytes and 10 seconds.
//! Whoever speaks anything else, SOCKS4 included, is closed without an answer.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use adit_protocol::{
    code::ChannelCode,
    target::{Target, Transport},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// Time for a client to say what it wants.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

const VERSION: u8 = 5;
/// RFC 1928 §3.
const NO_AUTHENTICATION: u8 = 0x00;
const NO_ACCEPTABLE_METHODS: u8 = 0xff;
/// RFC 1928 §4.
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const DOMAIN_NAME: u8 = 3;
const IPV6: u8 = 4;

/// The reply field of RFC 1928 §6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// Connected.
    Succeeded = 0,
    /// Anything without a code of its own.
    GeneralFailure = 1,
    /// Not allowed by grant or policy.
    NotAllowed = 2,
    /// The session is over.
    NetworkUnreachable = 3,
    /// No route, no such name, no answer.
    HostUnreachable = 4,
    /// Nobody listens there.
    ConnectionRefused = 5,
    /// BIND and UDP ASSOCIATE.
    CommandNotSupported = 7,
    /// Neither IPv4, IPv6 nor a name.
    AddressTypeNotSupported = 8,
}

impl Reply {
    /// How a refused channel is told to a SOCKS client.
    pub fn from_code(code: ChannelCode) -> Self {
        match code {
            ChannelCode::TargetRefused => Self::ConnectionRefused,
            ChannelCode::TargetUnreachable | ChannelCode::TargetUnresolved => Self::HostUnreachable,
            ChannelCode::Policy
            | ChannelCode::NotGranted
            | ChannelCode::ConsentRefused
            | ChannelCode::ConsentTimeout
            | ChannelCode::Receipt => Self::NotAllowed,
            ChannelCode::SessionEnded => Self::NetworkUnreachable,
            ChannelCode::Unknown
            | ChannelCode::TooMany
            | ChannelCode::LocalReset
            | ChannelCode::Protocol
            | ChannelCode::Idle
            | ChannelCode::Audit => Self::GeneralFailure,
        }
    }
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum SocksError {
    /// The client was told why.
    #[error("refused: {0:?}")]
    Refused(Reply),
    /// The client does not speak SOCKS5 without authentication.
    #[error("client does not speak socks5 without authentication")]
    NotSocks5,
    /// The client was too slow.
    #[error("no complete request within {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
    /// The connection broke.
    #[error("connection broke: {0}")]
    Io(#[from] io::Error),
}

/// Reads a client's greeting and request; gives the target it wants to be connected to.
pub async fn negotiate<S>(stream: &mut S) -> Result<Target, SocksError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = async {
        greeting(stream).await?;
        match request(stream).await? {
            Ok(target) => Ok(target),
            Err(refused) => {
                answer(stream, refused).await?;
                Err(SocksError::Refused(refused))
            }
        }
    };
    timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| SocksError::Timeout)?
}

/// Sends the reply to the request. The bound address is not told: it is at the agent's.
pub async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, reply: Reply) -> io::Result<()> {
    stream.write_all(&[VERSION, reply as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]).await?;
    stream.flush().await
}

/// RFC 1928 §3.
async fn greeting<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), SocksError> {
    if stream.read_u8().await? != VERSION {
        return Err(SocksError::NotSocks5);
    }
    let count = usize::from(stream.read_u8().await?);
    let mut methods = [0; 255];
    let methods = methods.get_mut(..count).unwrap_or_default();
    stream.read_exact(methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[VERSION, NO_ACCEPTABLE_METHODS]).await?;
        return Err(SocksError::NotSocks5);
    }
    stream.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    stream.flush().await?;
    Ok(())
}

/// RFC 1928 §4. The inner error is what the client is to be told.
async fn request<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Result<Target, Reply>, SocksError> {
    let [version, command, reserved, kind] = {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        head
    };
    if version != VERSION || reserved != 0 {
        return Err(SocksError::NotSocks5);
    }
    let host = match kind {
        IPV4 => Ipv4Addr::from_bits(stream.read_u32().await?).to_string(),
        IPV6 => Ipv6Addr::from_bits(stream.read_u128().await?).to_string(),
        DOMAIN_NAME => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            // What is no text is no name either, and is refused below.
            String::from_utf8(name).unwrap_or_default()
        }
        _ => return Ok(Err(Reply::AddressTypeNotSupported)),
    };
    let port = stream.read_u16().await?;
    if command != CONNECT {
        return Ok(Err(Reply::CommandNotSupported));
    }
    Ok(Target::new(&host, port, Transport::Tcp).map_err(|_| Reply::GeneralFailure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a client that sends `input` and then waits gets, and what is left unread.
    async fn talk(input: &[u8]) -> (Result<Target, SocksError>, Vec<u8>, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(4096);
        client.write_all(input).await.unwrap();
        client.shutdown().await.unwrap();
        let result = negotiate(&mut server).await;
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        drop(server);
        let mut output = Vec::new();
        client.read_to_end(&mut output).await.unwrap();
        (result, output, rest)
    }

    fn domain(name: &[u8], command: u8) -> Vec<u8> {
        let len = u8::try_from(name.len()).unwrap();
        [&[5, 1, 0, 5, command, 0, 3, len], name, &[0, 80]].concat()
    }

    #[tokio::test]
    async fn connects_by_address_and_name_and_leaves_what_follows() {
        for (input, target) in [
            (vec![5, 2, 2, 0, 5, 1, 0, 1, 10, 0, 0, 1, 1, 187], "10.0.0.1:443"),
            (domain(b"Web.Example", 1), "web.example:80"),
            (domain(b"127.0.0.1", 1), "127.0.0.1:80"),
            ([&[5, 1, 0, 5, 1, 0, 4][..], &[0; 15], &[1, 0, 22]].concat(), "[::1]:22"),
        ] {
            let (result, output, rest) = talk(&[&input[..], b"GET /"].concat()).await;
            assert_eq!(result.unwrap().to_string(), target);
            assert_eq!(output, [5, 0], "the reply waits for the target");
            assert_eq!(rest, b"GET /");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_refused_with_its_code() {
        for (input, reply) in [
            (domain(b"web", 2), Reply::CommandNotSupported),
            (domain(b"web", 3), Reply::CommandNotSupported),
            (domain(b"web", 9), Reply::CommandNotSupported),
            (domain(b"", 1), Reply::GeneralFailure),
            (domain(b"-oProxyCommand=x", 1), Reply::GeneralFailure),
            (domain(b"a b", 1), Reply::GeneralFailure),
            (domain(b"\xff\xfe", 1), Reply::GeneralFailure),
            (vec![5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 0], Reply::GeneralFailure),
            (vec![5, 1, 0, 5, 1, 0, 2, 1, 1], Reply::AddressTypeNotSupported),
        ] {
            let (result, output, _) = talk(&input).await;
            assert!(matches!(result, Err(SocksError::Refused(r)) if r == reply), "{input:?}");
            assert_eq!(output, [5, 0, 5, reply as u8, 0, 1, 0, 0, 0, 0, 0, 0], "{input:?}");
        }
    }

    #[tokio::test]
    async fn other_protocols_are_closed_without_an_answer() {
        for input in [
            &b"\x04\x01\x00\x50\x0a\x00\x00\x01\x00"[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"",
            b"\x05",
            b"\x05\x03\x00",
            b"\x16\x03\x01",
        ] {
            let (result, output, _) = talk(input).await;
            assert!(result.is_err() && output.is_empty(), "{input:?} {output:?}");
        }
        let (result, output, _) = talk(&[5, 1, 2]).await;
        assert!(matches!(result, Err(SocksError::NotSocks5)));
        assert_eq!(output, [5, 0xff]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_dropped() {
        let (_client, mut server) = tokio::io::duplex(16);
        assert!(matches!(negotiate(&mut server).await, Err(SocksError::Timeout)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn hostile_bytes_never_yield_an_invalid_target(
            input in proptest::collection::vec(any::<u8>(), 0..600),
            greeted in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let input = if greeted { [&[5, 1, 0, 5, 1, 0][..], &input].concat() } else { input };
            let (result, output, _) = runtime.block_on(talk(&input));
            prop_assert!(output.len() <= 12);
            if let Ok(target) = result {
                prop_assert!(target.port() != 0 && !target.host().starts_with('-'));
            }
        }
    }

    #[test]
    fn refusals_map_to_reply_codes() {
        for n in 0..=u8::MAX {
            assert_ne!(Reply::from_code(ChannelCode::from_u8(n)), Reply::Succeeded);
        }
        assert_eq!(Reply::from_code(ChannelCode::TargetRefused) as u8, 5);
        assert_eq!(Reply::from_code(ChannelCode::TargetUnreachable) as u8, 4);
        assert_eq!(Reply::from_code(ChannelCode::Policy) as u8, 2);
    }
}
