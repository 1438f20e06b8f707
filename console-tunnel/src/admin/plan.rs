//! Which request a command is. Everything typed becomes one encoded part, one value of the query,
//! or JSON.

use std::{path::PathBuf, time::Duration};

use adit_runtime::{
    cli::{CertificateArg, CliError},
    config::parse_duration,
    time::{format_ms, unix_ms},
};
use hyper::Method;
use serde_json::{Value, json};

use super::args::{
    AdminCommand, ApiKey, Audit, Backup, Bind, Certificate, Client, Computer, Conditions, Device,
    Explain, Mfa, NewProvider, Oidc, Partner, Relay, Request, Retention, Role, Scope, Session,
    Token, User, Vault,
};
use crate::api::{Ask, part};

/// Field of a body that only the mediator may know.
pub const SECRET: &str = "secret";

/// How the answer looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// One thing.
    One,
    /// Pages of many.
    List,
    /// What was destroyed, of which people see the certificate alone.
    Certificate,
    /// How far something is that goes on by itself: asked again until its end.
    Progress,
    /// A file that the mediator sends.
    File,
}

/// A command as a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The request.
    pub ask: Ask,
    /// What comes back.
    pub answer: Answer,
    /// What of stdin belongs into the body, and what it is.
    pub stdin: Option<(&'static str, &'static str)>,
    /// Texts of files here that belong into the body.
    pub files: Vec<(&'static str, PathBuf)>,
    /// The file that is written.
    pub output: PathBuf,
    /// Where a certificate goes.
    pub certificate: CertificateArg,
    /// The public half of the key in this file belongs into the body.
    pub key_file: Option<PathBuf>,
    /// It cannot be undone, and nobody said yes.
    pub destroys: bool,
    /// In words.
    pub what: String,
    /// What is typed to say yes.
    pub yes: String,
}

impl Plan {
    fn new(method: Method, target: String, body: Option<Value>, answer: Answer) -> Self {
        let ask = Ask { method, target: format!("/api/v1{target}"), body };
        Self {
            ask,
            answer,
            stdin: None,
            files: Vec::new(),
            output: PathBuf::new(),
            certificate: CertificateArg::default(),
            key_file: None,
            destroys: false,
            what: String::new(),
            yes: "yes".to_owned(),
        }
    }

