//! Is a relay where it says it is?
//!
//! Whoever holds a relay's key could name somebody else's address, and every agent and console
//! would go there. So the mediator goes there first, as they would, and lists only addresses at
//! which the relay's Noise key answers. Must never let a relay make the mediator knock where the
//! relay itself has no business: private addresses only for relays that came from one. Bounded in
//! time, in attempts at once and in attempts of one relay.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_net::{
    identity::NoiseKeypair,
    interfaces::{local_addresses, may_connect},
    noise::join::{JoinError, begin_join},
    proxy::{Dialer, ProxyConfig, parse_host_port},
    tls::connect_cover,
};
use adit_protocol::{keys::PublicKey, wire};
use futures_util::future::join_all;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};

/// Time for one way to one address. Two of them, and the wait, fit into the time that a relay
/// waits for its welcome.
const DEADLINE: Duration = Duration::from_secs(3);
/// Longest wait for others.
const QUEUE: Duration = Duration::from_secs(3);
/// Addresses that are tried at once.
const AT_ONCE: usize = 64;
/// Attempts of one relay in [`PERIOD`].
const MAX_ATTEMPTS: usize = 24;
const PERIOD: Duration = Duration::from_secs(60);
/// An address that answered is not asked again for so long.
const KEEP: Duration = Duration::from_secs(600);
/// Addresses, and relays, that are remembered.
const MAX_KNOWN: usize = 4096;
/// Port of an address without one.
const PORT: u16 = 443;

/// An address that is told to nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unconfirmed {
    pub(super) address: String,
    why: &'static str,
}

impl std::fmt::Display for Unconfirmed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.address, self.why)
    }
}

/// A relay that says where it is.
#[derive(Clone, Copy)]
pub(super) struct Claimant {
    pub(super) identity: PublicKey,
    pub(super) noise: [u8; 32],
    /// Where its connection comes from.
    pub(super) source: SocketAddr,
}

/// Asks addresses of relays who is there.
pub(crate) struct Confirmer {
    dialer: Dialer,
    /// Known to nobody: the answer counts, not the question.
    key: NoiseKeypair,
    room: Semaphore,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    confirmed: BTreeMap<(PublicKey, String), Instant>,
    attempts: BTreeMap<PublicKey, (Instant, usize)>,
}

impl Confirmer {
    /// `None` if the system has no randomness.
    pub(crate) fn new() -> Option<Self> {
        Some(Self {
            // As relays are reached from everywhere: directly.
            dialer: Dialer::new(&ProxyConfig::default()).ok()?,
            key: NoiseKeypair::generate().ok()?,
            room: Semaphore::new(AT_ONCE),
            known: Mutex::default(),
        })
    }

    /// The addresses at which the relay answers, in their order, and the others.
    pub(super) async fn sort(
        &self,
        relay: Claimant,
        addresses: &[String],
    ) -> (Vec<String>, Vec<Unconfirmed>) {
        if addresses.is_empty() {
            return Default::default();
        }
        let own: Vec<_> = local_addresses().await.into_iter().map(|found| found.net).collect();
        let asked = addresses.iter().map(|address| async {
            let admits = |target: SocketAddr| may_connect(target, Some(relay.source), &own);
            self.confirm(relay, address, &admits).await
        });
        let (mut confirmed, mut others) = (Vec::new(), Vec::new());
        for (address, answer) in addresses.iter().zip(join_all(asked).await) {
            match answer {
                Ok(()) => confirmed.push(address.clone()),
                Err(why) => others.push(Unconfirmed { address: address.clone(), why }),
            }
        }
        (confirmed, others)
    }

