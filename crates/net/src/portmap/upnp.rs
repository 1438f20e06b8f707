//! UPnP Internet Gateway Device: finds the router of the local network and maps a port on it.
//!
//! The mapping service's messages are the library's. Finding the router and carrying messages to
//! it is done here, because anybody in the local network may answer: only the machine that
//! answers is talked to, only if it is in one of our own networks, only so much of what it says is
//! read, and nothing that nests deeply or defines entities comes near the XML parser.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    num::NonZeroU16,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use igd_next::{
    AddAnyPortError, AddPortError, PortMappingProtocol, RequestError,
    aio::{Gateway, Provider},
};
use ipnet::IpNet;
use tokio::{
    net::{TcpStream, UdpSocket},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use crate::interfaces;

/// Where routers listen (UPnP Device Architecture 1.1 §1.3.2).
const SEARCH_ADDR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// What is looked for.
const KINDS: [&str; 2] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
];
/// When it is asked for: a datagram may be lost.
const SEARCHES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(300)];
/// Time for a router to answer and to describe itself. It is asked to answer within a second.
const SEARCH: Duration = Duration::from_millis(1_800);
/// Answers that are looked at.
const MAX_ANSWERS: usize = 8;
/// Time for one request.
const REQUEST: Duration = Duration::from_millis(2_500);
/// Longest answer to a search.
const MAX_SEARCH_ANSWER: usize = 1_500;
/// Longest description of a router, and longest answer of it.
const MAX_BODY: usize = 64 * 1024;
/// Elements in an answer: real ones have about ten, and the parser goes one level down for each.
const MAX_ELEMENTS: usize = 100;
/// What a mapping lasts if it is not renewed, such as after a crash.
const LEASE: Duration = Duration::from_secs(3600);
/// The router's list of mappings shows this.
const DESCRIPTION: &str = "Adit";
/// The services that map ports.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// Arguments of its actions in their order (WANIPConnection:1 §2.4.16, §2.4.17).
const ACTIONS: [(&str, &[&str]); 2] = [
    (
        "AddPortMapping",
        &[
            "NewRemoteHost",
            "NewExternalPort",
            "NewProtocol",
            "NewInternalPort",
            "NewInternalClient",
            "NewEnabled",
            "NewPortMappingDescription",
            "NewLeaseDuration",
        ],
    ),
    ("DeletePortMapping", &["NewRemoteHost", "NewExternalPort", "NewProtocol"]),
];

/// Maps one port on the router.
#[derive(Debug, Default)]
pub(super) struct Mapper(Mutex<State>);

#[derive(Clone, Debug, Default)]
struct State {
    router: Option<Router>,
    mapped: Option<Mapped>,
}

#[derive(Clone, Copy, Debug)]
struct Mapped {
    internal: SocketAddrV4,
    external: SocketAddrV4,
    /// In seconds; 0: until it is given back, which is all that some routers can.
    lease: u32,
}

impl Mapper {
    fn state(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether there is a router that maps ports.
    pub(super) async fn probe(&self) -> bool {
        let router = Router::find().await;
        let found = router.is_some();
        self.note(|state| state.router = router);
        found
    }

    /// Maps this local port to whichever external one is free.
    pub(super) async fn map(&self, port: NonZeroU16) -> Option<SocketAddrV4> {
        let router = self.state().router?;
        let mapped = router.map(port).await?;
        self.note(|state| state.mapped = Some(mapped));
        Some(mapped.external)
    }

    /// Renews the mapping until that fails.
    pub(super) async fn keep(&self) {
        loop {
            sleep(LEASE / 2).await;
            let State { router: Some(router), mapped: Some(mapped) } = self.state() else { return };
            if !router.renew(mapped).await {
                self.note(|state| state.mapped = None);
                return;
            }
        }
    }

    /// Gives the mapping back.
    pub(super) async fn release(&self) {
        if let State { router: Some(router), mapped: Some(mapped) } = self.state() {
            self.note(|state| state.mapped = None);
            let port = mapped.external.port();
            // What it does not take back ends with the lease.
            let _ = router.0.remove_port(PortMappingProtocol::UDP, port).await;
        }
    }
}

/// The mapping service of a router.
#[derive(Clone, Debug)]
struct Router(Gateway<Bounded>);

impl Router {
    /// The first one that answers and describes itself properly.
    async fn find() -> Option<Self> {
        let own = interfaces::own_subnets(&interfaces::local_addresses().await);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
        let began = Instant::now();
        let asking = async {
            for after in SEARCHES {
                sleep_until(began + after).await;
                for kind in KINDS {
                    // What is not sent is lost: it is repeated.
                    let _ = socket.send_to(search(kind).as_bytes(), SEARCH_ADDR).await;
                }
            }
            std::future::pending::<()>().await;
        };
        let listening = async {
            let mut buffer = [0; MAX_SEARCH_ANSWER];
            for _ in 0..MAX_ANSWERS {
                let (len, from) = socket.recv_from(&mut buffer).await.ok()?;
                let answer = buffer.get(..len).unwrap_or_default();
                let Some((addr, path)) = location(answer, from.ip(), &own) else { continue };
                if let Ok(router) = Self::described(addr, &path).await {
                    return Some(router);
                }
            }
            None
        };
        let found = async {
            tokio::select! {
                () = asking => None,
                found = listening => found,
            }
        };
        timeout_at(began + SEARCH, found).await.ok().flatten()
    }

