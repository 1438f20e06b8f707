//! Consoles that wait until somebody logs in for them on the page (RFC 8628, over the control
//! connection): a state machine without clock or randomness.
//!
//! The console holds a secret of 256 bits, bound to its device key; the person types or follows a
//! short code, which is worth nothing without a login on the page. Few wrong codes per account;
//! each code ends after ten minutes, and is decided once. INVARIANT: an approval is handed out
//! once, to the device that asked, for the secret that it was given.

use std::{collections::BTreeMap, net::SocketAddr};

use adit_protocol::keys::PublicKey;

use crate::{serve::Source, serve::Voucher};

/// Life of a code, milliseconds.
pub(crate) const LIFE_MS: u64 = 10 * 60_000;
/// Letters of a code: no vowels, so that no words come about (RFC 8628 §6.1).
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// Letters in a code: 34 bits, with [`MAX_TRIES`].
const CODE_LEN: usize = 8;
/// Consoles that wait at the same time. Beyond it, the oldest of the source with most gives way.
const MAX_WAITING: usize = 1024;
/// Of one source.
const MAX_PER_SOURCE: usize = 8;
/// Wrong codes of one account within [`LIFE_MS`].
const MAX_TRIES: u32 = 5;
/// Accounts whose wrong codes are counted.
const MAX_COUNTED: usize = 4096;
/// Bytes of the name that a device gives itself.
pub(crate) const MAX_NAME: usize = 64;

/// A code as people type it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct UserCode(String);

impl UserCode {
    /// From random bytes; each letter is a little more probable at the beginning of the list.
    pub(crate) fn new(random: [u8; 32]) -> Self {
        let letter = |four: &[u8]| {
            let number = four.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
            LETTERS.get(number % LETTERS.len()).map_or('B', |letter| char::from(*letter))
        };
        Self(random.chunks_exact(4).take(CODE_LEN).map(letter).collect())
    }

    /// Reads what somebody typed: letters in any case, separators ignored.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > 4 * CODE_LEN {
            return None;
        }
        let code: String = text
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '-')
            .map(|c| c.to_ascii_uppercase())
            .collect();
        let good = code.len() == CODE_LEN && code.bytes().all(|byte| LETTERS.contains(&byte));
        good.then_some(Self(code))
    }
}

impl std::fmt::Display for UserCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (first, second) = self.0.split_at_checked(CODE_LEN / 2).unwrap_or((&self.0, ""));
        write!(f, "{first}-{second}")
    }
}

/// A device that asks.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    pub(crate) device: PublicKey,
    /// What it calls itself.
    pub(crate) name: String,
    pub(crate) source: SocketAddr,
}

#[derive(Clone)]
enum State {
    Waiting,
    Approved(Box<Voucher>),
    Denied,
}

struct Pending {
    asking: Asking,
    /// Hash of what the console holds.
    secret: [u8; 32],
    begun_ms: u64,
    state: State,
}

impl Pending {
    fn source(&self) -> Source {
        Source::of(self.asking.source.ip())
    }
}

/// What a console hears that asks whether somebody decided.
pub(crate) enum Polled {
    /// Nobody did yet.
    Waiting,
    /// Somebody vouches; told once.
    Approved(Box<Voucher>),
    /// Somebody said no; told once.
    Denied,
    /// There is nothing to wait for.
    Over,
}

/// Why a code leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// No device waits with it.
    Unknown,
    /// Too many wrong ones; none is looked at for a while.
    TooMany,
}

/// There are too many that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// All consoles that wait.
#[derive(Default)]
pub(crate) struct Codes {
    waiting: BTreeMap<UserCode, Pending>,
    /// Wrong codes by account, and since when.
    tries: BTreeMap<String, (u32, u64)>,
}

impl Codes {
    /// A console begins to wait; what it waited for before is void.
    pub(crate) fn handle_begin(
        &mut self,
        asking: Asking,
        (code, secret): (UserCode, [u8; 32]),
        now_ms: u64,
    ) -> Result<(), Full> {
        self.forget_old(now_ms);
        self.waiting.retain(|_, pending| pending.asking.device != asking.device);
        let mut held: BTreeMap<Source, usize> = BTreeMap::new();
        self.waiting.values().for_each(|there| *held.entry(there.source()).or_default() += 1);
        let own = held.get(&Source::of(asking.source.ip())).copied().unwrap_or(0);
        if own >= MAX_PER_SOURCE || self.waiting.contains_key(&code) {
            return Err(Full);
        }
        if self.waiting.len() >= MAX_WAITING {
            let most = held.into_iter().max_by_key(|(_, count)| *count);
            let (most, _) = most.filter(|(_, count)| *count > own + 1).ok_or(Full)?;
            self.forget_oldest(most);
        }
        let pending = Pending { asking, secret, begun_ms: now_ms, state: State::Waiting };
        self.waiting.insert(code, pending);
        Ok(())
    }

