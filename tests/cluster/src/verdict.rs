//! The verdict on a load: what the histories of all clients say of the store.

use std::{collections::BTreeMap, env, fs, path::PathBuf, process};

use kv_history::{FinalState, History, Limits, Report, Violation, check, check_final};

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
