//! Random histories over small segments, with power losses that tear what was not synced.

use std::{
    collections::BTreeMap,
    fs,
    ops::{ControlFlow, Range},
    path::Path,
};

use bytes::Bytes;
use kv_topology::ReplicaId;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::{
    SegmentDevice, Sizes, file,
    format::{self, FRAME_HEAD_BYTES, Frame, FrameBuilder, HEADER_BYTES, Seed},
    load::{LoadError, load, salvage},
};
use crate::log::{
    device::{LogDevice, Write},
    keys::{self, Place},
    synced::SyncedFile,
};

const SIZES: Sizes = Sizes { segment: 16 << 10 };
const OPEN_MAX: usize = 3;
const SEED: Seed = Seed(0x5eed);
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
    let loaded = load(&segments, SEED, side_file.recorded())?;
    Ok(SegmentDevice::open(&segments, loaded, SEED, side_file, SIZES, OPEN_MAX)?)
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
                let entries =
                    (end..end + new).map(|index| Write::Put(place(Place::Entry(index)), value(rng)));
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

/// Where frames end, by sequence.
type Places = BTreeMap<u64, (u32, u64)>;

/// A power loss: of what was not synced, each sector is there or is not.
fn lose_power(device: SegmentDevice, places: &Places, folder: &Path, rng: &mut StdRng) {
    let ((current, end), (_, synced)) = (device.place(), device.sequences());
    drop(device);
    let (first, synced_end) = places.get(&synced).copied().unwrap_or((1, 0));
    let keep: f64 = if rng.random_bool(0.2) { 1.0 } else { rng.random() };
    for number in first..=current {
        let path = file::path(&folder.join("segments"), number);
        let mut bytes = fs::read(&path).expect("a segment");
        let from = if number == first { usize::try_from(synced_end).expect("small") } else { 0 };
        let end = if number == current { usize::try_from(end).expect("small") } else { bytes.len() };
        for begin in (from / SECTOR * SECTOR..end).step_by(SECTOR) {
            if !rng.random_bool(keep) {
                let stale = rng.random_bool(0.5);
                bytes[begin.max(from)..(begin + SECTOR).min(end)].fill(if stale { 0xa5 } else { 0 });
            }
        }
        fs::write(path, bytes).expect("written");
    }
}

fn work(device: &SegmentDevice) {
    while device.rest(false).expect("room") == Some(std::time::Duration::ZERO) {}
}

