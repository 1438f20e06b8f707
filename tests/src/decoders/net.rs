//! What other programs of this machine and of the local network say.

use std::time::Duration;

use adit_console::forward::socks;
use adit_net::proxy::{Dialer, ProxyConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    runtime::Runtime,
};

thread_local! {
    /// What runs the futures, and a proxy's port.
    static RUNTIME: Option<(Runtime, TcpListener)> = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.ok().and_then(|runtime| {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).ok()?;
            Some((runtime, listener))
        })
    };
}

fn run<T>(ask: impl AsyncFnOnce(&TcpListener) -> T) -> Option<T> {
    RUNTIME.with(|runtime| {
        let (runtime, listener) = runtime.as_ref()?;
        Some(runtime.block_on(ask(listener)))
    })
}

/// Requests of programs that use `-D`.
pub(super) fn socks(data: &[u8]) -> bool {
    let mut answer = Vec::new();
    let mut stream = tokio::io::join(data, &mut answer);
    let target = run(async |_| socks::negotiate(&mut stream).await).and_then(Result::ok);
    assert!(answer.len() <= 12, "{} bytes are answered", answer.len());
    if let Some(target) = &target {
        assert!(target.port() != 0 && !target.host().starts_with('-'));
    }
    target.is_some()
}

pub(super) fn valid_socks() -> Vec<Vec<u8>> {
    vec![
        vec![5, 2, 2, 0, 5, 1, 0, 1, 10, 0, 0, 1, 1, 187],
        [&[5, 1, 0, 5, 1, 0, 3, 11][..], b"web.example", &[0, 80]].concat(),
        [&[5, 1, 0, 5, 1, 0, 4][..], &[0; 15], &[1, 0, 22]].concat(),
    ]
}

/// Answers of an HTTP proxy, or of a SOCKS one if they begin like such.
pub(super) fn proxy(data: &[u8]) -> bool {
    let scheme = if data.first() == Some(&5) { "socks5" } else { "http" };
    let connected = run(async |listener| {
        let address = listener.local_addr().ok()?;
        let config =
            ProxyConfig { explicit: Some(format!("{scheme}://{address}")), from_env: false };
        let dialer = Dialer::new(&config).ok()?;
        let answering = async {
            let (mut stream, _) = listener.accept().await.ok()?;
            // Answers before it is asked; who asks may be gone.
            let _ = stream.write_all(data).await;
            let _ = stream.shutdown().await;
            let mut asked = Vec::new();
            let _ = stream.read_to_end(&mut asked).await;
            Some(())
        };
        let dialing = dialer.dial("target.example", 443, Duration::from_secs(1));
        // The connection ends here: the other side waits for that.
        let dialing = async { dialing.await.is_ok_and(|dialed| dialed.via_proxy) };
        let (connected, _) = tokio::join!(dialing, answering);
        Some(connected)
    });
    connected.flatten() == Some(true)
}

pub(super) fn valid_proxy() -> Vec<Vec<u8>> {
    vec![
        b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec(),
        vec![5, 0, 5, 0, 0, 1, 10, 0, 0, 1, 1, 187],
    ]
}

/// Requests to the port of metrics.
pub(super) fn metrics(data: &[u8]) -> bool {
    adit_runtime::metrics::fuzz_request(data)
}

pub(super) fn valid_metrics() -> Vec<Vec<u8>> {
    vec![b"GET /metrics?x=1 HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()]
}

/// Lines of the local socket.
pub(super) fn local(data: &[u8]) -> bool {
    adit_runtime::local::fuzz_line(data)
}

pub(super) fn valid_local() -> Vec<Vec<u8>> {
    let error = r#"{"error":{"code":"not_there","exit":4,"message":"no","hint":"look again"}}"#;
    [r#"{"reply":{"a":[1,null,"x"]}}"#, r#"{"done":true}"#, error].map(Vec::from).into()
}

pub(super) fn valid_upnp() -> Vec<Vec<u8>> {
    let found = "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\n\
        LOCATION: http://192.0.2.1:5000/rootDesc.xml\r\n\r\n";
    let description = "<root><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
        <controlURL>/ctl/IPConn</controlURL></service></serviceList></device></root>";
    let envelope = |body: &str| {
        format!(
            "<?xml version=\"1.0\"?><s:Envelope \
             xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{body}</s:Body>\
             </s:Envelope>"
        )
    };
    let of = "xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\"";
    let external = envelope(&format!(
        "<u:GetExternalIPAddressResponse {of}><NewExternalIPAddress>203.0.113.5\
         </NewExternalIPAddress></u:GetExternalIPAddressResponse>"
    ));
    let added = envelope(&format!("<u:AddPortMappingResponse {of}/>"));
    [found, description, &external, &added].map(Vec::from).into()
}
