//! Decisions against a model that enumerates everything, over random worlds.

use std::collections::BTreeSet;

use super::{conditions::Facts, decide::Rule, mint::may_grant, *};

const SEEDS: u64 = 400;
const REDIRECTORS: [&str; 3] = ["ssh", "rdp", "socks"];

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let at = self.below(from.len() as u64);
        from[usize::try_from(at).unwrap()].clone()
    }
}

/// A computer of a random world.
#[derive(Clone, Debug)]
pub(crate) struct Pc {
    pub(crate) partner: String,
    pub(crate) client: String,
    pub(crate) id: String,
    pub(crate) groups: BTreeSet<String>,
    pub(crate) tags: BTreeSet<String>,
}

impl Pc {
    fn object(&self) -> Object {
        Object::Computer {
            partner: self.partner.clone(),
            client: self.client.clone(),
            computer: self.id.clone(),
            groups: self.groups.clone(),
            tags: self.tags.clone(),
        }
    }
}

/// Random labels of a computer.
pub(crate) fn labels(random: &mut Random, of: &[&str]) -> BTreeSet<String> {
    of.iter().filter(|_| random.one_in(3)).map(|label| (*label).to_owned()).collect()
}

/// Two partners with two clients with two computers each.
fn world(random: &mut Random) -> Vec<Pc> {
    let mut pcs = Vec::new();
    for n in 0..8 {
        pcs.push(Pc {
            partner: format!("p{}", n / 4),
            client: format!("c{}", n / 2),
            id: format!("k{n}"),
            groups: labels(random, &["g", "h"]),
            tags: labels(random, &["a=1", "b=2"]),
        });
    }
    pcs
}

/// A scope in a world; also ones that lie in another partner.
pub(crate) fn scope(random: &mut Random, pcs: &[Pc]) -> Scope {
    let pc = random.pick(pcs);
    let partner = pc.partner.clone();
    match random.below(6) {
        0 => Scope::Installation,
        1 => Scope::Partner(partner),
        2 => Scope::Client { partner, client: pc.client },
        3 => Scope::Group { partner, label: random.pick(&["g".into(), "h".into()]) },
        4 => Scope::Tag { partner, label: random.pick(&["a=1".into(), "b=2".into()]) },
        _ => Scope::Computer { partner, client: pc.client, computer: pc.id },
    }
}

/// Conditions, mostly none; `strict`: how rare none are.
pub(crate) fn conditions(random: &mut Random, rare: u64) -> Conditions {
    Conditions {
        reason: random.one_in(rare),
        ticket: random.one_in(rare),
        approval: random.one_in(rare),
        hours: random.one_in(rare).then(|| {
            random.pick(&["00:00-12:00".parse().unwrap(), "06:00-18:00".parse().unwrap()])
        }),
        mfa_age_ms: random.one_in(rare).then(|| random.pick(&[1_000, 60_000])),
        networks: match random.one_in(rare) {
            true => random.pick(&[
                vec!["192.0.2.0/24".parse().unwrap()],
                vec!["192.0.2.0/25".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            ]),
            false => Vec::new(),
        },
        length_ms: random.one_in(rare).then(|| random.pick(&[1_000, 3_600_000])),
    }
}

/// A built-in role or any set of permissions.
pub(crate) fn role(random: &mut Random, rare: u64) -> Role {
    if random.one_in(2) {
        let (role, _) = random.pick(&Role::builtins().collect::<Vec<_>>());
        return role;
    }
    Role {
        id: "r".into(),
        name: "custom".into(),
        permissions: Permission::ALL.into_iter().filter(|_| random.one_in(3)).collect(),
        redirectors: match random.one_in(2) {
            true => Redirectors::All,
            false => Redirectors::Only(
                REDIRECTORS.iter().filter(|_| random.one_in(2)).map(|r| (*r).into()).collect(),
            ),
        },
        conditions: conditions(random, rare),
    }
}

fn rules(random: &mut Random, pcs: &[Pc], count: u64, rare: u64) -> Vec<Rule> {
    (0..count)
        .map(|n| Rule {
            binding: format!("b{n}"),
            role: role(random, rare),
            scope: scope(random, pcs),
            conditions: conditions(random, rare),
            expires_ms: random.one_in(4).then(|| random.below(200_000_000)),
        })
        .collect()
}

/// Circumstances, of an act that may have begun a while ago.
pub(crate) fn facts(random: &mut Random) -> Facts {
    let now_ms = random.below(172_800_000);
    let at = |random: &mut Random| random.below(172_800_000);
    Facts {
        now_ms,
        began_ms: now_ms.saturating_sub(random.pick(&[0, 500, 2_000, 4_000_000])),
        source: random.pick(&[
            None,
            Some("192.0.2.7".parse().unwrap()),
            Some("192.0.2.200".parse().unwrap()),
            Some("::ffff:192.0.2.7".parse().unwrap()),
            Some("2001:db8::1".parse().unwrap()),
        ]),
        mfa_ms: random.one_in(2).then(|| now_ms.saturating_sub(random.below(70_000))),
        reason: random.one_in(2),
        ticket: random.one_in(2),
        approved_until_ms: random.one_in(2).then(|| at(random)),
    }
}

fn acts() -> impl Iterator<Item = Act<'static>> {
    let others = Permission::ALL.into_iter().filter(|p| *p != Permission::Launch).map(Act::of);
    others.chain(REDIRECTORS.into_iter().map(Act::launch))
}

