//! What a well-formed request to the administration is. Pure; every refusal names the field.
//!
//! Whether a node or shard of that name exists is not known here.

use kv_proto::admin::v1::{
    BootstrapRequest, DrainNodeRequest, GetJournalRequest, HandOverRequest, JoinRequest,
    ReleasePermitRequest, RemoveNodeRequest, RequestPermitRequest, SetNodeLabelsRequest, SetPolicyRequest,
    TransferLeaderRequest, UndrainNodeRequest,
};

use crate::api::validate::{Checked, Violation};

/// Most shards of a cluster.
const SHARDS_MAX: u32 = 256;
/// Longest name, token, zone, version or actor, bytes.
const NAME_BYTES_MAX: usize = 253;
/// Longest reason, bytes: a few sentences, since the journal keeps ten thousand of them.
const REASON_BYTES_MAX: usize = 1_000;
/// How long a permit may be asked for, ms: a restart takes seconds, and a node that is away for an hour is being repaired.
const PERMIT_TTL_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;
/// After how much silence a node may be called lost, ms: longer than a restart, and within a week.
const LOST_NODE_GRACE_MS: std::ops::RangeInclusive<u64> = 10_000..=604_800_000;
/// How many replicas may move at once.
const MOVES_AT_ONCE: std::ops::RangeInclusive<u32> = 1..=64;
/// Most entries of a page of the journal.
const JOURNAL_PAGE_MAX: u32 = 1_000;

/// Checks a Bootstrap.
pub fn bootstrap(request: &BootstrapRequest) -> Checked {
    short("token", &request.token)?;
    if request.token.is_empty() {
        return Err(Violation::new("token", "must not be empty: it makes a retry the same bootstrap"));
    }
    if request.shards > SHARDS_MAX {
        return Err(Violation::new("shards", format!("must be 1 to {SHARDS_MAX}, or 0 for the default")));
    }
    if !matches!(request.replication_factor, 0 | 1 | 3 | 5 | 7) {
        return Err(Violation::new("replication_factor", "must be 1, 3, 5 or 7, or 0 for the default"));
    }
    Ok(())
}

/// Checks a Join.
pub fn join(request: &JoinRequest) -> Checked {
    let node = request.node.as_ref().ok_or_else(|| Violation::new("node", "must be given"))?;
    for (field, text) in
        [("node.name", &node.name), ("node.zone", &node.zone), ("node.version", &node.version)]
    {
        short(field, text)?;
    }
    if !node.name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return Err(Violation::new("node.name", "must begin with a letter"));
    }
    if uuid::Uuid::parse_str(&node.disk_uuid).map_or(true, |uuid| uuid.is_nil()) {
        return Err(Violation::new("node.disk_uuid", "must be a UUID"));
    }
    address("node.client_address", &node.client_address)?;
    address("node.peer_address", &node.peer_address)
}

/// Checks a DrainNode.
pub fn drain(request: &DrainNodeRequest) -> Checked {
    given("node", &request.node)?;
    asked(&request.actor, &request.reason)
}

/// Checks an UndrainNode.
pub fn undrain(request: &UndrainNodeRequest) -> Checked {
    given("node", &request.node)?;
    asked(&request.actor, &request.reason)
}

/// Checks a RemoveNode.
pub fn remove(request: &RemoveNodeRequest) -> Checked {
    given("node", &request.node)?;
    if request.accept_data_loss && !request.lost {
        return Err(Violation::new("accept_data_loss", "only together with lost"));
    }
    asked(&request.actor, &request.reason)
}

/// Checks a TransferLeader.
pub fn transfer(request: &TransferLeaderRequest) -> Checked {
    given("to_node", &request.to_node)?;
    asked(&request.actor, &request.reason)
}

/// Checks a RequestPermit.
pub fn permit(request: &RequestPermitRequest) -> Checked {
    given("node", &request.node)?;
    if request.ttl_ms != 0 && !PERMIT_TTL_MS.contains(&request.ttl_ms) {
        let (least, most) = PERMIT_TTL_MS.into_inner();
        return Err(Violation::new("ttl_ms", format!("must be {least} to {most}, or 0 for the default")));
    }
    asked(&request.actor, &request.reason)
}

/// Checks a ReleasePermit.
pub fn release(request: &ReleasePermitRequest) -> Checked {
    given("token", &request.token)?;
    asked(&request.actor, "")
}

/// Checks a HandOver.
pub fn hand_over(request: &HandOverRequest) -> Checked {
    given("node", &request.node)?;
    given("permit_token", &request.permit_token)
}

