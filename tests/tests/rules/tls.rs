//! What the TCP ports speak: TLS 1.3 with AES-256, and nothing else (RFC 9325 §3.1.1).

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use adit_tests::{
    process::{Finished, run},
    site::{SOON, Site},
};
use anyhow::{Context as _, Result, ensure};

use super::both_ports;

/// A TLS alert and its record header.
const ALERT: usize = 7;
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";

/// What a client of another house gets at a port.
fn client(port: SocketAddr, options: &[&str], input: &str) -> Result<Finished> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &port.to_string(), "-alpn", "http/1.1"]);
    run("openssl", command.args(options), input)
}

#[test]
fn only_tls_1_3_with_aes_256_is_spoken() -> Result<()> {
    let mut site = Site::local("rules-tls")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    for port in both_ports(&site)? {
        let ours = ["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"];
        let done = client(port, &ours, "")?;
        let agreed = "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384";
        ensure!(done.stdout.contains(agreed), "{port} must speak it: {done:?}");
        let offers_all = client(port, &[], "")?;
        ensure!(offers_all.stdout.contains(agreed), "{port} chose another: {offers_all:?}");
        let weak = "ALL:@SECLEVEL=0";
        for refused in [
            &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"][..],
            &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"],
            &["-tls1_2"],
            &["-tls1_2", "-cipher", weak],
            &["-tls1_1", "-cipher", weak],
            &["-tls1", "-cipher", weak],
        ] {
            let done = client(port, refused, "")?;
            ensure!(
                done.code != 0 && done.stdout.contains("Cipher is (NONE)"),
                "{port} accepts {refused:?}: {done:?}"
            );
        }
    }
    Ok(())
}

/// Without tickets there is nothing to resume, so no early data that could be replayed
/// (RFC 8446 §8).
#[test]
fn no_session_is_resumed_and_no_early_data_taken() -> Result<()> {
    let mut site = Site::local("rules-early")?;
    site.start_mediator()?;
    let port = SocketAddr::from(([127, 0, 0, 1], site.port));
    let done = client(port, &["-ign_eof"], REQUEST)?;
    ensure!(done.stdout.contains("HTTP/1.1 "), "no answer to a request: {done:?}");
    for word in ["New Session Ticket arrived", "Max Early Data: 1", "Reused"] {
        ensure!(!done.stdout.contains(word), "{word}: {done:?}");
    }
    Ok(())
}

#[test]
fn plain_http_gets_no_data_on_any_port() -> Result<()> {
    let mut site = Site::local("rules-plain")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    for port in both_ports(&site)? {
        for text in [REQUEST, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\n\r\n"] {
            let mut stream = TcpStream::connect(port)?;
            stream.set_read_timeout(Some(SOON))?;
            // A reset says as little as an end, and may come before any of these.
            let _ = stream.write_all(text.as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            ensure!(answer.len() <= ALERT, "{port} answers {text:?} with {answer:?}");
        }
    }
    Ok(())
}

#[test]
fn programs_listen_where_they_say_and_nowhere_else() -> Result<()> {
    let mut site = Site::local("rules-listen")?;
    site.start()?;
    let [mediator, relay] = both_ports(&site)?;
    for (instance, expected) in
        [("mediator", vec![mediator.port()]), ("relay", vec![relay.port()]), ("agent", vec![])]
    {
        let ports = listening(site.process(instance)?.id())?;
        ensure!(ports == expected.into_iter().collect(), "{instance} listens on {ports:?}");
    }
    Ok(())
}

/// TCP ports that a process listens on, in either family.
fn listening(process: u32) -> Result<BTreeSet<u16>> {
    /// `TCP_LISTEN` of the kernel's state table.
    const LISTEN: &str = "0A";
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))?.flatten() {
        let link = fs::read_link(entry.path()).unwrap_or_default();
        let link = link.to_string_lossy().into_owned();
        let inode = link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']'));
        inodes.extend(inode.map(str::to_owned));
    }
    ensure!(!inodes.is_empty(), "{process} has no sockets at all");
    let mut ports = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/{process}/net/{table}"))?;
        for line in table.lines().skip(1) {
            let words: Vec<_> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) =
                (words.get(1), words.get(3), words.get(9))
            else {
                continue;
            };
            if *state == LISTEN && inodes.contains(*inode) {
                let port = local.rsplit(':').next().context("port")?;
                ports.insert(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}
