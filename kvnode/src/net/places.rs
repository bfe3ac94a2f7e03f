//! Places of a port, counted for each origin: what one origin may hold is bounded by [`share`](super::share).
//!
//! There are several kinds of places, told apart by their number: connections, requests, bytes. An origin is known
//! while something of it is here, from its first connection to the end of its last one: so the book of origins is no
//! larger than the connections.

use std::{
    array,
    collections::BTreeMap,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Mutex as Turn, Notify};

use super::{origin::Origin, share::Pool};

/// The places of all origins.
#[derive(Debug)]
pub struct Places<const KINDS: usize> {
    pools: [Mutex<Pool>; KINDS],
    /// Who waits for a place; changes before the pool is looked at.
    waiting: [AtomicUsize; KINDS],
    freed: [Notify; KINDS],
    guests: Mutex<BTreeMap<Origin, Weak<Guest<KINDS>>>>,
}

/// An origin, as long as it holds something.
#[derive(Debug)]
pub struct Guest<const KINDS: usize> {
    places: Arc<Places<KINDS>>,
    origin: Origin,
    /// What it holds; changes under the lock of the pool.
    taken: [AtomicUsize; KINDS],
    /// Those of one origin wait for a place one after the other, in two lines.
    turns: [[Turn<()>; 2]; KINDS],
}

/// Where those of one origin stand that wait for places of the same kind: who wants little is not held up by who wants much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// For one place, or many.
    Usual,
    /// For few of many.
    Little,
}

/// What is held of one kind. Dropping it gives it back.
#[derive(Debug)]
pub struct Place<const KINDS: usize> {
    guest: Arc<Guest<KINDS>>,
    kind: usize,
    count: AtomicUsize,
}

impl<const KINDS: usize> Places<KINDS> {
    /// Free ones, so many of each kind.
    pub fn new(max: [usize; KINDS]) -> Arc<Self> {
        Arc::new(Self {
            pools: max.map(|max| Mutex::new(Pool { max, taken: 0 })),
            waiting: array::from_fn(|_| AtomicUsize::new(0)),
            freed: array::from_fn(|_| Notify::new()),
            guests: Mutex::default(),
        })
    }

    /// Who comes from this address.
    pub fn guest(self: &Arc<Self>, address: IpAddr) -> Arc<Guest<KINDS>> {
        let origin = Origin::of(address);
        let mut guests = lock(&self.guests);
        if let Some(guest) = guests.get(&origin).and_then(Weak::upgrade) {
            return guest;
        }
        let guest = Arc::new(Guest {
            places: self.clone(),
            origin,
            taken: array::from_fn(|_| AtomicUsize::new(0)),
            turns: array::from_fn(|_| Default::default()),
        });
        guests.insert(origin, Arc::downgrade(&guest));
        guest
    }

    /// Origins that are here.
    pub fn guests(&self) -> usize {
        lock(&self.guests).len()
    }

    /// Something of this kind was given back.
    fn tell(&self, kind: usize) {
        // Most kinds are never waited for. Who begins to wait now looks at the pool after this change.
        if self.waiting[kind].load(Ordering::Relaxed) > 0 {
            self.freed[kind].notify_waiters();
        }
    }

    /// How full one kind is.
    pub fn pool(&self, kind: usize) -> Pool {
        *lock(&self.pools[kind])
    }
}

impl<const KINDS: usize> Guest<KINDS> {
    /// Nothing of this kind yet.
    pub fn none(self: &Arc<Self>, kind: usize) -> Place<KINDS> {
        Place { guest: self.clone(), kind, count: AtomicUsize::new(0) }
    }

    /// One place of this kind, if there is one for this origin now.
    pub fn try_take(self: &Arc<Self>, kind: usize) -> Option<Place<KINDS>> {
        let place = self.none(kind);
        place.grow(1).then_some(place)
    }

    /// The same, unless others of this origin wait for one already.
    pub fn try_take_in_turn(self: &Arc<Self>, kind: usize) -> Option<Place<KINDS>> {
        let _turn = self.turns[kind][Line::Usual as usize].try_lock().ok()?;
        self.try_take(kind)
    }

