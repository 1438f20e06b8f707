//! Core dumps: all that a program has in memory, written to wherever the system wants when it
//! crashes. These programs hold keys and secrets and must leave none.

/// Forbids them, for this program and whatever it starts. Called first, before there is a secret.
pub fn forbid() {
    platform::forbid();
}

#[cfg(unix)]
mod platform {
    use rustix::process::{Resource, Rlimit, setrlimit};

    pub(super) fn forbid() {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        // To lower a limit is everybody's right; where it is not, it still has to run.
        let _ = setrlimit(Resource::Core, none);
    }
}

#[cfg(not(unix))]
mod platform {
    /// There, reports of crashes are the system's setting.
    pub(super) fn forbid() {}
}
