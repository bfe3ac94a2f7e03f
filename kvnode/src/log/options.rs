//! How RocksDB is set for `raftlog`: each value with its unit and its reason.
//!
//! The load: one writer, batches that are synced, keys that ascend per replica, values that are read back hardly
//! ever and deleted by range soon after.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, LogLevel, Options};

use crate::runtime::open_files::OpenFiles;

/// Memtables, at most: one takes writes, two may wait for the flush before writes stop.
const MEMTABLES: usize = 3;

/// L0 files that start a compaction. Most of a log is dead when it gets there: waiting longer rewrites less.
const L0_COMPACTION_FILES: i32 = 8;

/// L0 files that slow writes down, and that stop them. Reads of the log are rare, so many files do little harm.
const L0_SLOWDOWN_FILES: i32 = 32;
const L0_STOP_FILES: i32 = 48;

/// Size of SST files, in bytes: a purge of 64 MiB then drops whole files.
const SST_BYTES: u64 = 32 << 20;

/// Block cache, in bytes: reads are for followers far behind, which read once.
const BLOCK_CACHE_BYTES: usize = 8 << 20;

/// Data block, in bytes: reads are sequential.
const BLOCK_BYTES: usize = 16 << 10;

/// SST bytes after which the kernel is asked to begin writing: spreads what an fsync at the end would cost at once.
const BYTES_PER_SYNC: u64 = 1 << 20;

/// Open files. A log has few.
const OPEN_FILES: i32 = 256;

/// RocksDB's own text logs: files kept, and bytes of each.
const INFO_LOGS: usize = 4;
const INFO_LOG_BYTES: usize = 4 << 20;

/// What the log store may hold in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMemory {
    /// All memtables, in bytes. A log that is purged before its memtable is flushed costs no SST at all; larger ones make
    /// the replay after a crash longer (about 1 s for each 200 MiB).
    pub memtables_bytes: usize,
}

impl Default for LogMemory {
    /// As much as brings anything.
    fn default() -> Self {
        Self { memtables_bytes: MEMTABLES * (32 << 20) }
    }
}

/// How the write-ahead log is read when the database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Takes a log whose end is missing, and refuses any record with a wrong checksum.
    Strict,
    /// Takes what is before the first record that is not whole.
    PointInTime,
}

/// The options of `raftlog`.
pub fn raftlog(recovery: Recovery, memory: &LogMemory) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_wal_recovery_mode(match recovery {
        Recovery::Strict => DBRecoveryMode::TolerateCorruptedTailRecords,
        Recovery::PointInTime => DBRecoveryMode::PointInTime,
    });
    // A recycled file ends in old records, which no mode but point in time can tell from damage.
    options.set_recycle_log_file_num(0);
    options.set_paranoid_checks(true);

    options.set_write_buffer_size(memory.memtables_bytes / MEMTABLES);
    options.set_max_write_buffer_number(i32::try_from(MEMTABLES).unwrap_or(i32::MAX));
    options.set_level_zero_file_num_compaction_trigger(L0_COMPACTION_FILES);
    options.set_level_zero_slowdown_writes_trigger(L0_SLOWDOWN_FILES);
    options.set_level_zero_stop_writes_trigger(L0_STOP_FILES);
    options.set_target_file_size_base(SST_BYTES);
    // One flush and one compaction at a time: more would only take CPU from the node.
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(BYTES_PER_SYNC);
    // Entries live for seconds to minutes: compressing them costs more than their space.
    options.set_compression_type(DBCompressionType::None);
    options.set_max_open_files(OpenFiles::of_this_process().log_tables.min(OPEN_FILES));

    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_block_size(BLOCK_BYTES);
    options.set_block_based_table_factory(&table);

    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(INFO_LOGS);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    // Statistics go to our metrics, not to RocksDB's text log.
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}
