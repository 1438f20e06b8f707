//! What sealing and opening records of a relayed carrier costs, CPU seconds per GB:
//! `cargo run --release -p adit-net --example record_cost`

use std::time::{Duration, Instant};

use adit_net::noise::{
    NoiseError, RelayedHandshake,
    records::{FRAME_HEADER, take_frame},
};
use adit_protocol::ids::{CarrierNumber, SessionId};
use bytes::BytesMut;

const ROUNDS: u32 = 16_384;
const SIZE: u32 = 64_000;

fn main() -> Result<(), NoiseError> {
    let (psk, session) = ([7; 32], SessionId([7; 16]));
    let frame = |mut frame: BytesMut| take_frame(&mut frame).ok_or(NoiseError::Malformed);
    let (console, first) = RelayedHandshake::initiate(&psk, session, CarrierNumber(1), b"")?;
    let (agent, _) = RelayedHandshake::respond(&psk, session, &frame(first)?)?;
    let (reply, _, mut opener) = agent.reply(b"")?;
    let (_, mut sealer, _) = console.finish(&frame(reply)?)?;

    let (mut sealing, mut opening) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let mut wire = BytesMut::zeroed(FRAME_HEADER + SIZE as usize);
        wire.reserve(64);
        let start = Instant::now();
        sealer.seal_in_place(&mut wire, 0)?;
        sealing += start.elapsed();
        let start = Instant::now();
        opener.open_next(&mut wire)?;
        opening += start.elapsed();
    }
    let gigabytes = f64::from(ROUNDS) * f64::from(SIZE) / 1e9;
    println!("seal {:.3} s/GB", sealing.as_secs_f64() / gigabytes);
    println!("open {:.3} s/GB", opening.as_secs_f64() / gigabytes);
    Ok(())
}
