//! The device of production: files of one size, written one after the other, and used again.
//!
//! ```text
//! 0000000007.seg   0000000008.seg   0000000009.seg   0000000010.seg
//! oldest           …                written now      made ready
//! ```
//!
//! A batch is one frame, appended and synced. Its bytes go to blocks that the file already has, so that a sync waits for these bytes and
//! for nothing else: a file that grows makes each sync a commit of the file system's journal, and that waits for what others
//! write. In memory is where each record is; what was purged leaves its segment to be used again, oldest first, and
//! what is left of the oldest one is written again when the rest of it is mostly dead.
//!
//! [`format`] is the bytes, [`index`] where the records are, [`reclaim`] what is given back when: all pure. [`file`](mod@file) is one
//! segment, [`listed`] all of them, [`load`] reads them when the log is opened. [`writer`] writes the last one, [`spare`] makes the
//! next ones, [`moving`] writes again what the first one still holds; [`device`] is all of it together.

pub mod device;
mod file;
mod format;
mod index;
mod listed;
pub mod load;
mod moving;
mod reclaim;
mod spare;
mod writer;

#[cfg(test)]
mod tests;

pub use device::SegmentDevice;
pub use format::Seed;
pub use writer::Sizes;
