//! Turns a command template and typed values into an argument vector.
//!
//! A template word becomes one argument or, if a value it names is missing, none. No value can
//! become an option, a further argument or another program: values are validated before, and a
//! word that would begin with `-` only because of a value is an error.

use std::net::IpAddr;

use adit_protocol::ids::ComputerId;

/// Longest user name given to a viewer.
pub const MAX_USER: usize = 104;
/// Longest window title given to a viewer.
const MAX_TITLE: usize = 80;

/// Why a command cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nothing of this name.
    #[error(
        "unknown placeholder {{{0}}}: {{host}}, {{port}}, {{display}}, {{user}}, {{user@}}, \
         {{url}}, {{cert}}, {{alias}} and {{title}} are known"
    )]
    Unknown(String),
    /// A brace without its counterpart.
    #[error("brace without its counterpart in \"{0}\"")]
    Brace(String),
    /// No program.
    #[error("a viewer's command needs a program as its first word, without placeholders")]
    NoProgram,
    /// A value would turn the word into an option.
    #[error("\"{0}\" would become an option")]
    Option(String),
    /// Not a user name.
    #[error("not a user name: letters, digits and . _ - @ \\ + are expected, no - in front")]
    InvalidUser,
}

/// A user's name at the target: never looking like an option or like more than one argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName(String);

impl std::str::FromStr for UserName {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let good = |c: char| c.is_alphanumeric() || "._-@\\+ ".contains(c);
        let valid = (1..=MAX_USER).contains(&text.len())
            && text.chars().all(good)
            && !text.starts_with(['-', ' '])
            && !text.ends_with(' ');
        if valid { Ok(Self(text.to_owned())) } else { Err(TemplateError::InvalidUser) }
    }
}

/// What may be put into a template.
#[derive(Debug, Clone)]
pub struct Values {
    /// Where the console listens.
    pub host: IpAddr,
    /// Where the console listens.
    pub port: u16,
    /// User at the target, if given.
    pub user: Option<UserName>,
    /// Whether the web service speaks TLS.
    pub https: bool,
    /// Whether the target is the computer itself, which the session authenticates.
    pub own_computer: bool,
    /// The computer.
    pub computer: ComputerId,
    /// Name of the computer, for the window's title.
    pub title: String,
}

/// Checks a template: program without placeholders, only known placeholders.
pub fn check(template: &[impl AsRef<str>]) -> Result<(), TemplateError> {
    let program = template.first().map(AsRef::as_ref).unwrap_or_default();
    if program.is_empty() || program.starts_with('-') || program.contains(['{', '}']) {
        return Err(TemplateError::NoProgram);
    }
    for word in template {
        for piece in pieces(word.as_ref())? {
            if let Piece::Placeholder(name) = piece
                && !KNOWN.contains(&name)
            {
                return Err(TemplateError::Unknown(name.to_owned()));
            }
        }
    }
    Ok(())
}

/// Makes the argument vector, the program first.
pub fn expand(template: &[impl AsRef<str>], values: &Values) -> Result<Vec<String>, TemplateError> {
    check(template)?;
    let mut out = Vec::with_capacity(template.len());
    for word in template {
        let word = word.as_ref();
        let Some(argument) = expand_word(word, values)? else { continue };
        if argument.starts_with('-') && !word.starts_with('-') {
            return Err(TemplateError::Option(argument));
        }
        out.push(argument);
    }
    Ok(out)
}

const KNOWN: [&str; 9] =
    ["host", "port", "display", "user", "user@", "url", "cert", "alias", "title"];

/// `None` if the word names a value that is missing.
fn expand_word(word: &str, values: &Values) -> Result<Option<String>, TemplateError> {
    let pieces = pieces(word)?;
    let alone = pieces.len() == 1;
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Placeholder(name) => match value(name, alone, values)? {
                Some(text) => out.push_str(&text),
                None => return Ok(None),
            },
        }
    }
    Ok(Some(out))
}

