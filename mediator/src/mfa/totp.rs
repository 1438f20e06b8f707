//! Time-based one-time codes (RFC 6238): SHA-1, six digits, 30 s.
//!
//! A code lives for 30 s (ASVS 6.5.5): only the step counts that the app shows now by what is known
//! of its clock. That is learned from two codes in a row, which also takes an app back whose clock
//! went off by minutes (RFC 6238 §6): the first, right at another time, is refused and noted, the
//! next one in its own 30 s counts. Two in a row that somebody saw and shows later must not be taken
//! for such an app: since a code counted, a clock goes off by what clocks do, or is set right.
//!
//! Each code counts once (RFC 6238 §5.2), one that was only noted not at all: steps after the last
//! one are tried alone, and the caller makes what is known durable together with what it permits.

use adit_protocol::keys::fill_random;
use totp_rs::{Algorithm, Builder};
use zeroize::Zeroizing;

/// Bytes of a secret (RFC 4226 §4 R6).
pub(crate) const SECRET_LEN: usize = 20;
/// Seconds of a step (RFC 6238 §5.2).
const STEP_S: u64 = 30;
/// The same in milliseconds: a code's life.
const STEP_MS: u64 = STEP_S * 1000;
/// Steps by which an app's clock may be off the mediator's: as quartz does in a few years.
const MAX_OFF: u64 = 11;
/// The same in milliseconds.
const MAX_DRIFT_MS: i64 = 330_000;
/// Who was so little early or late is taken for that, and not for one whose clock went off.
const NEAR_MS: i64 = 10_000;
/// Of a clock that went off: the code next to the one that was noted counts from so long after that
/// one on. Who types codes as they come shows them 30 s apart, who began late a little after.
const NEXT_MS: i64 = 8_000;
/// A clock goes off by one part in so many: 30 ppm, 2.6 s a day, as a quartz at the end of its range
/// in the cold.
const WANDERS: u64 = 33_333;
/// Digits of a code.
const DIGITS: u8 = 6;
/// Characters looked at: six digits with spaces.
const MAX_TEXT: usize = 16;
/// Who issues, in the authenticator's list.
const ISSUER: &str = "Adit";

/// What is known of an app: its clock, and which codes are spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AppClock {
    /// Only later steps are looked at.
    pub(crate) last_step: u64,
    /// By how much it is ahead of the mediator's, milliseconds.
    pub(crate) drift_ms: i64,
    /// When `last_step` was shown, if that was at another time than its own; else 0.
    pub(crate) missed_ms: u64,
    /// When a code counted last; 0: never, so that nothing is known of the clock.
    pub(crate) counted_ms: u64,
}

/// What a code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Not one of this app's now, or spent.
    Wrong,
    /// Right at another time: it counts for nothing, but is to be noted so.
    OutOfTime(AppClock),
    /// Right; counts if this is noted and no later step was meanwhile.
    Right(AppClock),
}

impl AppClock {
    /// By how much the app is ahead, for the code of this step: as it was, but by the code that was
    /// noted if this is the next one.
    fn drift_for(&self, step: u64) -> i64 {
        if !self.is_next(step) {
            return self.drift_ms.clamp(-MAX_DRIFT_MS, MAX_DRIFT_MS);
        }
        let (least, most) = off(self.last_step, self.missed_ms);
        let nearest = self.drift_ms.clamp(least, most);
        if nearest.abs_diff(self.drift_ms) <= NEAR_MS.unsigned_abs() {
            return nearest;
        }
        match self.believable(least, most) {
            Some((from, to)) => most.saturating_sub(NEXT_MS).clamp(from, to),
            None => self.drift_ms.clamp(-MAX_DRIFT_MS, MAX_DRIFT_MS),
        }
    }

    /// Which of these drifts the clock can have by now: gone off by what clocks do, or set right.
    fn believable(&self, least: i64, most: i64) -> Option<(i64, i64)> {
        let far = self.far_ms();
        let wandered = (self.drift_ms.saturating_sub(far), self.drift_ms.saturating_add(far));
        [wandered, (-NEAR_MS, NEAR_MS)]
            .map(|(from, to)| (from.max(least), to.min(most)))
            .into_iter()
            .find(|(from, to)| from <= to)
    }

    /// How far the clock can have gone off since a code counted; anywhere if none ever did.
    fn far_ms(&self) -> i64 {
        let since = self.missed_ms.saturating_sub(self.counted_ms);
        let wandered = i64::try_from(since / WANDERS).unwrap_or(i64::MAX);
        if self.counted_ms == 0 { i64::MAX } else { NEAR_MS.saturating_add(wandered) }
    }

