//! Every cell of role × tenant × route × object, made of the description that the API serves: a
//! route that is not classified here does not come in.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use adit_net::identity::DeviceIdentity;
use adit_protocol::{
    code::failure,
    ids::{ComputerId, SessionId},
    token::EnrollToken,
    wire::{self, frame::Body},
};
use serde_json::{Value, json};
use sqlx::Connection;

use crate::common::{
    Device, Mediator,
    api::{Answer, Web, Who, key_pair, register},
    hello, identity, open, try_open,
};

fn document(answer: &Answer) -> BTreeMap<String, (String, String, Value)> {
    let mut operations = BTreeMap::new();
    for (path, methods) in answer.body["paths"].as_object().unwrap() {
        for (method, told) in methods.as_object().unwrap() {
            let id = told["operationId"].as_str().unwrap().to_owned();
            let known = (method.to_uppercase(), path.clone(), told.clone());
            assert!(operations.insert(id.clone(), known).is_none(), "{id} twice");
        }
    }
    operations
}

/// What an operation needs, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// Any of these, on the partner.
    Home(&'static [&'static str]),
    /// Any of these, on the client or computer.
    Client(&'static [&'static str]),
    /// Any of these, on the installation.
    Everywhere(&'static [&'static str]),
    /// Whoever is known; lists show what is one's own.
    Anybody,
    /// Everybody, also without a token.
    Open,
}

/// For each operation: what it needs, how it is asked about a tenant's own object, and whether
/// objects of another tenant can be named at all.
struct Expectation {
    id: &'static str,
    place: Place,
    /// Path parts, with `{}` names of [`World::names`].
    parts: &'static [(&'static str, &'static str)],
    body: Option<&'static str>,
    query: &'static str,
    /// The answer for those who may: 200, or the status of an object that is not in that state.
    done: &'static [u16],
    /// It names something that belongs to a tenant.
    names: bool,
}

const SEE_USERS: Place = Place::Home(&["users.manage", "roles.manage", "audit.read"]);
const USERS: Place = Place::Home(&["users.manage"]);
const ROLES: Place = Place::Home(&["roles.manage"]);
const POLICY: Place = Place::Home(&["policy.manage"]);
const SET_UP: Place = Place::Home(&["policy.manage users.manage"]);
const LOCK: Place = Place::Client(&["policy.manage", "sessions.end"]);
const LABEL: Place = Place::Client(&["policy.manage", "roles.manage"]);
const TOKENS: Place = Place::Client(&["tokens.manage"]);
const RELAYS: Place = Place::Everywhere(&["relays.manage"]);
const CLIENT: &[(&str, &str)] = &[("partner", "{partner}"), ("client", "{hq}")];
const USER: &[(&str, &str)] = &[("user", "{user}")];
const PC: &[(&str, &str)] = &[("computer", "{pc}")];
const DEVICE: &[(&str, &str)] = &[("device", "{device}")];
const LINK: &[(&str, &str)] = &[("user", "{user}"), ("provider", "{provider}")];
const APPROVE: Place = Place::Client(&["requests.approve"]);

const fn expect(id: &'static str, place: Place) -> Expectation {
    Expectation { id, place, parts: &[], body: None, query: "", done: &[200], names: false }
}

const fn on(
    id: &'static str,
    place: Place,
    parts: &'static [(&'static str, &'static str)],
) -> Expectation {
    Expectation { parts, names: true, ..expect(id, place) }
}

