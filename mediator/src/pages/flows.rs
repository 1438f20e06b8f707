//! What the page remembers of a browser between two requests, before somebody is logged in and
//! while a security key is asked for: a state machine without clock or randomness.
//!
//! In memory only, bounded, for ten minutes. INVARIANT: a challenge and a state are taken when they
//! are looked at: nothing is answered twice.

use std::collections::BTreeMap;

use adit_protocol::keys::PublicKey;

use crate::{oidc::Begun, serve::Passed};

/// How long it is remembered, milliseconds.
pub(crate) const LIFE_MS: u64 = 10 * 60_000;
/// Browsers that are remembered; the oldest is forgotten first.
const MAX_FLOWS: usize = 4096;
/// Second factors that may be wrong before the first one is asked for again.
pub(crate) const MAX_TRIES: u32 = 5;

/// For what a security key is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To log in.
    Login,
    /// To be registered.
    Register,
}

#[derive(Default)]
struct Flow {
    at_ms: u64,
    passed: Option<Passed>,
    tries: u32,
    challenge: Option<([u8; 32], Purpose)>,
    oidc: Option<Begun>,
}

/// All browsers that are in the middle of something.
#[derive(Default)]
pub(crate) struct Flows(BTreeMap<[u8; 32], Flow>);

impl Flows {
    /// A first factor was right.
    pub(crate) fn handle_passed(&mut self, browser: PublicKey, passed: Passed, now_ms: u64) {
        let flow = self.flow(browser, now_ms);
        *flow = Flow { at_ms: now_ms, passed: Some(passed), ..Flow::default() };
    }

    /// The first factor that was right, if a second one may still be shown.
    pub(crate) fn passed(&mut self, browser: PublicKey, now_ms: u64) -> Option<Passed> {
        self.forget_old(now_ms);
        self.0.get(&browser.0).and_then(|flow| flow.passed.clone())
    }

    /// A second factor was wrong; false: the first one is asked for again.
    pub(crate) fn handle_wrong(&mut self, browser: PublicKey, now_ms: u64) -> bool {
        self.forget_old(now_ms);
        let Some(flow) = self.0.get_mut(&browser.0) else { return false };
        flow.tries += 1;
        if flow.tries >= MAX_TRIES {
            self.0.remove(&browser.0);
            return false;
        }
        true
    }

    /// A security key is asked for; what was asked before is void.
    pub(crate) fn handle_challenge(
        &mut self,
        browser: PublicKey,
        challenge: [u8; 32],
        purpose: Purpose,
        now_ms: u64,
    ) {
        self.flow(browser, now_ms).challenge = Some((challenge, purpose));
    }

    /// The challenge that an answer must answer; only once.
    pub(crate) fn take_challenge(
        &mut self,
        browser: PublicKey,
        purpose: Purpose,
        now_ms: u64,
    ) -> Option<[u8; 32]> {
        self.forget_old(now_ms);
        let (challenge, asked) = self.0.get_mut(&browser.0)?.challenge.take()?;
        (asked == purpose).then_some(challenge)
    }

    /// The browser is sent to an identity provider.
    pub(crate) fn handle_sent(&mut self, browser: PublicKey, begun: Begun, now_ms: u64) {
        self.flow(browser, now_ms).oidc = Some(begun);
    }

    /// It came back; only once.
    pub(crate) fn take_sent(&mut self, browser: PublicKey, now_ms: u64) -> Option<Begun> {
        self.forget_old(now_ms);
        self.0.get_mut(&browser.0)?.oidc.take()
    }

    /// Logged in, or out: nothing is kept.
    pub(crate) fn handle_over(&mut self, browser: PublicKey) {
        self.0.remove(&browser.0);
    }

    fn flow(&mut self, browser: PublicKey, now_ms: u64) -> &mut Flow {
        self.forget_old(now_ms);
        if self.0.len() >= MAX_FLOWS && !self.0.contains_key(&browser.0) {
            let oldest = self.0.iter().min_by_key(|(_, flow)| flow.at_ms).map(|(key, _)| *key);
            oldest.map(|oldest| self.0.remove(&oldest));
        }
        self.0.entry(browser.0).or_insert_with(|| Flow { at_ms: now_ms, ..Flow::default() })
    }

    fn forget_old(&mut self, now_ms: u64) {
        self.0.retain(|_, flow| now_ms.saturating_sub(flow.at_ms) < LIFE_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_answered_once_in_time_and_for_its_purpose() {
        let (mut flows, browser) = (Flows::default(), PublicKey([1; 32]));
        flows.handle_challenge(browser, [7; 32], Purpose::Login, 0);
        assert_eq!(flows.take_challenge(PublicKey([2; 32]), Purpose::Login, 1), None);
        assert_eq!(flows.take_challenge(browser, Purpose::Login, 1), Some([7; 32]));
        assert_eq!(flows.take_challenge(browser, Purpose::Login, 1), None);
        flows.handle_challenge(browser, [8; 32], Purpose::Login, 1);
        assert_eq!(flows.take_challenge(browser, Purpose::Register, 1), None);
        assert_eq!(flows.take_challenge(browser, Purpose::Login, 1), None);
        flows.handle_challenge(browser, [9; 32], Purpose::Login, 2);
        assert_eq!(flows.take_challenge(browser, Purpose::Login, LIFE_MS + 2), None);
    }

    #[test]
    fn browsers_that_are_remembered_are_bounded() {
        let mut flows = Flows::default();
        for n in 0..u32::try_from(2 * MAX_FLOWS).unwrap() {
            let mut browser = [0; 32];
            browser[..4].copy_from_slice(&n.to_be_bytes());
            flows.handle_challenge(PublicKey(browser), [1; 32], Purpose::Login, n.into());
        }
        assert_eq!(flows.0.len(), MAX_FLOWS);
    }
}
