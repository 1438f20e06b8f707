//! `netcheck`: what this network lets through, with the mediator's help or without.
//!
//! Tells what it can: also when nobody is logged in, or the mediator cannot be reached; that is
//! the command's error then, after what was found out.

use adit_control::client::{ConnectError, connect};
use adit_endpoint::{Around, Netcheck, RelayCheck, netcheck};
use adit_net::tls::{TlsError, Trust};
use adit_runtime::{
    cli::{CliError, escape_text},
    output::Output,
};
use serde_json::{Value, json};

use super::{login::parse_url, table};
use crate::{
    advice::{self, Advice, Outlook, Seen},
    cli::NetcheckArgs,
    config::Context,
    failure,
    link::Caller,
    state::{
        Account, MediatorTrust,
        account::{load_token, not_logged_in},
    },
};

/// Where a mediator answers STUN if it cannot be asked: its defaults, and QUIC's port, which
/// networks let through that block other UDP.
const USUAL_STUN: [u16; 3] = [3478, 3479, 443];

/// What came of asking the mediator.
struct Mediator {
    address: String,
    proxy: Option<String>,
    around: Around,
    problem: Option<CliError>,
    intercepted: bool,
}

/// `netcheck`.
pub async fn run(context: &Context, args: &NetcheckArgs) -> Result<(), CliError> {
    let mediator = match account(context, args)? {
        Some(account) => ask(context, account).await?,
        None => Mediator {
            address: String::new(),
            proxy: None,
            around: Around::default(),
            problem: Some(
                not_logged_in(None)
                    .hint("console-tunnel login HOST --user USER, or netcheck --mediator HOST"),
            ),
            intercepted: false,
        },
    };
    let check = netcheck(&mediator.around, &context.dialer).await;
    let output = context.global.output();
    output.emit(&object(&check, &mediator))?;
    print(output, &check, &mediator)?;
    outcome(&check, mediator)
}

/// The mediator that was named, or the one of the last login.
fn account(context: &Context, args: &NetcheckArgs) -> Result<Option<Account>, CliError> {
    let known = Account::load(&context.directory)?;
    let Some(url) = &args.mediator else { return Ok(known) };
    let (host, port) = parse_url(url)?;
    let known = known.filter(|account| account.host == host && account.port == port);
    Ok(Some(known.unwrap_or(Account {
        host,
        port,
        trust: MediatorTrust::WebPki,
        user: None,
        partner: String::new(),
        pins: Vec::new(),
    })))
}

/// Connects for the welcome only: it names STUN servers and relays. Nothing else is asked, and no
/// login is needed.
async fn ask(context: &Context, account: Account) -> Result<Mediator, CliError> {
    let logged_in = account.user.is_some() && load_token(&context.directory)?.is_some();
    let known = Account::load(&context.directory)?.as_ref() == Some(&account);
    let caller = match logged_in && known {
        true => Caller::load(context)?,
        false => Caller::anonymous(context, account)?,
    };
    let account = &caller.account;
    let mut mediator = Mediator {
        address: account.address(),
        proxy: context.dialer.proxy_of(&account.host, account.port),
        around: Around {
            host: account.address(),
            stun_ports: USUAL_STUN.to_vec(),
            ..Around::default()
        },
        problem: None,
        intercepted: false,
    };
    match connect(&caller.config(account.trust.into(), Vec::new())).await {
        Ok((connected, _)) => {
            let welcome = &connected.welcome;
            let ports = welcome.stun_ports.iter().filter_map(|port| u16::try_from(*port).ok());
            let addresses = welcome.stun_addrs.iter().filter_map(|text| text.parse().ok());
            mediator.around.remote = connected.remote;
            mediator.around.stun_ports = ports.collect();
            mediator.around.stun_addrs = addresses.collect();
            mediator.around.relays = Some(welcome.relays.clone());
        }
        Err(error) => {
            (mediator.problem, mediator.intercepted) = judge(&caller, &error).await;
        }
    }
    Ok(mediator)
}

/// What is wrong, and whether somebody else answers in the mediator's place.
async fn judge(caller: &Caller, error: &ConnectError) -> (Option<CliError>, bool) {
    let problem = Some(caller.explain(failure::connect(error)));
    let ConnectError::Tls { error: tls, .. } = error else { return (problem, false) };
    match tls {
        TlsError::Intercepted { .. } => (problem, true),
        // A mediator with a certificate of its own that nobody has logged in to, or a stranger?
        TlsError::Untrusted(_) | TlsError::WrongName(_) => {
            match connect(&caller.config(Trust::Probe, Vec::new())).await {
                Err(ConnectError::Tls { error: TlsError::Intercepted { .. }, .. }) => {
                    (problem, true)
                }
                Err(ConnectError::Tls { error: TlsError::UnknownRoot { presented }, host }) => {
                    let message = format!("{host} is the mediator of an unknown installation");
                    let hint =
                        format!("console-tunnel login {host} --user USER, and compare {presented}");
                    (Some(CliError::refused("unknown_mediator", message).hint(hint)), false)
                }
                _ => (problem, false),
            }
        }
        _ => (problem, false),
    }
}