    /// Is this the one after a code that was noted?
    fn is_next(&self, step: u64) -> bool {
        self.missed_ms > 0 && self.last_step.saturating_add(1) == step
    }

    /// Judges a right code of a later step than the last one.
    fn judge(self, step: u64, now_ms: u64) -> Code {
        let spent = Self { last_step: step, missed_ms: 0, ..self };
        let right = Self { counted_ms: now_ms, ..spent };
        if now_ms.saturating_add_signed(self.drift_for(step)) / STEP_MS != step {
            return Code::OutOfTime(Self { missed_ms: now_ms, ..spent });
        }
        if !self.is_next(step) {
            return Code::Right(right);
        }
        // Both tell something of the clock; nothing is learned of what does not fit both, or what
        // no clock does.
        let (first, second) = (off(self.last_step, self.missed_ms), off(step, now_ms));
        let learned = self.believable(first.0.max(second.0), first.1.min(second.1));
        let drift_ms = learned.map_or(self.drift_ms, |(from, to)| from.midpoint(to));
        Code::Right(Self { drift_ms, ..right })
    }
}

/// The least and the largest drift of a clock that shows this step at this time.
fn off(step: u64, at_ms: u64) -> (i64, i64) {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let least = signed(step.saturating_mul(STEP_MS)).saturating_sub(signed(at_ms));
    (least, least.saturating_add(signed(STEP_MS) - 1))
}

/// The secret that the authenticator app holds, too.
pub(crate) struct TotpSecret(Zeroizing<[u8; SECRET_LEN]>);

impl TotpSecret {
    /// A fresh one; `None` without randomness.
    pub(crate) fn generate() -> Option<Self> {
        let mut bytes = Zeroizing::new([0; SECRET_LEN]);
        fill_random(&mut bytes[..]).ok()?;
        Some(Self(bytes))
    }

    /// From its stored bytes.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut own = Zeroizing::new([0; SECRET_LEN]);
        (bytes.len() == SECRET_LEN).then(|| own.copy_from_slice(bytes))?;
        Some(Self(own))
    }

    /// For the store.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0[..]
    }

    /// `otpauth://` URL for the app.
    pub(crate) fn url(&self, user: &str, partner: &str) -> Option<Zeroizing<String>> {
        // The label's parts are separated by a colon.
        let account = format!("{user} ({partner})").replace(':', "_");
        let totp = self.builder().with_account_name(account).with_issuer(Some(ISSUER));
        totp.build().ok()?.to_url().ok().map(Zeroizing::new)
    }

    /// What a code is at this time.
    pub(crate) fn judge(&self, code: &str, now_ms: u64, clock: AppClock) -> Code {
        let Ok(totp) = self.builder().build() else { return Code::Wrong };
        let is_right = |step: &u64| totp.check(code, step.saturating_mul(STEP_S)) == Some(*step);
        let present = now_ms / STEP_MS;
        (present.saturating_sub(MAX_OFF)..=present.saturating_add(MAX_OFF))
            .filter(|step| *step > clock.last_step)
            .find(is_right)
            .map_or(Code::Wrong, |step| clock.judge(step, now_ms))
    }

    /// Without skew: the steps are tried one by one.
    fn builder(&self) -> Builder {
        Builder::new()
            .with_algorithm(Algorithm::SHA1)
            .with_digits(DIGITS)
            .with_skew(0)
            .with_step_duration(STEP_S)
            .with_secret(*self.0)
    }
}

