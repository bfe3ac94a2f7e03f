//! Messages of Raft as frames of `peer.v1`, and back.
//!
//! openraft trusts what it is given and panics, or corrupts its order of log ids, on messages that no leader sends;
//! so an append is checked here: its vote is committed, its entries follow one another and belong to terms that
//! the vote knows.

use kv_proto::{disk::v1 as disk, peer::v1 as peer};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft_rt::AsyncRuntime;
use prost::Message;

pub use super::codec_error::CodecError;
pub use crate::log::codec::{Entry, LeaderId, LogId, Membership, StoredMembership, Vote};
use crate::{
    group::type_config::TypeConfig,
    log::codec::{
        decode_entry, encode_entry, log_id_from_disk, log_id_to_disk, stored_membership_from_disk,
        stored_membership_to_disk, vote_from_disk, vote_to_disk,
    },
};

fn decode_vote(vote: Option<&disk::Vote>) -> Result<Vote, CodecError> {
    vote.map(vote_from_disk).ok_or(CodecError::Missing("vote"))
}

// ---- Votes ---------------------------------------------------------------------------------------------------

/// A vote request as a frame's body would carry it.
pub fn encode_vote_request<RT: AsyncRuntime>(request: &VoteRequest<TypeConfig<RT>>) -> peer::VoteRequest {
    peer::VoteRequest {
        vote: Some(vote_to_disk(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_to_disk),
        is_transfer: request.leadership_transfer,
    }
}

/// # Errors
/// When the vote is missing.
pub fn decode_vote_request<RT: AsyncRuntime>(
    request: &peer::VoteRequest,
) -> Result<VoteRequest<TypeConfig<RT>>, CodecError> {
    Ok(VoteRequest {
        vote: decode_vote(request.vote.as_ref())?,
        last_log_id: request.last_log_id.as_ref().map(log_id_from_disk),
        leadership_transfer: request.is_transfer,
    })
}

/// The answer to a vote request.
pub fn encode_vote_response<RT: AsyncRuntime>(response: &VoteResponse<TypeConfig<RT>>) -> peer::VoteResponse {
    peer::VoteResponse {
        vote: Some(vote_to_disk(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(log_id_to_disk),
    }
}

/// # Errors
/// When the vote is missing.
pub fn decode_vote_response<RT: AsyncRuntime>(
    response: &peer::VoteResponse,
) -> Result<VoteResponse<TypeConfig<RT>>, CodecError> {
    Ok(VoteResponse {
        vote: decode_vote(response.vote.as_ref())?,
        vote_granted: response.granted,
        last_log_id: response.last_log_id.as_ref().map(log_id_from_disk),
    })
}

// ---- Appends -------------------------------------------------------------------------------------------------

/// One append request as several, each with entries of at most `frame_bytes`, or a single larger one.
///
/// Together they say the same: each names the last entry of the one before it as its previous one. A request
/// without entries stays one.
pub fn encode_append_request<RT: AsyncRuntime>(
    request: AppendEntriesRequest<TypeConfig<RT>>,
    frame_bytes: usize,
) -> Vec<peer::AppendRequest> {
    let vote = vote_to_disk(&request.vote);
    let leader_commit = request.leader_commit.as_ref().map(log_id_to_disk);
    let part = |previous: &Option<disk::LogId>, entries| peer::AppendRequest {
        vote: Some(vote),
        previous: *previous,
        entries,
        leader_commit,
    };
    let mut parts = Vec::with_capacity(1);
    let mut previous = request.prev_log_id.as_ref().map(log_id_to_disk);
    let (mut entries, mut bytes) = (Vec::with_capacity(request.entries.len()), 0);
    for entry in request.entries {
        let entry = encode_entry(&entry);
        let entry_bytes = entry.encoded_len();
        if !entries.is_empty() && bytes + entry_bytes > frame_bytes {
            let full: Vec<disk::LogEntry> = std::mem::take(&mut entries);
            let last = full.last().and_then(|entry| entry.log_id);
            parts.push(part(&previous, full));
            (previous, bytes) = (last, 0);
        }
        bytes += entry_bytes;
        entries.push(entry);
    }
    parts.push(part(&previous, entries));
    parts
}

/// # Errors
/// When no leader can have sent it.
pub fn decode_append_request<RT: AsyncRuntime>(
    request: peer::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig<RT>>, CodecError> {
    let vote = decode_vote(request.vote.as_ref())?;
    let prev_log_id = request.previous.as_ref().map(log_id_from_disk);
    let entries = request.entries.into_iter().map(decode_entry).collect::<Result<Vec<_>, _>>()?;
    check_append(&vote, prev_log_id, &entries)?;
    let leader_commit = request.leader_commit.as_ref().map(log_id_from_disk);
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

fn check_append(vote: &Vote, previous: Option<LogId>, entries: &[Entry]) -> Result<(), CodecError> {
    if !vote.committed {
        return Err(CodecError::invalid("vote", "an append under a vote that no quorum granted"));
    }
    let mut last = previous;
    for entry in entries {
        let expected = last.map_or(Some(0), |id| id.index.checked_add(1));
        if Some(entry.log_id.index) != expected {
            return Err(CodecError::invalid("entries", format!("a gap before {}", entry.log_id)));
        }
        if last.is_some_and(|id| entry.log_id.leader_id < id.leader_id) {
            return Err(CodecError::invalid("entries", format!("{} goes back in terms", entry.log_id)));
        }
        last = Some(entry.log_id);
    }
    match last {
        Some(last) if last.leader_id > vote.leader_id => {
            Err(CodecError::invalid("entries", format!("{last} is beyond the leader's term")))
        }
        _ => Ok(()),
    }
}

/// The id of the entry that must precede the request's.
pub fn previous_of(request: &peer::AppendRequest) -> Option<LogId> {
    request.previous.as_ref().map(log_id_from_disk)
}

/// The id of the last entry that a request, once accepted whole, leaves behind.
pub fn last_of(request: &peer::AppendRequest) -> Option<LogId> {
    let last = request.entries.last().and_then(|entry| entry.log_id.as_ref());
    last.or(request.previous.as_ref()).map(log_id_from_disk)
}

/// The answer of a follower to a request whose last entry is `last`.
pub fn encode_append_result<RT: AsyncRuntime>(
    result: &StreamAppendResult<TypeConfig<RT>>,
    last: Option<LogId>,
) -> peer::AppendResponse {
    use peer::append_response::{Conflict, PartialSuccess, Result as Answer};
    let result = match result {
        Ok(matching) if *matching == last => Answer::Success(true),
        Ok(matching) => {
            Answer::PartialSuccess(PartialSuccess { matching: matching.as_ref().map(log_id_to_disk) })
        }
        Err(StreamAppendError::Conflict(id)) => {
            Answer::Conflict(Conflict { conflicting: Some(log_id_to_disk(id)) })
        }
        Err(StreamAppendError::HigherVote(vote)) => Answer::HigherVote(vote_to_disk(vote)),
    };
    peer::AppendResponse { result: Some(result) }
}

/// What the answer to a request with this `previous` and `last` entry says.
///
/// # Errors
/// When the answer says nothing, or is none to that request.
pub fn decode_append_result<RT: AsyncRuntime>(
    response: &peer::AppendResponse,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> Result<StreamAppendResult<TypeConfig<RT>>, CodecError> {
    use peer::append_response::Result as Answer;
    Ok(match response.result.as_ref().ok_or(CodecError::Missing("append_response.result"))? {
        Answer::Success(_) => Ok(last),
        Answer::PartialSuccess(partial) => {
            let matching = partial.matching.as_ref().map(log_id_from_disk);
            if matching > last {
                return Err(CodecError::invalid("partial_success", "more than was sent"));
            }
            Ok(matching)
        }
        Answer::Conflict(_) => {
            let previous = previous
                .ok_or_else(|| CodecError::invalid("conflict", "with a request that starts the log"))?;
            Err(StreamAppendError::Conflict(previous))
        }
        Answer::HigherVote(vote) => Err(StreamAppendError::HigherVote(decode_vote(Some(vote))?)),
    })
}

/// The unary form of a stream's answer.
pub fn append_response<RT: AsyncRuntime>(
    result: &StreamAppendResult<TypeConfig<RT>>,
    last: Option<LogId>,
) -> AppendEntriesResponse<TypeConfig<RT>> {
    match result {
        Ok(matching) if *matching == last => AppendEntriesResponse::Success,
        Ok(matching) => AppendEntriesResponse::PartialSuccess(*matching),
        Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
        Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(*vote),
    }
}

// ---- Transfer of leadership ----------------------------------------------------------------------------------

/// A leader's message that another replica shall lead.
pub fn encode_transfer_request<RT: AsyncRuntime>(
    request: &TransferLeaderRequest<TypeConfig<RT>>,
) -> peer::TransferRequest {
    peer::TransferRequest {
        from_leader: Some(vote_to_disk(request.from_leader())),
        to_replica: *request.to_node_id(),
        last_log_id: request.last_log_id().map(log_id_to_disk),
    }
}

/// # Errors
/// When the leader's vote is missing.
pub fn decode_transfer_request<RT: AsyncRuntime>(
    request: &peer::TransferRequest,
) -> Result<TransferLeaderRequest<TypeConfig<RT>>, CodecError> {
    let vote = decode_vote(request.from_leader.as_ref())?;
    let last_log_id = request.last_log_id.as_ref().map(log_id_from_disk);
    Ok(TransferLeaderRequest::new(vote, request.to_replica, last_log_id))
}

/// The answer: the replica's vote, which tells why when it was not accepted.
pub fn encode_transfer_response<RT: AsyncRuntime>(
    response: &TransferLeaderResponse<TypeConfig<RT>>,
    from_leader: &Vote,
) -> peer::TransferResponse {
    let (vote, accepted) = match response {
        Ok(()) => (from_leader, true),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => (actual, false),
        Err(TransferLeaderError::LogNotFlushed { expected: _, actual: _ }) => (from_leader, false),
    };
    peer::TransferResponse { vote: Some(vote_to_disk(vote)), accepted }
}

/// # Errors
/// When the vote is missing.
pub fn decode_transfer_response<RT: AsyncRuntime>(
    response: &peer::TransferResponse,
    request: &TransferLeaderRequest<TypeConfig<RT>>,
) -> Result<TransferLeaderResponse<TypeConfig<RT>>, CodecError> {
    let actual = decode_vote(response.vote.as_ref())?;
    let expected = *request.from_leader();
    Ok(match response.accepted {
        true => Ok(()),
        false if actual != expected => Err(TransferLeaderError::VoteChanged { expected, actual }),
        false => {
            Err(TransferLeaderError::LogNotFlushed { expected: request.last_log_id().copied(), actual: None })
        }
    })
}

// ---- Snapshots -----------------------------------------------------------------------------------------------

/// The vote under which a snapshot is sent.
pub fn encode_offer(vote: &Vote) -> peer::SnapshotOffer {
    peer::SnapshotOffer { vote: Some(vote_to_disk(vote)) }
}

/// # Errors
/// When the vote is missing or no quorum granted it.
pub fn decode_offer(offer: &peer::SnapshotOffer) -> Result<Vote, CodecError> {
    let vote = decode_vote(offer.vote.as_ref())?;
    match vote.committed {
        true => Ok(vote),
        false => Err(CodecError::invalid("vote", "a snapshot under a vote that no quorum granted")),
    }
}

/// The receiver's vote after it took, or refused, a snapshot.
pub fn encode_done(vote: &Vote) -> peer::SnapshotDone {
    peer::SnapshotDone { vote: Some(vote_to_disk(vote)) }
}

/// # Errors
/// When the vote is missing.
pub fn decode_done(done: &peer::SnapshotDone) -> Result<Vote, CodecError> {
    decode_vote(done.vote.as_ref())
}

/// What a snapshot holds, for its last chunk.
pub fn encode_end(last_log_id: Option<&LogId>, membership: &StoredMembership) -> peer::SnapshotEnd {
    peer::SnapshotEnd {
        last_log_id: last_log_id.map(log_id_to_disk),
        membership: Some(stored_membership_to_disk(membership)),
    }
}

/// # Errors
/// When the membership is missing or invalid, or the last entry is beyond the sender's term.
pub fn decode_end(
    end: &peer::SnapshotEnd,
    vote: &Vote,
) -> Result<(Option<LogId>, StoredMembership), CodecError> {
    let membership =
        stored_membership_from_disk(end.membership.as_ref().ok_or(CodecError::Missing("membership"))?)?;
    let last_log_id = end.last_log_id.as_ref().map(log_id_from_disk);
    match last_log_id {
        Some(last) if last.leader_id > vote.leader_id => {
            Err(CodecError::invalid("last_log_id", format!("{last} is beyond the sender's term")))
        }
        _ => Ok((last_log_id, membership)),
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
