//! `kv.v1` of a node of pretence.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use kv_proto::kv::v1::{
    self as proto, batch_operation::Operation, batch_result::Result as Answer, kv_server::Kv,
};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    FakeNode, index,
    script::{Fault, failure_of, refusal},
    shard_of,
};

pub(super) type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

impl FakeNode {
    /// Runs `done` as the scripted fault allows.
    pub(super) async fn unary<R>(
        &self,
        method: &'static str,
        key: &[u8],
        done: impl FnOnce() -> R,
    ) -> Result<R, Status> {
        match self.called(method) {
            None | Some(Fault::None) => {
                self.check_leader(key)?;
                Ok(done())
            }
            Some(Fault::Refuse(status)) => Err(status),
            Some(Fault::Lose(status)) => {
                done();
                Err(status)
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::BreakAfter(..) | Fault::EndAfter(_) | Fault::FlipBit) => panic!("not for {method}"),
        }
    }

    pub(super) fn check_leader(&self, key: &[u8]) -> Result<(), Status> {
        let state = self.shared.state();
        let leader = state.leaders[index(shard_of(key).into())];
        if !state.strict || leader == self.id {
            return Ok(());
        }
        let (id, address) = (leader.to_string(), self.shared.address(leader));
        let hint = [("leader_node_id", id.as_str()), ("leader_address", address.as_str())];
        Err(refusal(Code::Unavailable, "NOT_APPLIED_NOT_LEADER", &hint, None))
    }

    pub(super) fn header(&self, key: &[u8]) -> Option<proto::ResponseHeader> {
        let state = self.shared.state();
        let shard_id = shard_of(key);
        let leads = state.leaders[index(shard_id.into())] == self.id;
        Some(proto::ResponseHeader {
            cluster_id: "fake".to_owned(),
            node_id: self.id,
            shard_id,
            revision: state.store.revision,
            term: 1,
            map_epoch: state.epoch,
            served_by: if leads { 1 } else { 2 },
        })
    }

    /// Messages with the scripted fault among them.
    async fn streamed<M: Send + 'static>(
        &self,
        method: &'static str,
        messages: impl FnOnce() -> Vec<M>,
    ) -> Result<Response<Messages<M>>, Status> {
        let (count, end) = match self.called(method) {
            None | Some(Fault::None | Fault::FlipBit) => (usize::MAX, None),
            Some(Fault::Refuse(status)) => return Err(status),
            Some(Fault::Lose(status)) => {
                messages();
                return Err(status);
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::BreakAfter(count, status)) => (count, Some(Err(status))),
            Some(Fault::EndAfter(count)) => (count, None),
        };
        let messages: Vec<_> = messages().into_iter().take(count).map(Ok).chain(end).collect();
        let shared = self.shared.clone();
        let messages = stream::iter(messages).inspect(move |_| {
            *shared.state().taken.entry(method).or_default() += 1;
        });
        Ok(Response::new(messages.boxed()))
    }
}

#[tonic::async_trait]
impl Kv for FakeNode {
    type DeleteRangeStream = Messages<proto::DeleteRangeResponse>;
    type ScanStream = Messages<proto::ScanResponse>;
    type DownloadStream = Messages<proto::DownloadResponse>;
    type BatchStream = Messages<proto::BatchResponse>;

    async fn batch(
        &self,
        request: Request<Streaming<proto::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        self.stream(request.into_inner())
    }

    async fn open_session(
        &self,
        request: Request<proto::OpenSessionRequest>,
    ) -> Result<Response<proto::OpenSessionResponse>, Status> {
        self.open(request.into_inner()).await.map(Response::new)
    }

    async fn close_session(
        &self,
        request: Request<proto::CloseSessionRequest>,
    ) -> Result<Response<proto::CloseSessionResponse>, Status> {
        let mut state = self.shared.state();
        state.calls.push((self.id, "CloseSession"));
        state.sessions.close(request.into_inner().session_id);
        Ok(Response::new(proto::CloseSessionResponse::default()))
    }

    async fn put(&self, request: Request<proto::PutRequest>) -> Result<Response<proto::PutResponse>, Status> {
        match self.small(Operation::Put(request.into_inner())).await? {
            Answer::Put(reply) => Ok(Response::new(reply)),
            other => panic!("{other:?}"),
        }
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        match self.small(Operation::Get(request.into_inner())).await? {
            Answer::Get(reply) => Ok(Response::new(reply)),
            other => panic!("{other:?}"),
        }
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        match self.small(Operation::Delete(request.into_inner())).await? {
            Answer::Delete(reply) => Ok(Response::new(reply)),
            other => panic!("{other:?}"),
        }
    }

