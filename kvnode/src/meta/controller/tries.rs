//! The last step of each subject, and when it may be taken again: one that was refused after a pause that doubles, one
//! that succeeded and had no lasting effect after a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::Pace;
use crate::meta::planner::{Action, Planned, Subject};

/// Steps that were taken.
#[derive(Default)]
pub(super) struct Tries(BTreeMap<Subject, Try>);

struct Try {
    action: Action,
    failures: u32,
    not_before: Instant,
}

impl Tries {
    /// Subjects to leave alone for now.
    pub(super) fn held(&self, now: Instant) -> BTreeSet<Subject> {
        let held = |(subject, last): (&Subject, &Try)| {
            (last.failures > 0 && last.not_before > now).then_some(*subject)
        };
        self.0.iter().filter_map(held).collect()
    }

    /// Whether a step may be taken now.
    pub(super) fn is_due(&self, planned: &Planned, now: Instant) -> bool {
        let last = self.0.get(&planned.subject);
        last.is_none_or(|last| last.action != planned.action || last.not_before <= now)
    }

    /// When the first refused step may be taken again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter(|last| last.failures > 0).map(|last| last.not_before).min()
    }

    /// Forgets steps that may be taken again and that nobody needs any more: they would wake the controller for ever.
    pub(super) fn forget_needless(&mut self, planned: &[Planned], now: Instant) {
        let wanted: BTreeSet<Subject> = planned.iter().map(|step| step.subject).collect();
        self.0.retain(|subject, last| last.not_before > now || wanted.contains(subject));
    }

    /// Notes that a step was taken.
    pub(super) fn succeeded(&mut self, planned: &Planned, now: Instant, pace: &Pace) {
        self.set(planned, 0, now + pace.repeat);
    }

    /// Notes that a step was refused.
    pub(super) fn failed(&mut self, planned: &Planned, now: Instant, pace: &Pace) {
        let failures = self.0.get(&planned.subject).map_or(0, |last| last.failures).saturating_add(1);
        let doubled: Duration = pace.first_retry.saturating_mul(1 << (failures - 1).min(16));
        self.set(planned, failures, now + doubled.min(pace.last_retry));
    }

    fn set(&mut self, planned: &Planned, failures: u32, not_before: Instant) {
        let action = planned.action.clone();
        self.0.insert(planned.subject, Try { action, failures, not_before });
    }
}
