//! The verdict on a load: what the histories of all clients say of the store.

use std::{collections::BTreeMap, env, fs, path::PathBuf, process, time::Duration};

use kv_history::{FinalState, History, Limits, Outcome, Report, Violation, check, check_final};

/// What a load was told, when nothing was wrong with it.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What the checkers did.
    pub report: Report,
    /// Writes and deletes that took effect, as the clients were told.
    pub acknowledged_writes: u64,
    /// How often each error was seen.
    pub errors: BTreeMap<String, u64>,
    /// The history itself.
    pub history: History,
}

impl Verdict {
    /// Of a load whose clients must not have seen any error.
    ///
    /// # Panics
    /// When one did.
    pub fn without_errors(self) -> Self {
        assert!(self.errors.is_empty(), "clients had to handle errors: {:?}", self.errors);
        self
    }

    /// The longest that a client waited for a reply that it got.
    pub fn longest_wait(&self) -> Duration {
        let ended = self.history.operations().iter().filter_map(|operation| match operation.outcome {
            Outcome::Returned { at, .. } => Some(at.0.saturating_sub(operation.invoked_at.0)),
            Outcome::Unknown | Outcome::Failed => None,
        });
        Duration::from_nanos(ended.max().unwrap_or_default())
    }
}

/// Checks a history and the state found at its end.
///
/// # Panics
/// On any violation; the history is left in a file.
pub fn judge(
    history: History,
    found: &FinalState,
    complaints: &[String],
    acknowledged_writes: u64,
    errors: BTreeMap<String, u64>,
) -> Verdict {
    let checked = check_final(&history, found).and_then(|()| check(&history, Limits::default()));
    let report = match checked {
        Ok(report) if complaints.is_empty() => report,
        Ok(_) => panic!("{}{}", complaints.join("\n"), kept(&history)),
        Err(violation) => fail(&violation, complaints, &history),
    };
    eprintln!("load: {report:?}, errors {errors:?}");
    assert!(report.undecided_keys.is_empty(), "undecided within the budget: {:?}", report.undecided_keys);
    Verdict { report, acknowledged_writes, errors, history }
}

fn fail(violation: &Violation, complaints: &[String], history: &History) -> ! {
    panic!("{violation}{}{}", complaints.join("\n"), kept(history))
}

/// Leaves the history in a file and says where.
fn kept(history: &History) -> String {
    let path: PathBuf = env::temp_dir().join(format!("kvcluster-history-{}.jsonl", process::id()));
    match fs::write(&path, history.to_json_lines()) {
        Ok(()) => format!("\nthe whole history is in {}", path.display()),
        Err(error) => format!("\nthe history could not be kept in {}: {error}", path.display()),
    }
}
