//! How much one origin may hold of what all share. Pure arithmetic.
//!
//! The rule is that of dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998): an
//! origin may hold as much as it leaves free. So
//!
//! * one origin alone gets half. Behind a NAT, a proxy or a port-forward all clients are one origin, and a benchmark
//!   is: half of the limits is meant to be plenty, and no share has to be configured;
//! * the next one gets half of what is left, and so on: whatever `k` origins do, in whatever order they take and give
//!   back, a `2^k`th of all is free. A dozen greedy origins are needed to use up thousands of places, one is not enough;
//! * while little is in use nobody is refused, however it is distributed;
//! * nothing has to be known of the others, so that there is nothing to keep up to date.
//!
//! Who holds nothing gets the last one, too.

/// What all share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// All there is.
    pub max: usize,
    /// What is taken of it, by everybody.
    pub taken: usize,
}

impl Pool {
    /// Whether an origin that holds `own` of it may take `wanted` more.
    pub fn allows(self, own: usize, wanted: usize) -> bool {
        let left = self.max.checked_sub(self.taken.saturating_add(wanted));
        left.is_some_and(|left| own == 0 || own.saturating_add(wanted) <= left)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes one by one until it is refused; says how many it got.
    fn greedy(pool: &mut Pool) -> usize {
        let mut own = 0;
        while pool.allows(own, 1) {
            (own, pool.taken) = (own + 1, pool.taken + 1);
        }
        own
    }

    #[test]
    fn greedy_origins_get_half_of_what_is_left_one_after_the_other() {
        let mut pool = Pool { max: 4_096, taken: 0 };
        let got: Vec<usize> = (0..13).map(|_| greedy(&mut pool)).collect();
        assert_eq!(got, [2_048, 1_024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1, 1]);
        assert_eq!(greedy(&mut pool), 0);
    }

    #[test]
    fn who_holds_nothing_gets_the_last_one() {
        assert!(Pool { max: 1, taken: 0 }.allows(0, 1));
        assert!(Pool { max: 8, taken: 7 }.allows(0, 1));
        assert!(!Pool { max: 8, taken: 7 }.allows(1, 1));
        assert!(!Pool { max: 8, taken: 8 }.allows(0, 1));
    }

    #[test]
    fn absurd_numbers_are_refused() {
        assert!(!Pool { max: 8, taken: 7 }.allows(0, usize::MAX));
        assert!(!Pool { max: 8, taken: usize::MAX }.allows(usize::MAX, usize::MAX));
        assert!(!Pool { max: 0, taken: 0 }.allows(0, 1));
    }

    proptest! {
        /// Steps of `k` origins in any order: which one, and whether it takes or gives back.
        #[test]
        fn whatever_k_origins_do_a_share_is_left_for_the_next(
            max in 0_usize..200,
            steps in prop::collection::vec((0_usize..5, prop::bool::weighted(0.8)), 0..600),
        ) {
            let mut held = [0_usize; 5];
            let mut pool = Pool { max, taken: 0 };
            for (who, takes) in steps {
                let step = match takes {
                    true if pool.allows(held[who], 1) => 1,
                    false if held[who] > 0 => -1,
                    _ => 0,
                };
                held[who] = held[who].saturating_add_signed(step);
                pool.taken = pool.taken.saturating_add_signed(step);
                let origins = held.iter().filter(|held| **held > 0).count();
                prop_assert!(pool.taken <= max);
                prop_assert!(max - pool.taken >= max >> origins, "{held:?} of {max}");
            }
        }

        #[test]
        fn takes_of_any_size_never_exceed_the_whole(
            max in 0_usize..10_000,
            takes in prop::collection::vec((0_usize..4, 0_usize..3_000), 0..50),
        ) {
            let mut held = [0; 4];
            for (who, wanted) in takes {
                let taken = held.iter().sum();
                if (Pool { max, taken }).allows(held[who], wanted) {
                    held[who] += wanted;
                }
                prop_assert!(held.iter().sum::<usize>() <= max);
            }
        }
    }
}
