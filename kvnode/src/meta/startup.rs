//! What a node that starts should do: found a cluster, join one, go on with its own, or wait.
//!
//! Asked again with fresh answers after each wait. The one thing that must never happen is a second cluster beside an
//! existing one: a node founds a cluster only when it was told to, and only after everyone it was told of has answered
//! that there is none. An empty disk alone is no reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use kv_proto::admin::v1::{NodeStatus, Phase};

/// What the flags ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// `--node-name`.
    pub name: String,
    /// `--initial-nodes`, in the order given. Empty: not a static start.
    pub initial_nodes: Vec<InitialNode>,
    /// `--bootstrap`.
    pub bootstrap: bool,
    /// `--join`: client addresses.
    pub join: Vec<String>,
}

/// A node of a static start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialNode {
    /// Its name.
    pub name: String,
    /// HOST:PORT of its client API.
    pub address: String,
}

/// What the own data folder says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It belongs to no cluster yet.
    Empty,
    /// It belongs to this one.
    Member {
        /// Its id.
        cluster_id: String,
    },
}

/// What another node answered when it was asked for its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing, in time.
    Silent,
    /// It belongs to no cluster.
    Empty {
        /// Its name.
        name: String,
    },
    /// It belongs to a cluster.
    Member {
        /// Its name.
        name: String,
        /// The cluster's id.
        cluster_id: String,
        /// Whether it can take a join now.
        running: bool,
    },
}

impl Answer {
    /// The answer in a node's status.
    pub fn of(status: &NodeStatus) -> Self {
        let name = status.node.as_ref().map(|node| node.name.clone()).unwrap_or_default();
        if status.cluster_id.is_empty() {
            return Self::Empty { name };
        }
        let running = status.phase() == Phase::Running;
        Self::Member { name, cluster_id: status.cluster_id.clone(), running }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Ask again in a while.
    Wait(Awaited),
    /// Found a cluster here.
    Bootstrap,
    /// Join the cluster of the node at this address.
    Join {
        /// HOST:PORT of a client API.
        address: String,
    },
    /// Start the own replicas. Needs nobody.
    Resume,
    /// Stop: a person must act.
    Refuse(String),
}

/// What a node waits for. Its text is what status and log say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Answers of all others, before founding a cluster.
    Answers {
        /// Who is silent.
        silent: Vec<String>,
    },
    /// The first of the list founds the cluster.
    Founder {
        /// Its name.
        name: String,
    },
    /// A cluster was found, none of its nodes can take a join yet.
    Running {
        /// The cluster.
        cluster_id: String,
    },
    /// No node asked belongs to a cluster.
    Cluster {
        /// Who was asked.
        asked: Vec<String>,
    },
    /// Nothing was asked for: `admin.Bootstrap`, or a start with other flags.
    Command,
}

impl fmt::Display for Awaited {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answers { silent } => write!(
                formatter,
                "waiting for an answer of {} before founding a cluster: one of them may belong to one",
                silent.join(", ")
            ),
            Self::Founder { name } => write!(formatter, "waiting for {name}, first of the initial nodes, to found the cluster"),
            Self::Running { cluster_id } => {
                write!(formatter, "waiting for a node of cluster {cluster_id} that is running")
            }
            Self::Cluster { asked } => write!(formatter, "waiting for a cluster at {}", asked.join(", ")),
            Self::Command => formatter.write_str(
                "empty: waiting for admin.v1 Bootstrap, or a start with --initial-nodes, --bootstrap or --join",
            ),
        }
    }
}

/// The client addresses to ask, each once, the own one left out.
pub fn addresses_to_ask(intent: &Intent) -> Vec<String> {
    let others =
        intent.initial_nodes.iter().filter(|node| node.name != intent.name).map(|node| &node.address);
    let mut asked = BTreeSet::new();
    others.chain(&intent.join).filter(|address| asked.insert(*address)).cloned().collect()
}

/// Decides from the flags, the own folder and the answers by address. An address without an answer is silent; the caller
/// leaves out answers that came from this very node.
pub fn decide(intent: &Intent, identity: &Identity, answers: &BTreeMap<String, Answer>) -> Decision {
    let asked = addresses_to_ask(intent);
    let answers: Vec<(&str, &Answer)> = asked
        .iter()
        .map(|address| (address.as_str(), answers.get(address).unwrap_or(&Answer::Silent)))
        .collect();
    match identity {
        Identity::Member { cluster_id } => decide_as_member(cluster_id, &answers),
        Identity::Empty => {
            let problem = contradiction(intent).or_else(|| wrong_name(intent, &answers));
            problem.map_or_else(|| decide_as_empty(intent, &answers), Decision::Refuse)
        }
    }
}