    /// Of a command.
    pub fn of(command: &AdminCommand) -> Result<Self, CliError> {
        Ok(match command {
            AdminCommand::Me => show("/me".to_owned()),
            AdminCommand::Partner(Partner::List) => list("/partners".to_owned()),
            AdminCommand::Partner(Partner::Add { partner, owner }) => {
                post("/partners".to_owned(), json!({"partner": partner, "owner": owner}))
            }
            AdminCommand::Partner(Partner::Erase { partner, yes, certificate }) => Self {
                answer: Answer::Certificate,
                certificate: certificate.clone(),
                destroys: !yes,
                what: format!(
                    "erasing {partner} with its clients, computers, users and credentials"
                ),
                yes: partner.clone(),
                ..post(format!("/partners/{}/erase", part(partner)), json!({"partner": partner}))
            },
            AdminCommand::Client(command) => client(command)?,
            AdminCommand::Certificate(Certificate::List) => list("/certificates".to_owned()),
            AdminCommand::Certificate(Certificate::Show { erasure }) => Self {
                answer: Answer::Certificate,
                ..show(format!("/certificates/{}", part(erasure)))
            },
            AdminCommand::Oidc(command) => oidc(command),
            AdminCommand::Audit(command) => audit(command),
            AdminCommand::Vault(Vault::Rotate { data_keys }) => Self {
                answer: Answer::Progress,
                ..post("/vault/rotation".to_owned(), json!({"data_keys": data_keys}))
            },
            AdminCommand::Vault(Vault::Status) => show("/vault/rotation".to_owned()),
            AdminCommand::Backup(Backup { file, recipients }) => {
                // What is not one could be the secret key, which must not leave this computer.
                let all = recipients.iter().flat_map(|text| text.split(',')).map(str::trim);
                let recipients: Vec<&str> = all.collect();
                let no_secret = |text: &str| !text.to_ascii_lowercase().contains("secret-key");
                if !recipients.iter().all(|text| text.starts_with("age1") && no_secret(text)) {
                    let why = "a recipient begins with age1, in small letters";
                    return Err(CliError::usage("usage", why)
                        .hint("mediator backup-key prints it beside the key that it makes"));
                }
                let recipients = query(&[("recipients", Some(recipients.join(",")))]);
                let (answer, output) = (Answer::File, file.clone());
                Self { answer, output, ..show(format!("/backup{recipients}")) }
            }
            AdminCommand::Compact => act("/compact".to_owned()),
            AdminCommand::Status => show("/status".to_owned()),
            AdminCommand::Computer(command) => computer(command),
            AdminCommand::User(command) => user(command),
            AdminCommand::Device(command) => device(command),
            AdminCommand::Role(command) => role(command),
            AdminCommand::Request(command) => request(command),
            AdminCommand::Session(Session::List) => list("/sessions".to_owned()),
            AdminCommand::Session(Session::End { session }) => {
                delete(format!("/sessions/{}", part(session)))
            }
            AdminCommand::Token(command) => token(command),
            AdminCommand::Relay(command) => relay(command),
            AdminCommand::ApiKey(command) => api_key(command),
            AdminCommand::Explain(question) => explain(question)?,
            AdminCommand::Call { method, path, data } => call(method, path, data.as_deref())?,
        })
    }
}

fn show(target: String) -> Plan {
    Plan::new(Method::GET, target, None, Answer::One)
}

fn list(target: String) -> Plan {
    Plan::new(Method::GET, target, None, Answer::List)
}

fn post(target: String, body: Value) -> Plan {
    Plan::new(Method::POST, target, Some(body), Answer::One)
}

fn act(target: String) -> Plan {
    Plan::new(Method::POST, target, None, Answer::One)
}

fn put(target: String, body: Option<Value>) -> Plan {
    Plan::new(Method::PUT, target, body, Answer::One)
}

fn delete(target: String) -> Plan {
    Plan::new(Method::DELETE, target, None, Answer::One)
}

