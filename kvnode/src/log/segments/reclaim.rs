//! When the oldest segment is given back. Pure.

/// Segments that may lie dead whatever there is: they are used again soon.
const DEAD_SEGMENTS_ALLOWED: u64 = 4;

/// What is done about the oldest segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Nothing yet.
    Nothing,
    /// What is needed of it is written again, and then it is given back.
    Move,
    /// Nothing of it is needed.
    GiveBack,
}

/// What there is, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// A segment.
    pub segment: u64,
    /// All segments before the one that is written.
    pub written: u64,
    /// What is needed of all.
    pub live: u64,
    /// What is needed of the oldest.
    pub live_of_oldest: u64,
}

/// Segments are given back in the order of their numbers: a later one holds what removes records of an earlier one. So one
/// record that nobody purges, of a group that is never written, would keep all that come after its segment. It is written again
/// when a third of everything is dead: each byte is then written three times at worst.
///
/// `begun`: it is being moved, and goes on, so that this is not done twice.
pub fn decide(usage: Usage, begun: bool) -> Reclaim {
    if usage.live_of_oldest == 0 {
        return Reclaim::GiveBack;
    }
    if begun
        || usage.written.saturating_sub(usage.live) > usage.live / 2 + DEAD_SEGMENTS_ALLOWED * usage.segment
    {
        Reclaim::Move
    } else {
        Reclaim::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn usage(written: u64, live: u64, live_of_oldest: u64) -> Usage {
        Usage {
            segment: 16 * MIB,
            written: written * MIB,
            live: live * MIB,
            live_of_oldest: live_of_oldest * MIB,
        }
    }

    fn decided(written: u64, live: u64, live_of_oldest: u64) -> Reclaim {
        decide(usage(written, live, live_of_oldest), false)
    }

    #[test]
    fn what_is_dead_goes_at_once_and_what_lives_moves_for_a_third_of_all() {
        assert_eq!(decided(16, 100, 0), Reclaim::GiveBack);
        assert_eq!(decided(80, 16, 16), Reclaim::Nothing, "what the next segments use again");
        assert_eq!(decided(600, 400, 8), Reclaim::Nothing);
        assert_eq!(decided(700, 400, 8), Reclaim::Move);
        assert_eq!(decided(200, 300, 1), Reclaim::Nothing, "the one that is written counts as needed only");
        assert_eq!(decide(usage(600, 400, 8), true), Reclaim::Move, "what has begun");
    }
}
