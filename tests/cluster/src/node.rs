//! One node of a cluster under test: its name, ports, folders and, while it runs, its process.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use kv_faults::{
    power::{CutReport, PowerLoss, Tail},
    volume::Volume,
};
use rand::rngs::SmallRng;

use crate::{
    api::Api,
    ports::PortBlock,
    process::{Process, log_tail},
    wait::{WaitError, wait_until},
};

/// What a node exits with that begins anew when it is started again: `EX_TEMPFAIL` of sysexits.h.
const START_AGAIN: i32 = 75;

/// What is run to start a node: a program, and what runs it somewhere else, if anything.
#[derive(Clone, Debug)]
pub struct Program {
    /// The binary itself, and what comes before its arguments.
    command: PathBuf,
    first_arguments: Vec<OsString>,
}

impl Program {
    /// The binary, here.
    pub fn here(binary: &Path) -> Self {
        Self { command: binary.to_owned(), first_arguments: Vec::new() }
    }

    /// By way of another command.
    pub fn by(command: &Command) -> Self {
        let first_arguments = command.get_args().map(OsStr::to_owned).collect();
        Self { command: command.get_program().into(), first_arguments }
    }

    /// With no more than so many files and sockets open at once, which it cannot raise.
    pub fn with_open_files(self, limit: u32) -> Self {
        const SCRIPT: &str = r#"ulimit -n "$0" && exec "$@""#;
        let mut first_arguments: Vec<OsString> = vec!["-c".into(), SCRIPT.into(), limit.to_string().into()];
        first_arguments.push(self.command.into_os_string());
        first_arguments.extend(self.first_arguments);
        Self { command: "sh".into(), first_arguments }
    }
}

/// A node: it keeps its ports and data over restarts.
#[derive(Debug)]
pub struct Node {
    /// `n1`, `n2`, …
    pub name: String,
    /// Where it listens.
    pub ports: PortBlock,
    /// Its data folder.
    pub data_dir: PathBuf,
    program: Program,
    arguments: Vec<String>,
    log: PathBuf,
    power: Option<PowerLoss>,
    volume: Option<Volume>,
    process: Option<Process>,
}

impl Node {
    /// A node that is not started yet, with its folders below `folder`.
    ///
    /// # Errors
    /// When its power loss cannot be prepared.
    pub fn new(
        program: Program,
        folder: &Path,
        name: String,
        ports: PortBlock,
        arguments: Vec<String>,
        power_loss: bool,
    ) -> io::Result<Self> {
        let data_dir = folder.join(&name);
        let power = if power_loss {
            let shadow = folder.join(format!("{name}.synced"));
            Some(PowerLoss::new(&data_dir, &shadow).map_err(io::Error::other)?)
        } else {
            None
        };
        let log = folder.join(format!("{name}.log"));
        Ok(Self { name, ports, data_dir, program, arguments, log, power, volume: None, process: None })
    }

    /// Gives it a volume of its own, of this size, from its next start on.
    ///
    /// # Errors
    /// When its files cannot be made.
    pub fn put_on_volume(&mut self, capacity_bytes: u64) -> io::Result<()> {
        let control = self.data_dir.with_extension("volume");
        self.volume = Some(Volume::new(&self.data_dir, &control, capacity_bytes)?);
        Ok(())
    }

    /// Its volume.
    ///
    /// # Panics
    /// When the cluster was not planned with volumes.
    pub fn volume(&mut self) -> &mut Volume {
        self.volume.as_mut().expect("the cluster was planned with volumes")
    }

    /// A connection to it; dialled when first used.
    pub fn api(&self) -> Api {
        Api::new(self.ports.client_address())
    }

