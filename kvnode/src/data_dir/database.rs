//! A RocksDB folder as a whole: signs that it is damaged, which the library does not tell apart or would hide.
//!
//! RocksDB makes a new, empty database where the file that names its root is missing, and deletes the tables that it
//! then does not know. And damage that work in the background meets ends the process each time it is met. So a folder
//! without its root is found before it is opened, and a process that must end leaves a mark: the next start sets the
//! database aside instead of meeting the same damage again.

use std::{fs, io, path::Path};

use rocksdb::ErrorKind;

use super::small_file;

/// Beside the database: why it must not be opened again.
const MARK: &str = "DAMAGED";
/// Of RocksDB: names the newest manifest.
const ROOT: &str = "CURRENT";

/// Whether an error of opening says that bytes or files are not what was written. Anything else may pass: no space,
/// no permission, another process, a device that does not answer.
pub fn is_damage(error: &rocksdb::Error) -> bool {
    // We made the folder: what is missing in it was there.
    let missing = || error.as_ref().contains("No such file or directory");
    match error.kind() {
        ErrorKind::Corruption => true,
        ErrorKind::IOError | ErrorKind::NotFound => missing(),
        _ => false,
    }
}

/// What is known to be wrong with the database in `folder`/`database` before it is opened. `None`: nothing.
///
/// # Errors
/// When the folders cannot be read.
pub fn known_damage(folder: &Path, database: &str) -> io::Result<Option<String>> {
    match small_file::read_checked(&folder.join(MARK)) {
        Ok(None) => {}
        Ok(Some(reason)) => return Ok(Some(String::from_utf8_lossy(&reason).into_owned())),
        Err(unreadable) => return Ok(Some(unreadable.to_string())),
    }
    let database = folder.join(database);
    if !database.exists() || database.join(ROOT).exists() {
        return Ok(None);
    }
    for file in fs::read_dir(&database)? {
        let name = file?.file_name();
        // The first start makes its first manifest before the root: only tables and logs are data.
        let data = name.to_str().is_some_and(|name| name.ends_with(".sst") || name.ends_with(".log"));
        if data {
            return Ok(Some(format!("{} is there, and {ROOT} is missing", name.display())));
        }
    }
    Ok(None)
}

/// Leaves a mark for the next start, because the process must end. Damage that was met once is met again, so a mark
/// that cannot be written is no harm: the next process ends the same way, and writes it then.
pub fn mark_damaged(folder: &Path, reason: &str) {
    if let Err(error) = small_file::write_checked(&folder.join(MARK), reason.as_bytes()) {
        tracing::error!(%error, reason, "a damaged database could not be marked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_without_its_root_is_damaged_unless_it_never_held_anything() {
        let folder = tempfile::tempdir().expect("a folder");
        let known = || known_damage(folder.path(), "db").expect("readable");
        assert_eq!(known(), None, "not there yet");
        let database = folder.path().join("db");
        fs::create_dir(&database).expect("created");
        fs::write(database.join("MANIFEST-000001"), "").expect("written");
        assert_eq!(known(), None, "a first start that was cut short");
        fs::write(database.join("000008.sst"), "").expect("written");
        assert_eq!(known().as_deref(), Some("000008.sst is there, and CURRENT is missing"));
        fs::write(database.join(ROOT), "").expect("written");
        assert_eq!(known(), None);
    }

    #[test]
    fn a_mark_says_why_and_a_garbled_one_is_a_mark_too() {
        let folder = tempfile::tempdir().expect("a folder");
        mark_damaged(folder.path(), "compaction met it");
        let known = || known_damage(folder.path(), "db").expect("readable");
        assert_eq!(known().as_deref(), Some("compaction met it"));
        fs::write(folder.path().join(MARK), "x").expect("written");
        assert!(known().is_some());
    }
}
