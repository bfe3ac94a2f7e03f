//! Reads of one moment of a replica's state. Pure: a view and a request give a response.
//!
//! Whether the moment is late enough is decided before, by the read index. Slots are checked here, against the
//! same moment. Every value is checked against its CRC32C before it leaves.

use std::ops::ControlFlow;

use bytes::Bytes;
use kv_proto::{
    disk::v1::{ChunkRecord, GroupRecord, KeyRecord, MetaRecord, UploadRecord, key_record},
    kv::v1::KeyValue,
    peer::v1::{
        BlobChunks, Done, GetKeys, GetOutcome, GotKeys, JournalEntries, JournalPage, ReadBlob, ReadRequest,
        ReadResponse, Refusal, ReplyContext, ScanPage, ScannedPage, read_request, read_response,
    },
};
use kv_topology::{Generation, KeyspaceId, ReplicaId, ShardId};
use prost::Message;

use super::{
    journal,
    limits::{PAGE_BYTES_MAX, PAGE_KEYS_MAX, READ_BYTES_MAX},
    refusal,
    replica::{read_group, read_meta, read_record},
    slots, value,
};
use crate::state::{
    Direction, StateError, View,
    keys::{PREFIX_BYTES, Scope, UploadId},
};

/// One moment of a replica.
pub struct Reader<'a> {
    view: &'a dyn View,
    scope: Scope,
    group: GroupRecord,
    applied_index: u64,
}

enum Rejection {
    Refused(Box<Refusal>),
    Failed(StateError),
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<StateError> for Rejection {
    fn from(error: StateError) -> Self {
        Self::Failed(error)
    }
}

impl<'a> Reader<'a> {
    /// Reads of a replica as `view` shows it.
    ///
    /// # Errors
    /// Damage, and failures of the store.
    pub fn new(view: &'a dyn View, replica: ReplicaId, shard: ShardId) -> Result<Self, StateError> {
        let record = read_record(view, replica)?;
        let generation = record.as_ref().map_or(1, |record| record.generation);
        let scope = Scope::new(replica, Generation(generation));
        let group = read_group(view, scope, shard)?;
        let applied_index = record.and_then(|record| record.applied).map_or(0, |id| id.index);
        Ok(Self { view, scope, group, applied_index })
    }

    /// The shard's revision at this moment.
    pub fn revision(&self) -> u64 {
        self.group.revision
    }

    /// Index of the last entry applied at this moment.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Answers a request; a refusal is an answer. The context holds shard and revision, the rest is for the caller.
    ///
    /// # Errors
    /// Damage, and failures of the store: nothing of the answer may be used.
    pub fn read(&self, request: &ReadRequest) -> Result<ReadResponse, StateError> {
        let keyspace = KeyspaceId(request.keyspace_id);
        let answer = match &request.read {
            Some(read_request::Read::Get(get)) => self.get(keyspace, get).map(read_response::Read::Get),
            Some(read_request::Read::Scan(page)) => {
                self.scan(keyspace, page).map(read_response::Read::Scan).map_err(Rejection::Failed)
            }
            Some(read_request::Read::Blob(blob)) => self.blob(keyspace, blob).map(read_response::Read::Blob),
            Some(read_request::Read::Meta(_)) => self.meta().map(read_response::Read::Meta),
            Some(read_request::Read::Journal(page)) => self.journal(page).map(read_response::Read::Journal),
            // This moment needs nobody to let go of it.
            Some(read_request::Read::Unpin(_)) => Ok(read_response::Read::Done(Done {})),
            None => Err(refusal::invalid("read", "is not known").into()),
        };
        let read = match answer {
            Ok(read) => read,
            Err(Rejection::Refused(refusal)) => read_response::Read::Refusal(*refusal),
            Err(Rejection::Failed(error)) => return Err(error),
        };
        let context = ReplyContext {
            shard_id: self.group.shard_id,
            revision: self.group.revision,
            ..ReplyContext::default()
        };
        Ok(ReadResponse { context: Some(context), read: Some(read) })
    }