    /// Starts it. Does nothing when it runs.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts it with more flags, this time. Does nothing when it runs.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn start_with(&mut self, flags: &[&str]) {
        if self.is_running() {
            return;
        }
        let mut command = Command::new(&self.program.command);
        command.args(&self.program.first_arguments);
        command.args(["--node-name", &self.name, "--port", &self.ports.client.to_string(), "--data-dir"]);
        command.arg(&self.data_dir).args(&self.arguments).args(flags);
        if let Some(power) = &self.power {
            power.arm(&mut command);
        }
        if let Some(volume) = &self.volume {
            volume.arm(&mut command);
        }
        let process = Process::start(command, &self.log);
        self.process = Some(process.unwrap_or_else(|error| panic!("{} does not start: {error}", self.name)));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.signal("killed", Process::kill);
        self.process = None;
    }

    /// SIGKILL, and what it had not synced is gone, except for what `tail` leaves of it.
    ///
    /// # Panics
    /// When the cluster was not planned with power loss.
    pub fn lose_power(&mut self, tail: Tail, random: &mut SmallRng) -> CutReport {
        self.kill();
        let power = self.power.as_mut().expect("the cluster was planned with power loss");
        power
            .lose_unsynced(tail, random)
            .unwrap_or_else(|error| panic!("power loss of {}: {error}", self.name))
    }

    /// Whether its process does not only run but, where power loss was planned, runs under the shim.
    pub fn is_watched(&self) -> bool {
        match (&self.power, &self.process) {
            (Some(power), Some(process)) => power.was_attached(process.id()),
            (None, _) => true,
            (Some(_), None) => false,
        }
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        self.signal("paused", Process::pause);
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.signal("resumed", Process::resume);
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        self.signal("terminated", Process::terminate);
    }

    /// SIGINT.
    pub fn interrupt(&mut self) {
        self.signal("interrupted", Process::interrupt);
    }

    /// Waits for the end of a node that was asked to stop.
    ///
    /// # Errors
    /// When it has not ended in time, or not well.
    pub async fn ended(&mut self, deadline: Duration) -> Result<(), WaitError> {
        let Some(status) = self.gone(deadline).await? else { return Ok(()) };
        assert!(status.success(), "{} ended with {status}; its log:\n{}", self.name, self.log_tail(60));
        Ok(())
    }

    /// Waits for the end of a node that ends by itself because it wants to be started again.
    ///
    /// # Errors
    /// When it has not ended in time.
    ///
    /// # Panics
    /// When it ended otherwise.
    pub async fn wants_another_start(&mut self, deadline: Duration) -> Result<(), WaitError> {
        let status = self.gone(deadline).await?;
        let code = status.and_then(|status| status.code());
        assert_eq!(code, Some(START_AGAIN), "{} ended; its log:\n{}", self.name, self.log_tail(60));
        Ok(())
    }

    /// Waits for the end of its process, however it ends. `None`: it had none.
    async fn gone(&mut self, deadline: Duration) -> Result<Option<ExitStatus>, WaitError> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let process = std::cell::RefCell::new(process);
        let what = format!("the end of {}", self.name);
        let status = wait_until(what, deadline, || {
            let exited = process.borrow_mut().exited();
            async move {
                match exited {
                    Ok(Some(status)) => Ok(status),
                    Ok(None) => Err("it still runs".to_owned()),
                    Err(error) => Err(error.to_string()),
                }
            }
        })
        .await?;
        self.process = None;
        Ok(Some(status))
    }

    /// Deletes its data folder.
    ///
    /// # Panics
    /// When it runs, or the folder cannot be deleted.
    pub fn wipe(&mut self) {
        assert!(!self.is_running(), "{} runs on its data folder", self.name);
        fs::remove_dir_all(&self.data_dir)
            .unwrap_or_else(|error| panic!("the data of {} cannot be deleted: {error}", self.name));
    }

    /// The id of its process.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Whether its process exists, paused or not.
    pub fn is_running(&mut self) -> bool {
        match self.process.as_mut().map(Process::exited) {
            Some(Ok(None)) => true,
            Some(Ok(Some(_)) | Err(_)) | None => false,
        }
    }

    /// The last lines that it printed.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.log, lines)
    }

    /// Signals its process; does nothing when there is none.
    fn signal(&mut self, what: &str, send: impl FnOnce(&mut Process) -> io::Result<()>) {
        if let Some(process) = &mut self.process {
            send(process).unwrap_or_else(|error| panic!("{} could not be {what}: {error}", self.name));
        }
    }
}
