//! Dialling directly and through proxies, against small ones of our own.

use std::net::{IpAddr, Ipv4Addr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn explicit(url: &str) -> Result<Dialer, InvalidProxy> {
    Dialer::new(&ProxyConfig { explicit: Some(url.to_owned()), from_env: false })
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Reads one request up to its empty line and answers; gives the request.
async fn answer(listener: &TcpListener, answer: &str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    String::from_utf8([request, rest].concat()).unwrap()
}

#[tokio::test]
async fn direct_connection_is_made_without_delay() {
    let (listener, address) = listener().await;
    let dialer = Dialer::new(&ProxyConfig::default()).unwrap();
    let (dialed, accepted) =
        tokio::join!(dialer.dial("localhost", address.port(), SOON), listener.accept());
    let dialed = dialed.unwrap();
    assert!(!dialed.via_proxy && dialed.stream.nodelay().unwrap());
    assert_eq!(dialed.remote, Some(address));
    assert_eq!(accepted.unwrap().1, dialed.stream.local_addr().unwrap());
}

#[tokio::test]
async fn failures_are_told_apart() {
    let (listener, address) = listener().await;
    drop(listener);
    let dialer = Dialer::direct();
    let refused = dialer.dial("127.0.0.1", address.port(), SOON).await;
    assert!(matches!(refused, Err(DialError::Refused(_))), "{refused:?}");
    let unknown = dialer.dial("no-such-host.invalid", 1, SOON).await;
    assert!(matches!(unknown, Err(DialError::NameNotFound(_) | DialError::Timeout(_))));
    let late = dialer.dial("127.0.0.1", address.port(), Duration::ZERO).await;
    assert!(matches!(late, Err(DialError::Timeout(_) | DialError::Refused(_))));
}

#[tokio::test]
async fn connect_proxy_gets_target_and_password_and_hands_over_a_clean_stream() {
    let (listener, address) = listener().await;
    let dialer = explicit(&format!("http://user:p%40ss@{address}")).unwrap();
    let dial = async {
        let mut dialed = dialer.dial("2001:db8::1", 443, SOON).await.unwrap();
        assert!(dialed.via_proxy && dialed.remote.is_none());
        dialed.stream.write_all(b"payload").await.unwrap();
    };
    let (request, ()) = tokio::join!(answer(&listener, "HTTP/1.1 200 OK\r\n\r\n"), dial);
    assert!(request.starts_with("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("Proxy-Authorization: Basic dXNlcjpwQHNz\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\npayload"));
}

#[tokio::test]
async fn proxy_failures_are_told_apart() {
    let (listener, address) = listener().await;
    let dialer = explicit(&format!("http://{address}")).unwrap();
    let (dialer, listener) = (&dialer, &listener);
    let refusal = |status: &'static str| async move {
        let reply = format!("HTTP/1.1 {status}\r\n\r\n");
        let (result, _) =
            tokio::join!(dialer.dial("a.example", 443, SOON), answer_and_close(listener, &reply));
        result.unwrap_err()
    };
    let auth = refusal("407 Proxy Authentication Required").await;
    assert!(matches!(auth, DialError::ProxyAuth(_)), "{auth:?}");
    let denied = refusal("403 Forbidden").await;
    assert!(matches!(denied, DialError::ProxyRefused { .. }), "{denied:?}");
    let nonsense = refusal("hello").await;
    assert!(matches!(nonsense, DialError::ProxyRefused { .. }), "{nonsense:?}");
    let (gone, address) = self::listener().await;
    drop(gone);
    let dialer = explicit(&format!("http://{address}")).unwrap();
    let down = dialer.dial("a.example", 443, SOON).await.unwrap_err();
    assert!(
        matches!(&down, DialError::Proxy(inner) if matches!(**inner, DialError::Refused(_))),
        "{down:?}"
    );
}

/// What strangers name is resolved here: the proxy is told an address that was looked at.
#[tokio::test]
async fn a_proxy_is_asked_for_admitted_addresses_and_for_no_name() {
    let (listener, address) = listener().await;
    let dialer = explicit(&format!("http://{address}")).unwrap();
    let v4 = |target: SocketAddr| target.is_ipv4();
    let dial = async {
        let dialed = dialer.dial_resolved("localhost", 8443, SOON, &v4).await.unwrap();
        assert!(dialed.via_proxy);
        assert_eq!(dialed.remote, Some("127.0.0.1:8443".parse().unwrap()));
    };
    let (request, ()) = tokio::join!(answer(&listener, "HTTP/1.1 200 OK\r\n\r\n"), dial);
    assert!(request.starts_with("CONNECT 127.0.0.1:8443 HTTP/1.1\r\n"), "{request}");
    assert!(!request.contains("localhost"), "{request}");

    // Nobody listens there any more: any question to the proxy would be an error of its own.
    drop(listener);
    let nowhere = |_: SocketAddr| false;
    for host in ["localhost", "127.0.0.1", "::1", "[::1]"] {
        let refused = dialer.dial_resolved(host, 443, SOON, &nowhere).await.unwrap_err();
        assert!(matches!(refused, DialError::Forbidden(_)), "{host}: {refused:?}");
    }
    for odd in ["127.1", "0x7f.1", "2130706433", "0x7f000001", "0177.0.0.1", "a.0X7F", "1.2.3.4."] {
        for dialer in [&dialer, &Dialer::direct()] {
            let refused = dialer.dial_resolved(odd, 443, SOON, &|_| true).await.unwrap_err();
            assert!(matches!(refused, DialError::OddHost(_)), "{odd}: {refused:?}");
        }
    }
    let unknown = dialer.dial_resolved("no-such-host.invalid", 443, SOON, &|_| true).await;
    let expected = matches!(unknown, Err(DialError::NotResolvedHere(_) | DialError::Timeout(_)));
    assert!(expected, "{unknown:?}");
}

#[test]
fn names_that_end_in_letters_are_names() {
    for name in ["id.example", "a1", "1.example", "0x7f.example", "0xz", "3com.com.", "x-0x1"] {
        assert!(!is_legacy_address(name), "{name}");
    }
    for usual in ["127.0.0.1", "::1", "2001:db8::1"] {
        assert!(!is_legacy_address(usual), "{usual}");
    }
}

async fn answer_and_close(listener: &TcpListener, reply: &str) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = [0; 1024];
    let _ = stream.read(&mut request).await.unwrap();
    stream.write_all(reply.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn silent_proxy_is_given_up() {
    let (_listener, address) = listener().await;
    let dialer = explicit(&format!("http://{address}")).unwrap();
    let error = dialer.dial("a.example", 443, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, DialError::Timeout(_)), "{error:?}");
}

#[test]
fn unusable_proxy_setting_is_an_error_and_never_ignored() {
    for bad in [
        "",
        "http://",
        "https://proxy:1",
        "ftp://proxy:1",
        "http://a b:1",
        "::",
        "nonsense",
        "not a url",
        "http://pro!xy:1",
        "http://a..b:1",
        "proxy:0",
        "http://proxy:99999",
        "http//proxy:1",
    ] {
        assert!(explicit(bad).is_err(), "{bad}");
    }
    for good in [
        "http://proxy:3128",
        "proxy:3128",
        "socks5://u:p@proxy:1080",
        "http://[::1]:1",
        "http://proxy",
        "http://10.0.0.1:8080/",
    ] {
        assert!(explicit(good).unwrap().uses_proxy("a.example", 443), "{good}");
    }
    let secret = ProxyConfig { explicit: Some("http://u:hidden@p:1".into()), from_env: false };
    assert!(!format!("{secret:?}").contains("hidden"));
}

#[test]
fn no_proxy_is_obeyed_for_names_and_networks() {
    let dialer = Dialer::with("http://p:1".into(), "corp.example,10.0.0.0/8,fd00::/8".into());
    for (host, proxied) in [
        ("a.corp.example", false),
        ("corp.example", false),
        ("notcorp.example", true),
        ("10.2.3.4", false),
        ("11.2.3.4", true),
        ("fd00::1", false),
        ("2001:db8::1", true),
    ] {
        assert_eq!(dialer.uses_proxy(host, 443), proxied, "{host}");
    }
}

#[test]
fn families_take_turns() {
    let v4 = |n| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)), 1);
    let v6 = |n: u8| SocketAddr::new(format!("2001:db8::{n}").parse().unwrap(), 1);
    let order = connect::interleave(vec![v4(1), v4(2), v4(3), v6(1)]);
    assert_eq!(order, [v6(1), v4(1), v4(2), v4(3)]);
    assert!(connect::interleave((0..200).map(v4).collect()).len() <= 16);
}

#[test]
fn host_and_port_are_read_as_people_write_them() {
    let ok = |text, host: &str, port| {
        assert_eq!(parse_host_port(text, 443), Ok((host.to_owned(), port)), "{text}");
    };
    ok("a.example", "a.example", 443);
    ok("a.example:8443", "a.example", 8443);
    ok("1.2.3.4:0", "1.2.3.4", 0);
    ok("::1", "::1", 443);
    ok("[::1]", "::1", 443);
    ok(" [2001:db8::1]:99 ", "2001:db8::1", 99);
    ok("[fe80::1%eth0]:5", "fe80::1%eth0", 5);
    let long = "a".repeat(254);
    for bad in [
        "", ":1", "a:", "a:65536", "a:-1", "a:+1", "a:1:2", "[::1", "[::1]x", "[a]:1", "a b",
        "http://a", "a/b", "u@a", "a?b", "\u{7}", &long,
    ] {
        assert!(parse_host_port(bad, 443).is_err(), "{bad:?}");
    }
    assert_eq!(format_host_port("::1", 5), "[::1]:5");
}
