//! What a client asks of several keys at once, and transfers: uploads, downloads, bulk writes, transactions, scans,
//! deletes of ranges.
//!
//! The history knows single keys, so such a request is written down as one operation for each of its keys, all with
//! the request's begin and end: that each key is linearizable under them is what the checker decides. What holds over
//! several keys is asked of the replies themselves: the two keys of a pair are only ever written together, by
//! transactions, so whoever reads both in one snapshot (a transaction; a page of a scan) must find them at the same
//! value and the same revision, and a transaction must make or find the same for both.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use kv_history::{Call, Observed, Reply, Revision, ValueId};
use kv_proto::kv::v1::{
    BulkWriteRequest, Compare, DeleteRangeRequest, DeleteRequest, DownloadRequest, Failure, GetRequest,
    KeyRange, KeyValue, PutRequest, ScanRequest, TxnOperation, TxnOperationResult, TxnRequest, UploadRequest,
    WriteOperation, WriteOutcome,
    compare::{Operator, Target},
    download_response, txn_operation, txn_operation_result, upload_request, write_operation, write_outcome,
};
use rand::RngExt;
use sha2::{Digest, Sha256};

use crate::{
    api::{Api, Fate, fate_of, timed},
    load::{Client, Error, Shared},
    value::{decode, encode},
};

/// Bytes of one message of an upload.
const UPLOAD_MESSAGE_BYTES: usize = 64 * 1024;
/// Operations of one bulk write.
const BULK_OPERATIONS: usize = 4;
/// Numbers of keys that a range to be deleted spans, as text.
const RANGE_SPAN: u32 = 3;
/// A scan of so few keys has no more pages than this.
const PAGES_MAX: usize = 1_000;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Upload,
    Download,
    BulkWrite,
    WritePair,
    SwapPair,
    ReadPair,
    DeletePair,
    Scan,
    DeleteRange,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Upload,
        Self::Download,
        Self::BulkWrite,
        Self::WritePair,
        Self::SwapPair,
        Self::ReadPair,
        Self::DeletePair,
        Self::Scan,
        Self::DeleteRange,
    ];
}

/// Each part's reply, in the order of the parts; or why there is none for the whole.
type Replies = Result<Vec<Result<Reply, Fate>>, Error>;

impl Client {
    /// Asks, and writes down what was heard. False: there was no good reply.
    pub(crate) async fn many(&mut self, api: Api, kind: Kind) -> bool {
        let parts = self.parts(kind);
        if parts.is_empty() {
            return true;
        }
        let ids = self.shared.invoke_all(self.id, &parts);
        let replies = self.shared.ask(api, kind, &parts).await;
        if let Ok(replies) = &replies {
            for ((key, _), reply) in parts.iter().zip(replies) {
                if let Ok(reply) = reply {
                    self.remember(key, reply);
                }
            }
        }
        let succeeded = replies.is_ok();
        self.shared.complete_all(&ids, replies);
        succeeded
    }

    /// What a request of this kind asks of which keys.
    fn parts(&mut self, kind: Kind) -> Vec<(String, Call)> {
        let pair = pair_of(&self.shared.plan.prefix, self.random.random_range(0..self.shared.plan.pairs));
        match kind {
            Kind::Upload => vec![(self.any_key(), Call::Put { value: self.shared.next_value() })],
            Kind::Download => vec![(self.any_key(), Call::Get)],
            Kind::BulkWrite => {
                // A key comes once: the order of two operations on one key is not promised.
                let keys: BTreeMap<String, Call> = (0..BULK_OPERATIONS)
                    .map(|number| match number {
                        0 => (self.any_key(), Call::Delete),
                        _ => (self.any_key(), Call::Put { value: self.shared.next_value() }),
                    })
                    .collect();
                keys.into_iter().collect()
            }
            Kind::WritePair => {
                let value = self.shared.next_value();
                pair.map(|key| (key, Call::Put { value })).into()
            }
            Kind::SwapPair => {
                let expected = self.seen.get(&pair[0]).copied().unwrap_or(Revision::ABSENT);
                let value = self.shared.next_value();
                pair.map(|key| (key, Call::Cas { expected, value })).into()
            }
            Kind::ReadPair => pair.map(|key| (key, Call::Get)).into(),
            Kind::DeletePair => pair.map(|key| (key, Call::Delete)).into(),
            Kind::Scan => self.shared.all_keys().map(|key| (key, Call::Get)).collect(),
            Kind::DeleteRange => {
                let range = self.any_range();
                self.shared
                    .single_keys()
                    .filter(|key| range.contains(key))
                    .map(|key| (key, Call::Delete))
                    .collect()
            }
        }
    }

