//! What `explain` tells: why the path is what it is, for people and as JSON (`docs/explain.md`).
//!
//! Names private addresses of both ends: it goes to the technician who asks and nowhere else.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use adit_endpoint::{CandidateView, CarrierView, EndView, PairView, RelayPathView};
use adit_runtime::{
    cli::{CliError, escape_text},
    output::Output,
};
use serde_json::{Value, json};

use crate::{
    advice,
    commands::table,
    events::{duration_text, ms},
    open::explain::Seen,
    session::Explanation,
    state::KnownComputer,
};

/// What was found, to be told.
pub struct Finding<'a> {
    /// The other end.
    pub computer: &'a KnownComputer,
    /// The session's redirector.
    pub redirector: &'a str,
    /// What was seen.
    pub seen: &'a Seen,
}

/// Is it known what comes of punching, or will nothing more be tried for minutes?
pub fn is_settled(said: &Explanation) -> bool {
    said.carrier == Some("direct") || said.carrier.is_some() && is_tried(said) && is_hopeless(said)
}

/// Has everything been tried once?
pub fn is_tried(said: &Explanation) -> bool {
    let hard = match said.hard.phase {
        "waiting" => said.hard.rounds > 0,
        "predicting" | "birthday" => false,
        _ => true,
    };
    said.exhausted && hard
}

/// Where nothing was heard although it should have worked, fresh sockets may still do it.
fn is_hopeless(said: &Explanation) -> bool {
    let luck = |word: &&str| ["filtered", "no_answer"].contains(word);
    let hard = ["given_up", "waiting"].contains(&said.hard.phase);
    let wait = |word: &&str| ["symmetric_local", "symmetric_peer"].contains(word) && !hard;
    !said.failures.is_empty() && !said.failures.iter().any(|word| luck(word) || wait(word))
}

/// A reason why there is no direct path.
struct Reason {
    code: String,
    what: String,
    todo: &'static str,
}

/// Checks of all pairs of one family and kind of the other end's address.
#[derive(Default)]
struct Checks {
    pairs: usize,
    sent: u64,
    answered: u64,
    heard: bool,
    valid: bool,
    rtt_ms: Option<f64>,
}

impl Checks {
    fn outcome(&self) -> &'static str {
        match self {
            Self { valid: true, .. } => "works",
            Self { answered: 1.., .. } => "silent",
            Self { heard: true, .. } => "one_way",
            Self { sent: 0, .. } => "not_tried",
            _ => "no_answer",
        }
    }
}

fn outcome_text(word: &str) -> &'static str {
    match word {
        "works" => "works",
        "silent" => "worked, but not any more",
        "one_way" => "packets come in, answers do not: one direction only",
        "not_tried" => "not tried yet",
        _ => "no answer",
    }
}

/// Names of the classes of pairs, for people.
fn kind_text(kind: &str) -> &'static str {
    match kind {
        "host" => "own address",
        "server_reflexive" => "address seen by servers",
        "peer_reflexive" => "address found while checking",
        "mapped" => "port opened by the router",
        _ => "other address",
    }
}

fn checks(pairs: &[PairView]) -> BTreeMap<(&'static str, &'static str), Checks> {
    let mut classes: BTreeMap<_, Checks> = BTreeMap::new();
    for pair in pairs {
        let family = if pair.remote.is_ipv4() { "ipv4" } else { "ipv6" };
        let class = classes.entry((family, pair.kind)).or_default();
        class.pairs += 1;
        class.sent += pair.checks;
        class.answered += pair.answers;
        class.heard |= pair.heard;
        if pair.state == "valid" {
            class.valid = true;
            let best = |now: f64| class.rtt_ms.map_or(now, |before: f64| before.min(now));
            class.rtt_ms = pair.rtt_ms.map(best).or(class.rtt_ms);
        }
    }
    classes
}