/// Checks a SetNodeLabels.
pub fn labels(request: &SetNodeLabelsRequest) -> Checked {
    given("node", &request.node)?;
    short("zone", request.zone.as_deref().unwrap_or_default())?;
    asked(&request.actor, "")
}

/// Checks a SetPolicy, except that there are enough nodes.
pub fn policy(request: &SetPolicyRequest) -> Checked {
    if request.replication_factor.is_some_and(|factor| !matches!(factor, 1 | 3 | 5 | 7)) {
        return Err(Violation::new("replication_factor", "must be 1, 3, 5 or 7"));
    }
    if request.lost_node_grace_ms.is_some_and(|grace| !LOST_NODE_GRACE_MS.contains(&grace)) {
        let (least, most) = LOST_NODE_GRACE_MS.into_inner();
        return Err(Violation::new("lost_node_grace_ms", format!("must be {least} to {most}")));
    }
    if request.moves_at_once.is_some_and(|moves| !MOVES_AT_ONCE.contains(&moves)) {
        let (least, most) = MOVES_AT_ONCE.into_inner();
        return Err(Violation::new("moves_at_once", format!("must be {least} to {most}")));
    }
    asked(&request.actor, &request.reason)
}

/// Checks a GetJournal.
pub fn journal(request: &GetJournalRequest) -> Checked {
    short("node", &request.node)?;
    if request.limit > JOURNAL_PAGE_MAX {
        return Err(Violation::new(
            "limit",
            format!("must be 1 to {JOURNAL_PAGE_MAX}, or 0 for the default"),
        ));
    }
    Ok(())
}

/// Who asks, and why.
fn asked(actor: &str, reason: &str) -> Checked {
    short("actor", actor)?;
    within("reason", reason, REASON_BYTES_MAX)
}

fn given(field: &str, text: &str) -> Checked {
    if text.is_empty() {
        return Err(Violation::new(field, "must not be empty"));
    }
    short(field, text)
}

fn short(field: &str, text: &str) -> Checked {
    within(field, text, NAME_BYTES_MAX)
}

fn within(field: &str, text: &str, most: usize) -> Checked {
    if text.len() > most {
        return Err(Violation::new(field, format!("{} B, at most {most} are allowed", text.len())));
    }
    Ok(())
}

