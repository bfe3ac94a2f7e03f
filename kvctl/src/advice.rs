//! What to do next, for each way to fail that a person can do something about.

use kv_client::{Code, Error, Failure};

/// The asked node was to answer from a replica that it does not have.
const NO_REPLICA: &str = "NOT_APPLIED_NO_REPLICA";

/// One or two sentences; `None` when the error says it all.
pub fn of(error: &Error) -> Option<String> {
    match error {
        Error::Unreachable(failure) => {
            let node = failure.node.as_ref().map(ToString::to_string).unwrap_or_default();
            Some(format!(
                "nobody answers at {node}. Where --node named it, `kvctl status` tells whether it is silent, and \
                 without --node others are asked. `kvctl dev` starts a local cluster; --addr HOST:PORT[,HOST:PORT] or \
                 KVCTL_ADDR names another one"
            ))
        }
        Error::Unavailable(failure) if failure.reason.as_deref() == Some(NO_REPLICA) => Some(
            "the asked node has no replica of this key's shard: without --serve-at-node another one answers; \
             `kvctl shard list` tells which nodes have one"
                .to_owned(),
        ),
        Error::Unavailable(failure) => {
            let again = again(failure);
            Some(format!("{again}. `kvctl status` tells which nodes are silent and which shards have no leader"))
        }
        Error::Overloaded(failure) if failure.retry_after.is_none() => {
            Some(format!("{}the cluster is at this limit, `kvctl status` tells more", nothing(failure)))
        }
        Error::Overloaded(failure) => Some(format!("{} later", again(failure))),
        Error::OutcomeUnknown(failure) => Some(match Asked::of(failure) {
            Asked::Change => "it may have been done or not: run it again, what is done already stays done; \
                              `kvctl why` tells what was done"
                .to_owned(),
            Asked::Question | Asked::Write => {
                "it may have been applied or not: read before you write again, or make it conditional with \
                 --if-absent, --if-revision or --if-version"
                    .to_owned()
            }
        }),
        Error::TimedOut(failure) if is_foreign(failure) => {
            Some(format!("no answer came from a node's API. {}", client_port(failure)))
        }
        Error::TimedOut(_) => {
            Some("`kvctl status` tells which nodes are silent; --timeout gives more time".to_owned())
        }
        Error::Refused(failure) => of_refusal(failure),
        Error::DataLoss(_) => Some(
            "the node has put its damaged replica aside; `kvctl node list` tells which. Without --node and \
             --serve-at-node other nodes are asked"
                .to_owned(),
        ),
        Error::ChecksumMismatch { operation: "Upload", .. } => {
            Some("a damaged value is visible now: upload it again".to_owned())
        }
        Error::ChecksumMismatch { .. } | Error::LengthMismatch { .. } | Error::ValueReplaced => {
            Some("nothing was kept; try again".to_owned())
        }
        Error::Address(_)
        | Error::InvalidArgument(_)
        | Error::Internal(_)
        | Error::Protocol { .. }
        | Error::Source(_)
        | Error::Sink(_) => None,
    }
}

fn of_refusal(failure: &Failure) -> Option<String> {
    if failure.code == Code::Unimplemented {
        let is_new = Asked::of(failure) == Asked::Change || failure.operation == "GetJournal";
        let older = if is_new { " Or is the node of a version that does not know this yet?" } else { "" };
        return Some(format!("{}{older}", client_port(failure)));
    }
    if failure.operation == "GetJournal" && failure.reason.as_deref() == Some("NODE_UNKNOWN") {
        let advice = "`kvctl node list` shows the nodes; one that was removed is asked for by its id, as in --node 7: \
                      `kvctl why --limit 0` tells it";
        return Some(advice.to_owned());
    }
    if failure.operation == "Txn" {
        return Some("keys that share a {tag} share a shard, as in `{order-7}/state`".to_owned());
    }
    of_reason(failure.reason.as_deref()?).map(str::to_owned)
}

