//! What is under way on one stream, in operations and bytes, and what still fits. Pure.
//!
//! Of both, operations of one shard have at most half: a shard without a leader, or on a slow disk, fills its half and is
//! refused more, and all others go on.

use std::collections::HashMap;

use kv_topology::ShardId;

use crate::api::limits::{BATCH_WINDOW_BYTES, BATCH_WINDOW_OPERATIONS};

/// An amount of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// How many.
    pub operations: usize,
    /// Their encoded size.
    pub bytes: usize,
}

impl Load {
    /// All that may be under way.
    pub const MAX: Self = Self { operations: BATCH_WINDOW_OPERATIONS, bytes: BATCH_WINDOW_BYTES };
    /// The same of one shard.
    pub const MAX_OF_SHARD: Self = Self { operations: Self::MAX.operations / 2, bytes: Self::MAX.bytes / 2 };

    /// One operation of this size.
    pub const fn one(bytes: usize) -> Self {
        Self { operations: 1, bytes }
    }

    fn plus(self, more: Self) -> Self {
        Self {
            operations: self.operations.saturating_add(more.operations),
            bytes: self.bytes.saturating_add(more.bytes),
        }
    }

    fn minus(self, less: Self) -> Self {
        Self {
            operations: self.operations.saturating_sub(less.operations),
            bytes: self.bytes.saturating_sub(less.bytes),
        }
    }

    fn fits(self, max: Self) -> bool {
        self.operations <= max.operations && self.bytes <= max.bytes
    }
}

/// The window of one stream.
#[derive(Debug, Default)]
pub struct Window {
    all: Load,
    /// Of shards that have something under way.
    shards: HashMap<ShardId, Load>,
}

impl Window {
    /// Takes what `more` needs for operations of `shard`. False: it does not fit, and nothing was taken.
    pub fn take(&mut self, shard: ShardId, more: Load) -> bool {
        let all = self.all.plus(more);
        if !all.fits(Load::MAX) {
            return false;
        }
        let own = self.shards.entry(shard).or_default();
        let both = own.plus(more);
        let fits = both.fits(Load::MAX_OF_SHARD);
        if fits {
            (*own, self.all) = (both, all);
        }
        fits
    }

    /// Gives back what was taken for operations of `shard`.
    pub fn give_back(&mut self, shard: ShardId, less: Load) {
        self.all = self.all.minus(less);
        let Some(own) = self.shards.get_mut(&shard) else { return };
        *own = own.minus(less);
        if *own == Load::default() {
            self.shards.remove(&shard);
        }
    }

    /// What is under way.
    pub fn taken(&self) -> Load {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(window: &mut Window, shard: u32, bytes: usize) -> usize {
        std::iter::repeat_with(|| window.take(ShardId(shard), Load::one(bytes)))
            .take_while(|taken| *taken)
            .count()
    }

    #[test]
    fn a_slow_shard_takes_half_and_the_rest_is_left_to_others() {
        let mut window = Window::default();
        assert_eq!(fill(&mut window, 1, 100), BATCH_WINDOW_OPERATIONS / 2);
        assert_eq!(fill(&mut window, 2, 100), BATCH_WINDOW_OPERATIONS / 2);
        assert_eq!(fill(&mut window, 3, 100), 0);
        window.give_back(ShardId(2), Load { operations: 10, bytes: 1_000 });
        assert_eq!(fill(&mut window, 1, 100), 0, "its half is still full");
        assert_eq!(fill(&mut window, 3, 100), 10);
    }

    #[test]
    fn bytes_are_halved_as_operations_are() {
        let mut window = Window::default();
        assert_eq!(fill(&mut window, 1, 1 << 20), (BATCH_WINDOW_BYTES / 2) >> 20);
        assert_eq!(fill(&mut window, 2, 1 << 20), (BATCH_WINDOW_BYTES / 2) >> 20);
        assert_eq!(fill(&mut window, 3, 1), 0);
    }

    proptest! {
        #[test]
        fn what_is_taken_never_exceeds_the_window_and_all_comes_back(
            steps in prop::collection::vec((0_u32..4, 1_usize..2_000_000, any::<bool>()), 0..300),
        ) {
            let mut window = Window::default();
            let mut held: Vec<(u32, usize)> = Vec::new();
            for (shard, bytes, takes) in steps {
                if takes && window.take(ShardId(shard), Load::one(bytes)) {
                    held.push((shard, bytes));
                } else if !takes && !held.is_empty() {
                    let (shard, bytes) = held.swap_remove(bytes % held.len());
                    window.give_back(ShardId(shard), Load::one(bytes));
                }
                let bytes = |of: &dyn Fn(u32) -> bool| {
                    held.iter().filter(|(shard, _)| of(*shard)).map(|(_, bytes)| bytes).sum::<usize>()
                };
                prop_assert_eq!(window.taken(), Load { operations: held.len(), bytes: bytes(&|_| true) });
                prop_assert!(bytes(&|_| true) <= BATCH_WINDOW_BYTES);
                prop_assert!((0..4).all(|shard| bytes(&|one| one == shard) <= BATCH_WINDOW_BYTES / 2));
            }
            for (shard, bytes) in held.drain(..) {
                window.give_back(ShardId(shard), Load::one(bytes));
            }
            prop_assert_eq!(window.taken(), Load::default());
            prop_assert!(window.shards.is_empty());
        }
    }
}
