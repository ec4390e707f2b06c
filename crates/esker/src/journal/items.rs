//! What one frame carries: puts, deletes and changes of the set of partitions.
//!
//! Grammar and limits: docs/format.md, "Items". An item names its partition by id. Values of
//! `COMPRESS_FROM` bytes and more are compressed, in chunks, when the first chunk shrinks by at
//! least an eighth: a large value costs the memory of its compressed form and no more.

use crate::bytes::{Put, Take, Truncated};

pub(crate) const KEY_LEN_MAX: usize = u16::MAX as usize;
pub(crate) const VALUE_LEN_MAX: usize = u32::MAX as usize;
/// LZ4 runs at several times the speed of a disk; below this size the call costs more than it saves.
const COMPRESS_FROM: usize = 4 << 10;
/// Large values are compressed in pieces of this size.
const CHUNK_LEN: usize = 256 << 10;
/// Set in a chunk's length: the chunk is stored as it is.
const CHUNK_IS_PLAIN: u32 = 1 << 31;

const PUT: u8 = 0;
const DELETE: u8 = 1;
const CLEAR: u8 = 3;
const CREATE: u8 = 4;
const DROP: u8 = 5;
const PUT_LZ4: u8 = 6;
const INGEST: u8 = 7;
const DELETE_WEAK: u8 = 8;

/// One change, as replay sees it.
#[derive(Debug, PartialEq)]
pub(crate) enum Item<'a> {
    Put {
        partition: u32,
        key: &'a [u8],
        value: Value<'a>,
    },
    Delete {
        partition: u32,
        key: &'a [u8],
    },
    DeleteWeak {
        partition: u32,
        key: &'a [u8],
    },
    Clear {
        partition: u32,
    },
    Create {
        partition: u32,
        name: &'a str,
    },
    Drop {
        partition: u32,
    },
    /// Tables that did not come through the journal were added.
    Ingest {
        partition: u32,
    },
}

/// A value as it lies in the journal.
#[derive(Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Plain(&'a [u8]),
    Lz4 { len: usize, bytes: &'a [u8] },
}

impl Value<'_> {
    /// The value's bytes; `None` if they do not decompress to what was declared.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        match *self {
            Self::Plain(bytes) => Some(bytes.to_vec()),
            Self::Lz4 { len, bytes } => {
                let (mut input, mut value) = (Take::new(bytes), Vec::new());
                while value.len() < len {
                    unpack_chunk(&mut input, (len - value.len()).min(CHUNK_LEN), &mut value)?;
                }
                input.is_empty().then_some(value)
            }
        }
    }
}

fn unpack_chunk(input: &mut Take<'_>, len: usize, value: &mut Vec<u8>) -> Option<()> {
    let head = input.u32().ok()?;
    let stored = input.bytes((head & !CHUNK_IS_PLAIN) as usize).ok()?;
    if head & CHUNK_IS_PLAIN != 0 {
        value.extend_from_slice(stored);
        return (stored.len() == len).then_some(());
    }
    let at = value.len();
    value.resize(at + len, 0);
    let unpacked = lz4_flex::block::decompress_into(stored, &mut value[at..]).ok()?;
    (unpacked == len).then_some(())
}

/// Appends the value in compressed chunks; false, with nothing appended, when it does not pay.
fn pack(value: &[u8], out: &mut Vec<u8>) -> bool {
    let begin = out.len();
    let mut packed = vec![0; lz4_flex::block::get_maximum_output_size(value.len().min(CHUNK_LEN))];
    for chunk in value.chunks(CHUNK_LEN) {
        let worth = chunk.len() - chunk.len() / 8;
        let len =
            lz4_flex::block::compress_into(chunk, &mut packed).ok().filter(|&len| len <= worth);
        match len {
            Some(len) => {
                out.put_u32(len as u32);
                out.put(&packed[..len]);
            }
            None if out.len() == begin => return false,
            None => {
                out.put_u32(chunk.len() as u32 | CHUNK_IS_PLAIN);
                out.put(chunk);
            }
        }
    }
    true
}

pub(crate) fn put(out: &mut Vec<u8>, partition: u32, key: &[u8], value: &[u8]) {
    let begin = out.len();
    let head = |out: &mut Vec<u8>, kind: u8| {
        out.put_u8(kind);
        out.put_u32(partition);
        out.put_u16(key.len() as u16);
        out.put_u32(value.len() as u32);
    };
    if value.len() >= COMPRESS_FROM {
        head(out, PUT_LZ4);
        let len_at = out.len();
        out.put_u32(0);
        out.put(key);
        let value_at = out.len();
        if pack(value, out) && u32::try_from(out.len() - value_at).is_ok() {
            let len = (out.len() - value_at) as u32;
            out[len_at..len_at + 4].copy_from_slice(&len.to_le_bytes());
            return;
        }
        out.truncate(begin);
    }
    head(out, PUT);
    out.put(key);
    out.put(value);
}

pub(crate) fn delete(out: &mut Vec<u8>, partition: u32, key: &[u8]) {
    removal(out, DELETE, partition, key);
}

pub(crate) fn delete_weak(out: &mut Vec<u8>, partition: u32, key: &[u8]) {
    removal(out, DELETE_WEAK, partition, key);
}

fn removal(out: &mut Vec<u8>, kind: u8, partition: u32, key: &[u8]) {
    out.put_u8(kind);
    out.put_u32(partition);
    out.put_u16(key.len() as u16);
    out.put(key);
}

pub(crate) fn clear(partition: u32) -> Vec<u8> {
    bare(CLEAR, partition)
}