/// The end of the command, after all was told.
fn outcome(check: &Netcheck, mediator: Mediator) -> Result<(), CliError> {
    if let Some(problem) = mediator.problem {
        return Err(problem);
    }
    if check.udp || check.relays.iter().any(|relay| relay.rtt.is_some()) {
        return Ok(());
    }
    let message = "there is no path: UDP is blocked, and no relay can be reached";
    Err(CliError::no_path("no_path", message)
        .hint("ask for outgoing UDP, or TCP 443 to the relays; behind a proxy give --proxy URL"))
}

fn judged(check: &Netcheck, mediator: &Mediator) -> (Outlook, Advice) {
    advice::network(Seen {
        reached: mediator.problem.is_none(),
        udp: check.udp,
        only_443: check.only_443,
        mapping: check.mapping,
        filtering: check.filtering,
        behind_nat: check.behind_nat,
        loopback: is_loopback(check),
        port_mapping: !check.port_mapping.is_empty(),
    })
}

/// Seen by servers on this computer only.
fn is_loopback(check: &Netcheck) -> bool {
    let loopback = |seen: &std::net::SocketAddr| seen.ip().to_canonical().is_loopback();
    !check.public.is_empty() && check.public.iter().all(loopback)
}

/// Whether it is known if UDP passes: a server answered, or those that should did not.
fn is_udp_known(check: &Netcheck, mediator: &Mediator) -> bool {
    check.udp || mediator.problem.is_none()
}

fn object(check: &Netcheck, mediator: &Mediator) -> Value {
    let (outlook, words) = judged(check, mediator);
    let public: Vec<String> = check.public.iter().map(ToString::to_string).collect();
    let relay = |relay: &RelayCheck| {
        json!({
            "name": relay.name, "region": relay.region,
            "rtt_ms": relay.rtt.map(crate::events::ms), "problem": relay.problem,
        })
    };
    let problem = mediator
        .problem
        .as_ref()
        .map(|error| json!({"code": error.code, "message": error.message, "hint": error.hint}));
    json!({
        "udp": check.udp,
        "udp_known": is_udp_known(check, mediator),
        "udp_443_only": check.only_443,
        "ipv6": check.ipv6,
        "nat": {
            "mapping": check.mapping, "filtering": check.filtering, "hairpin": check.hairpin,
            "present": check.behind_nat,
        },
        "public": public,
        "port_mapping": check.port_mapping,
        "relays": by_rtt(check).into_iter().map(relay).collect::<Vec<_>>(),
        "direct": outlook.as_str(),
        "summary": words.what,
        "advice": (!words.todo.is_empty()).then_some(words.todo),
        "mediator": {
            "address": (!mediator.address.is_empty()).then_some(&mediator.address),
            "reachable": mediator.problem.is_none(), "proxy": mediator.proxy,
            "tls_intercepted": mediator.intercepted, "problem": problem,
        },
        "notes": check.notes,
    })
}

/// The nearest first, those that cannot be reached last.
fn by_rtt(check: &Netcheck) -> Vec<&RelayCheck> {
    let mut relays: Vec<&RelayCheck> = check.relays.iter().collect();
    relays.sort_by_key(|relay| (relay.rtt.is_none(), relay.rtt));
    relays
}

fn print(output: Output, check: &Netcheck, mediator: &Mediator) -> Result<(), CliError> {
    let (_, words) = judged(check, mediator);
    output.human(words.what)?;
    if !words.todo.is_empty() {
        output.human(format_args!("To do:         {}", words.todo))?;
    }
    output.human("")?;
    let udp = match (check.udp, is_udp_known(check, mediator)) {
        (true, _) if check.only_443 => "passes to port 443 only",
        (true, _) => "passes",
        (false, true) => "blocked",
        (false, false) => "not known",
    };
    output.human(format_args!("UDP:           {udp}"))?;
    let ipv6 = if check.ipv6 { "yes" } else { "no" };
    output.human(format_args!("IPv6:          {ipv6}"))?;
    output.human(format_args!("NAT:           {}", nat_text(check)))?;
    if let Some(hairpin) = check.hairpin {
        let text =
            if hairpin { "yes" } else { "no: two computers behind it meet by their own addresses" };
        output.human(format_args!("Hairpin:       {text}"))?;
    }
    let public: Vec<String> = check.public.iter().map(ToString::to_string).collect();
    output.human(format_args!("Seen as:       {}", or_none(&public.join(", "), "not known")))?;
    let mapping = check.port_mapping.join(", ");
    output.human(format_args!("Port mapping:  {}", or_none(&mapping, "the router offers none")))?;
    output.human(format_args!("Mediator:      {}", mediator_text(mediator)))?;
    print_relays(output, check)?;
    for note in &check.notes {
        output.human(format_args!("Note: {}", escape_text(note)))?;
    }
    Ok(())
}

