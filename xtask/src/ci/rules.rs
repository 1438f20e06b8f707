//! `docs/security-rules.md`: every rule that holds names tests, and every test named there is
//! there. Only the names are compared: whether a test shows its rule, people judge.

use super::{Findings, sources::File};

const TABLE: &str = "docs/security-rules.md";
/// What a rule says instead of naming a test.
const LATER: &str = "not yet";

/// Compares the table with the sources.
pub(crate) fn check(files: &[File]) -> Findings {
    let Some(table) = files.iter().find(|f| f.path == TABLE) else {
        return vec![format!("{TABLE} is missing")];
    };
    let mut findings = Vec::new();
    let mut rules = Vec::new();
    for line in table.text.lines() {
        let Some((rule, rest)) = row(line) else { continue };
        if rules.contains(&rule) {
            findings.push(format!("{TABLE} has {rule} twice"));
        }
        rules.push(rule);
        let tests: Vec<_> = rest.split('`').skip(1).step_by(2).filter_map(test).collect();
        if tests.is_empty() && !rest.contains(LATER) {
            findings.push(format!("{TABLE}: {rule} names no test and does not say \"{LATER}\""));
        }
        let missing = tests.iter().filter(|(path, name)| !is_there(files, path, name));
        findings.extend(missing.map(|(path, name)| {
            format!("{TABLE}: {rule} names {path}::{name}, which is not there")
        }));
    }
    if rules.is_empty() {
        findings.push(format!("{TABLE} has no rule"));
    }
    findings
}

/// The rule's id, such as `R01`, and the rest of its row.
fn row(line: &str) -> Option<(&str, &str)> {
    let (rule, rest) = line.strip_prefix("| R")?.split_once(" |")?;
    let id = line.get(2..3 + rule.len())?;
    rule.chars().all(|c| c.is_ascii_digit()).then_some((id, rest))
}

/// Path and name of `path/to/file.rs::name`.
fn test(text: &str) -> Option<(&str, &str)> {
    text.split_once("::").filter(|(path, _)| path.ends_with(".rs"))
}

/// Is it a function of that file, marked as a test?
fn is_there(files: &[File], path: &str, name: &str) -> bool {
    let Some(file) = files.iter().find(|f| f.path == path) else { return false };
    let head = format!("fn {name}(");
    file.text.match_indices(&head).any(|(at, _)| {
        let before = file.text.get(..at).unwrap_or_default();
        // Between the attribute and the function's line are other attributes at most.
        let above = before.rsplit('\n').skip(1).take_while(|l| !l.trim().is_empty());
        above.take(6).any(|l| ["#[test]", "#[tokio::test"].iter().any(|a| l.trim().starts_with(a)))
    })
}

#[cfg(test)]
mod tests {
    use super::{super::sources::file, *};

    fn findings(table: &str) -> String {
        let source = "#[test]\nfn holds() {}\n\n#[tokio::test(flavor = \"multi_thread\")]\n\
            #[allow(x)]\nasync fn holds_too() {}\n\nfn helper() {}\n";
        let files = [file("relay/tests/a.rs", source), file(TABLE, table)];
        check(&files).join("\n")
    }

    #[test]
    fn finds_rules_without_tests_and_tests_that_are_gone() {
        let sound = "| R01 | a | b | `relay/tests/a.rs::holds`, `relay/tests/a.rs::holds_too` |\n\
            | R02 | a | b | not yet: `later` |\n";
        assert_eq!(findings(sound), "");
        let gone = sound.replace("::holds`", "::held`");
        assert!(findings(&gone).contains("R01 names relay/tests/a.rs::held, which"));
        let helper = sound.replace("::holds`", "::helper`");
        assert!(findings(&helper).contains("helper, which is not there"));
        assert!(findings("| R01 | a | b | |\n").contains("R01 names no test"));
        assert!(findings(&sound.replace("R02", "R01")).contains("R01 twice"));
        assert!(findings("").contains("no rule"));
        assert!(check(&[]).join("").contains("is missing"));
    }
}