/// Six digits, with or without spaces.
pub(crate) fn digits(text: &str) -> Option<Zeroizing<String>> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let code: Zeroizing<String> =
        Zeroizing::new(text.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    let good = code.len() == usize::from(DIGITS) && code.bytes().all(|b| b.is_ascii_digit());
    good.then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(secret: &TotpSecret, step: u64) -> String {
        secret.builder().build().unwrap().generate(step * STEP_S).to_string()
    }

    #[test]
    fn agrees_with_the_standard_and_names_itself_to_the_app() {
        let secret = TotpSecret::from_slice(b"12345678901234567890").unwrap();
        // RFC 6238 appendix B, the last six of eight digits.
        for (time, right) in [(59, "287082"), (1_111_111_109, "081804"), (20_000_000_000, "353130")]
        {
            let found = secret.judge(right, time * 1000, AppClock::default());
            let (last_step, counted_ms) = (time / STEP_S, time * 1000);
            let right = AppClock { last_step, counted_ms, ..AppClock::default() };
            assert_eq!(found, Code::Right(right));
        }
        let url = secret.url("jane:x", "acme & co").unwrap();
        assert!(
            url.starts_with("otpauth://totp/Adit:jane_x%20%28acme") && url.contains("issuer=Adit"),
            "{}",
            *url
        );
        assert!(url.contains("secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"));
        assert!(TotpSecret::from_slice(&[0; 19]).is_none());
    }

    /// Whoever has this app, and what the mediator knows of it.
    struct World {
        secret: TotpSecret,
        /// By how much the app is ahead.
        off_ms: i64,
        known: AppClock,
    }

    impl World {
        fn new(off_ms: i64) -> Self {
            // One secret, for with a million codes those of two steps near each other are the
            // same once in some hundred runs.
            let secret = TotpSecret::from_slice(b"12345678901234567890").unwrap();
            Self { secret, off_ms, known: AppClock::default() }
        }

        /// The step that the app shows.
        fn shown(&self, now_ms: u64) -> u64 {
            now_ms.strict_add_signed(self.off_ms) / STEP_MS
        }

        /// When a code that is typed `after_ms` of its life arrives, next after `now_ms`.
        fn typed(&self, now_ms: u64, after_ms: u64) -> u64 {
            let begins = (self.shown(now_ms) + 1) * STEP_MS;
            begins.strict_sub_signed(self.off_ms) + after_ms
        }

        /// Is the code of a step accepted? What is known is kept as the store does.
        fn show(&mut self, step: u64, now_ms: u64) -> bool {
            match self.secret.judge(&code(&self.secret, step), now_ms, self.known) {
                Code::Wrong => false,
                Code::OutOfTime(known) => {
                    self.known = known;
                    false
                }
                Code::Right(known) => {
                    self.known = known;
                    true
                }
            }
        }
    }

    /// ASVS 6.5.5, by a clock that goes on by half a second: whatever is known of the app, and
    /// whenever a code was noted before, one counts for 30 s, and neither twice nor once noted.
    #[test]
    fn a_code_lives_for_thirty_seconds_and_counts_once() {
        const TICK_MS: u64 = 500;
        let step = 1_000_000;
        let begins = step * STEP_MS;
        let drifts = [0, 1, -1, 29_999, -29_999, 45_000, 123_456, -250_000, -1_000_000];
        let noted = (0..=400).map(|n| begins + n * TICK_MS - 100_000);
        for missed_ms in std::iter::once(0).chain(noted) {
            for drift_ms in drifts {
                let last_step = if missed_ms == 0 { 0 } else { step - 1 };
                let known = AppClock { last_step, drift_ms, missed_ms, counted_ms: 0 };
                let mut life_ms = 0;
                for at_ms in (0..3_200).map(|n| begins - 800_000 + n * TICK_MS) {
                    let then = match known.judge(step, at_ms) {
                        Code::Wrong => unreachable!("a right code"),
                        Code::OutOfTime(then) => {
                            assert_eq!(then.missed_ms, at_ms);
                            then
                        }
                        Code::Right(then) => {
                            life_ms += TICK_MS;
                            assert_eq!(then.missed_ms, 0);
                            then
                        }
                    };
                    assert_eq!(then.last_step, step);
                }
                assert_eq!(life_ms, STEP_MS, "drift {drift_ms}, noted at {missed_ms}");
            }
        }
        // Neither one that counted nor one that was noted does once more, nor any before it.
        for at_ms in [begins, begins + STEP_MS, begins - 200_000] {
            let mut world = World::new(0);
            let counted = world.show(step, at_ms);
            assert_eq!(counted, at_ms == begins);
            for before in step - 11..=step {
                let known = world.known;
                assert!(!world.show(before, at_ms) && world.known == known);
            }
        }
    }

    /// With a right clock codes count while they are shown; with one that is off, and whatever it
    /// did before, at the latest the third in a row does, and later ones at once.
    #[test]
    fn an_app_whose_clock_is_off_is_learned_from_codes_in_a_row() {
        for seed in 0..500_u64 {
            let off_ms = i64::try_from(seed * 7_919 % 600_000).unwrap() - 300_000;
            let mut world = World::new(off_ms);
            let mut now = 1_000_000 * STEP_MS + seed * 311;
            let mut tries = Vec::new();
            // The clock was set right by five minutes between; each code is typed a while after it
            // appears, the one like the other within three seconds.
            for (login, off_ms) in (0..12).map(|n| (n, if n < 6 { off_ms } else { 0 })) {
                world.off_ms = off_ms;
                if login == 6 {
                    now += 700_000;
                }
                let mut tried = 0;
                loop {
                    tried += 1;
                    now = world.typed(now, 4_000 + seed % 16_000 + login * 1_019 % 3_000);
                    if world.show(world.shown(now), now) {
                        break;
                    }
                    assert!(tried < 3, "seed {seed}, login {login}: {:?}", world.known);
                }
                tries.push(tried);
            }
            let clock_is_right = |login: &usize| ![0, 6].contains(login);
            let again = (0..12).filter(clock_is_right).filter(|login| tries[*login] > 1).count();
            assert!(again <= 2, "seed {seed}: {tries:?}");
        }
        // Who is right and types in time never does it twice.
        let mut world = World::new(0);
        for step in 1..100 {
            assert!(world.show(step, step * STEP_MS + step * 300));
        }
    }

    /// Somebody who saw two codes in a row shows them later, whatever apart: with a clock that was
    /// right yesterday, or off by a known time, they count no longer than one by itself, but for
    /// what people are late by and clocks wander in a day.
    #[test]
    fn two_codes_that_were_seen_count_for_nothing_later() {
        const DAY_MS: u64 = 24 * 3_600_000;
        let begins = 1_000_000 * STEP_MS;
        for drift_ms in [0, -4_000, 70_000, -250_000] {
            let mut latest = 0;
            for late_ms in (0..330_000).step_by(500) {
                for apart_ms in (500..40_000).step_by(1_500) {
                    let mut world = World::new(drift_ms);
                    world.known.drift_ms = drift_ms;
                    world.known.counted_ms = begins - DAY_MS;
                    let shown_ms = begins.strict_sub_signed(drift_ms) + late_ms;
                    world.show(999_999, shown_ms - apart_ms);
                    // Where the mediator's own time is the right one, the app was set right.
                    let is_set = drift_ms == 70_000 && (50_000..120_000).contains(&late_ms);
                    if world.show(1_000_000, shown_ms) && !is_set {
                        latest = latest.max(late_ms);
                    }
                }
            }
            assert!(latest >= STEP_MS - 500, "{drift_ms}");
            assert!(latest < STEP_MS + NEAR_MS.unsigned_abs() + 3_000, "{drift_ms}: {latest} ms");
        }
        // Nor do they lead what is known of the clock away from it.
        for (noted_ms, shown_ms) in [(59_000, 59_900), (-50_000, 35_000), (49_000, 58_000)] {
            let mut world = World::new(0);
            world.known.counted_ms = begins - DAY_MS;
            world.show(1_000_000, begins.strict_add_signed(noted_ms));
            assert!(world.show(1_000_001, begins.strict_add_signed(shown_ms)));
            assert!(world.known.drift_ms.abs() < NEAR_MS + 3_000, "{:?}", world.known);
        }
        // After months without a code a clock may be off by as much.
        let mut world = World::new(120_000);
        world.known.counted_ms = begins - 60 * DAY_MS;
        assert!(!world.show(1_000_000, begins - 105_000));
        assert!(world.show(1_000_001, begins - 75_000));
    }

    /// A little late, as people are: the next one counts at once.
    #[test]
    fn who_was_a_little_late_or_early_shows_the_next_one() {
        for (late_ms, next_ms) in
            [(0, 200), (1, 200), (3_000, 1_000), (3_000, 29_000), (9_000, 9_500)]
        {
            let mut world = World::new(0);
            let begins = 1_000_000 * STEP_MS;
            assert!(!world.show(1_000_000, begins + STEP_MS + late_ms));
            assert!(world.show(1_000_001, begins + STEP_MS + next_ms.max(late_ms + 1)));
        }
        let mut early = World::new(0);
        assert!(!early.show(1_000_001, 1_000_001 * STEP_MS - 3_000));
        assert!(early.show(1_000_002, 1_000_002 * STEP_MS - 2_900));
        assert!(early.show(1_000_003, 1_000_003 * STEP_MS - 2_900));
    }

    /// Two codes of some time ago that somebody saw are worth nothing if they are not in a row, and
    /// none is that is older or newer than clocks are off.
    #[test]
    fn codes_of_other_times_count_for_nothing_by_themselves() {
        let now = 1_000_000 * STEP_MS;
        let mut world = World::new(0);
        for (n, step) in [999_990, 999_992, 999_994, 999_996].into_iter().enumerate() {
            assert!(!world.show(step, now + n as u64 * 20_000));
        }
        for step in [999_988, 1_000_012] {
            let shown = code(&world.secret, step);
            assert_eq!(world.secret.judge(&shown, now, AppClock::default()), Code::Wrong);
        }
    }
}
