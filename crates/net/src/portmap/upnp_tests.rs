//! What is believed of a router's words, and what a hostile one can do: nothing but waste time.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn own() -> Vec<IpNet> {
    vec!["192.168.7.9/24".parse::<IpNet>().unwrap().trunc()]
}

#[test]
fn only_the_router_itself_is_asked_about_itself() {
    let router: IpAddr = "192.168.7.1".parse().unwrap();
    let at = |location: &str, from: IpAddr| {
        let answer = format!("HTTP/1.1 200 OK\r\nST: x\r\nLocation:{location}\r\n\r\n");
        super::location(answer.as_bytes(), from, &own()).map(|(addr, path)| format!("{addr}{path}"))
    };
    let found = at(" http://192.168.7.1:5000/root.xml?a=1", router);
    assert_eq!(found.as_deref(), Some("192.168.7.1:5000/root.xml?a=1"));
    assert_eq!(at("http://192.168.7.1/", router).as_deref(), Some("192.168.7.1:80/"));
    for (location, from) in [
        ("http://127.0.0.1:8080/admin", "192.168.7.1"),
        ("http://127.0.0.1:8080/admin", "127.0.0.1"),
        ("http://192.168.7.2/root.xml", "192.168.7.1"),
        ("http://203.0.113.9/root.xml", "203.0.113.9"),
        ("http://router.example/root.xml", "192.168.7.1"),
        ("https://192.168.7.1/root.xml", "192.168.7.1"),
        ("ftp://192.168.7.1/root.xml", "192.168.7.1"),
        ("", "192.168.7.1"),
    ] {
        assert_eq!(at(location, from.parse().unwrap()), None, "{location} from {from}");
    }
    assert_eq!(super::location(&[0xff; 40], router, &own()), None);
}

#[test]
fn finds_the_service_that_maps_ports() {
    let addr: SocketAddr = "192.168.7.1:5000".parse().unwrap();
    let service = |kind: &str, url: &str| {
        format!(
            "<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>"
        )
    };
    let [ip1, ip2, ppp] = SERVICES;
    let found = |text: &str| control(text, addr).map(|(addr, path)| format!("{addr}{path}"));
    let other = service("urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1", "/other");
    let text = format!("<root>{other}{}</root>", service(ip1, " /ctl "));
    assert_eq!(found(&text).as_deref(), Some("192.168.7.1:5000/ctl"));
    assert_eq!(found(&service(ppp, "ctl/ppp")).as_deref(), Some("192.168.7.1:5000/ctl/ppp"));
    let elsewhere = service(ip2, "http://192.168.7.1:49152/c");
    assert_eq!(found(&elsewhere).as_deref(), Some("192.168.7.1:49152/c"));
    for text in [
        service(ip1, "http://127.0.0.1:631/c"),
        service(ip1, "http://evil.example/c"),
        other,
        "<service><serviceType>".to_owned(),
        String::new(),
    ] {
        assert_eq!(found(&text), None, "{text}");
    }
}

#[test]
fn nothing_deep_and_no_entities_reach_the_parser() {
    assert!(is_tame("<s:Envelope><s:Body><u:AddPortMappingResponse/></s:Body></s:Envelope>"));
    assert!(!is_tame(&"<a>".repeat(10_000)));
    assert!(!is_tame("<!DOCTYPE lolz [<!ENTITY lol \"lol\">]><lolz>&lol;</lolz>"));
}

/// A router that answers whatever it is asked.
async fn router(answer: Vec<u8>) -> (SocketAddr, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    (addr, tasks)
}

#[tokio::test]
async fn asks_for_a_mapping_by_our_name() {
    let body = "<?xml version=\"1.0\"?><s:Envelope \
        xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body><u:GetExternalIPAddressResponse \
        xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\"><NewExternalIPAddress>203.0.113.5\
        </NewExternalIPAddress></u:GetExternalIPAddressResponse></s:Body></s:Envelope>";
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (addr, _tasks) = router(answer.into_bytes()).await;
    let gateway = Gateway {
        addr,
        root_url: "/".to_owned(),
        control_url: "/ctl".to_owned(),
        control_schema_url: String::new(),
        control_schema: HashMap::new(),
        provider: Bounded,
    };
    let ip = gateway.get_external_ip().await.unwrap();
    assert_eq!(ip, "203.0.113.5".parse::<IpAddr>().unwrap());
}

#[tokio::test]
async fn a_hostile_router_wastes_little() {
    let endless = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b'<'; 4 * MAX_BODY]].concat();
    let (addr, _tasks) = router(endless).await;
    assert!(ask(Method::GET, addr, "/", None).await.is_err());
    let (addr, _tasks) = router(b"\xff\xff\xff\xff".repeat(100)).await;
    assert!(ask(Method::GET, addr, "/", None).await.is_err());
    // One that never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let began = Instant::now();
    let addr = listener.local_addr().unwrap();
    assert!(ask(Method::GET, addr, "/", None).await.is_err());
    assert!(began.elapsed() < REQUEST * 2);
}