    /// Somebody who is logged in shows a code; gives the device that waits with it.
    pub(crate) fn handle_shown(
        &mut self,
        code: Option<&UserCode>,
        account: &str,
        now_ms: u64,
    ) -> Result<Asking, Wrong> {
        self.forget_old(now_ms);
        if self.tries.get(account).is_some_and(|(count, _)| *count >= MAX_TRIES) {
            return Err(Wrong::TooMany);
        }
        let found = code.and_then(|code| self.waiting.get(code));
        if let Some(pending) = found.filter(|pending| matches!(pending.state, State::Waiting)) {
            return Ok(pending.asking.clone());
        }
        if self.tries.len() >= MAX_COUNTED {
            return Err(Wrong::TooMany);
        }
        self.tries.entry(account.to_owned()).or_insert((0, now_ms)).0 += 1;
        Err(Wrong::Unknown)
    }

    /// Somebody decides: with a voucher yes. `device`: as it was shown to the person. False: it
    /// does not wait any more.
    pub(crate) fn handle_decided(
        &mut self,
        code: &UserCode,
        device: PublicKey,
        voucher: Option<Voucher>,
        now_ms: u64,
    ) -> bool {
        self.forget_old(now_ms);
        let found = self.waiting.get_mut(code);
        let Some(pending) = found.filter(|there| matches!(there.state, State::Waiting)) else {
            return false;
        };
        if pending.asking.device != device {
            return false;
        }
        pending.state = match voucher {
            Some(voucher) => State::Approved(Box::new(voucher)),
            None => State::Denied,
        };
        true
    }

    /// A console asks whether somebody decided.
    pub(crate) fn handle_poll(
        &mut self,
        device: PublicKey,
        secret: &[u8; 32],
        now_ms: u64,
    ) -> Polled {
        self.forget_old(now_ms);
        let is = |there: &Pending| there.asking.device == device && there.secret == *secret;
        let Some((code, pending)) = self.waiting.iter().find(|(_, there)| is(there)) else {
            return Polled::Over;
        };
        let (code, state) = (code.clone(), pending.state.clone());
        match state {
            State::Waiting => return Polled::Waiting,
            State::Approved(_) | State::Denied => self.waiting.remove(&code),
        };
        match state {
            State::Approved(voucher) => Polled::Approved(voucher),
            _ => Polled::Denied,
        }
    }

    fn forget_oldest(&mut self, source: Source) {
        let of_source = self.waiting.iter().filter(|(_, there)| there.source() == source);
        let oldest =
            of_source.min_by_key(|(_, there)| there.begun_ms).map(|(code, _)| code.clone());
        if let Some(oldest) = oldest {
            self.waiting.remove(&oldest);
        }
    }

