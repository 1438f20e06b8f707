//! R40: no word of whoever asks becomes a part of a statement, on any route that is described.

use serde_json::{Value, json};

use super::{
    Mediator,
    common::api::{Web, Who},
};

/// What would end a text, comment the rest out, match everything, or be a pattern.
const HOSTILE: [&str; 6] =
    ["x' OR '1'='1", "x\" OR \"1\"=\"1", "x') OR 1=1 --", "'; DROP TABLE account; --", "%", "_"];

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// Places of a described operation that take a text: path and query, by name.
fn places(operation: &Value) -> Vec<(String, bool)> {
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let of = |parameter: &Value| {
        let name = parameter["name"].as_str()?.to_owned();
        match parameter["in"].as_str()? {
            "path" => Some((name, true)),
            "query" => Some((name, false)),
            _ => None,
        }
    };
    parameters.iter().filter_map(of).collect()
}

fn rows(body: &Value) -> usize {
    body["items"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn hostile_words_in_any_place_find_nothing_and_change_nothing() {
    let mediator = Mediator::start();
    let _agent = mediator.agent("pc").await;
    mediator.admin(&["user", "add", "victim"]);
    let (console, me, _) = mediator.console().await;
    let who = Who::at(&console, &me).await;
    let mut web = Web::connect(&mediator).await;
    let described = web.send("GET", "/api/v1/openapi.json", &[], None).await;
    let paths = described.body["paths"].as_object().unwrap().clone();
    let users = || mediator.admin(&["user", "list"]);
    let (before, mut asked, mut wrong) = (users(), 0, Vec::new());
    for (path, told) in &paths {
        for method in ["get", "post", "put", "patch", "delete"] {
            let operation = &told[method];
            let places = places(operation);
            for ((name, in_path), word) in
                places.iter().flat_map(|place| HOSTILE.iter().map(move |word| (place, *word)))
            {
                // One place is hostile, the others of the path are what is not there.
                let mut target = path.clone();
                for (other, _) in places.iter().filter(|(_, in_path)| *in_path) {
                    let text = if other == name { encoded(word) } else { "none".to_owned() };
                    target = target.replace(&format!("{{{other}}}"), &text);
                }
                if !in_path {
                    target = format!("{target}?{name}={}", encoded(word));
                }
                let body = json!({});
                let body = (method != "get" && method != "delete").then_some(&body);
                let answer = web.ask(&who, &method.to_ascii_uppercase(), &target, body).await;
                asked += 1;
                // "%" and "_" may be parts of what is searched for, but match only themselves.
                let found = answer.status == 200 && rows(&answer.body) > 0;
                if answer.status >= 500 || found || (*in_path && answer.status == 200) {
                    wrong.push(format!("{method} {target}: {answer:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(asked > 300, "only {asked} places");
    assert_eq!(users(), before);
    mediator.admin(&["audit", "verify"]);
}
