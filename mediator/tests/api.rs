//! The HTTPS API at a running mediator: proofs, repeated requests, headers, what one may give.
//! [`matrix`]: every cell of role × tenant × route × object.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;
#[path = "api/lists.rs"]
mod lists;
#[path = "api/matrix.rs"]
mod matrix;
#[path = "api/providers.rs"]
mod providers;

use std::collections::BTreeSet;

use adit_ledger::{
    SignedHead, Trust,
    verify::{Fault, VerifyError},
    verify_export,
};
use adit_protocol::{
    code::failure,
    dpop::{Claims, prove},
    wire::{self, frame::Body},
};
use common::{
    Mediator,
    api::{Web, Who, key_pair, now_s, register},
    hello, identity, open, try_open,
};
use serde_json::{Value, json};

impl Mediator {
    /// A logged-in user, with a token for the API.
    async fn person(&self, name: &str, password: &str) -> (Who, common::Device) {
        let me = identity();
        let device = self.connect(&me, hello(2, &me, &[])).await.unwrap();
        device.login(name, password).await.unwrap();
        (Who::at(&device, &me).await, device)
    }

    /// The first administrator, who may manage the installation, too.
    async fn admin_of_all(&self) -> (Who, common::Device) {
        self.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
        self.person("admin", &self.password).await
    }
}

