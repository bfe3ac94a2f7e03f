//! Histories generated from a simulated atomic register are accepted; the same with a fault planted are rejected;
//! and two algorithms that know nothing of each other agree on histories of arbitrary replies.

use std::collections::BTreeMap;

use kv_history::{
    Call, ClientId, History, Limits, Nanos, Observed, Operation, Reply, Revision, ValueId, ViolationKind,
    check,
};
use proptest::prelude::*;

/// What a client is going to do.
#[derive(Clone, Debug)]
struct Plan {
    client: u32,
    key: u8,
    kind: Kind,
    /// Since the client's last operation ended; then until the effect; then until the reply.
    pause: u64,
    before: u64,
    after: u64,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Get,
    Put,
    Delete,
    /// From the revision that the register had this many writes ago.
    Cas(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Replied,
    /// The reply was lost, the effect took place.
    ReplyLost,
    /// The request was lost.
    RequestLost,
    Refused,
}

fn plans(kinds: impl Strategy<Value = Kind> + 'static) -> impl Strategy<Value = Vec<Plan>> {
    let fate = prop_oneof![
        10 => Just(Fate::Replied),
        1 => Just(Fate::ReplyLost),
        1 => Just(Fate::RequestLost),
        1 => Just(Fate::Refused)
    ];
    let plan = (0..5_u32, 0..2_u8, kinds, 0..20_u64, 0..30_u64, 0..30_u64, fate).prop_map(
        |(client, key, kind, pause, before, after, fate)| Plan {
            client,
            key,
            kind,
            pause,
            before,
            after,
            fate,
        },
    );
    prop::collection::vec(plan, 1..120)
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![4 => Just(Kind::Get), 4 => Just(Kind::Put), 1 => Just(Kind::Delete), 2 => (0..3_u64).prop_map(Kind::Cas)]
}

fn put_or_get() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Get), Just(Kind::Put)]
}

/// An atomic register for each key, all at one revision counter.
#[derive(Default)]
struct Registers {
    revision: u64,
    keys: BTreeMap<u8, Observed>,
}

impl Registers {
    fn write(&mut self, key: u8, value: ValueId) -> Option<Revision> {
        self.revision += 1;
        let revision = Some(Revision(self.revision));
        self.keys.insert(key, Observed { value, revision });
        revision
    }

    fn revision_of(&self, key: u8) -> Option<Revision> {
        self.keys.get(&key).and_then(|observed| observed.revision)
    }

    fn apply(&mut self, key: u8, call: Call) -> Reply {
        match call {
            Call::Get => Reply::Got(self.keys.get(&key).copied()),
            Call::Put { value } => Reply::Put(self.write(key, value)),
            Call::Delete => {
                let was_there = self.keys.remove(&key).is_some();
                if self.revision.is_multiple_of(2) { Reply::Deleted(was_there) } else { Reply::Cleared }
            }
            Call::Cas { expected, .. } if self.revision_of(key).unwrap_or(Revision::ABSENT) != expected => {
                Reply::NotSwapped(self.revision_of(key))
            }
            Call::Cas { value, .. } => Reply::Swapped(self.write(key, value)),
        }
    }
}

/// Runs the plans against atomic registers and records what the clients see.
fn simulate(plans: &[Plan]) -> (History, u64) {
    let mut client_free: BTreeMap<u32, u64> = BTreeMap::new();
    let mut timed: Vec<(u64, u64, u64, usize)> = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let begin = client_free.get(&plan.client).copied().unwrap_or(0) + plan.pause;
        let effect = begin + plan.before;
        let end = effect + plan.after;
        client_free.insert(plan.client, end + 1);
        timed.push((effect, begin, end, index));
    }
    // The order of effects is the truth; a lost reply's effect may come after its client has gone on.
    timed.sort_unstable();
    let mut registers = Registers::default();
    let mut history = History::new();
    let mut end_of_time = 0;
    for (_, begin, end, index) in timed {
        let plan = &plans[index];
        let value = ValueId(index as u64);
        let call = match plan.kind {
            Kind::Get => Call::Get,
            Kind::Put => Call::Put { value },
            Kind::Delete => Call::Delete,
            Kind::Cas(ago) => {
                let now = registers.revision_of(plan.key).unwrap_or(Revision::ABSENT);
                Call::Cas { expected: Revision(now.0.saturating_sub(ago)), value }
            }
        };
        let id = history.invoke(ClientId(plan.client), format!("key{}", plan.key), call, Nanos(begin));
        match plan.fate {
            Fate::Replied => history.returned(id, registers.apply(plan.key, call), Nanos(end)),
            Fate::ReplyLost => {
                registers.apply(plan.key, call);
            }
            Fate::RequestLost => {}
            Fate::Refused => history.failed(id),
        }
        end_of_time = end_of_time.max(end);
    }
    (history, end_of_time)
}

/// Two acknowledged puts of a key, the first wholly before the second.
fn successive_puts(history: &History) -> Option<(Operation, Operation)> {
    history.by_key().values().find_map(|operations| {
        let puts: Vec<_> = operations.iter().filter(|o| matches!(o.reply(), Some(Reply::Put(_)))).collect();
        let (first, second) = (puts.first()?, puts.last()?);
        first.precedes(second).then(|| ((**first).clone(), (**second).clone()))
    })
}