#[test]
fn after_any_power_loss_it_holds_all_that_was_synced_and_a_prefix_of_the_rest() {
    let (mut given_back, mut torn) = (0, 0);
    for seed in 0..80 {
        let mut rng = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let mut device = open(folder.path());
        // What may be found: after the last sync, and after each batch since.
        let mut images = vec![Image::new()];
        let mut places = Places::new();
        for _ in 0..200 {
            match rng.random_range(0..40) {
                0 => {
                    let sure = images.len() == 1;
                    lose_power(device, &places, folder.path(), &mut rng);
                    device = opened(folder.path()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                    let found = all(&device);
                    let at = images.iter().rposition(|image| *image == found);
                    let at = at.unwrap_or_else(|| panic!("seed {seed}: what is found was never there"));
                    torn += usize::from(!sure && at + 1 < images.len());
                    images = vec![found];
                }
                1 => {
                    drop(device);
                    device = open(folder.path());
                    images = vec![images.pop().expect("one")];
                    assert_eq!(all(&device), images[0], "seed {seed}");
                }
                _ => {
                    let mut image = images.last().expect("one").clone();
                    let batch = Writers::of(&image).batch(&mut rng);
                    apply(&mut image, &batch);
                    let sync = rng.random_bool(0.7);
                    device.write(&batch, sync).expect("written");
                    images.push(image);
                    if sync {
                        images = vec![images.pop().expect("one")];
                        places.insert(device.sequences().0, device.place());
                        work(&device);
                    }
                }
            }
            places.insert(device.sequences().0, device.place());
            let found = all(&device);
            assert_eq!(Some(&found), images.last(), "seed {seed}");
        }
        given_back += usize::from(device.first_segment() > 1);
        let files = file::numbers(&folder.path().join("segments")).expect("readable").len();
        let live: usize = images[0].values().map(|value| value.len() + 32).sum();
        assert!(files <= 8 + live * 3 / 16_384, "seed {seed}: {files} segments for {live} B");
    }
    assert!(given_back > 50 && torn > 25, "the histories do what they are for: {given_back}, {torn}");
}

/// A log of several segments, all of it synced and noted; what it holds.
fn filled(folder: &Path) -> Image {
    let (device, mut rng, mut image) = (open(folder), StdRng::seed_from_u64(7), Image::new());
    while device.first_segment() < 3 {
        let batch = Writers::of(&image).batch(&mut rng);
        apply(&mut image, &batch);
        device.write(&batch, true).expect("written");
        work(&device);
    }
    device.rest(true).expect("noted");
    image
}

/// The bytes of a segment that mean something: its header, and frames without what aligns them.
fn meaningful(bytes: &[u8], segment: u32) -> Vec<Range<usize>> {
    let header = 0..28;
    let mut ranges = Vec::from([header]);
    let mut begin = HEADER_BYTES;
    while let Some(frame) = Frame::read(bytes, begin, segment, SEED) {
        let records = u32::from_le_bytes(*bytes[begin + 8..].first_chunk().expect("four"));
        ranges.push(begin..begin + FRAME_HEAD_BYTES + usize::try_from(records).expect("small"));
        begin = frame.end();
    }
    ranges
}

fn assert_damaged(folder: &Path, how: &str) {
    match opened(folder) {
        Err(LoadError::Damaged(_)) => {}
        Err(error) => panic!("{how}: {error}"),
        Ok(_) => panic!("{how}: nobody noticed"),
    }
}

#[test]
fn any_flipped_bit_of_what_was_synced_is_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = filled(folder.path());
    let mut rng = StdRng::seed_from_u64(1);
    let segments = folder.path().join("segments");
    let numbers = file::numbers(&segments).expect("readable");
    let needed = load(&segments, SEED, 0).expect("sound").segments;
    assert!(needed.len() > 2, "{numbers:?}");
    for _ in 0..400 {
        let number = needed[rng.random_range(0..needed.len())];
        let path = file::path(&segments, number);
        let sound = fs::read(&path).expect("readable");
        let ranges = meaningful(&sound, number);
        let range = rng.random_range(0..ranges.len());
        let at = rng.random_range(ranges[range].clone());
        let mut harmed = sound.clone();
        harmed[at] ^= 1 << rng.random_range(0..8);
        fs::write(&path, harmed).expect("written");
        assert_damaged(folder.path(), &format!("byte {at} of segment {number}"));
        fs::write(&path, sound).expect("written");
    }
    assert_eq!(all(&open(folder.path())), image);
}

#[test]
fn damage_to_what_is_not_needed_costs_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let segments = folder.path().join("segments");
    let device = open(folder.path());
    let spares = || {
        let numbers = file::numbers(&segments).expect("readable").into_iter();
        numbers.filter(|number| *number < device.first_segment()).collect::<Vec<_>>()
    };
    let mut next = 0;
    while spares().is_empty() {
        write_and_purge(&device, next..next + 7);
        next += 7;
    }
    let (spares, image) = (spares(), all(&device));
    drop(device);
    for number in spares {
        let path = file::path(&segments, number);
        let sound = fs::read(&path).expect("readable");
        for at in [3, HEADER_BYTES + 5, 5000] {
            let mut harmed = sound.clone();
            harmed[at] ^= 1;
            fs::write(&path, harmed).expect("written");
            load(&segments, SEED, 0).unwrap_or_else(|error| panic!("byte {at} of segment {number}: {error}"));
        }
    }
    assert_eq!(all(&open(folder.path())), image);
}

/// A value of frames as a client would make them, who knows everything but the seed: where the value will lie, for the next
/// segments that come to lie there, with the claim that everything before was on disk.
fn planted((current, end): (u32, u64)) -> Bytes {
    // Head of the frame; kind, key and head of the value.
    let first = end + FRAME_HEAD_BYTES as u64 + 27;
    let mut value = vec![0; usize::try_from(first.next_multiple_of(8) - first).expect("small")];
    let mut builder = FrameBuilder::default();
    for number in 0..40 {
        builder.begin();
        builder.not_needed(current + number);
        let place = format::Place {
            segment: current + 1 + number % 8,
            begin: first + value.len() as u64,
            sequence: 1 << 40,
        };
        value.extend_from_slice(builder.finish(Seed(0), place, 1 << 39, 0));
    }
    value.into()
}

