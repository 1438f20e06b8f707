//! Published Noise test vectors against our primitives: both ends, every byte.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use adit_net::noise::{AwsLc, handshake_hash, read_message, write_message};

/// Fields of one vector: `name value`, messages as `payload ciphertext`.
struct Vector<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Vector<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }
    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.text(name).map(unhex)
    }
    fn build(&self, side: &str) -> snow::Builder<'static> {
        // Leaked: the builder borrows its keys, and this is a test.
        let leak = |v: Vec<u8>| -> &'static [u8] { Vec::leak(v) };
        let field = |name: &str| self.bytes(&format!("{side}_{name}"));
        let params = self.text("protocol_name").unwrap().parse().unwrap();
        let mut b = snow::Builder::with_resolver(params, Box::new(AwsLc))
            .prologue(leak(field("prologue").unwrap()))
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(leak(field("ephemeral").unwrap()));
        if let Some(key) = field("static") {
            b = b.local_private_key(leak(key)).unwrap();
        }
        if let Some(key) = field("remote_static") {
            b = b.remote_public_key(leak(key)).unwrap();
        }
        if let Some(psk) = field("psks") {
            b = b.psk(0, leak(psk).try_into().unwrap()).unwrap();
        }
        b
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn check(vector: &Vector<'_>) {
    let mut init = vector.build("init").build_initiator().unwrap();
    let mut resp = vector.build("resp").build_responder().unwrap();
    let messages: Vec<(Vec<u8>, Vec<u8>)> = vector
        .0
        .iter()
        .filter(|(name, _)| *name == "message")
        .map(|(_, v)| v.split_once(' ').map(|(p, c)| (unhex(p), unhex(c))).unwrap())
        .collect();
    let (handshake, transport) = messages.split_at(2);
    for (i, (payload, sealed)) in handshake.iter().enumerate() {
        let (from, to) = if i == 0 { (&mut init, &mut resp) } else { (&mut resp, &mut init) };
        assert_eq!(&write_message(from, payload).unwrap(), sealed);
        assert_eq!(&read_message(to, sealed).unwrap(), payload);
    }
    if let Some(hash) = vector.bytes("handshake_hash") {
        assert_eq!(handshake_hash(&init).as_slice(), hash);
        assert_eq!(handshake_hash(&resp).as_slice(), hash);
    }
    let (mut init, mut resp) =
        (init.into_transport_mode().unwrap(), resp.into_transport_mode().unwrap());
    for (i, (payload, sealed)) in transport.iter().enumerate() {
        let (from, to) = if i % 2 == 0 { (&mut init, &mut resp) } else { (&mut resp, &mut init) };
        let mut out = vec![0; 1024];
        let len = from.write_message(payload, &mut out).unwrap();
        assert_eq!(&out[..len], sealed);
        let len = to.read_message(sealed, &mut out).unwrap();
        assert_eq!(&out[..len], payload);
    }
}

#[test]
fn our_primitives_reproduce_the_published_vectors() {
    let text = include_str!("noise_vectors.txt");
    let vectors: Vec<Vector<'_>> = text
        .split("\n\n")
        .map(|block| {
            let lines = block.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
            Vector(lines.map(|l| l.split_once(' ').unwrap()).collect())
        })
        .filter(|v| !v.0.is_empty())
        .collect();
    assert!(vectors.len() >= 4);
    for vector in &vectors {
        check(vector);
    }
}
