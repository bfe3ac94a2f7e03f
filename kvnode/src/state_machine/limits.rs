//! The bounds that apply and reads hold to. They decide what entries do, so they are part of the disk format:
//! changing one needs a new feature level.

/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Longest inline value, bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Length of each chunk of an uploaded value but the last, which may be shorter. Fixed, so that an offset names its
/// chunk; bytes.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Most comparisons, and most operations of each branch, of a transaction.
pub const TXN_OPERATIONS_MAX: usize = 128;
/// Most bytes of values that a transaction answers with. Replies are at most 4 MiB with all else in them.
pub const TXN_REPLY_BYTES_MAX: usize = 3 << 20;
/// Most keys that one DeleteRange deletes; also when it names no limit.
pub const DELETE_RANGE_KEYS_MAX: u32 = 1_000;
/// An upload that was not touched for so long is swept; ms of log time.
pub const UPLOAD_IDLE_MS: u64 = 10 * 60 * 1_000;
/// Most uploads that one Tick sweeps.
pub const SWEPT_UPLOADS_MAX: usize = 64;
/// Most outcomes that a session keeps: sequences from its lowest outstanding one on.
pub const SESSION_OUTCOMES_MAX: u32 = 4_096;
/// Most outcomes that all sessions of a shard keep together.
pub const SHARD_OUTCOMES_MAX: usize = 65_536;
/// Most sessions of a shard.
pub const SHARD_SESSIONS_MAX: usize = 4_096;
/// At the cap of sessions, one that was not used for so long and keeps nothing gives way; ms of log time.
pub const SESSION_IDLE_MS: u64 = 10_000;
/// Shortest time to live of a session, ms of log time.
pub const SESSION_TTL_MIN_MS: u32 = 1_000;
/// Longest time to live of a session: a day; ms of log time.
pub const SESSION_TTL_MAX_MS: u32 = 24 * 60 * 60 * 1_000;
/// Time to live of a session that names none: ten minutes; ms of log time.
pub const SESSION_TTL_DEFAULT_MS: u32 = 10 * 60 * 1_000;
/// Most sessions that one Tick sweeps.
pub const SWEPT_SESSIONS_MAX: usize = 1_024;
/// Most bytes of values in the answer to one read. Replies are at most 4 MiB with all else in them.
pub const READ_BYTES_MAX: usize = 3 << 20;
/// Most bytes of a page of a scan, whatever is asked for: a page is merged with those of other shards.
pub const PAGE_BYTES_MAX: u64 = 1 << 20;
/// Most keys that one page visits, so that a count of a large shard does not hold a view for long.
pub const PAGE_KEYS_MAX: u64 = 50_000;
/// Entries of the meta group's journal that are kept.
pub const JOURNAL_ENTRIES_KEPT: u64 = 10_000;
/// Most entries of a page of the journal, whatever is asked for.
pub const JOURNAL_PAGE_ENTRIES_MAX: usize = 1_000;
