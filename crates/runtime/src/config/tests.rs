//! Configuration from file, environment and flags.

use super::*;
use crate::cli::{Exit, Program};

const RELAY: Program = Program { name: "relay" };

const KEYS: &[Key] = &[
    key("relay.listen", Kind::StringList, Some("0.0.0.0:443")),
    key("relay.idle_timeout", Kind::Duration, Some("5m")),
    key("limits.pairs", Kind::Integer, Some("2000")),
    key("log.level", Kind::String, None),
    key("relay.splice", Kind::Bool, Some("true")),
    Key { secret: true, ..key("proxy.password", Kind::String, None) },
];

const fn key(path: &'static str, kind: Kind, default: Option<&'static str>) -> Key {
    Key { path, kind, default, secret: false, help: "" }
}

fn load(toml: &str, environment: &[(&str, &str)], flags: Vec<Flag>) -> Result<Config, CliError> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("relay.toml"), toml).unwrap();
    let environment = environment.iter().map(|(n, v)| (n.into(), v.into())).collect();
    let data_dir = Some(directory.path().to_owned());
    Config::load(&RELAY, KEYS, &Sources { config: None, data_dir, environment, flags })
}

#[test]
fn later_sources_win_and_each_value_knows_its_origin() {
    let toml =
        "[relay]\nlisten = [\"[::]:8443\"]\nidle_timeout = \"1h30m\"\n[limits]\npairs = 0x10\n";
    let variable = ("ADIT_RELAY_LIMITS_PAIRS", "7");
    let flag = Flag { path: "relay.splice", name: "--splice", value: "false".into() };
    let config = load(toml, &[variable, ("OTHER", "x")], vec![flag]).unwrap();
    assert_eq!(config.list("relay.listen").unwrap(), ["[::]:8443"]);
    assert_eq!(config.parsed_list::<std::net::SocketAddr>("relay.listen").unwrap().len(), 1);
    assert_eq!(config.duration("relay.idle_timeout").unwrap(), Duration::from_secs(5400));
    assert_eq!(config.integer_in("limits.pairs", 1..=10u16).unwrap(), 7);
    assert!(!config.bool("relay.splice").unwrap());
    assert_eq!(config.opt_string("log.level").unwrap(), None);
    assert!(matches!(config.origin("relay.listen"), Some(Origin::File { line: 2, .. })));
    assert_eq!(config.origin("limits.pairs"), Some(&Origin::Variable(variable.0.into())));
    assert_eq!(config.origin("relay.splice"), Some(&Origin::Flag("--splice")));
    let error = config.integer_in("limits.pairs", 10..=20u16).unwrap_err();
    assert!(error.message.contains(variable.0) && error.exit == Exit::Usage);
}

#[test]
fn a_wrong_log_level_is_found_wherever_it_is_set() {
    let variable = ("ADIT_RELAY_LOG_LEVEL", "nonsense");
    let flag = Flag { path: "log.level", name: "--log-level", value: "nonsense".into() };
    for (toml, environment, flags, origin) in [
        ("[log]\nlevel = \"nonsense\"", vec![], vec![], "relay.toml:2: "),
        ("", vec![variable], vec![], "environment ADIT_RELAY_LOG_LEVEL: "),
        ("", vec![], vec![flag], "flag --log-level: "),
    ] {
        let error = load(toml, &environment, flags).unwrap_err();
        assert_eq!((error.code, error.exit), ("log_level_invalid", Exit::Usage));
        assert!(error.message.contains(origin), "{}", error.message);
    }
}

