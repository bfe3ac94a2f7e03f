//! Histories written by hand, legal and illegal.

use kv_history::{
    Call, ClientId, FinalState, History, Limits, Nanos, Observed, Reply, Revision, ValueId, ViolationKind,
    check, check_final,
};

/// A short way to write a history: each line is one operation of a client of its own.
#[derive(Default)]
struct Script(History, u32);

impl Script {
    fn operation(mut self, begin: u64, end: Option<u64>, call: Call, reply: Option<Reply>) -> Self {
        let id = self.0.invoke(ClientId(self.1), "k", call, Nanos(begin));
        self.1 += 1;
        if let (Some(end), Some(reply)) = (end, reply) {
            self.0.returned(id, reply, Nanos(end));
        }
        self
    }

    fn put(self, begin: u64, end: u64, value: u64) -> Self {
        self.operation(begin, Some(end), put(value), Some(Reply::Put(None)))
    }

    fn put_at(self, begin: u64, end: u64, value: u64, revision: u64) -> Self {
        self.operation(begin, Some(end), put(value), Some(Reply::Put(Some(Revision(revision)))))
    }

    fn put_unknown(self, begin: u64, value: u64) -> Self {
        self.operation(begin, None, put(value), None)
    }

    fn put_refused(mut self, begin: u64, value: u64) -> Self {
        let id = self.0.invoke(ClientId(self.1), "k", put(value), Nanos(begin));
        self.0.failed(id);
        self
    }

    fn get(self, begin: u64, end: u64, value: impl Into<Option<u64>>) -> Self {
        let observed = value.into().map(|value| Observed { value: ValueId(value), revision: None });
        self.operation(begin, Some(end), Call::Get, Some(Reply::Got(observed)))
    }

    fn get_at(self, begin: u64, end: u64, value: u64, revision: u64) -> Self {
        let observed = Observed { value: ValueId(value), revision: Some(Revision(revision)) };
        self.operation(begin, Some(end), Call::Get, Some(Reply::Got(Some(observed))))
    }

    fn delete(self, begin: u64, end: u64, was_there: bool) -> Self {
        self.operation(begin, Some(end), Call::Delete, Some(Reply::Deleted(was_there)))
    }

    fn cleared(self, begin: u64, end: u64) -> Self {
        self.operation(begin, Some(end), Call::Delete, Some(Reply::Cleared))
    }

    fn delete_unknown(self, begin: u64) -> Self {
        self.operation(begin, None, Call::Delete, None)
    }

    fn cas(self, begin: u64, end: u64, expected: u64, value: u64, made: u64) -> Self {
        let call = Call::Cas { expected: Revision(expected), value: ValueId(value) };
        self.operation(begin, Some(end), call, Some(Reply::Swapped(Some(Revision(made)))))
    }

    fn cas_missed(self, begin: u64, end: u64, expected: u64, value: u64, found: Option<u64>) -> Self {
        let call = Call::Cas { expected: Revision(expected), value: ValueId(value) };
        self.operation(begin, Some(end), call, Some(Reply::NotSwapped(found.map(Revision))))
    }

    fn must_be_legal(self) {
        let report = check(&self.0, Limits::default()).unwrap_or_else(|violation| panic!("{violation}"));
        assert!(report.undecided_keys.is_empty());
    }

    #[track_caller]
    fn breaks(self, kind: ViolationKind) -> String {
        let violation = check(&self.0, Limits::default()).expect_err("the history is illegal");
        assert_eq!(violation.kind, kind, "{violation}");
        violation.to_string()
    }
}

fn put(value: u64) -> Call {
    Call::Put { value: ValueId(value) }
}

fn script() -> Script {
    Script::default()
}

#[test]
fn sequential_history_is_legal() {
    script().get(0, 1, None).put(2, 3, 1).get(4, 5, 1).put(6, 7, 2).get(8, 9, 2).must_be_legal();
}

#[test]
fn concurrent_reads_may_see_either_side_of_a_write() {
    script().put(0, 1, 1).put(2, 9, 2).get(3, 8, 1).get(3, 8, 2).must_be_legal();
}

#[test]
fn new_then_old_is_a_violation_even_within_one_write() {
    script().put(0, 1, 1).put(2, 9, 2).get(3, 4, 2).get(5, 6, 1).breaks(ViolationKind::NotLinearizable);
}

#[test]
fn stale_read_is_found_and_explained_by_its_few_operations() {
    let mut history = script();
    for round in 1..100 {
        history = history.put(round * 10, round * 10 + 2, round).get(round * 10 + 3, round * 10 + 4, round);
    }
    let text = history.get(995, 996, 98).breaks(ViolationKind::NotLinearizable);
    assert!(text.contains("put v99") && text.contains("v98"), "{text}");
    assert!(text.lines().count() <= 7, "{text}");
}

