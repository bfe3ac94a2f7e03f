//! The device of production: a RocksDB of its own, whose write-ahead log is the Raft log's medium.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use rocksdb::{DB, Error, ErrorKind, ReadOptions, WriteBatch, WriteOptions, properties};

use crate::{
    data_dir::database,
    log::{
        device::{DeviceError, LogDevice, Visitor, Write},
        lock,
        synced::SyncedFile,
    },
};

/// An open `raftlog`. [`crate::log::recovery`] opens it.
pub struct RocksDevice {
    database: DB,
    synced: Mutex<SyncedFile>,
}

impl RocksDevice {
    pub(in crate::log) fn new(database: DB, mut synced: SyncedFile) -> Self {
        // Recovery has flushed what it found to an SST, and synced that.
        synced.reached(database.latest_sequence_number());
        Self { database, synced: Mutex::new(synced) }
    }

    /// A property of the database, for metrics; `None` if RocksDB does not know it.
    pub fn property(&self, name: &str) -> Option<u64> {
        self.database.property_int_value(name).ok().flatten()
    }

    /// The caller is the committer, the only writer: the latest number is that of its last batch.
    fn note_synced(&self) {
        lock(&self.synced).reached(self.database.latest_sequence_number());
    }

    /// Damage that stops all writing was met by the background, which will meet it again at every start.
    fn failed(&self, operation: &'static str, error: &Error) -> DeviceError {
        let error = device_error(operation, error);
        if let DeviceError::Damaged { reason } = &error {
            database::mark_damaged(self.database.path().parent().unwrap_or(self.database.path()), reason);
        }
        error
    }

    fn check_background(&self) -> Result<(), DeviceError> {
        match self.database.property_int_value(properties::BACKGROUND_ERRORS) {
            Ok(None | Some(0)) => Ok(()),
            Ok(Some(errors)) => {
                // A write that changes nothing is refused with what stopped the background.
                self.write(&[], false)?;
                Err(DeviceError::Failed {
                    operation: "flush or compaction",
                    reason: format!("{errors} background errors, see RocksDB's LOG"),
                    out_of_space: false,
                })
            }
            Err(error) => Err(device_error("reading a property", &error)),
        }
    }
}

impl LogDevice for RocksDevice {
    fn write(&self, batch: &[Write], sync: bool) -> Result<(), DeviceError> {
        let mut writes = WriteBatch::with_capacity_bytes(batch.iter().map(|write| write.bytes() + 16).sum());
        for write in batch {
            match write {
                Write::Put(key, value) => writes.put(&**key, value),
                Write::DeleteRange(range) => writes.delete_range(&*range.start, &*range.end),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.database.write_opt(writes, &options).map_err(|error| self.failed("writing a batch", &error))?;
        if sync {
            self.note_synced();
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.database.flush_wal(true).map_err(|error| self.failed("syncing", &error))?;
        self.note_synced();
        Ok(())
    }

    fn visit(&self, from: &[u8], to: &[u8], visitor: &mut Visitor<'_>) -> Result<(), DeviceError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        // A follower that is far behind reads everything once.
        options.fill_cache(false);
        let mut iterator = self.database.raw_iterator_opt(options);
        iterator.seek(from);
        while let Some((key, value)) = iterator.item() {
            if visitor(key, value).is_break() {
                return Ok(());
            }
            iterator.next();
        }
        iterator.status().map_err(|error| device_error("reading", &error))
    }

    fn reads_block(&self) -> bool {
        true
    }

    fn rest(&self, last: bool) -> Result<Option<Duration>, DeviceError> {
        let now = Instant::now();
        let mut synced = lock(&self.synced);
        match synced.due_in(now) {
            None => return Ok(None),
            Some(due) if !due.is_zero() && !last => return Ok(Some(due)),
            Some(_) => {}
        }
        self.check_background()?;
        synced.record(now).map_err(|error| DeviceError::Failed {
            operation: "writing SYNCED",
            reason: error.to_string(),
            out_of_space: error.kind() == std::io::ErrorKind::StorageFull,
        })?;
        Ok(None)
    }
}

fn device_error(operation: &'static str, error: &Error) -> DeviceError {
    let reason = error.to_string();
    if error.kind() == ErrorKind::Corruption {
        return DeviceError::Damaged { reason: format!("{operation}: {reason}") };
    }
    let out_of_space = reason.contains("No space left on device");
    DeviceError::Failed { operation, reason, out_of_space }
}
