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
            let nothing = if is_read(failure) { "" } else { "nothing was written; " };
            Some(format!("{nothing}the cluster is at this limit, `kvctl status` tells more"))
        }
        Error::Overloaded(failure) => Some(format!("{} later", again(failure))),
        Error::OutcomeUnknown(_) => Some(
            "it may have been applied or not: read before you write again, or make it conditional with \
             --if-absent, --if-revision or --if-version"
                .to_owned(),
        ),
        Error::TimedOut(failure) if is_foreign(failure) => {
            Some(format!("no answer came from a node's API. {}", client_port(failure)))
        }
        Error::TimedOut(_) => {
            Some("`kvctl status` tells which nodes are silent; --timeout gives more time".to_owned())
        }
        Error::Refused(failure) if failure.code == Code::Unimplemented => Some(client_port(failure)),
        Error::DataLoss(_) => Some(
            "the node has put its damaged replica aside; `kvctl node list` tells which. Without --node and \
             --serve-at-node other nodes are asked"
                .to_owned(),
        ),
        Error::Refused(failure) if failure.operation == "Txn" => {
            Some("keys that share a {tag} share a shard, as in `{order-7}/state`".to_owned())
        }
        Error::ChecksumMismatch { operation: "Upload", .. } => {
            Some("a damaged value is visible now: upload it again".to_owned())
        }
        Error::ChecksumMismatch { .. } | Error::LengthMismatch { .. } | Error::ValueReplaced => {
            Some("nothing was kept; try again".to_owned())
        }
        Error::Address(_)
        | Error::InvalidArgument(_)
        | Error::Refused(_)
        | Error::Internal(_)
        | Error::Protocol { .. }
        | Error::Source(_)
        | Error::Sink(_) => None,
    }
}

fn is_read(failure: &Failure) -> bool {
    !matches!(failure.operation, "Put" | "Delete" | "DeleteRange" | "Txn" | "BulkWrite" | "Upload")
}

/// That it may be tried again, and whether something was done.
fn again(failure: &Failure) -> &'static str {
    match failure.operation {
        // Each step is a write of its own.
        "DeleteRange" => "run it again, it goes on with what is left",
        _ if is_read(failure) => "it is safe to try again",
        _ => "nothing was written; it is safe to try again",
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
         are not for kvctl"
    )
}