    fn any_range(&mut self) -> std::ops::RangeInclusive<String> {
        let first = self.random.random_range(0..self.shared.plan.keys);
        let last = (first + self.random.random_range(0..RANGE_SPAN)).min(self.shared.plan.keys - 1);
        // As text: between 9 and 11 there is nothing, between 1 and 3 there are 10 to 29 too.
        let (one, other) = (self.shared.single_key(first), self.shared.single_key(last));
        if one <= other { one..=other } else { other..=one }
    }
}

/// The two keys that are written together: their tag puts them into one shard.
fn pair_of(prefix: &str, number: u32) -> [String; 2] {
    ["left", "right"].map(|side| format!("{prefix}{{pair{number}}}{side}"))
}

impl Shared {
    fn single_key(&self, number: u32) -> String {
        format!("{}{number}", self.plan.prefix)
    }

    fn single_keys(&self) -> impl Iterator<Item = String> {
        (0..self.plan.keys).map(|number| self.single_key(number))
    }

    fn pairs(&self) -> impl Iterator<Item = [String; 2]> {
        (0..self.plan.pairs).map(|number| pair_of(&self.plan.prefix, number))
    }

    fn all_keys(&self) -> impl Iterator<Item = String> {
        self.single_keys().chain(self.pairs().flatten())
    }

    async fn ask(&self, api: Api, kind: Kind, parts: &[(String, Call)]) -> Replies {
        match kind {
            Kind::Upload => self.upload(api, parts).await,
            Kind::Download => self.download(api, &parts[0].0).await,
            Kind::BulkWrite => self.bulk_write(api, parts).await,
            Kind::WritePair | Kind::SwapPair | Kind::ReadPair | Kind::DeletePair => {
                self.transact(api, parts).await
            }
            Kind::Scan => self.scan(api, parts).await,
            Kind::DeleteRange => delete_range(api, parts).await,
        }
    }

    async fn upload(&self, mut api: Api, parts: &[(String, Call)]) -> Replies {
        let [(key, Call::Put { value })] = parts else { unreachable!("an upload writes one key") };
        let bytes = encode(*value, self.plan.upload_bytes);
        let sha256 = Sha256::digest(&bytes).to_vec();
        self.book().uploaded.insert(sha256.clone(), *value);
        let header = upload_request::Header {
            key: Bytes::copy_from_slice(key.as_bytes()),
            size_bytes: Some(bytes.len() as u64),
            sha256: sha256.into(),
            ..Default::default()
        };
        let data = (0..bytes.len()).step_by(UPLOAD_MESSAGE_BYTES).map(|from| {
            let to = bytes.len().min(from + UPLOAD_MESSAGE_BYTES);
            upload_request::Part::Data(bytes.slice(from..to))
        });
        let messages: Vec<UploadRequest> = std::iter::once(upload_request::Part::Header(header))
            .chain(data)
            .map(|part| UploadRequest { part: Some(part) })
            .collect();
        let response = api.kv.upload(timed(tokio_stream::iter(messages))).await?.into_inner();
        match (response.applied, response.kv) {
            (true, Some(kv)) => Ok(vec![Ok(Reply::Put(Some(Revision(kv.mod_revision))))]),
            other => Err(Error::Complaint(format!("an unconditional upload was answered with {other:?}"))),
        }
    }