impl Finding<'_> {
    /// Tells all of it.
    pub fn tell(&self, output: Output) -> Result<(), CliError> {
        output.emit(&self.object())?;
        if output.json {
            return Ok(());
        }
        output.human(self.text().trim_end())
    }

    fn said(&self) -> &Explanation {
        &self.seen.said
    }

    fn is_direct(&self) -> bool {
        self.said().carrier == Some("direct")
    }

    fn path(&self) -> Option<&CarrierView> {
        let said = self.said();
        let used = |c: &&CarrierView| c.state == "active" && Some(c.kind) == said.carrier;
        said.carriers.iter().find(used)
    }

    /// Why it is not direct; empty if it is, or nobody can say yet.
    fn reasons(&self) -> Vec<Reason> {
        if self.is_direct() {
            return Vec::new();
        }
        let reason = |word: &&'static str| match advice::of_word(word) {
            Some(advice) => {
                Reason { code: (*word).to_owned(), what: advice.what.to_owned(), todo: advice.todo }
            }
            None => Reason { code: (*word).to_owned(), what: word.replace('_', " "), todo: "" },
        };
        let said = self.said();
        if !said.direct_wanted {
            return vec![Reason {
                code: "direct_off".to_owned(),
                what: "one of the two ends does not take direct paths".to_owned(),
                todo: "see session.direct in both programs' configurations",
            }];
        }
        said.failures.iter().map(reason).collect()
    }

    fn object(&self) -> Value {
        let said = self.said();
        let reason = |reason: Reason| {
            let todo = (!reason.todo.is_empty()).then_some(reason.todo);
            json!({"code": reason.code, "what": reason.what, "advice": todo})
        };
        let class = |((family, kind), class): ((&str, &str), Checks)| {
            json!({
                "family": family, "kind": kind, "pairs": class.pairs, "sent": class.sent,
                "answered": class.answered, "heard": class.heard, "outcome": class.outcome(),
                "rtt_ms": class.rtt_ms,
            })
        };
        let relay = |relay: &RelayPathView| {
            let sum = relay.own_rtt_ms.zip(relay.peer_rtt_ms).map(|(own, peer)| own + peer);
            json!({
                "name": relay.name, "own_rtt_ms": relay.own_rtt_ms,
                "peer_rtt_ms": relay.peer_rtt_ms, "sum_ms": sum, "joined": relay.joined,
                "in_hand": relay.in_hand,
            })
        };
        json!({
            "computer": self.computer.name,
            "client": self.computer.client,
            "computer_id": self.computer.id.to_string(),
            "session_id": said.session_id,
            "redirector": self.redirector,
            "carrier": said.carrier,
            "settled": self.seen.settled,
            "waited_ms": ms(self.seen.waited),
            "path": self.path(),
            "reasons": self.reasons().into_iter().map(reason).collect::<Vec<_>>(),
            "own": said.own,
            "peer": said.peer,
            "checks": checks(&said.pairs).into_iter().map(class).collect::<Vec<_>>(),
            "pairs": said.pairs,
            "hard": said.hard,
            "relays": said.relays.iter().map(relay).collect::<Vec<_>>(),
            "carriers": said.carriers,
        })
    }

    fn text(&self) -> String {
        let said = self.said();
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", self.headline());
        for reason in self.reasons() {
            let _ = writeln!(text, "Why:        {}", reason.what);
            if !reason.todo.is_empty() {
                let _ = writeln!(text, "  to do:    {}", reason.todo);
            }
        }
        if let Some(hard) = self.hard_text() {
            let _ = writeln!(text, "Hard NAT:   {hard}");
        }
        let _ = writeln!(text, "\nThis end:   {}", end_text(&said.own));
        candidates(&mut text, &said.own.candidates);
        let _ = writeln!(text, "Other end:  {}", end_text(&said.peer));
        candidates(&mut text, &said.peer.candidates);
        let _ = write!(text, "\nChecks of the other end's addresses:");
        if said.pairs.is_empty() {
            let _ = writeln!(text, " none");
        } else {
            let _ = writeln!(text, "\n{}", self.check_rows());
        }
        let _ = write!(text, "\nRelays:");
        if said.relays.is_empty() {
            let _ = writeln!(text, " none");
        } else {
            let _ = writeln!(text, "\n{}", self.relay_rows());
        }
        text
    }

    fn headline(&self) -> String {
        let said = self.said();
        let path = escape_text(&self.computer.path());
        let rtt = |rtt: Option<f64>| {
            rtt.map(|rtt| format!(", round trip {}", ms_text(rtt))).unwrap_or_default()
        };
        let used = self.path();
        let measured = rtt(used.and_then(|path| path.rtt_ms));
        match said.carrier {
            Some("direct") => {
                let remote = used.and_then(|path| path.remote);
                let to = remote.map(|remote| format!(" with {remote}")).unwrap_or_default();
                let kind = remote.and_then(|remote| {
                    said.pairs.iter().find(|pair| pair.remote == remote).map(|pair| pair.kind)
                });
                let by = kind.map(|kind| format!(" ({})", kind_text(kind))).unwrap_or_default();
                format!("{path} is reached directly{to}{by}{measured}.")
            }
            Some(_) => {
                let relay = used.and_then(|path| path.relay.as_deref()).unwrap_or("a relay");
                let relay = escape_text(relay);
                let tls = used.is_some_and(|path| path.way == Some("tls"));
                let tls = if tls { " inside TLS" } else { "" };
                let so_far = match self.seen.settled {
                    true => "",
                    false => " so far; a direct path is still looked for: try a longer --wait",
                };
                format!("{path} is reached through relay {relay}{tls}{measured}{so_far}.")
            }
            None => format!("{path} is not reached: there is no path."),
        }
    }

    fn hard_text(&self) -> Option<String> {
        let hard = &self.said().hard;
        let what = match hard.phase {
            "idle" => return None,
            "waiting" if hard.rounds == 0 => "about to be probed",
            "waiting" => "probed without luck; the next round comes in minutes",
            "predicting" => "predicted ports are being tried",
            "birthday" => "random ports are being tried",
            "given_up" => "probed without luck; given up",
            "hit" => "a port was found",
            other => other,
        };
        let sockets = match hard.sockets {
            0 => String::new(),
            sockets => format!(", {sockets} sockets open"),
        };
        Some(format!("{what} ({} rounds, {} probes{sockets})", hard.rounds, hard.probes))
    }

    fn check_rows(&self) -> comfy_table::Table {
        let mut rows = table(&["", "ADDRESSES", "PAIRS", "SENT", "ANSWERED", "OUTCOME"]);
        for ((family, kind), class) in checks(&self.said().pairs) {
            let rtt = class.rtt_ms.map(|rtt| format!(", {}", ms_text(rtt))).unwrap_or_default();
            rows.add_row([
                if family == "ipv4" { "IPv4" } else { "IPv6" }.to_owned(),
                kind_text(kind).to_owned(),
                class.pairs.to_string(),
                class.sent.to_string(),
                class.answered.to_string(),
                format!("{}{rtt}", outcome_text(class.outcome())),
            ]);
        }
        rows
    }

    fn relay_rows(&self) -> comfy_table::Table {
        let mut rows = table(&["RELAY", "FROM HERE", "FROM THERE", "STATE"]);
        let rtt = |rtt: Option<f64>| rtt.map_or_else(|| "not known".to_owned(), ms_text);
        for relay in &self.said().relays {
            let used = self.path().and_then(|path| path.relay.as_ref()) == Some(&relay.name);
            let state = match (used, relay.in_hand, relay.joined) {
                (true, ..) => "in use",
                (_, true, _) => "in hand",
                (_, _, true) => "joined; the other end is not there",
                _ => "not joined",
            };
            rows.add_row([
                escape_text(&relay.name),
                rtt(relay.own_rtt_ms),
                rtt(relay.peer_rtt_ms),
                state.to_owned(),
            ]);
        }
        rows
    }
}

