//! What the page remembers of a browser between two requests, before somebody is logged in and
//! while a security key is asked for: a state machine without clock or randomness.
//!
//! In memory only, bounded, for ten minutes; when there is no room, whichever source holds most
//! gives way, and of its browsers those first that have shown no password. INVARIANT: a challenge and a state are taken when they
//! are looked at: nothing is answered twice.

use std::collections::BTreeMap;

use adit_protocol::keys::PublicKey;

use crate::{
    oidc::Begun,
    serve::{Origin, Passed, Source},
};

/// How long it is remembered, milliseconds.
pub(crate) const LIFE_MS: u64 = 10 * 60_000;
/// Browsers that are remembered, and of one source.
const MAX_FLOWS: usize = 4096;
const MAX_FLOWS_PER_SOURCE: usize = 256;
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

struct Flow {
    at_ms: u64,
    source: Source,
    passed: Option<Passed>,
    tries: u32,
    challenge: Option<([u8; 32], Purpose)>,
    oidc: Option<Begun>,
}

impl Flow {
    fn new(source: Source, at_ms: u64) -> Self {
        Self { at_ms, source, passed: None, tries: 0, challenge: None, oidc: None }
    }
}

/// All browsers that are in the middle of something.
#[derive(Default)]
pub(crate) struct Flows(BTreeMap<[u8; 32], Flow>);

impl Flows {
    /// A first factor was right.
    pub(crate) fn handle_passed(&mut self, from: Origin, passed: Passed, now_ms: u64) {
        let flow = self.flow(from, now_ms);
        *flow = Flow { passed: Some(passed), ..Flow::new(flow.source, now_ms) };
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
        from: Origin,
        challenge: [u8; 32],
        purpose: Purpose,
        now_ms: u64,
    ) {
        self.flow(from, now_ms).challenge = Some((challenge, purpose));
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
    pub(crate) fn handle_sent(&mut self, from: Origin, begun: Begun, now_ms: u64) {
        self.flow(from, now_ms).oidc = Some(begun);
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

    fn flow(&mut self, from: Origin, now_ms: u64) -> &mut Flow {
        self.forget_old(now_ms);
        let (browser, source) = (from.device.0, Source::of(from.source.ip()));
        if !self.0.contains_key(&browser) {
            self.make_room(source);
        }
        self.0.entry(browser).or_insert_with(|| Flow::new(source, now_ms))
    }

    /// A source with many browsers makes room among its own, and is the first to make room for
    /// others.
    fn make_room(&mut self, source: Source) {
        let mut held: BTreeMap<Source, usize> = BTreeMap::new();
        self.0.values().for_each(|flow| *held.entry(flow.source).or_default() += 1);
        let own = held.get(&source).copied().unwrap_or(0);
        let who = match held.iter().max_by_key(|(_, count)| **count) {
            _ if own >= MAX_FLOWS_PER_SOURCE => source,
            Some((most, _)) if self.0.len() >= MAX_FLOWS => *most,
            _ => return,
        };
        let of_source = self.0.iter().filter(|(_, flow)| flow.source == who);
        let first = of_source.min_by_key(|(_, flow)| (flow.passed.is_some(), flow.at_ms));
        if let Some(browser) = first.map(|(browser, _)| *browser) {
            self.0.remove(&browser);
        }
    }

    fn forget_old(&mut self, now_ms: u64) {
        self.0.retain(|_, flow| now_ms.saturating_sub(flow.at_ms) < LIFE_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn browser(number: u32, source: u32) -> Origin {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let source = std::net::SocketAddr::new(std::net::Ipv4Addr::from(source).into(), 443);
        Origin { device: PublicKey(key), source }
    }

    #[test]
    fn a_challenge_is_answered_once_in_time_and_for_its_purpose() {
        let (mut flows, from) = (Flows::default(), browser(1, 1));
        let browser = from.device;
        flows.handle_challenge(from, [7; 32], Purpose::Login, 0);
        assert_eq!(flows.take_challenge(PublicKey([2; 32]), Purpose::Login, 1), None);
        assert_eq!(flows.take_challenge(browser, Purpose::Login, 1), Some([7; 32]));
        assert_eq!(flows.take_challenge(browser, Purpose::Login, 1), None);
        flows.handle_challenge(from, [8; 32], Purpose::Login, 1);
        assert_eq!(flows.take_challenge(browser, Purpose::Register, 1), None);
        assert_eq!(flows.take_challenge(browser, Purpose::Login, 1), None);
        flows.handle_challenge(from, [9; 32], Purpose::Login, 2);
        assert_eq!(flows.take_challenge(browser, Purpose::Login, LIFE_MS + 2), None);
    }

    #[test]
    fn a_flood_of_browsers_is_bounded_and_forgets_its_own_first() {
        let mut flows = Flows::default();
        let ask = |flows: &mut Flows, from, now| {
            flows.handle_challenge(from, [1; 32], Purpose::Login, now);
        };
        let honest = browser(0, 1);
        ask(&mut flows, honest, 0);
        for n in 1..=u32::try_from(2 * MAX_FLOWS).unwrap() {
            ask(&mut flows, browser(n, 2), n.into());
        }
        assert_eq!(flows.0.len(), 1 + MAX_FLOWS_PER_SOURCE);
        // Also from many sources, as long as each has more than the honest one.
        for n in 1..=u32::try_from(2 * MAX_FLOWS).unwrap() {
            ask(&mut flows, browser(100_000 + n, 2 + n % 64), 10_000);
        }
        assert_eq!(flows.0.len(), MAX_FLOWS);
        assert!(flows.take_challenge(honest.device, Purpose::Login, 10_000).is_some());
    }
}
