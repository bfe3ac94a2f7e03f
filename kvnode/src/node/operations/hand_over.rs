//! Lets the node of a permit give its leaderships away. The node checks the token.

use kv_proto::{
    admin::v1::{HandOverRequest, HandOverResponse},
    peer::v1::{self as peer, Refusal, control_request::Request, control_response::Response},
};
use kv_topology::NodeId;
use tokio::time::Instant;

use super::{Reach, names, reach::something_else};

/// Passes the request on to the node that it names; returns when the leaderships are gone.
///
/// # Errors
/// The node refused, or could not be asked.
pub async fn hand_over(
    reach: &impl Reach,
    request: HandOverRequest,
    deadline: Instant,
) -> Result<HandOverResponse, Refusal> {
    let HandOverRequest { node, permit_token } = request;
    let record = reach.record(deadline).await?;
    let node = NodeId(names::node(&record, "node", &node)?.node_id);
    match reach.control(node, Request::HandOver(peer::HandOver { permit_token }), deadline).await? {
        Response::Done(_) => Ok(HandOverResponse {}),
        _ => Err(something_else()),
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::peer::v1::Done;

    use super::*;
    use crate::{
        node::operations::model::{LONG, Model},
        refusal,
    };

    #[tokio::test(start_paused = true)]
    async fn the_node_that_is_named_is_asked_with_the_token() {
        let mut model = Model::of(3);
        model.answers = Box::new(|node, request| match request {
            Request::HandOver(asked) if node == NodeId(2) && asked.permit_token == "t" => {
                Ok(Response::Done(Done {}))
            }
            _ => Err(refusal::not_applied(refusal::STOPPING, "another node, or another token")),
        });
        let request = |node: &str| HandOverRequest { node: node.to_owned(), permit_token: "t".to_owned() };
        let until = Instant::now() + LONG;
        hand_over(&model, request("n2"), until).await.expect("handed over");
        assert_eq!(
            hand_over(&model, request("n3"), until).await.expect_err("not it").reason,
            refusal::STOPPING
        );
        assert_eq!(hand_over(&model, request("n9"), until).await.expect_err("none").reason, "NODE_UNKNOWN");
    }
}
