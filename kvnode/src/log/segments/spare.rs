//! Files for the next segments: given back ones, or new ones, made ready on a thread before they are needed.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use crate::{
    data_dir::small_file::sync_folder,
    log::segments::{
        file::{self, Segment},
        writer::Sizes,
    },
};

/// Segments that were given back and wait to be used again. What comes beyond goes back to the volume.
const SPARES_MAX: usize = 2;

/// A segment that can be written to.
pub struct Ready {
    /// Its file.
    pub segment: Segment,
    /// Bytes from its begin that have blocks on the disk.
    pub filled: u64,
}

/// What the next segments are made of.
pub struct Spares {
    folder: PathBuf,
    sizes: Sizes,
    /// Oldest first, and used in that order: what is left on the disk has no gap.
    given_back: VecDeque<Segment>,
    making: Option<JoinHandle<io::Result<Ready>>>,
    no_thread_for: u32,
}

impl Spares {
    /// None yet, in this folder.
    pub fn new(folder: &Path, sizes: Sizes) -> Self {
        Self { folder: folder.to_owned(), sizes, given_back: VecDeque::new(), making: None, no_thread_for: 0 }
    }

    /// A segment is not needed any more, which is on disk. Who still reads it goes on.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn give_back(&mut self, number: u32, file: Option<Arc<File>>) -> io::Result<()> {
        match file.map(Arc::try_unwrap) {
            Some(Ok(file)) => self.given_back.push_back(Segment { number, file: Arc::new(file) }),
            // Somebody reads it, or may: it must not change under them. The older ones go first.
            Some(Err(_)) | None => {
                self.remove_beyond(0)?;
                return fs::remove_file(file::path(&self.folder, number));
            }
        }
        self.remove_beyond(SPARES_MAX)
    }

    fn remove_beyond(&mut self, most: usize) -> io::Result<()> {
        while self.given_back.len() > most
            && let Some(oldest) = self.given_back.pop_front()
        {
            fs::remove_file(file::path(&self.folder, oldest.number))?;
        }
        Ok(())
    }

    /// Begins to make this segment ready, unless that is under way.
    pub fn make(&mut self, number: u32) {
        if self.making.is_some() || self.no_thread_for == number {
            return;
        }
        let (folder, sizes, spare) = (self.folder.clone(), self.sizes, self.given_back.front().cloned());
        let make = thread::Builder::new().name("log-segment".into());
        match make.spawn(move || ready(&folder, sizes, spare, number)) {
            Ok(making) => {
                self.given_back.pop_front();
                self.making = Some(making);
            }
            // It is made when it is needed.
            Err(_) => self.no_thread_for = number,
        }
    }

    /// This segment, as soon as it is ready.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn take(&mut self, number: u32) -> io::Result<Ready> {
        match self.making.take().map(JoinHandle::join) {
            Some(Ok(made)) => made,
            Some(Err(_)) => Err(io::Error::other("the thread that makes segments panicked")),
            None => ready(&self.folder, self.sizes, self.given_back.pop_front(), number),
        }
    }
}

impl Drop for Spares {
    /// Whoever opens the log next must not meet it.
    fn drop(&mut self) {
        // What it made or not is found then.
        self.making.take().map(JoinHandle::join);
    }
}

fn ready(folder: &Path, sizes: Sizes, spare: Option<Segment>, number: u32) -> io::Result<Ready> {
    let segment = match spare {
        Some(spare) => spare.renumber(folder, number)?,
        None => Segment::create(folder, number)?,
    };
    sync_folder(folder)?;
    let mut filled = segment.file.metadata()?.len();
    if filled > sizes.segment {
        // It had one large batch.
        segment.file.set_len(sizes.segment)?;
        filled = sizes.segment;
    }
    Ok(Ready { segment, filled })
}
