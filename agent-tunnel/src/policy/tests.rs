//! The policy file: tables of what it allows, and that nothing else is.

use std::net::IpAddr;

use adit_protocol::{
    keys::SigningKey,
    target::{Target, Transport},
};
use adit_runtime::datadir::DataDir;
use proptest::prelude::*;

use super::*;

const NOON: LocalTime = LocalTime { weekday: 2, minute: 12 * 60 };

fn tcp(text: &str) -> Target {
    Target::parse(text, Transport::Tcp).unwrap()
}

fn udp(text: &str) -> Target {
    Target::parse(text, Transport::Udp).unwrap()
}

fn policy(allow: &str) -> Policy {
    Policy::parse(&format!("[[allow]]\n{allow}")).unwrap()
}

fn reaches(policy: &Policy, target: &Target, resolved: &[&str]) -> Vec<String> {
    if policy.check_target(target, NOON).is_err() {
        return Vec::new();
    }
    let ips: Vec<IpAddr> = resolved.iter().map(|ip| ip.parse().unwrap()).collect();
    let allowed = policy.filter(target, &ips, NOON).unwrap_or_default();
    allowed.iter().map(ToString::to_string).collect()
}

fn allows(policy: &Policy, target: &Target) -> bool {
    let ip = target.ip().unwrap();
    policy.check_target(target, NOON).is_ok() && policy.filter(target, &[ip], NOON).is_ok()
}

#[test]
fn default_text_is_the_default_and_opens_only_own_services() {
    let parsed = Policy::parse(DEFAULT_TEXT).unwrap();
    let normal = |p: &Policy| {
        let mut ports: Vec<u16> = p.allow[0].ports.iter().filter_map(|r| r.as_single()).collect();
        ports.sort_unstable();
        (p.offline_grace, p.consoles.clone(), p.allow[0].targets.clone(), ports)
    };
    assert_eq!(normal(&parsed), normal(&Policy::default()));
    assert_eq!((parsed.allow.len(), parsed.allow[0].transports.len()), (1, 1));
    for open in ["127.0.0.1:22", "127.0.0.1:3389", "[::1]:443", "[::ffff:127.0.0.1]:80"] {
        assert!(allows(&parsed, &tcp(open)), "{open}");
    }
    for shut in ["127.0.0.1:23", "127.0.0.2:22", "192.168.0.1:22", "[fe80::1]:22", "0.0.0.0:22"] {
        assert!(!allows(&parsed, &tcp(shut)), "{shut}");
    }
    assert!(!allows(&parsed, &udp("127.0.0.1:22")));
    let local = tcp("localhost:22");
    assert_eq!(reaches(&parsed, &local, &["127.0.0.1", "::1"]), ["127.0.0.1", "::1"]);
    assert!(reaches(&parsed, &local, &["10.0.0.1"]).is_empty(), "localhost is never elsewhere");
    assert!(reaches(&parsed, &tcp("evil.example:22"), &["127.0.0.1"]) == ["127.0.0.1"]);
}

#[test]
fn contract_example_is_understood() {
    let key = SigningKey::generate().unwrap().public();
    let text = format!(
        r#"
offline_grace = "0"
[trust]
consoles = ["{}"]
[[allow]]
targets = ["127.0.0.1", "::1", "192.168.7.0/24", "*.lab.example"]
ports = [22, 3389, "5900-5910"]
protocols = ["tcp", "udp"]
hours = "mon-fri 07:00-19:00"
consent = false
"#,
        key.fingerprint()
    );
    let policy = Policy::parse(&text).unwrap();
    assert_eq!(policy.offline_grace, std::time::Duration::ZERO);
    assert_eq!(policy.check_console(key), Ok(()));
    let other = SigningKey::generate().unwrap().public();
    assert_eq!(policy.check_console(other), Err(Denial::Console(other.fingerprint())));
    assert!(allows(&policy, &udp("192.168.7.255:5905")));
    assert!(!allows(&policy, &tcp("192.168.8.1:22")));
    assert!(!allows(&policy, &tcp("192.168.7.1:5911")));
    let sunday = LocalTime { weekday: 6, minute: 12 * 60 };
    let target = tcp("127.0.0.1:22");
    assert_eq!(policy.check_target(&target, sunday), Err(Denial::Hours(target)));
    assert_eq!(Policy::parse(&policy.to_toml()), Ok(policy));
}