fn put_or_delete(target: String, remove: bool) -> Plan {
    if remove { delete(target) } else { put(target, None) }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `?a=b&c=d` of what is there.
fn query(values: &[(&str, Option<String>)]) -> String {
    let given = values
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={}", part(value))));
    let given: Vec<String> = given.collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

/// Without what is null.
fn given(body: Value) -> Value {
    match body {
        Value::Object(fields) => {
            Value::Object(fields.into_iter().filter(|(_, value)| !value.is_null()).collect())
        }
        other => other,
    }
}

fn client(command: &Client) -> Result<Plan, CliError> {
    let at = |path: &str, rest: &str| {
        let (partner, client) = path
            .split_once('/')
            .ok_or_else(|| CliError::usage("usage", "PARTNER/CLIENT is expected"))?;
        Ok::<_, CliError>(format!("/clients/{}/{}{rest}", part(partner), part(client)))
    };
    Ok(match command {
        Client::List => list("/clients".to_owned()),
        Client::Add { path } => post("/clients".to_owned(), json!({"client": path})),
        Client::Lockdown { path, reason } => {
            put(at(path, "/lockdown")?, Some(json!({"reason": reason})))
        }
        Client::Unlock { path } => delete(at(path, "/lockdown")?),
        Client::Erase { path, yes, certificate } => Plan {
            answer: Answer::Certificate,
            certificate: certificate.clone(),
            destroys: !yes,
            what: format!("erasing {path}"),
            ..delete(at(path, "")?)
        },
    })
}

fn computer(command: &Computer) -> Plan {
    match command {
        Computer::List { query: text, client, group, tag, online } => {
            let values = [
                ("query", (!text.is_empty()).then(|| text.clone())),
                ("client", client.clone()),
                ("group", group.clone()),
                ("tag", tag.clone()),
                ("online", online.then(|| "true".to_owned())),
            ];
            list(format!("/computers{}", query(&values)))
        }
        Computer::Group { computer, group, remove } => {
            let target = format!("/computers/{}/groups/{}", part(computer), part(group));
            put_or_delete(target, *remove)
        }
        Computer::Tag { computer, tag, remove } => {
            let target = format!("/computers/{}/tags/{}", part(computer), part(tag));
            put_or_delete(target, *remove)
        }
        Computer::Rename { computer, name } => {
            put(format!("/computers/{}/name", part(computer)), Some(json!({"name": name})))
        }
        Computer::Remove { computer, yes } => Plan {
            destroys: !yes,
            what: format!("removing {computer}"),
            ..delete(format!("/computers/{}", part(computer)))
        },
    }
}

fn user(command: &User) -> Plan {
    let at = |user: &str, rest: &str| format!("/users/{}{rest}", part(user));
    match command {
        User::List => list("/users".to_owned()),
        User::Show { user } => show(at(user, "")),
        User::Add { user, role, mfa, password_stdin } => {
            let body = json!({"user": user, "role": role, "mfa": mfa});
            Plan { stdin: password(*password_stdin), ..post("/users".to_owned(), body) }
        }
        User::Disable { user } => act(at(user, "/disable")),
        User::Enable { user } => act(at(user, "/enable")),
        User::Group { user, group, remove } => {
            put_or_delete(at(user, &format!("/groups/{}", part(group))), *remove)
        }
        User::Password { user, password_stdin } => {
            Plan { stdin: password(*password_stdin), ..post(at(user, "/password"), json!({})) }
        }
        User::Sessions { user } => list(at(user, "/sessions")),
        User::Logout { user } => act(at(user, "/logout")),
        User::Mfa(Mfa::Status { user }) => show(at(user, "/mfa")),
        User::Mfa(Mfa::Require { user, phishing_resistant }) => {
            let body = json!({"required": true, "phishing_resistant": phishing_resistant});
            put(at(user, "/mfa/policy"), Some(body))
        }
        User::Mfa(Mfa::Optional { user }) => {
            put(at(user, "/mfa/policy"), Some(json!({"required": false})))
        }
        User::Mfa(Mfa::Reset { user }) => act(at(user, "/mfa/reset")),
    }
}

fn device(command: &Device) -> Plan {
    let at = |everybody: bool, device: &str, what: &str| {
        let of = if everybody { "/installation" } else { "" };
        format!("{of}/devices/{}/{what}", part(device))
    };
    match command {
        Device::List => list("/devices".to_owned()),
        Device::Disable { device, reason, everybody } => {
            post(at(*everybody, device, "disable"), json!({"reason": reason}))
        }
        Device::Enable { device, everybody } => act(at(*everybody, device, "enable")),
    }
}

/// A password that is read from stdin.
fn password(from_stdin: bool) -> Option<(&'static str, &'static str)> {
    from_stdin.then_some(("password", "password"))
}

fn oidc(command: &Oidc) -> Plan {
    let at = |user: &str, provider: &str| format!("/users/{}/links/{}", part(user), part(provider));
    match command {
        Oidc::List => list("/identity-providers".to_owned()),
        Oidc::Add(new) => {
            let NewProvider { name, issuer, client_id, secret_file, secret_stdin, ca_file, .. } =
                &**new;
            let body = json!({
                "provider": name,
                "issuer": issuer,
                "client_id": client_id,
                "mfa": {
                    "acr": new.mfa_acr,
                    "amr": new.mfa_amr,
                    "phishing_resistant": new.mfa_phishing_resistant,
                },
            });
            let file = |name, path: &Option<PathBuf>| path.clone().map(|path| (name, path));
            let files = [file(SECRET, secret_file), file("ca", ca_file)];
            Plan {
                stdin: secret_stdin.then_some((SECRET, "secret")),
                files: files.into_iter().flatten().collect(),
                ..post("/identity-providers".to_owned(), body)
            }
        }
        Oidc::Remove { name } => delete(format!("/identity-providers/{}", part(name))),
        Oidc::Link { user, provider, subject } => {
            put(at(user, provider), Some(json!({"subject": subject})))
        }
        Oidc::Unlink { user, provider } => delete(at(user, provider)),
    }
}

fn audit(command: &Audit) -> Plan {
    let hold = |body: Value| put("/audit/hold".to_owned(), Some(given(body)));
    match command {
        Audit::Retention(Retention::Show) => show("/audit/retention".to_owned()),
        Audit::Retention(Retention::Set { days }) => {
            put("/audit/retention".to_owned(), Some(given(json!({"days": days}))))
        }
        Audit::Retention(Retention::Hold { reason }) => {
            hold(json!({"hold": true, "reason": reason}))
        }
        Audit::Retention(Retention::Release { hold: id }) => {
            hold(json!({"hold": false, "hold_id": id}))
        }
        Audit::Level { user, level } => {
            put(format!("/users/{}/audit-level", part(user)), Some(json!({"level": level})))
        }
        Audit::Forwarding => list("/audit/forwarding".to_owned()),
    }
}

fn conditions(conditions: &Conditions) -> Value {
    let required = |what: &str| conditions.require.iter().any(|word| word == what);
    given(json!({
        "reason": required("reason"),
        "ticket": required("ticket"),
        "approval": required("approval"),
        "hours": conditions.hours,
        "mfa_age_ms": conditions.mfa_within.map(millis),
        "networks": conditions.from,
        "length_ms": conditions.max_length.map(millis),
    }))
}

fn scope(scope: &Scope) -> Value {
    given(json!({
        "installation": scope.installation,
        "client": scope.client,
        "computers": scope.computers,
        "tag": scope.tag,
        "computer": scope.computer,
    }))
}

fn role(command: &Role) -> Plan {
    let at = |role: &str| format!("/roles/{}", part(role));
    match command {
        Role::List => list("/roles".to_owned()),
        Role::Permissions => list("/permissions".to_owned()),
        Role::Bindings => list("/bindings".to_owned()),
        Role::Show { role } => show(at(role)),
        Role::Create { role, permissions, redirectors, conditions: asked, replace } => {
            let mut body = json!({
                "permissions": permissions,
                "redirectors": redirectors,
                "conditions": conditions(asked),
            });
            if *replace {
                return put(at(role), Some(body));
            }
            if let Some(object) = body.as_object_mut() {
                object.insert("role".to_owned(), role.as_str().into());
            }
            post("/roles".to_owned(), body)
        }
        Role::Delete { role } => delete(at(role)),
        Role::Bind(bind) => {
            let Bind { role, user, user_group, key, scope: place, conditions: asked, until } =
                &**bind;
            let body = given(json!({
                "role": role,
                "user": user,
                "group": user_group,
                "key": key,
                "scope": scope(place),
                "conditions": conditions(asked),
                "expires": until,
            }));
            post("/bindings".to_owned(), body)
        }
        Role::Unbind { binding } => delete(format!("/bindings/{}", part(binding))),
    }
}

fn request(command: &Request) -> Plan {
    match command {
        Request::List { pending } => {
            list(format!("/requests{}", query(&[("pending", pending.then(|| "true".to_owned()))])))
        }
        Request::Approve { request, length, note } => post(
            format!("/requests/{}/approve", part(request)),
            json!({"length_ms": length.map_or(0, millis), "note": note}),
        ),
        Request::Deny { request, note } => {
            post(format!("/requests/{}/deny", part(request)), json!({"note": note}))
        }
    }
}

fn token(command: &Token) -> Plan {
    match command {
        Token::List => list("/tokens".to_owned()),
        Token::Agent { client, uses, ttl } => post(
            "/tokens/agent".to_owned(),
            json!({"client": client, "uses": uses, "ttl_ms": millis(*ttl)}),
        ),
        Token::Relay { region, uses, ttl } => post(
            "/tokens/relay".to_owned(),
            json!({"region": region, "uses": uses, "ttl_ms": millis(*ttl)}),
        ),
        Token::Revoke { token } => delete(format!("/tokens/{}", part(token))),
    }
}

fn relay(command: &Relay) -> Plan {
    match command {
        Relay::List => list("/relays".to_owned()),
        Relay::Drain { relay } => act(format!("/relays/{}/drain", part(relay))),
        Relay::Resume { relay } => act(format!("/relays/{}/resume", part(relay))),
        Relay::Disable { relay } => act(format!("/relays/{}/disable", part(relay))),
        Relay::Enable { relay } => act(format!("/relays/{}/enable", part(relay))),
    }
}

fn api_key(command: &ApiKey) -> Plan {
    match command {
        ApiKey::List => list("/api-keys".to_owned()),
        ApiKey::Create { name, key_file, role, scope: place, from, ttl } => {
            let body = json!({
                "name": name,
                "role": role,
                "scope": scope(place),
                "networks": from,
                "ttl_ms": millis(*ttl),
            });
            Plan { key_file: Some(key_file.clone()), ..post("/api-keys".to_owned(), body) }
        }
        ApiKey::Revoke { key } => delete(format!("/api-keys/{}", part(key))),
    }
}

fn explain(question: &Explain) -> Result<Plan, CliError> {
    let at = match question.at.as_deref() {
        None => None,
        Some(text) => Some(match parse_duration(text) {
            Ok(ago) => format_ms(unix_ms().saturating_sub(millis(ago))),
            Err(_) => text.parse::<jiff::Timestamp>().map(|_| text.to_owned()).map_err(|_| {
                CliError::usage("usage", "--at: a time as in RFC 3339, or how long ago, e.g. 24h")
            })?,
        }),
    };
    let values = [
        ("user", Some(question.user.clone())),
        ("computer", Some(question.computer.clone())),
        ("redirector", Some(question.redirector.clone())),
        ("at", at),
        ("reason", question.reason.then(|| "true".to_owned())),
        ("ticket", question.ticket.then(|| "true".to_owned())),
        ("source", question.source.map(|source| source.to_string())),
    ];
    Ok(show(format!("/explain{}", query(&values))))
}

fn call(method: &str, path: &str, data: Option<&str>) -> Result<Plan, CliError> {
    let usage = |text: &str| CliError::usage("usage", text);
    let method: Method = method.to_uppercase().parse().map_err(|_| usage("not a method"))?;
    if !path.starts_with("/api/") {
        return Err(usage("a path that begins with /api/ is expected"));
    }
    let body = data.map(serde_json::from_str).transpose();
    let body = body.map_err(|error| usage(&format!("--data is no JSON: {error}")))?;
    let mut plan = Plan::new(method, String::new(), body, Answer::One);
    plan.ask.target = path.to_owned();
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: AdminCommand,
    }

    fn plan(words: &str) -> Plan {
        try_plan(words.split(' ')).unwrap()
    }

    fn try_plan<'a>(words: impl Iterator<Item = &'a str>) -> Result<Plan, CliError> {
        Plan::of(&Line::try_parse_from(words).unwrap().command)
    }

    #[test]
    fn what_is_typed_stays_one_part_one_value_or_json() {
        for (words, method, target, body) in [
            ("a user disable ../x", "POST", "/api/v1/users/..%2Fx/disable", Value::Null),
            (
                "a user group jane n/s --remove",
                "DELETE",
                "/api/v1/users/jane/groups/n%2Fs",
                Value::Null,
            ),
            ("a client unlock acme/b", "DELETE", "/api/v1/clients/acme/b/lockdown", Value::Null),
            (
                "a computer list a&b --online",
                "GET",
                "/api/v1/computers?query=a%26b&online=true",
                Value::Null,
            ),
            (
                "a computer tag p/c/k os=x",
                "PUT",
                "/api/v1/computers/p%2Fc%2Fk/tags/os%3Dx",
                Value::Null,
            ),
            (
                "a computer rename p/c/k n&m",
                "PUT",
                "/api/v1/computers/p%2Fc%2Fk/name",
                json!({"name": "n&m"}),
            ),
            (
                "a partner erase a/b --yes",
                "POST",
                "/api/v1/partners/a%2Fb/erase",
                json!({"partner": "a/b"}),
            ),
            (
                "a backup f --recipient age1a --recipient age1&c",
                "GET",
                "/api/v1/backup?recipients=age1a%2Cage1%26c",
                Value::Null,
            ),
            (
                "a oidc link jane d/r s&u",
                "PUT",
                "/api/v1/users/jane/links/d%2Fr",
                json!({"subject": "s&u"}),
            ),
            (
                "a device disable sha256:0 --everybody",
                "POST",
                "/api/v1/installation/devices/sha256%3A0/disable",
                json!({"reason": ""}),
            ),
            ("a computer remove p/c/k --yes", "DELETE", "/api/v1/computers/p%2Fc%2Fk", Value::Null),
            (
                "a role bind t --user jane --client acme/b --require reason --max-length 2h",
                "POST",
                "/api/v1/bindings",
                json!({
                    "role": "t",
                    "user": "jane",
                    "scope": {"installation": false, "client": "acme/b"},
                    "conditions": {
                        "reason": true, "ticket": false, "approval": false,
                        "networks": [], "length_ms": 7_200_000,
                    },
                }),
            ),
        ] {
            let plan = plan(words);
            assert_eq!(plan.ask.method.as_str(), method, "{words}");
            assert_eq!(plan.ask.target, target, "{words}");
            assert_eq!(plan.ask.body.unwrap_or_default(), body, "{words}");
        }
        assert!(plan("a client erase acme/b").destroys);
        assert!(plan("a computer remove p/c/k").destroys);
        let erase = plan("a partner erase acme");
        assert!(erase.destroys && erase.yes == "acme");
        // The wrong half of a key stays here, wherever in the list it was pasted.
        for pasted in [
            ["AGE-SECRET-KEY-1Q"].as_slice(),
            &["age1a,AGE-SECRET-KEY-1Q"],
            &["age1a, age-secret-key-1q"],
            &["age1a", " AGE-SECRET-KEY-1Q"],
            &["age1a AGE-SECRET-KEY-1Q"],
        ] {
            let given = pasted.iter().flat_map(|text| ["--recipient", text]);
            let refused = try_plan(["a", "backup", "f"].into_iter().chain(given)).err().unwrap();
            assert_eq!(refused.code, "usage", "{pasted:?}");
            assert!(!refused.to_string().to_lowercase().contains("1q"), "{refused}");
        }
        // A secret is no argument, and no part of the address.
        let add = plan("a oidc add d --issuer https://i --client-id c --secret-file /s");
        assert_eq!(add.files, [("secret", PathBuf::from("/s"))]);
        assert!(add.ask.body.unwrap().get("secret").is_none());
        assert!(!plan("a computer remove p/c/k --yes").destroys);
        assert!(!plan("a client erase acme/b --yes").destroys);
        let at = plan("a explain jane pc ssh --at 24h").ask.target;
        assert!(
            at.starts_with("/api/v1/explain?user=jane&computer=pc&redirector=ssh&at=20"),
            "{at}"
        );
    }
}
