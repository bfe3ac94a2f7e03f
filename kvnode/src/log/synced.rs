//! The side file `SYNCED`: the sequence number of a frame that was surely on disk at most a second ago.
//!
//! The last frames of a log that were damaged cannot be told from an unsynced end that a power loss tore off, nor can files that are
//! missing. With this file they can: whatever is recovered must reach at least the sequence number that it holds.
//!
//! It is locked while the log is open: nobody else writes to that.
//!
//! It is two slots in two sectors, written in turn and in place, each with a checksum; the greater valid one counts.
//! So a torn write costs at most the newer slot, no rename and no sync of a folder is needed, and the file never
//! grows, so that a full volume does not stop it. It is synced, because without that the kernel may hold it back for
//! half a minute, and after a power loss damage to that half minute would pass for a torn end. That is one fsync a
//! second at most, by the committer thread between two batches.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use crate::data_dir::small_file::sync_folder;

/// How often it is written, at most. Damage within the newest such time cannot be told from a torn end.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Distance of the slots, in bytes: no sector of any disk in use is larger.
const SLOT_BYTES: u64 = 4096;
const MAGIC: [u8; 4] = *b"KVS1";
/// Magic, sequence number, CRC32C of both.
const RECORD_BYTES: usize = 16;

/// The open side file.
#[derive(Debug)]
pub struct SyncedFile {
    file: File,
    /// The slot to be written next.
    slot: u64,
    recorded: u64,
    /// What is synced and to be recorded.
    reached: u64,
    recorded_at: Option<Instant>,
}

impl SyncedFile {
    /// Opens or creates the file. A slot that is not whole is taken for empty.
    ///
    /// # Errors
    /// When the file cannot be read or created, or is in use.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.try_lock()?;
        let there = file.metadata()?.len();
        if there < 2 * SLOT_BYTES {
            // Written, not only sized: its blocks must exist before the volume is full.
            file.write_all_at(&vec![0; usize::try_from(2 * SLOT_BYTES - there).unwrap_or_default()], there)?;
            file.sync_all()?;
            if let Some(folder) = path.parent() {
                sync_folder(folder)?;
            }
        }
        let slots = [read_slot(&file, 0)?, read_slot(&file, 1)?];
        let recorded = slots.into_iter().flatten().max().unwrap_or(0);
        let slot = u64::from(slots[0] == Some(recorded));
        Ok(Self { file, slot, recorded, reached: recorded, recorded_at: None })
    }

    /// What the file holds: everything up to here was synced. 0 if it was never written.
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Notes that everything up to this sequence number is on disk.
    pub fn reached(&mut self, sequence: u64) {
        self.reached = self.reached.max(sequence);
    }

    /// Whether there is something to be recorded and it is time for it; `None` if there is nothing.
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        if self.reached == self.recorded {
            return None;
        }
        let age = self.recorded_at.map_or(INTERVAL, |at| now.saturating_duration_since(at));
        Some(INTERVAL.saturating_sub(age))
    }

    /// Records what was reached, and syncs it.
    ///
    /// # Errors
    /// When it may not be on disk.
    pub fn record(&mut self, now: Instant) -> io::Result<()> {
        let mut record = [0; RECORD_BYTES];
        record[..4].copy_from_slice(&MAGIC);
        record[4..12].copy_from_slice(&self.reached.to_be_bytes());
        let crc = crc32c::crc32c(&record[..12]);
        record[12..].copy_from_slice(&crc.to_be_bytes());
        self.file.write_all_at(&record, self.slot * SLOT_BYTES)?;
        self.file.sync_data()?;
        self.slot = 1 - self.slot;
        self.recorded = self.reached;
        self.recorded_at = Some(now);
        Ok(())
    }
}

fn read_slot(file: &File, slot: u64) -> io::Result<Option<u64>> {
    let mut record = [0; RECORD_BYTES];
    file.read_exact_at(&mut record, slot * SLOT_BYTES)?;
    let [m0, m1, m2, m3, sequence @ .., c0, c1, c2, c3] = record;
    let whole = [m0, m1, m2, m3] == MAGIC
        && u32::from_be_bytes([c0, c1, c2, c3]) == crc32c::crc32c(&record[..RECORD_BYTES - 4]);
    Ok(whole.then_some(u64::from_be_bytes(sequence)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_recorded_and_survives_a_torn_slot() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("SYNCED");
        let now = Instant::now();
        let mut file = SyncedFile::open(&path).expect("open");
        assert_eq!((file.recorded(), file.due_in(now)), (0, None));
        for sequence in [7, 9] {
            file.reached(sequence);
            file.record(now).expect("record");
        }
        assert!(SyncedFile::open(&path).is_err(), "it is in use");
        drop(file);
        let file = SyncedFile::open(&path).expect("open");
        assert_eq!(file.recorded(), 9);
        // The slot with 9 is torn.
        file.file.write_all_at(&[0xff; 3], (1 - file.slot) * SLOT_BYTES + 6).expect("write");
        drop(file);
        let mut file = SyncedFile::open(&path).expect("open");
        assert_eq!(file.recorded(), 7);
        file.reached(12);
        file.record(now).expect("record");
        drop(file);
        assert_eq!(
            SyncedFile::open(&path).expect("open").recorded(),
            12,
            "the torn slot was written, not the good one"
        );
    }

    #[test]
    fn it_is_due_at_once_and_then_once_a_second() {
        let folder = tempfile::tempdir().expect("folder");
        let mut file = SyncedFile::open(&folder.path().join("SYNCED")).expect("open");
        let now = Instant::now();
        file.reached(1);
        assert_eq!(file.due_in(now), Some(Duration::ZERO));
        file.record(now).expect("record");
        file.reached(2);
        assert_eq!(file.due_in(now + INTERVAL / 4), Some(INTERVAL / 4 * 3));
        assert_eq!(file.due_in(now + INTERVAL * 2), Some(Duration::ZERO));
    }
}
