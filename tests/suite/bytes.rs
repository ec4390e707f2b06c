//! The feature `bytes`: slices are `bytes::Bytes`, and become one, or come from one, without a copy.

use bytes::Bytes;
use esker::Slice;
use esker_tests::Store;

#[test]
fn slices_and_bytes_share_their_memory_in_both_directions() {
    let bytes = Bytes::from(vec![7; 4096]);
    let slice = Slice::from(bytes.clone());
    assert_eq!(slice.as_ptr(), bytes.as_ptr());
    let back = Bytes::from(slice);
    assert_eq!(back.as_ptr(), bytes.as_ptr());
    assert_eq!(back, bytes);
}

#[test]
fn bytes_are_keys_and_values_and_what_is_read_becomes_bytes() {
    let mut store = Store::new();
    let value = Bytes::from(vec![9; 100_000]);
    let p = store.partition("p");
    p.insert(Bytes::from_static(b"k"), value.clone()).unwrap();
    // It lies in the memtable as it was given.
    let read: Bytes = p.get(Bytes::from_static(b"k")).unwrap().unwrap().into();
    assert_eq!(read.as_ptr(), value.as_ptr());
    drop(p);
    store.reopen();
    let read: Bytes = store.partition("p").get("k").unwrap().unwrap().into();
    assert_eq!(read, value);
    let part = read.slice(10..20);
    assert_eq!(part.as_ptr(), read[10..].as_ptr());
    store.close();
    assert_eq!(part, value.slice(..10), "it needs no keyspace");
}
