//! Clients that write without a pause, and remember when each write was begun and acknowledged.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kv_client::{Address, Client};
use tokio::task::JoinHandle;

/// One write as its caller saw it.
#[derive(Clone, Debug)]
pub struct Call {
    /// When it was made.
    pub begun: Instant,
    /// When it had an answer.
    pub ended: Instant,
    /// What the client could not mend.
    pub error: Option<String>,
}

impl Call {
    /// From the call to the answer.
    pub fn latency(&self) -> Duration {
        self.ended.duration_since(self.begun)
    }
}

/// Running clients.
pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Call>>>,
}

impl Writers {
    /// A task for each key, with one client in common, as a program has it.
    ///
    /// # Errors
    /// When the addresses make no client.
    pub fn start(nodes: &[SocketAddr], keys: Vec<String>, value_size: usize) -> Result<Self> {
        let client = client(nodes)?;
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = keys.into_iter().map(|key| {
            let (client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move { write(&client, &key, value_size, &stop).await })
        });
        Ok(Self { tasks: tasks.collect(), stop })
    }

    /// Ends the clients, and gives their calls.
    ///
    /// # Errors
    /// When one has panicked.
    pub async fn finish(self) -> Result<Vec<Vec<Call>>> {
        self.stop.store(true, Relaxed);
        let mut calls = Vec::new();
        for task in self.tasks {
            calls.push(task.await.context("a writer")?);
        }
        Ok(calls)
    }
}

/// A client that knows all nodes.
///
/// # Errors
/// When the addresses make no client.
pub fn client(nodes: &[SocketAddr]) -> Result<Client> {
    let addresses: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    Ok(Client::builder(Address::parse_list(&addresses.join(","))?).build()?)
}

async fn write(client: &Client, key: &str, value_size: usize, stop: &AtomicBool) -> Vec<Call> {
    let value = vec![7; value_size];
    let mut calls = Vec::new();
    while !stop.load(Relaxed) {
        let begun = Instant::now();
        let error = client.put(key, value.clone()).await.err().map(|error| error.to_string());
        calls.push(Call { begun, ended: Instant::now(), error });
    }
    calls
}

/// The longest time between two acknowledged writes of one client.
pub fn longest_gap(calls: &[Call]) -> Duration {
    let acknowledged: Vec<Instant> =
        calls.iter().filter(|call| call.error.is_none()).map(|call| call.ended).collect();
    let gaps = acknowledged.windows(2).map(|pair| pair[1].duration_since(pair[0]));
    gaps.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_ends_no_gap() {
        let zero = Instant::now();
        let call = |ended: u64, error: bool| Call {
            begun: zero,
            ended: zero + Duration::from_millis(ended),
            error: error.then(|| "away".to_owned()),
        };
        let calls = [call(0, false), call(10, false), call(200, true), call(510, false), call(530, false)];
        assert_eq!(longest_gap(&calls), Duration::from_millis(500));
        assert_eq!(longest_gap(&calls[..1]), Duration::ZERO);
    }
}
