//! Which way a measurement goes: to the leaders, when all nodes can be reached where they say that they are.

use std::time::Duration;

use kv_client::{Address, Client};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

/// One node's answer to a connection. They are near when a measurement makes sense.
const REACH_TIMEOUT: Duration = Duration::from_millis(500);

/// Which way calls go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the leader of each key's shard.
    Direct,
    /// Through the given nodes, which forward.
    ThroughNodes,
}

impl Way {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Direct => "to the leader of each key's shard",
            Self::ThroughNodes => "through the given nodes, which forward",
        }
    }
}

/// Direct when each node of the shard map takes a connection at its advertised address.
pub async fn way(client: &Client) -> Way {
    let Ok(map) = client.shard_map().await else { return Way::ThroughNodes };
    let mut dials = JoinSet::new();
    for node in map.cluster.nodes.values().filter(|node| !node.state.is_gone()) {
        let Ok(address) = node.client_address.parse::<Address>() else { return Way::ThroughNodes };
        dials.spawn(async move {
            let dial = TcpStream::connect(address.as_str());
            matches!(timeout(REACH_TIMEOUT, dial).await, Ok(Ok(_)))
        });
    }
    let reached = dials.join_all().await;
    if !reached.is_empty() && reached.iter().all(|reached| *reached) {
        Way::Direct
    } else {
        Way::ThroughNodes
    }
}
