//! The settings of the state store's RocksDB: each with its unit and its reason. Sizes follow a memory budget.

use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, CompactOptions, DBCompressionType,
    IngestExternalFileOptions, Options, ReadOptions, ReadTier, WriteBufferManager, WriteOptions,
};

use crate::runtime::open_files::OpenFiles;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The least that the store works with, bytes: below it, flushes become so small that compaction never ends.
pub const MEMORY_BUDGET_MIN_BYTES: usize = 32 * MIB;

/// What the store may hold in memory, split by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Blocks read from tables, their indexes and filters, and the memtables, which are charged to the cache:
    /// one number bounds the store.
    pub block_cache_bytes: usize,
    /// All memtables together, those being flushed included. Bounds what a crash makes us replay.
    pub write_buffer_bytes: usize,
    /// Revisions of keys, kept beside the store for apply.
    pub head_bytes: usize,
    /// Records that go into the memtables together; twice of it is held.
    pub gathered_bytes: usize,
}

impl MemoryBudget {
    /// Splits a number of bytes: an eighth for revisions, and at most 256 MiB, which is those of two million keys; the rest
    /// for the store. There reads gain more from memory than writes do, so that memtables get a third, and at most
    /// 256 MiB, since a larger one only makes a restart longer.
    pub fn of(bytes: usize) -> Self {
        let bytes = bytes.max(MEMORY_BUDGET_MIN_BYTES);
        let head_bytes = (bytes / 8).min(256 * MIB);
        let store_bytes = bytes - head_bytes;
        let write_buffer_bytes = (store_bytes / 3).min(256 * MIB);
        // A memtable takes 64 of them: their records are then a few places apart.
        let gathered_bytes = (write_buffer_bytes / 256).max(128 * KIB);
        Self { block_cache_bytes: store_bytes, write_buffer_bytes, head_bytes, gathered_bytes }
    }
}

/// The options, with the shared parts that they refer to.
pub struct StateOptions {
    /// Of the database; new tables are written with the same.
    pub database: Options,
    /// Of each write.
    pub write: WriteOptions,
    /// Of an ingestion.
    pub ingest: IngestExternalFileOptions,
}

impl StateOptions {
    /// All settings for a memory budget.
    pub fn new(budget: MemoryBudget) -> Self {
        let cache = Cache::new_lru_cache(budget.block_cache_bytes);
        let mut write = WriteOptions::default();
        // The Raft log is the log: what a crash takes back is applied again from there.
        write.disable_wal(true);
        // The records of a batch are in order: each is looked for where the one before it went.
        write.set_memtable_insert_hint_per_batch(true);
        let mut ingest = IngestExternalFileOptions::default();
        // Staged on the same file system: renamed, not copied.
        ingest.set_move_files(true);
        Self { database: database(budget, &cache), write, ingest }
    }

    /// Options of a read of the newest state or of a pinned one.
    pub fn read() -> ReadOptions {
        let mut options = ReadOptions::default();
        // The default, and a promise of ours: damaged blocks are found before they are served.
        options.set_verify_checksums(true);
        options
    }

    /// Options of a read that never waits for the disk.
    pub fn read_memory() -> ReadOptions {
        let mut options = Self::read();
        // Memtables and block cache; what is in neither makes the read fail as incomplete.
        options.set_read_tier(ReadTier::BlockCache);
        options
    }

    /// Options of a read that sees only what is on disk.
    pub fn read_persisted() -> ReadOptions {
        let mut options = Self::read();
        // Without a write-ahead log this skips the memtables.
        options.set_read_tier(ReadTier::Persisted);
        options
    }

    /// Options of a compaction that gives the space of deleted records back.
    pub fn reclaim() -> CompactOptions {
        let mut options = CompactOptions::default();
        // Down to where what they delete lies; a single table of both is written anew too.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        // What RocksDB finds necessary meanwhile goes on, or writers would be stalled.
        options.set_exclusive_manual_compaction(false);
        options
    }

    /// Options of a read through much: for snapshots to other nodes.
    pub fn read_all() -> ReadOptions {
        let mut options = Self::read();
        // It would push out what clients read.
        options.fill_cache(false);
        options.set_readahead_size(2 * MIB);
        options
    }
}

fn database(budget: MemoryBudget, cache: &Cache) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    // A table that cannot be read at all must be noticed at open, not later.
    options.set_paranoid_checks(true);
    options.set_block_based_table_factory(&tables(cache));

    let manager = WriteBufferManager::new_write_buffer_manager_with_cache(
        budget.write_buffer_bytes,
        // Writers wait for a flush when the budget is used up: that is the apply thread, and it may.
        true,
        cache.clone(),
    );
    options.set_write_buffer_manager(&manager);
    // A quarter of the budget each, so that one is filled while others are written out.
    options.set_write_buffer_size((budget.write_buffer_bytes / 4).clamp(4 * MIB, 64 * MIB));
    options.set_max_write_buffer_number(4);

    // Tables of 64 MiB: 32 GiB without opening one anew.
    options.set_max_open_files(OpenFiles::of_this_process().state_tables.min(512));
    // A quarter of the bytes for almost no CPU; zstd would cost the apply thread's core.
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    // Tables as large as those of a snapshot, so that an ingested one is like a compacted one.
    options.set_target_file_size_base(64 * MIB as u64);
    options.set_max_bytes_for_level_base(256 * MIB as u64);
    // One flush and one compaction: more threads only switch contexts on a small machine.
    options.set_max_background_jobs(2);
    // Writes of the background, smoothed, so that one sync never waits for a gigabyte of dirty pages: bytes.
    options.set_bytes_per_sync(MIB as u64);
    // Compaction may not take the whole device from the log: bytes per second, refilled each 100 ms, fairness 1:10.
    options.set_ratelimiter(256 * MIB as i64, 100_000, 10);
    // Iterators must not unlink files on the threads that answer clients.
    options.set_avoid_unnecessary_blocking_io(true);
    // Without these, an idle node writes statistics and keeps a thousand old text logs.
    options.set_stats_dump_period_sec(0);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 * MIB);
    options
}

fn tables(cache: &Cache) -> BlockBasedOptions {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(cache);
    // Large enough for lz4 to find something, small enough for a point read of 256 B: bytes.
    tables.set_block_size(16 * KIB);
    // 10 bits a key: one lookup in a hundred of an absent key reads a block for nothing.
    tables.set_bloom_filter(10.0, false);
    // Else indexes and filters grow outside the budget.
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    tables.set_format_version(6);
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_budget_is_raised_to_one_that_works() {
        assert_eq!(MemoryBudget::of(0), MemoryBudget::of(MEMORY_BUDGET_MIN_BYTES));
    }

    #[test]
    fn memtables_are_a_third_of_the_store_and_at_most_256_mib() {
        assert_eq!(MemoryBudget::of(96 * MIB).write_buffer_bytes, 28 * MIB);
        assert_eq!(MemoryBudget::of(4096 * MIB).write_buffer_bytes, 256 * MIB);
    }
}
