//! The metrics page: bounds and bad input.

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

async fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The responder may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn serves_metrics_health_and_readiness_and_refuses_the_rest() {
    let mut registry = Registry::new("relay");
    let pairs: Counter = Counter::default();
    registry.register("pairs", "Pairs so far", pairs.clone());
    pairs.inc_by(3);
    let health = Health::default();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = MetricsServer::bind(any, Arc::new(registry), health.clone()).await.unwrap();
    let address = server.local_addr();
    let error = MetricsServer::bind(address, Arc::new(Registry::new("x")), Health::default()).await;
    assert_eq!(error.unwrap_err().code, "port_in_use");
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(server.serve(stop.clone()));

    let metrics = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(metrics.contains("adit_pairs_total 3\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(metrics.contains("adit_build_info{program=\"relay\""));

    let oversized = vec![b'x'; http::MAX_HEAD_BYTES + 1];
    for (request, status) in [
        (&b"GET /healthz HTTP/1.1\r\n\r\n"[..], " 200 "),
        (b"GET /readyz HTTP/1.1\r\n\r\n", " 503 "),
        (b"GET /nothing?x HTTP/1.0\r\n\r\n", " 404 "),
        (b"POST /metrics HTTP/1.1\r\n\r\n", " 405 "),
        (b"\xff\xfe\r\n\r\n", " 400 "),
        (b"GET /metrics", " 400 "),
        (&oversized, " 431 "),
    ] {
        let answer = ask(address, request).await;
        assert!(answer.lines().next().unwrap_or_default().contains(status), "{answer}");
    }
    health.set_ready(true);
    let head = ask(address, b"HEAD /readyz HTTP/1.1\r\n\r\n").await;
    assert!(head.contains(" 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    stop.cancel();
    assert!(tasks.join_next().await.unwrap().is_ok());
}
