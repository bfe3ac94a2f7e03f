//! Who asks, and why: what the cluster's journal keeps of a command.

use clap::Args;

/// Longest part of a name that is told, characters: the node refuses longer names than it can keep.
const PART_CHARS_MAX: usize = 64;

/// Why something is asked for.
#[derive(Clone, Debug, Default, Args)]
pub struct Because {
    /// Why, for the journal that `kvctl why` shows
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub reason: String,
}

/// `kvctl USER@HOST`, as far as they are known. What the environment says, nothing that was proved.
pub fn name() -> String {
    let user = ["USER", "LOGNAME"].into_iter().find_map(|variable| std::env::var(variable).ok());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    of(user.as_deref().unwrap_or_default(), host.as_deref().unwrap_or_default())
}

fn of(user: &str, host: &str) -> String {
    match (part(user), part(host)) {
        (user, _) if user.is_empty() => "kvctl".to_owned(),
        (user, host) if host.is_empty() => format!("kvctl {user}"),
        (user, host) => format!("kvctl {user}@{host}"),
    }
}

/// What may be printed anywhere of it.
fn part(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(PART_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_has_a_user_and_a_host_where_they_are_known() {
        assert_eq!(of("ada", "desk\n"), "kvctl ada@desk");
        assert_eq!(of("ada", ""), "kvctl ada");
        assert_eq!(of("", "desk"), "kvctl");
        assert_eq!(of("a\x1b[31m", "b c"), "kvctl a[31m@bc");
        assert_eq!(of(&"a".repeat(999), "é").len(), "kvctl ".len() + PART_CHARS_MAX);
    }
}
