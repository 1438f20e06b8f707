//! The mediator decides at one place (docs/access.md, `mediator/src/authz.rs`), as far as sources
//! tell: what decides is called from there alone; each act, control message and route of the API
//! reaches it, or concerns only whoever asks; nobody else compares permissions or names of roles; and
//! what roles cover is read by few modules, in lists only with the reader's scope.
//!
//! Each table is exact both ways: what is not listed is found, and so is what is listed in vain.

mod tables;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Findings,
    scan::{self, Code, Function},
    sources::File,
};
use tables::{ASKS, COMPARISONS, DISPATCHES, Dispatch, LISTS, ONLY, OPEN, Only, QUERIES, SCOPED};

const ROOT: &str = "mediator/src/";
const API: &str = "mediator/src/http/api/";
const AUTHZ: &str = "mediator/src/authz.rs";

/// All that does not fit.
pub(crate) fn check(files: &[File]) -> Findings {
    let sources = Sources::of(files);
    let mut findings = Vec::new();
    if !sources.code.contains_key(AUTHZ) {
        findings.push(format!("{AUTHZ} is missing: where is it decided?"));
    }
    sources.only(&mut findings);
    sources.comparisons(&mut findings);
    sources.role_names(&mut findings);
    sources.actors(&mut findings);
    for dispatch in DISPATCHES {
        sources.dispatch(dispatch, &mut findings);
    }
    sources.operations(&mut findings);
    sources.queries(&mut findings);
    sources.lists(&mut findings);
    findings
}

struct Sources {
    /// By path, without tests.
    code: BTreeMap<String, Code>,
    functions: Vec<Function>,
    migrations: String,
}

impl Sources {
    fn of(files: &[File]) -> Self {
        let is_test = |path: &str| path.ends_with("tests.rs") || path.contains("/tests/");
        let ours = files.iter().filter(|f| f.is_rust() && f.path.starts_with(ROOT));
        let code: BTreeMap<_, _> =
            ours.filter(|f| !is_test(&f.path)).map(|f| (f.path.clone(), Code::of(f))).collect();
        let functions = code.iter().flat_map(|(path, code)| code.functions(path)).collect();
        let sql = files.iter().filter(|f| f.path.starts_with("mediator/migrations/"));
        let migrations = sql.map(|f| f.text.as_str()).collect::<Vec<_>>().join("\n");
        Self { code, functions, migrations }
    }

    fn only(&self, findings: &mut Findings) {
        for Only { what, files } in ONLY {
            let mut met = BTreeSet::new();
            for (path, code) in self.code.iter().filter(|(path, _)| !is_roles(path)) {
                let defined = format!("fn {what}");
                let calls = code.find(what).filter(|at| {
                    let before = at.saturating_sub(3);
                    let after = code.text.get(at + what.len()..).unwrap_or_default();
                    // What is defined there, or told apart, is not made.
                    !code.text.get(before..).is_some_and(|text| text.starts_with(&defined))
                        && !after.trim_start().starts_with("=>")
                });
                for at in calls {
                    let own = below_root(path);
                    if !files.contains(&own) {
                        let line = code.line(at);
                        findings.push(format!("{path}:{line} has {what}: ask {AUTHZ} instead"));
                    }
                    met.insert(own);
                }
            }
            in_vain(what, files, &met, findings);
        }
    }

    fn comparisons(&self, findings: &mut Findings) {
        let others = self.code.iter().filter(|(path, _)| !is_roles(path) && *path != AUTHZ);
        for (path, code) in others {
            for at in scan::whole(&code.text, "use") {
                let text = code.text.get(at..).and_then(|t| t.split(';').next());
                let named = |word| text.is_some_and(|t| scan::whole(t, word).next().is_some());
                if named("roles") && (named("decide") || named("*")) {
                    let line = code.line(at);
                    findings
                        .push(format!("{path}:{line} imports the decision: ask {AUTHZ} instead"));
                }
            }
            for what in COMPARISONS {
                for at in code.find(what) {
                    let line = code.line(at);
                    findings.push(format!("{path}:{line} compares ({what}): {AUTHZ} decides"));
                }
            }
            for at in code.find("Permission::") {
                let rest = code.text.get(at..).unwrap_or_default();
                let after = rest
                    .trim_start_matches("Permission::")
                    .trim_start_matches(scan::is_word)
                    .trim_start();
                if after.starts_with("=>") || after.starts_with('|') {
                    let line = code.line(at);
                    findings
                        .push(format!("{path}:{line} tells permissions apart: {AUTHZ} decides"));
                }
            }
        }
    }

