//! Partition options and configurations: stored, kept, refused.

use esker::{
    CompactionStrategy, Compression, Config, Durability, Error, ErrorKind, PartitionOptions,
};
use esker_tests::{Store, fill};

fn fifo(limit_bytes: Option<u64>, ttl_secs: Option<u64>) -> CompactionStrategy {
    CompactionStrategy::Fifo { limit_bytes, ttl_secs }
}

fn every_option() -> Vec<PartitionOptions> {
    let default = PartitionOptions::default;
    vec![
        default(),
        default().block_bytes(256),
        default().block_bytes(4 << 20),
        default().compression(Compression::None),
        default().compression(Compression::Lz4),
        default().filter_bits_per_key(0.0),
        default().filter_bits_per_key(64.0),
        default().filter_bits_per_key(7.5),
        default().filter_bits_per_key(0.5),
        default().filter_bits_per_key(f32::MIN_POSITIVE),
        default().separate_values_from(Some(1)),
        default().separate_values_from(Some(u32::MAX)),
        default().table_bytes(4 << 10),
        default().table_bytes(1 << 40),
        default().l0_runs(1),
        default().l0_runs(32),
        default().separate_values_from(Some(16)).blob_file_target_bytes(4 << 10),
        default().separate_values_from(Some(16)).blob_compression(Compression::None),
        default()
            .separate_values_from(Some(16))
            .compression(Compression::None)
            .blob_compression(Compression::Lz4),
        default()
            .separate_values_from(Some(16))
            .blob_staleness_threshold(f32::MIN_POSITIVE)
            .blob_age_cutoff(1.0),
        default().separate_values_from(Some(16)).blob_staleness_threshold(1.0).blob_age_cutoff(0.0),
        default().compaction_strategy(CompactionStrategy::Leveled),
        default().compaction_strategy(fifo(Some(1 << 40), None)),
        default().separate_values_from(Some(16)).compaction_strategy(fifo(None, Some(u64::MAX))),
        default().l0_runs(1).compaction_strategy(fifo(Some(u64::MAX), Some(1 << 30))),
        default()
            .block_bytes(1024)
            .compression(Compression::None)
            .filter_bits_per_key(3.0)
            .separate_values_from(Some(64))
            .table_bytes(8 << 10)
            .l0_runs(2),
    ]
}

/// What differs from the default, as programs print it.
fn set_by(options: &PartitionOptions) -> serde_json::Value {
    let default = serde_json::to_value(PartitionOptions::default()).unwrap();
    let all = serde_json::to_value(options).unwrap();
    let fields = all.as_object().unwrap().clone().into_iter();
    serde_json::Value::Object(fields.filter(|(name, value)| default[name] != *value).collect())
}

