//! Random histories over small segments, with power losses that tear what was not synced.

use std::{collections::BTreeMap, fs, ops::ControlFlow, path::Path};

use bytes::Bytes;
use kv_topology::ReplicaId;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::{
    SegmentDevice, Sizes, file,
    load::{LoadError, load},
};
use crate::log::{
    device::{LogDevice, Write},
    keys::{self, Place},
    synced::SyncedFile,
};

const SIZES: Sizes = Sizes { segment: 16 << 10 };
const OPEN_MAX: usize = 3;
const REPLICAS: u64 = 4;
const SECTOR: usize = 512;

type Image = BTreeMap<Vec<u8>, Bytes>;

fn apply(image: &mut Image, batch: &[Write]) {
    for write in batch {
        match write {
            Write::Put(key, value) => drop(image.insert(key.to_vec(), value.clone())),
            Write::DeleteRange(range) => image.retain(|key, _| **key < *range.start || **key >= *range.end),
        }
    }
}

fn opened(folder: &Path) -> Result<SegmentDevice, LoadError> {
    let side_file = SyncedFile::open(&folder.join("SYNCED"))?;
    let segments = folder.join("segments");
    fs::create_dir_all(&segments)?;
    let loaded = load(&segments, side_file.recorded())?;
    Ok(SegmentDevice::open(&segments, loaded, side_file, SIZES, OPEN_MAX)?)
}

fn open(folder: &Path) -> SegmentDevice {
    opened(folder).expect("sound")
}

fn all(device: &SegmentDevice) -> Image {
    let mut image = Image::new();
    let visited = device.visit(&[], &[0xff; 9], &mut |key, value| {
        assert!(image.last_key_value().is_none_or(|(last, _)| **last < *key), "in order");
        image.insert(key.to_vec(), Bytes::copy_from_slice(value));
        ControlFlow::Continue(())
    });
    visited.expect("readable");
    image
}

/// What the logs of the replicas look like to whoever writes them.
#[derive(Clone, Default)]
struct Writers {
    logs: BTreeMap<u64, (u64, u64)>,
}

impl Writers {
    fn of(image: &Image) -> Self {
        let mut logs = BTreeMap::<u64, (u64, u64)>::new();
        for key in image.keys() {
            if let Ok((replica, Place::Entry(index))) = keys::decode(key) {
                let log = logs.entry(replica.get()).or_insert((index, index));
                log.1 = index + 1;
            }
        }
        Self { logs }
    }

    fn batch(&mut self, rng: &mut StdRng) -> Vec<Write> {
        (0..rng.random_range(1..4)).flat_map(|_| self.operation(rng)).collect()
    }

    fn operation(&mut self, rng: &mut StdRng) -> Vec<Write> {
        // The last one is rarely written, and keeps what it has.
        let id = if rng.random_bool(0.02) { REPLICAS } else { rng.random_range(1..REPLICAS) };
        let replica = ReplicaId(id);
        let (start, end) = self.logs.get(&id).copied().unwrap_or((5, 5));
        let value = |rng: &mut StdRng| {
            let length = if rng.random_bool(0.01) { 20_000 } else { rng.random_range(0..700) };
            let mut value = vec![0; length];
            rng.fill_bytes(&mut value);
            Bytes::from(value)
        };
        let place = |place| keys::encode(replica, place);
        match rng.random_range(0..12) {
            0..7 => {
                let new = rng.random_range(1..5);
                self.logs.insert(id, (start, end + new));
                let entries = (end..end + new).map(|index| Write::Put(place(Place::Entry(index)), value(rng)));
                let mut batch: Vec<_> = entries.collect();
                batch.push(Write::Put(place(Place::Committed), value(rng)));
                batch
            }
            7 => vec![Write::Put(place(Place::Vote), value(rng))],
            8 => {
                let from = rng.random_range(start..=end).max(end.saturating_sub(3));
                self.logs.insert(id, (start, from));
                vec![Write::DeleteRange(keys::entries(replica, from..end))]
            }
            9 | 10 if id != REPLICAS => {
                let upto = rng.random_range(start..=end);
                self.logs.insert(id, (upto, end));
                let gone = keys::entries(replica, 0..upto);
                vec![Write::Put(place(Place::Purged), value(rng)), Write::DeleteRange(gone)]
            }
            11 if rng.random_bool(0.1) => {
                self.logs.remove(&id);
                vec![Write::DeleteRange(keys::all_of(replica))]
            }
            _ => vec![Write::Put(place(Place::Descriptor), value(rng))],
        }
    }
}

