//! `kvctl recover`: a cluster that has lost a quorum for good goes on from what survived.
//!
//! ```text
//! inspect all survivors ─► plan ─► words ─► a person types the cluster's id ─► steps
//! ```
//!
//! [`evidence`], [`plan`], [`steps`] and [`words`] are plain functions; here is the shell around them. Whatever happens in
//! between, the command is run again: it looks at the disks again, and plans what is left to do.

mod evidence;
mod inspect;
mod plan;
mod steps;
mod words;

use std::{
    io::{BufRead, Write as _},
    time::Duration,
};

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use kv_client::{Address, Client, admin::RewriteRequest};
use tokio::task::spawn_blocking;

use self::{
    evidence::{Evidence, Survivor},
    plan::{Fate, Plan, Scope, Seat},
    steps::{Envelope, Groups},
};
use crate::{
    actor::{self, Because},
    context::Context,
    exit::{Exit, usage},
    output::{self, Format},
};

/// For the inspection of a disk: a node reads all of its logs, about a gibibyte a second.
const INSPECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// For a decision of meta, however short `--timeout` is: a node waits for seconds to see that a shard has no leader.
const DECISION_TIMEOUT: Duration = Duration::from_secs(60);

/// Go on after a quorum was lost for good: from what survived, on the word of a person
///
/// Only when the lost disks will never come back. Stop the survivors, start each with `kvnode --recovery` and its usual flags,
/// and name all of them. docs/recovery.md tells the whole procedure.
#[derive(Debug, Subcommand)]
pub enum Recover {
    /// What is on the survivors' disks, and what could be done; changes nothing
    Inspect(Survivors),
    /// Recover one data shard, where meta works
    Shard {
        /// Its number
        shard: u32,
        /// How
        #[command(flatten)]
        order: Order,
    },
    /// Recover meta: nodes, shard map, placement. Always first
    Meta(Order),
    /// Recover meta and all data shards that have lost their quorum
    All(Order),
}

/// Who is left.
#[derive(Debug, Args)]
pub struct Survivors {
    /// Client addresses of all nodes that still have their disks, separated by commas
    #[arg(long, value_name = "HOST:PORT,…")]
    nodes: String,
    /// A node that is lost for good, by name or id; once for each
    #[arg(long, value_name = "NODE")]
    without: Vec<String>,
}

/// What to do, and on whose word.
#[derive(Debug, Args)]
pub struct Order {
    /// Who is left
    #[command(flatten)]
    survivors: Survivors,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not ask: the id of the cluster, as it would be typed
    #[arg(long, value_name = "CLUSTER_ID", conflicts_with = "dry_run")]
    yes: Option<String>,
    /// Why
    #[command(flatten)]
    because: Because,
}

impl Recover {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        match self {
            Self::Inspect(survivors) => inspect_all(context, &survivors).await,
            // Its number is meta's: that has its own procedure.
            Self::Shard { shard: plan::META, .. } => Err(usage("shard 0 is meta: `kvctl recover meta`")),
            Self::Shard { shard, order } => recover(context, Scope::Shard(shard), order).await,
            Self::Meta(order) => recover(context, Scope::Meta, order).await,
            Self::All(order) => recover(context, Scope::All, order).await,
        }
    }
}

async fn inspect_all(context: &Context, survivors: &Survivors) -> Result<Exit> {
    let (evidence, silent) = gather(context, survivors).await?;
    silent.iter().for_each(|silent| eprintln!("warning: {silent}"));
    let evidence = Evidence::of(evidence).map_err(|why| anyhow!(why))?;
    match context.format {
        Format::Table => inspect::tables(&evidence)?,
        Format::Json => return output::json(&inspect::json(&evidence)).map(|()| Exit::Ok),
    }
    output::line("")?;
    match plan::plan(&evidence, Scope::All, &survivors.without) {
        Ok(plan) => words::plan(&plan).iter().try_for_each(|line| output::line(line))?,
        Err(why) => output::line(&format!("Nothing can be recovered like this: {why}"))?,
    }
    Ok(Exit::Ok)
}

/// What there is, and what is to be done. Every node that was named must answer: it may be the one with the longest log.
async fn look(context: &Context, scope: Scope, survivors: &Survivors) -> Result<(Evidence, Plan)> {
    let (found, silent) = gather(context, survivors).await?;
    if !silent.is_empty() {
        return Err(anyhow!(
            "{}. It is among --nodes, and nothing is decided without it. Only when it is lost for good: take it out of \
             --nodes, and give it up with --without NAME",
            silent.join("; ")
        ));
    }
    let evidence = Evidence::of(found).map_err(|why| anyhow!(why))?;
    let plan = plan::plan(&evidence, scope, &survivors.without).map_err(|why| anyhow!(why))?;
    Ok((evidence, plan))
}

async fn recover(context: &Context, scope: Scope, order: Order) -> Result<Exit> {
    let (evidence, plan) = look(context, scope, &order.survivors).await?;
    words::plan(&plan).iter().try_for_each(|line| output::line(line))?;
    if plan.recoveries().next().is_none() {
        return Ok(nothing_to_do(&plan, scope));
    }
    if let Seat::Nobody(why) = &plan.seat {
        return Err(anyhow!("{why}"));
    }
    output::line("")?;
    words::conditions(&plan).iter().try_for_each(|line| output::line(line))?;
    if order.dry_run {
        return Ok(Exit::Ok);
    }
    let asks = order.yes.is_none();
    if !confirm(&plan.cluster_id, order.yes).await? {
        eprintln!("error: that is not the id of this cluster; nothing was changed");
        return Ok(Exit::Precondition);
    }
    // Reading and typing take minutes, in which another person may have done something else.
    let (evidence, now) =
        if asks { look(context, scope, &order.survivors).await? } else { (evidence, plan.clone()) };
    if !now.does_as(&plan) {
        eprintln!(
            "error: the disks are not any more as they were shown; nothing was changed: run the command again"
        );
        return Ok(Exit::Precondition);
    }
    let plan = now;
    let reason = if order.because.reason.is_empty() { reason(&plan) } else { order.because.reason };
    let envelope = Envelope { actor: actor::name(), reason };
    let groups = carry_out(context, &evidence, &plan, &envelope).await?;
    report(&plan, &groups)
}

