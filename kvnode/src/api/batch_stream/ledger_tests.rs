use std::time::Duration;

use super::*;

const SHARD: ShardId = ShardId(1);

fn waiting(id: u64, deadline: Instant) -> Waiting {
    Waiting { id, kind: Kind::Get, deadline, bytes: 10 }
}

/// A read of one shard; each operation has its own deadline.
fn open(ledger: &mut Ledger, now: Instant, operations: &[(u64, u64)]) -> usize {
    open_at(ledger, SHARD, now, operations)
}

fn open_at(ledger: &mut Ledger, shard: ShardId, now: Instant, operations: &[(u64, u64)]) -> usize {
    ledger.enter(operations.iter().map(|(id, _)| *id)).expect("fresh ids");
    let waiting = |(id, ms): &(u64, u64)| Some(waiting(*id, now + Duration::from_millis(*ms)));
    assert!(operations.iter().all(|_| ledger.take(shard, 10)));
    let keys = operations.iter().map(|(id, _)| Bytes::from(id.to_string())).collect();
    let reading = Some(Reading { keys, ..Reading::default() });
    let waiting = operations.iter().map(waiting).collect();
    ledger.open(Call { shard, waiting, reading, came: now, held: None })
}

fn settled(ledger: &mut Ledger, number: usize, count: usize) -> Vec<(usize, u64)> {
    let mut settled = Vec::new();
    ledger.settle(number, count, |result, waiting| settled.push((result, waiting.id)));
    settled
}

fn expired(ledger: &mut Ledger, now: Instant) -> Vec<u64> {
    let mut ids = Vec::new();
    ledger.expire(now, |_, waiting| ids.push(waiting.id));
    ids
}

#[test]
fn an_id_without_an_answer_is_refused_with_all_of_its_message() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let number = open(&mut ledger, now, &[(1, 50), (2, 50)]);
    assert_eq!(ledger.enter([3, 2, 4].into_iter()), Err(1));
    assert_eq!(ledger.enter([3, 4, 3].into_iter()), Err(2));
    assert_eq!(ledger.enter([3, 4].into_iter()), Ok(()), "what was refused was not noted");
    assert_eq!(settled(&mut ledger, number, usize::MAX), [(0, 1), (1, 2)]);
    assert_eq!(ledger.enter([2].into_iter()), Ok(()), "it has its answer");
}

#[test]
fn an_operation_expires_at_its_time_and_its_late_result_is_dropped() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let number = open(&mut ledger, now, &[(1, 50), (2, 100), (3, 50)]);
    assert_eq!(ledger.earliest(), Some(now + Duration::from_millis(50)));
    assert!(expired(&mut ledger, now + Duration::from_millis(49)).is_empty());
    assert_eq!(expired(&mut ledger, now + Duration::from_millis(50)), [1, 3]);
    assert_eq!(ledger.earliest(), Some(now + Duration::from_millis(100)));
    assert_eq!(settled(&mut ledger, number, usize::MAX), [(1, 2)]);
    assert!(ledger.is_idle() && ledger.earliest().is_none());
    assert_eq!(ledger.taken(), Load::default());
}

#[test]
fn the_number_of_a_call_that_runs_on_is_not_given_to_another_one() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let late = open(&mut ledger, now, &[(1, 50)]);
    assert_eq!(expired(&mut ledger, now + Duration::from_millis(50)), [1]);
    let next = open(&mut ledger, now, &[(1, 500)]);
    assert_ne!(late, next);
    assert!(settled(&mut ledger, late, usize::MAX).is_empty(), "nobody waits for it any more");
    assert_eq!(open(&mut ledger, now, &[(2, 500)]), late, "it has ended");
    assert_eq!(settled(&mut ledger, next, usize::MAX), [(0, 1)]);
}

#[test]
fn what_is_put_off_is_asked_for_again_as_far_as_it_is_waited_for() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let number = open(&mut ledger, now, &[(1, 50), (2, 50), (3, 900), (4, 50), (5, 800)]);
    assert_eq!(settled(&mut ledger, number, 1), [(0, 1)]);
    assert_eq!(expired(&mut ledger, now + Duration::from_millis(60)), [2, 4]);
    let (again, shard, reading, deadline) = ledger.again().expect("it was put off");
    assert_eq!((again, shard, deadline), (number, SHARD, now + Duration::from_millis(900)));
    assert_eq!(reading.keys, ["3", "5"]);
    assert_eq!(settled(&mut ledger, number, 1), [(0, 3)]);
    let (_, _, reading, _) = ledger.again().expect("it was put off again");
    assert_eq!(reading.keys, ["5"]);
    assert_eq!(settled(&mut ledger, number, 1), [(0, 5)]);
    assert!(ledger.is_idle() && ledger.again().is_none());
    assert_eq!(ledger.taken(), Load::default());
}

#[test]
fn what_is_put_off_and_not_waited_for_any_more_is_not_asked_for() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let number = open(&mut ledger, now, &[(1, 50)]);
    settled(&mut ledger, number, 0);
    assert_eq!(expired(&mut ledger, now + Duration::from_millis(50)), [1]);
    assert!(ledger.again().is_none());
    assert_eq!(open(&mut ledger, now, &[(1, 50)]), number, "its number is free again");
}

#[test]
fn each_shard_is_asked_again_one_read_at_a_time_and_waits_for_no_other() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let numbers: Vec<_> = [(1, 1), (2, 1), (3, 2), (4, 2)]
        .map(|(id, shard)| {
            let number = open_at(&mut ledger, ShardId(shard), now, &[(id, 50)]);
            settled(&mut ledger, number, 0);
            number
        })
        .into();
    let again = |ledger: &mut Ledger| ledger.again().map(|(number, shard, ..)| (number, shard.get()));
    assert_eq!(again(&mut ledger), Some((numbers[0], 1)));
    assert_eq!(again(&mut ledger), Some((numbers[2], 2)), "another shard");
    assert_eq!(again(&mut ledger), None, "one of each is under way");
    assert_eq!(settled(&mut ledger, numbers[2], 0), [], "put off once more");
    assert_eq!(again(&mut ledger), Some((numbers[3], 2)), "the first shard is still busy");
    assert_eq!(settled(&mut ledger, numbers[3], 1), [(0, 4)]);
    assert_eq!(settled(&mut ledger, numbers[0], 1), [(0, 1)]);
    assert_eq!(again(&mut ledger), Some((numbers[1], 1)));
    assert_eq!(again(&mut ledger), Some((numbers[2], 2)));
}