#[test]
fn what_a_client_writes_is_never_taken_for_a_frame() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut device = open(folder.path());
    let key = |index| keys::encode(ReplicaId(1), Place::Entry(index));
    for round in 0..60_u64 {
        for index in round * 10..round * 10 + 10 {
            device.write(&[Write::Put(key(index), planted(device.place()))], true).expect("written");
        }
        device.write(&[Write::DeleteRange(key(0)..key(round * 10 + 9))], true).expect("written");
        work(&device);
        if round % 3 == 0 {
            // The next segment is ready by now, or it is not.
            drop(device);
            device = opened(folder.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        assert_eq!(all(&device).len(), 1, "round {round}");
    }
    assert!(device.first_segment() > 5);
}

#[test]
fn a_missing_segment_is_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = filled(folder.path());
    let segments = folder.path().join("segments");
    for number in load(&segments, SEED, 0).expect("sound").segments {
        let (path, away) = (file::path(&segments, number), folder.path().join("away"));
        fs::rename(&path, &away).expect("moved");
        assert_damaged(folder.path(), &format!("without segment {number}"));
        fs::rename(&away, &path).expect("moved back");
    }
    assert_eq!(all(&open(folder.path())), image);
}

#[test]
fn what_can_be_read_of_a_damaged_log_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = filled(folder.path());
    let segments = folder.path().join("segments");
    let needed = load(&segments, SEED, 0).expect("sound").segments;
    let path = file::path(&segments, needed[0]);
    let mut bytes = fs::read(&path).expect("readable");
    bytes[HEADER_BYTES] ^= 1;
    fs::write(&path, bytes).expect("written");
    let mut found = Image::new();
    salvage(&segments, SEED, &mut |key, value| drop(found.insert(key.to_vec(), value)));
    let read = image.keys().filter(|key| found.contains_key(*key)).count();
    assert!(read * 2 > image.len() && image.len() > 20, "{read} of {}", image.len());
}

fn entry(index: u64) -> Write {
    let key = keys::encode(ReplicaId(1), Place::Entry(index));
    Write::Put(key, Bytes::from(format!("{index:0300}")))
}

/// Writes so many entries, and purges all but the last of them.
fn write_and_purge(device: &SegmentDevice, indexes: Range<u64>) {
    for index in indexes.clone() {
        device.write(&[entry(index)], true).expect("written");
    }
    let gone = keys::entries(ReplicaId(1), 0..indexes.end - 1);
    device.write(&[Write::DeleteRange(gone)], true).expect("written");
    work(device);
}

#[test]
fn files_are_used_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let device = open(folder.path());
    for round in 0..100 {
        write_and_purge(&device, round * 40..round * 40 + 40);
        if round < 10 {
            continue;
        }
        // A new one would begin small.
        for file in fs::read_dir(folder.path().join("segments")).expect("readable") {
            let file = file.expect("a file");
            let bytes = file.metadata().expect("its size").len();
            assert_eq!(bytes, SIZES.segment, "round {round}: {}", file.path().display());
        }
    }
    assert!(device.first_segment() > 50, "{}", device.first_segment());
}

#[test]
fn who_reads_a_segment_that_is_given_back_reads_what_was_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let device = open(folder.path());
    for index in 0..30 {
        device.write(&[entry(index)], true).expect("written");
    }
    let (from, to) = (keys::all_of(ReplicaId(1)).start, keys::end(ReplicaId(1)));
    let mut seen = Vec::new();
    let visited = device.visit(&from, &to, &mut |key, value| {
        let Ok((_, Place::Entry(index))) = keys::decode(key) else { panic!("an entry") };
        assert_eq!(value, format!("{index:0300}").as_bytes());
        seen.push(index);
        // It has looked up the next ones by now; their segment goes, and others take its place.
        if seen.len() == 2 {
            (1..20).for_each(|round| write_and_purge(&device, round * 30..round * 30 + 30));
        }
        ControlFlow::Continue(())
    });
    visited.expect("readable");
    assert!(device.first_segment() > 5, "{}", device.first_segment());
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8, 599]);
}

/// The second of three frames is lost with the power, the third is not. What is written in its place has its length.
#[test]
fn a_frame_behind_a_torn_one_is_never_taken_for_a_later_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let device = open(folder.path());
    device.write(&[entry(1)], true).expect("written");
    let (_, begin) = device.place();
    device.write(&[entry(2)], false).expect("written");
    device.write(&[entry(3)], false).expect("written");
    drop(device);
    let path = file::path(&folder.path().join("segments"), 1);
    let mut bytes = fs::read(&path).expect("readable");
    bytes[usize::try_from(begin).expect("small")] ^= 1;
    fs::write(&path, bytes).expect("written");
    let device = open(folder.path());
    let other = keys::encode(ReplicaId(2), Place::Entry(7));
    device.write(&[Write::Put(other, Bytes::from(vec![7; 300]))], true).expect("written");
    drop(device);
    let found = all(&open(folder.path()));
    assert_eq!(
        found.keys().map(|key| keys::decode(key).expect("a key").1).collect::<Vec<_>>(),
        [Place::Entry(1), Place::Entry(7)]
    );
}