/// A shard that was named and needs nothing is a mistake; "all" may find nothing.
fn nothing_to_do(plan: &Plan, scope: Scope) -> Exit {
    let is_gone = plan.groups.iter().any(|group| group.fate == Fate::Gone);
    match scope {
        _ if is_gone => Exit::Error,
        Scope::All => Exit::Ok,
        Scope::Shard(_) | Scope::Meta => Exit::Precondition,
    }
}

/// For the journal, when nobody gave a better one.
fn reason(plan: &Plan) -> String {
    let lost: Vec<String> = plan.lost.iter().map(|node| plan.name(*node)).collect();
    match lost.is_empty() {
        true => "its quorum was lost for good".to_owned(),
        false => format!("its quorum was lost for good, with {}", lost.join(", ")),
    }
}

/// Asks every node for what is on its disk. Who did not answer, in words.
async fn gather(context: &Context, survivors: &Survivors) -> Result<(Vec<Survivor>, Vec<String>)> {
    let addresses =
        Address::parse_list(&survivors.nodes).map_err(|error| usage(format!("--nodes: {error}")))?;
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    for address in addresses {
        let client = context.client.at(address.clone());
        match inspect(&client).await {
            Ok(disk) => found.push(Survivor { address, disk }),
            Err(error) => silent.push(format!("{address} was not inspected: {error}")),
        }
    }
    Ok((found, silent))
}

/// One that is not there is given up soon, one that reads its logs is waited for.
async fn inspect(client: &Client) -> Result<kv_client::admin::InspectResponse, kv_client::Error> {
    client.node_status().await?;
    client.with_timeout(INSPECTION_TIMEOUT).inspect_disk().await
}

/// Whether a person means it.
async fn confirm(cluster_id: &str, given: Option<String>) -> Result<bool> {
    let typed = match given {
        Some(given) => given,
        None => {
            let mut prompt = std::io::stderr().lock();
            write!(prompt, "\nType the id of the cluster ({cluster_id}) to go on: ")?;
            prompt.flush()?;
            drop(prompt);
            let read = || -> std::io::Result<String> {
                let mut line = String::new();
                std::io::stdin().lock().read_line(&mut line)?;
                Ok(line)
            };
            spawn_blocking(read).await??
        }
    };
    Ok(typed.trim() == cluster_id)
}

/// Takes all steps; the groups in which the shards go on.
async fn carry_out(
    context: &Context,
    evidence: &Evidence,
    plan: &Plan,
    envelope: &Envelope,
) -> Result<Groups> {
    let mut groups = steps::decided(plan);
    if let Some((node, request)) = steps::seat_request(plan, evidence, envelope) {
        groups.extend(rewrite(context, plan, node, request).await?);
    }
    if let Seat::Online(address) = &plan.seat {
        let client = context.client.at(address.clone()).with_timeout(DECISION_TIMEOUT);
        for question in steps::questions(plan, envelope) {
            let shard = question.replace.as_ref().map_or(0, |replace| replace.shard_id);
            let group = client.replace_group(question).await?.group_id;
            output::line(&format!("shard {shard}: decided, group {group}"))?;
            groups.insert(shard, group);
        }
    }
    for (node, request) in steps::disk_requests(plan, &groups, envelope) {
        rewrite(context, plan, node, request).await?;
    }
    Ok(groups)
}

async fn rewrite(context: &Context, plan: &Plan, node: u64, request: RewriteRequest) -> Result<Groups> {
    let name = plan.name(node);
    let site = plan.sites.get(&node).ok_or_else(|| anyhow!("{name} was not asked"))?;
    let client = context.client.at(site.address.clone()).with_timeout(INSPECTION_TIMEOUT);
    let reply = client.rewrite_disk(request).await?;
    output::line(&format!("{name}: its disk is rewritten"))?;
    Ok(reply.groups.into_iter().map(|group| (group.shard_id, group.group_id)).collect())
}

fn report(plan: &Plan, groups: &Groups) -> Result<Exit> {
    output::line("")?;
    for (group, recovery) in plan.recoveries() {
        let title =
            if group.shard == plan::META { "meta".to_owned() } else { format!("shard {}", group.shard) };
        let on = plan.name(recovery.chosen.node_id);
        match groups.get(&group.shard) {
            Some(new) => output::line(&format!("{title}: goes on in group {new} on {on}"))?,
            None => output::line(&format!("{title}: goes on in a new group on {on}"))?,
        }
    }
    for shard in plan.gone() {
        output::line(&format!("shard {shard}: nothing of it survives"))?;
    }
    let to_restart = plan.to_restart();
    for node in &to_restart {
        let name = plan.name(*node);
        output::line(&format!("{name} runs: stop it, start it with --recovery, and run this command again"))?;
    }
    if to_restart.is_empty() {
        let under_recovery = plan.sites.iter().filter(|(_, site)| site.recovering);
        let names: Vec<String> = under_recovery.map(|(node, _)| plan.name(*node)).collect();
        output::line(&format!(
            "Start these nodes without --recovery: {}. New nodes join as ever, and replicas grow back by themselves.",
            names.join(", ")
        ))?;
    }
    Ok(Exit::Ok)
}
