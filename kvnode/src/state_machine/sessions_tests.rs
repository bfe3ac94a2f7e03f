use kv_proto::peer::v1::refusal::Kind;
use proptest::prelude::*;

use super::*;
use crate::state_machine::{
    limits::SESSION_IDLE_MS,
    session::{BLOCK_SEQUENCES, id_of},
};

const SHARD: ShardId = ShardId(3);
const TTL_MS: u32 = 1_000;

fn stamp(session_id: u64, sequence: u64, lowest_outstanding: u64) -> Stamp {
    Stamp { session_id, sequence, lowest_outstanding, fingerprint: sequence * 7 }
}

/// A write as apply treats it: its outcome, `Ok(true)` when it is a replay.
fn write(sessions: &mut Sessions, stamp: &Stamp, now_ms: u64, revision: u64) -> Result<(u64, bool), String> {
    match sessions.judge(stamp, now_ms).map_err(|refused| refused.reason)? {
        Verdict::Replay(stored) => Ok((stored.revision, true)),
        Verdict::Apply => {
            sessions.keep(stamp, now_ms, revision, true, 1);
            Ok((revision, false))
        }
    }
}

fn at(log_time_ms: u64, sessions_opened: u64) -> GroupRecord {
    GroupRecord { log_time_ms, sessions_opened, ..GroupRecord::default() }
}

/// What is on disk.
type Disk = BTreeMap<(u64, u64), SessionRecord>;

fn seal(sessions: &mut Sessions, disk: &mut Disk) {
    for (name, record) in sessions.take_changes() {
        match record {
            Some(record) => disk.insert(name, record),
            None => disk.remove(&name),
        };
    }
}

fn restarted(disk: &Disk) -> Sessions {
    Sessions::read(SHARD, disk.iter().map(|(name, record)| (*name, record.clone()))).unwrap()
}

fn assert_alike(one: &Sessions, other: &Sessions) {
    assert_eq!(one.by_id, other.by_id);
    assert_eq!(one.kept, other.kept);
}

// ---- The model: everything that ever happened, and the rules said once more -------------------------------------

struct ModelSession {
    ttl_ms: u64,
    touched_ms: u64,
    lowest: u64,
    applied: BTreeMap<u64, (u64, u64)>,
}

#[derive(Default)]
struct Model {
    sessions: Vec<Option<ModelSession>>,
    now_ms: u64,
    revision: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Open { ttl_ms: u32 },
    Close { session: usize },
    Write { session: usize, sequence: u64, lowest: u64, other: bool },
    Tick,
    Wait { ms: u64 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let session = 0..4_usize;
    let retry = (session.clone(), 1..12_u64, 0..3_u64).prop_map(|(session, sequence, behind)| Step::Write {
        session,
        sequence,
        lowest: sequence.saturating_sub(behind * 4).max(1),
        other: false,
    });
    let far = (session.clone(), 1..700_u64, any::<prop::sample::Index>(), prop::bool::weighted(0.1))
        .prop_map(|(session, sequence, lowest, other)| Step::Write {
            session,
            sequence,
            lowest: 1 + lowest.index(usize::try_from(sequence).unwrap()) as u64 / 2,
            other,
        });
    prop_oneof![
        2 => (1_000..5_000_u32).prop_map(|ttl_ms| Step::Open { ttl_ms }),
        1 => session.prop_map(|session| Step::Close { session }),
        12 => retry,
        12 => far,
        1 => Just(Step::Tick),
        3 => (0..1_500_u64).prop_map(|ms| Step::Wait { ms }),
        2 => Just(Step::Restart),
    ]
}

impl Model {
    fn write(&mut self, session: usize, stamp: &Stamp) -> Result<(u64, bool), String> {
        let now_ms = self.now_ms;
        let live = self.sessions.get_mut(session).and_then(Option::as_mut);
        let Some(live) = live.filter(|live| now_ms <= live.touched_ms + live.ttl_ms) else {
            return Err(reason::SESSION_EXPIRED.to_owned());
        };
        if stamp.sequence < live.lowest {
            return Err(reason::SEQUENCE_ACKNOWLEDGED.to_owned());
        }
        let before = live.applied.get(&stamp.sequence).copied();
        if before.is_some_and(|(fingerprint, _)| fingerprint != stamp.fingerprint) {
            return Err(reason::INVALID_ARGUMENT.to_owned());
        }
        live.touched_ms = now_ms;
        live.lowest = live.lowest.max(stamp.lowest_outstanding);
        if let Some((_, revision)) = before {
            return Ok((revision, true));
        }
        self.revision += 1;
        live.applied.insert(stamp.sequence, (stamp.fingerprint, self.revision));
        Ok((self.revision, false))
    }

