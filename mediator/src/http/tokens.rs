//! Short-lived tokens that consoles get over their control connection for the API.
//!
//! In memory only: after a restart a console asks for another. A token stands for a login and is
//! worth as much as that is at each use, and only with proofs by the console's identity.

use std::{
    collections::{HashMap, VecDeque},
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
/// Tokens of one login; beyond it, its own oldest one gives way: nobody pushes others out.
const MAX_TOKENS_EACH: usize = 8;
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
pub(crate) struct Tokens(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// By their hash.
    held: HashMap<[u8; 32], Held>,
    /// The hashes of each login's, oldest first.
    of_login: HashMap<LoginId, VecDeque<[u8; 32]>>,
}

impl Table {
    fn insert(&mut self, token: [u8; 32], new: Held) {
        let own = self.of_login.entry(new.login).or_default();
        own.push_back(token);
        let first = if own.len() > MAX_TOKENS_EACH { own.pop_front() } else { None };
        if let Some(first) = first {
            self.held.remove(&first);
        }
        self.held.insert(token, new);
    }

    fn make_room(&mut self, now: Instant) {
        if self.held.len() < MAX_TOKENS {
            return;
        }
        let last = self.held.values().map(|held| held.until).min();
        let last = last.map_or(now, |first| first.max(now));
        self.held.retain(|_, held| held.until > last);
        let held = &self.held;
        self.of_login.retain(|_, own| {
            own.retain(|token| held.contains_key(token));
            !own.is_empty()
        });
    }
}

impl Tokens {
    /// Makes one; `None` without randomness.
    pub(crate) fn issue(&self, login: LoginId, device: PublicKey) -> Option<Zeroizing<String>> {
        let secret = Zeroizing::new(random::<32>().ok()?);
        let text = adit_protocol::dpop::base64url(&secret[..]);
        let token = Zeroizing::new(format!("{CONSOLE_PREFIX}{text}"));
        let now = Instant::now();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.make_room(now);
        table.insert(sha256(token.as_bytes()), Held { login, device, until: now + LIFE });
        Some(token)
    }

    /// Whom a token stands for, if it is good.
    pub(crate) fn find(&self, token: &str) -> Option<Held> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table
            .held
            .get(&sha256(token.as_bytes()))
            .filter(|held| held.until > Instant::now())
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_with_many_tokens_pushes_out_its_own_only() {
        let tokens = Tokens::default();
        let device = PublicKey([1; 32]);
        let honest = tokens.issue([1; 32], device).unwrap();
        let many: Vec<_> = (0..100).map(|_| tokens.issue([2; 32], device).unwrap()).collect();
        assert!(tokens.find(&honest).is_some());
        let good = many.iter().filter(|token| tokens.find(token).is_some()).count();
        assert_eq!(good, MAX_TOKENS_EACH);
        assert!(tokens.find(many.last().unwrap()).is_some());
        assert_eq!(tokens.0.lock().unwrap().held.len(), 1 + MAX_TOKENS_EACH);
    }

    #[test]
    fn tokens_in_all_are_bounded_and_the_newest_counts() {
        let tokens = Tokens::default();
        let device = PublicKey([1; 32]);
        for n in 0..u32::try_from(MAX_TOKENS + 10).unwrap() {
            let mut login = [0; 32];
            login[..4].copy_from_slice(&n.to_be_bytes());
            let token = tokens.issue(login, device).unwrap();
            assert!(tokens.find(&token).is_some());
        }
        let table = tokens.0.lock().unwrap();
        assert!(table.held.len() <= MAX_TOKENS && table.of_login.len() <= MAX_TOKENS);
    }
}
