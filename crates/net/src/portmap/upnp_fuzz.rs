//! Whatever anybody in the local network could say as a router, for fuzzing and replay. Opens no
//! socket.

use std::{
    cell::RefCell,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    task::{Context, Poll, Waker},
};

use igd_next::{
    PortMappingProtocol, RequestError,
    aio::{Gateway, Provider},
};
use ipnet::IpNet;

use super::{ACTIONS, MAX_BODY, MAX_SEARCH_ANSWER, control, is_tame, location};

/// Who answers, in a network of ours.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

thread_local! {
    static ANSWER: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Answers everything with [`ANSWER`], as far as the real one would let it through.
#[derive(Clone, Debug)]
struct Canned;

impl Provider for Canned {
    async fn send_async(_: &str, _: &str, _: &str) -> Result<String, RequestError> {
        let answer = ANSWER.with_borrow(String::clone);
        if answer.len() > MAX_BODY || !is_tame(&answer) {
            return Err(RequestError::InvalidResponse("not an answer to this".to_owned()));
        }
        Ok(answer)
    }
}

/// Reads the bytes as answer to a search, as description and as answer to every request.
///
/// # Panics
///
/// If we would talk to another machine than the one that answers.
pub fn upnp(data: &[u8]) -> bool {
    let here = SocketAddr::from((ROUTER, 80));
    let own: Vec<IpNet> = "192.0.2.0/24".parse().into_iter().collect();
    let found = data.get(..data.len().min(MAX_SEARCH_ANSWER)).unwrap_or_default();
    let found = location(found, ROUTER.into(), &own);
    if let Some((addr, _)) = &found {
        assert_eq!(addr.ip(), here.ip());
    }
    let Ok(text) = std::str::from_utf8(data) else { return found.is_some() };
    let controlled = control(text, here);
    if let Some((addr, path)) = &controlled {
        assert!(addr.ip() == here.ip() && !path.is_empty());
    }
    ANSWER.set(text.to_owned());
    let gateway = Gateway {
        addr: here,
        root_url: "/".to_owned(),
        control_url: "/ctl".to_owned(),
        control_schema_url: String::new(),
        control_schema: ACTIONS
            .map(|(name, arguments)| {
                (name.to_owned(), arguments.iter().map(|a| (*a).to_owned()).collect())
            })
            .into(),
        provider: Canned,
    };
    let udp = PortMappingProtocol::UDP;
    let external = ready(gateway.get_external_ip()).is_some_and(|ip| ip.is_ok());
    let added = ready(gateway.add_any_port(udp, here, 60, "Adit")).is_some_and(|p| p.is_ok());
    let same = ready(gateway.add_port(udp, 4000, here, 60, "Adit")).is_some_and(|r| r.is_ok());
    let removed = ready(gateway.remove_port(udp, 4000)).is_some_and(|r| r.is_ok());
    found.is_some() | controlled.is_some() | external | added | same | removed
}

/// Nothing in there waits for anything.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