#[test]
fn a_preset_sets_what_it_says_and_a_partition_keeps_that() {
    let presets = [
        (
            PartitionOptions::point_reads(),
            serde_json::json!({ "block_bytes": 2048, "filter_bits_per_key": 15.0 }),
        ),
        (
            PartitionOptions::scans(),
            serde_json::json!({ "block_bytes": 32768, "filter_bits_per_key": 0.0 }),
        ),
        (
            PartitionOptions::write_heavy(),
            serde_json::json!({ "block_bytes": 16384, "l0_runs": 12 }),
        ),
    ];
    for (number, (preset, expected)) in presets.iter().enumerate() {
        assert_eq!(set_by(preset), *expected);
        let mut store = Store::new();
        let partition = store.keyspace().partition("p", preset.clone()).unwrap();
        fill(&partition, 500);
        drop(partition);
        store.keyspace().flush().unwrap();
        store.reopen();
        let partition = store.keyspace().partition("p", preset.clone()).unwrap();
        assert_eq!((partition.options(), partition.len().unwrap()), (preset.clone(), 500));
        let (other, _) = &presets[(number + 1) % presets.len()];
        let error = store.keyspace().partition("p", other.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
    }
}

#[test]
fn every_option_is_stored_and_holds_its_data_through_reopening_and_crash() {
    let mut store = Store::new();
    let all = every_option();
    for (number, options) in all.iter().enumerate() {
        let p = store.partition_with(&format!("p{number:02}"), options.clone());
        assert_eq!(p.options(), *options);
        fill(&p, 300);
        store.keyspace().flush().unwrap();
        for overwritten in 0..150 {
            p.insert(format!("key {overwritten:06}"), "y".repeat(overwritten)).unwrap();
        }
        p.compact().unwrap();
        p.remove("key 000299").unwrap();
    }
    let before = store.content();
    assert!(before.values().all(|entries| entries.len() == 299));
    for crash in [false, true] {
        if crash {
            store.crash();
        }
        store.reopen();
        for (number, options) in all.iter().enumerate() {
            let name = format!("p{number:02}");
            let p = store.keyspace().open_partition(&name).unwrap().unwrap();
            assert_eq!(p.options(), *options, "{name}");
            p.compact().unwrap();
        }
        assert!(store.content() == before, "after a crash: {crash}");
    }
}

#[test]
fn what_is_not_set_is_as_it_was_stored() {
    let mut store = Store::new();
    let created = PartitionOptions::default().block_bytes(512).separate_values_from(Some(50));
    fill(&store.partition_with("p", created.clone()), 10);
    for reopened in [false, true] {
        if reopened {
            store.reopen();
        }
        assert_eq!(store.partition_with("p", PartitionOptions::default()).options(), created);
        let some = PartitionOptions::default().block_bytes(512);
        assert_eq!(store.partition_with("p", some).options(), created);
        assert_eq!(store.partition_with("p", created.clone()).options(), created);
    }
}

#[test]
fn options_that_contradict_the_stored_ones_are_refused_by_name_and_change_nothing() {
    let mut store = Store::new();
    let created = PartitionOptions::default().block_bytes(512).separate_values_from(Some(50));
    fill(&store.partition_with("p", created.clone()), 10);
    let before = store.content();
    let other = PartitionOptions::default()
        .block_bytes(8192)
        .separate_values_from(None)
        .table_bytes(64 << 20)
        .compaction_strategy(fifo(Some(1), None));
    for reopened in [false, true] {
        if reopened {
            store.reopen();
        }
        let seqno = store.keyspace().seqno();
        let error = store.keyspace().partition("p", other.clone()).unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::FixInput);
        assert_eq!(
            error.to_string(),
            "the partition \"p\" was created with other options: block_bytes is 512, not 8192; \
             separate_values_from is 50, not None; compaction_strategy is Leveled, not Fifo { \
             limit_bytes: Some(1), ttl_secs: None }"
        );
        assert_eq!(store.keyspace().seqno(), seqno);
        assert_eq!(store.partition("p").options(), created);
        assert!(store.content() == before);
    }
    store.keyspace().drop_partition("p").unwrap();
    assert_eq!(store.partition_with("p", other.clone()).options(), other, "a new one is new");
}

#[test]
fn blob_files_follow_tables_unless_they_are_told_otherwise() {
    let store = Store::new();
    let like_tables =
        PartitionOptions::default().table_bytes(8 << 10).compression(Compression::None);
    let stored = store.partition_with("a", like_tables).options();
    let explicit = PartitionOptions::default()
        .table_bytes(8 << 10)
        .compression(Compression::None)
        .blob_file_target_bytes(8 << 10)
        .blob_compression(Compression::None);
    assert_eq!(stored, explicit);
    assert_eq!(store.partition_with("a", explicit).options(), stored);
}

#[test]
fn options_survive_clear() {
    let mut store = Store::new();
    let options = PartitionOptions::default().separate_values_from(Some(10)).l0_runs(2);
    let p = store.partition_with("p", options.clone());
    p.clear().unwrap();
    fill(&p, 100);
    drop(p);
    store.reopen();
    assert_eq!(store.partition("p").options(), options);
    store.keyspace().flush().unwrap();
    assert!(store.keyspace().statistics().partitions[0].blob_files > 0);
}

