//! Identity providers that are set up over the network: what is secret stays so, and nobody sends
//! the mediator where only its own networks reach.

use serde_json::{Value, json};

use crate::common::{
    Mediator,
    api::{Web, Who},
    hello, identity,
    provider::Provider,
};

const SECRET: &str = "zorro-at-the-provider";

impl Mediator {
    async fn own(&self, name: &str, password: &str) -> Who {
        let me = identity();
        let device = self.connect(&me, hello(2, &me, &[])).await.unwrap();
        device.login(name, password).await.unwrap();
        // The token outlives the connection, not the login.
        Who::at(&device, &me).await
    }
}

#[tokio::test]
async fn a_providers_secret_goes_in_is_kept_under_the_newest_key_and_does_not_come_out() {
    let mut mediator = Mediator::start();
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
    let admin = mediator.own("admin", &mediator.password).await;
    let mut web = Web::connect(&mediator).await;
    let wish = json!({
        "provider": "Directory", "issuer": "https://id.example", "client_id": "c", "secret": SECRET,
    });
    let path = "/api/v1/identity-providers";
    let once = [("idempotency-key", "add-the-directory".to_owned())];
    let added = web.ask_with(&admin, "POST", path, Some(&wish), &once).await;
    assert_eq!((added.status, &added.body["public_only"]), (200, &json!(false)), "{added:?}");
    let listed = web.ask(&admin, "GET", path, None).await;
    assert_eq!(listed.body["items"][0]["secret"], "stored", "{listed:?}");
    let mut told = vec![added.body.to_string(), listed.body.to_string()];
    told.extend(mediator.events().iter().map(Value::to_string));
    for file in std::fs::read_dir(mediator.dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
        told.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    assert!(!told.iter().any(|text| text.contains(SECRET)), "the secret is told");

    // What the newest key alone opens is all there is.
    let rotation = "/api/v1/vault/rotation";
    let begun = web.ask(&admin, "POST", rotation, Some(&json!({"data_keys": true}))).await;
    assert_eq!(begun.status, 200, "{begun:?}");
    let done = loop {
        let now = web.ask(&admin, "GET", rotation, None).await;
        if now.body["state"] != "running" {
            break now;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!((&done.body["state"], &done.body["secrets_resealed"]), (&json!("done"), &json!(1)));
    let names: Vec<Value> = mediator
        .events()
        .iter()
        .filter(|e| e["event"].as_str().unwrap().starts_with("vault."))
        .map(|e| e["actor"].clone())
        .collect();
    assert_eq!(names, ["admin", "admin"]);
    mediator.kill();
    let keys = mediator.dir.path().join("wrapping.keys");
    let all = std::fs::read_to_string(&keys).unwrap();
    assert_eq!(all.lines().count(), 2);
    std::fs::write(&keys, format!("{}\n", all.lines().last().unwrap())).unwrap();
    mediator.serve();
    // And that one is needed.
    mediator.kill();
    std::fs::write(&keys, format!("{}\n", all.lines().next().unwrap())).unwrap();
    let (code, told) = mediator.try_admin(&["serve"], "");
    assert_eq!((code, told[0]["error"]["code"].as_str()), (1, Some("wrapping_key_missing")));
}

/// A link to the mediator leads where some partner wishes: that is said, and nobody is taken along.
#[tokio::test]
async fn only_the_installations_own_providers_are_gone_to_without_a_word() {
    let mediator = Mediator::start();
    let provider = Provider::start().await;
    let own = provider.add_to(&mediator, "Own");
    mediator.admin(&["client", "add", "Else <where>/hq"]);
    let ca = provider.ca.to_str().unwrap();
    let add = ["oidc", "add", "Theirs", "--issuer", &provider.issuer, "--client-id", "adit"];
    let more = ["--ca-file", ca, "--partner", "Else <where>"];
    let added = mediator.admin(&[&add[..], &more].concat());
    let theirs = added[0]["id"].as_str().unwrap().to_owned();
    let mut web = Web::connect(&mediator).await;
    let mut sent = async |id: &str| {
        let sent = web.send("GET", &format!("/login/oidc?provider={id}"), &[], None).await;
        assert_eq!(sent.status, 200, "{sent:?}");
        assert!(!sent.headers.contains_key("refresh"), "{sent:?}");
        sent.body.as_str().unwrap().to_owned()
    };
    let own = sent(&own).await;
    assert!(own.contains("http-equiv=\"refresh\""), "{own}");
    let theirs = sent(&theirs).await;
    assert!(!theirs.contains("refresh"), "{theirs}");
    let host = provider.issuer.strip_prefix("https://").unwrap();
    for told in ["Else &#60;where&#62; lets", &format!("log in at {host}."), "href=\"https://"] {
        assert!(theirs.contains(told), "{told}: {theirs}");
    }
}

#[tokio::test]
async fn a_partners_provider_is_no_way_into_the_mediators_networks() {
    let mediator = Mediator::start();
    let provider = Provider::start().await;
    let ca = std::fs::read_to_string(&provider.ca).unwrap();
    let mut web = Web::connect(&mediator).await;
    let admin = mediator.own("admin", &mediator.password).await;
    let add = async |web: &mut Web, who: &Who, name: &str| {
        let wish = json!({"provider": name, "issuer": provider.issuer, "client_id": "c", "ca": ca});
        let added = web.ask(who, "POST", "/api/v1/identity-providers", Some(&wish)).await;
        assert_eq!(added.status, 200, "{added:?}");
        let id = added.body["id"].as_str().unwrap().to_owned();
        (id, added.body["public_only"] == true)
    };
    let (partners, public_only) = add(&mut web, &admin, "partners").await;
    assert!(public_only);
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
    let (installations, public_only) = add(&mut web, &admin, "installations").await;
    assert!(!public_only);
    for (id, wanted) in [(partners, 502), (installations, 200)] {
        let sent = web.send("GET", &format!("/login/oidc?provider={id}"), &[], None).await;
        assert_eq!(sent.status, wanted, "{sent:?}");
    }
    // Files of the mediator's machine cannot be named from afar.
    let wish = json!({
        "provider": "x", "issuer": "https://id.example", "client_id": "c", "secret_file": "/etc/passwd",
    });
    let answer = web.ask(&admin, "POST", "/api/v1/identity-providers", Some(&wish)).await;
    assert_eq!((answer.status, answer.code()), (400, "bad_request"), "{answer:?}");
}