    /// A role is judged by what it permits, never by its name.
    fn role_names(&self, findings: &mut Findings) {
        const ROLES: &str = "mediator/src/roles/role.rs";
        // The words of a list of bad passwords.
        const WORDS: &str = "mediator/src/password.rs";
        let Some(roles) = self.code.get(ROLES) else {
            return findings.push(format!("{ROLES} is missing: which roles are built in?"));
        };
        let names: BTreeSet<_> = roles
            .words
            .iter()
            .filter(|(at, _)| {
                let before = roles.text.get(..*at).unwrap_or_default();
                before.lines().next_back().is_some_and(|l| l.ends_with(": &str = "))
            })
            .map(|(_, word)| word.as_str())
            .collect();
        for (path, code) in self.code.iter().filter(|(p, _)| *p != ROLES && *p != WORDS) {
            let named = code.words.iter().filter(|(_, word)| names.contains(word.as_str()));
            // `"owner": …` is a name in an answer.
            let is_key = |at: &usize, word: &str| {
                code.text.get(at + word.len() + 2..).is_some_and(|after| after.starts_with(": "))
            };
            for (at, _) in named.filter(|(at, word)| !is_key(at, word)) {
                let line = code.line(*at);
                findings
                    .push(format!("{path}:{line} names a built-in role: judge what it permits"));
            }
        }
    }

    /// Whatever [`ASKS`] of an actor really asks.
    fn actors(&self, findings: &mut Findings) {
        const ACTOR: &str = "mediator/src/admin/actor.rs";
        let asking = self.functions.iter().filter(|f| f.path == ACTOR && f.name.starts_with("may"));
        for function in asking {
            let mut seen = BTreeSet::new();
            let decides =
                |call: &str| ["holder.decide", "may_grant"].iter().any(|end| call.ends_with(end));
            if !self.reaches(function, &decides, &mut seen) {
                findings.push(format!("{ACTOR}: {} asks nobody", function.name));
            }
        }
    }

    fn dispatch(&self, dispatch: &Dispatch, findings: &mut Findings) {
        let path = format!("{ROOT}{}", dispatch.path);
        let Dispatch { function, of, own, .. } = dispatch;
        let body = self.functions.iter().find(|f| f.path == path && f.name == *function);
        let Some((before, arms)) = body.and_then(|f| scan::arms(&f.body, of)) else {
            return findings.push(format!("{path}: {function} does not tell {of} apart any more"));
        };
        let asked = scan::calls(before).any(asks);
        let mut met = BTreeSet::new();
        for (pattern, expression) in arms {
            let names = variants(pattern, of);
            let listed: Vec<_> =
                own.iter().map(|(name, _)| *name).filter(|name| names.contains(name)).collect();
            let code = Function {
                path: path.clone(),
                name: String::new(),
                head: String::new(),
                body: expression.to_owned(),
            };
            let reaches = asked || self.reaches(&code, &asks, &mut BTreeSet::new());
            let refuses = names.is_empty() && expression.contains("BAD_REQUEST");
            if !reaches && !refuses && listed.len() < names.len().max(1) {
                findings.push(format!("{path}: {function} does {pattern} without asking {AUTHZ}"));
            }
            if !reaches {
                met.extend(listed);
            }
        }
        let names: Vec<_> = own.iter().map(|(name, _)| *name).collect();
        in_vain(&format!("{function} in {path}"), &names, &met, findings);
    }

    /// Does a call of this body, or of what it calls, do that?
    fn reaches(
        &self,
        from: &Function,
        does: &dyn Fn(&str) -> bool,
        seen: &mut BTreeSet<(String, String)>,
    ) -> bool {
        if scan::calls(&from.body).any(does) {
            return true;
        }
        let called: Vec<_> = scan::calls(&from.body).flat_map(|c| self.called(from, c)).collect();
        called.into_iter().any(|function| {
            // Its arms are looked at one by one.
            let arms = DISPATCHES.iter().any(|d| {
                format!("{ROOT}{}", d.path) == function.path && d.function == function.name
            });
            arms || seen.insert((function.path.clone(), function.head.clone()))
                && self.reaches(function, does, seen)
        })
    }

