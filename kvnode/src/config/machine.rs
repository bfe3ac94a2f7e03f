//! What a node may use of the machine when nobody said.

use std::fs;

use super::ByteCount;

/// Used when nothing can be read of the machine.
const FALLBACK: ByteCount = ByteCount::mebi(512);

/// What a process without a limit takes of the machine's memory: others run there too.
const SHARE_OF_RAM: u64 = 4;

/// The least that a node can work with.
pub const MIN_MEMORY: ByteCount = ByteCount::mebi(192);

/// The default of `--memory`: the limit of the process's cgroup, which may be too little, else a quarter of the machine's memory.
pub fn memory_of_this_machine() -> ByteCount {
    default_memory(|path| fs::read_to_string(path).ok())
}

/// The same over any source of files.
fn default_memory(read: impl Fn(&str) -> Option<String>) -> ByteCount {
    let ram = read("/proc/meminfo").and_then(|text| total_ram(&text));
    match (cgroup_limit(&read), ram) {
        // Without a limit, version 1 reports a number that exceeds any memory.
        (Some(limit), Some(ram)) if limit < ram => ByteCount(limit),
        (Some(limit), None) => ByteCount(limit),
        (_, Some(ram)) => ByteCount(ram / SHARE_OF_RAM).max(MIN_MEMORY),
        (None, None) => FALLBACK,
    }
}

fn total_ram(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The least limit from the process's cgroup up to the root: each of them binds.
fn cgroup_limit(read: &impl Fn(&str) -> Option<String>) -> Option<u64> {
    let membership = read("/proc/self/cgroup").unwrap_or_default();
    let mut limits = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            let limit = read(&format!("{mount}{path}/{file}"));
            limits.extend(limit.and_then(|text| text.trim().parse::<u64>().ok()));
            match path.rsplit_once('/') {
                Some((parent, _)) => path = parent,
                None => break,
            }
        }
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::{ByteCount, FALLBACK, MIN_MEMORY, default_memory};

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n");

    fn memory(files: &[(&str, &str)]) -> ByteCount {
        default_memory(|path| {
            files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn without_a_limit_a_node_takes_a_quarter_of_the_memory() {
        assert_eq!(memory(&[MEMINFO]), ByteCount::mebi(2048));
        let unlimited = [MEMINFO, ("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "max\n")];
        assert_eq!(memory(&unlimited), ByteCount::mebi(2048));
    }

    #[test]
    fn the_least_limit_on_the_way_to_the_root_counts() {
        let files = [
            MEMINFO,
            ("/proc/self/cgroup", "0::/kube/pod\n"),
            ("/sys/fs/cgroup/kube/pod/memory.max", "max\n"),
            ("/sys/fs/cgroup/kube/memory.max", "1073741824\n"),
        ];
        assert_eq!(memory(&files), ByteCount::mebi(1024));
    }

    #[test]
    fn a_small_machine_gives_what_a_node_needs_and_a_small_limit_is_told() {
        assert_eq!(memory(&[("/proc/meminfo", "MemTotal: 500000 kB\n")]), MIN_MEMORY);
        let limit = ("/sys/fs/cgroup/memory.max", "67108864\n");
        assert_eq!(memory(&[MEMINFO, ("/proc/self/cgroup", "0::/\n"), limit]), ByteCount::mebi(64));
    }

    #[test]
    fn version_one_of_cgroups_is_read() {
        let files = |limit| {
            [
                MEMINFO,
                ("/proc/self/cgroup", "3:cpu:/a\n2:memory:/\n"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", limit),
            ]
        };
        assert_eq!(memory(&files("536870912")), ByteCount::mebi(512));
        assert_eq!(memory(&files("9223372036854771712")), ByteCount::mebi(2048), "no limit");
    }

    #[test]
    fn an_unreadable_machine_gives_a_small_default() {
        assert_eq!(memory(&[]), FALLBACK);
        assert_eq!(memory(&[("/proc/meminfo", "MemTotal: many")]), FALLBACK);
    }
}
