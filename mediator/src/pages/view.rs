//! The templates, and their texts.

use adit_runtime::cli::escape_text;
use askama::Template;
use zeroize::Zeroizing;

/// A page as text. A template that cannot be rendered is a fault of ours. What is no markup may
/// still reorder the words around it, or hide some: no such character leaves here (R35).
pub(super) fn render(page: &impl Template) -> String {
    let text = page.render().unwrap_or_else(|error| {
        tracing::error!(%error, "a page cannot be rendered");
        "something failed here".to_owned()
    });
    let lines: Vec<String> = text.split('\n').map(escape_text).collect();
    lines.join("\n")
}

/// A provider to log in with.
pub(super) struct Offered {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) query: String,
}

#[derive(Template)]
#[template(path = "login.html")]
pub(super) struct LoginPage {
    pub(super) csrf: String,
    pub(super) device: String,
    pub(super) user: String,
    pub(super) error: String,
    pub(super) providers: Vec<Offered>,
}

#[derive(Template)]
#[template(path = "second.html")]
pub(super) struct SecondPage {
    pub(super) csrf: String,
    pub(super) device: String,
    pub(super) error: String,
    pub(super) totp: bool,
    pub(super) recovery: bool,
    /// Ids of security keys.
    pub(super) keys: String,
    pub(super) challenge: String,
    pub(super) rp: String,
}

#[derive(Template)]
#[template(path = "code.html")]
pub(super) struct CodePage {
    pub(super) csrf: String,
    pub(super) user: String,
    pub(super) error: String,
}

#[derive(Template)]
#[template(path = "confirm.html")]
pub(super) struct ConfirmPage {
    pub(super) csrf: String,
    pub(super) user: String,
    pub(super) code: String,
    pub(super) name: String,
    pub(super) source: String,
    pub(super) fingerprint: String,
    pub(super) device: String,
}

#[derive(Template)]
#[template(path = "message.html")]
pub(super) struct Message {
    heading: String,
    text: String,
    alert: bool,
    link: String,
    link_text: String,
    refresh: String,
}

impl Message {
    /// Something that is so.
    pub(super) fn note(heading: &str, text: impl Into<String>) -> Self {
        Self {
            heading: heading.to_owned(),
            text: text.into(),
            alert: false,
            link: String::new(),
            link_text: String::new(),
            refresh: String::new(),
        }
    }

    /// Something that went wrong.
    pub(super) fn alert(heading: &str, text: impl Into<String>) -> Self {
        Self { alert: true, ..Self::note(heading, text) }
    }

    /// Where to go from here.
    pub(super) fn link(self, target: &str, text: &str) -> Self {
        Self { link: target.to_owned(), link_text: text.to_owned(), ..self }
    }

    /// The browser goes there by itself.
    pub(super) fn onward(target: &str, text: &str) -> Self {
        let page = Self::note("One moment", text).link(target, "Go on");
        Self { refresh: target.to_owned(), ..page }
    }
}

#[derive(Template)]
#[template(path = "codes.html")]
pub(super) struct CodesPage {
    pub(super) added: bool,
    pub(super) codes: Vec<Zeroizing<String>>,
    pub(super) link: String,
}

#[derive(Template)]
#[template(path = "totp.html")]
pub(super) struct TotpPage {
    pub(super) csrf: String,
    pub(super) device: String,
    pub(super) factor: String,
    pub(super) error: String,
    pub(super) secret: Zeroizing<String>,
    pub(super) picture: Zeroizing<String>,
    pub(super) size: i32,
}

/// A second factor in the list.
pub(super) struct ListedFactor {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) used: String,
}

/// A link in the list.
pub(super) struct ListedLink {
    pub(super) provider: String,
    pub(super) subject: String,
}

#[derive(Template)]
#[template(path = "account.html")]
pub(super) struct AccountPage {
    pub(super) csrf: String,
    pub(super) device: String,
    pub(super) user: String,
    pub(super) user_id: String,
    pub(super) partner: String,
    pub(super) expires: String,
    pub(super) error: String,
    /// The error is that the login is not fresh.
    pub(super) again: bool,
    pub(super) limited: bool,
    pub(super) only_keys: bool,
    pub(super) factors: Vec<ListedFactor>,
    pub(super) recovery: u32,
    pub(super) keys: String,
    pub(super) challenge: String,
    pub(super) rp: String,
    pub(super) providers: Vec<Offered>,
    pub(super) links: Vec<ListedLink>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Markup, ends of attributes, script, addresses that are script, templates of other engines,
    /// direction, control and invisible characters.
    const HOSTILE: &str = "\"'><img src=x onerror=a()></p><script>a()</script><!--{{7*7}}${7*7}\
        &lt;javascript:a() ]]>`\u{202e}\u{2066}\u{200b}\u{feff}\u{1b}[2J\u{9b}31m\0\r\u{2028}";