    async fn confirm(
        &self,
        relay: Claimant,
        address: &str,
        admits: &(dyn Fn(SocketAddr) -> bool + Send + Sync),
    ) -> Result<(), &'static str> {
        let key = (relay.identity, address.to_owned());
        if !self.known().must_ask(&key, Instant::now())? {
            return Ok(());
        }
        let (host, port) =
            parse_host_port(address, PORT).map_err(|_| "this is no address and port")?;
        if host.parse().is_ok_and(|ip: IpAddr| !admits(SocketAddr::new(ip, port))) {
            return Err("a private or special address, and the relay came from elsewhere");
        }
        let busy = "too many relays are confirmed at the moment; it is tried again";
        let _room = timeout(QUEUE, self.room.acquire()).await.map_err(|_| busy)?;
        let raw = async {
            let dial = self.dialer.dial_where(&host, port, DEADLINE, admits).await;
            self.answers(relay.noise, dial.ok()?.stream).await
        };
        let tls = async {
            let dial = self.dialer.dial_where(&host, port, DEADLINE, admits).await;
            let stream = connect_cover(dial.ok()?.stream, &host).await.ok()?;
            self.answers(relay.noise, stream).await
        };
        // The second way for a relay behind something that lets only TLS pass.
        let answered = timeout(DEADLINE, raw).await == Ok(Some(()))
            || timeout(DEADLINE, tls).await == Ok(Some(()));
        if !answered {
            return Err("nobody answers there with the relay's key, as seen by the mediator");
        }
        self.known().keep(key, Instant::now());
        Ok(())
    }

    /// Whoever answers a join at all, be it with a refusal, has proved to hold the key.
    async fn answers<S>(&self, noise: [u8; 32], mut stream: S) -> Option<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // Without a ticket: nothing is begun there.
        let ticket = wire::Signed::default();
        match begin_join(&mut stream, &noise, &self.key, &ticket, 0).await {
            Ok(_) | Err(JoinError::Refused(_)) => Some(()),
            Err(_) => None,
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Counts an attempt; `false` if none is needed.
    fn must_ask(&mut self, key: &(PublicKey, String), now: Instant) -> Result<bool, &'static str> {
        let age = |at: &Instant| now.saturating_duration_since(*at);
        if self.confirmed.get(key).is_some_and(|at| age(at) < KEEP) {
            return Ok(false);
        }
        self.attempts.retain(|_, (since, _)| age(since) < PERIOD);
        let often = "asked too often; it is tried again in a minute";
        if self.attempts.len() >= MAX_KNOWN && !self.attempts.contains_key(&key.0) {
            return Err(often);
        }
        let (_, count) = self.attempts.entry(key.0).or_insert((now, 0));
        if *count >= MAX_ATTEMPTS {
            return Err(often);
        }
        *count += 1;
        Ok(true)
    }

    fn keep(&mut self, key: (PublicKey, String), now: Instant) {
        self.confirmed.retain(|_, at| now.saturating_duration_since(*at) < KEEP);
        if self.confirmed.len() < MAX_KNOWN {
            self.confirmed.insert(key, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use adit_net::noise::join::JoinResponder;
    use adit_protocol::{code::JoinStatus, keys::SigningKey};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers joins with a key, for ever.
    async fn answer(listener: TcpListener, key: &NoiseKeypair) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut responder = JoinResponder::new(key).unwrap();
            let mut message = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut message).await.unwrap();
            if responder.handle_message1(&message).is_ok() {
                let reply = responder.reply(JoinStatus::BadTicket).unwrap();
                stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn only_addresses_where_the_relay_answers_are_confirmed() {
        let (relay, other) = (NoiseKeypair::generate().unwrap(), NoiseKeypair::generate().unwrap());
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let [right, wrong] = listeners.each_ref().map(|l| l.local_addr().unwrap().to_string());
        let [first, second] = listeners;
        let metadata = "169.254.169.254:80".to_owned();
        let identity = SigningKey::from_seed(&[1; 32]).unwrap().public();
        let source = "127.0.0.1:9".parse().unwrap();
        let claimant = Claimant { identity, noise: relay.public, source };
        let confirmer = Confirmer::new().unwrap();
        let told = [wrong.clone(), metadata.clone(), right.clone()];
        let (confirmed, others) = tokio::select! {
            sorted = confirmer.sort(claimant, &told) => sorted,
            () = answer(first, &relay) => panic!(),
            () = answer(second, &other) => panic!(),
        };
        assert_eq!(confirmed, [right.as_str()]);
        let named: Vec<_> = others.iter().map(|o| &o.address).collect();
        assert_eq!(named, [&wrong, &metadata]);
        // Who answered is not asked again at once; nobody is there any more.
        assert_eq!(confirmer.sort(claimant, &confirmed).await.0, confirmed);
        // A relay from elsewhere does not make the mediator look around on its own machine.
        let elsewhere = Claimant {
            identity: SigningKey::from_seed(&[2; 32]).unwrap().public(),
            source: "192.0.2.1:9".parse().unwrap(),
            ..claimant
        };
        let (_, others) = confirmer.sort(elsewhere, &[right]).await;
        assert!(others[0].why.contains("private"), "{}", others[0]);
    }

    #[test]
    fn one_relay_makes_few_attempts() {
        let (mut known, now) = (Known::default(), Instant::now());
        let identity = SigningKey::from_seed(&[1; 32]).unwrap().public();
        let tries = |known: &mut Known, now| {
            (0..100).filter(|n| known.must_ask(&(identity, format!("h:{n}")), now).is_ok()).count()
        };
        assert_eq!(tries(&mut known, now), MAX_ATTEMPTS);
        assert_eq!(tries(&mut known, now + PERIOD), MAX_ATTEMPTS);
    }
}