#[test]
fn stale_read_is_found_among_deletes_and_explained_by_its_few_operations() {
    let mut history = script();
    for round in 1..60 {
        history = history.put(round * 10, round * 10 + 2, round).get(round * 10 + 3, round * 10 + 4, round);
        if round % 7 == 0 {
            history = history.delete(round * 10 + 5, round * 10 + 6, true);
        }
    }
    let text = history.get(595, 596, 58).breaks(ViolationKind::NotLinearizable);
    assert!(text.contains("put v59") && text.contains("-> v58"), "{text}");
    assert!(text.lines().count() <= 10, "{text}");
}

#[test]
fn acknowledged_write_that_a_later_read_does_not_see_is_a_violation() {
    script().put(0, 1, 1).put(2, 3, 2).get(4, 5, 1).breaks(ViolationKind::NotLinearizable);
    script().put(0, 1, 1).get(4, 5, None).breaks(ViolationKind::NotLinearizable);
}

#[test]
fn read_before_its_write_began_is_a_violation() {
    script().get(0, 1, 1).put(2, 3, 1).breaks(ViolationKind::NotLinearizable);
}

#[test]
fn unknown_write_may_take_effect_late_or_never() {
    script().put(0, 1, 1).put_unknown(2, 2).get(3, 4, 1).get(100, 101, 2).must_be_legal();
    script().put(0, 1, 1).put_unknown(2, 2).get(3, 4, 1).get(100, 101, 1).must_be_legal();
    script().put(0, 1, 1).put_unknown(2, 2).put(3, 4, 3).get(5, 6, 2).must_be_legal();
}

#[test]
fn unknown_write_takes_effect_at_most_once() {
    script()
        .put(0, 1, 1)
        .put_unknown(2, 2)
        .get(3, 4, 2)
        .put(5, 6, 3)
        .get(7, 8, 3)
        .get(9, 10, 2)
        .breaks(ViolationKind::NotLinearizable);
}

#[test]
fn refused_write_must_stay_invisible() {
    script().put_refused(0, 1).get(2, 3, None).must_be_legal();
    script().put_refused(0, 1).get(2, 3, 1).breaks(ViolationKind::RefusedWriteVisible);
}

#[test]
fn value_that_nobody_wrote_is_a_violation() {
    script().put(0, 1, 1).get(2, 3, 7).breaks(ViolationKind::PhantomRead);
}

#[test]
fn value_written_twice_by_the_recorder_is_called_the_recorders_fault() {
    script().put(0, 1, 1).put(2, 3, 1).breaks(ViolationKind::ValueNotUnique);
}

#[test]
fn deletes_make_a_key_absent() {
    script().put(0, 1, 1).delete(2, 3, true).get(4, 5, None).delete(6, 7, false).must_be_legal();
    script().put(0, 1, 1).delete(2, 3, true).get(4, 5, 1).breaks(ViolationKind::NotLinearizable);
    script().put(0, 1, 1).delete(2, 3, false).breaks(ViolationKind::NotLinearizable);
    script().delete(2, 3, true).breaks(ViolationKind::NotLinearizable);
}

#[test]
fn unknown_delete_may_take_effect_late_or_never() {
    script().put(0, 1, 1).delete_unknown(2).get(3, 4, 1).get(9, 10, None).must_be_legal();
    script().put(0, 1, 1).delete_unknown(2).get(3, 4, 1).get(9, 10, 1).must_be_legal();
    script()
        .put(0, 1, 1)
        .delete_unknown(2)
        .get(3, 4, None)
        .get(9, 10, 1)
        .breaks(ViolationKind::NotLinearizable);
}

#[test]
fn unknown_unseen_put_explains_a_delete_that_found_something() {
    script().put_unknown(0, 1).delete(2, 3, true).must_be_legal();
    script().put_unknown(0, 1).delete(2, 3, true).delete(4, 5, true).breaks(ViolationKind::NotLinearizable);
    script().put_unknown(0, 1).put_unknown(0, 2).delete(2, 3, true).delete(4, 5, true).must_be_legal();
}

#[test]
fn two_swaps_from_one_revision_are_a_violation() {
    script().put_at(0, 1, 1, 5).cas(2, 9, 5, 2, 6).cas_missed(2, 9, 5, 3, Some(6)).must_be_legal();
    script().put_at(0, 1, 1, 5).cas(2, 9, 5, 2, 6).cas(2, 9, 5, 3, 7).breaks(ViolationKind::NotLinearizable);
}

#[test]
fn swap_that_misses_though_its_condition_held_is_a_violation() {
    script().put_at(0, 1, 1, 5).cas_missed(2, 3, 5, 2, Some(5)).breaks(ViolationKind::NotLinearizable);
}

#[test]
fn creation_if_absent_succeeds_once() {
    script().cas(0, 9, 0, 1, 5).cas_missed(0, 9, 0, 2, Some(5)).must_be_legal();
    script().cas(0, 9, 0, 1, 5).cas(0, 9, 0, 2, 6).breaks(ViolationKind::NotLinearizable);
}

#[test]
fn write_seen_at_two_revisions_was_applied_twice() {
    script().put_at(0, 1, 1, 5).get_at(2, 3, 1, 6).breaks(ViolationKind::AppliedTwice);
}

