//! `adit-peer`: the ends of a forward as a program, to run inside a namespace.
//!
//! Prints JSON lines: `{"event":"ready"}` of servers, `{"event":"progress"}` and
//! `{"event":"done"}` of clients. Used by the end-to-end tests only.

use std::io::Write as _;

use adit_tests::peer;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", tcp, udp] => {
            let tcp = peer::TcpServer::start(tcp)?.addr();
            let udp = peer::udp_server(udp)?;
            say(&json!({"event": "ready", "tcp": tcp.to_string(), "udp": udp.to_string()}));
            loop {
                std::thread::park();
            }
        }
        ["echo", addr, count, size] => {
            let times = peer::echo(addr.parse()?, count.parse()?, size.parse()?)?;
            say(&json!({"event": "done", "rtt_ms": times}));
        }
        ["fetch", addr, seed, bytes, rate] => {
            let progress = |bytes| say(&json!({"event": "progress", "bytes": bytes}));
            let (seed, bytes, rate) = (seed.parse()?, bytes.parse()?, rate.parse()?);
            done(peer::fetch(addr.parse()?, seed, bytes, rate, progress)?)?;
        }
        ["push", addr, seed, bytes, rate] => {
            let (seed, bytes, rate) = (seed.parse()?, bytes.parse()?, rate.parse()?);
            done(peer::push(addr.parse()?, seed, bytes, rate)?)?;
        }
        ["udp", addr, sizes @ ..] => {
            let sizes: Vec<usize> = sizes.iter().map(|s| s.parse()).collect::<Result<_, _>>()?;
            let repeated = peer::udp_echo(addr.parse()?, &sizes)?;
            say(&json!({"event": "done", "repeated": repeated}));
        }
        ["leak", addr, seed, bytes] => {
            // Sends the pattern in the clear: shows that a capture would find it.
            let mut text = vec![0; bytes.parse()?];
            peer::fill(&mut text, seed.parse()?, 0);
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            for part in text.chunks(1000) {
                socket.send_to(part, addr)?;
            }
            say(&json!({"event": "done"}));
        }
        other => bail!("unknown command: {other:?}"),
    }
    Ok(())
}

fn done(mut result: Value) -> Result<()> {
    result.as_object_mut().context("no object")?.insert("event".into(), "done".into());
    say(&result);
    Ok(())
}

fn say(event: &Value) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more: nobody misses it.
    let _ = writeln!(out, "{event}");
    let _ = out.flush();
}
