//! `kvctl bulk`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Args;
use kv_client::{BulkOperation, BulkOutcome, Error, WriteOptions};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use crate::{
    advice,
    context::Context,
    exit::{self, Exit, usage},
    output::{self, Format},
    text,
};

/// Operations that are read before they are sent.
const OPERATIONS_PER_ROUND: usize = 1000;

/// Makes many independent writes: one JSON document a line, from files or standard input.
///
/// {"put": "key", "value": "text"}, {"put_base64": "…", "value_base64": "…"}, {"delete": "key"}.
/// Each line succeeds or fails by itself; the exit code is that of the worst. It ends early at a malformed line, and
/// when all of a thousand lines have failed.
#[derive(Debug, Args)]
pub struct Bulk {
    /// Files with the writes; -: standard input
    #[arg(value_name = "FILE", conflicts_with = "stdin")]
    files: Vec<PathBuf>,
    /// Read the writes from standard input; so it is without a file, unless that is a terminal
    #[arg(long)]
    stdin: bool,
}

/// A line of input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    put: Option<String>,
    put_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    delete: Option<String>,
    delete_base64: Option<String>,
}

impl Line {
    fn parse(line: &str) -> Result<(Bytes, BulkOperation)> {
        let line: Self = serde_json::from_str(line).map_err(|error| usage(error.to_string()))?;
        let put = bytes(line.put, line.put_base64)?;
        let delete = bytes(line.delete, line.delete_base64)?;
        let value = bytes(line.value, line.value_base64)?;
        match (put, delete, value) {
            (Some(key), None, Some(value)) => {
                let operation = BulkOperation::put(&key, value, WriteOptions::default());
                Ok((key, operation))
            }
            (None, Some(key), None) => {
                let operation = BulkOperation::delete(&key, WriteOptions::default());
                Ok((key, operation))
            }
            _ => Err(usage("expected put with a value, or delete without one")),
        }
    }
}

/// The bytes of a field that may be given as text or base64.
pub fn bytes(plain: Option<String>, base64: Option<String>) -> Result<Option<Bytes>> {
    match (plain, base64) {
        (Some(text), None) => Ok(Some(text.into_bytes().into())),
        (None, Some(base64)) => text::unbase64(&base64).map(Some),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(usage("a field and its _base64 twin exclude each other")),
    }
}

impl Bulk {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let mut totals = Totals::default();
        for input in self.inputs()? {
            let done = write_all(context, &input, &mut totals).await;
            match done {
                Ok(Progress::GoOn) => {}
                Ok(Progress::Stop) => break,
                Err(error) => {
                    totals.tell(context.format)?;
                    return Err(error);
                }
            }
        }
        totals.tell(context.format)?;
        if let Some(advice) = totals.advice {
            eprintln!("hint: {advice}");
        }
        Ok(totals.exit)
    }

    /// Where the lines come from, all of which can be opened now.
    fn inputs(self) -> Result<Vec<Input>> {
        if self.files.is_empty() {
            if !self.stdin && io::stdin().is_terminal() {
                return Err(usage("name the files with the writes, or say --stdin to type them"));
            }
            return Ok(vec![Input::Standard]);
        }
        let inputs: Vec<Input> = self.files.into_iter().map(Input::of).collect();
        // Before the first one is written: a mistyped name must not leave half of the work done.
        inputs.iter().filter(|input| !input.is_pipe()).try_for_each(|input| input.open().map(drop))?;
        Ok(inputs)
    }
}

/// Where lines come from.
enum Input {
    Standard,
    File(PathBuf),
}

impl Input {
    fn of(path: PathBuf) -> Self {
        if path == Path::new("-") { Self::Standard } else { Self::File(path) }
    }

    /// Whether opening it twice would lose what is written to it.
    fn is_pipe(&self) -> bool {
        match self {
            Self::Standard => true,
            Self::File(path) => path.metadata().is_ok_and(|known| !known.is_file() && !known.is_dir()),
        }
    }

    fn open(&self) -> Result<Box<dyn BufRead>> {
        let Self::File(path) = self else { return Ok(Box::new(BufReader::new(io::stdin()))) };
        let subject = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(subject)?;
        if file.metadata().with_context(subject)?.is_dir() {
            return Err(usage(format!("{} is a folder", path.display())));
        }
        Ok(Box::new(BufReader::new(file)))
    }

