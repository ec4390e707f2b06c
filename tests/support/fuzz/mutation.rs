//! Changes of inputs, for the tests that run without libFuzzer: all choices come from the seed.

use crate::chaos::Rng;

/// Values at which lengths and counts tip over.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
const LEN_MAX: usize = 8 << 10;

/// One of the inputs with up to four changes.
pub fn mutated(rng: &mut Rng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = pick(rng, inputs).clone();
    for _ in 0..=rng.below(4) {
        change(rng, inputs, &mut bytes);
    }
    bytes.truncate(LEN_MAX);
    bytes
}

fn pick<'a>(rng: &mut Rng, inputs: &'a [Vec<u8>]) -> &'a Vec<u8> {
    &inputs[rng.below(inputs.len() as u64) as usize]
}

/// A place in `bytes`, or its end.
fn place(rng: &mut Rng, bytes: &[u8]) -> usize {
    rng.below(bytes.len() as u64 + 1) as usize
}

fn change(rng: &mut Rng, inputs: &[Vec<u8>], bytes: &mut Vec<u8>) {
    let at = place(rng, bytes);
    match rng.below(6) {
        0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.below(8)),
        1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = rng.bits() as u8),
        2 => {
            let edge = EDGES[rng.below(8) as usize].to_le_bytes();
            let len = 1 << rng.below(4);
            bytes.iter_mut().skip(at).zip(&edge[..len]).for_each(|(byte, edge)| *byte = *edge);
        }
        3 => bytes.truncate(at),
        4 => {
            // A piece of another input, put in or put over.
            let other = pick(rng, inputs);
            let from = place(rng, other);
            let len = rng.below(64).min((other.len() - from) as u64) as usize;
            let to = if rng.one_in(2) { at } else { (at + len).min(bytes.len()) };
            bytes.splice(at..to, other[from..from + len].iter().copied());
        }
        _ => {
            let to = (at + rng.below(32) as usize).min(bytes.len());
            bytes.drain(at..to);
        }
    }
}