    /// The bytes must be those of the value that the header names.
    async fn download(&self, mut api: Api, key: &str) -> Replies {
        let request =
            DownloadRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..DownloadRequest::default() };
        let mut messages = match api.kv.download(timed(request)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return absent(status),
        };
        let (mut kv, mut bytes) = (None, BytesMut::new());
        loop {
            let message = match messages.message().await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(status) => return absent(status),
            };
            match message.part {
                Some(download_response::Part::Header(header)) => kv = header.kv,
                Some(download_response::Part::Data(data)) => bytes.extend_from_slice(&data),
                None => return Err(Error::Complaint("a download's message without a part".to_owned())),
            }
        }
        let observed = self.observed(kv.map(|kv| shown_by(kv, &bytes)))?;
        let downloaded = decode(&bytes).map_err(Error::Complaint)?;
        if observed.map(|observed| observed.value) != Some(downloaded) {
            return Err(Error::Complaint(format!("downloaded {downloaded:?} under {observed:?}")));
        }
        Ok(vec![Ok(Reply::Got(observed))])
    }

    async fn bulk_write(&self, mut api: Api, parts: &[(String, Call)]) -> Replies {
        let operations = parts.iter().map(|(key, call)| {
            let operation = match call {
                Call::Put { value } => write_operation::Operation::Put(self.put(key, *value)),
                _ => write_operation::Operation::Delete(delete(key)),
            };
            WriteOperation { operation: Some(operation) }
        });
        let request = BulkWriteRequest { operations: operations.collect() };
        let response = api.kv.bulk_write(timed(request)).await?.into_inner();
        response.outcomes.into_iter().map(outcome).collect()
    }

    async fn transact(&self, mut api: Api, parts: &[(String, Call)]) -> Replies {
        let operations = |operation: &dyn Fn(&str, Call) -> txn_operation::Operation| {
            let operations = parts.iter();
            operations.map(|(key, call)| TxnOperation { operation: Some(operation(key, *call)) }).collect()
        };
        let then = operations(&|key, call| match call {
            Call::Get => txn_operation::Operation::Get(get(key)),
            Call::Put { value } | Call::Cas { value, .. } => {
                txn_operation::Operation::Put(self.put(key, value))
            }
            Call::Delete => txn_operation::Operation::Delete(delete(key)),
        });
        let (compare, otherwise) = match &parts[0] {
            (key, Call::Cas { expected, .. }) => {
                (vec![compare(key, *expected)], operations(&|key, _| txn_operation::Operation::Get(get(key))))
            }
            _ => (Vec::new(), Vec::new()),
        };
        let request = TxnRequest { compare, then, r#else: otherwise, ..TxnRequest::default() };
        let response = api.kv.txn(timed(request)).await?.into_inner();
        let replies: Result<Vec<Reply>, Error> = response
            .results
            .into_iter()
            .zip(parts)
            .map(|(result, (_, call))| self.part(*call, result))
            .collect();
        let replies = replies?;
        if replies.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(Error::Complaint(format!("a transaction tore its pair: {replies:?}")));
        }
        Ok(replies.into_iter().map(Ok).collect())
    }

    /// What a transaction's result says of one of its keys.
    fn part(&self, call: Call, result: TxnOperationResult) -> Result<Reply, Error> {
        use txn_operation_result::Result::{Delete, Get, Put};
        match (call, result.result) {
            (Call::Get, Some(Get(got))) => Ok(Reply::Got(self.observed(got.kv)?)),
            (Call::Put { .. }, Some(Put(put))) if put.applied => {
                Ok(Reply::Put(Some(Revision(put.mod_revision))))
            }
            (Call::Cas { .. }, Some(Put(put))) if put.applied => {
                Ok(Reply::Swapped(Some(Revision(put.mod_revision))))
            }
            (Call::Cas { .. }, Some(Get(got))) => {
                Ok(Reply::NotSwapped(got.kv.map(|kv| Revision(kv.mod_revision))))
            }
            (Call::Delete, Some(Delete(deleted))) => Ok(Reply::Deleted(deleted.applied)),
            (call, other) => Err(Error::Complaint(format!("{call:?} was answered with {other:?}"))),
        }
    }

    /// Every key of the load, found or not.
    async fn scan(&self, mut api: Api, parts: &[(String, Call)]) -> Replies {
        let mut found: BTreeMap<String, Observed> = BTreeMap::new();
        let mut page_token = Bytes::new();
        for _ in 0..PAGES_MAX {
            let range = Some(KeyRange {
                prefix: Bytes::copy_from_slice(self.plan.prefix.as_bytes()),
                ..KeyRange::default()
            });
            let request = ScanRequest { range, page_token: page_token.clone(), ..ScanRequest::default() };
            let mut pages = api.kv.scan(timed(request)).await?.into_inner();
            let mut next = Bytes::new();
            while let Some(page) = pages.message().await? {
                self.take_page(page.kvs, &mut found)?;
                next = page.next_page_token;
            }
            if next.is_empty() {
                let replies = parts.iter().map(|(key, _)| Ok(Reply::Got(found.remove(key)))).collect();
                return match found.pop_first() {
                    None => Ok(replies),
                    Some((key, _)) => {
                        Err(Error::Complaint(format!("a scan shows {key}, which nobody wrote")))
                    }
                };
            }
            page_token = next;
        }
        Err(Error::Complaint(format!("a scan has more than {PAGES_MAX} pages")))
    }

    fn take_page(&self, kvs: Vec<KeyValue>, found: &mut BTreeMap<String, Observed>) -> Result<(), Error> {
        let mut page = BTreeMap::new();
        for kv in kvs {
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            let last = page.last_key_value().or_else(|| found.last_key_value());
            if last.is_some_and(|(last, _): (&String, _)| *last >= key) {
                return Err(Error::Complaint(format!("{key} is out of order in a scan")));
            }
            let Some(observed) = self.observed(Some(kv))? else { continue };
            page.insert(key, observed);
        }
        for [left, right] in self.pairs() {
            // A pair at the edge of a page may have its other half in another one, which is another snapshot.
            let is_last = page.last_key_value().is_some_and(|(last, _)| *last == left);
            let is_first = page.first_key_value().is_some_and(|(first, _)| *first == right);
            if !is_last && !is_first && page.get(&left) != page.get(&right) {
                let torn = (page.get(&left), page.get(&right));
                return Err(Error::Complaint(format!("a page of a scan tears {left}: {torn:?}")));
            }
        }
        found.append(&mut page);
        Ok(())
    }

    fn put(&self, key: &str, value: ValueId) -> PutRequest {
        let key = Bytes::copy_from_slice(key.as_bytes());
        PutRequest { key, value: self.encode(value), ..PutRequest::default() }
    }
}

