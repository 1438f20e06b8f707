//! One request, one response (RFC 9112), for machines on the operator's own network. Reads the
//! request line and ignores everything after it; request bodies are never read.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Request line and header fields together.
pub(super) const MAX_HEAD_BYTES: usize = 8 * 1024;

/// For the request to arrive, and again for the response to be taken.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What goes back.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Response {
    pub(super) fn text(status: u16, body: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.to_owned() }
    }
}

/// Reads a request and answers it with what `respond` gives for its path.
pub(super) async fn answer(mut stream: TcpStream, respond: impl FnOnce(&str) -> Response) {
    let head = match tokio::time::timeout(TIMEOUT, read_head(&mut stream)).await {
        Ok(Ok(head)) => head,
        Ok(Err(status)) => return send(stream, &Response::text(status, ""), true).await,
        Err(_) => return send(stream, &Response::text(408, ""), true).await,
    };
    match read_request(&head) {
        Ok((path, body)) => send(stream, &respond(path), body).await,
        Err(status) => send(stream, &Response::text(status, ""), true).await,
    }
}

/// Bytes up to the empty line; else a status.
async fn read_head(stream: &mut TcpStream) -> Result<Vec<u8>, u16> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if head.len() >= MAX_HEAD_BYTES {
            return Err(431);
        }
        match stream.read_buf(&mut head).await {
            Ok(0) | Err(_) => return Err(400),
            Ok(_) => {}
        }
    }
    Ok(head)
}

/// The path without its query, and whether a body is wanted (not for HEAD); else a status.
fn read_request(head: &[u8]) -> Result<(&str, bool), u16> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| 400_u16)?;
    let mut words = line.split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) = (target, version, words.next())
    else {
        return Err(400);
    };
    let path = target.split('?').next().unwrap_or_default();
    match method {
        Some("GET") => Ok((path, true)),
        Some("HEAD") => Ok((path, false)),
        _ => Err(405),
    }
}

async fn send(mut stream: TcpStream, response: &Response, with_body: bool) {
    let reason = match response.status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let mut text = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{}Connection: close\r\n\r\n",
        response.status,
        response.content_type,
        response.body.len(),
        if response.status == 405 { "Allow: GET, HEAD\r\n" } else { "" },
    );
    if with_body {
        text.push_str(&response.body);
    }
    // A scraper that went away is its own problem.
    let _ = tokio::time::timeout(TIMEOUT, async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    })
    .await;
}

/// For fuzzing: whether a request is answered.
pub fn fuzz_request(head: &[u8]) -> bool {
    read_request(head).is_ok_and(|(path, _)| !path.contains(['?', ' ', '\r']))
}
