//! Says what this machine's network gives: addresses, port mappings, NAT behaviour, and changes
//! as they happen. To be run in a NAT laboratory: it asks the gateway.
//!
//! `nat_report SECONDS STUN_SERVER…`, and for a server with two addresses
//! `nat_report serve IP IP`.

use std::{net::SocketAddr, num::NonZeroU16, time::Duration};

use adit_net::{
    interfaces,
    portmap::PortMapper,
    stun::{
        self, StunSockets,
        explore::{filtering, hairpin, observe_ports, port_step},
    },
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "a tool")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("serve") {
        let ips: Vec<_> = arguments.filter_map(|a| a.parse().ok()).collect();
        match StunSockets::bind(&ips, 3478) {
            Ok(sockets) => stun::serve(sockets, CancellationToken::new()).await,
            Err(error) => println!("{error}"),
        }
        return;
    }
    let seconds = first.and_then(|s| s.parse().ok()).unwrap_or(5);
    let servers: Vec<SocketAddr> = arguments.filter_map(|a| a.parse().ok()).collect();
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let began = Instant::now();
    let mapper = PortMapper::start(true, &tasks, cancel.clone());
    mapper.want(NonZeroU16::new(40_000));
    let mut mapping = mapper.watch();
    let ids = || adit_protocol::keys::random::<12>().ok();
    if let Some(server) = servers.first() {
        println!("filtering {:?}", filtering(*server, ids).await);
        println!("hairpin {:?}", hairpin(*server, ids).await);
        let ports = observe_ports(&servers, ids).await;
        println!("ports {ports:?} step {} after {:?}", port_step(&ports), began.elapsed());
    }
    let mut changes = interfaces::watch(&tasks, cancel.clone()).await.ok();
    let end = tokio::time::sleep(Duration::from_secs(seconds));
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            changed = mapping.changed() => {
                if changed.is_err() { break }
                println!("{:?} {:?}", began.elapsed(), *mapping.borrow_and_update());
            }
            Some(change) = async { changes.as_mut()?.recv().await } => {
                let ips: Vec<_> = change.addresses.iter().map(|a| a.ip).collect();
                let (major, resumed) = (change.major, change.resumed);
                println!("{:?} major {major} resumed {resumed} {ips:?}", began.elapsed());
            }
        }
    }
    mapper.release().await;
    println!("{:?} released", began.elapsed());
    cancel.cancel();
    tasks.close();
    tasks.wait().await;
}