/// The model: sets of computers and of acts, spelled out.
fn model(rule: &Rule, act: Act<'_>, pc: &Pc, pcs: &[Pc], facts: &Facts) -> bool {
    let inside: Vec<&str> = match &rule.scope {
        Scope::Installation => pcs.iter().map(|pc| pc.id.as_str()).collect(),
        Scope::Partner(p) => {
            pcs.iter().filter(|k| k.partner == *p).map(|k| k.id.as_str()).collect()
        }
        Scope::Client { client, .. } => {
            pcs.iter().filter(|k| k.client == *client).map(|k| k.id.as_str()).collect()
        }
        Scope::Group { partner, label } => pcs
            .iter()
            .filter(|k| k.partner == *partner && k.groups.contains(label))
            .map(|k| k.id.as_str())
            .collect(),
        Scope::Tag { partner, label } => pcs
            .iter()
            .filter(|k| k.partner == *partner && k.tags.contains(label))
            .map(|k| k.id.as_str())
            .collect(),
        Scope::Computer { computer, .. } => vec![computer.as_str()],
    };
    let role = &rule.role;
    let has = |permission| role.permissions.contains(&permission);
    let permits = match (act.permission, act.redirector) {
        (Permission::Launch, Some(name)) => {
            has(Permission::Launch)
                && match &role.redirectors {
                    Redirectors::All => true,
                    Redirectors::Only(names) => names.contains(name),
                }
        }
        (Permission::SeeComputers, _) => has(Permission::SeeComputers) || has(Permission::Launch),
        (other, _) => has(other),
    };
    let met = |c: &Conditions| {
        let hour = facts.now_ms / 3_600_000 % 24;
        let hours = match c.hours.as_ref().map(ToString::to_string).as_deref() {
            None => true,
            Some("00:00-12:00") => hour < 12,
            Some(_) => (6..18).contains(&hour),
        };
        let low = ["192.0.2.7", "::ffff:192.0.2.7"];
        let from = facts.source.map(|ip| ip.to_string()).unwrap_or_default();
        let network = match c.networks.len() {
            0 => true,
            1 => low.contains(&from.as_str()) || from == "192.0.2.200",
            _ => low.contains(&from.as_str()) || from == "2001:db8::1",
        };
        let mfa = match (c.mfa_age_ms, facts.mfa_ms) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(age), Some(at)) => at + age >= facts.began_ms,
        };
        let approved = facts.approved_until_ms.is_some_and(|end| end > facts.now_ms);
        let short = c.length_ms.is_none_or(|most| facts.now_ms < facts.began_ms + most);
        let all = (!c.reason || facts.reason)
            && (!c.ticket || facts.ticket)
            && (!c.approval || approved)
            && short;
        match act.permission.needs() {
            Needs::Gates => hours && network,
            Needs::SecondFactor => hours && network && mfa,
            Needs::Everything => hours && network && mfa && all,
        }
    };
    let current = rule.expires_ms.is_none_or(|end| facts.now_ms < end);
    inside.contains(&pc.id.as_str())
        && permits
        && current
        && met(&role.conditions)
        && met(&rule.conditions)
}

fn context(partner: &str, facts: &Facts) -> Context {
    Context { partner: partner.to_owned(), facts: facts.clone() }
}

fn until(verdict: &Verdict<'_>) -> Option<u64> {
    match verdict {
        Verdict::Allow { until_ms, .. } => Some(*until_ms),
        _ => None,
    }
}

