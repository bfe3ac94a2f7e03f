//! Does file operations on command, so that tests can see what a power loss leaves of them.
//!
//! Reads lines from standard input, does what they say relative to the folder given as its argument, and answers
//! each with `done` or `error: …`. Paths have no spaces.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, IoSlice, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    thread,
};

/// `O_DSYNC` of Linux on all its architectures that matter here.
const O_DSYNC: i32 = 0o10_000;

fn main() -> io::Result<()> {
    let folder = PathBuf::from(env::args().nth(1).unwrap_or_default());
    let mut probe = Probe { folder, open: BTreeMap::new() };
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match probe.run(&words) {
            Ok(()) => println!("done"),
            Err(error) => println!("error: {error}"),
        }
    }
    Ok(())
}

struct Probe {
    folder: PathBuf,
    open: BTreeMap<String, File>,
}

impl Probe {
    fn run(&mut self, words: &[&str]) -> io::Result<()> {
        match words {
            // /proc knows no birth times, and is none of the shim's business.
            ["hello"] => fs::read("/proc/self/status").map(drop),
            ["create", name] => {
                self.open(name, OpenOptions::new().read(true).write(true).create(true).truncate(true))
            }
            ["append", name] => self.open(name, OpenOptions::new().append(true).create(true)),
            ["open-dsync", name] => self.open(
                name,
                OpenOptions::new().write(true).create(true).truncate(false).custom_flags(O_DSYNC),
            ),
            ["write", name, text] => self.file(name)?.write_all(text.as_bytes()),
            ["write-parts", name, one, other] => {
                let parts = [IoSlice::new(one.as_bytes()), IoSlice::new(other.as_bytes())];
                self.file(name)?.write_vectored(&parts).map(drop)
            }
            ["write-at", name, offset, text] => {
                self.file(name)?.write_all_at(text.as_bytes(), number(offset)?)
            }
            ["write-by-clone", name, text] => {
                let mut clone = self.file(name)?.try_clone()?;
                clone.seek(SeekFrom::End(0))?;
                clone.write_all(text.as_bytes())
            }
            ["cut", name, length] => self.file(name)?.set_len(number(length)?),
            ["sync", name] => self.file(name)?.sync_data(),
            ["sync-folder", name] => File::open(self.folder.join(name))?.sync_all(),
            ["copy", from, to] => fs::copy(self.folder.join(from), self.folder.join(to)).map(drop),
            ["rename", from, to] => fs::rename(self.folder.join(from), self.folder.join(to)),
            ["remove", name] => fs::remove_file(self.folder.join(name)),
            ["mkdir", name] => fs::create_dir(self.folder.join(name)),
            ["write-by-threads", name, threads, lines] => {
                self.write_by_threads(name, number(threads)?, number(lines)?)
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "no such command")),
        }
    }

    fn open(&mut self, name: &str, options: &OpenOptions) -> io::Result<()> {
        self.open.insert(name.to_owned(), options.open(self.folder.join(name))?);
        Ok(())
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        self.open.get_mut(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the file is not open"))
    }

    /// Threads that each write and sync files of their own and one that all share, at offsets of their own.
    fn write_by_threads(&mut self, name: &str, threads: u64, lines: u64) -> io::Result<()> {
        let shared = self.file(name)?.try_clone()?;
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|worker| {
                    let (shared, folder) = (&shared, &self.folder);
                    scope.spawn(move || {
                        let mut own = File::create(folder.join(format!("{name}.{worker}")))?;
                        for line in 0..lines {
                            own.write_all(b"0123456789abcdef")?;
                            shared.write_all_at(b"0123456789abcdef", (line * threads + worker) * 16)?;
                            own.sync_data()?;
                            shared.sync_data()?;
                        }
                        File::open(folder)?.sync_all()
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| io::Error::other("a thread panicked"))?)
        })
    }
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{text}: {error}")))
}