/// A download's header describes an inline value as a blob too; its bytes are those that follow.
fn shown_by(kv: KeyValue, bytes: &[u8]) -> KeyValue {
    use kv_proto::kv::v1::key_value::Value;
    let value = match kv.value {
        Some(Value::Blob(blob)) => Some(Value::Blob(blob)),
        Some(Value::Inline(_)) | None => Some(Value::Inline(Bytes::copy_from_slice(bytes))),
    };
    KeyValue { value, ..kv }
}

/// The download of an absent key is refused by a reason of its own.
fn absent(status: tonic::Status) -> Replies {
    match crate::api::reason(&status).as_deref() {
        Some("KEY_NOT_FOUND") => Ok(vec![Ok(Reply::Got(None))]),
        _ => Err(Error::Status(status)),
    }
}

async fn delete_range(mut api: Api, parts: &[(String, Call)]) -> Replies {
    let (Some((first, _)), Some((last, _))) =
        (parts.iter().min_by_key(|(key, _)| key), parts.iter().max_by_key(|(key, _)| key))
    else {
        return Ok(Vec::new());
    };
    let range = KeyRange {
        start: Bytes::copy_from_slice(first.as_bytes()),
        // Just after the last one.
        end: format!("{last}\0").into_bytes().into(),
        prefix: Bytes::new(),
    };
    let mut deleted = 0;
    let mut page_token = Bytes::new();
    loop {
        let request = DeleteRangeRequest { range: Some(range.clone()), page_token: page_token.clone() };
        let steps = api.kv.delete_range(timed(request)).await;
        let mut steps = steps.map_err(|status| of_a_step(status, deleted))?.into_inner();
        let mut next = Bytes::new();
        while let Some(step) = steps.message().await.map_err(|status| of_a_step(status, deleted))? {
            deleted += step.deleted;
            next = step.next_page_token;
        }
        if next.is_empty() {
            break;
        }
        page_token = next;
    }
    let reply = match usize::try_from(deleted).unwrap_or(usize::MAX) {
        0 => Reply::Deleted(false),
        all if all == parts.len() => Reply::Deleted(true),
        some if some < parts.len() => Reply::Cleared,
        many => {
            return Err(Error::Complaint(format!("{many} keys deleted in a range of {}", parts.len())));
        }
    };
    Ok(vec![Ok(reply); parts.len()])
}

/// An error of a deletion speaks of the step that it ends: once a step has deleted something, it says nothing about the
/// whole.
fn of_a_step(status: tonic::Status, deleted: u64) -> tonic::Status {
    if deleted == 0 {
        return status;
    }
    tonic::Status::unknown(format!("{deleted} keys of a range were deleted, and then: {status}"))
}

/// One outcome of a bulk write.
fn outcome(outcome: WriteOutcome) -> Result<Result<Reply, Fate>, Error> {
    match outcome.outcome {
        Some(write_outcome::Outcome::Put(put)) if put.applied => {
            Ok(Ok(Reply::Put(Some(Revision(put.mod_revision)))))
        }
        Some(write_outcome::Outcome::Delete(deleted)) => Ok(Ok(Reply::Deleted(deleted.applied))),
        Some(write_outcome::Outcome::Failure(Failure { code, reason, .. })) => {
            Ok(Err(fate_of(tonic::Code::from_i32(code), &reason)))
        }
        other => Err(Error::Complaint(format!("an unconditional write was answered with {other:?}"))),
    }
}

fn compare(key: &str, expected: Revision) -> Compare {
    let target = match expected {
        Revision::ABSENT => Target::Present(false),
        Revision(revision) => Target::ModRevision(revision),
    };
    Compare {
        key: Bytes::copy_from_slice(key.as_bytes()),
        operator: Operator::Equal.into(),
        target: Some(target),
    }
}

fn get(key: &str) -> GetRequest {
    GetRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..GetRequest::default() }
}

fn delete(key: &str) -> DeleteRequest {
    DeleteRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..DeleteRequest::default() }
}