    /// The functions that a call can mean, by names.
    fn called<'a>(&'a self, from: &Function, call: &str) -> Vec<&'a Function> {
        let name = call.rsplit([':', '.']).next().unwrap_or_default();
        let owner = call.strip_suffix(name).unwrap_or_default().trim_end_matches([':', '.']);
        let owner = owner.rsplit([':', '.']).next().unwrap_or_default();
        let is_method = call.strip_suffix(name).is_some_and(|before| before.ends_with('.'));
        let named = self.functions.iter().filter(|f| f.name == name);
        let here = |f: &Function| f.path == from.path;
        let fits = |f: &Function| match (owner, is_method) {
            ("", false) => {
                here(f)
                    || self.imports(&from.path, name) && self.imports(&from.path, module(&f.path))
            }
            ("self", true) | ("Self" | "self" | "super", false) => {
                here(f) || directory(&f.path) == directory(&from.path)
            }
            ("vault", true) => f.path.starts_with("mediator/src/vault/"),
            (_, true) => false,
            (owner, false) => module(&f.path) == owner || self.implements(&f.path, owner),
        };
        let found: Vec<_> = named.filter(|f| fits(f)).collect();
        // A module's own name, said within it, is another module's of that name.
        let wants_here = ["", "self", "super", "Self"].contains(&owner);
        match found.iter().any(|f| here(f) == wants_here) {
            true => found.into_iter().filter(|f| here(f) == wants_here).collect(),
            false => found,
        }
    }

    fn imports(&self, path: &str, name: &str) -> bool {
        self.code.get(path).is_some_and(|code| {
            let mut uses = scan::whole(&code.text, "use");
            uses.any(|at| {
                let text = code.text.get(at..).unwrap_or_default();
                let text = text.split(';').next().unwrap_or_default();
                scan::whole(text, name).next().is_some()
            })
        })
    }

    fn implements(&self, path: &str, kind: &str) -> bool {
        let Some(code) = self.code.get(path) else { return false };
        scan::whole(&code.text, &format!("impl {kind}")).next().is_some()
    }

    /// Every route leads to an act, or asks by itself.
    fn operations(&self, findings: &mut Findings) {
        let (mut met, mut routes) = (BTreeSet::new(), 0);
        let acts = |call: &str| asks(call) || ["call.act", "call.one", "call.page"].contains(&call);
        for (path, code) in self.code.iter().filter(|(path, _)| path.starts_with(API)) {
            for what in ["api.operation(", "api.raw::<"] {
                for at in code.find(what) {
                    routes += 1;
                    let line = code.line(at);
                    let open = code.text.get(at..).and_then(|t| t.find('(')).unwrap_or_default();
                    let call = code.text.get(at + open..).unwrap_or_default();
                    let handler = scan::arguments(call).pop().unwrap_or_default().to_owned();
                    let named = |f: &&Function| {
                        f.path == *path && scan::whole(&handler, &f.name).next().is_some()
                    };
                    let Some(function) = self.functions.iter().find(named) else {
                        findings.push(format!("{path}:{line}: {handler} is no function here"));
                        continue;
                    };
                    if self.reaches(function, &acts, &mut BTreeSet::new()) {
                        continue;
                    }
                    match OPEN.iter().find(|(name, _)| *name == function.name) {
                        Some((name, _)) => drop(met.insert(*name)),
                        None => findings.push(format!(
                            "{path}:{line}: {} answers without asking {AUTHZ}",
                            function.name
                        )),
                    }
                }
            }
        }
        if routes == 0 {
            findings.push(format!("{API} declares no operation: how are they declared now?"));
        }
        let names: Vec<_> = OPEN.iter().map(|(name, _)| *name).collect();
        in_vain("operations without a decision", &names, &met, findings);
    }

    fn queries(&self, findings: &mut Findings) {
        let tables: BTreeSet<&str> = self
            .migrations
            .split("CREATE TABLE ")
            .skip(1)
            .filter_map(|rest| rest.split([' ', '(', '\n']).next())
            .collect();
        let mut met: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (path, code) in &self.code {
            let own = below_root(path);
            for (at, word) in &code.words {
                for table in tables_of(word) {
                    if !tables.contains(table) && !table.starts_with('{') {
                        continue;
                    }
                    let line = code.line(*at);
                    if !QUERIES.iter().any(|place| own.starts_with(place)) {
                        findings
                            .push(format!("{path}:{line} queries {table}: the store does that"));
                    }
                    let Some(scoped) = SCOPED.iter().find(|only| only.what == table) else {
                        continue;
                    };
                    met.entry(scoped.what).or_default().insert(own);
                    if !scoped.files.contains(&own) {
                        findings.push(format!("{path}:{line} queries {table}, which roles cover"));
                    }
                }
            }
        }
        for Only { what, files } in SCOPED {
            in_vain(what, files, &met.remove(what).unwrap_or_default(), findings);
        }
    }

    /// What gives rows of all tenants is for those who are listed.
    fn lists(&self, findings: &mut Findings) {
        let store = self.functions.iter().filter(|f| f.path.contains("mediator/src/store/"));
        let of_all = store.filter(|f| {
            let head: String = f.head.split_whitespace().collect::<Vec<_>>().join(" ");
            let narrowed = ["Clause", "partner", "account", "client", "computer", "tree", "Tx"];
            let (given, told) = head.split_once("->").unwrap_or_default();
            let given = given.split_once('(').map_or("", |(_, given)| given);
            told.contains("Vec<") && !narrowed.iter().any(|w| given.contains(w))
        });
        let mut known = BTreeSet::new();
        for function in of_all {
            let call = format!("{}::{}", module(&function.path), function.name);
            let listed = LISTS.iter().find(|only| only.what == call);
            let files = listed.map_or(&[][..], |only| only.files);
            let mut met = BTreeSet::new();
            for (path, code) in &self.code {
                for at in code.find(&format!("{call}(")) {
                    let own = below_root(path);
                    met.insert(own);
                    if !files.contains(&own) {
                        let line = code.line(at);
                        let text = "which is not bound to a reader";
                        findings.push(format!("{path}:{line} asks for {call}, {text}"));
                    }
                }
            }
            in_vain(&call, files, &met, findings);
            known.insert(call);
        }
        for Only { what, .. } in LISTS.iter().filter(|only| !known.contains(only.what)) {
            findings.push(format!("{what} is listed as of all tenants in vain"));
        }
    }
}