pub(crate) fn drop_partition(partition: u32) -> Vec<u8> {
    bare(DROP, partition)
}

pub(crate) fn ingest(partition: u32) -> Vec<u8> {
    bare(INGEST, partition)
}

fn bare(kind: u8, partition: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u8(kind);
    out.put_u32(partition);
    out
}

pub(crate) fn create(partition: u32, name: &str) -> Vec<u8> {
    let mut out = bare(CREATE, partition);
    out.put_u16(name.len() as u16);
    out.put(name.as_bytes());
    out
}

/// Reads the items of one frame.
pub(crate) struct Items<'a> {
    input: Take<'a>,
    left: u32,
}

impl<'a> Items<'a> {
    pub(crate) fn new(payload: &'a [u8], count: u32) -> Self {
        Self { input: Take::new(payload), left: count }
    }

    fn item(&mut self) -> Result<Option<Item<'a>>, Truncated> {
        let (kind, partition) = (self.input.u8()?, self.input.u32()?);
        Ok(Some(match kind {
            PUT | PUT_LZ4 => {
                let key_len = self.input.u16()? as usize;
                let len = self.input.u32()? as usize;
                let stored = if kind == PUT { len } else { self.input.u32()? as usize };
                let key = self.input.bytes(key_len)?;
                let bytes = self.input.bytes(stored)?;
                let value =
                    if kind == PUT { Value::Plain(bytes) } else { Value::Lz4 { len, bytes } };
                Item::Put { partition, key, value }
            }
            DELETE | DELETE_WEAK => {
                let key_len = self.input.u16()? as usize;
                let key = self.input.bytes(key_len)?;
                if kind == DELETE {
                    Item::Delete { partition, key }
                } else {
                    Item::DeleteWeak { partition, key }
                }
            }
            CLEAR => Item::Clear { partition },
            DROP => Item::Drop { partition },
            INGEST => Item::Ingest { partition },
            CREATE => {
                let len = self.input.u16()? as usize;
                let Ok(name) = std::str::from_utf8(self.input.bytes(len)?) else { return Ok(None) };
                Item::Create { partition, name }
            }
            _ => return Ok(None),
        }))
    }
}

impl<'a> Iterator for Items<'a> {
    /// `Err`: the payload is not made of items, although its checksum is right.
    type Item = Result<Item<'a>, Truncated>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            // Bytes behind the last item are as wrong as missing ones.
            return (!std::mem::replace(&mut self.input, Take::new(&[])).is_empty())
                .then_some(Err(Truncated));
        }
        self.left -= 1;
        let item = self.item().and_then(|item| item.ok_or(Truncated));
        if item.is_err() {
            self.left = 0;
            self.input = Take::new(&[]);
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_round_trip_and_cut_payloads_are_refused() {
        let large = vec![7; 20_000];
        let mut payload = Vec::new();
        put(&mut payload, 1, b"key", b"value");
        put(&mut payload, 1, b"large", &large);
        delete(&mut payload, 2, b"gone");
        delete_weak(&mut payload, 2, b"once");
        payload.extend(clear(3));
        payload.extend(create(4, "name"));
        payload.extend(drop_partition(5));
        payload.extend(ingest(6));
        let items: Vec<_> = Items::new(&payload, 8).map(Result::unwrap).collect();
        assert_eq!(items.len(), 8);
        let Item::Put { value: value @ Value::Lz4 { len: 20_000, .. }, .. } = &items[1] else {
            panic!("{:?}", items[1]);
        };
        assert_eq!(value.bytes().unwrap(), large);
        assert_eq!(items[3], Item::DeleteWeak { partition: 2, key: b"once" });
        assert_eq!(items[5], Item::Create { partition: 4, name: "name" });
        for cut in 0..payload.len() {
            assert!(Items::new(&payload[..cut], 8).any(|item| item.is_err()), "cut at {cut}");
        }
        assert!(Items::new(&payload, 7).any(|item| item.is_err()), "bytes left over");
    }

    #[test]
    fn a_lying_length_is_refused_without_a_large_allocation() {
        let mut bytes = Vec::new();
        assert!(pack(&[1; 1000], &mut bytes));
        for len in [10, 999, 1001, u32::MAX as usize] {
            assert_eq!(Value::Lz4 { len, bytes: &bytes }.bytes(), None, "{len}");
        }
    }

    #[test]
    fn values_of_many_chunks_round_trip_and_noise_is_stored_plain() {
        let mut state = 1u64;
        let noise = |len: usize, state: &mut u64| -> Vec<u8> {
            let step = |_| {
                *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (*state >> 56) as u8
            };
            (0..len).map(step).collect()
        };
        let text = vec![b'a'; CHUNK_LEN + 5];
        let mixed = [&text[..], &noise(2 * CHUNK_LEN, &mut state), &text].concat();
        let mut payload = Vec::new();
        put(&mut payload, 1, b"text", &text);
        put(&mut payload, 1, b"mixed", &mixed);
        put(&mut payload, 1, b"noise", &noise(10_000, &mut state));
        let items: Vec<_> = Items::new(&payload, 3).map(Result::unwrap).collect();
        for (item, expected) in items.iter().zip([Some(&text), Some(&mixed), None]) {
            let Item::Put { value, .. } = item else { panic!("{item:?}") };
            assert_eq!(matches!(value, Value::Lz4 { .. }), expected.is_some());
            assert!(expected.is_none_or(|expected| value.bytes().as_ref() == Some(expected)));
        }
    }
}