fn or_none<'a>(text: &'a str, none: &'a str) -> &'a str {
    if text.is_empty() { none } else { text }
}

fn nat_text(check: &Netcheck) -> String {
    let (mapping, filtering) = (advice::mapping(check.mapping), advice::filtering(check.filtering));
    match (check.behind_nat, check.mapping) {
        (None, _) => "not known".to_owned(),
        (Some(false), "endpoint-independent") if check.filtering == "unknown" => "none".to_owned(),
        (Some(false), "endpoint-independent") => format!("none; firewall: {filtering}"),
        (Some(_), word) => {
            format!("{mapping}; {filtering} ({word} mapping, {} filtering)", check.filtering)
        }
    }
}

fn mediator_text(mediator: &Mediator) -> String {
    if mediator.address.is_empty() {
        return "none is known".to_owned();
    }
    let address = escape_text(&mediator.address);
    let proxy = mediator.proxy.as_deref().map(escape_text);
    let way = proxy.map(|proxy| format!(", through the proxy {proxy}")).unwrap_or_default();
    match &mediator.problem {
        None => format!("{address} can be reached{way}"),
        Some(_) if mediator.intercepted => format!(
            "{address}{way}: something on the way answers in its place, such as a proxy or \
             antivirus that inspects TLS: ask for an exception for that host"
        ),
        // The message follows, as the command's error.
        Some(problem) => format!("{address}{way}: cannot be used ({})", problem.code),
    }
}

fn print_relays(output: Output, check: &Netcheck) -> Result<(), CliError> {
    if output.json || check.relays.is_empty() {
        return Ok(());
    }
    let mut rows = table(&["RELAY", "REGION", "ROUND TRIP"]);
    for relay in by_rtt(check) {
        let rtt = match (relay.rtt, &relay.problem) {
            (Some(rtt), _) => crate::events::duration_text(rtt),
            (None, problem) => format!(
                "cannot be reached: {}",
                escape_text(problem.as_deref().unwrap_or("no answer"))
            ),
        };
        rows.add_row([escape_text(&relay.name), escape_text(&relay.region), rtt]);
    }
    output.human("")?;
    output.human(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mediator() -> Mediator {
        Mediator {
            address: "m:443".into(),
            proxy: Some("http://proxy:3128".into()),
            around: Around { host: "m:443".into(), ..Around::default() },
            problem: None,
            intercepted: false,
        }
    }

    #[test]
    fn the_object_has_the_keys_of_the_contract() {
        let relay = |name: &str, rtt: Option<u64>| RelayCheck {
            name: name.into(),
            region: "eu".into(),
            rtt: rtt.map(std::time::Duration::from_millis),
            problem: None,
        };
        let check = Netcheck {
            udp: true,
            mapping: "endpoint-independent",
            filtering: "unknown",
            relays: vec![relay("far", Some(9)), relay("gone", None), relay("near", Some(2))],
            ..Netcheck::default()
        };
        let object = object(&check, &mediator());
        for key in ["udp", "ipv6", "public", "port_mapping", "relays"] {
            assert!(object.get(key).is_some(), "{key}");
        }
        assert_eq!(object["nat"]["mapping"], "endpoint-independent");
        assert_eq!(object["udp_known"], true);
        let own = Netcheck { public: vec!["127.0.0.1:4".parse().unwrap()], ..check.clone() };
        assert_eq!(super::object(&own, &mediator())["direct"], "unknown");
        assert!(object["nat"].get("hairpin").is_some() && object["nat"].get("filtering").is_some());
        let names: Vec<_> =
            object["relays"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
        assert_eq!(names, ["near", "far", "gone"]);
        assert_eq!(object["relays"][0]["rtt_ms"], 2.0);
        assert!(outcome(&check, mediator()).is_ok());
    }

    #[test]
    fn without_any_path_the_exit_code_says_so() {
        let error = outcome(&Netcheck::default(), mediator()).unwrap_err();
        assert_eq!((error.code, error.exit.code()), ("no_path", 5));
        let problem = CliError::no_path("mediator_unreachable", "m");
        let unreachable = Mediator { problem: Some(problem), ..mediator() };
        let told = object(&Netcheck::default(), &unreachable);
        assert_eq!(
            (&told["mediator"]["reachable"], &told["udp_known"]),
            (&json!(false), &json!(false))
        );
        assert_eq!(outcome(&Netcheck::default(), unreachable).unwrap_err().exit.code(), 5);
    }
}
