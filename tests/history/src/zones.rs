//! Linearizability of a key that was only put and read, in O(n log n).
//!
//! All operations on one value form a cluster, and in a legal order a cluster stands together: the write, then its
//! reads. A cluster must stand before another when one of its operations ended before one of the other's began.
//! With `first_end` the least end and `last_begin` the greatest begin in a cluster, two clusters contradict each
//! other exactly if `a.first_end < b.last_begin` and `b.first_end < a.last_begin`; and where no two contradict each
//! other, and no read ends before its write begins, an order exists (Gibbons and Korach, 1997).

use std::collections::BTreeMap;

use crate::{
    operation::{Call, Nanos, Operation, Outcome, Reply, ValueId},
    violation::{Violation, ViolationKind},
};

/// The operations on one value; on the absent key for `None`.
struct Cluster<'h> {
    value: Option<ValueId>,
    write: Option<&'h Operation>,
    /// `None`: before the history began, for the absent key.
    first_end: Option<&'h Operation>,
    last_begin: &'h Operation,
}

impl<'h> Cluster<'h> {
    /// `None` is less than any moment.
    fn first_end(&self) -> Option<Nanos> {
        self.first_end.map(Operation::ended_at)
    }

    fn last_begin(&self) -> Option<Nanos> {
        Some(self.last_begin.invoked_at)
    }

    /// Whether its value was surely current for a while: from `first_end` to `last_begin`.
    fn is_forward(&self) -> bool {
        self.first_end() < self.last_begin()
    }

    fn contradicts(&self, other: &Self) -> bool {
        self.first_end() < other.last_begin() && other.first_end() < self.last_begin()
    }

    fn operations(&self) -> impl Iterator<Item = &'h Operation> {
        self.write.into_iter().chain(self.first_end).chain([self.last_begin])
    }

    fn name(&self) -> String {
        self.value.map_or_else(|| "the absent key".to_owned(), |value| format!("v{}", value.0))
    }
}

/// Whether the zones can decide: only puts and gets.
pub(crate) fn can_decide(operations: &[&Operation]) -> bool {
    operations.iter().all(|operation| matches!(operation.call, Call::Get | Call::Put { .. }))
}

/// Decides one key's operations. Every value read must have been written.
pub(crate) fn check(operations: &[&Operation]) -> Result<(), Violation> {
    let clusters = clusters(operations)?;
    let (mut forward, backward): (Vec<_>, Vec<_>) = clusters.iter().partition(|cluster| cluster.is_forward());
    forward.sort_by_key(|cluster| cluster.first_end());
    for pair in forward.windows(2) {
        if pair[0].contradicts(pair[1]) {
            return Err(contradiction(pair[0], pair[1]));
        }
    }
    for cluster in backward {
        // The forward zones are disjoint now: only the last one that begins before this one can hold it.
        let after = forward.partition_point(|zone| zone.first_end() < cluster.last_begin());
        if let Some(zone) = after.checked_sub(1).map(|index| forward[index])
            && zone.contradicts(cluster)
        {
            return Err(contradiction(zone, cluster));
        }
    }
    Ok(())
}

fn clusters<'h>(operations: &[&'h Operation]) -> Result<Vec<Cluster<'h>>, Violation> {
    let mut members: BTreeMap<Option<ValueId>, Vec<&'h Operation>> = BTreeMap::new();
    let mut writes: BTreeMap<ValueId, &'h Operation> = BTreeMap::new();
    for operation in operations {
        match (operation.call, operation.outcome) {
            (_, Outcome::Failed) | (Call::Get, Outcome::Unknown) => {}
            (Call::Put { value }, _) => {
                writes.insert(value, operation);
            }
            (_, Outcome::Returned { reply: Reply::Got(observed), .. }) => {
                members.entry(observed.map(|observed| observed.value)).or_default().push(operation);
            }
            (_, _) => {}
        }
    }
    for (value, write) in &writes {
        // An unknown put that nobody read may never have happened.
        if write.reply().is_some() || members.contains_key(&Some(*value)) {
            members.entry(Some(*value)).or_default().push(write);
        }
    }
    members
        .into_iter()
        .map(|(value, members)| cluster(value, value.and_then(|value| writes.get(&value).copied()), &members))
        .collect()
}

fn cluster<'h>(
    value: Option<ValueId>,
    write: Option<&'h Operation>,
    members: &[&'h Operation],
) -> Result<Cluster<'h>, Violation> {
    let first_end =
        members.iter().copied().min_by_key(|member| member.ended_at()).expect("a cluster has members");
    let last_begin =
        members.iter().copied().max_by_key(|member| member.invoked_at).expect("a cluster has members");
    if let Some(write) = write
        && first_end.precedes(write)
    {
        let explanation =
            format!("#{} read a value before #{} began to write it.", first_end.id.0, write.id.0);
        return Err(Violation::new(ViolationKind::NotLinearizable, [first_end, write], explanation));
    }
    Ok(Cluster { value, write, first_end: value.map(|_| first_end), last_begin })
}

fn contradiction(one: &Cluster<'_>, other: &Cluster<'_>) -> Violation {
    let before = |cluster: &Cluster<'_>, then: &Cluster<'_>| match cluster.first_end {
        Some(end) => format!(
            "{} was there when #{} ended, and #{}, which began later, is about {}",
            cluster.name(),
            end.id.0,
            then.last_begin.id.0,
            then.name()
        ),
        None => format!("{} came first", cluster.name()),
    };
    let explanation = format!("{}; but {}.", before(one, other), before(other, one));
    Violation::new(ViolationKind::NotLinearizable, one.operations().chain(other.operations()), explanation)
}