    async fn delete_range(
        &self,
        request: Request<proto::DeleteRangeRequest>,
    ) -> Result<Response<Self::DeleteRangeStream>, Status> {
        let range = request.into_inner().range.unwrap_or_default();
        self.streamed("DeleteRange", || {
            let mut state = self.shared.state();
            let keys = state.store.keys(&range, false);
            let (steps, mut messages) = (keys.chunks(state.page_keys).count(), Vec::new());
            for (step, keys) in keys.chunks(state.page_keys).enumerate() {
                for key in keys {
                    state.store.delete(proto::DeleteRequest { key: key.clone(), ..Default::default() });
                }
                let last = step + 1 == steps;
                let next_page_token = if last { Bytes::new() } else { keys[keys.len() - 1].clone() };
                messages.push(proto::DeleteRangeResponse {
                    header: None,
                    deleted: keys.len() as u64,
                    next_page_token,
                });
            }
            messages
        })
        .await
    }

    async fn scan(&self, request: Request<proto::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        self.streamed("Scan", || {
            let state = self.shared.state();
            let mut keys = state.store.keys(&request.range.clone().unwrap_or_default(), request.reverse);
            // The token is the last key that was returned.
            keys.retain(|key| {
                let behind =
                    if request.reverse { key < &request.page_token } else { key > &request.page_token };
                request.page_token.is_empty() || behind
            });
            let limit = usize::try_from(request.limit).unwrap();
            let more = limit != 0 && keys.len() > limit;
            if more {
                keys.truncate(limit);
            }
            let pages: Vec<&[Bytes]> = keys.chunks(state.page_keys).collect();
            let page = |(number, keys): (usize, &&[Bytes])| {
                let last = number + 1 == pages.len() && !more;
                let kvs = keys.iter().filter_map(|key| state.store.describe(key, !request.keys_only));
                proto::ScanResponse {
                    header: None,
                    kvs: if request.count_only { Vec::new() } else { kvs.collect() },
                    count: if request.count_only { keys.len() as u64 } else { 0 },
                    next_page_token: if last { Bytes::new() } else { keys[keys.len() - 1].clone() },
                }
            };
            pages.iter().enumerate().map(page).take(state.pages_per_call).collect()
        })
        .await
    }

    async fn batch_get(
        &self,
        request: Request<proto::BatchGetRequest>,
    ) -> Result<Response<proto::BatchGetResponse>, Status> {
        let request = request.into_inner();
        let done = || {
            let state = self.shared.state();
            let get = |key: &Bytes| {
                state.store.get(&proto::GetRequest {
                    key: key.clone(),
                    metadata_only: request.metadata_only,
                    ..Default::default()
                })
            };
            // A full reply: the client has to ask for the rest.
            request.keys.iter().take(state.page_keys).map(get).collect()
        };
        let results = self.unary("BatchGet", b"", done).await?;
        Ok(Response::new(proto::BatchGetResponse { results }))
    }

    async fn bulk_write(
        &self,
        request: Request<proto::BulkWriteRequest>,
    ) -> Result<Response<proto::BulkWriteResponse>, Status> {
        use proto::{write_operation::Operation as Write, write_outcome::Outcome};
        let operations = request.into_inner().operations;
        // One operation of a bulk is refused once when its node is told so by an EndAfter.
        let fault = self.called("BulkWrite");
        let refused = match &fault {
            None | Some(Fault::None | Fault::Lose(_)) => usize::MAX,
            Some(Fault::EndAfter(refused)) => *refused,
            Some(Fault::Refuse(status)) => return Err(status.clone()),
            Some(Fault::Hang | Fault::BreakAfter(..) | Fault::FlipBit) => panic!("not for BulkWrite"),
        };
        let outcome = |(number, operation): (usize, proto::WriteOperation)| {
            if number == refused {
                let failure = failure_of(&super::script::no_leader());
                return proto::WriteOutcome { outcome: Some(Outcome::Failure(failure)) };
            }
            let done = match operation.operation.unwrap() {
                Write::Put(put) => self.execute(Operation::Put(put)),
                Write::Delete(delete) => self.execute(Operation::Delete(delete)),
            };
            let outcome = match done {
                Ok(Answer::Put(put)) => Outcome::Put(put),
                Ok(Answer::Delete(delete)) => Outcome::Delete(delete),
                Ok(other) => panic!("{other:?}"),
                Err(status) => Outcome::Failure(failure_of(&status)),
            };
            proto::WriteOutcome { outcome: Some(outcome) }
        };
        let outcomes = operations.into_iter().enumerate().map(outcome).collect();
        if let Some(Fault::Lose(status)) = fault {
            return Err(status);
        }
        Ok(Response::new(proto::BulkWriteResponse { outcomes }))
    }

    async fn txn(&self, request: Request<proto::TxnRequest>) -> Result<Response<proto::TxnResponse>, Status> {
        match self.small(Operation::Txn(request.into_inner())).await? {
            Answer::Txn(reply) => Ok(Response::new(reply)),
            other => panic!("{other:?}"),
        }
    }