#[test]
fn names_match_by_rule_or_by_address_and_never_lead_to_special_addresses() {
    let policy = policy(
        r#"targets = ["*.lab.example", "Gate.Example.", "10.1.0.0/16"]
                           ports = [22]"#,
    );
    let reach = |name: &str, ips: &[&str]| reaches(&policy, &tcp(&format!("{name}:22")), ips);
    assert_eq!(reach("a.lab.example", &["203.0.113.5"]), ["203.0.113.5"]);
    assert_eq!(reach("a.b.LAB.example.", &["203.0.113.5"]), ["203.0.113.5"]);
    assert_eq!(reach("gate.example", &["203.0.113.5"]), ["203.0.113.5"]);
    for stranger in ["lab.example", "xlab.example", "a.gate.example", "lab.example.evil.example"] {
        assert!(reach(stranger, &["203.0.113.5"]).is_empty(), "{stranger}");
        assert_eq!(reach(stranger, &["203.0.113.5", "10.1.2.3"]), ["10.1.2.3"], "{stranger}");
    }
    for special in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "224.0.0.1", "::", "0.0.0.0"]
        .into_iter()
        .chain(["::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:a9fe:a9fe::", "100.100.100.200"])
    {
        assert!(reach("a.lab.example", &[special]).is_empty(), "{special}");
        assert_eq!(reach("a.lab.example", &[special, "10.9.9.9"]), ["10.9.9.9"], "{special}");
    }
}

#[test]
fn special_addresses_need_a_rule_within_their_own_block() {
    let wide = policy(
        r#"targets = ["0.0.0.0/0", "::/0"]
                         ports = ["1-65535"]
                         protocols = ["tcp", "udp"]"#,
    );
    for special in [
        "127.0.0.1:22",
        "[::1]:22",
        "[::ffff:127.0.0.1]:22",
        "169.254.169.254:80",
        "[::ffff:a9fe:a9fe]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "[64:ff9b:1::7f00:1]:22",
        "[64:ff9b:1:a9fe:a9:fe00:808:808]:80",
        "[2002:7f00:1::]:22",
        "[fe80::1]:22",
        "[fec0::1]:22",
        "[fd00:ec2::254]:80",
        "[fd20:ce::254]:80",
        "[fd00:42::42]:80",
        "100.100.100.200:80",
        "168.63.129.16:80",
        "192.0.0.192:80",
        "224.0.0.251:5353",
        "[ff02::fb]:5353",
        "240.0.0.1:9",
        "255.255.255.255:9",
        "0.0.0.0:22",
        "0.1.2.3:22",
        "[::]:22",
    ] {
        assert!(!allows(&wide, &tcp(special)), "{special}");
        assert!(!allows(&wide, &udp(special)), "{special}");
    }
    assert!(allows(&wide, &tcp("192.168.1.1:22")) && allows(&wide, &tcp("[2001:db8::1]:22")));
    let named = policy(
        r#"targets = ["127.0.0.0/8", "169.254.169.254", "::ffff:224.0.0.0/100",
                                     "64:ff9b::a9fe:a9fe", "0.0.0.0"]
                          ports = [80]"#,
    );
    for open in ["127.9.9.9:80", "169.254.169.254:80", "224.0.0.1:80", "[64:ff9b::a9fe:a9fe]:80"] {
        assert!(allows(&named, &tcp(open)), "{open}");
    }
    for shut in ["169.254.169.253:80", "[::1]:80", "0.0.0.0:80", "[64:ff9b::7f00:1]:80"] {
        assert!(!allows(&named, &tcp(shut)), "{shut}");
    }
}

#[test]
fn consent_refuses_unless_another_entry_allows() {
    let both = "[[allow]]\ntargets=['10.0.0.0/8']\nports=[22,80]\nconsent=true\n\
                [[allow]]\ntargets=['10.0.0.1']\nports=[80]";
    let policy = Policy::parse(both).unwrap();
    assert!(allows(&policy, &tcp("10.0.0.1:80")));
    let asked = tcp("10.0.0.1:22");
    assert_eq!(policy.check_target(&asked, NOON), Err(Denial::Consent(asked)));
}