#[test]
fn unknown_keys_name_place_and_nearest_key() {
    for (toml, name, nearest) in [
        ("\n[relay]\nlisen = []", ":3: unknown key \"relay.lisen\"", "relay.listen"),
        ("[rely]\nlisten = []", ":1: unknown key \"rely\"", "[relay]"),
        ("[limts]\npairs = 3", ":1: unknown key \"limts\"", "[limits]"),
        ("listen = []", ":1: unknown key \"listen\"", "\"relay.listen\""),
        ("relay = 3", ":1: unknown key \"relay\"", "[relay]"),
        ("[[relay]]\n", "unknown key \"relay\"", "[relay]"),
    ] {
        let error = load(toml, &[], vec![]).unwrap_err();
        assert_eq!((error.code, error.exit), ("config_unknown_key", Exit::Usage));
        assert!(error.message.contains(name), "{}", error.message);
        let hint = error.hint.unwrap();
        assert!(hint.contains(nearest), "{hint}");
    }
    let error = load("", &[("ADIT_RELAY_RELAY_LISTN", "x")], vec![]).unwrap_err();
    assert!(error.message.contains("ADIT_RELAY_RELAY_LISTN"));
    assert!(error.hint.unwrap().contains("ADIT_RELAY_RELAY_LISTEN"));
}

#[test]
fn a_key_of_any_length_is_refused_at_once_and_quoted_in_part() {
    let long = "x".repeat(1_000_000);
    let nested = "relay.".to_owned() + &long;
    let since = std::time::Instant::now();
    for toml in [format!("{long} = 1"), format!("[{long}]"), format!("{nested} = 1")] {
        let error = load(&toml, &[], vec![]).unwrap_err();
        assert_eq!(error.code, "config_unknown_key");
        assert!(error.message.len() < 300, "{} bytes", error.message.len());
        assert!(error.hint.unwrap().contains("config show"));
    }
    let variable = format!("ADIT_RELAY_{long}");
    let error = load("", &[(&variable, "x")], vec![]).unwrap_err();
    assert!(error.message.len() < 300, "{} bytes", error.message.len());
    // Comparing one of them with every known key takes minutes.
    assert!(since.elapsed() < std::time::Duration::from_secs(10), "{:?}", since.elapsed());
    // The last one that is still looked up.
    let error = load(&format!("\"{}\" = 1", "é".repeat(64)), &[], vec![]).unwrap_err();
    assert!(error.hint.unwrap().starts_with("did you mean"));
}

#[test]
fn wrong_values_are_errors_with_their_line() {
    for toml in [
        "[relay]\nlisten = \"a\"",
        "[relay]\nlisten = [1]",
        "[relay]\nidle_timeout = 15",
        "[relay]\nsplice = \"yes\"",
        "[limits]\npairs = 99999999999999999999",
        "[limits]\npairs = ",
    ] {
        let error = load(toml, &[], vec![]).unwrap_err();
        assert_eq!(error.code, "config_invalid", "{toml}");
        assert!(error.message.contains("relay.toml:2"), "{}", error.message);
    }
}

#[test]
fn secrets_never_reach_debug_output_or_errors() {
    let config = load("[proxy]\npassword = \"hunter2\"", &[], vec![]).unwrap();
    assert_eq!(config.opt_secret("proxy.password").unwrap().unwrap().as_str(), "hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
    let error = load("[proxy]\npassword = \"hunter2", &[], vec![]).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn a_config_file_that_was_named_must_exist() {
    let sources = Sources { config: Some("/nonexistent/x.toml".into()), ..Sources::default() };
    let error = Config::load(&RELAY, KEYS, &sources).unwrap_err();
    assert_eq!((error.code, error.exit), ("config_unreadable", Exit::Usage));
}

#[test]
fn checking_a_directory_that_does_not_exist_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let typo = Some(directory.path().join("typo"));
    let sources = Sources { data_dir: typo, ..Sources::default() };
    let run = |command: ConfigCommand, sources: &Sources| {
        command.run(&RELAY, KEYS, sources, crate::output::Output::new(true))
    };
    let error = run(ConfigCommand::Check, &sources).unwrap_err();
    assert_eq!((error.code, error.exit), ("data_dir_missing", Exit::Usage));
    assert!(error.message.contains("typo"), "{}", error.message);
    let good = Sources { data_dir: Some(directory.path().to_owned()), ..Sources::default() };
    run(ConfigCommand::Check, &good).unwrap();
}
