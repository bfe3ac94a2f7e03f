use super::*;
use crate::state::{
    Batch,
    memory::MemoryEngine,
    options::MemoryBudget,
    rocks::{OpenError, RocksEngine},
};
use tokio::time::advance;

const REPLICA: ReplicaId = ReplicaId(7);
const NAME: &[u8] = b"name";

fn id(number: usize) -> PinId {
    (number as u128).to_be_bytes()
}

fn tasks() -> crate::state::workers::TaskSpawner {
    Arc::new(|_, task| drop(tokio::spawn(task)))
}

fn simulated() -> Workers {
    Workers::Simulated { tasks: tasks() }
}

fn threads() -> Workers {
    let threads = |name: &'static str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
    };
    Workers::Threads { threads: Arc::new(threads), tasks: tasks() }
}

fn write(engine: &Arc<dyn StateEngine>, value: &'static [u8]) {
    let mut batch = Batch::default();
    batch.put(NAME.to_vec(), value);
    engine.write(batch).unwrap();
}

fn in_memory() -> Arc<dyn StateEngine> {
    let engine: Arc<dyn StateEngine> = Arc::new(MemoryEngine::new());
    write(&engine, b"old");
    engine
}

/// What the moment shows. `None`: it is not kept.
async fn seen(pins: &Pins, number: usize) -> Option<bytes::Bytes> {
    let read = pins.read(REPLICA, id(number), |view| view.get(NAME).unwrap().unwrap())?;
    Some(read.await.unwrap())
}

#[tokio::test]
async fn a_moment_stays_as_it_was_in_memory_and_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let on_disk: Arc<dyn StateEngine> =
        Arc::new(RocksEngine::open(folder.path(), MemoryBudget::of(64 << 20)).unwrap());
    write(&on_disk, b"old");
    for (engine, workers) in [(in_memory(), simulated()), (on_disk, threads())] {
        let pins = Pins::default();
        assert_eq!(pins.open(REPLICA, id(1), &engine, &workers), Opening::Opened);
        assert_eq!(seen(&pins, 1).await.unwrap(), "old");
        write(&engine, b"new");
        engine.flush().unwrap();
        assert_eq!(seen(&pins, 1).await.unwrap(), "old");
        assert_eq!(pins.open(REPLICA, id(2), &engine, &workers), Opening::Opened);
        assert_eq!(seen(&pins, 2).await.unwrap(), "new");
        pins.close(REPLICA, id(1));
        assert!(seen(&pins, 1).await.is_none());
        assert!(pins.read(ReplicaId(8), id(2), |_| ()).is_none(), "of another replica");
        pins.close_all_of(REPLICA);
        assert!(seen(&pins, 2).await.is_none());
    }
}

#[tokio::test]
async fn who_waits_for_the_end_may_open_the_store_again() {
    let folder = tempfile::tempdir().unwrap();
    let open = || RocksEngine::open(folder.path(), MemoryBudget::of(64 << 20));
    let engine: Arc<dyn StateEngine> = Arc::new(open().unwrap());
    write(&engine, b"old");
    let pins = Pins::default();
    for number in 0..PINS_MAX {
        assert_eq!(pins.open(REPLICA, id(number), &engine, &threads()), Opening::Opened);
    }
    drop(engine);
    assert!(matches!(open(), Err(OpenError::Failed(_))), "the moments hold it");
    pins.shut().await;
    open().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_moment_ends_when_nobody_reads_from_it_and_at_its_age() {
    let (pins, engine) = (Arc::new(Pins::default()), in_memory());
    let running = tokio::spawn(pins.clone().run());
    assert_eq!(pins.open(REPLICA, id(1), &engine, &simulated()), Opening::Opened);
    advance(PIN_IDLE_MAX / 2).await;
    assert_eq!(pins.open(REPLICA, id(2), &engine, &simulated()), Opening::Opened);
    tokio::time::sleep(PIN_IDLE_MAX * 3 / 4).await;
    assert!(seen(&pins, 1).await.is_none() && pins.kept() == 1, "idle for longer than it may be");
    let opened = Instant::now() - PIN_IDLE_MAX * 3 / 4;
    while opened.elapsed() + PIN_IDLE_MAX / 2 < PIN_AGE_MAX {
        assert!(seen(&pins, 2).await.is_some(), "{:?} old and in use", opened.elapsed());
        tokio::time::sleep(PIN_IDLE_MAX / 2).await;
    }
    assert!(seen(&pins, 2).await.is_some());
    tokio::time::sleep(PIN_IDLE_MAX / 2).await;
    assert!(seen(&pins, 2).await.is_none(), "in use, and too old");
    assert_eq!(pins.kept(), 0);
    pins.shut().await;
    running.await.unwrap();
}

#[tokio::test]
async fn moments_are_bounded_in_number_and_refusals_counted() {
    let (pins, engine) = (Pins::default(), in_memory());
    for number in 0..PINS_MAX {
        assert_eq!(pins.open(REPLICA, id(number), &engine, &simulated()), Opening::Opened);
    }
    assert_eq!(pins.open(REPLICA, id(PINS_MAX), &engine, &simulated()), Opening::Refused);
    assert_eq!((pins.kept(), pins.take_refused(), pins.take_refused()), (PINS_MAX, 1, 0));
    pins.close(REPLICA, id(5));
    assert_eq!(pins.open(REPLICA, id(PINS_MAX), &engine, &simulated()), Opening::Opened);
}

#[tokio::test]
async fn a_disk_that_fills_up_ends_all_moments_and_takes_none() {
    let (pins, engine) = (Pins::default(), in_memory());
    assert_eq!(pins.open(REPLICA, id(1), &engine, &simulated()), Opening::Opened);
    pins.set_room(false);
    assert!(seen(&pins, 1).await.is_none());
    assert_eq!(pins.open(REPLICA, id(2), &engine, &simulated()), Opening::Refused);
    pins.set_room(true);
    assert_eq!(pins.open(REPLICA, id(3), &engine, &simulated()), Opening::Opened);
    pins.shut().await;
    pins.set_room(true);
    assert_eq!(pins.open(REPLICA, id(4), &engine, &simulated()), Opening::Refused, "closed for good");
    assert_eq!(pins.kept(), 0);
}

#[tokio::test]
async fn reads_of_one_moment_are_bounded() {
    let (pins, on_disk) = (Pins::default(), tempfile::tempdir().unwrap());
    let rocks: Arc<dyn StateEngine> =
        Arc::new(RocksEngine::open(on_disk.path(), MemoryBudget::of(64 << 20)).unwrap());
    write(&rocks, b"old");
    assert_eq!(pins.open(REPLICA, id(1), &rocks, &threads()), Opening::Opened);
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (began, begins) = std::sync::mpsc::channel();
    let blocked = pins.read(REPLICA, id(1), move |_| {
        began.send(()).unwrap();
        gate.recv().ok();
    });
    begins.recv_timeout(Duration::from_secs(10)).expect("the thread takes the read");
    let waiting: Vec<_> = (0..READS_QUEUED_MAX).map(|_| pins.read(REPLICA, id(1), |_| ()).unwrap()).collect();
    assert!(pins.read(REPLICA, id(1), |_| ()).unwrap().await.is_err(), "one more than may wait");
    drop(release);
    blocked.unwrap().await.unwrap();
    for read in waiting {
        read.await.unwrap();
    }
}
