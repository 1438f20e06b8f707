//! Short-lived tokens that consoles get over their control connection for the API.
//!
//! In memory only: after a restart a console asks for another. A token stands for a login and is
//! worth as much as that is at each use, and only with proofs by the console's identity.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_protocol::keys::{PublicKey, random, sha256};
use zeroize::Zeroizing;

use crate::store::accounts::LoginId;

/// Life of a token.
pub(crate) const LIFE: Duration = Duration::from_secs(600);
/// Tokens at a time; the one that ends first gives way.
const MAX_TOKENS: usize = 65_536;
/// Begins the token of an API key, followed by the key's id.
pub(crate) const KEY_PREFIX: &str = "adit-key-";
/// Begins a console's token.
const CONSOLE_PREFIX: &str = "adit-api-";

/// Whom a token stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) login: LoginId,
    pub(crate) device: PublicKey,
    until: Instant,
}

/// All tokens.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<[u8; 32], Held>>);

impl Tokens {
    /// Makes one; `None` without randomness.
    pub(crate) fn issue(&self, login: LoginId, device: PublicKey) -> Option<Zeroizing<String>> {
        let secret = Zeroizing::new(random::<32>().ok()?);
        let text = adit_protocol::dpop::base64url(&secret[..]);
        let token = Zeroizing::new(format!("{CONSOLE_PREFIX}{text}"));
        let now = Instant::now();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_TOKENS {
            table.retain(|_, held| held.until > now);
            let first = table.iter().min_by_key(|(_, held)| held.until).map(|(id, _)| *id);
            if let Some(first) = first.filter(|_| table.len() >= MAX_TOKENS) {
                table.remove(&first);
            }
        }
        table.insert(sha256(token.as_bytes()), Held { login, device, until: now + LIFE });
        Some(token)
    }

    /// Whom a token stands for, if it is good.
    pub(crate) fn find(&self, token: &str) -> Option<Held> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(&sha256(token.as_bytes())).filter(|held| held.until > Instant::now()).copied()
    }
}
