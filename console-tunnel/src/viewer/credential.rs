//! How a viewer is given a secret: never by its command line or environment.
//!
//! | Viewer | Kind | Way |
//! |---|---|---|
//! | OpenSSH | password | it asks this program (`SSH_ASKPASS`) over a private socket, once |
//! | OpenSSH | ssh_key | an agent of its own that holds the key in memory |
//! | FreeRDP | password | its standard input |
//! | TigerVNC | password | a pipe in the file system, read once |
//!
//! All of that is for Unix. Elsewhere, and for other viewers, no credential is handed over. What
//! this cannot do: hide the secret from whoever controls this machine (docs/credentials.md).

use adit_runtime::cli::CliError;
use zeroize::Zeroizing;

use super::{Choice, UserName};

/// A stored credential on its way to a viewer.
pub struct Usable {
    /// User at the target.
    pub user: Option<UserName>,
    /// password, ssh_key, other
    pub kind: String,
    /// Must never be shown.
    pub secret: Zeroizing<String>,
}

impl std::fmt::Debug for Usable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Usable").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Ways to hand a secret over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// OpenSSH asks us.
    Askpass,
    /// OpenSSH asks an agent.
    Agent,
    /// FreeRDP reads its standard input.
    Stdin,
    /// TigerVNC reads a file.
    Pipe,
}

/// What a viewer needs besides its command.
#[derive(Default)]
pub struct Handover {
    /// Arguments, and behind which word they go; the program if there is none such.
    pub arguments: Vec<String>,
    /// The program that takes them, in a terminal's command.
    pub behind: Option<&'static str>,
    /// Variables, none of which is a secret.
    pub variables: Vec<(&'static str, std::ffi::OsString)>,
    /// For standard input.
    pub stdin: Option<Zeroizing<String>>,
    /// Dropped with the viewer: then sockets, pipes and agents are gone.
    #[cfg(unix)]
    pub keeper: Option<super::handover::Keeper>,
}

impl Handover {
    /// Puts the arguments into a command.
    pub fn extend(&self, command: &mut Vec<String>) {
        let is = |word: &String, name: &str| {
            std::path::Path::new(word).file_name().and_then(|file| file.to_str()) == Some(name)
        };
        let named = |name: &&str| command.iter().position(|word| is(word, name));
        let at = self.behind.as_ref().and_then(named).unwrap_or(0);
        let at = at.saturating_add(1).min(command.len());
        command.splice(at..at, self.arguments.iter().cloned());
    }
}

/// Programs that take FreeRDP's options.
const FREERDP: [&str; 4] = ["xfreerdp3", "xfreerdp", "wlfreerdp", "sdl-freerdp"];
/// Names of TigerVNC's viewer.
const TIGERVNC: [&str; 2] = ["vncviewer", "xtigervncviewer"];

impl Choice {
    /// How this viewer takes a secret of this kind; `None` if it cannot.
    pub fn way(&self, kind: &str) -> Option<Way> {
        if cfg!(not(unix)) {
            return None;
        }
        let is = |names: &[&str]| {
            let known = |word: &String| {
                let file = std::path::Path::new(word).file_name().and_then(|file| file.to_str());
                file.is_some_and(|file| names.contains(&file))
            };
            self.template.iter().any(known)
        };
        let program = self.name();
        match (self.kind.as_str(), kind) {
            ("ssh", "password") if is(&["ssh"]) => Some(Way::Askpass),
            ("ssh", "ssh_key") if is(&["ssh"]) => Some(Way::Agent),
            ("rdp", "password") if FREERDP.contains(&program.as_str()) => Some(Way::Stdin),
            ("vnc", "password") if TIGERVNC.contains(&program.as_str()) => Some(Way::Pipe),
            _ => None,
        }
    }

    /// Whether it takes any secret at all.
    pub fn takes_secrets(&self) -> bool {
        ["password", "ssh_key"].into_iter().any(|kind| self.way(kind).is_some())
    }

    /// Why it cannot be given a credential.
    pub fn unsupported(&self, kind: &str) -> CliError {
        let text = format!("{} cannot be given a stored {kind}", self.name());
        CliError::failed("credential_unsupported", text).hint(
            "OpenSSH, FreeRDP and TigerVNC on Unix can; otherwise somebody who may read the \
             credential has to type it",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Shell;
    use super::*;

    fn choice(kind: &str, words: &[&str]) -> Choice {
        Choice {
            kind: kind.to_owned(),
            program: words[0].into(),
            template: words.iter().map(|word| (*word).to_owned()).collect(),
            shell: Shell::Window,
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_viewers_that_take_a_secret_safely_get_one() {
        for (kind, words, secret, way) in [
            ("ssh", &["ssh", "{host}"][..], "password", Some(Way::Askpass)),
            ("ssh", &["xterm", "-e", "ssh", "{host}"], "ssh_key", Some(Way::Agent)),
            ("ssh", &["putty", "{host}"], "password", None),
            ("rdp", &["/usr/bin/xfreerdp", "/v:{host}"], "password", Some(Way::Stdin)),
            ("rdp", &["remmina", "-c"], "password", None),
            ("rdp", &["xfreerdp"], "ssh_key", None),
            ("vnc", &["vncviewer", "{host}"], "password", Some(Way::Pipe)),
            ("browser", &["firefox", "{url}"], "password", None),
        ] {
            assert_eq!(choice(kind, words).way(secret), way, "{words:?} {secret}");
        }
    }

    #[test]
    fn arguments_go_to_the_program_that_takes_them() {
        let handover = Handover {
            arguments: vec!["-oA".into(), "-oB".into()],
            behind: Some("ssh"),
            ..Handover::default()
        };
        for (before, after) in [
            ("/usr/bin/ssh -p1 host", "/usr/bin/ssh -oA -oB -p1 host"),
            ("xterm -e ssh -p1 host", "xterm -e ssh -oA -oB -p1 host"),
        ] {
            let mut command = before.split(' ').map(str::to_owned).collect();
            handover.extend(&mut command);
            assert_eq!(command.join(" "), after);
        }
    }
}
