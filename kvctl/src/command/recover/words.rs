//! A plan in words: what survives, what is kept, what is lost, and what a person must be sure of. Pure.

use kv_client::admin::LogPosition;

use super::plan::{Fate, Group, META, Plan, Recovery, Seat, Seen};

/// How far revisions and session numbers of a recovered shard jump, as the nodes do it.
const REVISION_GAP: &str = "1,000,000";

/// The plan, line by line.
pub fn plan(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> = plan.warnings.iter().map(|warning| format!("warning: {warning}")).collect();
    for group in &plan.groups {
        lines.extend(fate(plan, group));
    }
    match &plan.seat {
        Seat::Nobody(why) => lines.push(format!("It cannot be decided now: {why}.")),
        Seat::Online(address) => lines.push(format!("Meta decides it, asked at {address}.")),
        Seat::Offline(seat) => {
            lines.push(format!("Meta's replica on {} decides it, in its own log.", plan.name(seat.node_id)));
        }
        Seat::Idle => {}
    }
    lines
}

/// What must be so, and nobody but a person can know. Empty: nothing is done.
pub fn conditions(plan: &Plan) -> Vec<String> {
    if plan.recoveries().next().is_none() {
        return Vec::new();
    }
    let mut lines = Vec::new();
    if !plan.lost.is_empty() {
        let lost: Vec<String> = plan.lost.iter().map(|node| plan.name(*node)).collect();
        let lost = lost.join(", ");
        lines.push(format!(
            "Given up for good: {lost}. Be sure that none of them runs, and that none can be started: one that can be started \
             with its disk is to be started instead, and less is lost, perhaps nothing."
        ));
        lines.push(
            "Should they come back all the same, they stay out as soon as they reach a node that was recovered. Where they \
             cannot reach one (a network that is cut in two, other addresses), a majority of them goes on as the cluster that \
             it was, takes writes, and nobody there can know better: see to it that this cannot happen."
                .to_owned(),
        );
    }
    lines.push(format!(
        "Revisions and session numbers of a recovered shard jump by {REVISION_GAP}, so that none that was lost is given out \
         again."
    ));
    lines
}

fn title(shard: u32) -> String {
    if shard == META { "meta".to_owned() } else { format!("shard {shard}") }
}

fn fate(plan: &Plan, group: &Group) -> Vec<String> {
    let title = title(group.shard);
    match &group.fate {
        Fate::Keeps { present, needed } => vec![format!(
            "{title}: {present} voters survive and {needed} are needed: it keeps its quorum, and there is nothing to recover. \
             Start the nodes."
        )],
        Fate::Unformed => {
            vec![format!(
                "{title}: its group was never formed, as far as meta knows, and took no write: nothing to recover."
            )]
        }
        Fate::Gone => vec![format!(
            "{title}: NOTHING SURVIVES on these disks that could be used. All its data are lost, and nobody will serve its keys."
        )],
        Fate::Recover(recovery) => recovered(plan, group, recovery),
    }
}

fn recovered(plan: &Plan, group: &Group, recovery: &Recovery) -> Vec<String> {
    let Recovery { chosen, present, needed, decided, expected_group_id } = recovery;
    let title = title(group.shard);
    let on = format!("replica {} on {}", chosen.replica_id, plan.name(chosen.node_id));
    let mut lines = Vec::new();
    lines.push(match decided {
        Some(group_id) => {
            format!("{title}: it was decided before that it goes on in group {group_id} with {on}, which is to be rewritten.")
        }
        None if chosen.group_id < *expected_group_id => format!(
            "{title}: meta knows it to go on in group {expected_group_id}, of which nothing survives. It goes on with {on} of group \
             {}, which was given up before: whatever was written since then is lost.",
            chosen.group_id
        ),
        None if present >= needed && chosen.group_id == *expected_group_id => format!(
            "{title}: {present} of its voters survive and {needed} are needed, but it has replicas on nodes that meta does not know \
             any more when it goes on. It goes on with {on} alone, in a new group."
        ),
        None if present >= needed => format!(
            "{title}: {present} voters of group {} survive, {needed} are needed, and meta has lost track of that group: it \
             knows group {expected_group_id}. It goes on with {on}, in a new group.",
            chosen.group_id
        ),
        None => format!(
            "{title}: {present} of its voters survive, {needed} are needed: its quorum is lost. It goes on with {on} alone, in \
             a new group."
        ),
    });
    lines.extend(kept(plan, chosen));
    if !chosen.votes {
        lines.push("    It was a learner: it has what the leader had sent it.".to_owned());
    }
    lines.extend(others(plan, group, chosen));
    lines
}

/// What is there and what is not, exactly.
fn kept(plan: &Plan, chosen: &Seen) -> Vec<String> {
    let Some(last) = chosen.last else { return Vec::new() };
    let mut lines = vec![format!(
        "    Kept: everything up to {}. Lost: whatever was acknowledged after that, if anything was; nobody can tell.",
        position(&last)
    )];
    let known = chosen.committed.map_or(0, |committed| committed.index);
    if known < last.index {
        lines.push(format!(
            "    {} knew entries up to index {known} to be committed: those from {} to {} may never have been acknowledged, and \
             happen now.",
            plan.name(chosen.node_id),
            known + 1,
            last.index
        ));
    }
    lines
}

fn others(plan: &Plan, group: &Group, chosen: &Seen) -> Vec<String> {
    let others = group.survivors.iter().filter(|seen| seen.replica_id != chosen.replica_id);
    others
        .map(|seen| {
            let on = format!("replica {} on {}", seen.replica_id, plan.name(seen.node_id));
            match (&seen.last, seen.sound) {
                (_, false) => format!("    Given up: {on}, which cannot be used."),
                (Some(last), true) if reaches_further(seen, chosen) => format!(
                    "    Given up: {on}, whose log ends at {}: FURTHER than that of the one that was decided on before. What it \
                     has beyond that is lost.",
                    position(last)
                ),
                (Some(last), true) => format!("    Given up: {on}, whose log ends at {}.", position(last)),
                (None, true) => format!("    Given up: {on}, which never had anything."),
            }
        })
        .collect()
}

/// A survivor that came to light after the decision.
fn reaches_further(seen: &Seen, chosen: &Seen) -> bool {
    let reach = |seen: &Seen| (seen.group_id, seen.last.map(|last| (last.term, last.index)));
    reach(seen) > reach(chosen)
}

fn position(at: &LogPosition) -> String {
    format!("term {}, index {}", at.term, at.index)
}