#[test]
fn options_out_of_range_are_refused_and_create_nothing() {
    let store = Store::new();
    let default = PartitionOptions::default;
    for (options, name) in [
        (default().block_bytes(255), "block_bytes"),
        (default().block_bytes((4 << 20) + 1), "block_bytes"),
        (default().filter_bits_per_key(-1.0), "filter_bits_per_key"),
        (default().filter_bits_per_key(65.0), "filter_bits_per_key"),
        (default().filter_bits_per_key(f32::NAN), "filter_bits_per_key"),
        (default().table_bytes(4095), "table_bytes"),
        (default().l0_runs(0), "l0_runs"),
        (default().l0_runs(33), "l0_runs"),
        (default().separate_values_from(Some(0)), "separate_values_from"),
        (default().blob_file_target_bytes(4095), "blob_file_target_bytes"),
        (default().blob_staleness_threshold(0.0), "blob_staleness_threshold"),
        (default().blob_staleness_threshold(1.5), "blob_staleness_threshold"),
        (default().blob_staleness_threshold(f32::NAN), "blob_staleness_threshold"),
        (default().blob_age_cutoff(-0.5), "blob_age_cutoff"),
        (default().blob_age_cutoff(f32::NAN), "blob_age_cutoff"),
        (default().compaction_strategy(fifo(None, None)), "compaction_strategy"),
        (default().compaction_strategy(fifo(Some(0), None)), "compaction_strategy"),
        (default().compaction_strategy(fifo(Some(1), Some(0))), "compaction_strategy"),
    ] {
        let error = store.keyspace().partition("p", options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(store.keyspace().partitions().is_empty());
}

#[test]
fn settings_out_of_range_are_refused_and_create_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keyspace");
    let config = || Config::new(&path);
    for (config, name) in [
        (config().worker_threads(0), "worker_threads"),
        (config().journal_segment_bytes(4095), "journal_segment_bytes"),
        (config().memtable_bytes(1023), "memtable_bytes"),
        (
            config().write_buffer_bytes_max(1 << 20).memtable_bytes(2 << 20),
            "write_buffer_bytes_max",
        ),
        (config().journal_bytes_max(4096).journal_segment_bytes(8192), "journal_bytes_max"),
    ] {
        let error = config.open().unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{error}");
        assert_eq!(error.kind(), ErrorKind::FixInput);
        assert!(error.to_string().contains(name), "{error}");
        assert!(!path.exists());
    }
}

#[test]
fn settings_at_their_smallest_work() {
    let store = Store::with(|config| {
        config
            .cache_bytes(0)
            .worker_threads(1)
            .memtable_bytes(1024)
            .write_buffer_bytes_max(1024)
            .journal_segment_bytes(4096)
            .journal_bytes_max(4096)
            .durability(Durability::SyncAll)
    });
    let p = store.partition("p");
    fill(&p, 500);
    assert_eq!(p.len().unwrap(), 500);
    store.keyspace().flush().unwrap();
    p.compact().unwrap();
    assert_eq!(p.len().unwrap(), 500);
    assert_eq!(store.keyspace().statistics().cache_bytes_max, 0);
}

#[test]
fn the_cache_stays_within_its_size() {
    let store = Store::with(|config| config.cache_bytes(64 << 10).memtable_bytes(64 << 10));
    let p = store.partition_with("p", PartitionOptions::default().compression(Compression::None));
    for number in 0..2_000 {
        p.insert(format!("{number:06}"), "x".repeat(500)).unwrap();
    }
    store.keyspace().flush().unwrap();
    p.compact().unwrap();
    for number in 0..2_000 {
        assert!(p.contains_key(format!("{number:06}")).unwrap());
        assert!(p.get(format!("{number:06}")).unwrap().is_some());
    }
    let statistics = store.keyspace().statistics();
    assert!(statistics.cache_bytes > 0, "the cache is in use");
    assert!(statistics.cache_bytes <= 2 * statistics.cache_bytes_max, "{statistics:?}");
}
