//! Every list that the description names: pages one after another are the whole list, whatever the
//! size of a page.

use std::time::{Duration, Instant};

use adit_protocol::code::failure;
use serde_json::{Value, json};

use crate::common::{
    Mediator,
    api::{Web, Who, register},
    hello, identity, open, try_open,
};

/// Items that one list has, page by page.
async fn paged(web: &mut Web, who: &Who, target: &str, limit: u32) -> Vec<Value> {
    let joined = if target.contains('?') { '&' } else { '?' };
    let (mut items, mut cursor) = (Vec::new(), String::new());
    for _ in 0..1_000 {
        let page = format!("{target}{joined}limit={limit}{cursor}");
        let answer = web.ask(who, "GET", &page, None).await;
        assert_eq!(answer.status, 200, "{page}: {answer:?}");
        let found = answer.body["items"].as_array().unwrap();
        assert!(found.len() <= limit as usize, "{page}: {answer:?}");
        // Deliveries go on meanwhile.
        let name = |one: &Value| one.get("receiver").cloned();
        items.extend(found.iter().map(|one| name(one).unwrap_or_else(|| one.clone())));
        match answer.body["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
    panic!("{target} has no end");
}

/// Several of everything that there is a list of.
async fn fill(mediator: &Mediator, web: &mut Web, root: &Who) {
    let wish = json!({"partner": "other", "owner": "other-owner"});
    assert_eq!(web.ask(root, "POST", "/api/v1/partners", Some(&wish)).await.status, 200);
    mediator.admin(&["client", "add", "other/gone"]);
    for n in 0..3 {
        mediator.admin(&["client", "add", &format!("main/c{n}")]);
        mediator.admin(&["token", "agent", "--client", "main/hq"]);
        let name = format!("Directory {n}");
        let wish = json!({"provider": name, "issuer": "https://id.example", "client_id": "c"});
        let added = web.ask(root, "POST", "/api/v1/identity-providers", Some(&wish)).await;
        assert_eq!(added.status, 200, "{added:?}");
        mediator.admin(&["role", "create", &format!("r{n}"), "--permission", "computers.see"]);
        mediator.admin(&["role", "bind", &format!("r{n}"), "--user-group", "g"]);
        let add = ["credential", "add", "main/hq", &format!("k{n}"), "--user", "root"];
        assert_eq!(mediator.try_admin(&add, "a secret of this test\n").0, 0);
        register(web, root, &format!("k{n}"), "auditor", &json!({})).await;
        let relay = identity();
        let token = mediator.token(&["relay"]);
        mediator.enroll(&relay, &token, 3, &format!("relay{n}")).await.unwrap();
    }
    for client in ["main/c1", "main/c2"] {
        mediator.admin(&["client", "erase", client, "--yes"]);
    }
    mediator.admin(&["client", "erase", "other/gone", "--yes"]);
    let (mut agent, pc, key) = mediator.agent("pc").await;
    for name in ["pc1", "pc2"] {
        mediator.agent(name).await;
    }
    // Logins, sessions, devices and requests of one user.
    let ask = ["role", "bind", "technician", "--user", "jane", "--require", "approval"];
    let added = mediator.admin(&["user", "add", "jane", "--role", "none"]);
    let password = added[0]["password"].as_str().unwrap().to_owned();
    mediator.admin(&ask);
    for n in 1..=3 {
        let me = identity();
        let console = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        console.login("jane", &password).await.unwrap();
        let jane = Who::at(&console, &me).await;
        let redirector = ["ssh", "rdp", "vnc"][n - 1];
        let wish = json!({"computer": "pc", "redirector": redirector, "reason": "why"});
        let asked = web.ask(&jane, "POST", "/api/v1/requests", Some(&wish)).await;
        assert_eq!(asked.status, 200, "{asked:?}");
        let approve =
            format!("/api/v1/requests/{}/approve", asked.body["request"].as_str().unwrap());
        assert_eq!(web.ask(root, "POST", &approve, Some(&json!({}))).await.status, 200);
        if redirector == "ssh" {
            for n in 1..=3 {
                try_open(&console, &mut agent, open(n, &pc, &key)).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn every_list_is_the_same_whatever_the_size_of_its_pages() {
    let mut mediator = Mediator::init();
    let exports = mediator.dir.path().join("exports");
    std::fs::create_dir(&exports).unwrap();
    mediator.serve_with(|command| {
        command.env("ADIT_MEDIATOR_AUDIT_EXPORT_DIR", &exports);
        command.env("ADIT_MEDIATOR_AUDIT_EXPORT_EVERY", "1s");
    });
    mediator.admin(&["client", "add", "main/hq"]);
    let (root, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    fill(&mediator, &mut web, &root).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while paged(&mut web, &root, "/api/v1/audit/forwarding", 500).await.len() < 2 {
        assert!(Instant::now() < deadline, "no exports of both partners' logs");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let described = web.send("GET", "/api/v1/openapi.json", &[], None).await;
    let mut lists = 0;
    for (path, methods) in described.body["paths"].as_object().unwrap() {
        let parameters = methods["get"]["parameters"].as_array().cloned().unwrap_or_default();
        if !parameters.iter().any(|one| one["name"] == "cursor") {
            continue;
        }
        lists += 1;
        let path = path.replace("{user}", "jane");
        assert!(!path.contains('{'), "what is {path} of?");
        // Older entries only: this test's own reading goes on being recorded.
        let now = jiff::Timestamp::now();
        let path =
            if path.ends_with("/audit/events") { format!("{path}?until={now}") } else { path };
        let whole = paged(&mut web, &root, &path, 500).await;
        // Of partners one sees one's own.
        let least = if path.ends_with("/partners") { 1 } else { 2 };
        assert!(whole.len() >= least, "{path} shows nothing of pages: {whole:?}");
        assert!(whole.iter().all(|one| one["subject"] != "other/gone"), "{whole:?}");
        let distinct: std::collections::BTreeSet<String> =
            whole.iter().map(Value::to_string).collect();
        assert_eq!(distinct.len(), whole.len(), "{path} has something twice");
        for limit in [1, 2] {
            let items = paged(&mut web, &root, &path, limit).await;
            assert_eq!(items, whole, "{path} by {limit}");
        }
        let joined = if path.contains('?') { '&' } else { '?' };
        for wrong in ["limit=0", "limit=100000", "limit=x", "cursor=%2B", "page=2"] {
            let answer = web.ask(&root, "GET", &format!("{path}{joined}{wrong}"), None).await;
            let told = (answer.status, answer.code());
            assert_eq!(told, (400, failure::BAD_REQUEST), "{path} {wrong}: {answer:?}");
        }
    }
    assert!(lists >= 14, "{lists}");
}
