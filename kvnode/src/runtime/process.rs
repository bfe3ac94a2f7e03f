//! What the process takes of its machine, as Linux tells it. Elsewhere nothing is known.

use std::fs;

/// In which processor time and times since the boot are told: `USER_HZ`, which is 100 on all architectures that Linux
/// gives Rust programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// A measurement. What could not be read is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Memory in use, bytes.
    pub resident_bytes: Option<u64>,
    /// Address space, bytes.
    pub virtual_bytes: Option<u64>,
    /// Files and sockets.
    pub open_files: Option<u64>,
    /// Processor time since the start, of user and system, seconds.
    pub cpu_seconds: Option<f64>,
    /// Since the epoch, seconds.
    pub started_at: Option<f64>,
}

impl Usage {
    /// Measures this process. Reads a few small files that are in memory.
    pub fn now() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let open_files = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
        Self {
            // One of them lists the others.
            open_files: open_files.map(|count| count.saturating_sub(1) as u64),
            ..Self::of(&text("/proc/self/status"), &text("/proc/self/stat"), &text("/proc/stat"))
        }
    }

    /// From the files `status` and `stat` of the process, and `stat` of the machine; see proc(5).
    fn of(status: &str, stat: &str, machine: &str) -> Self {
        // The name of the program is in brackets, and may have spaces and brackets in it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // Fields are numbered from 1, and the third is the first after the name.
        let ticks = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let seconds = |number: usize| Some(ticks(number)? / TICKS_PER_SECOND);
        let kib = |name: &str| value_of(status, name)?.parse::<u64>().ok()?.checked_mul(1024);
        let booted = value_of(machine, "btime").and_then(|seconds| seconds.parse::<f64>().ok());
        Self {
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            open_files: None,
            cpu_seconds: seconds(14).zip(seconds(15)).map(|(user, system)| user + system),
            started_at: booted.zip(seconds(22)).map(|(booted, after)| booted + after),
        }
    }
}

/// The word that follows `name` on a line.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_tells_is_read_whatever_the_program_is_called() {
        let status = "Name:\tkvnode\nVmPeak:\t  3000 kB\nVmSize:\t  2000 kB\nVmRSS:\t   1000 kB\n";
        let stat =
            "42 (kv) node) x) S 1 42 42 0 -1 4194304 100 0 0 0 250 150 0 0 20 0 9 0 112583 3133440 409 0";
        let machine = "cpu  1 2 3\nbtime 1700000000\nprocesses 7\n";
        let usage = Usage::of(status, stat, machine);
        assert_eq!((usage.resident_bytes, usage.virtual_bytes), (Some(1_024_000), Some(2_048_000)));
        assert_eq!(usage.cpu_seconds, Some(4.0));
        assert_eq!(usage.started_at, Some(1_700_001_125.83));
    }

    #[test]
    fn what_is_not_told_is_not_known() {
        assert_eq!(Usage::of("", "", ""), Usage::default());
        assert_eq!(Usage::of("VmRSS: much kB", "1 (x) S 1", "btime"), Usage::default());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_measured() {
        let usage = Usage::now();
        assert!(
            usage.resident_bytes > Some(1 << 20) && usage.virtual_bytes >= usage.resident_bytes,
            "{usage:?}"
        );
        assert!(usage.open_files > Some(2) && usage.cpu_seconds >= Some(0.0), "{usage:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let age = now.as_secs_f64() - usage.started_at.expect("known");
        assert!((-2.0..86_400.0).contains(&age), "{usage:?}");
    }
}
