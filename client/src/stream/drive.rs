//! The task of a stream: takes answers, notices what is late, and tells everybody when the stream ends.

use std::{pin::pin, sync::Arc};

use kv_http2::client::Connection;
use kv_proto::kv::v1::kv_client::KvClient;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::{Shared, Why, outgoing::Outgoing};

/// Tells everybody when the task ends, also when its runtime does.
struct Farewell {
    shared: Arc<Shared>,
    why: Why,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.shared.end(&self.why);
    }
}

/// Runs until the stream ends.
pub(super) async fn drive(mut kv: KvClient<Connection>, shared: Arc<Shared>) {
    let gone = Why::Broke(Arc::new(Status::cancelled("the client is being stopped")));
    let mut farewell = Farewell { shared: shared.clone(), why: gone };
    let opening = kv.batch(Outgoing::new(shared.clone()));
    let mut answers = match attend(&shared, opening).await {
        Some(Ok(reply)) => reply.into_inner(),
        Some(Err(status)) => {
            tracing::debug!(error = %status, "no stream of operations");
            farewell.why = Why::NotOpened(Arc::new(status));
            return;
        }
        None => return,
    };
    farewell.why = loop {
        match attend(&shared, answers.message()).await {
            Some(Ok(Some(message))) => shared.answered(message),
            Some(Ok(None)) | None => break Why::Over,
            Some(Err(status)) => {
                tracing::debug!(error = %status, "a stream of operations broke");
                break Why::Broke(Arc::new(status));
            }
        }
    };
}

/// Runs `work` to its end and answers meanwhile whoever is late. `None`: the stream is over on this side.
async fn attend<F: Future>(shared: &Shared, work: F) -> Option<F::Output> {
    let mut work = pin!(work);
    loop {
        let next = {
            let state = shared.state();
            if state.is_over {
                return None;
            }
            state.queue.next_deadline()
        };
        let late = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            output = &mut work => return Some(output),
            () = shared.changed.notified() => {}
            () = late => shared.expire(Instant::now()),
        }
    }
}
