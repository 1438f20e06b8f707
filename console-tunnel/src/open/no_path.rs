//! Why a session never got a path, in words: what of direct and relayed failed, and how.

use adit_runtime::cli::{CliError, escape_text};

use crate::{advice, cli::Carrier, session::Explanation};

/// The error of a session that got no carrier in time. `said`: what it last said of its attempts.
pub(super) fn error(carrier: Carrier, said: Option<&Explanation>) -> CliError {
    let direct = direct(said.map(|said| said.failures.as_slice()).unwrap_or_default());
    let relays = said.map(|said| {
        said.relays.iter().map(|relay| (relay.name.as_str(), relay.joined)).collect::<Vec<_>>()
    });
    let relayed = relayed(relays.as_deref());
    let (message, hint) = match carrier {
        Carrier::Direct => (
            format!("no direct path came about in time: {direct}"),
            "--carrier auto also uses a relay",
        ),
        Carrier::Relayed => (
            format!("no relayed path came about in time: {relayed}"),
            "see that TCP to the relay passes from both ends, and that a relay is joined",
        ),
        Carrier::Auto => (
            format!("no path came about in time; direct: {direct}; relayed: {relayed}"),
            "see that UDP, or TCP to a relay, passes from both ends",
        ),
    };
    CliError::no_path("no_path", message).hint(hint)
}

/// The endpoint's words for failures of direct paths, as sentences.
fn direct(failures: &[&str]) -> String {
    if failures.is_empty() {
        return "nothing was heard of the other end".to_owned();
    }
    let words = failures.iter().map(|failure| match advice::of_word(failure) {
        Some(advice) => advice.what,
        None => failure,
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Relays by name and whether this end reached them; `None` if the session did not say.
fn relayed(relays: Option<&[(&str, bool)]>) -> String {
    match relays {
        None => "no relay could be used by both ends".to_owned(),
        Some([]) => "the mediator has no relay".to_owned(),
        Some(relays) => {
            let each = relays.iter().map(|(name, joined)| match joined {
                true => format!("the other end did not come to {}", escape_text(name)),
                false => format!("{} cannot be reached", escape_text(name)),
            });
            each.collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_says_which_of_both_failed_and_why() {
        for (carrier, parts) in [
            (Carrier::Auto, &["direct: ", "relayed: "][..]),
            (Carrier::Direct, &["no direct path"]),
            (Carrier::Relayed, &["no relayed path"]),
        ] {
            let error = error(carrier, None);
            assert_eq!((error.code, error.exit.code()), ("no_path", 5));
            assert!(parts.iter().all(|part| error.message.contains(part)), "{}", error.message);
        }
        assert_eq!(
            direct(&["udp_blocked", "brand_new"]),
            "no UDP passes from this computer, brand_new"
        );
        assert_eq!(relayed(Some(&[])), "the mediator has no relay");
        assert_eq!(
            relayed(Some(&[("a:1", true), ("b:2", false)])),
            "the other end did not come to a:1, b:2 cannot be reached"
        );
    }
}
