//! `kvctl shell`: the same commands, many over one connection.

use std::io::{self, IsTerminal as _};

use anyhow::{Context as _, Result};
use clap::{Args, Parser};
use rustyline::{DefaultEditor, error::ReadlineError};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
};

use crate::{
    cli::Command,
    context::Context,
    exit::{self, Exit},
    output::Format,
};

/// Reads commands line by line, from a person or from a pipe. The exit code is that of the last command.
///
/// Lines are split into words as a shell does it, with quotes and backslashes; one that begins with # is a comment. Each
/// value that `get` prints ends with a line end. Ctrl-C ends the command that runs, and, where lines come from a pipe, the
/// shell with it.
#[derive(Debug, Args)]
pub struct Shell {}

/// A line: a command without `kvctl`, and without the flags that were given to the shell but for the form of the answer.
#[derive(Debug, Parser)]
#[command(name = "", no_binary_name = true, disable_help_flag = false, disable_version_flag = true)]
struct Line {
    /// Tables for people or JSON for programs
    #[arg(short, long, global = true, value_enum)]
    output: Option<Format>,
    #[command(subcommand)]
    command: Command,
}

impl Shell {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        if io::stdin().is_terminal() {
            return interactive(context).await;
        }
        let mut last = Exit::Ok;
        loop {
            let mut interrupt = interrupts()?;
            let line = tokio::select! {
                biased;
                _ = interrupt.recv() => return Ok(Exit::Interrupted),
                line = spawn_blocking(next_line) => line.context("the reader of lines panicked")??,
            };
            let Some(line) = line else { return Ok(last) };
            match execute(context, &line).await {
                // Whoever wrote the lines that follow counted on this one.
                Some(Exit::Interrupted) => return Ok(Exit::Interrupted),
                Some(exit) => last = exit,
                None => {}
            }
        }
    }
}

/// The next line of standard input, which is not locked in between: a command may read what follows, as `put --stdin` does.
fn next_line() -> io::Result<Option<String>> {
    let mut line = String::new();
    let length = io::stdin().read_line(&mut line)?;
    Ok((length > 0).then_some(line))
}

/// Of Ctrl-C, from now on. Once anybody has asked for them they no longer end the process, and nothing undoes that: so a shell
/// minds them all.
fn interrupts() -> Result<Signal> {
    signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")
}

async fn interactive(context: &Context) -> Result<Exit> {
    eprintln!("help lists the commands, Ctrl-D ends");
    let mut editor = DefaultEditor::new()?;
    let mut last = Exit::Ok;
    loop {
        // Reading a line blocks a thread, and there is nothing else to do meanwhile.
        let line = tokio::task::block_in_place(|| editor.readline("kvctl> "));
        match line {
            Ok(line) if matches!(line.trim(), "exit" | "quit") => return Ok(last),
            Ok(line) => {
                // A full history forgets its oldest line; failing to remember is no reason to stop.
                let _remembered = editor.add_history_entry(&line);
                if let Some(exit) = execute(context, &line).await {
                    last = exit;
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return Ok(last),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs one line; `None`: there was nothing on it.
async fn execute(context: &Context, line: &str) -> Option<Exit> {
    let words = match split(line) {
        Ok(words) => words,
        Err(problem) => {
            eprintln!("error: {problem}");
            return Some(Exit::Usage);
        }
    };
    // Lines that were copied from elsewhere begin with the program's name.
    let words = match words.split_first() {
        Some((program, rest)) if program == "kvctl" => rest.to_vec(),
        _ => words,
    };
    if words.first().is_none_or(|word| word.starts_with('#')) {
        return None;
    }
    let words = if words == ["help"] { vec!["--help".to_owned()] } else { words };
    match Line::try_parse_from(words) {
        Ok(Line { command: Command::Shell(_), .. }) => {
            eprintln!("error: this is a shell already");
            Some(Exit::Usage)
        }
        Ok(Line { output, command }) => {
            let context = context.in_shell(output);
            Some(interruptibly(&context, command).await.unwrap_or_else(|error| exit::report(&error)))
        }
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            // Printing fails only when nobody reads any more.
            let _printed = error.print();
            Some(exit)
        }
    }
}

/// Runs a command to its end, or until Ctrl-C. Those that mind it themselves, as `node drain --wait`, are heard first.
async fn interruptibly(context: &Context, command: Command) -> Result<Exit> {
    if matches!(command, Command::Dev(_)) {
        // It takes its time to stop its nodes.
        return Box::pin(command.run(context)).await;
    }
    let mut interrupt = interrupts()?;
    let impatient = tokio::spawn(end_at_the_second(interrupts()?));
    let outcome = tokio::select! {
        biased;
        outcome = Box::pin(command.run(context)) => outcome,
        _ = interrupt.recv() => {
            eprintln!("interrupted: what was asked for may have been done, or may be yet");
            Ok(Exit::Interrupted)
        }
    };
    impatient.abort();
    outcome
}

/// A command that waits for standard input does not hear of the first one.
async fn end_at_the_second(mut interrupt: Signal) {
    interrupt.recv().await;
    interrupt.recv().await;
    std::process::exit(Exit::Interrupted as i32);
}

/// Splits a line into words, as a POSIX shell does with quotes and backslashes, and without expansions.
fn split(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), character) if character == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let escaped = characters.next().ok_or("nothing follows the backslash")?;
                word.get_or_insert_default().push(escaped);
            }
            (None, character) if character.is_whitespace() => words.extend(word.take()),
            (_, character) => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_like_in_a_shell() {
        let words = |line| split(line).unwrap();
        assert_eq!(words(r#"put a "b c" 'd "e"' f\ g"#), ["put", "a", "b c", "d \"e\"", "f g"]);
        assert_eq!(words(r#"put k """#), ["put", "k", ""]);
        assert_eq!(words(r#" a"b"'c' "#), ["abc"]);
        assert_eq!(words(""), Vec::<String>::new());
        assert!(split("'a").is_err());
        assert!(split("a\\").is_err());
    }
}
