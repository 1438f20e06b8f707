//! What a browser gets: one page, no data, the headers of a server that means it.
//!
//! Reads one bounded request and closes. Must never answer anything else until the API comes.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of a request that are read.
const MAX_REQUEST: usize = 16 * 1024;
/// Time for request and answer.
const DEADLINE: Duration = Duration::from_secs(10);
const PAGE: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Adit \
     mediator</title><p>Adit mediator. There is nothing to see here.</p></html>\n";

/// An HTTP/2 server's empty SETTINGS and GOAWAY with HTTP_1_1_REQUIRED (RFC 9113 §6.5, §6.8, §7).
const HTTP2_GOODBYE: [u8; 26] = [
    0, 0, 0, 4, 0, 0, 0, 0, 0, //
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xd,
];

/// Answers one request.
pub(super) async fn answer<S>(stream: S, alpn: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A browser that went away is nobody's problem.
    let _ = tokio::time::timeout(DEADLINE, exchange(stream, alpn)).await;
}

async fn exchange<S>(mut stream: S, alpn: &[u8]) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if alpn == b"h2" {
        stream.write_all(&HTTP2_GOODBYE).await?;
        return stream.shutdown().await;
    }
    let mut head = Vec::new();
    let mut buffer = [0_u8; 1024];
    while head.len() < MAX_REQUEST && !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        head.extend(buffer.iter().take(count));
    }
    let response = response(&head);
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

fn response(head: &[u8]) -> String {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut parts = line.split(|byte| *byte == b' ');
    let method = parts.next().unwrap_or_default();
    let well_formed = parts.next().is_some() && parts.next() == Some(b"HTTP/1.1");
    let status = match method {
        _ if !well_formed => "400 Bad Request",
        b"GET" | b"HEAD" => "404 Not Found",
        _ => "405 Method Not Allowed",
    };
    let body = if method == b"HEAD" { "" } else { PAGE };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\nAllow: GET, HEAD\r\nCache-Control: no-store\r\n\
         Content-Security-Policy: default-src 'none'; frame-ancestors 'none'; base-uri 'none'; \
         form-action 'none'\r\nStrict-Transport-Security: max-age=63072000\r\n\
         X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n\
         Referrer-Policy: no-referrer\r\nCross-Origin-Opener-Policy: same-origin\r\n\
         Cross-Origin-Resource-Policy: same-origin\r\n\r\n{body}",
        PAGE.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_the_headers_and_nothing_else_is_served() {
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("HEAD / HTTP/1.1\r\n\r\n", "404"),
            ("POST /setup HTTP/1.1\r\n\r\n", "405"),
            ("garbage\r\n\r\n", "400"),
            ("", "400"),
        ] {
            let text = response(request.as_bytes());
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {text}");
            for header in ["Content-Security-Policy", "Strict-Transport", "nosniff", "no-store"] {
                assert!(text.contains(header), "{header}");
            }
        }
        assert!(response(b"HEAD / HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
    }
}