#[test]
fn revision_that_goes_back_is_a_violation() {
    script().put_at(0, 1, 1, 5).put_at(2, 3, 2, 4).breaks(ViolationKind::RevisionWentBack);
    script().put_at(0, 1, 1, 5).put_at(2, 3, 2, 5).breaks(ViolationKind::RevisionShared);
    // The stale read of a key that was deleted in between, which the revision shows at once.
    script()
        .put_at(0, 9, 1, 5)
        .put_at(0, 9, 2, 6)
        .get_at(10, 11, 2, 6)
        .get_at(12, 13, 1, 5)
        .breaks(ViolationKind::RevisionWentBack);
}

#[test]
fn unknown_writes_do_not_explode_the_search() {
    let mut history = script().put(0, 1, 1_000);
    for value in 1..200 {
        history = history.put_unknown(value * 3, value).delete_unknown(value * 3 + 1);
    }
    history.get(1_000, 1_001, None).delete(1_002, 1_003, true).get(1_004, 1_005, None).must_be_legal();
}

#[test]
fn budget_that_runs_out_is_reported_and_not_guessed() {
    let mut history = History::new();
    for client in 0..20 {
        let id = history.invoke(ClientId(client), "k", put(u64::from(client)), Nanos(0));
        history.returned(id, Reply::Put(None), Nanos(10));
    }
    let id = history.invoke(ClientId(99), "k", Call::Delete, Nanos(11));
    history.returned(id, Reply::Deleted(false), Nanos(12));
    let report = check(&history, Limits { states_per_key: 1_000 }).expect("nothing is proved");
    assert_eq!(report.undecided_keys, ["k"]);
}

#[test]
fn acknowledged_write_missing_at_the_end_is_lost() {
    let found = |value: Option<u64>, revision: Option<u64>| -> FinalState {
        let observed =
            value.map(|value| Observed { value: ValueId(value), revision: revision.map(Revision) });
        FinalState::from([("k".to_owned(), observed)])
    };
    let kind = |script: Script, found: FinalState| {
        check_final(&script.0, &found).map_err(|violation| violation.kind)
    };

    let two_puts = || script().put_at(0, 1, 1, 5).put_at(2, 3, 2, 6);
    assert_eq!(kind(two_puts(), found(Some(2), Some(6))), Ok(()));
    assert_eq!(kind(two_puts(), found(Some(1), Some(5))), Err(ViolationKind::LostWrite));
    assert_eq!(kind(two_puts(), found(None, None)), Err(ViolationKind::LostWrite));
    assert_eq!(kind(two_puts(), found(Some(9), Some(9))), Err(ViolationKind::PhantomRead));
    assert_eq!(kind(script().put(0, 1, 1).put_unknown(2, 2), found(Some(2), Some(7))), Ok(()));
    assert_eq!(kind(script().put(0, 1, 1).delete_unknown(0), found(None, None)), Ok(()));
    assert_eq!(
        kind(script().delete(0, 1, true).put(2, 3, 1), found(None, None)),
        Err(ViolationKind::LostWrite)
    );
    assert_eq!(
        kind(script().put(0, 1, 1).delete(2, 3, true), found(Some(1), None)),
        Err(ViolationKind::LostWrite)
    );
    assert_eq!(
        kind(script().put_refused(0, 1), found(Some(1), None)),
        Err(ViolationKind::RefusedWriteVisible)
    );
    let concurrent = || script().put_at(0, 9, 1, 6).put_at(0, 9, 2, 5);
    assert_eq!(kind(concurrent(), found(Some(1), Some(6))), Ok(()));
    assert_eq!(kind(concurrent(), found(Some(2), Some(5))), Err(ViolationKind::LostWrite));
}

#[test]
fn history_survives_being_written_as_json_lines() {
    let history = script()
        .put_at(0, 1, 1, 5)
        .get_at(2, 3, 1, 5)
        .delete_unknown(4)
        .put_refused(5, 2)
        .cas_missed(6, 7, 0, 3, Some(5))
        .0;
    let lines = history.to_json_lines();
    assert_eq!(lines.lines().count(), 5);
    assert_eq!(History::from_json_lines(&lines).expect("what was written is read"), history);
    let error = History::from_json_lines("{}\n").expect_err("an empty object is no operation");
    assert_eq!(error.line, 1);
}

#[test]
fn delete_that_does_not_say_what_it_found_leaves_the_key_absent() {
    Script::default().cleared(0, 1).put(2, 3, 1).cleared(4, 5).get(6, 7, None).must_be_legal();
    Script::default().put(0, 1, 1).cleared(2, 3).get(4, 5, 1).breaks(ViolationKind::NotLinearizable);
}

#[test]
fn key_that_a_range_was_deleted_with_may_be_absent_at_the_end() {
    let script = Script::default().put(0, 1, 1).cleared(2, 3);
    check_final(&script.0, &FinalState::from([("k".to_owned(), None)])).expect("it was deleted");
    let script = Script::default().cleared(0, 1).put(2, 3, 1);
    let violation = check_final(&script.0, &FinalState::from([("k".to_owned(), None)]));
    assert_eq!(violation.expect_err("the delete came before").kind, ViolationKind::LostWrite);
}
