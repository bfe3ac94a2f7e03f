//! The queue of a stream: windows, shares, deadlines.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;

type Numbers = Queue<u32, u32>;

fn waiting(number: u32, shard: u32, bytes: u64, deadline: Instant) -> Waiting<u32, u32> {
    Waiting { shard, bytes, deadline, operation: number, reply: number }
}

fn queue(operations: u32, bytes: u64) -> Numbers {
    Queue::new(Window { operations, bytes })
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Takes all that may go now.
fn take_all(queue: &mut Numbers) -> Vec<(u64, u32)> {
    std::iter::from_fn(|| queue.take(u64::MAX, |_| true)).map(|taken| (taken.id, taken.operation)).collect()
}

fn numbers(taken: &[(u64, u32)]) -> Vec<u32> {
    taken.iter().map(|(_, number)| *number).collect()
}

#[test]
fn a_shard_takes_at_most_half_and_others_pass_it() {
    let mut queue = queue(4, 1000);
    for (number, shard) in [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)] {
        queue.push(waiting(number, shard, 1, later()));
    }
    let first = take_all(&mut queue);
    assert_eq!(numbers(&first), [0, 1, 4, 5]);
    assert_eq!(queue.answered(first[2].0), Some(4));
    assert_eq!(numbers(&take_all(&mut queue)), [6], "the slow shard has its half already");
    assert_eq!(queue.answered(first[0].0), Some(0));
    assert_eq!(numbers(&take_all(&mut queue)), [2], "in the order they came");
}

#[test]
fn bytes_count_as_well_and_something_huge_goes_alone() {
    let mut queue = queue(100, 100);
    queue.push(waiting(0, 1, 30, later()));
    queue.push(waiting(1, 1, 30, later()));
    queue.push(waiting(2, 2, 300, later()));
    let first = take_all(&mut queue);
    assert_eq!(numbers(&first), [0]);
    queue.answered(first[0].0);
    let second = take_all(&mut queue);
    assert!(numbers(&second) == [2] || numbers(&second) == [1], "{second:?}");
    queue.answered(second[0].0);
    assert_eq!(take_all(&mut queue).len(), 1);
}

#[test]
fn an_answer_to_nothing_is_ignored() {
    let mut queue = queue(4, 1000);
    queue.push(waiting(0, 1, 1, later()));
    let (id, _) = take_all(&mut queue)[0];
    assert_eq!(queue.answered(id), Some(0));
    assert_eq!(queue.answered(id), None, "twice");
    assert_eq!(queue.answered(77), None);
    queue.push(waiting(1, 1, 1, later()));
    assert_ne!(take_all(&mut queue)[0].0, id, "ids are not used again");
}

#[test]
fn what_nobody_waits_for_is_not_sent() {
    let mut queue = queue(4, 1000);
    for number in 0..3 {
        queue.push(waiting(number, 1, 1, later()));
    }
    let taken: Vec<(u64, u32)> = std::iter::from_fn(|| queue.take(u64::MAX, |reply| *reply != 1))
        .map(|taken| (taken.id, taken.operation))
        .collect();
    assert_eq!(numbers(&taken), [0, 2]);
}

#[test]
fn late_operations_lose_their_caller_and_keep_their_place() {
    let mut queue = queue(1, 1000);
    let now = Instant::now();
    let soon = now + Duration::from_secs(1);
    queue.push(waiting(0, 1, 1, soon));
    queue.push(waiting(1, 1, 1, soon));
    queue.push(waiting(2, 1, 1, soon));
    let first = take_all(&mut queue);
    assert_eq!(queue.next_deadline(), Some(soon));
    assert!(queue.expire(now).is_empty());
    let left = queue.expire(soon);
    assert_eq!(left.iter().filter(|left| left.sent).count(), 1);
    assert_eq!(left.len(), 3);
    assert_eq!(queue.next_deadline(), None);
    queue.push(waiting(3, 1, 1, later()));
    assert!(take_all(&mut queue).is_empty(), "the node still counts the late one");
    assert_eq!(queue.answered(first[0].0), None);
    assert_eq!(numbers(&take_all(&mut queue)), [3]);
}

#[test]
fn a_shard_for_which_too_much_waits_is_full_until_something_is_taken_and_others_are_not() {
    let mut queue = queue(1, 1000);
    for number in 0..16_384 {
        assert!(!queue.is_full(1));
        queue.push(waiting(number, 1, 1, later()));
    }
    assert!(queue.is_full(1) && !queue.is_full(2));
    let taken = take_all(&mut queue);
    assert!(taken.len() == 1 && !queue.is_full(1));
    queue.push(waiting(0, 1, 64 << 20, later()));
    assert!(queue.is_full(1));
    assert!(!queue.expire(later()).is_empty());
    assert!(!queue.is_full(1), "what is late waits no more");
}

proptest! {
    /// Whatever happens in which order: each operation gets exactly one end, the window and the shares are kept, and all is
    /// sent in the end.
    #[test]
    fn each_operation_has_one_end_and_windows_are_kept(
        operations in 1_u32..12,
        bytes in 1_u64..200,
        steps in prop::collection::vec((0_u8..4, 0_u32..4, 1_u64..60), 1..200),
    ) {
        let mut queue = queue(operations, bytes);
        let window = Window { operations, bytes };
        let mut facts: BTreeMap<u32, (u32, u64)> = BTreeMap::new();
        let mut under_way: Vec<(u64, u32)> = Vec::new();
        let mut taken: Vec<u32> = Vec::new();
        let mut ended = 0;
        for (step, shard, size) in steps {
            if step < 2 {
                let number = u32::try_from(facts.len()).unwrap();
                facts.insert(number, (shard, size));
                queue.push(waiting(number, shard, size, later()));
            } else if step == 2 {
                let new = take_all(&mut queue);
                taken.extend(new.iter().map(|(_, number)| *number));
                under_way.extend(new);
            } else if !under_way.is_empty() {
                let (id, number) = under_way.remove(shard as usize % under_way.len());
                prop_assert_eq!(queue.answered(id), Some(number));
                ended += 1;
            }
            check(window, &facts, &under_way)?;
        }
        while ended < facts.len() {
            let new = take_all(&mut queue);
            taken.extend(new.iter().map(|(_, number)| *number));
            under_way.extend(new);
            check(window, &facts, &under_way)?;
            prop_assert!(!under_way.is_empty(), "stuck with {} of {}", ended, facts.len());
            let (id, number) = under_way.remove(0);
            prop_assert_eq!(queue.answered(id), Some(number));
            ended += 1;
        }
        prop_assert_eq!(taken.len(), facts.len());
    }
}

fn check(
    window: Window,
    facts: &BTreeMap<u32, (u32, u64)>,
    under_way: &[(u64, u32)],
) -> Result<(), TestCaseError> {
    let count = |shard: Option<u32>| {
        let of = under_way.iter().map(|(_, number)| facts[number]);
        let of: Vec<u64> =
            of.filter(|(of, _)| shard.is_none_or(|shard| shard == *of)).map(|(_, bytes)| bytes).collect();
        (of.len(), of.iter().sum::<u64>())
    };
    let (operations, bytes) = count(None);
    prop_assert!(operations <= 1 || (operations <= window.operations as usize && bytes <= window.bytes));
    for shard in 0..4 {
        let (operations, bytes) = count(Some(shard));
        let half = window.operations.div_ceil(2) as usize;
        prop_assert!(operations <= 1 || (operations <= half && bytes <= window.bytes / 2));
    }
    Ok(())
}
