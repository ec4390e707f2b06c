//! The journal's pieces by themselves: items encoded, frames chained, a segment scanned.
//!
//! These are the engine's own files, compiled once more: nothing of them is public.
#![allow(missing_docs, reason = "criterion's macros write functions without any")]

#[allow(dead_code)]
#[path = "../../../crates/esker/src/bytes.rs"]
mod bytes;
#[allow(dead_code, unused_imports)]
#[path = "../../../crates/esker/src/error.rs"]
mod error;
#[allow(dead_code, unused_imports)]
mod journal;
#[allow(dead_code, unexpected_cfgs)]
#[path = "../../../crates/esker/src/planted.rs"]
mod planted;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use journal::format::{FrameHeader, FrameKind, Identity, SegmentHeader, payload_hash};
use journal::{items, reader};

const VALUE: [u8; 100] = [b'v'; 100];
const IDENTITY: Identity = Identity { uuid: 1, timeline: 2 };
const SEGMENT_BYTES: usize = 16 << 20;

/// Puts of 100 bytes under keys of eight.
fn encode_items(out: &mut Vec<u8>, from: u64, count: u32) {
    for number in 0..u64::from(count) {
        items::put(out, 7, &(from + number).to_be_bytes(), &VALUE);
    }
}

fn header(seqno: u64, items: u32, payload: &[u8], hash: u64) -> FrameHeader {
    FrameHeader {
        kind: FrameKind::Batch,
        items,
        payload_len: payload.len() as u64,
        seqno,
        time_ms: 1_790_000_000_000,
        synced_len: 0,
        payload_hash: hash,
    }
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal/encode and hash");
    for entries in [1, 100] {
        let mut payload = Vec::new();
        encode_items(&mut payload, 0, entries);
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(BenchmarkId::new("entries", entries), |bencher| {
            let mut next = 0;
            bencher.iter(|| {
                next += 1;
                payload.clear();
                encode_items(&mut payload, next, entries);
                payload_hash(&payload)
            });
        });
    }
}

fn chain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal/chain");
    group.throughput(Throughput::Elements(1));
    group.bench_function("frame header", |bencher| {
        let (mut seqno, mut previous) = (0, 3);
        bencher.iter(|| {
            seqno += 1;
            let (bytes, chain) = header(seqno, 1, &VALUE, 5).encode(11, previous);
            previous = chain;
            bytes
        });
    });
}

/// A segment that was not sealed, with frames of so many entries.
fn segment(entries: u32) -> (Vec<u8>, u64) {
    let begin = SegmentHeader { identity: IDENTITY, id: 1, created_ms: 0 };
    let (seed, mut chain) = (begin.chain_seed(), begin.chain_seed());
    let (mut segment, mut frames) = (begin.encode().to_vec(), 0);
    while segment.len() < SEGMENT_BYTES {
        let mut payload = Vec::new();
        encode_items(&mut payload, frames, entries);
        frames += 1;
        let header = header(frames, entries, &payload, payload_hash(&payload));
        let (bytes, next) = header.encode(seed, chain);
        chain = next;
        segment.extend_from_slice(&bytes);
        segment.extend_from_slice(&payload);
    }
    (segment, frames)
}

fn scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal/scan");
    let file = tempfile::NamedTempFile::new().unwrap();
    for entries in [1, 100] {
        let (bytes, frames) = segment(entries);
        std::fs::write(file.path(), &bytes).unwrap();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(BenchmarkId::new("entries per frame", entries), |bencher| {
            bencher.iter(|| {
                let mut visit = |frame: reader::Frame<'_>| {
                    black_box(frame.payload);
                    Ok(())
                };
                let scan = reader::scan(file.path(), 1, IDENTITY, &mut visit).unwrap();
                assert_eq!(scan.frames, frames);
            });
        });
    }
}

criterion_group!(benches, encode, chain, scan);
criterion_main!(benches);