    fn forget_old(&mut self, now_ms: u64) {
        let young = |since: u64| now_ms.saturating_sub(since) < LIFE_MS;
        self.waiting.retain(|_, pending| young(pending.begun_ms));
        self.tries.retain(|_, (_, since)| young(*since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::accounts::{AccountRow, MfaPolicy, Proof};

    fn asking(n: u8) -> Asking {
        let source = format!("192.0.2.{n}:1").parse().unwrap();
        Asking { device: PublicKey([n; 32]), name: "laptop".into(), source }
    }

    fn code(n: u8) -> UserCode {
        UserCode::new([n; 32])
    }

    fn voucher(n: u8) -> Voucher {
        let account = AccountRow {
            id: format!("account {n}"),
            name: "ann".into(),
            partner_id: String::new(),
            partner: String::new(),
            password: String::new(),
            retry_ms: 0,
            disabled: false,
            mfa: MfaPolicy::Default,
            short_password: false,
            factors: 0,
        };
        let proof = Proof { mfa: "totp".into(), mfa_ms: Some(1), authenticated_ms: 1 };
        Voucher { account, proof, login: [n; 32] }
    }

    #[test]
    fn codes_are_read_however_they_are_typed() {
        let code = UserCode::new(std::array::from_fn(|n| u8::try_from(n).unwrap()));
        let text = code.to_string();
        assert_eq!(text.len(), 9);
        let typed = text.to_lowercase().replace('-', " ");
        assert_eq!(UserCode::parse(&typed), Some(code));
        for bad in ["", "BCDF", "AEIO-UAEI", "BCDF-GHJKL", &"B".repeat(1000)] {
            assert_eq!(UserCode::parse(bad), None);
        }
    }

    #[test]
    fn an_approval_goes_once_to_the_device_that_asked() {
        let mut codes = Codes::default();
        codes.handle_begin(asking(1), (code(1), [1; 32]), 0).unwrap();
        codes.handle_begin(asking(2), (code(2), [2; 32]), 0).unwrap();
        assert_eq!(codes.handle_shown(Some(&code(1)), "a", 1).unwrap().device, asking(1).device);
        // What was shown is what is decided.
        assert!(!codes.handle_decided(&code(1), asking(2).device, Some(voucher(1)), 1));
        assert!(codes.handle_decided(&code(1), asking(1).device, Some(voucher(1)), 1));
        assert!(!codes.handle_decided(&code(1), asking(1).device, None, 1));
        assert!(matches!(codes.handle_poll(asking(2).device, &[1; 32], 2), Polled::Over));
        assert!(matches!(codes.handle_poll(asking(1).device, &[2; 32], 2), Polled::Over));
        assert!(matches!(codes.handle_poll(asking(1).device, &[1; 32], 2), Polled::Approved(_)));
        assert!(matches!(codes.handle_poll(asking(1).device, &[1; 32], 2), Polled::Over));
        assert!(codes.handle_decided(&code(2), asking(2).device, None, 2));
        assert!(matches!(codes.handle_poll(asking(2).device, &[2; 32], 3), Polled::Denied));
    }

    #[test]
    fn codes_end_and_few_wrong_ones_are_looked_at() {
        let mut codes = Codes::default();
        codes.handle_begin(asking(1), (code(1), [1; 32]), 0).unwrap();
        for _ in 0..MAX_TRIES {
            assert_eq!(codes.handle_shown(Some(&code(2)), "a", 1).unwrap_err(), Wrong::Unknown);
        }
        assert_eq!(codes.handle_shown(Some(&code(1)), "a", 1).unwrap_err(), Wrong::TooMany);
        codes.handle_shown(Some(&code(1)), "b", 1).unwrap();
        assert!(codes.handle_shown(Some(&code(1)), "b", LIFE_MS).is_err());
        assert!(matches!(codes.handle_poll(asking(1).device, &[1; 32], LIFE_MS), Polled::Over));
    }

    #[test]
    fn those_who_wait_are_bounded_and_a_device_waits_once() {
        let mut codes = Codes::default();
        for n in 0..=255 {
            let mut asking = asking(n);
            asking.source = "192.0.2.1:1".parse().unwrap();
            let begun = codes.handle_begin(asking, (code(n), [n; 32]), 0);
            assert_eq!(begun.is_ok(), usize::from(n) < MAX_PER_SOURCE, "{n}");
        }
        codes.handle_begin(asking(1), (code(9), [9; 32]), 0).unwrap();
        assert!(matches!(codes.handle_poll(asking(1).device, &[1; 32], 0), Polled::Over));
        assert_eq!(codes.waiting.len(), MAX_PER_SOURCE);
    }

    #[test]
    fn sources_with_many_consoles_give_way_to_one_with_none() {
        let mut codes = Codes::default();
        let begin = |codes: &mut Codes, source: u32, n: u32, now| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            let source = std::net::SocketAddr::new(std::net::Ipv4Addr::from(source).into(), 1);
            let asking = Asking { device: PublicKey(key), name: String::new(), source };
            let random = adit_protocol::keys::sha256(&key);
            codes.handle_begin(asking, (UserCode::new(random), key), now)
        };
        begin(&mut codes, 1, 0, 0).unwrap();
        let sources = u32::try_from(MAX_WAITING / MAX_PER_SOURCE).unwrap() + 1;
        for n in 1..=sources * u32::try_from(MAX_PER_SOURCE).unwrap() {
            let _ = begin(&mut codes, 2 + n % sources, n, n.into());
        }
        assert_eq!(codes.waiting.len(), MAX_WAITING);
        begin(&mut codes, 1_000, 1_000_000, 50_000).unwrap();
        assert_eq!(codes.waiting.len(), MAX_WAITING);
        // The one that waits alone, and longest, still does.
        let mut key = [0; 32];
        key[..4].copy_from_slice(&0_u32.to_be_bytes());
        assert!(matches!(codes.handle_poll(PublicKey(key), &key, 50_000), Polled::Waiting));
    }
}