/// HOST:PORT, where HOST may be an IPv6 address in brackets.
fn address(field: &str, text: &str) -> Checked {
    let well_formed = text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let has_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        has_port && !host.is_empty() && (is_bracketed || !host.contains([':', '/', ' ', '@']))
    });
    if well_formed && text.len() <= NAME_BYTES_MAX + 6 {
        return Ok(());
    }
    Err(Violation::new(field, "must be HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use kv_proto::admin::v1::NodeInfo;

    use super::*;

    fn node() -> NodeInfo {
        NodeInfo {
            name: "n1".to_owned(),
            disk_uuid: "67e55044-10b1-426f-9247-bb680e5fe0c8".to_owned(),
            client_address: "127.0.0.1:50051".to_owned(),
            peer_address: "[::1]:50061".to_owned(),
            ..NodeInfo::default()
        }
    }

    fn join_of(node: Option<NodeInfo>) -> Checked {
        join(&JoinRequest { node, cluster_id: String::new() })
    }

    /// The field that each request is refused for; empty: it is well-formed.
    fn fields<Q>(check: fn(&Q) -> Checked, requests: impl IntoIterator<Item = Q>) -> Vec<String> {
        let field = |request: Q| check(&request).err().map_or_else(String::new, |violation| violation.field);
        requests.into_iter().map(field).collect()
    }

    #[test]
    fn a_join_without_a_proper_name_disk_or_address_names_the_field() {
        assert!(join_of(Some(node())).is_ok());
        assert_eq!(join_of(None).expect_err("no node").field, "node");
        type Spoil = fn(&mut NodeInfo);
        let table: [(&str, Spoil); 7] = [
            ("node.name", |node| node.name = String::new()),
            ("node.name", |node| node.name = "1st".to_owned()),
            ("node.name", |node| node.name = "n".repeat(NAME_BYTES_MAX + 1)),
            ("node.disk_uuid", |node| node.disk_uuid = "disk".to_owned()),
            ("node.client_address", |node| node.client_address = "localhost".to_owned()),
            ("node.peer_address", |node| node.peer_address = "::1:50061".to_owned()),
            ("node.peer_address", |node| node.peer_address = "host:0".to_owned()),
        ];
        for (field, spoil) in table {
            let mut node = node();
            spoil(&mut node);
            assert_eq!(join_of(Some(node)).expect_err(field).field, field);
        }
    }

    #[test]
    fn a_bootstrap_names_a_token_and_a_sensible_size() {
        let request = |token: &str, shards, replication_factor| BootstrapRequest {
            token: token.to_owned(),
            shards,
            replication_factor,
        };
        let requests = [
            request("t", 0, 0),
            request("t", 256, 7),
            request("", 0, 0),
            request("t", 257, 3),
            request("t", 8, 2),
        ];
        assert_eq!(fields(bootstrap, requests), ["", "", "token", "shards", "replication_factor"]);
    }

    #[test]
    fn an_order_names_its_node_and_is_not_long_winded() {
        let request = |node: &str, actor: usize, reason: usize| DrainNodeRequest {
            node: node.to_owned(),
            actor: "a".repeat(actor),
            reason: "r".repeat(reason),
        };
        let long = "n".repeat(NAME_BYTES_MAX + 1);
        let requests = [
            request("n1", NAME_BYTES_MAX, REASON_BYTES_MAX),
            request("", 0, 0),
            request(&long, 0, 0),
            request("n1", NAME_BYTES_MAX + 1, 0),
            request("n1", 0, REASON_BYTES_MAX + 1),
        ];
        assert_eq!(fields(drain, requests), ["", "node", "node", "actor", "reason"]);
    }

    #[test]
    fn only_a_node_that_will_not_come_back_may_take_data_with_it() {
        let request = |lost, accept_data_loss| RemoveNodeRequest {
            node: "n1".to_owned(),
            lost,
            accept_data_loss,
            ..RemoveNodeRequest::default()
        };
        let requests =
            [request(false, false), request(true, false), request(true, true), request(false, true)];
        assert_eq!(fields(remove, requests), ["", "", "", "accept_data_loss"]);
    }

    #[test]
    fn a_permit_is_for_a_second_to_an_hour() {
        let request =
            |ttl_ms| RequestPermitRequest { node: "3".to_owned(), ttl_ms, ..RequestPermitRequest::default() };
        let requests = [0, 999, 1_000, 3_600_000, 3_600_001].map(request);
        assert_eq!(fields(permit, requests), ["", "ttl_ms", "", "", "ttl_ms"]);
    }

    #[test]
    fn tokens_and_targets_must_be_given() {
        assert_eq!(fields(release, [ReleasePermitRequest::default()]), ["token"]);
        let hand = |node: &str, token: &str| HandOverRequest {
            node: node.to_owned(),
            permit_token: token.to_owned(),
        };
        let requests = [hand("", "t"), hand("n1", ""), hand("n1", "t")];
        assert_eq!(fields(hand_over, requests), ["node", "permit_token", ""]);
        assert_eq!(fields(transfer, [TransferLeaderRequest::default()]), ["to_node"]);
        assert_eq!(fields(undrain, [UndrainNodeRequest::default()]), ["node"]);
        let label = |zone: usize| SetNodeLabelsRequest {
            node: "n1".to_owned(),
            zone: Some("z".repeat(zone)),
            ..SetNodeLabelsRequest::default()
        };
        assert_eq!(
            fields(labels, [label(0), label(NAME_BYTES_MAX), label(NAME_BYTES_MAX + 1)]),
            ["", "", "zone"]
        );
    }

    #[test]
    fn a_policy_stays_within_its_bounds() {
        let factor =
            |factor| SetPolicyRequest { replication_factor: Some(factor), ..SetPolicyRequest::default() };
        let grace =
            |grace| SetPolicyRequest { lost_node_grace_ms: Some(grace), ..SetPolicyRequest::default() };
        let moves = |moves| SetPolicyRequest { moves_at_once: Some(moves), ..SetPolicyRequest::default() };
        assert_eq!(fields(policy, [SetPolicyRequest::default(), factor(1), factor(7)]), ["", "", ""]);
        let wrong = [0, 2, 4, 9].map(factor);
        assert_eq!(fields(policy, wrong), ["replication_factor"; 4]);
        let requests = [grace(9_999), grace(10_000), grace(604_800_000), grace(604_800_001)];
        assert_eq!(fields(policy, requests), ["lost_node_grace_ms", "", "", "lost_node_grace_ms"]);
        assert_eq!(fields(policy, [0, 1, 64, 65].map(moves)), ["moves_at_once", "", "", "moves_at_once"]);
    }

    #[test]
    fn a_page_of_the_journal_has_a_thousand_entries_at_most() {
        let request = |limit| GetJournalRequest { limit, ..GetJournalRequest::default() };
        assert_eq!(fields(journal, [0, 1_000, 1_001].map(request)), ["", "", "limit"]);
    }
}