#[tokio::test]
async fn only_a_fresh_proof_by_the_right_key_for_this_very_request_is_taken() {
    let mediator = Mediator::start();
    let (me, device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    let target = "/api/v1/users";
    let good = web.proof(&me, "GET", target);
    let send = async |web: &mut Web, token: &str, proof: Option<String>| {
        let mut headers = vec![("authorization", format!("DPoP {token}"))];
        headers.extend(proof.map(|proof| ("dpop", proof)));
        web.send("GET", target, &headers, None).await.status
    };
    assert_eq!(send(&mut web, &me.token, Some(good.clone())).await, 200);
    assert_eq!(send(&mut web, &me.token, Some(good)).await, 401, "replayed");
    assert_eq!(send(&mut web, &me.token, None).await, 401, "a stolen token alone");
    let thief = Who { token: me.token.clone(), key: key_pair().0 };
    let proof = web.proof(&thief, "GET", target);
    assert_eq!(send(&mut web, &me.token, Some(proof)).await, 401, "a thief's own key");
    for (method, path) in [("POST", target), ("GET", "/api/v1/roles")] {
        let proof = web.proof(&me, method, path);
        assert_eq!(send(&mut web, &me.token, Some(proof)).await, 401, "{method} {path}");
    }
    let stale = prove(
        &me.key,
        &Claims {
            method: "GET",
            url: "https://127.0.0.1/api/v1/users",
            token: &me.token,
            nonce: "",
            id: [9; 16],
            issued_s: now_s(),
        },
    );
    let headers = [("authorization", format!("DPoP {}", me.token)), ("dpop", stale)];
    let answer = web.send("GET", target, &headers, None).await;
    assert_eq!(answer.status, 401);
    assert!(answer.headers["www-authenticate"].to_str().unwrap().contains("use_dpop_nonce"));
    let bearer = [("authorization", format!("Bearer {}", me.token))];
    assert_eq!(web.send("GET", target, &bearer, None).await.status, 401);
    // Failures are recorded, without a flood of them.
    let failed = mediator.events_named("api.authentication_failed");
    assert_eq!(failed.len(), 1, "{failed:?}");
    // The token ends with its login.
    assert_eq!(web.ask(&me, "GET", "/api/v1/me", None).await.status, 200);
    device.ask(Body::Logout(wire::Logout {})).await.unwrap();
    assert_eq!(web.ask(&me, "GET", "/api/v1/me", None).await.status, 401);
}

#[tokio::test]
async fn api_keys_end_with_their_time_their_network_and_their_revocation() {
    let mediator = Mediator::start();
    let (me, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    let make = async |web: &mut Web, more: Value| {
        let (key, public_key) = key_pair();
        let mut wish = json!({"name": "k", "public_key": public_key, "role": "auditor"});
        wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = web.ask(&me, "POST", "/api/v1/api-keys", Some(&wish)).await;
        assert_eq!(made.status, 200, "{made:?}");
        Who { token: made.body["token"].as_str().unwrap().to_owned(), key }
    };
    let short = make(&mut web, json!({"ttl_ms": 1})).await;
    assert_eq!(web.ask(&short, "GET", "/api/v1/me", None).await.status, 401);
    let elsewhere = make(&mut web, json!({"networks": ["192.0.2.0/24"]})).await;
    let answer = web.ask(&elsewhere, "GET", "/api/v1/me", None).await;
    assert_eq!((answer.status, answer.code()), (403, failure::SOURCE_NOT_ALLOWED));
    let key = make(&mut web, json!({"networks": ["127.0.0.0/8"]})).await;
    assert_eq!(web.ask(&key, "GET", "/api/v1/users", None).await.status, 200);
    let id = key.token.strip_prefix("adit-key-").unwrap();
    let revoked = web.ask(&me, "DELETE", &format!("/api/v1/api-keys/{id}"), None).await;
    assert_eq!(revoked.status, 200, "{revoked:?}");
    assert_eq!(web.ask(&key, "GET", "/api/v1/users", None).await.status, 401);
    let names = ["api_key.created", "api_key.revoked"];
    assert_eq!(names.map(|name| mediator.events_named(name).len()), [3, 1]);
}

#[tokio::test]
async fn nobody_gives_others_or_takes_over_what_they_do_not_hold() {
    let mediator = Mediator::start();
    let (root, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    let admin = register(&mut web, &root, "administrator", "administrator", &json!({})).await;
    mediator.admin(&["user", "add", "owner-2", "--role", "owner"]);
    mediator.admin(&["user", "add", "jane", "--role", "none"]);
    mediator.admin(&["role", "bind", "owner", "--user-group", "bosses"]);
    for (method, path, body) in [
        // An administrator lacks credentials.read and relays.manage.
        ("POST", "/api/v1/bindings", json!({"role": "owner", "user": "jane"})),
        ("POST", "/api/v1/users", json!({"user": "mole", "role": "owner"})),
        ("PUT", "/api/v1/users/jane/groups/bosses", Value::Null),
        ("POST", "/api/v1/users/owner-2/password", json!({})),
        ("POST", "/api/v1/users/owner-2/mfa/reset", Value::Null),
        ("PUT", "/api/v1/users/owner-2/mfa/policy", json!({"required": false})),
    ] {
        let body = (!body.is_null()).then_some(&body);
        let answer = web.ask(&admin, method, path, body).await;
        assert_eq!((answer.status, answer.code()), (403, failure::NOT_PERMITTED), "{path}");
    }
    let (key, public_key) = key_pair();
    drop(key);
    let wish = json!({"name": "k", "public_key": public_key, "role": "owner"});
    assert_eq!(web.ask(&admin, "POST", "/api/v1/api-keys", Some(&wish)).await.status, 403);
    let refused = mediator.events_named("act.refused");
    assert_eq!(refused.len(), 7);
}

#[tokio::test]
async fn a_role_is_changed_and_deleted_only_by_who_could_bind_it_wherever_it_is_bound() {
    let mediator = Mediator::start();
    let (root, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    let admin = register(&mut web, &root, "administrator", "administrator", &json!({})).await;
    mediator.admin(&["user", "add", "jane", "--role", "none"]);
    let see = json!({"permissions": ["computers.see"]});
    let launch = json!({"permissions": ["computers.see", "launch"]});
    for (role, more) in [("wide", &["--installation"][..]), ("own", &[]), ("free", &[])] {
        let made = json!({"role": role, "permissions": ["computers.see"]});
        assert_eq!(web.ask(&admin, "POST", "/api/v1/roles", Some(&made)).await.status, 200);
        if role != "free" {
            mediator.admin(&[&["role", "bind", role, "--user", "jane"], more].concat());
        }
    }
    // The administrator of one partner widens nothing that holds beyond it, nor takes it away.
    for (method, body) in [("PUT", Some(&launch)), ("PUT", Some(&see)), ("DELETE", None)] {
        let answer = web.ask(&admin, method, "/api/v1/roles/wide", body).await;
        assert_eq!((answer.status, answer.code()), (403, failure::NOT_PERMITTED), "{method}");
    }
    let shown = web.ask(&root, "GET", "/api/v1/roles/wide", None).await;
    assert!(!shown.body.to_string().contains("launch"), "{shown:?}");
    // The second of the same within a minute is counted.
    let refused = mediator.events_named("act.refused");
    let of: BTreeSet<_> = refused.iter().filter_map(|e| e["extra"]["operation"].as_str()).collect();
    assert_eq!(of, BTreeSet::from(["roles.replace", "roles.delete"]), "{refused:?}");
    for role in ["own", "free"] {
        let target = format!("/api/v1/roles/{role}");
        assert_eq!(web.ask(&admin, "PUT", &target, Some(&launch)).await.status, 200);
        assert_eq!(web.ask(&admin, "DELETE", &target, None).await.status, 200);
    }
    assert_eq!(web.ask(&root, "PUT", "/api/v1/roles/wide", Some(&launch)).await.status, 200);
    assert_eq!(web.ask(&root, "DELETE", "/api/v1/roles/wide", None).await.status, 200);
}

#[tokio::test]
async fn of_other_tenants_names_no_more_is_told_than_that_they_are_taken_and_of_few() {
    let mediator = Mediator::start();
    let (root, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    let wish = json!({"partner": "other", "owner": "other-owner"});
    let other = web.ask(&root, "POST", "/api/v1/partners", Some(&wish)).await;
    let password = other.body["password"].as_str().unwrap().to_owned();
    let (owner, _device) = mediator.person("other-owner", &password).await;
    let add = async |web: &mut Web, user: &str| {
        let proof = web.proof(&owner, "POST", "/api/v1/users");
        let headers = [("authorization", format!("DPoP {}", owner.token)), ("dpop", proof)];
        let body = json!({"user": user, "role": "none"}).to_string();
        web.send("POST", "/api/v1/users", &headers, Some(&body)).await
    };
    assert_eq!(add(&mut web, "mine").await.status, 200);
    let (mine, theirs) = (add(&mut web, "mine").await, add(&mut web, "Admin").await);
    assert_eq!((theirs.status, theirs.code()), (409, failure::NAME_TAKEN));
    assert_eq!(mine.body, theirs.body);
    for _ in 0..18 {
        assert_eq!(add(&mut web, "admin").await.status, 409);
    }
    // Now also a free name says nothing.
    for name in ["admin", "free"] {
        let answer = add(&mut web, name).await;
        assert_eq!((answer.status, answer.code()), (429, failure::RATE_LIMITED), "{answer:?}");
        assert!(answer.headers.contains_key("retry-after"));
    }
    let wish = json!({"user": "free", "role": "none"});
    assert_eq!(web.ask(&root, "POST", "/api/v1/users", Some(&wish)).await.status, 200);
    let refused = mediator.events_named("user.add_refused");
    assert_eq!(refused.len(), 20);
    assert!(refused.iter().all(|event| event["partner"] == "other"), "{refused:?}");
}

/// Whoever may not see a thing cannot tell it from one that is not there: not by the words either.
#[tokio::test]
async fn what_is_not_for_one_is_told_in_the_words_of_what_is_not_there() {
    let mediator = Mediator::start();
    let (root, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    mediator.admin(&["client", "add", "main/branch"]);
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let (console, _, _) = mediator.console().await;
    try_open(&console, &mut agent, open(1, &pc, &key)).await.unwrap();
    let session = mediator.admin(&["session", "list"])[0]["session_id"].clone();
    let wish = json!({"partner": "other", "owner": "other-owner"});
    let other = web.ask(&root, "POST", "/api/v1/partners", Some(&wish)).await;
    let (stranger, _device) =
        mediator.person("other-owner", other.body["password"].as_str().unwrap()).await;
    let branch = json!({"client": "main/branch"});
    let colleague = register(&mut web, &root, "b", "administrator", &branch).await;

    // What there is of the first client, as the one who may sees it.
    let made = async |web: &mut Web, path: &str, body: Value, field: &str| {
        let made = web.ask(&root, "POST", path, Some(&body)).await;
        made.body[field].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned()
    };
    let hq = json!({"client": "main/hq"});
    let token = made(&mut web, "/api/v1/tokens/agent", hq.clone(), "token_id").await;
    let bind = json!({"role": "auditor", "user": "admin", "scope": hq});
    let binding = made(&mut web, "/api/v1/bindings", bind, "binding").await;
    let new = json!({"user": "root", "secret": "a secret of this test"});
    let target = "/api/v1/clients/main/hq/credentials/kept";
    let kept = web.ask(&root, "PUT", target, Some(&new)).await;
    let kept = kept.body["credential_id"].as_str().unwrap_or_else(|| panic!("{kept:?}")).to_owned();
    let pc = adit_protocol::ids::ComputerId::from_slice(&pc.device_id).unwrap().to_string();
    let none = "00000000-0000-7000-8000-000000000009";
    let (name, empty) = (json!({"name": "x"}), json!({}));
    let mut cells = 0;
    for (method, path, there, missing, body) in [
        // As it is written there, and otherwise.
        ("PUT", "/clients/main/{}/lockdown", "hq", "nowhere", Some(&empty)),
        ("PUT", "/clients/main/{}/lockdown", "HQ", "NOWHERE", Some(&empty)),
        ("DELETE", "/clients/main/{}/lockdown", "hq", "nowhere", None),
        ("DELETE", "/clients/main/{}", "Hq", "Nowhere", None),
        ("GET", "/computers/{}", &pc, none, None),
        ("GET", "/computers/{}", "pc", "nowhere", None),
        ("DELETE", "/computers/{}", &pc, none, None),
        ("DELETE", "/computers/main%2Fhq%2F{}", "pc", "nowhere", None),
        ("PUT", "/computers/{}/name", &pc, none, Some(&name)),
        ("PUT", "/computers/{}/groups/g", &pc, none, None),
        ("DELETE", "/computers/{}/tags/a=b", &pc, none, None),
        ("DELETE", "/tokens/{}", &token, none, None),
        ("DELETE", "/sessions/{}", session.as_str().unwrap(), none, None),
        ("PUT", "/clients/main/{}/credentials/new", "hq", "nowhere", Some(&new)),
        ("DELETE", "/credentials/{}", &kept, none, None),
        ("GET", "/credentials/{}/secret", &kept, none, None),
        // These are the whole partner's: only strangers are told that there is none.
        ("DELETE", "/bindings/{}", &binding, none, None),
        ("GET", "/users/{}", "admin", "nobody", None),
        ("POST", "/users/{}/disable", "admin", "nobody", None),
    ] {
        let of_partner = ["/bindings", "/users"].iter().any(|kind| path.starts_with(kind));
        for (who, by) in [(&stranger, "a stranger"), (&colleague, "a colleague")] {
            if of_partner && by == "a colleague" {
                continue;
            }
            let mut told = Vec::new();
            for named in [there, missing] {
                let target = format!("/api/v1{}", path.replace("{}", named));
                let answer = web.ask(who, method, &target, body).await;
                assert_eq!(answer.status, 404, "{method} {target} by {by}: {answer:?}");
                let text = answer.body.to_string();
                told.push(text.replace(&named.to_lowercase(), "…").replace(named, "…"));
            }
            assert_eq!(told[0], told[1], "{method} {path} by {by}");
            cells += 1;
        }
    }
    assert_eq!(cells, 35);
    // The same where it stands in the body or the query; lists are empty.
    let wishes = ["hq", "nowhere"].map(|client| {
        let client = format!("main/{client}");
        let scope = json!({"client": client});
        let add = format!("/api/v1/clients/{client}/credentials/x");
        let within = |computer| {
            json!({"user": "root", "secret": "a secret of this test", "computer": computer})
        };
        [
            ("POST", "/api/v1/tokens/agent".to_owned(), Some(scope.clone())),
            ("PUT", add.clone(), Some(within("pc"))),
            ("PUT", add, Some(within("nothing"))),
            ("POST", "/api/v1/bindings".to_owned(), {
                Some(json!({"role": "technician", "group": "g", "scope": scope}))
            }),
            ("GET", format!("/api/v1/credentials?client={client}"), None),
            ("GET", format!("/api/v1/computers?client={client}"), None),
        ]
    });
    let [there, missing] = wishes;
    for (there, missing) in there.into_iter().zip(missing) {
        for (who, by) in [(&stranger, "a stranger"), (&colleague, "a colleague")] {
            let mut told = Vec::new();
            for (method, target, body) in [&there, &missing] {
                let answer = web.ask(who, method, target, body.as_ref()).await;
                let empty = answer.body["items"] == json!([]);
                assert!(answer.status == 404 || empty, "{method} {target} by {by}: {answer:?}");
                told.push(answer.body.to_string().replace("nowhere", "hq"));
            }
            assert_eq!(told[0], told[1], "{} {} by {by}", there.0, there.1);
        }
    }
    assert_eq!(mediator.admin(&["session", "list"]).len(), 1);
}

#[tokio::test]
async fn another_site_cannot_make_a_browser_lose_its_cookies() {
    let mediator = Mediator::start();
    let mut web = Web::connect(&mediator).await;
    let ask = async |web: &mut Web, path: &str, site: &str| {
        let headers = [("sec-fetch-site", site.to_owned())];
        let headers = if site.is_empty() { &[][..] } else { &headers[..] };
        let answer = web.send("GET", path, headers, None).await;
        let set = answer.headers.contains_key("set-cookie");
        (answer.status, set, answer.body.as_str().unwrap_or_default().to_owned())
    };
    for path in ["/login", "/login?again=1", "/device?code=BCDF-GHJK", "/account"] {
        for site in ["cross-site", "same-site"] {
            let (status, set, page) = ask(&mut web, path, site).await;
            assert_eq!((status, set), (200, false), "{path} {site}");
            // It only comes again, from here and with what cookies there are.
            let refresh = format!("content=\"0; url={path}\"");
            assert!(page.contains(&refresh) && !page.contains("<form"), "{page}");
        }
        for site in ["same-origin", "none", ""] {
            assert!(ask(&mut web, path, site).await.1, "{path} {site}");
        }
    }
    let (_, set, _) = ask(&mut web, "/login/oidc/callback/x?code=1&state=2", "cross-site").await;
    assert!(!set);
}

#[tokio::test]
async fn a_repeated_post_is_done_once_and_unknown_fields_are_refused() {
    let mediator = Mediator::start();
    let (me, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    let add = json!({"user": "jane"});
    let once = [("idempotency-key", "0123456789".to_owned())];
    let first = web.ask_with(&me, "POST", "/api/v1/users", Some(&add), &once).await;
    let again = web.ask_with(&me, "POST", "/api/v1/users", Some(&add), &once).await;
    assert_eq!((first.status, &first.body), (200, &again.body), "{first:?}");
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(mediator.events_named("user.added").len(), 2);
    // The password that was shown once is nowhere in the clear.
    let password = first.body["password"].as_str().unwrap().as_bytes();
    for entry in std::fs::read_dir(mediator.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let there = bytes.windows(password.len()).any(|window| window == password);
            assert!(!there, "{}", path.display());
        }
    }
    let other = json!({"user": "joe"});
    let answer = web.ask_with(&me, "POST", "/api/v1/users", Some(&other), &once).await;
    assert_eq!((answer.status, answer.code()), (409, failure::IDEMPOTENCY_CONFLICT));
    let answer = web.ask(&me, "POST", "/api/v1/users", Some(&add)).await;
    assert_eq!((answer.status, answer.code()), (409, failure::NAME_TAKEN));
    for (method, path, body) in [
        ("POST", "/api/v1/users", json!({"user": "x", "admin": true})),
        ("POST", "/api/v1/users", json!({"user": ["x"]})),
        ("POST", "/api/v1/users/jane/disable", json!({"also": "joe"})),
        ("GET", "/api/v1/users?limit=1&limit=2", Value::Null),
        ("GET", "/api/v1/users?user=jane", Value::Null),
        ("GET", "/api/v1/users?cursor=%00", Value::Null),
        ("GET", "/api/v1/users?limit=0", Value::Null),
    ] {
        let body = (!body.is_null()).then_some(&body);
        let answer = web.ask(&me, method, path, body).await;
        assert_eq!(
            (answer.status, answer.code()),
            (400, failure::BAD_REQUEST),
            "{path}: {answer:?}"
        );
    }
    // Text that is no SQL to anybody.
    let hostile =
        "/api/v1/computers?query=%27%20OR%201%3D1--&group=%27%29%3B%20DROP%20TABLE%20computer";
    let answer = web.ask(&me, "GET", hostile, None).await;
    assert_eq!((answer.status, &answer.body["items"]), (200, &json!([])));
    // Pages.
    let all = web.ask(&me, "GET", "/api/v1/users", None).await;
    let first = web.ask(&me, "GET", "/api/v1/users?limit=1", None).await;
    let next = first.body["next"].as_str().unwrap();
    let second = web.ask(&me, "GET", &format!("/api/v1/users?limit=1&cursor={next}"), None).await;
    let paged = [&first.body["items"][0], &second.body["items"][0]];
    assert_eq!(paged, [&all.body["items"][0], &all.body["items"][1]]);
    assert_eq!(second.body["next"], Value::Null);
}

#[tokio::test]
async fn a_post_that_is_repeated_at_once_or_after_a_crash_is_done_once() {
    let mut mediator = Mediator::start();
    let (root, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    let key = register(&mut web, &root, "k", "owner", &json!({})).await;
    let (mut first, mut second) = (Web::connect(&mediator).await, Web::connect(&mediator).await);
    let add = json!({"user": "jane"});
    let once = [("idempotency-key", "one-of-two".to_owned())];
    let target = "/api/v1/users";
    let (one, two) = tokio::join!(
        first.ask_with(&key, "POST", target, Some(&add), &once),
        second.ask_with(&key, "POST", target, Some(&add), &once),
    );
    let mut done = Vec::new();
    for answer in [one, two] {
        match answer.status {
            200 => done.push(answer.body),
            _ => assert_eq!(answer.code(), failure::IDEMPOTENCY_CONFLICT, "{answer:?}"),
        }
    }
    assert!(!done.is_empty() && done.iter().all(|body| *body == done[0]), "{done:?}");
    mediator.kill();
    mediator.serve();
    let mut web = Web::connect(&mediator).await;
    let again = web.ask_with(&key, "POST", target, Some(&add), &once).await;
    assert_eq!((again.status, &again.body), (200, &done[0]), "{again:?}");
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(mediator.events_named("user.added").len(), 2);
    // The key is this asker's own.
    let other = register(&mut web, &key, "k2", "owner", &json!({})).await;
    let taken = web.ask_with(&other, "POST", target, Some(&add), &once).await;
    assert_eq!((taken.status, taken.code()), (409, failure::NAME_TAKEN));
}

#[tokio::test]
async fn every_answer_has_the_headers_and_nothing_else_is_served() {
    let mediator = Mediator::start();
    let mut web = Web::connect(&mediator).await;
    for (method, path, status) in [
        ("GET", "/", 404),
        ("HEAD", "/", 404),
        ("POST", "/setup", 404),
        ("GET", "/api/v1/nothing", 404),
        ("PATCH", "/api/v1/users", 405),
        ("GET", "/api/v1/users", 401),
        ("GET", "/api/v1/version", 200),
        ("GET", "/api/v1/users/..%2f..%2fetc", 401),
    ] {
        let answer = web.send(method, path, &[], None).await;
        assert_eq!(answer.status, status, "{method} {path}");
        for (name, value) in [
            ("content-security-policy", "frame-ancestors 'none'"),
            ("strict-transport-security", "max-age="),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("x-request-id", ""),
        ] {
            assert!(answer.headers[name].to_str().unwrap().contains(value), "{path}: {name}");
        }
        if status >= 400 && method != "HEAD" {
            assert_eq!(answer.headers["content-type"], "application/problem+json");
        }
    }
    let long = format!("/api/v1/users?query={}", "x".repeat(5_000));
    assert_eq!(web.send("GET", &long, &[], None).await.status, 400);
}

#[tokio::test]
async fn the_log_is_searched_proved_and_taken_away_within_ones_rules() {
    let mediator = Mediator::start();
    let (me, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    mediator.admin(&["user", "add", "jane", "--partner", "main"]);
    let target = "/api/v1/audit/events?event=user.added&limit=1";
    let found = web.ask(&me, "GET", target, None).await;
    assert_eq!(found.status, 200, "{found:?}");
    assert_eq!(found.body["items"][0]["entry"]["event"], "user.added");
    let (tree, seq) = (&found.body["items"][0]["tree"], &found.body["items"][0]["seq"]);
    let heads = web.ask(&me, "GET", "/api/v1/audit/heads", None).await;
    let size = &heads.body["items"][0]["size"];
    let tree = tree.as_str().unwrap();
    for proof in [
        format!("/api/v1/audit/inclusion?tree={tree}&seq={seq}&size={size}"),
        format!("/api/v1/audit/consistency?tree={tree}&old_size=1&new_size={size}"),
    ] {
        let proved = web.ask(&me, "GET", &proof, None).await;
        assert_eq!(proved.status, 200, "{proved:?}");
        assert!(!proved.body["path"].as_array().unwrap().is_empty());
    }
    let taken = web.ask(&me, "GET", "/api/v1/audit/export", None).await;
    assert_eq!(taken.status, 200);
    let text = taken.body.as_str().unwrap();
    assert!(text.lines().count() > 3 && text.contains("user.added"), "{text}");
    // Whoever holds an earlier head can compare a part of the log with it.
    let held = heads.body["items"][0]["line"].as_str().unwrap();
    let held = SignedHead::parse(held.as_bytes()).unwrap();
    mediator.admin(&["user", "add", "joe", "--partner", "main"]);
    let part = "/api/v1/audit/export?event=user.added";
    for (target, comparable) in [
        (part.to_owned(), false),
        (format!("{part}&heads={tree}:{}", held.size + 1), false),
        (format!("{part}&heads=other:{},{tree}:{}", held.size, held.size), true),
    ] {
        let taken = web.ask(&me, "GET", &target, None).await;
        let trust = Trust { heads: vec![held.clone()], ..Trust::default() };
        match verify_export(taken.body.as_str().unwrap().as_bytes(), &trust) {
            Ok(report) => assert!(comparable && report.trees[0].entries == 3, "{target}: {report}"),
            Err(VerifyError { fault: Fault::NotComparable { trusted }, .. }) => {
                assert!(!comparable && trusted == held.size, "{target}");
            }
            Err(error) => panic!("{target}: {error}"),
        }
    }
    let many = vec![format!("{tree}:1"); 33].join(",");
    for heads in [many.as_str(), tree] {
        let refused = web.ask(&me, "GET", &format!("{part}&heads={heads}"), None).await;
        assert_eq!((refused.status, refused.code()), (400, failure::BAD_REQUEST), "{refused:?}");
    }
    let technician = register(&mut web, &me, "t", "technician", &json!({})).await;
    for target in ["/api/v1/audit/events", "/api/v1/audit/export", "/api/v1/audit/heads"] {
        assert_eq!(web.ask(&technician, "GET", target, None).await.status, 403, "{target}");
    }
    assert!(mediator.events_named("audit.read").len() >= 2);
}