fn asks(call: &str) -> bool {
    ASKS.iter().any(|end| {
        call.strip_suffix(end).is_some_and(|before| {
            end.starts_with('.') || !before.chars().next_back().is_some_and(scan::is_word)
        })
    })
}

/// The variants that a pattern names.
fn variants<'a>(pattern: &'a str, of: &str) -> Vec<&'a str> {
    let head = format!("{of}::");
    let names = scan::whole(pattern, &head).filter_map(|at| {
        let rest = pattern.get(at + head.len()..)?;
        rest.split(|c| !scan::is_word(c)).next()
    });
    names.collect()
}

/// The tables that a query names.
fn tables_of(word: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut before = "";
    for part in word.split([' ', '\n', '\\', '(', ')']).filter(|part| !part.is_empty()) {
        if ["FROM", "INTO", "UPDATE", "JOIN"].contains(&before) {
            found.push(part.trim_end_matches([',', ';', '"']));
        }
        before = part;
    }
    found
}

fn in_vain(what: &str, listed: &[&str], met: &BTreeSet<&str>, findings: &mut Findings) {
    for name in listed.iter().filter(|name| !met.contains(**name)) {
        findings
            .push(format!("{what}: {name} is listed in vain (xtask/src/ci/decisions/tables.rs)"));
    }
}

fn is_roles(path: &str) -> bool {
    path.starts_with("mediator/src/roles/")
}

fn below_root(path: &str) -> &str {
    path.strip_prefix(ROOT).unwrap_or(path)
}

/// The module that a file is.
fn module(path: &str) -> &str {
    let path = path.strip_suffix("/mod.rs").or_else(|| path.strip_suffix(".rs")).unwrap_or(path);
    path.rsplit('/').next().unwrap_or_default()
}

fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

#[cfg(test)]
mod tests {
    use super::{super::sources, *};

    /// The tree as it is, with texts changed, all of which must be there, and files added.
    fn changed(changes: &[(&str, &str, &str)]) -> Vec<File> {
        let mut files = sources::load().unwrap();
        for (path, old, new) in changes {
            let path = format!("{ROOT}{path}");
            if old.is_empty() {
                files.push(sources::file(&path, new));
                continue;
            }
            let file = files.iter_mut().find(|f| f.path == path).unwrap();
            assert!(file.text.contains(old), "{path} lacks {old}");
            file.text = file.text.replacen(old, new, 1);
        }
        files
    }

    fn found(changes: &[(&str, &str, &str)]) -> String {
        check(&changed(changes)).join("\n")
    }

    #[test]
    fn accepts_comments_and_tests_that_speak_of_decisions() {
        let new = "//! bindings::rules( and \"owner\"\n\
            #[cfg(test)]\nmod tests { fn a() { bindings::rules(p); x == Permission::Launch } }";
        assert_eq!(found(&[("serve/new.rs", "", new)]), "");
    }

    #[test]
    fn tells_functions_of_one_name_apart() {
        let new = "impl Rotation { fn begin(&self) {} }\n\
            pub(crate) async fn begin(who: Who<'_>) { who.1.may_everywhere(who.0, MAY).await }";
        let arm = "AdminRequest::Status => status(who).await";
        let instead = "AdminRequest::Status => rotation::begin(who).await";
        assert_eq!(found(&[("admin/rotation.rs", "", new), ("admin/handle.rs", arm, instead)]), "");
    }