    /// The name of a line, for people.
    fn line(&self, number: usize) -> String {
        match self {
            Self::Standard => format!("line {number}"),
            Self::File(path) => format!("{} line {number}", path.display()),
        }
    }
}

/// Whether the rest is worth sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    GoOn,
    Stop,
}

/// Sends the lines of one input in rounds.
async fn write_all(context: &Context, input: &Input, totals: &mut Totals) -> Result<Progress> {
    let mut lines = input.open()?.lines().enumerate();
    loop {
        let (round, ended) = read_round(input, &mut lines);
        if send(context, input, round, totals).await? == Progress::Stop && ended.is_none() {
            eprintln!(
                "the rest was not sent, since all of the last {OPERATIONS_PER_ROUND} lines have failed"
            );
            return Ok(Progress::Stop);
        }
        if let Some(ended) = ended {
            return ended.map(|()| Progress::GoOn);
        }
    }
}

type Round = Vec<(usize, (Bytes, BulkOperation))>;

/// The next lines, and how the input has ended, if it has.
fn read_round(
    input: &Input,
    lines: &mut impl Iterator<Item = (usize, io::Result<String>)>,
) -> (Round, Option<Result<()>>) {
    let mut round = Vec::new();
    while round.len() < OPERATIONS_PER_ROUND {
        let Some((before, line)) = lines.next() else { return (round, Some(Ok(()))) };
        let name = || input.line(before + 1);
        let line = match line.with_context(|| format!("cannot read {}", name())) {
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) => line,
            Err(error) => return (round, Some(Err(error))),
        };
        match Line::parse(&line) {
            Ok(operation) => round.push((before + 1, operation)),
            Err(error) => return (round, Some(Err(usage(format!("{}: {error}", name()))))),
        }
    }
    (round, None)
}

/// What became of the lines so far.
struct Totals {
    written: u64,
    absent: u64,
    failed: u64,
    exit: Exit,
    /// For the first failure.
    advice: Option<String>,
}

impl Default for Totals {
    fn default() -> Self {
        Self { written: 0, absent: 0, failed: 0, exit: Exit::Ok, advice: None }
    }
}

impl Totals {
    fn tell(&self, format: Format) -> Result<()> {
        match format {
            Format::Table => output::line(&format!(
                "{} applied, {} deletes of absent keys, {} failed",
                self.written, self.absent, self.failed
            )),
            Format::Json => output::line(
                &json!({ "applied": self.written, "absent": self.absent, "failed": self.failed }).to_string(),
            ),
        }
    }

    /// An unknown outcome is worse than a sure failure.
    fn fail(&mut self, error: &Error) {
        if self.failed == 0 {
            self.advice = advice::of(error);
        }
        self.failed += 1;
        if self.exit != Exit::OutcomeUnknown {
            self.exit = exit::of_error(error);
        }
    }
}

/// Sends one round and tells what became of it. There is nothing to hope for when all of it has failed.
async fn send(context: &Context, input: &Input, round: Round, totals: &mut Totals) -> Result<Progress> {
    let (names, operations): (Vec<_>, Vec<_>) =
        round.into_iter().map(|(number, (key, operation))| ((number, key), operation)).unzip();
    let (sent, failed_before) = (operations.len() as u64, totals.failed);
    let outcomes = context.client.bulk_write(operations).await;
    for ((number, key), outcome) in names.into_iter().zip(outcomes) {
        match outcome {
            BulkOutcome::Put(_) => totals.written += 1,
            BulkOutcome::Delete(reply) if reply.applied => totals.written += 1,
            BulkOutcome::Delete(_) => totals.absent += 1,
            BulkOutcome::Failed(error) => {
                totals.fail(&error);
                if context.format == Format::Json {
                    output::line(&failure(input, number, &key, &error).to_string())?;
                }
                eprintln!("error: {}: {error}", input.line(number));
            }
        }
    }
    let all_failed = sent > 0 && totals.failed - failed_before == sent;
    Ok(if all_failed { Progress::Stop } else { Progress::GoOn })
}

fn failure(input: &Input, number: usize, key: &[u8], error: &Error) -> Json {
    let mut object = Map::new();
    text::set(&mut object, "key", key);
    if let Input::File(path) = input {
        object.insert("file".to_owned(), path.display().to_string().into());
    }
    object.insert("line".to_owned(), number.into());
    object.insert("error".to_owned(), error.to_string().into());
    object.insert("may_have_happened".to_owned(), error.may_have_happened().into());
    Json::Object(object)
}
