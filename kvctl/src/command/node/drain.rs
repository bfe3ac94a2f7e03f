//! `kvctl node drain`.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use indicatif::ProgressBar;
use kv_client::{
    Client,
    admin::{DrainNodeRequest, DrainNodeResponse},
};
use serde_json::{Value as Json, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use super::{
    done,
    empty::{Emptying, Look, Progress},
    state_name,
};
use crate::{
    actor::{self, Because},
    command::progress,
    context::Context,
    exit::Exit,
    named::{met, unmet, word},
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
        if self.wait {
            return self.begin_and_wait(context).await;
        }
        let reply = self.begin(&context.client).await?;
        let (called, state) = (met(&self.node, reply.node_id), state_name(reply.state()));
        let document = json!({ "node": reply.node_id, "state": state });
        let exit = done(context, &format!("{called} is {state}"), &document)?;
        if context.format == Format::Table {
            eprintln!("{}", how_to_go_on(&self.node));
        }
        Ok(exit)
    }

    async fn begin(&self, client: &Client) -> Result<DrainNodeResponse> {
        let (node, reason) = (self.node.clone(), self.because.reason.clone());
        Ok(client.drain_node(DrainNodeRequest { node, actor: actor::name(), reason }).await?)
    }

    /// Until the node is empty or will not be, or Ctrl-C.
    async fn begin_and_wait(&self, context: &Context) -> Result<Exit> {
        let name = &self.node;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
        let begun = tokio::select! {
            biased;
            _ = interrupt.recv() => {
                let called = unmet(name);
                eprintln!("`kvctl node list` tells whether the drain of {called} was begun; {}", how_to_go_on(name));
                return Ok(Exit::Interrupted);
            }
            begun = self.begin(&context.client) => begun?,
        };
        let mut display = Display::new(context.format, name, begun.node_id);
        let end = tokio::select! {
            biased;
            _ = interrupt.recv() => None,
            end = follow(&context.client, &mut display, begun.node_id) => Some(end),
        };
        display.clear();
        let exit = match end {
            Some(Ok(end)) => return display.ended(end),
            Some(Err(error)) => Err(error),
            None => Ok(Exit::Interrupted),
        };
        eprintln!("the drain of {} goes on without you: {}", display.called(), how_to_go_on(name));
        exit
    }
}

fn how_to_go_on(node: &str) -> String {
    let node = word(node);
    format!(
        "`kvctl node drain {node} --wait` shows how far it is, `kvctl node undrain {node}` cancels it, also half way"
    )
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Drained,
    Cancelled,
    Lost,
    Removed,
    Stuck,
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
                Look::Draining(progress) => display.goes_on(progress)?,
                Look::Drained => return Ok(End::Drained),
                Look::Cancelled => return Ok(End::Cancelled),
                Look::Lost => return Ok(End::Lost),
                Look::Removed => return Ok(End::Removed),
                Look::Stuck => return Ok(End::Stuck),
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
    /// What was printed last: replicas that are left, those that move, and who has a permit.
    shown: Option<(usize, usize, Option<u64>)>,
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

    fn called(&self) -> String {
        met(&self.name, self.node)
    }

    fn goes_on(&mut self, progress: Progress) -> Result<()> {
        self.noted = None;
        if let Some(bar) = &self.bar {
            bar.set_message(words(&self.called(), progress));
            return Ok(());
        }
        let news = Some((progress.left.replicas, progress.left.moving, progress.permit));
        if std::mem::replace(&mut self.shown, news) == news {
            return Ok(());
        }
        match self.format {
            Format::Table => eprintln!("{}", words(&self.called(), progress)),
            Format::Json => output::line(&self.document(progress).to_string())?,
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
        let (name, called, state) = (word(&self.name), self.called(), end.state());
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
            End::Stuck => format!(
                "{called} is silent, and nobody else can take over what it holds. The drain goes on when it is back; `kvctl node \
                 remove {name} --lost` when it will not come back"
            ),
        };
        eprintln!("error: {problem}");
        eprintln!("hint: `kvctl why --node {}` tells by whom and why", self.node);
        Ok(Exit::Error)
    }

    fn document(&self, progress: Progress) -> Json {
        let Progress { left, total, time_left, permit } = progress;
        json!({
            "node": self.node,
            "state": "draining",
            "replicas_left": left.replicas,
            "replicas_total": total,
            "bytes_left": left.bytes,
            "moves": left.moving,
            "ms_left": time_left.map(time::ms),
            "permit_node": permit,
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
            Self::Stuck => "draining",
        }
    }
}

fn words(called: &str, progress: Progress) -> String {
    let Progress { left, total, time_left, permit } = progress;
    let moving = match left.moving {
        0 => "none moves at the moment".to_owned(),
        1 => "1 moves".to_owned(),
        moving => format!("{moving} move"),
    };
    let time_left = time_left.map_or(String::new(), |left| format!(", about {} left", time::about(left)));
    let held = permit.map_or(String::new(), |node| format!("; none leaves while #{node} has a permit"));
    format!("{called}: {} of {total} left, {moving}{time_left}{held}", left.words())
}

#[cfg(test)]
mod tests {
    use super::{super::empty::Left, *};

    #[test]
    fn what_is_left_is_told_with_the_time_that_it_takes() {
        let left = Left { replicas: 5, bytes: Some(3 << 30), moving: 2 };
        let progress = Progress { left, total: 9, time_left: Some(Duration::from_secs(200)), permit: None };
        assert_eq!(words("n3", progress), "n3: 5 replicas (3.0 GiB) of 9 left, 2 move, about 3 min left");
        let left = Left { replicas: 1, bytes: None, moving: 0 };
        let progress = Progress { left, time_left: None, permit: Some(2), ..progress };
        assert_eq!(
            words("n3", progress),
            "n3: 1 replica of 9 left, none moves at the moment; none leaves while #2 has a permit"
        );
    }
}