#[test]
fn decisions_are_those_of_the_model_and_no_rule_passes_the_wall() {
    let mut allowed = 0;
    for seed in 0..SEEDS {
        let random = &mut Random(seed);
        let pcs = world(random);
        let rules = rules(random, &pcs, seed % 6, 5);
        let facts = facts(random);
        for (pc, act) in pcs.iter().flat_map(|pc| acts().map(move |act| (pc, act))) {
            let verdict = decide(&rules, act, &pc.object(), &context("p0", &facts));
            let expected =
                pc.partner == "p0" && rules.iter().any(|rule| model(rule, act, pc, &pcs, &facts));
            let got = until(&verdict);
            assert_eq!(got.is_some(), expected, "seed {seed} {act:?} {pc:?} {rules:#?}");
            assert!(got.is_none_or(|until| until > facts.now_ms), "seed {seed}");
            if pc.partner != "p0" || rules.is_empty() {
                assert_eq!(verdict, Verdict::Unknown, "seed {seed}");
            }
            allowed += u64::from(expected);
        }
    }
    assert!(allowed > SEEDS, "the worlds allow too little to show anything: {allowed}");
}

#[test]
fn a_further_rule_never_takes_access_away_or_shortens_it() {
    for seed in 0..SEEDS {
        let random = &mut Random(seed);
        let pcs = world(random);
        let more = rules(random, &pcs, 5, 4);
        let facts = facts(random);
        for (pc, act) in pcs.iter().flat_map(|pc| acts().map(move |act| (pc, act))) {
            let mut before = None;
            let mut known = false;
            for count in 0..=more.len() {
                let verdict = decide(&more[..count], act, &pc.object(), &context("p0", &facts));
                assert!(until(&verdict) >= before, "seed {seed} {act:?} {pc:?}");
                before = until(&verdict);
                assert!(!known || verdict != Verdict::Unknown, "seed {seed} {act:?} {pc:?}");
                known = verdict != Verdict::Unknown;
            }
        }
    }
}

#[test]
fn a_scope_that_contains_another_covers_all_of_it_whatever_the_labels() {
    for seed in 0..SEEDS * 5 {
        let random = &mut Random(seed);
        let pcs = world(random);
        let (outer, inner) = (scope(random, &pcs), scope(random, &pcs));
        if outer.contains(&inner) {
            for pc in world(random) {
                let object = pc.object();
                assert!(!inner.covers(&object) || outer.covers(&object), "{outer:?} {inner:?}");
            }
        }
    }
}

#[test]
fn nobody_grants_more_than_is_held() {
    let mut granted = 0;
    for seed in 0..SEEDS * 20 {
        let random = &mut Random(seed);
        let pcs = world(random);
        let mine = rules(random, &pcs, 3, 12);
        let (role, scope) = (role(random, 12), scope(random, &pcs));
        let (given, expires_ms) = (conditions(random, 12), Some(random.below(200_000_000)));
        let now = facts(random);
        let may = may_grant(&mine, &context("p0", &now), &role, &scope, &given, expires_ms);
        if may.is_err() {
            continue;
        }
        granted += 1;
        let new = Rule { binding: "n".into(), role, scope, conditions: given, expires_ms };
        let facts = facts(random);
        for (pc, act) in pcs.iter().flat_map(|pc| acts().map(move |act| (pc, act))) {
            let of =
                |rules: &[Rule]| until(&decide(rules, act, &pc.object(), &context("p0", &facts)));
            let (theirs, own) = (of(std::slice::from_ref(&new)), of(&mine));
            assert!(theirs <= own, "seed {seed} {act:?}: {theirs:?} {own:?} {new:#?} {mine:#?}");
        }
    }
    assert!(granted > 100, "too few grants to show anything: {granted}");
}

#[test]
fn the_documented_table_of_roles_is_the_code() {
    let documented = include_str!("../../../docs/access.md");
    let mut table = String::from("| Permission | Meaning | Conditions |");
    for (role, _) in Role::builtins() {
        table.push_str(&format!(" {} |", role.name));
    }
    table.push_str("\n|---|---|---|---|---|---|---|---|---|\n");
    for permission in Permission::ALL {
        let needs = match permission.needs() {
            Needs::Gates => "hours, network",
            Needs::SecondFactor => "and second factor",
            Needs::Everything => "all",
        };
        table.push_str(&format!("| `{permission}` | {} | {needs} |", permission.meaning()));
        for (role, _) in Role::builtins() {
            let has = role.permissions.contains(&permission);
            table.push_str(if has { " yes |" } else { " |" });
        }
        table.push('\n');
    }
    assert!(documented.contains(&table), "docs/access.md must contain:\n{table}");
}
