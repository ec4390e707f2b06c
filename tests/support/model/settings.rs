//! The sets of options that the model is played with.

use esker::{CompactionStrategy, Compression, Config, Durability, PartitionOptions};

/// How a keyspace is opened, and how its partitions are created.
pub struct Settings {
    pub name: &'static str,
    pub config: fn(Config) -> Config,
    pub options: fn() -> PartitionOptions,
}

fn options() -> PartitionOptions {
    PartitionOptions::default()
}

fn tiny() -> PartitionOptions {
    options().block_bytes(256).table_bytes(4096)
}

/// Memtables of 1 to 4 KiB: every few commits are a flush. Commits wait to be applied until a read.
fn small(config: Config, memtable_bytes: u64) -> Config {
    let config = config.defer_after_changes(0);
    config.memtable_bytes(memtable_bytes).journal_segment_bytes(4096).cache_bytes(64 << 10)
}

/// One test for each.
pub const SETTINGS: [Settings; 19] = [
    Settings {
        name: "default",
        config: |c| c.journal_segment_bytes(1 << 20).defer_after_changes(20),
        options,
    },
    Settings {
        name: "tiny",
        config: |c| small(c, 1024).journal_bytes_max(16 << 10),
        options: || tiny().l0_runs(1),
    },
    Settings {
        name: "separated",
        config: |c| small(c, 2048),
        options: || tiny().separate_values_from(Some(24)).l0_runs(2),
    },
    Settings {
        name: "one_worker_without_cache_and_filters",
        config: |c| small(c, 1024).worker_threads(1).cache_bytes(0).write_buffer_bytes_max(2048),
        options: || {
            tiny().filter_bits_per_key(0.0).compression(Compression::None).block_bytes(1024)
        },
    },
    Settings {
        name: "synced_and_every_value_separated",
        config: |c| c.durability(Durability::SyncData).memtable_bytes(4096),
        options: || {
            options().separate_values_from(Some(1)).compression(Compression::None).table_bytes(4096)
        },
    },
    Settings { name: "many_runs", config: |c| small(c, 1024), options: || tiny().l0_runs(32) },
    Settings {
        name: "one_segment_of_journal",
        config: |c| small(c, 4096).journal_bytes_max(4096),
        options: tiny,
    },
    Settings {
        name: "all_synced",
        config: |c| small(c, 2048).durability(Durability::SyncAll),
        options: || tiny().l0_runs(2),
    },
    Settings {
        name: "large_blocks_in_tiny_tables",
        config: |c| small(c, 4096),
        options: || tiny().block_bytes(64 << 10),
    },
    Settings {
        name: "many_workers",
        config: |c| small(c, 1024).worker_threads(6),
        options: || tiny().l0_runs(1),
    },
    Settings {
        name: "many_filter_bits",
        config: |c| small(c, 2048),
        options: || tiny().filter_bits_per_key(64.0).l0_runs(3),
    },
    Settings {
        name: "almost_no_filter_bits",
        config: |c| small(c, 3072),
        options: || tiny().filter_bits_per_key(0.5).compression(Compression::None),
    },
    Settings {
        name: "only_large_values_separated",
        config: |c| small(c, 4096),
        options: || tiny().separate_values_from(Some(4096)),
    },
    Settings {
        name: "journal_alone",
        config: |c| c.journal_segment_bytes(4096).worker_threads(1),
        options: tiny,
    },
    Settings {
        name: "narrow_write_buffer",
        config: |c| small(c, 2048).write_buffer_bytes_max(2048).worker_threads(2),
        options: || tiny().separate_values_from(Some(32)).l0_runs(1),
    },
    Settings {
        name: "blob_files_rewritten_early",
        config: |c| small(c, 2048),
        options: || {
            tiny()
                .separate_values_from(Some(24))
                .blob_file_target_bytes(4096)
                .blob_compression(Compression::None)
                .blob_staleness_threshold(0.01)
                .blob_age_cutoff(1.0)
                .l0_runs(2)
        },
    },
    Settings {
        name: "blob_files_rewritten_late",
        config: |c| small(c, 2048),
        options: || {
            tiny()
                .separate_values_from(Some(1))
                .blob_file_target_bytes(64 << 10)
                .blob_staleness_threshold(1.0)
                .blob_age_cutoff(0.5)
                .compression(Compression::None)
                .blob_compression(Compression::Lz4)
                .l0_runs(1)
        },
    },
    Settings {
        name: "first_in_and_never_out",
        config: |c| small(c, 1024),
        options: || {
            tiny().l0_runs(1).compaction_strategy(CompactionStrategy::Fifo {
                limit_bytes: Some(1 << 40),
                ttl_secs: Some(1 << 30),
            })
        },
    },
    Settings {
        name: "a_table_for_each_memtable",
        config: |c| small(c, 1024).journal_bytes_max(8 << 10),
        options: || options().block_bytes(256).table_bytes(64 << 10).l0_runs(8),
    },
];

/// What fuzzing uses: one worker, and everything as small as it gets.
pub const FUZZING: Settings = Settings {
    name: "fuzzing",
    config: |c| small(c, 1024).worker_threads(1).journal_bytes_max(16 << 10),
    options: || tiny().separate_values_from(Some(40)).l0_runs(2),
};

/// The settings with the given name.
pub fn named(name: &str) -> &'static Settings {
    SETTINGS.iter().find(|s| s.name == name).expect("a set of options of that name")
}
