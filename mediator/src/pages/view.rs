//! The templates, and their texts.

use askama::Template;
use zeroize::Zeroizing;

/// A page as text. A template that cannot be rendered is a fault of ours.
pub(super) fn render(page: &impl Template) -> String {
    page.render().unwrap_or_else(|error| {
        tracing::error!(%error, "a page cannot be rendered");
        "something failed here".to_owned()
    })
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