fn value(name: &str, alone: bool, values: &Values) -> Result<Option<String>, TemplateError> {
    let host = |alone: bool| match values.host {
        IpAddr::V6(ip) if !alone => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    let scheme = if values.https { "https" } else { "http" };
    Ok(Some(match name {
        "host" => host(alone),
        "port" => values.port.to_string(),
        "display" => (i32::from(values.port) - 5900).to_string(),
        "user" => match &values.user {
            Some(UserName(user)) => user.clone(),
            None => return Ok(None),
        },
        "user@" => values.user.as_ref().map(in_url).unwrap_or_default(),
        "url" => format!("{scheme}://{}:{}/", host(false), values.port),
        "cert" => if values.own_computer { "ignore" } else { "tofu" }.to_owned(),
        "alias" => format!("adit-{}", values.computer),
        "title" => title(&values.title),
        other => return Err(TemplateError::Unknown(other.to_owned())),
    }))
}

/// Percent-encoded as RFC 3986 §3.2.1 wants it, with the `@`.
fn in_url(UserName(user): &UserName) -> String {
    let mut out = String::new();
    for byte in user.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out.push('@');
    out
}

/// A computer's name is its agent's word: only what is harmless in a window title is left.
fn title(name: &str) -> String {
    let kept = name.chars().filter(|c| c.is_alphanumeric() || "._-/ ".contains(*c));
    let kept: String = kept.take(MAX_TITLE).collect();
    let kept = kept.trim_start_matches(['-', ' ']).trim_end();
    if kept.is_empty() { "computer".to_owned() } else { kept.to_owned() }
}

enum Piece<'a> {
    Text(&'a str),
    Placeholder(&'a str),
}

fn pieces(word: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let brace = || TemplateError::Brace(word.to_owned());
    let mut out = Vec::new();
    let mut rest = word;
    while !rest.is_empty() {
        let (text, after) = match rest.split_once('{') {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        if text.contains('}') {
            return Err(brace());
        }
        if !text.is_empty() {
            out.push(Piece::Text(text));
        }
        let Some(after) = after else { break };
        let (name, after) = after.split_once('}').ok_or_else(brace)?;
        if name.contains('{') {
            return Err(brace());
        }
        out.push(Piece::Placeholder(name));
        rest = after;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::table::{KINDS, TABLE, rows};
    use super::*;
    use proptest::prelude::*;

    fn values(user: Option<&str>) -> Values {
        Values {
            host: "127.0.0.1".parse().unwrap(),
            port: 40123,
            user: user.map(|u| u.parse().unwrap()),
            https: false,
            own_computer: true,
            computer: ComputerId([7; 16]),
            title: "pc 1".into(),
        }
    }

    fn first(os: &str, kind: &str, program: &str, user: Option<&str>) -> Vec<String> {
        let row = rows(os, kind).find(|row| row.command[0] == program).unwrap();
        expand(row.command, &values(user)).unwrap()
    }

    #[test]
    fn commands_of_the_build_are_what_the_programs_take() {
        let alias = "-oHostKeyAlias=adit-07070707-0707-0707-0707-070707070707";
        for (os, kind, program, user, expected) in [
            (
                "linux",
                "rdp",
                "xfreerdp",
                Some("ACME\\ann"),
                "xfreerdp|/v:127.0.0.1:40123|/u:ACME\\ann|/cert:ignore|/t:pc 1|\
                 /dynamic-resolution|+clipboard",
            ),
            ("linux", "rdp", "remmina", None, "remmina|-c|rdp://127.0.0.1:40123"),
            ("linux", "rdp", "remmina", Some("a@b"), "remmina|-c|rdp://a%40b@127.0.0.1:40123"),
            ("freebsd", "vnc", "vncviewer", None, "vncviewer|127.0.0.1::40123"),
            ("linux", "vnc", "gvncviewer", None, "gvncviewer|127.0.0.1:34223"),
            ("linux", "browser", "xdg-open", None, "xdg-open|http://127.0.0.1:40123/"),
            ("windows", "rdp", "mstsc.exe", None, "mstsc.exe|/v:127.0.0.1:40123"),
        ] {
            assert_eq!(first(os, kind, program, user).join("|"), expected);
        }
        let ssh = first("linux", "ssh", "xterm", Some("root"));
        let words = ["xterm", "-e", "ssh", "-p40123", alias, "-oUser=root", "127.0.0.1"];
        assert_eq!(ssh, words);
    }

    #[test]
    fn every_kind_has_a_viewer_on_every_system_and_every_row_is_sound() {
        for os in ["linux", "macos", "windows", "netbsd"] {
            for kind in KINDS {
                assert!(rows(os, kind).next().is_some(), "{os} {kind}");
            }
        }
        for row in TABLE {
            assert!(KINDS.contains(&row.kind));
            check(row.command).unwrap();
        }
    }

    #[test]
    fn wrong_templates_are_refused() {
        for template in [
            &[][..],
            &[""],
            &["{host}"],
            &["-x"],
            &["x", "{hots}"],
            &["x", "{host"],
            &["x", "host}"],
            &["x", "{{host}}"],
            &["x", "{}"],
        ] {
            assert!(check(template).is_err(), "{template:?}");
        }
    }

    #[test]
    fn users_that_could_be_options_or_several_arguments_are_refused() {
        for bad in ["", "-oProxyCommand=x", " a", "a\n", "a'b", "$(x)", "a;b", "a/b", "\u{202e}x"] {
            assert!(bad.parse::<UserName>().is_err(), "{bad}");
        }
        for good in ["ann", "ACME\\ann", "ann@acme.example", "Jörg K", "svc-1+x"] {
            assert!(good.parse::<UserName>().is_ok(), "{good}");
        }
    }

    #[test]
    fn addresses_have_brackets_only_inside_words() {
        let values = Values { host: "::1".parse().unwrap(), ..values(None) };
        let template = ["x", "{host}", "{host}:{port}", "{url}"];
        assert_eq!(
            expand(&template, &values).unwrap(),
            ["x", "::1", "[::1]:40123", "http://[::1]:40123/"]
        );
    }

    proptest! {
        #[test]
        fn no_value_becomes_an_option_or_a_further_argument(
            user in "\\PC{1,30}", title in "\\PC{0,60}", port in 1u16.., v6 in any::<bool>(),
        ) {
            let host = if v6 { "::1" } else { "127.0.0.1" };
            let values = Values {
                host: host.parse().unwrap(),
                port,
                user: user.parse().ok(),
                title,
                ..values(None)
            };
            let lone: Vec<String> = KNOWN.iter().map(|name| format!("{{{name}}}")).collect();
            let lone: Vec<&str> = std::iter::once("x").chain(lone.iter().map(String::as_str)).collect();
            for template in TABLE.iter().map(|row| row.command).chain([&lone[..]]) {
                let Ok(arguments) = expand(template, &values) else { continue };
                prop_assert!(arguments.len() <= template.len());
                // Each argument goes back to a word, in order, that begins with the same literal.
                let mut words = template.iter();
                for argument in &arguments {
                    let word = words.find(|word| {
                        let literal = word.split('{').next().unwrap_or_default();
                        argument.starts_with(literal)
                    });
                    prop_assert!(word.is_some());
                    prop_assert!(!argument.starts_with('-') || word.unwrap().starts_with('-'));
                    prop_assert!(!argument.contains(['\0', '\n', '\'', '"', '`', '$', ';']));
                }
            }
        }
    }
}