fn read(history: &mut History, key: &str, observed: Option<Observed>, at: u64) {
    let id = history.invoke(ClientId(77), key, Call::Get, Nanos(at));
    history.returned(id, Reply::Got(observed), Nanos(at + 1));
}

fn without_revisions(history: &History) -> History {
    let mut stripped = History::new();
    for operation in history.operations() {
        let id =
            stripped.invoke(operation.client, operation.key.clone(), operation.call, operation.invoked_at);
        match operation.reply() {
            Some(Reply::Put(_)) => stripped.returned(id, Reply::Put(None), operation.ended_at()),
            Some(Reply::Got(Some(observed))) => {
                let observed = Observed { revision: None, ..observed };
                stripped.returned(id, Reply::Got(Some(observed)), operation.ended_at());
            }
            Some(other) => stripped.returned(id, other, operation.ended_at()),
            None if operation.outcome == kv_history::Outcome::Failed => stripped.failed(id),
            None => {}
        }
    }
    stripped
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn history_of_an_atomic_register_is_accepted(plans in plans(any_kind())) {
        let (history, _) = simulate(&plans);
        let report = check(&history, Limits::default()).map_err(|violation| TestCaseError::fail(violation.to_string()))?;
        prop_assert_eq!(report.undecided_keys, Vec::<String>::new());
    }

    #[test]
    fn history_without_revisions_is_accepted_by_zones(plans in plans(put_or_get())) {
        let (history, _) = simulate(&plans);
        let report = check(&without_revisions(&history), Limits::default())
            .map_err(|violation| TestCaseError::fail(violation.to_string()))?;
        prop_assert_eq!(report.keys_by_search, 0);
    }

    #[test]
    fn planted_stale_read_is_rejected(plans in plans(any_kind()), with_revisions: bool) {
        let (mut history, end) = simulate(&plans);
        let Some((old, _)) = successive_puts(&history) else { return Ok(()) };
        let observed = Observed { value: old.call.written().expect("a put"), revision: old.seen_revision() };
        read(&mut history, &old.key, Some(observed), end + 10);
        let history = if with_revisions { history } else { without_puts_only(&history) };
        prop_assert!(check(&history, Limits::default()).is_err());
    }

    #[test]
    fn planted_lost_write_is_rejected(plans in plans(put_or_get()), all_lost: bool) {
        let (mut history, end) = simulate(&plans);
        let Some((old, _)) = successive_puts(&history) else { return Ok(()) };
        let observed = Observed { value: old.call.written().expect("a put"), revision: None };
        read(&mut history, &old.key, (!all_lost).then_some(observed), end + 10);
        let violation = check(&history, Limits::default()).expect_err("a write was lost");
        prop_assert_eq!(violation.kind, ViolationKind::NotLinearizable);
        prop_assert!(violation.operations.len() <= 6, "{}", violation);
    }

    #[test]
    fn planted_duplicate_apply_is_rejected(plans in plans(any_kind())) {
        let (mut history, end) = simulate(&plans);
        let Some((old, _)) = successive_puts(&history) else { return Ok(()) };
        let observed = Observed { value: old.call.written().expect("a put"), revision: Some(Revision(1_000_000)) };
        read(&mut history, &old.key, Some(observed), end + 10);
        let violation = check(&history, Limits::default()).expect_err("a write was applied twice");
        prop_assert_eq!(violation.kind, ViolationKind::AppliedTwice);
    }

    // A delete at the end of time sends the same key to the search instead of the zones.
    #[test]
    fn zones_and_search_agree_on_arbitrary_replies(
        operations in prop::collection::vec((0..2_u8, 0..30_u64, 0..12_u64, 0..4_u64, any::<bool>()), 1..9)
    ) {
        let mut history = History::new();
        for (index, (kind, begin, length, pick, known)) in operations.iter().enumerate() {
            let call = if *kind == 0 { Call::Get } else { Call::Put { value: ValueId(index as u64) } };
            let id = history.invoke(ClientId(0), "k", call, Nanos(*begin));
            let puts: Vec<usize> = (0..operations.len()).filter(|other| operations[*other].0 != 0).collect();
            let observed = puts
                .get(usize::try_from(*pick).expect("small"))
                .map(|value| Observed { value: ValueId(*value as u64), revision: None });
            match call {
                Call::Get => history.returned(id, Reply::Got(observed), Nanos(begin + length)),
                _ if *known => history.returned(id, Reply::Put(None), Nanos(begin + length)),
                _ => {}
            }
        }
        let by_zones = check(&history, Limits::default()).map(|report| report.keys_by_zones);
        history.invoke(ClientId(1), "k", Call::Delete, Nanos(1_000));
        let by_search = check(&history, Limits::default()).map(|report| report.keys_by_search);
        prop_assert_eq!(by_zones.is_ok(), by_search.is_ok(), "zones {:?}, search {:?}", by_zones, by_search);
    }
}

/// Puts and gets without their revisions, so that only the order of values can give a fault away.
fn without_puts_only(history: &History) -> History {
    let has_cas = history.operations().iter().any(|o| matches!(o.call, Call::Cas { .. }));
    // The conditions of compare-and-swaps need the revisions.
    if has_cas { history.clone() } else { without_revisions(history) }
}