    async fn upload(
        &self,
        request: Request<Streaming<proto::UploadRequest>>,
    ) -> Result<Response<proto::UploadResponse>, Status> {
        let fault = self.called("Upload");
        let mut guard = UploadGuard { node: self, ended: false };
        let mut messages = request.into_inner();
        let Some(proto::upload_request::Part::Header(header)) =
            messages.message().await?.and_then(|m| m.part)
        else {
            return Err(refusal(Code::InvalidArgument, "NO_HEADER", &[], None));
        };
        if let Some(Fault::Refuse(status)) = fault {
            return Err(status);
        }
        // As the store does: a precondition that does not hold is told before the bytes come.
        if !self.shared.state().store.holds(&header.key, header.precondition) {
            guard.ended = true;
            let kv = self.shared.state().store.describe(&header.key, false);
            return Ok(Response::new(proto::UploadResponse { header: None, applied: false, kv }));
        }
        let mut value = self.shared.state().store.take_partial(&header.upload_id);
        if value.len() as u64 != header.resume_from_bytes {
            let stored = value.len().to_string();
            self.shared.state().store.partial.insert(header.upload_id, value);
            guard.ended = true;
            return Err(refusal(
                Code::FailedPrecondition,
                "UPLOAD_OFFSET",
                &[("stored_bytes", &stored)],
                None,
            ));
        }
        let mut count = 0;
        loop {
            if let Some(Fault::BreakAfter(after, status)) = &fault
                && count == *after
            {
                let mut state = self.shared.state();
                state.store.partial.insert(header.upload_id, value);
                return Err(status.clone());
            }
            match messages.message().await {
                Ok(Some(proto::UploadRequest { part: Some(proto::upload_request::Part::Data(data)) })) => {
                    self.shared.state().store.received_bytes += data.len() as u64;
                    value.extend_from_slice(&data);
                    count += 1;
                }
                Ok(Some(_)) => return Err(refusal(Code::InvalidArgument, "SECOND_HEADER", &[], None)),
                Ok(None) => break,
                Err(status) => return Err(status),
            }
        }
        if header.size_bytes.is_some_and(|promised| promised != value.len() as u64) {
            return Err(super::script::bad_field("header.size_bytes", "another length came"));
        }
        guard.ended = true;
        let mut reply = self.commit(header, value, matches!(fault, Some(Fault::FlipBit)))?;
        match fault {
            Some(Fault::Lose(status)) => Err(status),
            _ => {
                let key = reply.kv.as_ref().map(|kv| kv.key.clone()).unwrap_or_default();
                reply.header = self.header(&key);
                Ok(Response::new(reply))
            }
        }
    }

    async fn download(
        &self,
        request: Request<proto::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let request = request.into_inner();
        let header = self.header(&request.key);
        let flip = {
            let state = self.shared.state();
            matches!(state.scripts[index(self.id)].front(), Some(Fault::FlipBit))
        };
        self.streamed("Download", || {
            let state = self.shared.state();
            let Some(record) = state.store.records.get(&request.key) else {
                let header = proto::download_response::Header { header, ..Default::default() };
                return vec![part(proto::download_response::Part::Header(header))];
            };
            let size = record.value.len() as u64;
            let end = if request.length == 0 { size } else { size.min(request.offset + request.length) };
            let rest = usize::try_from(request.offset).unwrap()..usize::try_from(end).unwrap();
            let mut data = BytesMut::from(&record.value[rest]);
            if flip && let Some(byte) = data.last_mut() {
                *byte ^= 1;
            }
            let header = proto::download_response::Header {
                header,
                kv: state.store.describe(&request.key, false),
                blob: Some(record.blob()),
                length_bytes: data.len() as u64,
            };
            let pieces = data
                .chunks(1000)
                .map(|piece| part(proto::download_response::Part::Data(Bytes::copy_from_slice(piece))));
            [part(proto::download_response::Part::Header(header))].into_iter().chain(pieces).collect()
        })
        .await
    }
}

impl FakeNode {
    fn commit(
        &self,
        header: proto::upload_request::Header,
        mut value: BytesMut,
        flip: bool,
    ) -> Result<proto::UploadResponse, Status> {
        let mut state = self.shared.state();
        if flip && let Some(byte) = value.last_mut() {
            *byte ^= 1;
        }
        let put = proto::PutRequest {
            key: header.key.clone(),
            value: value.freeze(),
            precondition: header.precondition,
            ..Default::default()
        };
        let applied = state.store.put(put, true).applied;
        let kv = state.store.describe(&header.key, false);
        let sha256 = state.store.records.get(&header.key).map(|record| record.blob().sha256);
        if applied && !header.sha256.is_empty() && sha256.as_ref() != Some(&header.sha256) {
            state.store.records.remove(&header.key);
            return Err(super::script::bad_field("sha256", "the bytes that came have another one"));
        }
        Ok(proto::UploadResponse { header: None, applied, kv })
    }
}

/// Counts an upload as interrupted unless its stream ended in order. A client that resets its stream makes the server
/// drop the handler, not return from it.
struct UploadGuard<'n> {
    node: &'n FakeNode,
    ended: bool,
}

impl Drop for UploadGuard<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.node.shared.state().store.interrupted_uploads += 1;
        }
    }
}

fn part(part: proto::download_response::Part) -> proto::DownloadResponse {
    proto::DownloadResponse { part: Some(part) }
}