#[test]
fn hours_follow_the_local_week() {
    let at = |text: &str, weekday: u8, clock: &str| {
        let (h, m) = clock.split_once(':').unwrap();
        let minute = h.parse::<u16>().unwrap() * 60 + m.parse::<u16>().unwrap();
        Hours::parse(text).unwrap().contains(LocalTime { weekday, minute })
    };
    for (text, weekday, clock, expected) in [
        ("mon-fri 07:00-19:00", 0, "07:00", true),
        ("mon-fri 07:00-19:00", 4, "18:59", true),
        ("mon-fri 07:00-19:00", 4, "19:00", false),
        ("mon-fri 07:00-19:00", 5, "12:00", false),
        ("fri 22:00-06:00", 4, "23:00", true),
        ("fri 22:00-06:00", 5, "05:59", true),
        ("fri 22:00-06:00", 5, "06:00", false),
        ("fri 22:00-06:00", 4, "05:00", false),
        ("sun 22:00-06:00", 0, "01:00", true),
        ("sat-mon", 6, "00:00", true),
        ("sat-mon", 1, "00:00", false),
        ("22:00-24:00", 3, "23:59", true),
        ("mon 08:00-09:00; WED,fri 10:00-11:00", 2, "10:30", true),
        ("mon 08:00-09:00; wed,fri 10:00-11:00", 2, "08:30", false),
    ] {
        assert_eq!(at(text, weekday, clock), expected, "{text} {weekday} {clock}");
    }
    for wrong in
        ["", "moon 07:00-08:00", "07:00", "07:00-07:00", "25:00-26:00", "7-8", "07:60-08:00"]
            .into_iter()
            .chain(["mon 07:00-08:00 x", "mon-", "; ", "24:00-01:00", "07:00-24:01", "-7:00-08:00"])
    {
        assert!(Hours::parse(wrong).is_err(), "{wrong}");
    }
    let hours = Hours::parse("sat-mon 22:00-06:00; 01:00-02:00").unwrap();
    assert_eq!(Hours::parse(&hours.to_string()), Ok(hours));
}