fn ms_text(ms: f64) -> String {
    duration_text(Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default())
}

/// What kind of NAT an end has.
fn end_text(end: &EndView) -> String {
    if end.udp_blocked == Some(true) {
        return "no UDP passes".to_owned();
    }
    if end.mapping == "unknown" && end.filtering == "unknown" {
        return "kind of NAT not known".to_owned();
    }
    let step = match end.port_step {
        0 => String::new(),
        step => format!(", in steps of {step}"),
    };
    format!("{}{step}; {}", advice::mapping(end.mapping), advice::filtering(end.filtering))
}

fn candidates(text: &mut String, candidates: &[CandidateView]) {
    let mut classes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for candidate in candidates {
        classes.entry(candidate.kind).or_default().push(candidate.address.to_string());
    }
    if classes.is_empty() {
        let _ = writeln!(text, "            no address");
    }
    for (kind, addresses) in classes {
        let _ = writeln!(text, "            {}: {}", kind_text(kind), addresses.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use adit_endpoint::HardView;

    use super::*;
    use crate::state::computer::tests::computer;

    fn pair(remote: &str, state: &'static str, answers: u64, heard: bool) -> PairView {
        PairView {
            remote: remote.parse().unwrap(),
            kind: "server_reflexive",
            state,
            rtt_ms: (state == "valid").then_some(7.0),
            checks: 6,
            answers,
            heard,
            mapped: None,
        }
    }

    fn relayed(failures: Vec<&'static str>) -> Explanation {
        let candidate = CandidateView { kind: "host", address: "10.0.0.2:5".parse().unwrap() };
        let symmetric = EndView {
            candidates: vec![candidate],
            mapping: "address-and-port-dependent",
            filtering: "unknown",
            ..EndView::default()
        };
        Explanation {
            session_id: "s".into(),
            age_ms: 1,
            carrier: Some("relayed"),
            direct_wanted: true,
            exhausted: true,
            failures,
            own: symmetric.clone(),
            peer: symmetric,
            pairs: vec![
                pair("203.0.113.1:1", "unanswered", 0, false),
                pair("203.0.113.1:2", "unanswered", 0, true),
            ],
            hard: HardView { phase: "idle", ..HardView::default() },
            relays: vec![RelayPathView {
                name: "relay:443".into(),
                own_rtt_ms: Some(10.0),
                peer_rtt_ms: Some(5.0),
                joined: true,
                in_hand: true,
            }],
            carriers: vec![CarrierView {
                number: 1,
                kind: "relayed",
                state: "active",
                silent: false,
                rtt_ms: Some(16.0),
                local: None,
                remote: None,
                relay: Some("relay:443".into()),
                way: Some("raw"),
                slot: Some(0),
            }],
        }
    }

    fn seen(said: Explanation) -> Seen {
        let settled = is_settled(&said);
        Seen { said, waited: Duration::from_secs(1), settled }
    }

    #[test]
    fn a_relayed_path_is_explained_in_words_and_as_an_object() {
        let computer = computer(1, "p/c", "pc\u{1b}[2J");
        let seen = seen(relayed(vec!["symmetric_both", "brand_new"]));
        let finding = Finding { computer: &computer, redirector: "ssh", seen: &seen };
        let text = finding.text();
        for part in [
            "through relay relay:443, round trip 16 ms.",
            "both networks change the port",
            "UPnP",
            "brand new",
            "another port for every destination",
            "own address: 10.0.0.2:5",
            "one direction only",
            "in use",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains("Hard NAT"), "{text}");
        let object = finding.object();
        assert_eq!(object["reasons"][0]["code"], "symmetric_both");
        assert_eq!(object["checks"][0]["pairs"], 2);
        assert_eq!(object["checks"][0]["outcome"], "one_way");
        assert_eq!(object["relays"][0]["sum_ms"], 15.0);
        assert_eq!(object["path"]["kind"], "relayed");
        assert_eq!(object["settled"], true);
    }

    #[test]
    fn it_is_settled_when_nothing_more_comes_within_minutes() {
        let with = |phase, rounds, failure| {
            let said = relayed(vec![failure]);
            let hard = HardView { phase, rounds, ..said.hard.clone() };
            is_settled(&Explanation { hard, ..said })
        };
        assert!(with("idle", 0, "symmetric_both") && with("idle", 0, "udp_blocked"));
        assert!(with("given_up", 3, "symmetric_peer") && with("waiting", 1, "symmetric_peer"));
        assert!(!with("waiting", 0, "symmetric_peer") && !with("birthday", 1, "symmetric_peer"));
        assert!(!with("idle", 0, "no_answer") && !with("idle", 0, "symmetric_local"));
        let early = Explanation { exhausted: false, ..relayed(Vec::new()) };
        assert!(!is_settled(&early));
        let direct = Explanation { carrier: Some("direct"), ..early.clone() };
        assert!(is_settled(&direct));
        assert!(!is_settled(&Explanation { carrier: None, ..early }));
    }
}
