//! A child process whose output goes to a file, that takes signals, and that does not outlive its owner.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

/// A running, paused or ended process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; what it prints is appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(mut command: Command, log: &Path) -> io::Result<Self> {
        let output = open_log(log)?;
        let errors = output.try_clone()?;
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn()?;
        Ok(Self { child, log: log.to_owned(), status: None })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once it has ended.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// SIGKILL, and waits for the end. Does nothing to an ended process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> io::Result<()> {
        self.signal(Signal::KILL)?;
        self.status = Some(self.child.wait()?);
        Ok(())
    }

    /// SIGTERM: asks it to stop.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn terminate(&mut self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGINT: what Ctrl-C sends.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn interrupt(&mut self) -> io::Result<()> {
        self.signal(Signal::INT)
    }

    /// SIGSTOP: it keeps everything and does nothing.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn pause(&mut self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT: it goes on as if nothing had happened.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn resume(&mut self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// What it printed so far; the last `lines` lines.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.log, lines)
    }

    /// An id is sent a signal only while its process has not been waited for, so it cannot be another's.
    fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.exited()?.is_some() {
            return Ok(());
        }
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

/// The last `lines` lines of a log file; empty when there is none.
pub fn log_tail(log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn open_log(log: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(log)
}
