//! Who asks for something, and why: goes with every command, for the journal.

use kv_proto::disk::v1::{MetaCommand, meta_command::Command};

use crate::meta::envelope;

/// Who asks without saying who.
const UNKNOWN: &str = "unknown";

/// Who asks, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    actor: String,
    reason: String,
}

impl Order {
    /// By `actor`; empty: unknown.
    pub fn by(actor: String, reason: String) -> Self {
        Self { actor: if actor.is_empty() { UNKNOWN.to_owned() } else { actor }, reason }
    }

    /// The command that carries it out, asked for now.
    pub fn to(&self, command: Command) -> MetaCommand {
        envelope::command(&self.actor, &self.reason, command)
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::meta_command::EndPermit;

    use super::*;

    #[test]
    fn a_command_says_who_asked_for_it_and_why_and_when() {
        let command = || Command::EndPermit(EndPermit { token: "t".to_owned() });
        let told = Order::by("kvctl".to_owned(), "done".to_owned()).to(command());
        assert_eq!((told.actor.as_str(), told.reason.as_str()), ("kvctl", "done"));
        assert_eq!(told.command, Some(command()));
        assert!(told.unix_ms > 0);
        assert_eq!(Order::by(String::new(), String::new()).to(command()).actor, "unknown");
    }
}
