//! The service `kv.v1.KvText`: the same store with keys and values as text.
//!
//! A key that is not UTF-8 cannot be asked for here; in a scan its bytes are shown with replacement characters. A
//! value that is not UTF-8 comes as bytes.

use std::sync::Arc;

use futures::StreamExt;
use kv_proto::kv::v1::{
    DeleteRequest, GetRequest, KeyRange, KeyValue, PutRequest, ScanRequest, ScanResponse, TextDeleteRequest,
    TextDeleteResponse, TextGetRequest, TextGetResponse, TextKeyValue, TextPutRequest, TextPutResponse,
    TextScanRequest, TextScanResponse, key_value, kv_text_server::KvText, text_key_value,
};
use tonic::{Request, Response, Status};

use super::{
    context::Context,
    error::Refused,
    kv::{Caller, Replies, holding, replies, response_of},
    quota::Sending,
    scan::scan,
    validate::Violation,
};
use crate::router::store::Store;

/// The service.
pub struct KvTextService<S>(Arc<Context<S>>);

impl<S: Store> KvTextService<S> {
    /// Over `context`.
    pub fn new(context: Arc<Context<S>>) -> Self {
        Self(context)
    }
}

fn text(kv: KeyValue) -> TextKeyValue {
    let KeyValue { key, create_revision, mod_revision, version, value } = kv;
    let value = value.map(|value| match value {
        key_value::Value::Blob(blob) => text_key_value::Value::Blob(blob),
        key_value::Value::Inline(bytes) => match String::from_utf8(bytes.to_vec()) {
            Ok(text) => text_key_value::Value::Text(text),
            Err(_) => text_key_value::Value::Binary(bytes),
        },
    });
    TextKeyValue {
        key: String::from_utf8_lossy(&key).into_owned(),
        create_revision,
        mod_revision,
        version,
        value,
    }
}

fn scan_request(request: TextScanRequest) -> ScanRequest {
    let TextScanRequest { prefix, start, end, limit, keys_only, count_only, reverse, page_token, options } =
        request;
    let range = KeyRange { start: start.into(), end: end.into(), prefix: prefix.into() };
    ScanRequest {
        range: Some(range),
        limit,
        max_bytes: 0,
        keys_only,
        count_only,
        reverse,
        page_token,
        options,
    }
}

fn scan_response(response: ScanResponse) -> TextScanResponse {
    let ScanResponse { header, kvs, count, next_page_token } = response;
    TextScanResponse { header, kvs: kvs.into_iter().map(text).collect(), count, next_page_token }
}

/// In this request the fields of the range stand by themselves.
fn renamed(refused: Refused) -> Refused {
    match refused {
        Refused::Invalid(Violation { field, description }) => {
            let field = field.strip_prefix("range.").map_or(field.clone(), str::to_owned);
            Refused::Invalid(Violation { field, description })
        }
        other => other,
    }
}

#[tonic::async_trait]
impl<S: Store> KvText for KvTextService<S> {
    async fn put(&self, request: Request<TextPutRequest>) -> Result<Response<TextPutResponse>, Status> {
        let caller = Caller::of(&request);
        let TextPutRequest {
            key,
            value,
            precondition,
            return_previous,
            session_id,
            sequence,
            lowest_outstanding,
        } = request.into_inner();
        let request = PutRequest {
            key: key.into(),
            value: value.into(),
            precondition,
            return_previous,
            session_id,
            sequence,
            lowest_outstanding,
        };
        let share = caller.large_share(return_previous).await.map_err(|refused| self.0.status(&refused))?;
        let put = self.0.put(request, caller.until()).await.map_err(|refused| self.0.status(&refused))?;
        let response = TextPutResponse {
            header: put.header,
            applied: put.applied,
            previous: put.previous.map(text),
            mod_revision: put.mod_revision,
            version: put.version,
            replayed: put.replayed,
        };
        Ok(holding(response, share))
    }

    async fn get(&self, request: Request<TextGetRequest>) -> Result<Response<TextGetResponse>, Status> {
        let caller = Caller::of(&request);
        let TextGetRequest { key, options } = request.into_inner();
        let request = GetRequest { key: key.into(), options, metadata_only: false };
        let got = caller.get(&self.0, request).await;
        let (got, share) = got.map_err(|refused| self.0.status(&refused))?;
        Ok(holding(TextGetResponse { header: got.header, kv: got.kv.map(text) }, share))
    }

    async fn delete(
        &self,
        request: Request<TextDeleteRequest>,
    ) -> Result<Response<TextDeleteResponse>, Status> {
        let caller = Caller::of(&request);
        let TextDeleteRequest {
            key,
            precondition,
            return_previous,
            session_id,
            sequence,
            lowest_outstanding,
        } = request.into_inner();
        let request = DeleteRequest {
            key: key.into(),
            precondition,
            return_previous,
            session_id,
            sequence,
            lowest_outstanding,
        };
        let share = caller.large_share(return_previous).await.map_err(|refused| self.0.status(&refused))?;
        let deleted = self.0.delete(request, caller.until()).await;
        let deleted = deleted.map_err(|refused| self.0.status(&refused))?;
        let response = TextDeleteResponse {
            header: deleted.header,
            applied: deleted.applied,
            previous: deleted.previous.map(text),
            replayed: deleted.replayed,
        };
        Ok(holding(response, share))
    }

    type ScanStream = Replies<TextScanResponse>;

    async fn scan(&self, request: Request<TextScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let caller = Caller::of(&request);
        let request = scan_request(request.into_inner());
        let sending = Sending::default();
        let messages = caller.stream_share().and_then(|share| {
            let messages = scan(self.0.clone(), request, &caller, sending.clone())?;
            let messages = messages.map(|message| message.map(scan_response));
            Ok(replies(self.0.clone(), messages, share))
        });
        let response = messages.map(|messages| response_of(Response::new(messages), sending));
        response.map_err(|refused| self.0.status(&renamed(refused)))
    }
}
