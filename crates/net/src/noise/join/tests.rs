//! Joins: what works, and that nothing else does.

use adit_protocol::{
    ids::SessionId,
    keys::SigningKey,
    ticket::{Role, Share, Ticket},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

struct Setup {
    relay: NoiseKeypair,
    joiner: NoiseKeypair,
    ticket: wire::Signed,
}

fn setup() -> Setup {
    let (relay, joiner) = (NoiseKeypair::generate().unwrap(), NoiseKeypair::generate().unwrap());
    let signer = SigningKey::generate().unwrap();
    let ticket = Ticket {
        relay: signer.public(),
        session: SessionId([1; 16]),
        role: Role::Console,
        joiner: joiner.public,
        not_before_ms: 0,
        expires_ms: u64::MAX,
        share: Share::default(),
    };
    let ticket = ticket.sign(&signer);
    Setup { relay, joiner, ticket }
}

async fn frame(stream: &mut DuplexStream) -> Vec<u8> {
    let mut body = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut body).await.unwrap();
    body
}

async fn serve(relay: &NoiseKeypair, stream: &mut DuplexStream, status: JoinStatus) -> usize {
    let mut join = JoinResponder::new(relay).unwrap();
    let message = frame(stream).await;
    let (init, key) = join.handle_message1(&message).unwrap();
    assert_eq!(init.slot, 1);
    assert_ne!(key, [0; 32]);
    let reply = join.reply(status).unwrap();
    stream.write_all(&framed(&reply).unwrap()).await.unwrap();
    if status != JoinStatus::Accepted {
        return message.len();
    }
    let confirm = frame(stream).await;
    join.handle_confirm(&confirm).unwrap();
    stream.write_all(b"spliced").await.unwrap();
    message.len() + confirm.len() + 4
}

#[tokio::test]
async fn join_reads_exactly_its_own_bytes_and_fits_the_relays_limit() {
    let s = setup();
    let (mut near, mut far) = duplex(4096);
    let (joined, bytes) = tokio::join!(
        join_relay(&mut near, &s.relay.public, &s.joiner, &s.ticket, 1),
        serve(&s.relay, &mut far, JoinStatus::Accepted)
    );
    joined.unwrap();
    assert!(bytes < adit_protocol::limits::RELAY_UNJOINED_BYTES, "{bytes}");
    let mut next = [0; 7];
    near.read_exact(&mut next).await.unwrap();
    assert_eq!(&next, b"spliced");
}

#[tokio::test]
async fn refusal_is_told_apart_from_a_wrong_relay_and_from_silence() {
    let s = setup();
    let (mut near, mut far) = duplex(4096);
    let (joined, _) = tokio::join!(
        join_relay(&mut near, &s.relay.public, &s.joiner, &s.ticket, 1),
        serve(&s.relay, &mut far, JoinStatus::Draining)
    );
    assert!(matches!(joined, Err(JoinError::Refused(JoinStatus::Draining))));

    // The other end does not hold the key that the joiner was told.
    let (mut near, mut far) = duplex(4096);
    let other = NoiseKeypair::generate().unwrap();
    let (joined, ()) =
        tokio::join!(join_relay(&mut near, &other.public, &s.joiner, &s.ticket, 1), async {
            let message = frame(&mut far).await;
            assert!(JoinResponder::new(&s.relay).unwrap().handle_message1(&message).is_err());
            far.write_all(&[0, 4, 1, 2, 3, 4]).await.unwrap();
        });
    assert!(matches!(joined, Err(JoinError::Noise(_))), "{joined:?}");

    let (mut near, far) = duplex(4096);
    drop(far);
    let joined = join_relay(&mut near, &s.relay.public, &s.joiner, &s.ticket, 1).await;
    assert!(matches!(joined, Err(JoinError::Io(_))));
}

#[tokio::test(start_paused = true)]
async fn relay_that_does_not_answer_is_given_up() {
    let s = setup();
    let (mut near, _far) = duplex(4096);
    let joined = join_relay(&mut near, &s.relay.public, &s.joiner, &s.ticket, 1).await;
    assert!(matches!(joined, Err(JoinError::Timeout)));
}

#[test]
fn recorded_join_never_gets_past_the_confirmation() {
    let s = setup();
    let mut state = ik_initiator(&join_prologue(), &s.joiner, &s.relay.public).unwrap();
    let init = wire::JoinInit { ticket: Some(s.ticket), slot: 0 }.encode_to_vec();
    let message1 = write_message(&mut state, &init).unwrap();
    let mut original = JoinResponder::new(&s.relay).unwrap();
    let (_, key) = original.handle_message1(&message1).unwrap();
    assert_eq!(key, s.joiner.public);
    let reply = original.reply(JoinStatus::Accepted).unwrap();
    read_message(&mut state, &reply).unwrap();
    let mut transport = state.into_transport_mode().unwrap();
    let mut confirm = [0; NOISE_TAG];
    transport.write_message(&[], &mut confirm).unwrap();
    original.handle_confirm(&confirm).unwrap();
    assert!(original.handle_confirm(&confirm).is_err());

    let mut replayed = JoinResponder::new(&s.relay).unwrap();
    replayed.handle_message1(&message1).unwrap();
    replayed.reply(JoinStatus::Accepted).unwrap();
    assert_eq!(replayed.handle_confirm(&confirm), Err(NoiseError::Refused));
}

#[test]
fn steps_out_of_order_and_garbage_are_refused() {
    let s = setup();
    let mut join = JoinResponder::new(&s.relay).unwrap();
    assert!(join.reply(JoinStatus::Accepted).is_err());
    let mut join = JoinResponder::new(&s.relay).unwrap();
    assert!(join.handle_confirm(&[0; 16]).is_err());
    for len in [0, 1, 31, 32, 95, 96, 200, 65_536] {
        assert!(JoinResponder::new(&s.relay).unwrap().handle_message1(&vec![1; len]).is_err());
    }
}
