//! The gate against rules, clocks and resolvers of the test's own.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use adit_protocol::{ids::ComputerId, keys::SigningKey, target::Transport};
use adit_runtime::{datadir::DataDir, output::Output};

use super::*;
use crate::{consent::CONSENT_TIMEOUT, policy::Source, run::Events};

#[derive(Default)]
struct World {
    addresses: Mutex<Vec<IpAddr>>,
    resolved: AtomicUsize,
    mediator_away: AtomicBool,
    audited: Mutex<Vec<Target>>,
    refused: Mutex<Vec<&'static str>>,
}

struct Shown(Arc<World>);

impl Outside for Shown {
    fn now(&self) -> LocalTime {
        LocalTime { weekday: 0, minute: 600 }
    }
    fn resolve(&self, _host: String) -> Boxed<Vec<IpAddr>> {
        self.0.resolved.fetch_add(1, Ordering::Relaxed);
        let found = self.0.addresses.lock().unwrap().clone();
        Box::pin(async move { found })
    }
    fn audit(&self, _session: SessionId, target: Target) -> Boxed<bool> {
        let away = self.0.mediator_away.load(Ordering::Relaxed);
        if !away {
            self.0.audited.lock().unwrap().push(target);
        }
        Box::pin(async move { !away })
    }
    fn report_refusal(&self, _session: SessionId, _target: Target, rule: &'static str) {
        self.0.refused.lock().unwrap().push(rule);
    }
}

struct Bench {
    world: Arc<World>,
    rules: Arc<Rules>,
    gate: Arc<SessionGate>,
    grant: Grant,
    _dir: tempfile::TempDir,
}

fn loaded(policy: &str) -> Loaded {
    Loaded { policy: Policy::parse(policy).unwrap(), source: Source::File, problem: None }
}

fn tcp(text: &str) -> Target {
    Target::parse(text, Transport::Tcp).unwrap()
}

fn bench(policy: &str, targets: &[&str], any_target: bool) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let switch = KillSwitch::new(DataDir::open(dir.path()).unwrap());
    let consent = Consent::new(Vec::new(), Events::new(Output::new(false)));
    let rules = Arc::new(Rules::new(loaded(policy), switch, consent));
    let world = Arc::<World>::default();
    let gate = SessionGate::new(rules.clone(), Arc::new(Shown(world.clone())));
    let console = SigningKey::generate().unwrap().public();
    let grant = Grant {
        session: SessionId([1; 16]),
        tenant: "p".into(),
        computer: ComputerId([2; 16]),
        console,
        agent: console,
        redirector: "x".into(),
        targets: targets.iter().map(|t| tcp(t)).collect(),
        any_target,
        msg1_sha256: [0; 32],
        issued_ms: 0,
        expires_ms: 1,
        user: "u".into(),
        reason: String::new(),
        ticket: String::new(),
        audit_seq: 1,
        audit_leaf: [0; 32],
    };
    Bench { world, rules, gate, grant, _dir: dir }
}

impl Bench {
    async fn permit(&self, target: &str) -> Result<Vec<String>, ChannelCode> {
        let permit = self.gate.clone().permit(self.grant.clone(), tcp(target));
        permit.await.map(|a| a.iter().map(ToString::to_string).collect())
    }
}

const LAN: &str = "[[allow]]\ntargets = ['10.0.0.0/8', '*.lab.example']\nports = [22]";

#[tokio::test]
async fn one_target_that_is_not_allowed_refuses_the_session_and_is_named() {
    let bench = bench(LAN, &["10.0.0.1:22", "192.168.0.1:22"], false);
    let why = bench.gate.admit(&bench.grant).unwrap_err();
    assert!(why.contains("192.168.0.1:22") && !why.contains("10.0.0.1:22"), "{why}");
    let mut many = bench.grant.clone();
    many.targets.extend((2..9).map(|n| tcp(&format!("192.168.0.{n}:22"))));
    let why = bench.gate.admit(&many).unwrap_err();
    assert!(why.contains("192.168.0.4:22") && why.ends_with("and 4 more"), "{why}");
    // Whatever admitted the session, each channel is judged by itself.
    assert_eq!(bench.permit("10.0.0.1:22").await.unwrap(), ["10.0.0.1:22"]);
    assert_eq!(bench.permit("192.168.0.1:22").await, Err(ChannelCode::Policy));
    assert_eq!(*bench.world.refused.lock().unwrap(), ["not_allowed"]);
    assert!(bench.world.audited.lock().unwrap().is_empty(), "the grant was the audit");
    let mut allowed = bench.grant.clone();
    allowed.targets.truncate(1);
    assert_eq!(bench.gate.admit(&allowed), Ok(()));
    // A live session goes on as long as one of its targets is allowed and none it used is not.
    assert_eq!(bench.gate.still_admitted(&bench.grant), Ok(()));
}

