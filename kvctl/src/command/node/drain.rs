//! `kvctl node drain`.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use indicatif::ProgressBar;
use kv_client::{Client, admin::DrainNodeRequest};
use serde_json::{Value as Json, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use super::{
    called, done,
    empty::{Emptying, Left, Look},
    state_name,
};
use crate::{
    actor::{self, Because},
    command::progress,
    context::Context,
    exit::Exit,
    output::{self, Format},
    time,
};

/// The first pause between two looks at the cluster; each further one is half as long again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Moves take seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Moves everything away from a node, which serves until it is empty. Returns at once unless told to wait.
///
/// With --wait it shows what is left, on standard error, or with `-o json` as one document a line. It waits as long as it
/// takes; --timeout is for each question to the cluster. Exits with 0 when the node is empty, with 1 when the drain was
/// cancelled or the node was lost or removed meanwhile, and with 130 on Ctrl-C, after which the drain goes on.
#[derive(Debug, Args)]
pub struct Drain {
    /// The node, by name or id
    node: String,
    /// Wait until the node is empty, and show how far it is
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    because: Because,
}

impl Drain {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let request =
            DrainNodeRequest { node: self.node.clone(), actor: actor::name(), reason: self.because.reason };
        let reply = context.client.drain_node(request).await?;
        if self.wait {
            return wait(context, &self.node, reply.node_id).await;
        }
        let state = state_name(reply.state());
        let exit = done(
            context,
            &format!("{} is {state}", called(&self.node)),
            &json!({ "node": reply.node_id, "state": state }),
        )?;
        if context.format == Format::Table {
            eprintln!("{}", how_to_go_on(&self.node));
        }
        Ok(exit)
    }
}

fn how_to_go_on(node: &str) -> String {
    format!(
        "`kvctl node drain {node} --wait` shows how far it is, `kvctl node undrain {node}` cancels it, also half way"
    )
}

/// Until the node is empty or will not be, or Ctrl-C.
async fn wait(context: &Context, name: &str, node: u64) -> Result<Exit> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut display = Display::new(context.format, name, node);
    let end = tokio::select! {
        biased;
        _ = interrupt.recv() => None,
        end = follow(&context.client, &mut display, node) => Some(end?),
    };
    display.clear();
    match end {
        Some(end) => display.ended(end),
        None => {
            eprintln!("the drain of {} goes on without you: {}", called(name), how_to_go_on(name));
            Ok(Exit::Interrupted)
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Drained,
    Cancelled,
    Lost,
    Removed,
}

/// Looks at the cluster again and again. Nobody there is no end: the drain goes on without us.
async fn follow(client: &Client, display: &mut Display, node: u64) -> Result<End> {
    let begun = Instant::now();
    let mut emptying = Emptying::of(node);
    let mut pause = FIRST_PAUSE;
    loop {
        match client.cluster_status().await {
            Ok(status) => match emptying.look(&status, begun.elapsed()) {
                Look::Old => {}
                Look::Draining { left, total, time_left } => display.goes_on(left, total, time_left)?,
                Look::Drained => return Ok(End::Drained),
                Look::Cancelled => return Ok(End::Cancelled),
                Look::Lost => return Ok(End::Lost),
                Look::Removed => return Ok(End::Removed),
            },
            Err(error) if error.may_retry() => display.note(&error.to_string()),
            Err(error) => return Err(error.into()),
        }
        sleep(pause).await;
        pause = pause.mul_f64(1.5).min(LONGEST_PAUSE);
    }
}

/// Shows how far it is: one line that changes where a person looks, else a line whenever a replica has gone.
struct Display {
    format: Format,
    name: String,
    node: u64,
    bar: Option<ProgressBar>,
    /// What was printed last.
    shown: Option<(usize, usize)>,
    /// What went wrong last.
    noted: Option<String>,
}

impl Display {
    fn new(format: Format, name: &str, node: u64) -> Self {
        let is_watched = format == Format::Table && io::stderr().is_terminal();
        Self {
            format,
            name: name.to_owned(),
            node,
            bar: is_watched.then(progress::line),
            shown: None,
            noted: None,
        }
    }

    fn goes_on(&mut self, left: Left, total: usize, time_left: Option<Duration>) -> Result<()> {
        self.noted = None;
        if let Some(bar) = &self.bar {
            bar.set_message(words(&self.name, left, total, time_left));
            return Ok(());
        }
        if self.shown.replace((left.replicas, left.moving)) == Some((left.replicas, left.moving)) {
            return Ok(());
        }
        match self.format {
            Format::Table => eprintln!("{}", words(&self.name, left, total, time_left)),
            Format::Json => output::line(&self.document(left, total, time_left).to_string())?,
        }
        Ok(())
    }

    /// Says once that something does not answer.
    fn note(&mut self, problem: &str) {
        if self.noted.as_deref() == Some(problem) {
            return;
        }
        let text = format!("no answer, the drain goes on all the same: {problem}");
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
        self.noted = Some(problem.to_owned());
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn ended(&self, end: End) -> Result<Exit> {
        let (name, state) = (&self.name, end.state());
        let called = called(name);
        if self.format == Format::Json {
            output::line(&json!({ "node": self.node, "state": state }).to_string())?;
        }
        let problem = match end {
            End::Drained => {
                if self.format == Format::Table {
                    output::line(&format!("{called} is drained: it holds nothing any more"))?;
                    eprintln!(
                        "stop it, then `kvctl node remove {name}` takes it out of the cluster; or `kvctl node undrain {name}` \
                         uses it again"
                    );
                }
                return Ok(Exit::Ok);
            }
            End::Cancelled => format!("the drain of {called} was cancelled: it is used again"),
            End::Lost => format!(
                "{called} was silent for too long and is lost: what it held is rebuilt elsewhere. `kvctl node remove {name} \
                 --lost` when it will not come back"
            ),
            End::Removed => format!("{called} was removed from the cluster before it was seen to be empty"),
        };
        eprintln!("error: {problem}");
        eprintln!("hint: `kvctl why --node {}` tells by whom and why", self.node);
        Ok(Exit::Error)
    }

    fn document(&self, left: Left, total: usize, time_left: Option<Duration>) -> Json {
        json!({
            "node": self.node,
            "state": "draining",
            "replicas_left": left.replicas,
            "replicas_total": total,
            "bytes_left": left.bytes,
            "moves": left.moving,
            "ms_left": time_left.map(time::ms),
        })
    }
}

impl End {
    fn state(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Cancelled => "active",
            Self::Lost => "lost",
            Self::Removed => "removed",
        }
    }
}

fn words(name: &str, left: Left, total: usize, time_left: Option<Duration>) -> String {
    let moving = match left.moving {
        0 => "none moves at the moment".to_owned(),
        1 => "1 moves".to_owned(),
        moving => format!("{moving} move"),
    };
    let time_left = time_left.map_or(String::new(), |left| format!(", about {} left", time::about(left)));
    format!("{}: {} of {total} left, {moving}{time_left}", called(name), left.words())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_with_the_time_that_it_takes() {
        let left = Left { replicas: 5, bytes: Some(3 << 30), moving: 2 };
        let text = words("n3", left, 9, Some(Duration::from_secs(200)));
        assert_eq!(text, "n3: 5 replicas (3.0 GiB) of 9 left, 2 move, about 3 min left");
        let left = Left { replicas: 1, bytes: None, moving: 0 };
        assert_eq!(words("n3", left, 9, None), "n3: 1 replica of 9 left, none moves at the moment");
    }
}