    /// Whether an upload is under way.
    ///
    /// # Errors
    /// Failures of the store.
    pub fn has_uploads(&self) -> Result<bool, StateError> {
        let mut found = false;
        self.view.scan(&self.scope.uploads(), Direction::Forward, &mut |_, _| {
            found = true;
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// The meta group's whole state.
    fn meta(&self) -> Result<MetaRecord, Rejection> {
        self.check_meta()?;
        Ok(read_meta(self.view, self.scope)?)
    }

    /// A page of the meta group's journal.
    fn journal(&self, page: &JournalPage) -> Result<JournalEntries, Rejection> {
        self.check_meta()?;
        Ok(journal::page(self.view, self.scope, page)?)
    }

    fn check_meta(&self) -> Result<(), Refusal> {
        if ShardId(self.group.shard_id).is_meta() { Ok(()) } else { Err(refusal::not_meta()) }
    }

    fn key(&self, keyspace: KeyspaceId, key: &[u8]) -> Result<Option<KeyRecord>, StateError> {
        let bytes = self.view.get(&self.scope.key(keyspace, key))?;
        bytes.map(|bytes| value::decode(self.scope.replica, "a key's record", bytes)).transpose()
    }

    /// Keys in the order asked for; fewer when the reply is full, and at least one.
    fn get(&self, keyspace: KeyspaceId, get: &GetKeys) -> Result<GotKeys, Rejection> {
        for key in &get.keys {
            slots::check(&self.group, keyspace, key)?;
        }
        let mut results = Vec::with_capacity(get.keys.len());
        let mut bytes = 0;
        for key in &get.keys {
            let record = self.key(keyspace, key)?;
            let upload_id = value::upload_id(record.as_ref());
            let kv = match record {
                None => None,
                Some(record) if get.metadata_only => Some(value::describe(key.clone(), &record)),
                Some(record) => Some(value::show(self.scope.replica, key.clone(), &record)?),
            };
            bytes += kv.as_ref().map_or(8, KeyValue::encoded_len);
            if bytes > READ_BYTES_MAX && !results.is_empty() {
                break;
            }
            results.push(GetOutcome { kv, upload_id });
        }
        Ok(GotKeys { results })
    }

    /// A page of a scan: the keys of the range that the group owns, as many as fit, and at least one.
    fn scan(&self, keyspace: KeyspaceId, request: &ScanPage) -> Result<ScannedPage, StateError> {
        let mut page = Page::new(request);
        let mut damage = None;
        let span = self.scope.keys(keyspace, &request.start, &request.end);
        let direction = if request.reverse { Direction::Reverse } else { Direction::Forward };
        self.view.scan(&span, direction, &mut |name, bytes| {
            let key = &name[PREFIX_BYTES..];
            let owned = slots::owns(&self.group, keyspace, key);
            match page.take(self.scope.replica, key, bytes, owned) {
                Ok(flow) => flow,
                Err(error) => {
                    damage = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        damage.map_or(Ok(page.page), Err)
    }

    /// How many chunks there are under the id that is asked for.
    fn chunks_of(&self, keyspace: KeyspaceId, request: &ReadBlob) -> Result<u32, Rejection> {
        let record = self.key(keyspace, &request.key)?;
        match record.and_then(|record| record.value) {
            Some(key_record::Value::Blob(blob)) if blob.upload_id == request.upload_id => {
                return Ok(blob.chunks);
            }
            Some(_) | None => {}
        }
        // Whoever resumes an upload reads what is stored of it again, for the hash of the whole.
        let Ok(id) = UploadId::try_from(request.upload_id.as_ref()) else {
            return Err(refusal::value_replaced().into());
        };
        let Some(bytes) = self.view.get(&self.scope.upload(&id))? else {
            return Err(refusal::value_replaced().into());
        };
        let upload: UploadRecord = value::decode(self.scope.replica, "an upload's record", bytes)?;
        if upload.key == request.key && upload.keyspace_id == keyspace.get() {
            Ok(upload.chunks)
        } else {
            Err(refusal::value_replaced().into())
        }
    }

    /// Chunks of the value that the key has, or of an upload to it that is under way, as many as fit.
    fn blob(&self, keyspace: KeyspaceId, request: &ReadBlob) -> Result<BlobChunks, Rejection> {
        slots::check(&self.group, keyspace, &request.key)?;
        let stored = self.chunks_of(keyspace, request)?;
        let replica = self.scope.replica;
        let id = UploadId::try_from(request.upload_id.as_ref())
            .map_err(|_| StateError::damage(replica, "a value's upload id has a wrong length"))?;
        let end = request.first_chunk.saturating_add(request.chunks).min(stored);
        let mut chunks = Vec::new();
        let mut bytes = 0;
        for number in request.first_chunk..end {
            let found = self.view.get(&self.scope.chunk(keyspace, &id, number))?;
            let found = found.ok_or_else(|| {
                StateError::damage(replica, format!("chunk {number} of {stored} of a value is missing"))
            })?;
            let chunk: ChunkRecord = value::decode(replica, "a chunk", found)?;
            value::check(replica, "a chunk", &chunk.data, chunk.crc32c)?;
            bytes += chunk.data.len();
            if bytes > READ_BYTES_MAX && !chunks.is_empty() {
                break;
            }
            chunks.push(chunk);
        }
        Ok(BlobChunks { chunks })
    }
}

/// The page under construction, and what ends it.
struct Page<'a> {
    request: &'a ScanPage,
    limit: u64,
    bytes_max: u64,
    bytes: u64,
    visited: u64,
    last: Bytes,
    page: ScannedPage,
}

impl<'a> Page<'a> {
    fn new(request: &'a ScanPage) -> Self {
        let at_most = |asked: u64, limit: u64| if asked == 0 { limit } else { asked.min(limit) };
        Self {
            request,
            limit: at_most(request.limit, u64::MAX),
            bytes_max: at_most(request.max_bytes, PAGE_BYTES_MAX),
            bytes: 0,
            visited: 0,
            last: Bytes::new(),
            page: ScannedPage::default(),
        }
    }

    fn take(
        &mut self,
        replica: ReplicaId,
        key: &[u8],
        bytes: &[u8],
        owned: bool,
    ) -> Result<ControlFlow<()>, StateError> {
        if self.page.count == self.limit || self.visited == PAGE_KEYS_MAX {
            return Ok(self.end_before(key));
        }
        self.visited += 1;
        let key = Bytes::copy_from_slice(key);
        if owned {
            let kv = if self.request.count_only { None } else { Some(self.shown(replica, &key, bytes)?) };
            let size = kv.as_ref().map_or(0, |kv| kv.encoded_len() as u64);
            let is_whole = self.request.first_whole && self.page.count == 0;
            if self.request.large_apart && size > self.bytes_max && !is_whole {
                return Ok(self.end_before_large(&key));
            }
            if self.page.count > 0 && self.bytes + size > self.bytes_max {
                return Ok(self.end_before(&key));
            }
            self.bytes += size;
            self.page.count += 1;
            self.page.kvs.extend(kv);
        }
        self.last = key;
        Ok(ControlFlow::Continue(()))
    }

    fn shown(&self, replica: ReplicaId, key: &Bytes, bytes: &[u8]) -> Result<KeyValue, StateError> {
        let record: KeyRecord = value::decode(replica, "a key's record", Bytes::copy_from_slice(bytes))?;
        if self.request.keys_only {
            let mut kv = value::describe(key.clone(), &record);
            kv.value = None;
            return Ok(kv);
        }
        value::show(replica, key.clone(), &record)
    }

    /// `key` has a value that is to be read when it is its turn.
    fn end_before_large(&mut self, key: &[u8]) -> ControlFlow<()> {
        self.page.next_is_large = true;
        // Reverse the next page ends behind it.
        let behind: &[u8] = if self.request.reverse { &[0] } else { &[] };
        self.page.next_key = [key, behind].concat().into();
        ControlFlow::Break(())
    }

    /// `key` is the first one left. Forward the next page starts at it; reverse it ends before the last one taken.
    fn end_before(&mut self, key: &[u8]) -> ControlFlow<()> {
        self.page.next_key =
            if self.request.reverse { self.last.clone() } else { Bytes::copy_from_slice(key) };
        ControlFlow::Break(())
    }
}