#[tokio::test]
async fn unknown_targets_wait_for_their_audit_and_are_remembered() {
    let bench = bench(LAN, &[], true);
    assert_eq!(bench.gate.admit(&bench.grant), Ok(()));
    assert_eq!(bench.permit("10.0.0.1:22").await.unwrap(), ["10.0.0.1:22"]);
    bench.world.mediator_away.store(true, Ordering::Relaxed);
    assert!(bench.permit("10.0.0.1:22").await.is_ok(), "known targets need no mediator");
    assert_eq!(bench.permit("10.0.0.2:22").await, Err(ChannelCode::Audit));
    bench.world.mediator_away.store(false, Ordering::Relaxed);
    assert!(bench.permit("10.0.0.2:22").await.is_ok());
    let audited = bench.world.audited.lock().unwrap().clone();
    assert_eq!(audited, [tcp("10.0.0.1:22"), tcp("10.0.0.2:22")]);
    assert_eq!(bench.permit("11.0.0.1:22").await, Err(ChannelCode::Policy));
    assert_eq!(bench.world.audited.lock().unwrap().len(), 2, "refused targets are not audited");
}

#[tokio::test]
async fn names_are_resolved_once_and_only_if_they_could_be_allowed() {
    let bench = bench(LAN, &[], true);
    let set = |ips: &[&str]| {
        *bench.world.addresses.lock().unwrap() = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    };
    set(&["203.0.113.1", "127.0.0.1", "10.0.0.9"]);
    assert_eq!(bench.permit("a.lab.example:22").await.unwrap(), ["203.0.113.1:22", "10.0.0.9:22"]);
    assert_eq!(bench.permit("other.example:22").await.unwrap(), ["10.0.0.9:22"]);
    assert_eq!(bench.world.resolved.load(Ordering::Relaxed), 2);
    assert_eq!(bench.permit("a.lab.example:23").await, Err(ChannelCode::Policy));
    assert_eq!(bench.permit("localhost:22").await, Err(ChannelCode::Policy));
    assert_eq!(bench.world.resolved.load(Ordering::Relaxed), 2, "ports exclude before asking");
    set(&["169.254.169.254"]);
    assert_eq!(bench.permit("b.lab.example:22").await, Err(ChannelCode::Policy));
    assert_eq!(bench.world.refused.lock().unwrap().last(), Some(&"special_address"));
    set(&[]);
    assert_eq!(bench.permit("b.lab.example:22").await, Err(ChannelCode::TargetUnresolved));
}