    /// Every page with the same words in all of its fields; by template.
    fn pages(words: &str) -> Vec<(&'static str, String)> {
        let h = || words.to_owned();
        let offered = || vec![Offered { id: h(), name: h(), query: h() }];
        let secret = || Zeroizing::new(h());
        let (csrf, device, user, error) = (h, h, h, h);
        let account = |all: bool| AccountPage {
            csrf: csrf(),
            device: device(),
            user: user(),
            user_id: h(),
            partner: h(),
            expires: h(),
            error: error(),
            again: all,
            limited: !all,
            only_keys: !all,
            factors: vec![ListedFactor { id: h(), kind: "totp", name: h(), used: h() }],
            recovery: 1,
            keys: h(),
            challenge: h(),
            rp: h(),
            providers: offered(),
            links: vec![ListedLink { provider: h(), subject: h() }],
        };
        let login = LoginPage {
            csrf: csrf(),
            device: device(),
            user: user(),
            error: error(),
            providers: offered(),
        };
        let second = SecondPage {
            csrf: csrf(),
            device: device(),
            error: error(),
            totp: true,
            recovery: true,
            keys: h(),
            challenge: h(),
            rp: h(),
        };
        let confirm = ConfirmPage {
            csrf: csrf(),
            user: user(),
            code: h(),
            name: h(),
            source: h(),
            fingerprint: h(),
            device: device(),
        };
        let totp = TotpPage {
            csrf: csrf(),
            device: device(),
            factor: h(),
            error: error(),
            secret: secret(),
            picture: secret(),
            size: 1,
        };
        vec![
            ("login.html", render(&login)),
            ("second.html", render(&second)),
            ("code.html", render(&CodePage { csrf: csrf(), user: user(), error: error() })),
            ("confirm.html", render(&confirm)),
            ("message.html", render(&Message::onward(words, words))),
            ("message.html", render(&Message::alert(words, words).link(words, words))),
            ("codes.html", render(&CodesPage { added: true, codes: vec![secret()], link: h() })),
            ("totp.html", render(&totp)),
            ("account.html", render(&account(true))),
            ("account.html", render(&account(false))),
        ]
    }

    /// What a browser takes for markup: all of it but texts and what stands between quotes.
    fn markup(page: &str) -> String {
        let (mut in_tag, mut quoted) = (false, false);
        let is_markup = |c: &char| {
            let was = in_tag && !quoted;
            match c {
                '<' if !quoted => in_tag = true,
                '>' if was => in_tag = false,
                '"' if in_tag => quoted = !quoted,
                _ => {}
            }
            was || (in_tag && !quoted)
        };
        page.chars().filter(is_markup).collect()
    }

    /// A console's name comes from whoever asks for a login, a subject from another house.
    #[test]
    fn words_of_others_are_inert_on_every_page() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/templates");
        let there = std::fs::read_dir(folder).unwrap();
        let there = there.map(|file| file.unwrap().file_name().into_string().unwrap());
        let there: BTreeSet<String> = there.filter(|name| name != "base.html").collect();
        let (hostile, plain) = (pages(HOSTILE), pages("plain"));
        let shown: BTreeSet<String> = plain.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(shown, there, "a template is not looked at");
        for ((name, hostile), (_, plain)) in hostile.iter().zip(&plain) {
            assert_eq!(markup(hostile), markup(plain), "{name}: {hostile}");
            // As often as harmless words: nothing was left out, which would be no way to be safe.
            let often = plain.matches("plain").count() - plain.matches("class=\"plain").count();
            assert_eq!(hostile.matches("onerror=a()").count(), often, "{name}: {hostile}");
            assert!(!hostile.contains("<img") && !hostile.contains("<script>"), "{name}");
            assert!(!hostile.contains("49"), "{name}: something was worked out: {hostile}");
            let moves = |c: char| c != '\n' && escape_text(&c.to_string()) != c.to_string();
            assert!(!hostile.contains(moves), "{name}: {hostile:?}");
            assert!(hostile.contains("\\u{202e}\\u{2066}\\u{200b}"), "{name}: {hostile}");
        }
    }
}