    fn kept(&self) -> usize {
        let of = |session: &ModelSession| session.applied.range(session.lowest..).count();
        self.sessions.iter().flatten().map(of).sum()
    }
}

proptest! {
    /// Two tables take the same steps; one of them is read from disk again and again, the other never.
    #[test]
    fn the_table_does_what_a_map_of_everything_does_and_a_restart_changes_nothing(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let (mut model, mut group) = (Model::default(), at(0, 0));
        let (mut steady, mut restarting, mut disk) = (Sessions::new(SHARD), Sessions::new(SHARD), Disk::new());
        for step in steps {
            match step {
                Step::Open { ttl_ms } => {
                    let mut other = group.clone();
                    prop_assert_eq!(steady.open(&mut group, ttl_ms), restarting.open(&mut other, ttl_ms));
                    prop_assert_eq!(&group, &other);
                    model.sessions.push(Some(ModelSession {
                        ttl_ms: ttl_ms.into(), touched_ms: model.now_ms, lowest: 1, applied: BTreeMap::new(),
                    }));
                }
                Step::Close { session } => {
                    let id = id_of(SHARD, session as u64 + 1).unwrap();
                    prop_assert!(steady.close(id).is_ok() && restarting.close(id).is_ok());
                    if let Some(closed) = model.sessions.get_mut(session) {
                        *closed = None;
                    }
                }
                Step::Write { session, sequence, lowest, other } => {
                    let id = id_of(SHARD, session as u64 + 1).unwrap();
                    let mut stamp = stamp(id, sequence, lowest);
                    stamp.fingerprint += u64::from(other);
                    let revision = model.revision + 1;
                    let expected = model.write(session, &stamp);
                    prop_assert_eq!(&write(&mut steady, &stamp, group.log_time_ms, revision), &expected);
                    prop_assert_eq!(&write(&mut restarting, &stamp, group.log_time_ms, revision), &expected);
                }
                Step::Tick => {
                    steady.sweep(group.log_time_ms);
                    restarting.sweep(group.log_time_ms);
                    let now_ms = model.now_ms;
                    for session in &mut model.sessions {
                        session.take_if(|session| now_ms > session.touched_ms + session.ttl_ms);
                    }
                    prop_assert_eq!(steady.open_now(), model.sessions.iter().flatten().count());
                }
                Step::Wait { ms } => {
                    group.log_time_ms += ms;
                    model.now_ms += ms;
                }
                Step::Restart => {
                    seal(&mut restarting, &mut disk);
                    restarting = restarted(&disk);
                }
            }
            assert_alike(&steady, &restarting);
            prop_assert_eq!(steady.kept(), model.kept());
        }
        // Nothing is left on disk of what is not there.
        seal(&mut restarting, &mut disk);
        let blocks: usize = restarting.by_id.values().map(|session| session.blocks().count()).sum();
        prop_assert_eq!(disk.len(), blocks);
    }

    #[test]
    fn no_stamp_makes_it_panic(
        stamps in prop::collection::vec((any::<[u64; 4]>(), any::<bool>(), any::<u64>()), 1..20),
    ) {
        let mut sessions = Sessions::new(SHARD);
        let id = sessions.open(&mut at(0, 0), TTL_MS).unwrap();
        for ([other, sequence, lowest_outstanding, fingerprint], ours, now_ms) in stamps {
            let session_id = if ours { id } else { other };
            let stamp = Stamp { session_id, sequence, lowest_outstanding, fingerprint };
            write(&mut sessions, &stamp, now_ms, 1).ok();
        }
    }
}

// ---- Rules one by one -------------------------------------------------------------------------------------------

#[test]
fn an_id_names_its_shard_and_another_shard_refuses_it() {
    let mut sessions = Sessions::new(SHARD);
    let id = sessions.open(&mut at(0, 41), TTL_MS).unwrap();
    assert_eq!((session::shard_of(id), id & 0xffff_ffff_ffff), (SHARD, 42));
    let foreign = id_of(ShardId(4), 42).unwrap();
    let refused = sessions.judge(&stamp(foreign, 1, 1), 0).unwrap_err();
    assert_eq!((refused.kind(), refused.field.as_str()), (Kind::InvalidArgument, "session_id"));
    assert_eq!(sessions.close(foreign).unwrap_err().field, "session_id");
    assert_eq!(id_of(ShardId(1 << 16), 1), None, "there is no room for it in an id");
    assert_eq!(id_of(SHARD, 1 << 48), None);
}

#[test]
fn a_session_lives_as_long_as_it_is_used_and_not_a_moment_longer() {
    let mut sessions = Sessions::new(SHARD);
    let id = sessions.open(&mut at(0, 0), TTL_MS).unwrap();
    let ttl = u64::from(TTL_MS);
    assert_eq!(write(&mut sessions, &stamp(id, 1, 1), ttl, 2), Ok((2, false)));
    assert_eq!(write(&mut sessions, &stamp(id, 1, 1), 2 * ttl, 3), Ok((2, true)), "a retry is a use");
    let refused = Err(reason::SESSION_EXPIRED.to_owned());
    assert_eq!(write(&mut sessions, &stamp(id, 1, 1), 3 * ttl + 1, 3), refused);
    sessions.sweep(3 * ttl);
    assert_eq!((sessions.open_now(), sessions.kept()), (1, 1));
    sessions.sweep(3 * ttl + 1);
    assert_eq!((sessions.open_now(), sessions.kept()), (0, 0));
    assert_eq!(sessions.take_tally().expired, 1);
}

#[test]
fn a_refused_write_is_no_use_of_its_session() {
    let mut sessions = Sessions::new(SHARD);
    let id = sessions.open(&mut at(0, 0), TTL_MS).unwrap();
    write(&mut sessions, &stamp(id, 5, 5), 0, 2).unwrap();
    let before = sessions.by_id.clone();
    let mut disk = Disk::new();
    seal(&mut sessions, &mut disk);
    let reused = Stamp { fingerprint: 1, ..stamp(id, 5, 5) };
    for stamp in [stamp(id, 4, 4), reused, stamp(id, 9_000, 9)] {
        sessions.judge(&stamp, 900).unwrap_err();
    }
    assert_eq!(sessions.by_id, before);
    assert_eq!(sessions.take_changes().count(), 0);
    assert_eq!(sessions.take_tally().refused.len(), 3);
}

#[test]
fn a_client_that_acknowledges_nothing_meets_the_end_of_its_window() {
    let mut sessions = Sessions::new(SHARD);
    let id = sessions.open(&mut at(0, 0), TTL_MS).unwrap();
    let window = u64::from(SESSION_OUTCOMES_MAX);
    for sequence in 1..=window {
        assert_eq!(write(&mut sessions, &stamp(id, sequence, 1), 0, sequence), Ok((sequence, false)));
    }
    let full = Err(reason::SESSION_WINDOW_FULL.to_owned());
    assert_eq!(write(&mut sessions, &stamp(id, window + 1, 1), 0, 9_999), full);
    assert_eq!(write(&mut sessions, &stamp(id, 7, 1), 0, 9_999), Ok((7, true)), "retries go on");
    assert_eq!(write(&mut sessions, &stamp(id, window + 1, 2), 0, 9_999), Ok((9_999, false)));
    assert_eq!(sessions.kept() as u64, window);
}

#[test]
fn sessions_that_acknowledge_nothing_leave_room_for_others_and_a_write_may_make_its_own() {
    let (mut sessions, mut group) = (Sessions::new(SHARD), at(0, 0));
    let window = u64::from(SESSION_OUTCOMES_MAX);
    let full = reason::SESSION_WINDOW_FULL;
    // Each keeps as much as it may; from some time on that is half of what is left.
    let mut fill = || {
        let id = sessions.open(&mut group, TTL_MS).unwrap();
        let refused = (1..=window + 1).find_map(|sequence| {
            let refused = write(&mut sessions, &stamp(id, sequence, 1), 0, 1).err()?;
            assert_eq!(refused, full);
            Some(sequence)
        });
        (id, refused.unwrap() - 1)
    };
    let others: Vec<(u64, u64)> = (0..20).map(|_| fill()).collect();
    let kept: Vec<u64> = others.iter().map(|(_, kept)| *kept).collect();
    assert_eq!(kept[..15], [window; 15]);
    assert_eq!(kept[15..], [window / 2, window / 4, window / 8, window / 16, window / 32]);
    let modest = sessions.open(&mut group, TTL_MS).unwrap();
    for sequence in 1..10_000_u64 {
        let lowest = sequence.saturating_sub(50).max(1);
        assert_eq!(write(&mut sessions, &stamp(modest, sequence, lowest), 0, 1), Ok((1, false)));
    }
    assert!(sessions.kept() < SHARD_OUTCOMES_MAX);
    let (greedy, _) = others[0];
    assert_eq!(write(&mut sessions, &stamp(greedy, window + 1, 1), 0, 1), Err(full.to_owned()));
    assert_eq!(write(&mut sessions, &stamp(greedy, window + 10, window), 0, 1), Ok((1, false)));
}

#[test]
fn at_the_cap_an_idle_session_that_keeps_nothing_gives_way_and_no_other() {
    let (mut sessions, mut group) = (Sessions::new(SHARD), at(0, 0));
    let ttl = 100_000;
    let ids: Vec<u64> = (0..SHARD_SESSIONS_MAX).map(|_| sessions.open(&mut group, ttl).unwrap()).collect();
    let full = |result: Result<u64, Refusal>| result.unwrap_err().reason == reason::SESSIONS_FULL;
    group.log_time_ms = SESSION_IDLE_MS - 1;
    let opened = group.sessions_opened;
    assert!(full(sessions.open(&mut group, ttl)));
    assert_eq!(group.sessions_opened, opened);
    group.log_time_ms = SESSION_IDLE_MS;
    for id in &ids[1..] {
        write(&mut sessions, &stamp(*id, 1, 1), group.log_time_ms, 2).unwrap();
    }
    let newest = sessions.open(&mut group, ttl).unwrap();
    assert!(!sessions.by_id.contains_key(&ids[0]) && sessions.by_id.contains_key(&newest));
    group.log_time_ms += SESSION_IDLE_MS - 1;
    assert!(full(sessions.open(&mut group, ttl)), "all others keep an outcome, and the new one is young");
    group.log_time_ms += 1;
    sessions.open(&mut group, ttl).unwrap();
    assert!(!sessions.by_id.contains_key(&newest));
    assert_eq!(sessions.take_tally().evicted, 2);
    group.log_time_ms += u64::from(ttl) + 1;
    sessions.open(&mut group, ttl).unwrap();
    assert_eq!(sessions.open_now(), SHARD_SESSIONS_MAX - SWEPT_SESSIONS_MAX + 1, "expired ones give way");
}

#[test]
fn only_blocks_that_changed_are_written_and_empty_ones_go() {
    let mut sessions = Sessions::new(SHARD);
    let id = sessions.open(&mut at(0, 0), TTL_MS).unwrap();
    let mut disk = Disk::new();
    let mut changed = |sessions: &mut Sessions| {
        let before = disk.clone();
        seal(sessions, &mut disk);
        let all: std::collections::BTreeSet<_> = before.keys().chain(disk.keys()).copied().collect();
        all.into_iter()
            .filter(|name| before.get(name) != disk.get(name))
            .map(|(_, block)| block)
            .collect::<Vec<_>>()
    };
    let end = 3 * BLOCK_SEQUENCES;
    assert_eq!(changed(&mut sessions), [0]);
    for sequence in 1..end {
        write(&mut sessions, &stamp(id, sequence, 1), 0, 1).unwrap();
    }
    assert_eq!(changed(&mut sessions), [0, 1, 2]);
    write(&mut sessions, &stamp(id, end, 1), 0, 1).unwrap();
    assert_eq!(changed(&mut sessions), [3]);
    write(&mut sessions, &stamp(id, end + 1, 2 * BLOCK_SEQUENCES - 1), 7, 1).unwrap();
    assert_eq!(
        changed(&mut sessions),
        [0, 1, 3],
        "the first is emptied, and the second tells of the session"
    );
    write(&mut sessions, &stamp(id, end + 2, end + 2), 7, 1).unwrap();
    assert_eq!(changed(&mut sessions), [1, 2, 3]);
    let one_after_the_other = stamp(id, end + 3, end + 3);
    write(&mut sessions, &one_after_the_other, 8, 1).unwrap();
    assert_eq!(changed(&mut sessions), [3]);
    write(&mut sessions, &one_after_the_other, 9, 1).unwrap();
    assert_eq!(changed(&mut sessions), [3], "a replay is a use");
    sessions.close(id).unwrap();
    assert_eq!(changed(&mut sessions), [3]);
    assert!(disk.is_empty());
}

#[test]
fn damaged_records_are_found() {
    let id = id_of(SHARD, 1).unwrap();
    let outcome = |sequence| StoredOutcome { sequence, ..StoredOutcome::default() };
    let first = |lowest_outstanding, outcomes: &[u64]| SessionRecord {
        ttl_ms: TTL_MS,
        touched_ms: 5,
        lowest_outstanding,
        outcomes: outcomes.iter().map(|sequence| outcome(*sequence)).collect(),
    };
    let next = |outcomes: &[u64]| SessionRecord {
        outcomes: first(1, outcomes).outcomes,
        ..SessionRecord::default()
    };
    let read = |records: &[(u64, SessionRecord)]| {
        let records = records.iter().map(|(block, record)| ((id, *block), record.clone()));
        Sessions::read(SHARD, records).map(|sessions| sessions.kept())
    };
    let far = BLOCK_SEQUENCES;
    assert_eq!(read(&[(0, first(1, &[1, 2])), (1, next(&[far]))]), Ok(3));
    assert_eq!(read(&[(1, first(far, &[]))]), Ok(0));
    for (bad, what) in [
        (vec![(0, first(1, &[2, 2]))], "twice the same"),
        (vec![(0, first(1, &[far]))], "of another block"),
        (vec![(0, first(2, &[1]))], "acknowledged"),
        (vec![(0, first(0, &[]))], "no lowest"),
        (vec![(0, next(&[1]))], "the first is lost"),
        (vec![(0, first(far, &[]))], "the first is another"),
        (vec![(0, first(1, &[])), (1, first(1, &[far]))], "two that tell of the session"),
        (vec![(0, first(1, &[])), (1, next(&[]))], "nothing"),
    ] {
        assert!(read(&bad).is_err(), "{what}");
    }
    let foreign = id_of(ShardId(9), 1).unwrap();
    assert!(Sessions::read(SHARD, [((foreign, 0), first(1, &[]))]).is_err());
}
