//! Every message survives its way over the wire, and no bytes from the wire panic.

use std::collections::BTreeMap;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft_rt_tokio::TokioRuntime;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::group::type_config::{Member, Proposal};

type Request = AppendEntriesRequest<TypeConfig<TokioRuntime>>;

fn log_id(term: u64, replica: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: replica }, index }
}

fn any_log_id() -> impl Strategy<Value = LogId> {
    (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, replica, index)| log_id(term, replica, index))
}

fn any_vote() -> impl Strategy<Value = Vote> {
    (any::<u64>(), any::<u64>(), any::<bool>())
        .prop_map(|(term, node_id, committed)| Vote { leader_id: LeaderId { term, node_id }, committed })
}

fn any_membership() -> impl Strategy<Value = Membership> {
    let voters = prop::collection::vec(prop::collection::btree_set(1_u64..9, 1..5), 0..3);
    (voters, prop::collection::btree_map(1_u64..12, 1_u64..9, 0..6)).prop_map(|(voters, nodes)| {
        let mut members: BTreeMap<u64, Member> =
            nodes.into_iter().map(|(id, node)| (id, Member { node })).collect();
        for id in voters.iter().flatten() {
            members.entry(*id).or_insert(Member { node: 1 });
        }
        Membership::new(voters, members).unwrap()
    })
}

fn any_payload() -> impl Strategy<Value = EntryPayload<Proposal, u64, Member>> {
    prop_oneof![
        Just(EntryPayload::Blank),
        prop::collection::vec(any::<u8>(), 0..300)
            .prop_map(|bytes| EntryPayload::Normal(Proposal(Bytes::from(bytes)))),
        any_membership().prop_map(EntryPayload::Membership),
    ]
}

/// Append requests as leaders send them: entries follow one another, terms only grow.
fn any_append() -> impl Strategy<Value = Request> {
    let entries = prop::collection::vec((any_payload(), any::<bool>()), 0..12);
    (prop::option::of(0_u64..1000), entries, prop::option::of(any_log_id())).prop_map(
        |(previous, payloads, leader_commit)| {
            let prev_log_id = previous.map(|index| log_id(3, 1, index));
            let (mut term, mut index) = (3, previous.map_or(0, |index| index + 1));
            let mut entries = Vec::new();
            for (payload, new_term) in payloads {
                term += u64::from(new_term);
                entries.push(Entry { log_id: log_id(term, 2, index), payload });
                index += 1;
            }
            let vote = Vote { leader_id: LeaderId { term, node_id: 2 }, committed: true };
            Request { vote, prev_log_id, entries, leader_commit }
        },
    )
}

fn same(left: &Request, right: &Request) -> bool {
    left.vote == right.vote
        && left.prev_log_id == right.prev_log_id
        && left.entries == right.entries
        && left.leader_commit == right.leader_commit
}