/// A member resumes whoever is silent. Only a folder that is clearly at the wrong place is refused: more than half of
/// those asked belong to other clusters and nobody to this one. A single stray neighbour must not keep a cluster down.
fn decide_as_member(own: &str, answers: &[(&str, &Answer)]) -> Decision {
    let clusters = clusters(answers);
    let strangers = clusters.iter().filter(|(_, cluster_id)| *cluster_id != own).count();
    if strangers < clusters.len() || 2 * strangers <= answers.len() {
        return Decision::Resume;
    }
    let (address, other) = clusters[0];
    Decision::Refuse(format!(
        "this data folder belongs to cluster {own}, and {address} to cluster {other}: \
         give the right --data-dir or the right addresses"
    ))
}

fn decide_as_empty(intent: &Intent, answers: &[(&str, &Answer)]) -> Decision {
    let found = clusters(answers);
    if let Some((first_address, first)) = found.first() {
        if let Some((address, other)) = found.iter().find(|(_, cluster_id)| cluster_id != first) {
            return Decision::Refuse(format!(
                "{first_address} belongs to cluster {first}, and {address} to cluster {other}: \
                 leave the addresses of one of them out"
            ));
        }
        let running =
            answers.iter().find(|(_, answer)| matches!(answer, Answer::Member { running: true, .. }));
        return running.map_or_else(
            || Decision::Wait(Awaited::Running { cluster_id: (*first).to_owned() }),
            |(address, _)| Decision::Join { address: (*address).to_owned() },
        );
    }
    let founder = intent.initial_nodes.first();
    if !intent.bootstrap && founder.is_none_or(|founder| founder.name != intent.name) {
        return Decision::Wait(match founder {
            Some(founder) => Awaited::Founder { name: founder.name.clone() },
            None if intent.join.is_empty() => Awaited::Command,
            None => Awaited::Cluster { asked: intent.join.clone() },
        });
    }
    let silent: Vec<String> = answers
        .iter()
        .filter(|(_, answer)| **answer == Answer::Silent)
        .map(|(address, _)| (*address).to_owned())
        .collect();
    if silent.is_empty() { Decision::Bootstrap } else { Decision::Wait(Awaited::Answers { silent }) }
}

/// Addresses and the clusters they belong to.
fn clusters<'a>(answers: &[(&'a str, &'a Answer)]) -> Vec<(&'a str, &'a str)> {
    let cluster = |(address, answer): &(&'a str, &'a Answer)| match answer {
        Answer::Member { cluster_id, .. } => Some((*address, cluster_id.as_str())),
        Answer::Silent | Answer::Empty { .. } => None,
    };
    answers.iter().filter_map(cluster).collect()
}