    async fn described(addr: SocketAddr, path: &str) -> io::Result<Self> {
        let description = ask(Method::GET, addr, path, None).await?;
        let (control, url) =
            control(&description, addr).ok_or_else(|| io::Error::other("it maps no ports"))?;
        let actions = ACTIONS.map(|(name, arguments)| {
            (name.to_owned(), arguments.iter().map(|a| (*a).to_owned()).collect())
        });
        Ok(Self(Gateway {
            addr: control,
            root_url: path.to_owned(),
            control_url: url,
            control_schema_url: String::new(),
            control_schema: HashMap::from(actions),
            provider: Bounded,
        }))
    }

    async fn map(&self, port: NonZeroU16) -> Option<Mapped> {
        let IpAddr::V4(own) = self.own_address().await.ok()? else { return None };
        let internal = SocketAddrV4::new(own, port.get());
        let IpAddr::V4(ip) = self.0.get_external_ip().await.ok()? else { return None };
        let add = |lease| {
            self.0.add_any_port(PortMappingProtocol::UDP, internal.into(), lease, DESCRIPTION)
        };
        let lease = seconds(LEASE);
        let (external, lease) = match add(lease).await {
            Err(AddAnyPortError::OnlyPermanentLeasesSupported) => (add(0).await.ok()?, 0),
            external => (external.ok()?, lease),
        };
        Some(Mapped { internal, external: SocketAddrV4::new(ip, external), lease })
    }

    /// Whether the mapping still is what it was.
    async fn renew(&self, mapped: Mapped) -> bool {
        let Mapped { internal, external, lease } = mapped;
        let same = self.0.get_external_ip().await.is_ok_and(|ip| ip == IpAddr::V4(*external.ip()));
        let port = external.port();
        let udp = PortMappingProtocol::UDP;
        let added = self.0.add_port(udp, port, internal.into(), lease, DESCRIPTION).await;
        same && matches!(added, Ok(()) | Err(AddPortError::PortInUse))
    }

    /// By which the router knows us.
    async fn own_address(&self) -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(self.0.addr).await?;
        Ok(socket.local_addr()?.ip())
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

fn search(kind: &str) -> String {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {SEARCH_ADDR}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
         ST: {kind}\r\n\r\n"
    )
}

/// Where a router describes itself, if that is on the router itself, in a network of ours: else
/// anybody could make us talk to anybody.
fn location(answer: &[u8], from: IpAddr, own: &[IpNet]) -> Option<(SocketAddr, String)> {
    let text = std::str::from_utf8(answer).ok()?;
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("location").then(|| value.trim())
    })?;
    let (addr, path) = address(value)?;
    let near = own.iter().any(|net| net.contains(&from)) && !from.is_loopback();
    (addr.ip() == from && near).then_some((addr, path))
}

/// Address and path of an `http` URL with an address in it.
fn address(url: &str) -> Option<(SocketAddr, String)> {
    let uri: Uri = url.parse().ok()?;
    let host: Ipv4Addr = uri.host()?.parse().ok()?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let addr = SocketAddr::from((host, uri.port_u16().unwrap_or(80)));
    (uri.scheme_str() == Some("http")).then_some((addr, path))
}

/// Where the first service that maps ports is controlled. A description is searched as text: there
/// is nothing in it but names and URLs.
fn control(description: &str, addr: SocketAddr) -> Option<(SocketAddr, String)> {
    let services = description.split("<service>").skip(1);
    let services = services.filter_map(|s| s.split_once("</service>").map(|(inner, _)| inner));
    let url = services.into_iter().find_map(|service| {
        let kind = element(service, "serviceType")?;
        SERVICES.contains(&kind).then(|| element(service, "controlURL"))?
    })?;
    if !url.contains("://") {
        let path = if url.starts_with('/') { url.to_owned() } else { format!("/{url}") };
        return Some((addr, path));
    }
    address(url).filter(|(control, _)| control.ip() == addr.ip())
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inner.trim())
}

/// Carries the library's messages.
#[derive(Clone, Debug)]
struct Bounded;

impl Provider for Bounded {
    async fn send_async(url: &str, action: &str, body: &str) -> Result<String, RequestError> {
        let nowhere = || io::Error::other("not an address");
        let (addr, path) = address(url).ok_or_else(nowhere)?;
        let answer = ask(Method::POST, addr, &path, Some((action, body))).await?;
        if !is_tame(&answer) {
            return Err(RequestError::InvalidResponse("not an answer to this".to_owned()));
        }
        Ok(answer)
    }
}

/// Whether a text may be given to the XML parser.
fn is_tame(xml: &str) -> bool {
    xml.matches('<').count() <= 2 * MAX_ELEMENTS && !xml.contains("<!")
}

/// One request, and the answer's body as far as it is read.
async fn ask(
    method: Method,
    addr: SocketAddr,
    path: &str,
    message: Option<(&str, &str)>,
) -> io::Result<String> {
    let mut request = Request::builder().method(method).uri(path).header("host", addr.to_string());
    if let Some((action, _)) = message {
        request = request.header("soapaction", action).header("content-type", "text/xml");
    }
    let body = message.map_or_else(Bytes::new, |(_, body)| Bytes::copy_from_slice(body.as_bytes()));
    let request = request.body(Full::new(body)).map_err(io::Error::other)?;
    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let answer = async move {
            let answer = sender.send_request(request).await.map_err(io::Error::other)?;
            let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
            let bytes = body.map_err(io::Error::other)?.to_bytes();
            String::from_utf8(bytes.to_vec()).map_err(io::Error::other)
        };
        // The connection ends once the answer is here and the sender is gone.
        let (answer, _) = tokio::join!(answer, connection);
        answer
    };
    timeout(REQUEST, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[path = "upnp_fuzz.rs"]
pub(super) mod fuzz;
#[cfg(test)]
#[path = "upnp_tests.rs"]
mod tests;
