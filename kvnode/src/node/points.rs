//! Points that a node passes while replicas move, at which a test may let it die.
//!
//! kvnode itself passes them and nothing happens. The program that tests start in its place
//! (`examples/kvnode-with-failpoints.rs`) looks at each of them whether it is the one to die at.

use std::sync::Arc;

use kv_proto::{
    disk::v1::{MetaCommand, meta_command::Command},
    peer::v1::control_request::Request,
};

/// Told the name of each point when it is reached. May not return.
pub type Points = Arc<dyn Fn(&str) + Send + Sync>;

/// Nobody is told.
pub fn nobody() -> Points {
    Arc::new(|_| {})
}

/// Tells that a point is reached, where there is one.
pub fn pass(points: &Points, point: Option<String>) {
    if let Some(point) = point {
        points(&point);
    }
}

/// Where a step is: nothing of it has happened, or all of it, and nobody was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Before it.
    Before,
    /// After it.
    After,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// The point beside a step that a node carries out: `before add-learner`. `None`: no step of a move.
pub fn of_step(request: &Request, side: Side) -> Option<String> {
    let step = match request {
        Request::CreateReplica(_) => "create-replica",
        Request::AddLearner(_) => "add-learner",
        Request::ChangeVoters(_) => "change-voters",
        Request::RemoveLearner(_) => "remove-learner",
        Request::TransferLeader(_) => "transfer-leader",
        Request::InitializeGroup(_)
        | Request::DescribeGroup(_)
        | Request::DescribeNode(_)
        | Request::FetchMap(_)
        | Request::HandOver(_) => return None,
    };
    Some(format!("{} {step}", side.name()))
}

/// The point beside a command that the leader of meta commits: `after begin-move`. `None`: no command of a move.
pub fn of_command(command: &MetaCommand, side: Side) -> Option<String> {
    let command = match command.command.as_ref()? {
        Command::BeginMove(_) => "begin-move",
        Command::EndMove(_) => "end-move",
        Command::BeginChange(_) => "begin-change",
        Command::ObserveMembership(_) => "observe",
        Command::SetNodeState(_) => "set-state",
        Command::Bootstrap(_)
        | Command::RegisterNode(_)
        | Command::CreateShards(_)
        | Command::AddReplica(_)
        | Command::PreferLeaders(_)
        | Command::EndChange(_)
        | Command::DropReplica(_)
        | Command::RemoveNode(_)
        | Command::SetZone(_)
        | Command::SetPolicy(_)
        | Command::GrantPermit(_)
        | Command::EndPermit(_)
        | Command::Note(_)
        | Command::ReplaceGroup(_) => return None,
    };
    Some(format!("{} {command}", side.name()))
}
