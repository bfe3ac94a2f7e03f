//! The service `kv.v1.Kv`: from gRPC to the families of calls, and back.
//!
//! Nothing is decided here but who needs a share of what: replies that may be large, and streams.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream::BoxStream};
use kv_proto::kv::v1::{
    BatchGetRequest, BatchGetResponse, BatchRequest, BatchResponse, BulkWriteRequest, BulkWriteResponse,
    CloseSessionRequest, CloseSessionResponse, DeleteRangeRequest, DeleteRangeResponse, DeleteRequest,
    DeleteResponse, DownloadRequest, DownloadResponse, GetRequest, GetResponse, OpenSessionRequest,
    OpenSessionResponse, PutRequest, PutResponse, ScanRequest, ScanResponse, TxnRequest, TxnResponse,
    UploadRequest, UploadResponse, key_value, kv_server::Kv, txn_operation, write_operation,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::{
    batch_stream::{Streams, batch_stream},
    context::Context,
    deadline::Deadline,
    delete_range::delete_range,
    download::download,
    error::Refused,
    limits::{DOWNLOAD_BYTES, SMALL_REPLY_BYTES_MAX, TINY_REPLY_BYTES_MAX},
    port::Arrival,
    quota::{ConnectionQuota, ReplyBytes, Sending, Share},
    scan::scan,
    upload::upload,
};
use crate::{net::places::Line, router::store::Store};

/// A streamed reply.
pub type Replies<T> = BoxStream<'static, Result<T, Status>>;

/// What a request brings beside its message.
pub struct Caller {
    /// Its time.
    pub deadline: Deadline,
    /// When it must be answered, if it is unary: the same moment for each of its steps.
    until: Instant,
    /// Its connection; `None` without a server around it.
    connection: Option<Arc<ConnectionQuota>>,
}

impl Caller {
    /// Of a request; without a server around it, of one that has just come in.
    pub fn of<T>(request: &Request<T>) -> Self {
        let arrival = request.extensions().get::<Arrival>();
        let at = arrival.map_or_else(Instant::now, |arrival| arrival.at);
        let deadline = Deadline::of(request.metadata(), at);
        let connection = arrival.map(|arrival| arrival.connection.clone());
        Self { deadline, until: deadline.unary(at), connection }
    }

    /// When a unary call must be answered.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Its connection; `None` without a server around it.
    pub fn connection(&self) -> Option<&Arc<ConnectionQuota>> {
        self.connection.as_ref()
    }

    /// The share of a stream.
    ///
    /// # Errors
    /// When too many are running.
    pub fn stream_share(&self) -> Result<Option<Share>, Refused> {
        self.connection.as_ref().map(|connection| connection.stream()).transpose()
    }

    /// The share of a large reply; waits for it.
    ///
    /// # Errors
    /// When there was none in time.
    pub async fn large_share(&self, is_large: bool) -> Result<Option<Share>, Refused> {
        match &self.connection {
            Some(connection) if is_large => connection.large_reply(self.until()).await.map(Some),
            _ => Ok(None),
        }
    }

    /// Room for so many bytes that are read for the caller; waits for it.
    ///
    /// # Errors
    /// When there was none in time.
    async fn room(&self, bytes: usize) -> Result<Option<ReplyBytes>, Refused> {
        match &self.connection {
            Some(connection) => connection.reply_bytes(bytes, Line::Usual, self.until()).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads one key, and finds room for the reply: what is small takes that of its bytes, anything else the share of a large
    /// one. While there is none, the value is let go and read again later: those who wait hold nothing.
    ///
    /// # Errors
    /// See the table of errors.
    pub async fn get<S: Store>(
        &self,
        context: &Context<S>,
        request: GetRequest,
    ) -> Result<(GetResponse, Option<Share>), Refused> {
        let until = self.until();
        let got = context.get(request.clone(), until).await?;
        let bytes = value_bytes(&got);
        let Some(connection) = self.connection.as_ref().filter(|_| bytes > TINY_REPLY_BYTES_MAX) else {
            return Ok((got, None));
        };
        if bytes <= SMALL_REPLY_BYTES_MAX {
            if let Some(held) = connection.reply_bytes_now(bytes) {
                return Ok((got, Some(held.into())));
            }
            drop(got);
            let mut held = connection.reply_bytes(SMALL_REPLY_BYTES_MAX, Line::Little, until).await?;
            let got = context.get(request.clone(), until).await?;
            let bytes = value_bytes(&got);
            if bytes <= SMALL_REPLY_BYTES_MAX {
                held.keep(bytes);
                return Ok((got, Some(held.into())));
            }
            // It is another value by now.
        } else if let Some(share) = connection.large_reply_now() {
            return Ok((got, Some(share)));
        } else {
            drop(got);
        }
        let share = connection.large_reply(until).await?;
        Ok((context.get(request, until).await?, Some(share)))
    }
}

fn value_bytes(got: &GetResponse) -> usize {
    match got.kv.as_ref().and_then(|kv| kv.value.as_ref()) {
        Some(key_value::Value::Inline(value)) => value.len(),
        Some(key_value::Value::Blob(_)) | None => 0,
    }
}

/// A reply that holds `share` until its last byte was sent.
pub fn holding<T>(message: T, share: Option<Share>) -> Response<T> {
    let mut response = Response::new(message);
    share.and_then(|share| response.extensions_mut().insert(share));
    response
}

/// A streamed reply whose pieces hold what `sending` says.
pub fn response_of<T>(mut response: Response<T>, sending: Sending) -> Response<T> {
    response.extensions_mut().insert(sending);
    response
}

/// The service.
pub struct KvService<S>(Arc<Context<S>>, Arc<Streams>);

impl<S: Store> KvService<S> {
    /// Over `context`, with what Batch streams share.
    pub fn new(context: Arc<Context<S>>, streams: Arc<Streams>) -> Self {
        Self(context, streams)
    }

    fn answer<T>(&self, result: Result<T, Refused>) -> Result<Response<T>, Status> {
        result.map(Response::new).map_err(|refused| self.0.status(&refused))
    }

    async fn large_share(&self, caller: &Caller, is_large: bool) -> Result<Option<Share>, Status> {
        caller.large_share(is_large).await.map_err(|refused| self.0.status(&refused))
    }

    fn answer_with<T>(
        &self,
        result: Result<T, Refused>,
        share: Option<Share>,
    ) -> Result<Response<T>, Status> {
        result.map(|message| holding(message, share)).map_err(|refused| self.0.status(&refused))
    }
}

/// A stream whose refusals are statuses, and which holds its share while it lives.
pub fn replies<S: Store, T: Send + 'static>(
    context: Arc<Context<S>>,
    messages: impl Stream<Item = Result<T, Refused>> + Send + 'static,
    share: impl Send + 'static,
) -> Replies<T> {
    messages
        .map(move |message| {
            let _held = &share;
            message.map_err(|refused| context.status(&refused))
        })
        .boxed()
}

fn bulk_returns_values(request: &BulkWriteRequest) -> bool {
    request.operations.iter().any(|operation| match &operation.operation {
        Some(write_operation::Operation::Put(put)) => put.return_previous,
        Some(write_operation::Operation::Delete(delete)) => delete.return_previous,
        None => false,
    })
}

fn txn_returns_values(request: &TxnRequest) -> bool {
    request.then.iter().chain(&request.r#else).any(|operation| match &operation.operation {
        Some(txn_operation::Operation::Get(get)) => !get.metadata_only,
        Some(txn_operation::Operation::Put(put)) => put.return_previous,
        Some(txn_operation::Operation::Delete(delete)) => delete.return_previous,
        None => false,
    })
}

#[tonic::async_trait]
impl<S: Store> Kv for KvService<S> {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let share = self.large_share(&caller, request.return_previous).await?;
        self.answer_with(self.0.put(request, caller.until()).await, share)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let caller = Caller::of(&request);
        let got = caller.get(&self.0, request.into_inner()).await;
        got.map(|(got, share)| holding(got, share)).map_err(|refused| self.0.status(&refused))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let share = self.large_share(&caller, request.return_previous).await?;
        self.answer_with(self.0.delete(request, caller.until()).await, share)
    }

    async fn batch_get(
        &self,
        request: Request<BatchGetRequest>,
    ) -> Result<Response<BatchGetResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let share = self.large_share(&caller, !request.metadata_only).await?;
        self.answer_with(self.0.batch_get(request, caller.until()).await, share)
    }

    async fn bulk_write(
        &self,
        request: Request<BulkWriteRequest>,
    ) -> Result<Response<BulkWriteResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let share = self.large_share(&caller, bulk_returns_values(&request)).await?;
        self.answer_with(self.0.bulk_write(request, caller.until()).await, share)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let share = self.large_share(&caller, txn_returns_values(&request)).await?;
        self.answer_with(self.0.txn(request, caller.until()).await, share)
    }

    type BatchStream = Replies<BatchResponse>;

    async fn batch(
        &self,
        request: Request<Streaming<BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        let caller = Caller::of(&request);
        let sending = Sending::default();
        let replies = batch_stream(&self.0, &self.1, &caller, request.into_inner(), sending.clone());
        self.answer(replies).map(|response| response_of(response, sending))
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let until = Caller::of(&request).until();
        self.answer(self.0.open_session(request.into_inner(), until).await)
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let until = Caller::of(&request).until();
        self.answer(self.0.close_session(request.into_inner(), until).await)
    }

    type ScanStream = Replies<ScanResponse>;

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let caller = Caller::of(&request);
        let sending = Sending::default();
        let messages = caller.stream_share().and_then(|share| {
            let messages = scan(self.0.clone(), request.into_inner(), &caller, sending.clone())?;
            Ok(replies(self.0.clone(), messages, share))
        });
        self.answer(messages).map(|response| response_of(response, sending))
    }

    type DeleteRangeStream = Replies<DeleteRangeResponse>;

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<Self::DeleteRangeStream>, Status> {
        let caller = Caller::of(&request);
        let messages = caller.stream_share().and_then(|share| {
            let messages = delete_range(self.0.clone(), request.into_inner(), caller.deadline)?;
            Ok(replies(self.0.clone(), messages, share))
        });
        self.answer(messages)
    }

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let caller = Caller::of(&request);
        let share = caller.stream_share().map_err(|refused| self.0.status(&refused))?;
        // Boxed: the window of an upload makes for a large future.
        let uploaded = Box::pin(upload(self.0.clone(), request.into_inner(), caller.deadline)).await;
        drop(share);
        self.answer(uploaded)
    }

    type DownloadStream = Replies<DownloadResponse>;

    async fn download(
        &self,
        request: Request<DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let caller = Caller::of(&request);
        let place = caller.stream_share().map_err(|refused| self.0.status(&refused))?;
        let room = caller.room(DOWNLOAD_BYTES).await.map_err(|refused| self.0.status(&refused))?;
        let messages = download(self.0.clone(), request.into_inner(), caller.deadline).await;
        let messages = messages.map(|messages| replies(self.0.clone(), messages, place));
        self.answer_with(messages, room.map(Share::from))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::{
        limits::DEADLINE_DEFAULT,
        quota::{Capacity, NodeQuota},
    };

    #[tokio::test(start_paused = true)]
    async fn all_steps_of_a_unary_call_share_the_time_that_begins_with_its_arrival() {
        let node = NodeQuota::new(&Capacity::default(), Default::default());
        let connection = ConnectionQuota::new(&node, ([127, 0, 0, 1], 9).into()).expect("room");
        let at = Instant::now();
        for (timeout, until) in [(None, DEADLINE_DEFAULT), (Some("3S"), Duration::from_secs(3))] {
            let mut request = Request::new(());
            request.extensions_mut().insert(Arrival { at, connection: connection.clone() });
            if let Some(timeout) = timeout {
                request.metadata_mut().insert("grpc-timeout", timeout.parse().expect("ASCII"));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
            let caller = Caller::of(&request);
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(caller.until(), at + until, "{timeout:?}");
        }
    }
}