/// A power loss: of what was not synced, each sector is there or is not.
fn lose_power(device: SegmentDevice, synced_end: (u32, u64), folder: &Path, rng: &mut StdRng) {
    let (current, end) = place_of(&device);
    drop(device);
    let path = file::path(&folder.join("segments"), current);
    let mut bytes = fs::read(&path).expect("a segment");
    let from = if synced_end.0 == current { usize::try_from(synced_end.1).expect("small") } else { 0 };
    let keep: f64 = if rng.random_bool(0.2) { 1.0 } else { rng.random() };
    for begin in (from..usize::try_from(end).expect("small")).step_by(SECTOR) {
        let sector = begin / SECTOR * SECTOR;
        let lost = sector.max(from)..(sector + SECTOR).min(bytes.len());
        if !rng.random_bool(keep) {
            let stale = rng.random_bool(0.5);
            bytes[lost].fill(if stale { 0xa5 } else { 0 });
        }
    }
    fs::write(path, bytes).expect("written");
}

fn place_of(device: &SegmentDevice) -> (u32, u64) {
    let place = device.place();
    (place.0, place.1)
}

fn work(device: &SegmentDevice) {
    while device.rest(false).expect("room") == Some(std::time::Duration::ZERO) {}
}

#[test]
fn after_any_power_loss_it_holds_all_that_was_synced_and_a_prefix_of_the_rest() {
    let (mut given_back, mut torn) = (0, 0);
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let mut device = open(folder.path());
        // What may be found: after the last sync, and after each batch since.
        let mut images = vec![Image::new()];
        let mut synced_end = place_of(&device);
        for _ in 0..200 {
            match rng.random_range(0..40) {
                0 => {
                    let sure = images.len() == 1;
                    lose_power(device, synced_end, folder.path(), &mut rng);
                    device = opened(folder.path()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                    let found = all(&device);
                    let at = images.iter().rposition(|image| *image == found);
                    let at = at.unwrap_or_else(|| panic!("seed {seed}: what is found was never there"));
                    torn += usize::from(!sure && at + 1 < images.len());
                    images = vec![found];
                    synced_end = place_of(&device);
                }
                1 => {
                    drop(device);
                    device = open(folder.path());
                    images = vec![images.pop().expect("one")];
                    assert_eq!(all(&device), images[0], "seed {seed}");
                    synced_end = place_of(&device);
                }
                _ => {
                    let mut image = images.last().expect("one").clone();
                    let batch = Writers::of(&image).batch(&mut rng);
                    apply(&mut image, &batch);
                    let sync = rng.random_bool(0.7);
                    device.write(&batch, sync).expect("written");
                    images.push(image);
                    if device.is_synced() {
                        images = vec![images.pop().expect("one")];
                        work(&device);
                        synced_end = place_of(&device);
                    }
                }
            }
            let found = all(&device);
            assert_eq!(Some(&found), images.last(), "seed {seed}");
        }
        given_back += usize::from(device.first_segment() > 1);
        let files = file::numbers(&folder.path().join("segments")).expect("readable").len();
        let live: usize = images[0].iter().map(|(_, value)| value.len() + 32).sum();
        assert!(files <= 8 + live * 3 / 16_384, "seed {seed}: {files} segments for {live} B");
    }
    assert!(given_back > 100 && torn > 50, "the histories do what they are for: {given_back}, {torn}");
}
