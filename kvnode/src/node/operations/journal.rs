//! What was done, when, why and on what evidence.

use kv_proto::{
    admin::v1::{GetJournalRequest, GetJournalResponse},
    peer::v1::{JournalEntries, JournalPage, Refusal},
};
use tokio::time::Instant;

use super::{Reach, names};
use crate::meta::journal;

/// Entries of a page that names no limit.
const PAGE_DEFAULT: u32 = 100;

/// A page of the journal, the newest entries first.
///
/// # Errors
/// There is no such node, or the meta group cannot be asked.
pub async fn page(
    reach: &impl Reach,
    request: GetJournalRequest,
    deadline: Instant,
) -> Result<GetJournalResponse, Refusal> {
    let GetJournalRequest { shard_id, node, limit, before } = request;
    let record = reach.record(deadline).await?;
    let node_id = match node.as_str() {
        "" => None,
        name => Some(names::node_ever(&record, "node", name)?.node_id),
    };
    let limit = if limit == 0 { PAGE_DEFAULT } else { limit };
    let page = JournalPage { before, limit, shard_id, node_id };
    let JournalEntries { entries, next_before } = reach.journal(page, deadline).await?;
    Ok(GetJournalResponse { entries: entries.iter().map(journal::entry).collect(), next_before })
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::NodeState;

    use super::*;
    use crate::node::operations::{
        model::{LONG, Model},
        wishes,
    };

    #[tokio::test(start_paused = true)]
    async fn a_page_is_asked_for_by_the_node_that_was_named() {
        let model = Model::of(3);
        let until = Instant::now() + LONG;
        let label = kv_proto::admin::v1::SetNodeLabelsRequest {
            node: "n2".to_owned(),
            zone: Some("b".to_owned()),
            actor: "kvctl".to_owned(),
        };
        wishes::label(&model, label, until).await.expect("labelled");
        let request = GetJournalRequest { node: "n2".to_owned(), before: 5, ..GetJournalRequest::default() };
        let told = page(&model, request, until).await.expect("a page");
        assert_eq!((told.entries.len(), told.next_before), (1, 9));
        assert_eq!((told.entries[0].actor.as_str(), &told.entries[0].node_ids[..]), ("kvctl", &[2][..]));
        let all = GetJournalRequest { shard_id: Some(0), limit: 3, ..GetJournalRequest::default() };
        page(&model, all, until).await.expect("a page");
        let asked = |before, limit, shard_id, node_id| JournalPage { before, limit, shard_id, node_id };
        assert_eq!(model.pages(), [asked(5, 100, None, Some(2)), asked(0, 3, Some(0), None)]);
        // A removed node has given its name up; what became of it is asked for by that name.
        model.change(|record| record.nodes[1].state = NodeState::Removed.into());
        let request = GetJournalRequest { node: "n2".to_owned(), ..GetJournalRequest::default() };
        page(&model, request, until).await.expect("a page");
        assert_eq!(model.pages().last(), Some(&asked(0, 100, None, Some(2))));
        let unknown = GetJournalRequest { node: "n9".to_owned(), ..GetJournalRequest::default() };
        assert_eq!(page(&model, unknown, until).await.expect_err("no such node").reason, "NODE_UNKNOWN");
    }
}
