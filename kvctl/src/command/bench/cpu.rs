//! How long this process has been on a processor.

use std::time::Duration;

/// Linux counts in ticks of 10 ms for all programs, whatever the kernel's own clock is.
const TICK: Duration = Duration::from_millis(10);
/// Fields after the name of the program, which is in parentheses: time in the program and in the kernel.
const USER_TICKS: usize = 11;
const KERNEL_TICKS: usize = 12;

/// Of all threads, in the program and in the kernel, to 10 ms. `None`: the system does not tell.
pub fn time() -> Option<Duration> {
    parse(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

fn parse(stat: &str) -> Option<Duration> {
    // The name may have spaces and parentheses of its own.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<u32>().ok();
    TICK.checked_mul(ticks(USER_TICKS)?.checked_add(ticks(KERNEL_TICKS)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_all_threads_is_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 200";
        assert_eq!(parse(stat), Some(Duration::from_secs(3)));
        assert_eq!(parse("garbage"), None);
        assert_eq!(parse("7 (x) S 1"), None);
    }
}
