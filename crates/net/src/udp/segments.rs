//! Telling STUN and QUIC apart inside one receive, without IO and without allocation.

use quinn::udp::RecvMeta;

use crate::stun::looks_like_stun;

/// Passes every STUN segment of `buffer` to `stun` and closes the gaps, so that what is left,
/// `meta.len` bytes of it, is QUIC in the layout that `meta.stride` describes.
///
/// The kernel may join datagrams of one sender into one receive (GRO): all but the last are
/// `stride` long, whatever they contain.
#[inline]
pub fn split_segments(buffer: &mut [u8], meta: &mut RecvMeta, mut stun: impl FnMut(&[u8])) {
    meta.len = meta.len.min(buffer.len());
    // quinn walks by `stride` and would never end with 0.
    if meta.stride == 0 || meta.stride > meta.len {
        meta.stride = meta.len;
    }
    if meta.len == 0 {
        return;
    }
    let (mut read, mut kept) = (0, 0);
    while read < meta.len {
        let end = (read + meta.stride).min(meta.len);
        let Some(segment) = buffer.get(read..end) else { break };
        if looks_like_stun(segment) {
            stun(segment);
        } else {
            if kept != read {
                buffer.copy_within(read..end, kept);
            }
            kept += end - read;
        }
        read = end;
    }
    meta.len = kept;
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test data")]
mod tests {
    use super::*;
    use crate::stun::{encode_binding_request, encode_check};

    /// Reproducible choices.
    fn seeded(seed: u64) -> impl FnMut(usize) -> usize {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        }
    }

    fn split(mut buffer: Vec<u8>, stride: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let mut meta = RecvMeta { len: buffer.len(), stride, ..RecvMeta::default() };
        let mut stun = Vec::new();
        split_segments(&mut buffer, &mut meta, |s| stun.push(s.to_vec()));
        assert!(meta.stride > 0 || meta.len == 0);
        let quic = buffer[..meta.len].chunks(meta.stride.max(1)).map(<[u8]>::to_vec).collect();
        (stun, quic)
    }

    #[test]
    fn each_segment_goes_one_way_in_order_and_unchanged() {
        let check = encode_check([1; 12], &[2; 16], &[3; 32], 4);
        for seed in 0..5_000 {
            let mut pick = seeded(seed);
            let count = 1 + pick(64);
            let mut sent: Vec<Vec<u8>> = (0..count)
                .map(|n| match pick(3) {
                    0 => check.clone(),
                    // Short header, same size: what a flow of small packets looks like.
                    _ => [
                        vec![0x40 | pick(64) as u8, n as u8],
                        vec![pick(256) as u8; check.len() - 2],
                    ]
                    .concat(),
                })
                .collect();
            // The last datagram of a batch may be shorter.
            match pick(3) {
                0 => sent.push(encode_binding_request([seed as u8; 12])),
                1 => sent.push(vec![0xC3; 1 + pick(check.len())]),
                _ => {}
            }
            let (stun, quic) = split(sent.concat(), check.len());
            let (want_stun, want_quic): (Vec<_>, Vec<_>) =
                sent.into_iter().partition(|s| looks_like_stun(s));
            assert_eq!((stun, quic), (want_stun, want_quic), "seed {seed}");
        }
    }

    #[test]
    fn a_single_datagram_needs_no_stride() {
        let request = encode_binding_request([5; 12]);
        for stride in [0, 20, 1_500] {
            assert_eq!(split(request.clone(), stride), (vec![request.clone()], vec![]));
            let quic = vec![0x41; 30];
            let want = if stride == 20 {
                vec![vec![0x41; 20], vec![0x41; 10]]
            } else {
                vec![quic.clone()]
            };
            assert_eq!(split(quic, stride), (vec![], want));
        }
        assert_eq!(split(vec![], 0), (vec![], vec![]));
    }
}
