//! What people write: rules, codes, addresses, commands of viewers.

use adit_agent::enroll::parse_tag;
use adit_console::{
    state::MediatorTrust,
    viewer::{UserName, Values, template},
};
use adit_mediator::decoders;
use adit_net::proxy::{Dialer, ProxyConfig, format_host_port, parse_host_port};
use adit_protocol::{
    ids::{ComputerId, SessionId},
    keys::Fingerprint,
};
use adit_relay::config::read_advertise;
use adit_runtime::{
    cli::escape_text,
    config::{format_duration, parse_duration},
};

fn examples<const N: usize>(texts: [&str; N]) -> Vec<Vec<u8>> {
    texts.map(Vec::from).into()
}

/// Hours, networks, permissions.
pub(super) fn rules(data: &[u8]) -> bool {
    decoders::rules(data)
}

pub(super) fn valid_rules() -> Vec<Vec<u8>> {
    examples([
        "mon-fri 08:00-18:00 Europe/Berlin",
        "22:00-06:00, sat-sun 00:00-24:00",
        "192.0.2.0/24",
        "2001:db8::/32",
        "audit.read",
    ])
}

/// Codes of devices, of authenticators, of recovery.
pub(super) fn codes(data: &[u8]) -> bool {
    decoders::codes(data)
}

pub(super) fn valid_codes() -> Vec<Vec<u8>> {
    examples(["BCDF-GHJK", "bcdf ghjk", "123 456", "abcd-efgh-ijkm-npqr-stuv-wxyz"])
}

/// Hosts with ports, addresses to advertise, proxies.
pub(super) fn address(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let read = parse_host_port(text, 443);
    if let Ok((host, port)) = &read {
        let again = parse_host_port(&format_host_port(host, *port), 1);
        assert_eq!(again.as_ref(), Ok(&(host.clone(), *port)));
    }
    let advertised = read_advertise(&[text.to_owned()]);
    if let Ok(all) = &advertised {
        assert_eq!(read_advertise(all).as_ref(), Ok(all));
    }
    let proxy = Dialer::new(&ProxyConfig { explicit: Some(text.to_owned()), from_env: false });
    if let Ok(dialer) = &proxy {
        assert!(dialer.uses_proxy("target.example", 443), "it would be gone around");
        let shown = dialer.proxy_of("target.example", 443).unwrap_or_default();
        assert!(!shown.contains('@'), "it may show a password");
    }
    read.is_ok() | advertised.is_ok() | proxy.is_ok()
}

pub(super) fn valid_address() -> Vec<Vec<u8>> {
    examples([
        "mediator.example:8443",
        "[2001:db8::1]:443",
        "::1",
        "http://user:password@proxy.example:3128",
        "socks5://[::1]:1080",
    ])
}

/// Durations, tags, identifiers, and what is shown of anything.
pub(super) fn words(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let shown = escape_text(text);
    assert!(!shown.contains(|c: char| c.is_control()), "it could steer a terminal");
    let duration = parse_duration(text);
    if let Ok(duration) = duration {
        assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }
    let fingerprint = text.parse::<Fingerprint>();
    if let Ok(fingerprint) = fingerprint {
        assert_eq!(fingerprint.to_string().parse::<Fingerprint>().ok(), Some(fingerprint));
    }
    let session = text.parse::<SessionId>();
    if let Ok(session) = session {
        assert_eq!(session.to_string().parse(), Ok(session));
    }
    let trust = text.parse::<MediatorTrust>();
    duration.is_ok() | fingerprint.is_ok() | session.is_ok() | trust.is_ok() | {
        parse_tag(text).is_ok()
    }
}

pub(super) fn valid_words() -> Vec<Vec<u8>> {
    let fingerprint = Fingerprint([7; 32]).to_string();
    let session = SessionId([7; 16]).to_string();
    examples(["90s", "1h30m", "250ms", "room=lab", "webpki", &fingerprint, &session])
}

/// Commands of viewers, a word a line, the user's name first: no value becomes an option.
pub(super) fn viewer(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let mut lines = text.lines();
    let user = lines.next().unwrap_or_default();
    let words: Vec<&str> = lines.collect();
    let values = Values {
        host: [127, 0, 0, 1].into(),
        port: 40123,
        user: user.parse::<UserName>().ok(),
        https: false,
        own_computer: true,
        computer: ComputerId([7; 16]),
        title: user.to_owned(),
    };
    let Ok(made) = template::expand(&words, &values) else { return false };
    assert_eq!(made.first().map(String::as_str), words.first().copied());
    assert!(made.len() <= words.len(), "a value became two arguments");
    let options =
        |words: &mut dyn Iterator<Item = &str>| words.filter(|word| word.starts_with('-')).count();
    let (before, after) =
        (options(&mut words.iter().copied()), options(&mut made.iter().map(String::as_str)));
    assert!(after <= before, "a value became an option");
    true
}

pub(super) fn valid_viewer() -> Vec<Vec<u8>> {
    examples([
        "ann\nxfreerdp\n/v:{host}:{port}\n/u:{user}\n/t:{title}",
        "\nssh\n-p{port}\n-oUser={user}\n{host}",
        "a@b\nremmina\n-c\nrdp://{user@}{host}:{port}",
    ])
}