fn expectations() -> Vec<Expectation> {
    let with = |body, expectation| Expectation { body: Some(body), ..expectation };
    let names = |expectation| Expectation { names: true, ..expectation };
    let or = |done, expectation| Expectation { done, ..expectation };
    let ask = |query, expectation| Expectation { query, ..expectation };
    const OWN_ROLE: &[(&str, &str)] = &[("role", "{role}")];
    const GROUP: &[(&str, &str)] = &[("user", "{user}"), ("group", "night")];
    const PC_GROUP: &[(&str, &str)] = &[("computer", "{pc}"), ("group", "servers")];
    const PC_TAG: &[(&str, &str)] = &[("computer", "{pc}"), ("tag", "os=linux")];
    const RELAY: &[(&str, &str)] = &[("relay", "{relay}")];
    const CREDENTIAL: &[(&str, &str)] = &[("credential", "{credential}")];
    vec![
        expect("api.description", Place::Open),
        expect("api.version", Place::Open),
        expect("credentials.list", Place::Anybody),
        with(
            r#"{"user":"root","secret":"a secret of this test"}"#,
            on(
                "credentials.add",
                Place::Client(&["credentials.edit"]),
                &[("partner", "{partner}"), ("client", "{hq}"), ("name", "{new}")],
            ),
        ),
        with(
            r#"{"user":"ann"}"#,
            on("credentials.edit", Place::Client(&["credentials.edit"]), CREDENTIAL),
        ),
        on(
            "credentials.delete",
            Place::Client(&["credentials.delete"]),
            &[("credential", "{old_credential}")],
        ),
        // A key shows no second factor: people may look at secrets, with one shown just now.
        or(&[403], on("credentials.reveal", Place::Client(&["credentials.read"]), CREDENTIAL)),
        expect("audit.export", Place::Client(&["audit.export"])),
        expect("me", Place::Anybody),
        expect("permissions.list", Place::Anybody),
        expect("partners.list", Place::Anybody),
        expect("clients.list", Place::Anybody),
        expect("computers.list", Place::Anybody),
        expect("requests.list", Place::Anybody),
        expect("sessions.list", Place::Anybody),
        expect("tokens.list", Place::Anybody),
        expect("users.list", SEE_USERS),
        with(r#"{"user":"{new}","role":"none"}"#, expect("users.add", USERS)),
        on("users.show", SEE_USERS, USER),
        on("users.disable", USERS, USER),
        on("users.enable", USERS, USER),
        on("users.password", USERS, USER),
        on("users.logout", USERS, USER),
        on("users.sessions", USERS, USER),
        on("users.mfa", USERS, USER),
        with(r#"{"required":true}"#, on("users.mfa_policy", USERS, USER)),
        on("users.mfa_reset", USERS, USER),
        on("users.group", USERS, GROUP),
        on("users.ungroup", USERS, GROUP),
        expect("devices.list", USERS),
        // A fingerprint is no tenant's object: a partner switches it off for its own users only, so
        // there is no foreign one to be refused.
        Expectation { names: false, ..on("devices.disable", USERS, DEVICE) },
        or(&[200, 404], Expectation { names: false, ..on("devices.enable", USERS, DEVICE) }),
        expect("api_keys.list", USERS),
        with(
            r#"{"name":"{new}","public_key":"{key}","role":"{role}"}"#,
            expect("api_keys.create", Place::Home(&["users.manage roles.manage"])),
        ),
        on("api_keys.revoke", USERS, &[("key", "{api_key}")]),
        with(
            r#"{"partner":"{new}","owner":"{new}"}"#,
            expect("partners.add", Place::Everywhere(&["policy.manage"])),
        ),
        with(r#"{"client":"{partner}/{new}"}"#, names(expect("clients.add", POLICY))),
        on(
            "clients.erase",
            Place::Client(&["policy.manage"]),
            &[("partner", "{partner}"), ("client", "{doomed}")],
        ),
        expect("certificates.list", Place::Home(&["policy.manage", "audit.read"])),
        on("clients.lock", LOCK, CLIENT),
        or(&[200, 404], on("clients.unlock", LOCK, CLIENT)),
        on("computers.show", Place::Client(&["computers.see", "launch"]), PC),
        on(
            "computers.remove",
            Place::Client(&["policy.manage"]),
            &[("computer", "{doomed_computer}")],
        ),
        with(r#"{"name":"{new}"}"#, on("computers.rename", Place::Client(&["policy.manage"]), PC)),
        on("computers.group", LABEL, PC_GROUP),
        on("computers.ungroup", LABEL, PC_GROUP),
        on("computers.tag", LABEL, PC_TAG),
        on("computers.untag", LABEL, PC_TAG),
        with(r#"{"client":"{partner}/{hq}"}"#, names(expect("tokens.agent", TOKENS))),
        expect("tokens.relay", RELAYS),
        on("tokens.revoke", TOKENS, &[("token", "{token}")]),
        on("sessions.end", Place::Client(&["sessions.end"]), &[("session", "{session}")]),
        expect("relays.list", RELAYS),
        on("relays.drain", RELAYS, RELAY),
        on("relays.resume", RELAYS, RELAY),
        on("relays.disable", RELAYS, RELAY),
        on("relays.enable", RELAYS, RELAY),
        expect("roles.list", SEE_USERS),
        with(r#"{"role":"{new}","permissions":["computers.see"]}"#, expect("roles.create", ROLES)),
        on("roles.show", SEE_USERS, OWN_ROLE),
        with(
            r#"{"permissions":["computers.see"]}"#,
            on("roles.replace", ROLES, &[("role", "{replaced}")]),
        ),
        on("roles.delete", ROLES, &[("role", "{spare}")]),
        expect("bindings.list", SEE_USERS),
        with(r#"{"role":"{role}","user":"{user}"}"#, names(expect("bindings.create", ROLES))),
        on("bindings.delete", ROLES, &[("binding", "{binding}")]),
        // Keys ask for no access; consoles do.
        or(
            &[403],
            with(
                r#"{"computer":"{pc}","redirector":"ssh","reason":"why"}"#,
                expect("requests.make", Place::Client(&[])),
            ),
        ),
        expect("audit.search", Place::Client(&["audit.read"])),
        expect("audit.heads", Place::Home(&["audit.read"])),
        ask(
            "tree={tree}&old_size=1&new_size=2",
            names(expect("audit.consistency", Place::Home(&["audit.read"]))),
        ),
        ask(
            "tree={tree}&seq=1&size=2",
            names(expect("audit.inclusion", Place::Home(&["audit.read"]))),
        ),
        with(r#"{"days":200}"#, expect("audit.retention", POLICY)),
        with(r#"{"hold":false}"#, expect("audit.hold", POLICY)),
        with(r#"{"level":3}"#, on("audit.level", USERS, USER)),
        // Keys approve nothing; what somebody asked for they may refuse.
        or(&[403], on("requests.approve", APPROVE, &[("request", "{request}")])),
        on("requests.deny", APPROVE, &[("request", "{request}")]),
        Expectation {
            names: false,
            ..on("devices.disable_everywhere", Place::Everywhere(&["users.manage"]), DEVICE)
        },
        Expectation {
            names: false,
            ..on("devices.enable_everywhere", Place::Everywhere(&["users.manage"]), DEVICE)
        },
        expect("providers.list", Place::Home(&["policy.manage", "users.manage", "audit.read"])),
        with(
            r#"{"provider":"{new}","issuer":"https://id.example","client_id":"c","secret":"s"}"#,
            expect("providers.add", SET_UP),
        ),
        on("providers.remove", SET_UP, &[("provider", "{spare_provider}")]),
        with(r#"{"subject":"{new}"}"#, on("users.link", USERS, LINK)),
        on("users.unlink", USERS, LINK),
        // That is for people, who are asked for the name once more.
        or(
            &[403],
            with(
                r#"{"partner":"{partner}"}"#,
                on("partners.erase", SET_UP, &[("partner", "{partner}")]),
            ),
        ),
        on(
            "certificates.show",
            Place::Home(&["policy.manage", "audit.read"]),
            &[("erasure", "{erasure}")],
        ),
        expect("audit.retention_show", Place::Home(&["policy.manage", "audit.read"])),
        expect("audit.forwarding", Place::Home(&["policy.manage", "audit.read"])),
        expect("installation.status", Place::Everywhere(&["policy.manage", "relays.manage"])),
        expect("installation.compact", Place::Everywhere(&["policy.manage"])),
        expect("vault.rotation", Place::Everywhere(&["policy.manage"])),
        with("{}", expect("vault.rotate", Place::Everywhere(&["policy.manage"]))),
        ask(
            "recipients=age19y0nwc82gvch79erwkeyzv9yrzguu25hhckgdt2x5d60y6c43pnsa6clzz",
            expect("backup.take", Place::Everywhere(&["policy.manage audit.export"])),
        ),
        ask("user={user}&computer={pc}&redirector=ssh", names(expect("explain", SEE_USERS))),
    ]
}

/// What keys are refused whatever their role, asked by people whose second factor was shown just
/// now: so that the role decides.
fn of_people() -> Vec<Expectation> {
    const CREDENTIAL: &[(&str, &str)] = &[("credential", "{credential}")];
    vec![
        on("credentials.reveal", Place::Client(&["credentials.read"]), CREDENTIAL),
        // Whoever may open it needs no approval, which is told as 409 here.
        Expectation {
            done: &[409],
            body: Some(r#"{"computer":"{pc}","redirector":"ssh","reason":"why"}"#),
            names: true,
            ..expect("requests.make", Place::Client(&["launch"]))
        },
        on("requests.approve", APPROVE, &[("request", "{request}")]),
        // Whoever may is asked for the name, which is another one here.
        Expectation {
            done: &[400],
            body: Some(r#"{"partner":"{new}"}"#),
            ..on("partners.erase", SET_UP, &[("partner", "{partner}")])
        },
    ]
}

/// Objects of one tenant, and fresh ones where an operation uses them up.
struct World {
    fixed: BTreeMap<&'static str, String>,
    count: u32,
}

/// Built-in roles that are bound within a tenant.
const BUILT_IN: [&str; 5] =
    ["owner", "administrator", "technician", "auditor", "client-representative"];
/// Of a role that each tenant made itself: of what no built-in role has together.
const CUSTOM: [&str; 4] = ["computers.see", "users.manage", "tokens.manage", "credentials.edit"];
/// Scopes of one computer: by its id, its group, its tag.
const ON_PC: [&str; 3] = ["computer", "group", "tag"];

fn granted(role: &str) -> BTreeSet<&'static str> {
    // As docs/access.md tells it.
    let administrator = [
        "computers.see",
        "launch",
        "sessions.see",
        "sessions.join",
        "sessions.end",
        "credentials.edit",
        "credentials.delete",
        "credentials.use",
        "audit.read",
        "audit.export",
        "users.manage",
        "roles.manage",
        "tokens.manage",
        "policy.manage",
        "requests.approve",
    ];
    match role {
        "owner" => administrator.into_iter().chain(["credentials.read", "relays.manage"]).collect(),
        "administrator" => administrator.into_iter().collect(),
        "technician" => ["computers.see", "launch", "credentials.use"].into(),
        "auditor" => ["computers.see", "sessions.see", "audit.read", "audit.export"].into(),
        "client-representative" => {
            ["computers.see", "sessions.see", "sessions.end", "audit.read", "requests.approve"]
                .into()
        }
        "custom" => CUSTOM.into(),
        _ => ["relays.manage"].into(),
    }
}

/// Is it about the one computer that each tenant has all the time, or about what the log has of it?
fn is_of_pc(id: &str) -> bool {
    let kinds = ["computers.", "sessions.", "requests.", "audit."];
    id != "computers.remove" && kinds.iter().any(|kind| id.starts_with(kind))
}

/// A refusal for want of a right and the answer that no approval is needed have one status.
fn status(answer: &Answer) -> u16 {
    if answer.code() == failure::APPROVAL_NOT_NEEDED { 409 } else { answer.status }
}

/// The status that a principal must get; several where the object's state decides.
fn wanted(e: &Expectation, role: &str, scope: &str, foreign: bool) -> Vec<u16> {
    let has = |needs: &[&str]| {
        let held = granted(role);
        needs.iter().any(|any| any.split(' ').all(|need| held.contains(need)))
    };
    let done = e.done.to_vec();
    // Whoever holds something for one client holds it neither for the partner nor for another.
    let on_pc = ON_PC.contains(&scope);
    let (part, other) = (on_pc || ["client", "elsewhere"].contains(&scope), scope == "elsewhere");
    match e.place {
        Place::Anybody | Place::Open => done,
        // What is no computer's is not there for those of one, nor are other computers. They look at
        // what the log has of it, and take nothing of the log away.
        Place::Client(needs) if on_pc && has(needs) && e.id == "audit.export" => vec![403],
        Place::Client(_) if on_pc && !is_of_pc(e.id) => vec![404],
        // Whoever may bind somewhere is told what is there, not where it may not be bound.
        Place::Home(needs)
            if part
                && !on_pc
                && has(needs)
                && ["bindings.create", "bindings.delete"].contains(&e.id) =>
        {
            vec![if foreign { 404 } else { 403 }]
        }
        // Another client of the own partner is not there for those of one client.
        Place::Client(_) if part && e.id == "clients.erase" => vec![404],
        Place::Client(needs) if other && e.names && !needs.is_empty() => vec![404],
        Place::Home(needs) if !has(needs) || part => match (e.id, foreign) {
            // Another tenant's name is not known, before any right is asked for.
            ("clients.add", true) => vec![404],
            _ => vec![403],
        },
        Place::Everywhere(needs) if !has(needs) || scope != "installation" => vec![403],
        _ if foreign && e.names => vec![404],
        Place::Home(_) | Place::Everywhere(_) => done,
        // No state of these objects is made here: only who may know of them is.
        Place::Client([]) => done,
        Place::Client(needs) if has(needs) => done,
        // What one may not see is not there.
        Place::Client(_)
            if !has(&["computers.see"])
                && ["computers", "sessions"].iter().any(|kind| e.id.starts_with(kind)) =>
        {
            vec![404]
        }
        Place::Client(_) if e.id == "requests.make" => vec![403],
        Place::Client(_) if e.id.starts_with("requests") => vec![404],
        Place::Client(_) => vec![403],
    }
}

/// Its tenant, role and scope; who asks about the own tenant and about the other, and their names.
type Principal = (usize, &'static str, &'static str, [Arc<Who>; 2], [String; 2]);

/// People of the last tenant, each logged in on a console, with a second factor shown just now.
async fn people(mediator: &Mediator, web: &mut Web, owner: &Who) -> Vec<Principal> {
    let mut people: Vec<Principal> = Vec::new();
    for role in BUILT_IN {
        for (scope, of) in [
            ("partner", json!({})),
            ("client", json!({"client": "third/hq"})),
            ("elsewhere", json!({"client": "third/branch"})),
        ] {
            let name = format!("person-{role}-{scope}");
            let added = json!({"user": name, "role": "none"});
            let added = web.ask(owner, "POST", "/api/v1/users", Some(&added)).await;
            let bind = json!({"role": role, "user": name, "scope": of});
            let bound = web.ask(owner, "POST", "/api/v1/bindings", Some(&bind)).await;
            assert_eq!((added.status, bound.status), (200, 200), "{added:?} {bound:?}");
            let password = added.body["password"].as_str().unwrap();
            let who = Arc::new(mediator.person(&name, password).await.0);
            people.push((2, role, scope, [Arc::clone(&who), who], [name.clone(), name]));
        }
    }
    // As if each had a factor and had shown it.
    let database = format!("sqlite:{}", mediator.database().display());
    let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
    let shown = "UPDATE login SET mfa = 'totp', mfa_ms = authenticated_ms";
    let shown = sqlx::query(shown).execute(&mut database).await.unwrap();
    assert!(shown.rows_affected() >= people.len() as u64);
    people
}

struct Tenant {
    owner: Who,
    /// On which sessions are opened.
    console: Device,
    /// Of the computer.
    agent: Device,
    pc: (wire::Enrolled, Arc<DeviceIdentity>),
    /// Of somebody who must ask for access.
    asks: Device,
    /// A session that nobody has ended.
    session: Option<SessionId>,
    /// What was asked for last.
    request: String,
    /// An identity provider that nobody has removed.
    provider: Option<String>,
    /// Enrols any number of computers.
    agent_token: EnrollToken,
    world: World,
}

async fn tenant(
    mediator: &Mediator,
    web: &mut Web,
    partner: &str,
    password: Option<String>,
) -> Tenant {
    let owner_name =
        if partner == "main" { "admin".to_owned() } else { format!("{partner}-owner") };
    let password = password.unwrap_or_else(|| mediator.password.clone());
    let (owner, device) = mediator.person(&owner_name, &password).await;
    let mut fixed = BTreeMap::from([("partner", partner.to_owned()), ("hq", "hq".to_owned())]);
    if partner != "main" {
        mediator.admin(&["client", "add", &format!("{partner}/hq")]);
    }
    mediator.admin(&["client", "add", &format!("{partner}/branch")]);
    let client = format!("{partner}/hq");
    let agent_token = mediator.token(&["agent", "--client", &client, "--uses", "100"]);
    let key = identity();
    let enrolled = mediator.enroll(&key, &agent_token, 1, "pc").await.unwrap();
    let agent = mediator.connect(&key, hello(1, &key, &enrolled.device_id)).await.unwrap();
    let id = ComputerId::from_slice(&enrolled.device_id).unwrap();
    fixed.insert("pc", id.to_string());
    // What is erased has a certificate.
    let gone = format!("{partner}/gone");
    mediator.admin(&["client", "add", &gone]);
    let erased = mediator.admin(&["client", "erase", &gone, "--yes"]);
    fixed.insert("erasure", erased[0]["erasure"].as_str().unwrap().to_owned());
    let provider = format!("{partner}-directory");
    let issuer = ["--issuer", "https://id.example", "--client-id", "c", "--partner", partner];
    mediator.admin(&[&["oidc", "add", &provider], &issuer[..]].concat());
    fixed.insert("provider", provider);
    let asker = format!("{partner}-asks");
    let added = mediator.admin(&["user", "add", &asker, "--partner", partner, "--role", "none"]);
    let bind = ["role", "bind", "technician", "--require", "approval", "--user", &asker];
    mediator.admin(&bind);
    let me = identity();
    let asks = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    asks.login(&asker, added[0]["password"].as_str().unwrap()).await.unwrap();
    // A user with a device that logged in.
    let user = format!("{partner}-jane");
    let added = mediator.admin(&["user", "add", &user, "--partner", partner, "--role", "none"]);
    let jane = identity();
    let console = mediator.connect(&jane, hello(2, &jane, &[])).await.unwrap();
    console.login(&user, added[0]["password"].as_str().unwrap()).await.unwrap();
    fixed.insert("device", jane.signing.public().fingerprint().to_string());
    fixed.insert("user", user);
    let role = json!({"role": format!("{partner}-see"), "permissions": ["computers.see"]});
    let made = web.ask(&owner, "POST", "/api/v1/roles", Some(&role)).await;
    assert_eq!(made.status, 200, "{made:?}");
    fixed.insert("role", format!("{partner}-see"));
    let custom = json!({"role": "custom", "permissions": CUSTOM});
    for (method, path, body) in [
        ("POST", "/roles".to_owned(), Some(&custom)),
        ("PUT", format!("/computers/{id}/groups/kept"), None),
        ("PUT", format!("/computers/{id}/tags/kept=yes"), None),
    ] {
        let made = web.ask(&owner, method, &format!("/api/v1{path}"), body).await;
        assert_eq!(made.status, 200, "{made:?}");
    }
    let heads = web.ask(&owner, "GET", "/api/v1/audit/heads", None).await;
    fixed.insert("tree", heads.body["items"][0]["tree"].as_str().unwrap().to_owned());
    let world = World { fixed, count: 0 };
    let (console, pc, session) = (device, (enrolled, key), None);
    let mut tenant = Tenant {
        owner,
        console,
        agent,
        pc,
        asks,
        session,
        request: String::new(),
        provider: None,
        agent_token,
        world,
    };
    let credential = tenant.credential(mediator, "kept");
    tenant.world.fixed.insert("credential", credential);
    tenant
}

impl Tenant {
    /// Fills `{names}`; makes what is used up.
    async fn fill(&mut self, mediator: &Mediator, web: &mut Web, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.world.fixed {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        self.world.count += 1;
        let fresh = format!("{}-{}", self.world.fixed["partner"], self.world.count);
        text = text.replace("{new}", &fresh);
        if text.contains("{key}") {
            text = text.replace("{key}", &key_pair().1);
        }
        if text.contains("{doomed}") {
            mediator.admin(&["client", "add", &format!("{}/{fresh}", self.world.fixed["partner"])]);
            text = text.replace("{doomed}", &fresh);
        }
        let see = json!({"role": fresh, "permissions": ["computers.see"]});
        for name in ["{spare}", "{replaced}"] {
            if text.contains(name) {
                let made = web.ask(&self.owner, "POST", "/api/v1/roles", Some(&see)).await;
                assert_eq!(made.status, 200, "{made:?}");
                text = text.replace(name, &fresh);
            }
        }
        if text.contains("{doomed_computer}") {
            let agent = identity();
            let enrolled = mediator.enroll(&agent, &self.agent_token, 1, &fresh).await.unwrap();
            let id = ComputerId::from_slice(&enrolled.device_id).unwrap().to_string();
            text = text.replace("{doomed_computer}", &id);
        }
        if text.contains("{session}") {
            text = text.replace("{session}", &self.session().await.to_string());
        }
        if text.contains("{request}") {
            let wish = wire::RequestAccess {
                computer_id: self.pc.0.device_id.clone(),
                redirector: "ssh".into(),
                reason: "why".into(),
                length_ms: 600_000,
                ..Default::default()
            };
            // The one that waits, or the next.
            let Ok(Body::AccessRequest(asked)) = self.asks.ask(Body::RequestAccess(wish)).await
            else {
                panic!("nothing could be asked for");
            };
            text = text.replace("{request}", &asked.request_id);
            self.request = asked.request_id;
        }
        if text.contains("{spare_provider}") {
            let name = match self.provider.clone() {
                Some(name) => name,
                None => {
                    let wish = json!({"provider": fresh, "issuer": "https://id.example", "client_id": "c"});
                    let path = "/api/v1/identity-providers";
                    let made = web.ask(&self.owner, "POST", path, Some(&wish)).await;
                    assert_eq!(made.status, 200, "{made:?}");
                    self.provider.insert(fresh.clone()).clone()
                }
            };
            text = text.replace("{spare_provider}", &name);
        }
        if text.contains("{old_credential}") {
            text = text.replace("{old_credential}", &self.credential(mediator, &fresh));
        }
        if text.contains("{binding}") {
            let wish = json!({"role": self.world.fixed["role"], "group": fresh});
            let made = web.ask(&self.owner, "POST", "/api/v1/bindings", Some(&wish)).await;
            text = text.replace("{binding}", made.body["binding"].as_str().unwrap());
        }
        if text.contains("{api_key}") {
            let role = self.world.fixed["role"].clone();
            let who = register(web, &self.owner, &fresh, &role, &json!({})).await;
            text = text.replace("{api_key}", who.token.strip_prefix("adit-key-").unwrap());
        }
        if text.contains("{token}") {
            let wish = json!({"client": format!("{}/hq", self.world.fixed["partner"])});
            let made = web.ask(&self.owner, "POST", "/api/v1/tokens/agent", Some(&wish)).await;
            text = text.replace("{token}", made.body["token_id"].as_str().unwrap());
        }
        text
    }

    /// A live session on the tenant's computer.
    async fn session(&mut self) -> SessionId {
        if let Some(session) = self.session {
            return session;
        }
        let mut wish = open(1, &self.pc.0, &self.pc.1);
        let id = SessionId(adit_protocol::keys::random().unwrap());
        wish.session_id = id.0.to_vec().into();
        try_open(&self.console, &mut self.agent, wish).await.unwrap();
        *self.session.insert(id)
    }

    /// A credential of the tenant's client; its id.
    fn credential(&self, mediator: &Mediator, name: &str) -> String {
        let client = format!("{}/hq", self.world.fixed["partner"]);
        let add = ["credential", "add", &client, name, "--user", "root"];
        let (code, told) = mediator.try_admin(&add, "a secret of this test\n");
        assert_eq!(code, 0, "{told:?}");
        told[0]["credential_id"].as_str().unwrap().to_owned()
    }

    /// Puts back what an operation changed, as the machine's administrator.
    fn restore(&mut self, mediator: &Mediator, id: &str, status: u16) {
        let user = &self.world.fixed["user"];
        let client = format!("{}/hq", self.world.fixed["partner"]);
        match id {
            "sessions.end" if status == 200 => self.session = None,
            "providers.remove" if status == 200 => self.provider = None,
            // What was approved is not asked for again.
            "requests.approve" if status == 200 => {
                drop(mediator.admin(&["request", "deny", &self.request]));
            }
            "users.disable" => drop(mediator.admin(&["user", "enable", user])),
            "clients.lock" => drop(mediator.try_admin(&["client", "unlock", &client], "")),
            _ => {}
        }
    }
}

/// Every answer is of the declared form.
fn conforms(schema: &Value, root: &Value, value: &Value) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return conforms(&root["components"]["schemas"][name], root, value);
    }
    if let Some(any) = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()) {
        let fits = any.iter().any(|one| conforms(one, root, value).is_ok());
        return if fits { Ok(()) } else { Err(format!("{value} is none of {any:?}")) };
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !kinds.contains(&kind) {
        return Err(format!("{value} is no {kinds:?}"));
    }
    if let Some(items) = value.as_array() {
        return items.iter().try_for_each(|item| conforms(&schema["items"], root, item));
    }
    let Some(fields) = value.as_object() else { return Ok(()) };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Err(format!("{name} is missing in {value}"));
        }
    }
    for (name, field) in fields {
        match schema["properties"].get(name) {
            Some(schema) => conforms(schema, root, field)?,
            None => return Err(format!("{name} is not declared: {value}")),
        }
    }
    Ok(())
}

/// What is no success is told as RFC 9457 says, with a code that docs/errors.md explains.
fn problem(answer: &Answer) -> Result<(), String> {
    const CODES: &str = include_str!("../../../docs/errors.md");
    if answer.status < 400 {
        return Ok(());
    }
    let (body, code) = (&answer.body, answer.code());
    let filled =
        ["title", "detail"].iter().all(|name| body[name].as_str().is_some_and(|t| !t.is_empty()));
    let good = answer.headers["content-type"] == "application/problem+json"
        && body["type"] == format!("urn:adit:error:{code}")
        && body["status"] == answer.status
        && filled
        && CODES.contains(&format!("`{code}`"));
    if good { Ok(()) } else { Err(format!("no problem as described: {answer:?}")) }
}

#[tokio::test]
async fn every_cell_of_role_tenant_route_and_object_is_as_declared() {
    let mediator = Mediator::start();
    let (root, _device) = mediator.admin_of_all().await;
    let mut web = Web::connect(&mediator).await;
    let described = web.send("GET", "/api/v1/openapi.json", &[], None).await;
    let operations = document(&described);
    let expected = expectations();
    let known: BTreeSet<&str> = expected.iter().map(|e| e.id).collect();
    let there: BTreeSet<&str> = operations.keys().map(String::as_str).collect();
    // A new route is classified here, or it does not come in.
    assert_eq!(known, there, "routes and expectations differ");
    assert_eq!(known.len(), expected.len(), "an operation is expected twice");

    let mut tenants = vec![tenant(&mediator, &mut web, "main", None).await];
    for partner in ["other", "third"] {
        let wish = json!({"partner": partner, "owner": format!("{partner}-owner")});
        let made = web.ask(&root, "POST", "/api/v1/partners", Some(&wish)).await;
        assert_eq!(made.status, 200, "{made:?}");
        let password = made.body["password"].as_str().unwrap().to_owned();
        tenants.push(tenant(&mediator, &mut web, partner, Some(password)).await);
    }
    // A relay, which belongs to nobody's partner.
    let relay = identity();
    let token = mediator.token(&["relay"]);
    let enrolled = mediator.enroll(&relay, &token, 3, "r").await.unwrap();
    let relay = adit_protocol::ids::RelayId::from_slice(&enrolled.device_id).unwrap().to_string();
    for tenant in &mut tenants {
        tenant.world.fixed.insert("relay", relay.clone());
    }

    // Who asks: each built-in role on the partner, on a client, and of the other tenant.
    // One asks about the own tenant, another of the same rights about the foreign one: of the same
    // by the same one only the first refusal within a minute has a record.
    let mut principals: Vec<Principal> = Vec::new();
    for (tenant, partner) in [(0, "main"), (1, "other"), (2, "third")] {
        let scopes = |role| {
            let all = [
                ("partner", json!({})),
                ("client", json!({"client": format!("{partner}/hq")})),
                // Another client than the one that is asked about.
                ("elsewhere", json!({"client": format!("{partner}/branch")})),
            ];
            all.map(|(scope, arg)| (role, scope, arg))
        };
        let pc = &tenants[tenant].world.fixed["pc"];
        // Others have a tenant of their own: of a partner's refusals so many are recorded.
        let kinds: Vec<_> = match tenant {
            2 => vec![
                ("custom", "partner", json!({})),
                ("owner", "computer", json!({"computer": pc})),
                ("administrator", "group", json!({"computers": "kept"})),
                ("auditor", "tag", json!({"tag": "kept=yes"})),
            ],
            _ => BUILT_IN.into_iter().flat_map(scopes).collect(),
        };
        for (role, scope, arg) in kinds {
            let names = ["", "-abroad"].map(|of| format!("{partner}-{role}-{scope}{of}"));
            let owner = &tenants[tenant].owner;
            let who = [
                Arc::new(register(&mut web, owner, &names[0], role, &arg).await),
                Arc::new(register(&mut web, owner, &names[1], role, &arg).await),
            ];
            let names = names.map(|name| format!("API key {name}"));
            principals.push((tenant, role, scope, who, names));
        }
    }
    let arg = json!({"installation": true});
    for role in ["relay-operator", "owner"] {
        let names = ["", "-abroad"].map(|of| format!("all-{role}{of}"));
        let who = [
            Arc::new(register(&mut web, &root, &names[0], role, &arg).await),
            Arc::new(register(&mut web, &root, &names[1], role, &arg).await),
        ];
        let names = names.map(|name| format!("API key {name}"));
        principals.push((0, role, "installation", who, names));
    }

    let people = people(&mediator, &mut web, &tenants[2].owner).await;
    let (of_people, mut cells, mut wrong) = (of_people(), 0, Vec::new());
    // Of each principal and operation: with which codes it was refused, and how often done.
    let mut told = BTreeMap::<(&str, &str), (BTreeSet<String>, usize)>::new();
    let by_keys = expected.iter().map(|e| (e, &principals));
    for (e, principals) in by_keys.chain(of_people.iter().map(|e| (e, &people))) {
        let (method, path, operation) = operations[e.id].clone();
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        for (own, role, scope, askers, names) in principals {
            for (about, tenant) in tenants.iter_mut().enumerate() {
                let foreign = about != *own;
                // One other tenant is as good as the next.
                if foreign && about != usize::from(*own == 0) {
                    continue;
                }
                let (who, name) = (&askers[usize::from(foreign)], &names[usize::from(foreign)]);
                if foreign && !e.names {
                    continue;
                }
                let mut target = path.clone();
                for (name, value) in e.parts {
                    target = target.replace(&format!("{{{name}}}"), value);
                }
                let text = format!("{target}?{}\n{}", e.query, e.body.unwrap_or(""));
                let text = tenant.fill(&mediator, &mut web, &text).await;
                let (target, body) = text.split_once('\n').unwrap();
                let target = target.trim_end_matches('?');
                let body: Option<Value> =
                    (!body.is_empty()).then(|| serde_json::from_str(body).unwrap());
                let answer = web.ask(who, &method, target, body.as_ref()).await;
                tenant.restore(&mediator, e.id, answer.status);
                cells += 1;
                let (refused, done) = told.entry((name, e.id)).or_default();
                if [403, 404].contains(&answer.status) {
                    refused.insert(answer.code().to_owned());
                }
                *done += usize::from(answer.status == 200);
                let is_relay = e.id.starts_with("relays.") || e.id.starts_with("tokens.relay");
                let wanted = wanted(e, role, scope, foreign && !is_relay);
                let cell = format!("{} by {role} on {scope} of {own} about {about}", e.id);
                if !wanted.contains(&status(&answer)) {
                    wrong.push(format!(
                        "{cell}: {} instead of {wanted:?}: {}",
                        answer.status, answer.body
                    ));
                }
                if answer.status == 200
                    && let Err(error) = conforms(schema, &described.body, &answer.body)
                {
                    wrong.push(format!("{cell}: {error}"));
                }
                if let Err(error) = problem(&answer) {
                    wrong.push(format!("{cell}: {error}"));
                }
                // Whatever is answered tells nothing of the other tenant.
                let hidden = if *own == 0 { "other" } else { "main" };
                let shown = answer.body.to_string();
                if *own != about && answer.status != 404 && answer.status != 403 && !is_relay {
                    wrong.push(format!("{cell}: reached"));
                }
                if !foreign && *scope != "installation" && shown.contains(&format!("\"{hidden}/")) {
                    wrong.push(format!("{cell}: shows {shown}"));
                }
            }
        }
        // Nobody at all.
        let is_open = operation["security"].as_array().unwrap().is_empty();
        assert_eq!(is_open, e.place == Place::Open, "{}", e.id);
        if is_open {
            assert_eq!(web.send(&method, &path, &[], None).await.status, 200);
            continue;
        }
        let answer = web.send(&method, &path.replace(['{', '}'], "x"), &[], None).await;
        if answer.status != 401
            || answer.code() != failure::NOT_LOGGED_IN
            || problem(&answer).is_err()
        {
            wrong.push(format!("{} without a token: {answer:?}", e.id));
        }
    }
    println!("{cells} cells of {} operations", expected.len());
    assert!(wrong.is_empty(), "{} of {cells} cells:\n{}", wrong.len(), wrong.join("\n"));
    recorded(&mediator, &operations, &told);
}

/// R34: every refusal is in the log, each by its operation, and whatever was read. What was done is
/// `rules.rs`'s: acts that change nothing have no record.
fn recorded(
    mediator: &Mediator,
    operations: &BTreeMap<String, (String, String, Value)>,
    told: &BTreeMap<(&str, &str), (BTreeSet<String>, usize)>,
) {
    let (mut refused, mut read) = (BTreeMap::<_, usize>::new(), BTreeSet::new());
    for event in mediator.events() {
        let Some(actor) = event["actor"].as_str().map(str::to_owned) else { continue };
        let operation = event["extra"]["operation"].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str().unwrap() {
            "act.refused" => {
                for field in ["rule", "end_reason", "device", "source", "partner"] {
                    assert!(event[field].is_string(), "no {field}: {event}");
                }
                *refused.entry((actor, operation)).or_default() += 1;
            }
            "api.read" => drop(read.insert((actor, operation))),
            _ => {}
        }
    }
    let mut wrong = Vec::new();
    for ((name, id), (codes, done)) in told {
        // The same by the same is recorded once a minute.
        let denied = &codes.len();
        let key = ((*name).to_owned(), (*id).to_owned());
        let found = refused.get(&key).copied().unwrap_or(0);
        if found != *denied {
            wrong.push(format!("{id} by {name}: {denied} refusals, {found} of them recorded"));
        }
        // Reads of the log have their own event.
        let is_read = operations[*id].0 == "GET" && !id.starts_with("audit.");
        if is_read
            && *done > 0
            && !read.contains(&key)
            && operations[*id].2["security"] != json!([])
        {
            wrong.push(format!("{id} by {name}: read {done} times, and nothing recorded"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