proptest! {
    #[test]
    fn appends_survive_in_parts(request in any_append(), frame_bytes in 1_usize..2000) {
        let parts = encode_append_request(request.clone(), frame_bytes);
        let mut joined: Option<Request> = None;
        let mut expected_previous = request.prev_log_id;
        for part in parts {
            let entries: usize = part.entries.iter().map(Message::encoded_len).sum();
            prop_assert!(part.entries.len() <= 1 || entries <= frame_bytes);
            let last = last_of(&part);
            let wire = peer::AppendRequest::decode(part.encode_to_vec().as_slice()).unwrap();
            let part: Request = decode_append_request(wire).unwrap();
            prop_assert_eq!(part.prev_log_id, expected_previous);
            expected_previous = last;
            match &mut joined {
                None => joined = Some(part),
                Some(joined) => joined.entries.extend(part.entries),
            }
        }
        prop_assert!(same(&joined.unwrap(), &request));
    }

    #[test]
    fn votes_survive(vote in any_vote(), last in prop::option::of(any_log_id()), flag: bool) {
        let request = VoteRequest::<TypeConfig<TokioRuntime>> { vote, last_log_id: last, leadership_transfer: flag };
        prop_assert_eq!(&decode_vote_request::<TokioRuntime>(&encode_vote_request(&request)).unwrap(), &request);
        let response = VoteResponse::<TypeConfig<TokioRuntime>> { vote, vote_granted: flag, last_log_id: last };
        prop_assert_eq!(&decode_vote_response::<TokioRuntime>(&encode_vote_response(&response)).unwrap(), &response);
    }

    #[test]
    fn append_results_survive(previous in any_log_id(), matching in any_log_id(), vote in any_vote(), kind in 0..4) {
        let (previous, last) = (Some(previous), Some(previous.max(matching)));
        let result: StreamAppendResult<TypeConfig<TokioRuntime>> = match kind {
            0 => Ok(last),
            1 => Ok(Some(matching)),
            2 => Err(StreamAppendError::Conflict(previous.unwrap())),
            _ => Err(StreamAppendError::HigherVote(vote)),
        };
        let wire = encode_append_result::<TokioRuntime>(&result, last);
        prop_assert_eq!(decode_append_result::<TokioRuntime>(&wire, previous, last).unwrap(), result);
    }

    #[test]
    fn transfers_survive(vote in any_vote(), to: u64, last in prop::option::of(any_log_id()), actual in any_vote()) {
        let request = TransferLeaderRequest::<TypeConfig<TokioRuntime>>::new(vote, to, last);
        prop_assert_eq!(&decode_transfer_request::<TokioRuntime>(&encode_transfer_request(&request)).unwrap(), &request);
        let changed = TransferLeaderError::VoteChanged { expected: vote, actual };
        let unflushed = TransferLeaderError::LogNotFlushed { expected: last, actual: None };
        let answers = [Ok(()), Err(unflushed), Err(changed)];
        for answer in answers.into_iter().take(if actual == vote { 2 } else { 3 }) {
            let wire = encode_transfer_response::<TokioRuntime>(&answer, &vote);
            prop_assert_eq!(decode_transfer_response(&wire, &request).unwrap(), answer);
        }
    }

    #[test]
    fn snapshot_ends_survive(last in prop::option::of(any_log_id()), membership in any_membership()) {
        let vote = Vote { leader_id: LeaderId { term: u64::MAX, node_id: u64::MAX }, committed: true };
        let stored = StoredMembership::new(last, membership);
        let end = encode_end(last.as_ref(), &stored);
        prop_assert_eq!(decode_end(&end, &vote).unwrap(), (last, stored));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = peer::AppendRequest::decode(bytes.as_slice()) {
            let _ = last_of(&request);
            let _ = decode_append_request::<TokioRuntime>(request);
        }
        if let Ok(response) = peer::AppendResponse::decode(bytes.as_slice()) {
            let _ = decode_append_result::<TokioRuntime>(&response, None, None);
        }
        if let Ok(end) = peer::SnapshotEnd::decode(bytes.as_slice()) {
            let _ = decode_end(&end, &Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: true });
        }
    }
}

#[test]
fn what_no_leader_sends_is_refused() {
    let vote = Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed: true };
    let entry = |term, index| Entry { log_id: log_id(term, 1, index), payload: EntryPayload::Blank };
    let request = |vote, previous, entries: Vec<Entry>| Request {
        vote,
        prev_log_id: previous,
        entries,
        leader_commit: None,
    };
    let refused = [
        request(Vote { committed: false, ..vote }, None, vec![]),
        request(vote, None, vec![entry(3, 1)]),
        request(vote, Some(log_id(2, 1, 4)), vec![entry(3, 6)]),
        request(vote, Some(log_id(2, 1, 4)), vec![entry(3, 5), entry(3, 5)]),
        request(vote, Some(log_id(3, 1, 4)), vec![entry(2, 5)]),
        request(vote, None, vec![entry(4, 0)]),
        request(vote, Some(log_id(2, 1, u64::MAX)), vec![entry(3, 0)]),
    ];
    for request in refused {
        let wire = encode_append_request(request.clone(), usize::MAX).remove(0);
        assert!(decode_append_request::<TokioRuntime>(wire).is_err(), "{request:?}");
    }
    let joint = disk::Membership { voters: vec![disk::VoterSet::default()], members: vec![] };
    let stored = disk::StoredMembership { log_id: None, membership: Some(joint) };
    assert!(decode_end(&peer::SnapshotEnd { last_log_id: None, membership: Some(stored) }, &vote).is_err());
}