#[test]
fn mistakes_name_line_and_remedy() {
    for (text, line, part) in [
        ("offline_grce = \"1m\"", 1, "did you mean \"offline_grace\""),
        ("\n[trust]\nconsols = []", 3, "did you mean \"consoles\""),
        ("[[allow]]\ntargets=[]\nports=[]\nprotocol=['tcp']", 4, "did you mean \"protocols\""),
        ("[allow]\ntargets=[]", 1, "[[allow]]"),
        ("[[allow]]\nports=[1]", 1, "no targets"),
        ("[[allow]]\ntargets=['::1']", 1, "no ports"),
        ("[[allow]]\ntargets=['::1']\nports=[0]", 3, "1 to 65535"),
        ("[[allow]]\ntargets=['::1']\nports=[70000]", 3, "1 to 65535"),
        ("[[allow]]\ntargets=['::1']\nports=['9-8']", 3, "ends before"),
        ("[[allow]]\ntargets=['::1']\nports=['+9']", 3, "not a port"),
        ("[[allow]]\ntargets=['10.0.0.5/8']\nports=[1]", 2, "10.0.0.0/8"),
        ("[[allow]]\ntargets=['*']\nports=[1]", 2, "0.0.0.0/0"),
        ("[[allow]]\ntargets=['127.1']\nports=[1]", 2, "not an address"),
        ("[[allow]]\ntargets=['a.*.b']\nports=[1]", 2, "not an address"),
        ("[[allow]]\ntargets='::1'\nports=[1]", 2, "is a list"),
        ("[[allow]]\ntargets=['::1']\nports=[1]\nprotocols=['sctp']", 4, "\"udp\""),
        ("[[allow]]\ntargets=['::1']\nports=[1]\nconsent='yes'", 4, "true or false"),
        ("[[allow]]\ntargets=['::1']\nports=[1]\nhours='nine to five'", 4, "mon-fri"),
        ("offline_grace = \"16m\"", 1, "at most"),
        ("offline_grace = 900", 1, "\"15m\""),
        ("[trust]\nconsoles = ['sha256:12']", 2, "64 hexadecimal"),
        ("x = = 1", 1, ""),
    ] {
        match Policy::parse(text) {
            Err(PolicyError::Invalid { line: l, reason }) => {
                assert_eq!(l, line, "{text}: {reason}");
                assert!(reason.contains(part), "{text}: {reason}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn an_empty_file_allows_nothing_and_an_empty_trust_list_nobody() {
    let policy = Policy::parse("").unwrap();
    assert!(!allows(&policy, &tcp("127.0.0.1:22")));
    let policy = Policy::parse("[trust]\nconsoles = []").unwrap();
    assert!(policy.check_console(SigningKey::generate().unwrap().public()).is_err());
}

#[test]
fn a_broken_file_changes_nothing_even_after_a_restart() {
    let outer = tempfile::tempdir().unwrap();
    let dir = DataDir::open(outer.path()).unwrap();
    let store = || PolicyStore::new(dir.clone());
    let write = |text: &str| dir.write_atomic(POLICY_FILE, text.as_bytes(), 0o600).unwrap();
    assert_eq!(store().load().source, Source::Default);

    let narrow = "[[allow]]\ntargets = ['127.0.0.1']\nports = [22]";
    write(narrow);
    assert_eq!(store().load().source, Source::File);
    write("[[allow]]\ntargets = ['0.0.0.0/0'\nports = [22]");
    let loaded = store().load();
    assert_eq!(
        (loaded.source, &loaded.policy),
        (Source::LastValid, &Policy::parse(narrow).unwrap())
    );
    assert!(loaded.problem.is_some() && store().check().is_err());

    std::fs::remove_file(outer.path().join(POLICY_FILE)).unwrap();
    assert_eq!(store().load().source, Source::Default);
    write("nonsense");
    let loaded = store().load();
    assert_eq!(loaded.source, Source::LastValid);
    assert!(allows(&loaded.policy, &tcp("[::1]:3389")), "the default was last in force");

    std::fs::remove_file(outer.path().join("policy.last-valid")).unwrap();
    let loaded = store().load();
    assert_eq!((loaded.source, loaded.policy), (Source::Fallback, Policy::default()));
}

#[test]
fn enrolment_never_overwrites_the_owners_file() {
    let outer = tempfile::tempdir().unwrap();
    let dir = DataDir::open(outer.path()).unwrap();
    let store = PolicyStore::new(dir.clone());
    assert!(store.write_default().unwrap());
    assert_eq!(store.check(), Ok(true));
    dir.write_atomic(POLICY_FILE, b"[[allow]]", 0o600).unwrap();
    assert!(!store.write_default().unwrap());
    assert_eq!(dir.read(POLICY_FILE, 100).unwrap().unwrap(), b"[[allow]]");
}

prop_compose! {
    fn any_rule()(octets: [u8; 4], prefix in 0_u8..=32) -> ipnet::Ipv4Net {
        ipnet::Ipv4Net::new(octets.into(), prefix).unwrap().trunc()
    }
}

proptest! {
    #[test]
    fn only_what_a_rule_contains_is_reachable(
        rules in proptest::collection::vec((any_rule(), 1_u16..200, 0_u16..20), 0..5),
        ip: [u8; 4], near: proptest::sample::Index, inside: bool, port in 1_u16..250,
        mapped: bool, is_udp: bool,
    ) {
        let mut text = String::new();
        for (net, port, more) in &rules {
            text += &format!(
                "[[allow]]\ntargets = [\"{net}\"]\nports = [\"{port}-{}\"]\n", port + more);
        }
        let policy = Policy::parse(&text).unwrap();
        let mut ip = std::net::Ipv4Addr::from(ip);
        if inside && !rules.is_empty() {
            let net = near.get(&rules).0;
            ip = std::net::Ipv4Addr::from_bits(
                net.network().to_bits() | (ip.to_bits() & net.hostmask().to_bits()));
        }
        let written = if mapped { ip.to_ipv6_mapped().to_string() } else { ip.to_string() };
        let transport = if is_udp { Transport::Udp } else { Transport::Tcp };
        let target = Target::new(&written, port, transport).unwrap();
        let listed = rules.iter().any(|(net, first, more)| {
            net.contains(&ip) && (*first..=first + more).contains(&port)
        });
        prop_assert!(!allows(&policy, &target) || (listed && !is_udp));
        // The resolved form of the same address is decided alike.
        let resolved: IpAddr = written.parse().unwrap();
        prop_assert_eq!(policy.filter(&target, &[resolved], NOON).is_ok(), allows(&policy, &target));
        let o = ip.octets();
        let special = o[0] == 127 || o[0] == 0 || o[0] >= 224 || (o[0] == 169 && o[1] == 254);
        prop_assert!(!listed || is_udp || special || allows(&policy, &target)
            || [[100,100,100,200], [168,63,129,16], [192,0,0,192]].contains(&o));
    }

    #[test]
    fn what_is_shown_reads_back(days in 1_u8..128, start in 0_u16..1440, end in 1_u16..=1440) {
        prop_assume!(start != end);
        let names: Vec<&str> = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
            .into_iter().enumerate().filter(|(i, _)| days & (1 << i) != 0).map(|(_, n)| n).collect();
        let text = format!("{} {:02}:{:02}-{:02}:{:02}",
            names.join(","), start / 60, start % 60, end / 60, end % 60);
        let hours = Hours::parse(&text).unwrap();
        prop_assert_eq!(&hours.to_string(), &text);
        for weekday in 0..7 {
            for minute in [0, start.saturating_sub(1), start, end.saturating_sub(1), end % 1440] {
                let now = LocalTime { weekday, minute };
                let on = |d: u8| days & (1 << d) != 0;
                let expected = if start < end {
                    on(weekday) && start <= minute && minute < end
                } else {
                    (on(weekday) && start <= minute) || (on((weekday + 6) % 7) && minute < end)
                };
                prop_assert_eq!(hours.contains(now), expected);
            }
        }
    }

    #[test]
    fn any_text_is_a_policy_or_an_error(text: String) {
        let _ = Policy::parse(&text);
        let _ = Hours::parse(&text);
        let _ = TargetRule::parse(&text);
        let _ = PortRange::parse(&text);
    }
}