/// Why the state of the cluster forbids something now, and what to do about it. Of refusals and of a permit's objections.
pub fn of_reason(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "PERMIT_OPEN" => {
            "`kvctl status` tells which node has the permit; wait until it is given back or its time is over"
        }
        "CHANGE_UNDER_WAY" => {
            "the voters of a shard are changing, which takes seconds: try again; `kvctl status` shows the moves"
        }
        "QUORUM_AT_RISK" => {
            "wait until the replicas that lag or are silent have caught up: `kvctl node list` shows the lag of each node"
        }
        "NO_LEADER" => "wait until the shard has a leader again: `kvctl shard list`",
        "NODE_IS_GONE" => {
            "`kvctl node list` shows the nodes that are there, `kvctl why --node N` what became of this one"
        }
        "TOO_FEW_NODES" => {
            "add a node first (`kvnode --join HOST:PORT`), or wish for fewer replicas: \
             `kvctl cluster policy --replication-factor N`"
        }
        "NODE_STATE_CHANGED" => "not in the state that it is in: `kvctl node list` shows it",
        "NODE_NOT_EMPTY" => {
            "`kvctl node drain N --wait` empties it first; for one that will not come back, say --lost"
        }
        "NODE_IS_ALIVE" => {
            "--lost is for nodes that will not come back: drain this one, or stop it for good before you remove it"
        }
        "DATA_LOSS_NOT_ACCEPTED" => {
            "bring the node back if there is any way to; --accept-data-loss gives up what only it has, for good"
        }
        "MOVE_UNDER_WAY" | "MOVE_MOVED_ON" | "EPOCH_MOVED_ON" | "REPLICA_IS_MEMBER" => {
            "the cluster has changed meanwhile: try again"
        }
        "NODE_UNKNOWN" | "NODE_REMOVED" => "`kvctl node list` shows the nodes by id and name",
        "SHARD_UNKNOWN" => "`kvctl shard list` shows the shards",
        "PERMIT_UNKNOWN" => {
            "the permit was given back, or its time is over, or it is one of another node: ask for another one"
        }
        "NOT_APPLIED_TARGET_NOT_READY" => {
            "`kvctl shard list` shows who has a voter of the shard, `kvctl node list` who lags: choose another node, \
             or wait"
        }
        _ => return None,
    })
}

/// What kind of thing was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Changes nothing.
    Question,
    /// Of keys.
    Write,
    /// Of the cluster; done already is done.
    Change,
}

impl Asked {
    fn of(failure: &Failure) -> Self {
        match failure.operation {
            "Put" | "Delete" | "DeleteRange" | "Txn" | "BulkWrite" | "Upload" => Self::Write,
            "DrainNode" | "UndrainNode" | "RemoveNode" | "TransferLeader" | "RequestPermit"
            | "ReleasePermit" | "HandOver" | "SetNodeLabels" | "SetPolicy" | "Rewrite" | "ReplaceGroup" => {
                Self::Change
            }
            _ => Self::Question,
        }
    }
}

/// That nothing was done, where something could have been.
fn nothing(failure: &Failure) -> &'static str {
    match Asked::of(failure) {
        Asked::Question => "",
        Asked::Write => "nothing was written; ",
        Asked::Change => "nothing was changed; ",
    }
}

/// That it may be tried again, and whether something was done.
fn again(failure: &Failure) -> String {
    match failure.operation {
        // Each step is a write of its own.
        "DeleteRange" => "run it again, it goes on with what is left".to_owned(),
        _ => format!("{}it is safe to try again", nothing(failure)),
    }
}

/// Whether whatever answered does not speak gRPC as a node does.
fn is_foreign(failure: &Failure) -> bool {
    failure.reason.is_none() && failure.code == Code::Unknown
}

fn client_port(failure: &Failure) -> String {
    let node = failure.node.as_ref().map_or("it".to_owned(), ToString::to_string);
    format!(
        "is {node} the port for clients, 50051 unless it was set? The ones of nodes (10 more) and of HTTP (20 more) \
         are not for kvctl."
    )
}
