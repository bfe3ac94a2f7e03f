//! What to do next, for each way to fail that a person can do something about.

use kv_client::Error;

/// One or two sentences; `None` when the error says it all.
pub fn of(error: &Error) -> Option<String> {
    match error {
        Error::Unreachable(failure) => {
            let node = failure.node.as_ref().map(ToString::to_string).unwrap_or_default();
            Some(format!(
                "nobody answers at {node}. `kvctl dev` starts a local cluster; --addr HOST:PORT[,HOST:PORT] or \
                 KVCTL_ADDR names another one"
            ))
        }
        Error::Unavailable(_) => Some(
            "nothing was written; it is safe to try again. `kvctl status` tells which shards have no leader"
                .to_owned(),
        ),
        Error::Overloaded(failure) if failure.retry_after.is_none() => {
            Some("nothing was written; the cluster is at this limit, `kvctl status` tells more".to_owned())
        }
        Error::Overloaded(_) => Some("nothing was written; it is safe to try again later".to_owned()),
        Error::OutcomeUnknown(_) => Some(
            "it may have been applied or not: read before you write again, or make it conditional with \
             --if-absent, --if-revision or --if-version"
                .to_owned(),
        ),
        Error::TimedOut(_) => {
            Some("`kvctl status` tells which nodes are silent; --timeout gives more time".to_owned())
        }
        Error::DataLoss(_) => Some(
            "the node has put its damaged replica aside; `kvctl node list` tells which, others may answer"
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