#[tokio::test]
async fn localhost_is_the_computer_itself_without_asking() {
    let bench = bench("[[allow]]\ntargets = ['localhost']\nports = [22]", &["localhost:22"], false);
    *bench.world.addresses.lock().unwrap() = vec!["10.0.0.1".parse().unwrap()];
    assert_eq!(bench.permit("localhost:22").await.unwrap(), ["127.0.0.1:22", "[::1]:22"]);
    assert_eq!(bench.world.resolved.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_kill_switch_holds_at_once_for_offers_channels_and_live_sessions() {
    let bench = bench(LAN, &["10.0.0.1:22"], false);
    assert!(bench.permit("10.0.0.1:22").await.is_ok());
    assert_eq!(bench.gate.still_admitted(&bench.grant), Ok(()));
    bench.rules.kill_switch().lock().unwrap();
    assert_eq!(bench.gate.admit(&bench.grant), Err(LOCKED.to_owned()));
    assert_eq!(bench.permit("10.0.0.1:22").await, Err(ChannelCode::Policy));
    assert_eq!(bench.gate.still_admitted(&bench.grant), Err("locked_by_owner"));
    bench.rules.kill_switch().unlock().unwrap();
    assert!(bench.permit("10.0.0.1:22").await.is_ok());
}

#[tokio::test]
async fn a_narrower_policy_ends_sessions_that_used_what_it_took_away() {
    let bench = bench(LAN, &["10.0.0.1:22", "10.0.0.2:22"], false);
    bench.permit("10.0.0.1:22").await.unwrap();
    bench.rules.set(loaded("[[allow]]\ntargets = ['10.0.0.1']\nports = [22]"));
    assert_eq!(bench.gate.still_admitted(&bench.grant), Ok(()));
    bench.rules.set(loaded("[[allow]]\ntargets = ['10.0.0.2']\nports = [22]"));
    assert_eq!(bench.gate.still_admitted(&bench.grant), Err("policy_changed"));
    bench.rules.set(loaded("[trust]\nconsoles = []\n[[allow]]\ntargets=['10.0.0.1']\nports=[22]"));
    assert_eq!(bench.gate.still_admitted(&bench.grant), Err("policy_changed"));
}

#[tokio::test]
async fn grants_without_targets_are_not_admitted() {
    let bench = bench(LAN, &[], false);
    assert!(bench.gate.admit(&bench.grant).is_err());
    bench.rules.set(loaded("[[allow]]\ntargets=['10.0.0.1']\nports=[22]\nconsent=true"));
    let mut any = bench.grant.clone();
    any.any_target = true;
    assert!(bench.gate.admit(&any).is_ok(), "consent is asked for when a channel opens");
}

const ASKED: &str = "[[allow]]\ntargets = ['10.0.0.0/8']\nports = [22]\nconsent = true\n\
                     [[allow]]\ntargets = ['10.0.0.9']\nports = [22]";

/// Answers the questions that come until dropped; how many came is the length of the list.
async fn answer_all(rules: &Rules, yes: bool, asked: &Mutex<Vec<serde_json::Value>>) {
    loop {
        for question in rules.consent().list() {
            assert!(rules.consent().answer(question["id"].as_u64().unwrap(), yes));
            asked.lock().unwrap().push(question);
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_person_at_the_computer_is_asked_once_for_a_target_and_their_word_holds() {
    let bench = bench(ASKED, &["10.0.0.1:22", "10.0.0.2:22", "10.0.0.9:22"], false);
    assert_eq!(bench.gate.admit(&bench.grant), Ok(()));
    assert!(bench.permit("10.0.0.9:22").await.is_ok(), "another entry allows it");
    assert!(bench.permit("11.0.0.1:22").await.is_err());
    assert!(bench.rules.consent().list().is_empty(), "nobody is asked for what is shut");
    let asked = Mutex::default();
    for (target, yes) in [("10.0.0.1:22", true), ("10.0.0.2:22", false)] {
        tokio::select! {
            () = answer_all(&bench.rules, yes, &asked) => {}
            both = async { [bench.permit(target).await, bench.permit(target).await] } => {
                let want = if yes { Ok(vec![target.to_owned()]) } else { Err(ChannelCode::ConsentRefused) };
                assert_eq!(both, [want.clone(), want]);
            }
        }
    }
    let asked = asked.into_inner().unwrap();
    let targets: Vec<_> =
        asked.iter().map(|question| question["target"].as_str().unwrap()).collect();
    assert_eq!(targets, ["10.0.0.1:22", "10.0.0.2:22"]);
    assert_eq!(asked[0]["user"], "u");
    assert_eq!(bench.world.refused.lock().unwrap().last(), Some(&"consent_refused"));
    assert_eq!(bench.gate.still_admitted(&bench.grant), Ok(()), "consent given stays given");
    bench.rules.set(loaded("[[allow]]\ntargets=['10.0.0.9', '10.0.0.2']\nports=[22]"));
    assert_eq!(bench.gate.still_admitted(&bench.grant), Err("policy_changed"));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_has_refused_and_is_left_alone_after_a_while() {
    let bench = bench(ASKED, &["10.0.0.1:22"], false);
    for _ in 0..MAX_UNANSWERED {
        let started = tokio::time::Instant::now();
        assert_eq!(bench.permit("10.0.0.1:22").await, Err(ChannelCode::ConsentTimeout));
        assert_eq!(started.elapsed().as_secs(), CONSENT_TIMEOUT.as_secs());
    }
    let started = tokio::time::Instant::now();
    assert_eq!(bench.permit("10.0.0.1:22").await, Err(ChannelCode::ConsentRefused));
    assert_eq!(started.elapsed().as_secs(), 0);
    assert!(bench.rules.consent().list().is_empty() && !bench.rules.consent().answer(1, true));
}

#[tokio::test]
async fn consent_that_comes_after_the_owner_locked_opens_nothing() {
    let bench = bench(ASKED, &["10.0.0.1:22"], false);
    let lock_and_agree = async {
        while bench.rules.consent().list().is_empty() {
            tokio::task::yield_now().await;
        }
        bench.rules.kill_switch().lock().unwrap();
        assert!(bench.rules.consent().answer(1, true));
    };
    let (permit, ()) = tokio::join!(bench.permit("10.0.0.1:22"), lock_and_agree);
    assert_eq!(permit, Err(ChannelCode::Policy));
    let given_up = tokio::time::timeout(std::time::Duration::ZERO, bench.permit("10.0.0.2:22"));
    assert!(given_up.await.is_ok(), "locked: refused at once");
}

/// Whoever answers for a name can give other addresses each time: what is remembered of them is
/// bounded, and what was let through before is let through again.
#[tokio::test]
async fn a_name_that_resolves_to_ever_other_addresses_pins_a_bounded_amount() {
    let policy = "[[allow]]\ntargets = [\"10.0.0.0/8\"]\nports = [80]";
    let b = bench(policy, &["web.example:80"], false);
    let mut refused = None;
    for n in 0..u32::try_from(MAX_PASSED).unwrap() {
        let of = |k: u32| IpAddr::from((0x0A00_0000 + n * 8 + k).to_be_bytes());
        *b.world.addresses.lock().unwrap() = (0..8).map(of).collect();
        if let Err(code) = b.permit("web.example:80").await {
            refused = Some(code);
            break;
        }
    }
    assert_eq!(refused, Some(ChannelCode::TooMany));
    assert_eq!(b.gate.state().passed.len(), MAX_PASSED);
    *b.world.addresses.lock().unwrap() = vec![[10, 0, 0, 0].into()];
    assert!(b.permit("web.example:80").await.is_ok());
}