    /// One place of this kind, as soon as there is one for this origin. In turn within an origin, so that a release
    /// wakes one of each origin, however many wait.
    pub async fn take(self: &Arc<Self>, kind: usize) -> Place<KINDS> {
        self.in_turn(kind, Line::Usual, || self.try_take(kind)).await
    }

    /// Attempts something when it is its turn in its line, and then as [`Guest::retry`].
    pub async fn in_turn<T>(&self, kind: usize, line: Line, attempt: impl FnMut() -> Option<T>) -> T {
        let _turn = self.turns[kind][line as usize].lock().await;
        self.retry(kind, attempt).await
    }

    /// Attempts something now, and whenever a place of this kind was given back, until it succeeds.
    pub async fn retry<T>(&self, kind: usize, mut attempt: impl FnMut() -> Option<T>) -> T {
        let _waiting = Waiting::begin(&self.places.waiting[kind]);
        loop {
            let mut freed = pin!(self.places.freed[kind].notified());
            // Before looking: what is given back after the look is heard of.
            freed.as_mut().enable();
            if let Some(got) = attempt() {
                return got;
            }
            freed.await;
        }
    }
}

impl<const KINDS: usize> Drop for Guest<KINDS> {
    fn drop(&mut self) {
        let mut guests = lock(&self.places.guests);
        // The same origin may have come back since: then the entry is that of its new guest.
        if guests.get(&self.origin).is_some_and(|guest| guest.strong_count() == 0) {
            guests.remove(&self.origin);
        }
    }
}

impl<const KINDS: usize> Place<KINDS> {
    /// Takes `count` more of the same kind, or nothing when that is too much.
    pub fn grow(&self, count: usize) -> bool {
        let own = &self.guest.taken[self.kind];
        let mut pool = lock(&self.guest.places.pools[self.kind]);
        if !pool.allows(own.load(Ordering::Relaxed), count) {
            return false;
        }
        pool.taken += count;
        own.fetch_add(count, Ordering::Relaxed);
        self.count.fetch_add(count, Ordering::Relaxed);
        true
    }

    /// Moves `count` of it, or all that there is, to a place that is given back for itself.
    #[must_use]
    pub fn split(&mut self, count: usize) -> Self {
        let own = self.count.get_mut();
        let moved = count.min(*own);
        *own -= moved;
        Self { guest: self.guest.clone(), kind: self.kind, count: AtomicUsize::new(moved) }
    }

    /// Gives `count` of it back, or all that there is.
    pub fn give_back(&self, count: usize) {
        let mut pool = lock(&self.guest.places.pools[self.kind]);
        let less = count.min(self.count.load(Ordering::Relaxed));
        self.count.fetch_sub(less, Ordering::Relaxed);
        pool.taken -= less;
        self.guest.taken[self.kind].fetch_sub(less, Ordering::Relaxed);
        drop(pool);
        self.guest.places.tell(self.kind);
    }

    /// What it holds.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl<const KINDS: usize> Drop for Place<KINDS> {
    fn drop(&mut self) {
        let count = *self.count.get_mut();
        if count > 0 {
            self.give_back(count);
        }
    }
}