    #[test]
    fn finds_decisions_made_elsewhere() {
        let new = "use crate::{a, roles::{Act, decide}}; fn f() { bindings::rules(p); if role.permissions.contains(&p) { filter::computers(r) } \
            if p == Permission::Launch { } if name == \"owner\" { } \
            match p { Permission::Launch => 1, _ => 2 } \
            handle(c, Actor::Local, r); Router::new().route(p, h); holder.rules.is_empty(); }";
        let found = found(&[("serve/new.rs", "", new)]);
        for expected in [
            "imports the decision",
            "has bindings::rules(",
            "has filter::computers(",
            "has Permission::",
            "has Actor::Local",
            "has .route(",
            "has holder.rules",
            "compares (permissions.contains()",
            "compares (== Permission::)",
            "tells permissions apart",
            "names a built-in role",
        ] {
            assert!(found.contains(&format!("serve/new.rs:1 {expected}")), "{expected}: {found}");
        }
    }

    #[test]
    fn finds_acts_messages_and_routes_that_ask_nobody() {
        let found = found(&[
            // One of many arms that asks by a function of its own, one by another module's.
            (
                "admin/handle.rs",
                "AdminRequest::Status => status(who).await",
                "AdminRequest::Status => told(who).await",
            ),
            (
                "admin/tokens.rs",
                "actor.may_everywhere(context, &[Permission::ManageRelays]).await?;",
                "",
            ),
            // One whose whole `match` asks before.
            ("admin/relays.rs", "who.1.may_everywhere(who.0, MANAGE).await?;", ""),
            (
                "serve/console.rs",
                "Body::EndSession(wish) => end(line, &row, &wish, responder).await",
                "Body::EndSession(wish) => ended(line, wish).await",
            ),
            ("serve/review.rs", "holder.goes_on(", "holder.stays("),
            ("serve/agent.rs", "holder.goes_on(", "holder.stays("),
            (
                "http/api/places.rs",
                "call.page(AdminRequest::PartnerList, call.query.page(), \"partner\").await",
                "read(&call).await",
            ),
            (
                "admin/actor.rs",
                "self.decide(context, &Object::Installation, any_of).await",
                "Ok(())",
            ),
        ]);
        for expected in [
            "handle does AdminRequest::Status without",
            "handle does AdminRequest::TokenRelay",
            "handle does RelayAct::List",
            "handle does Body::EndSession(wish)",
            "of_session does Body::Renew(asked)",
            "partners answers without asking",
            "may_everywhere asks nobody",
        ] {
            assert!(found.contains(expected), "{expected}: {found}");
        }
    }

    #[test]
    fn finds_queries_and_lists_beyond_the_reader() {
        let new =
            "fn f() { q(\"SELECT * FROM computer\"); computers::find(p, t); tenants::clients(p) }";
        let store = "fn f() { q(\"SELECT a \\\n  FROM access_request r\"); }\n\
            pub(crate) async fn everything(pool: &AnyPool) -> Result<Vec<Row>, StoreError> { x }";
        let asks = "fn f() { fresh::everything(pool) }";
        let found = found(&[
            ("serve/new.rs", "", new),
            ("store/fresh.rs", "", store),
            ("http/new.rs", "", asks),
        ]);
        for expected in [
            "serve/new.rs:1 queries computer: the store does that",
            "serve/new.rs:1 asks for computers::find",
            "serve/new.rs:1 asks for tenants::clients",
            "store/fresh.rs:1 queries access_request, which roles cover",
            "http/new.rs:1 asks for fresh::everything",
        ] {
            assert!(found.contains(expected), "{expected}: {found}");
        }
    }

    #[test]
    fn finds_what_is_listed_in_vain() {
        let found = found(&[
            (
                "serve/relay.rs",
                "Body::Ping(_) => responder.reply",
                "Body::Pong(_) => responder.fail",
            ),
            ("vault/rotate.rs", "credentials::keys(", "credentials::some("),
            ("http/auth.rs", "Holder::load_key(", "holder_of_key("),
        ]);
        for expected in [
            "listen in mediator/src/serve/relay.rs: Ping is listed in vain",
            "credentials::keys: vault/rotate.rs is listed in vain",
            "Holder::load_key(: http/auth.rs is listed in vain",
        ] {
            assert!(found.contains(expected), "{expected}: {found}");
        }
        let none = check(&[]).join("\n");
        assert!(none.contains("where is it decided?") && none.contains("declares no operation"));
    }
}