/// Flags that cannot be meant together.
fn contradiction(intent: &Intent) -> Option<String> {
    let Intent { name, initial_nodes, bootstrap, join: _ } = intent;
    if initial_nodes.is_empty() {
        return None;
    }
    if *bootstrap {
        return Some(
            "--bootstrap and --initial-nodes exclude each other: the first of the list founds the cluster"
                .to_owned(),
        );
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for node in initial_nodes {
        if !names.insert(&node.name) || !addresses.insert(&node.address) {
            return Some(format!("--initial-nodes names {}={} twice", node.name, node.address));
        }
    }
    (!names.contains(name)).then(|| {
        format!("--node-name {name} is not in --initial-nodes: add it there on every node, or use --join for a later node")
    })
}

/// An initial node that answers under another name than it is listed.
fn wrong_name(intent: &Intent, answers: &[(&str, &Answer)]) -> Option<String> {
    answers.iter().find_map(|(address, answer)| {
        let listed = intent.initial_nodes.iter().find(|node| node.address == *address)?;
        let (Answer::Empty { name } | Answer::Member { name, .. }) = answer else { return None };
        (*name != listed.name)
            .then(|| format!("--initial-nodes lists {address} as {}, and {name} answers there", listed.name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(name: &str, initial: &[&str], bootstrap: bool, join: &[&str]) -> Intent {
        let node = |name: &&str| InitialNode { name: (*name).to_owned(), address: format!("{name}:1") };
        Intent {
            name: name.to_owned(),
            initial_nodes: initial.iter().map(node).collect(),
            bootstrap,
            join: join.iter().map(|name| format!("{name}:1")).collect(),
        }
    }

    /// `n2=empty`, `n2=c` (member of cluster c, running), `n2=c?` (member, not running yet).
    fn answers(told: &[&str]) -> BTreeMap<String, Answer> {
        let answer = |text: &&str| {
            let (name, state) = text.split_once('=').unwrap();
            let name_told = name.to_owned();
            let answer = match state {
                "empty" => Answer::Empty { name: name_told },
                cluster => Answer::Member {
                    name: name_told,
                    cluster_id: cluster.trim_end_matches('?').to_owned(),
                    running: !cluster.ends_with('?'),
                },
            };
            (format!("{name}:1"), answer)
        };
        told.iter().map(answer).collect()
    }

    fn summary(decision: &Decision) -> String {
        match decision {
            Decision::Wait(awaited) => format!("wait: {awaited}"),
            Decision::Bootstrap => "bootstrap".to_owned(),
            Decision::Join { address } => format!("join {address}"),
            Decision::Resume => "resume".to_owned(),
            Decision::Refuse(reason) => format!("refuse: {reason}"),
        }
    }

    type Case<'a> = (&'a str, &'a [&'a str], bool, &'a [&'a str], &'a [&'a str], &'a str);

    #[test]
    fn an_empty_node_decides() {
        let list: &[&str] = &["n1", "n2", "n3"];
        let cases: [Case<'_>; 19] = [
            ("n1", list, false, &[], &[], "wait: waiting for an answer of n2:1, n3:1"),
            ("n1", list, false, &[], &["n2=empty"], "wait: waiting for an answer of n3:1"),
            ("n1", list, false, &[], &["n2=empty", "n3=empty"], "bootstrap"),
            ("n1", list, false, &[], &["n3=c"], "join n3:1"),
            ("n1", list, false, &[], &["n2=empty", "n3=c?"], "wait: waiting for a node of cluster c"),
            (
                "n1",
                list,
                false,
                &[],
                &["n2=c", "n3=d"],
                "refuse: n2:1 belongs to cluster c, and n3:1 to cluster d",
            ),
            ("n2", list, false, &[], &["n1=empty", "n3=empty"], "wait: waiting for n1, first of"),
            ("n2", list, false, &[], &["n1=c"], "join n1:1"),
            ("n1", &["n1"], false, &[], &[], "bootstrap"),
            ("n4", list, false, &[], &["n1=c"], "refuse: --node-name n4 is not in --initial-nodes"),
            ("n1", list, true, &[], &[], "refuse: --bootstrap and --initial-nodes exclude each other"),
            ("n1", &["n1", "n2", "n2"], false, &[], &[], "refuse: --initial-nodes names n2=n2:1 twice"),
            ("n1", &[], true, &[], &[], "bootstrap"),
            ("n1", &[], true, &["n2", "n3"], &["n2=empty"], "wait: waiting for an answer of n3:1"),
            ("n1", &[], true, &["n2"], &["n2=empty"], "bootstrap"),
            ("n1", &[], true, &["n2"], &["n2=c"], "join n2:1"),
            ("n4", &[], false, &["n1", "n2"], &["n2=c"], "join n2:1"),
            ("n4", &[], false, &["n1"], &["n1=empty"], "wait: waiting for a cluster at n1:1"),
            ("n4", &[], false, &[], &[], "wait: empty: waiting for admin.v1 Bootstrap"),
        ];
        for (name, initial, bootstrap, join, told, expected) in cases {
            let decision = decide(&intent(name, initial, bootstrap, join), &Identity::Empty, &answers(told));
            let text = summary(&decision);
            assert!(text.starts_with(expected), "{name} {initial:?} {bootstrap} {join:?} {told:?}: {text}");
        }
    }

    #[test]
    fn a_member_resumes_unless_it_is_clearly_elsewhere() {
        let list: &[&str] = &["n1", "n2", "n3"];
        let cases: [Case<'_>; 7] = [
            ("n1", list, false, &[], &[], "resume"),
            ("n1", list, false, &[], &["n2=empty", "n3=empty"], "resume"),
            ("n1", list, false, &[], &["n2=c", "n3=d"], "resume"),
            ("n1", list, false, &[], &["n3=d"], "resume"),
            ("n1", list, false, &[], &["n2=d", "n3=d"], "refuse: this data folder belongs to cluster c"),
            ("n4", &[], false, &["n1"], &["n1=d"], "refuse: this data folder belongs to cluster c"),
            ("n4", &[], true, &[], &[], "resume"),
        ];
        let identity = Identity::Member { cluster_id: "c".to_owned() };
        for (name, initial, bootstrap, join, told, expected) in cases {
            let text = summary(&decide(&intent(name, initial, bootstrap, join), &identity, &answers(told)));
            assert!(text.starts_with(expected), "{name} {initial:?} {join:?} {told:?}: {text}");
        }
    }

    #[test]
    fn a_node_that_answers_under_another_name_is_refused() {
        let mut told = answers(&["n2=empty", "n3=empty"]);
        told.insert("n2:1".to_owned(), Answer::Empty { name: "n3".to_owned() });
        let decision = decide(&intent("n1", &["n1", "n2", "n3"], false, &[]), &Identity::Empty, &told);
        assert_eq!(summary(&decision), "refuse: --initial-nodes lists n2:1 as n2, and n3 answers there");
    }

    #[test]
    fn nobody_is_asked_twice_and_a_node_does_not_ask_itself() {
        let asked = addresses_to_ask(&intent("n1", &["n1", "n2"], false, &["n2", "n3"]));
        assert_eq!(asked, ["n2:1", "n3:1"]);
    }
}
