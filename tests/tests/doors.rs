//! Whose pages reach a redirected web service, in a real browser: the service's own, and links that
//! are followed. Pages of another tunnel, of another site and under another name do not, on no
//! connection of the browser's.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use adit_tests::{
    browser::Browser,
    process::text,
    site::{SOON, Site},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;

/// A web server that keeps connections, and what it was asked for.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Its threads end with the test's process.
    fn start(addr: &str, page: impl Fn() -> String + Send + Sync + 'static) -> Result<Self> {
        let listener =
            TcpListener::bind(addr).with_context(|| format!("cannot listen on {addr}"))?;
        let port = listener.local_addr()?.port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, page) = (Arc::clone(&asked), Arc::new(page));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, page) = (Arc::clone(&log), Arc::clone(&page));
                thread::spawn(move || answer(stream, &log, page.as_ref()));
            }
        });
        Ok(Self { port, asked })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().map(|asked| asked.clone()).unwrap_or_default()
    }
}

/// Answers each request of a connection, the one for `/` with the page.
fn answer(
    mut stream: TcpStream,
    log: &Mutex<Vec<String>>,
    page: &dyn Fn() -> String,
) -> Option<()> {
    let mut read = BufReader::new(stream.try_clone().ok()?);
    loop {
        let (mut first, mut length, mut socket) = (String::new(), 0, false);
        (read.read_line(&mut first).ok()? > 0).then_some(())?;
        loop {
            let mut line = String::new();
            read.read_line(&mut line).ok()?;
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            socket |= line == "upgrade: websocket";
            if line.is_empty() {
                break;
            }
        }
        std::io::copy(&mut read.by_ref().take(length), &mut std::io::sink()).ok()?;
        let asked = first.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let socket = if socket { "socket " } else { "" };
        log.lock().ok()?.push(format!("{socket}{asked}"));
        let page = if asked == "GET /" { page() } else { "<p id=done>there".to_owned() };
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncache-control: no-store";
        write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{page}", page.len()).ok()?;
    }
}

/// Does all that a page can do to a service at `at`, and says when it is done.
fn doings(at: &str, who: &str) -> String {
    format!(
        r#"<!doctype html><body>a page
        <form id=form method=post action="{at}/{who}-form"><button id=post>post</button></form>
        <a id=link href="{at}/{who}-link">link</a>
        <script>
          const at = "{at}", settled = (make) => new Promise((over) => {{
            const it = make();
            it.onload = it.onerror = it.onclose = it.onopen = over;
            if (it instanceof Node) document.body.append(it);
          }});
          const made = (tag, path) => () => Object.assign(document.createElement(tag), {{ src: at + path }});
          const socket = new URL(at + "/{who}-socket", location.href);
          socket.protocol = "ws:";
          Promise.allSettled([
            fetch(at + "/{who}-get", {{ mode: "no-cors" }}),
            fetch(at + "/{who}-post", {{ method: "POST", mode: "no-cors", body: "x" }}),
            settled(made("img", "/{who}-image")),
            settled(made("iframe", "/{who}-frame")),
            settled(() => new WebSocket(socket)),
          ]).then(() => document.body.append(Object.assign(document.createElement("p"), {{ id: "done", innerText: "done" }})));
        </script>"#
    )
}

#[test]
fn pages_of_others_reach_a_redirected_web_service_by_links_alone() -> Result<()> {
    let mut site = Site::local("doors")?;
    site.start()?;
    let service = Server::start("127.0.0.1:80", || doings("", "own"))?;
    let mut console = site.spawn("console", &["open", "agent", "http", "--no-launch", "--json"])?;
    let listening = console.event("listening", SOON)?;
    let at = format!("http://{}", text(&listening, "local_addr"));
    let port = at.rsplit(':').next().unwrap_or_default().to_owned();
    let evil = {
        let at = at.clone();
        Server::start("127.0.0.1:0", move || doings(&at, "evil"))?
    };
    let mut browser = Browser::start(&site.data_dir("browser"), "none")?;
    browser.goto(&format!("{at}/"))?;
    browser.wait("#done")?;
    let own = service.asked();
    for asked in [
        "GET /",
        "GET /own-get",
        "POST /own-post",
        "GET /own-image",
        "GET /own-frame",
        "socket GET /own-socket",
    ] {
        ensure!(own.iter().any(|a| a == asked), "the service's own page cannot {asked}: {own:?}");
    }
    // The browser has connections to the service now. A page of another port is of the same site.
    for host in ["127.0.0.1", "rebound.test"] {
        let page = format!("http://{host}:{}/", evil.port);
        browser.goto(&page)?;
        browser.wait("#done")?;
        browser.click("#post")?;
        browser.see("Refused by console-tunnel: a page of another site asks")?;
        browser.goto(&page)?;
        browser.wait("#done")?;
        browser.click("#link")?;
        browser.wait("#done")?;
        let asked: Vec<_> = service.asked().into_iter().filter(|a| a.contains("evil")).collect();
        ensure!(
            !asked.is_empty() && asked.iter().all(|a| a == "GET /evil-link"),
            "{host}: {asked:?}"
        );
    }
    browser.goto(&format!("http://rebound.test:{port}/rebound"))?;
    browser.see("Refused by console-tunnel: it names another host")?;
    ensure!(!service.asked().iter().any(|asked| asked.contains("rebound")));
    browser.tell(&json!({"do": "goto", "url": format!("{at}/again")}))?;
    ensure!(service.asked().iter().any(|asked| asked == "GET /again"));
    ensure!(console.interrupt()?.code() == Some(0), "{}", console.last_words());
    Ok(())
}