/// Somebody who waits, as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts stay right whoever panics: nothing panics between two changes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use futures::FutureExt;

    use super::*;

    fn from(number: u8) -> IpAddr {
        [127, 0, 0, number].into()
    }

    #[test]
    fn an_origin_gets_half_and_the_next_one_half_of_the_rest() {
        let places = Places::new([8, 1]);
        let (greedy, other) = (places.guest(from(1)), places.guest(from(2)));
        let held: Vec<_> = std::iter::from_fn(|| greedy.try_take(0)).collect();
        assert_eq!((held.len(), places.pool(0).taken), (4, 4));
        let others: Vec<_> = std::iter::from_fn(|| other.try_take(0)).collect();
        assert_eq!(others.len(), 2);
        assert!(greedy.try_take(1).is_some(), "kinds are counted apart");
        drop(held);
        assert_eq!(places.pool(0).taken, 2);
        assert!(greedy.try_take(0).is_some());
    }

    #[test]
    fn connections_of_one_origin_are_counted_together() {
        let places = Places::<1>::new([4]);
        let places_of = |_| places.guest(from(1)).try_take(0);
        let held: Vec<_> = (0..4).filter_map(places_of).collect();
        assert_eq!(held.len(), 2);
    }

    #[test]
    fn a_place_that_may_not_grow_keeps_what_it_has() {
        let places = Places::<1>::new([100]);
        let guest = places.guest(from(1));
        let bytes = guest.none(0);
        assert!(bytes.grow(30) && bytes.grow(20) && !bytes.grow(1));
        assert_eq!((bytes.count(), places.pool(0).taken), (50, 50));
        drop(bytes);
        assert_eq!(places.pool(0).taken, 0);
    }

    #[test]
    fn parts_of_a_place_are_given_back_each_for_itself() {
        let places = Places::<1>::new([100]);
        let mut bytes = places.guest(from(1)).none(0);
        assert!(bytes.grow(30));
        let (part, rest) = (bytes.split(10), bytes.split(usize::MAX));
        assert_eq!((bytes.count(), part.count(), rest.count()), (0, 10, 20));
        drop((bytes, rest));
        assert_eq!(places.pool(0).taken, 10);
        part.give_back(4);
        assert_eq!((places.pool(0).taken, part.count()), (6, 6));
        drop(part);
        assert_eq!((places.pool(0).taken, places.guests()), (0, 0));
    }

    #[test]
    fn an_origin_is_forgotten_with_the_last_that_it_holds() {
        let places = Places::<1>::new([100]);
        let place = places.guest(from(1)).try_take(0).expect("room");
        let other = places.guest(from(2));
        assert_eq!(places.guests(), 2);
        drop(place);
        assert_eq!(places.guests(), 1);
        drop(other);
        assert_eq!(places.guests(), 0);
    }

    #[test]
    fn origins_that_come_and_go_on_many_threads_leave_nothing_behind() {
        let places = Places::<1>::new([64]);
        let visit = |thread: u8| {
            for host in (1..4).cycle().take(2_000) {
                let guest = places.guest(from(host));
                let held: Vec<_> = (0..thread).filter_map(|_| guest.try_take(0)).collect();
                assert!(places.pool(0).taken >= held.len());
            }
        };
        thread::scope(|scope| {
            for thread in 1..5 {
                scope.spawn(move || visit(thread));
            }
        });
        assert_eq!((places.guests(), places.pool(0).taken), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_gets_the_next_place_however_many_wait_elsewhere() {
        let places = Places::<1>::new([2]);
        let (one, other) = (places.guest(from(1)), places.guest(from(2)));
        let first = one.take(0).await;
        let mut crowd: Vec<_> = (0..100).map(|_| Box::pin(one.take(0))).collect();
        for waiting in &mut crowd {
            assert!(waiting.as_mut().now_or_never().is_none(), "its share is used up");
        }
        let second = other.take(0).await;
        let mut third = Box::pin(other.take(0));
        assert!(third.as_mut().now_or_never().is_none(), "all are taken");
        drop(first);
        let head = crowd.remove(0);
        let got = tokio::time::timeout(Duration::from_secs(10), head).await;
        assert!(got.is_ok(), "the first of those who wait");
        drop((got, second));
        let got = tokio::time::timeout(Duration::from_secs(10), third).await;
        assert!(got.is_ok(), "the other origin");
    }

    #[tokio::test]
    async fn who_gives_up_waiting_lets_the_next_one_try() {
        let places = Places::<1>::new([2]);
        let guest = places.guest(from(1));
        let first = guest.take(0).await;
        let mut given_up = Box::pin(guest.take(0));
        assert!(given_up.as_mut().now_or_never().is_none());
        let mut next = Box::pin(guest.take(0));
        assert!(next.as_mut().now_or_never().is_none());
        drop((given_up, first));
        assert!(tokio::time::timeout(Duration::from_secs(10), next).await.is_ok());
    }
}
