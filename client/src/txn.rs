//! Transactions: comparisons, and what is done when all of them hold or when one does not.

use bytes::Bytes;
use kv_proto::kv::v1 as proto;

use crate::{
    client::{delete_request, get_request, put_request},
    error::{Error, Result},
    options::{GetOptions, WriteOptions},
    value::{DeleteReply, GetReply, Header, PutReply},
};

/// A transaction in the making. All keys must share a shard: give them a tag, as in `{order-7}/state`.
///
/// ```
/// use kv_client::{Compare, Txn};
///
/// let move_on = Txn::new()
///     .when(Compare::value("{order-7}/state", "paid"))
///     .then_put("{order-7}/state", "shipped")
///     .then_put("{order-7}/parcel", "4711")
///     .otherwise_get("{order-7}/state");
/// # let _ = move_on;
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Txn {
    request: proto::TxnRequest,
}

/// How a comparison relates the key to the given number or bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relation {
    /// The same.
    #[default]
    Equal,
    /// Another.
    NotEqual,
    /// The key's is less.
    Less,
    /// The key's is greater.
    Greater,
}

/// Something that a transaction compares.
#[derive(Clone, Debug, PartialEq)]
pub struct Compare(proto::Compare);

impl Compare {
    fn new(key: impl AsRef<[u8]>, target: proto::compare::Target) -> Self {
        let mut compare = proto::Compare {
            key: Bytes::copy_from_slice(key.as_ref()),
            target: Some(target),
            ..proto::Compare::default()
        };
        compare.set_operator(proto::compare::Operator::Equal);
        Self(compare)
    }

    /// The key exists.
    pub fn present(key: impl AsRef<[u8]>) -> Self {
        Self::new(key, proto::compare::Target::Present(true))
    }

    /// The key does not exist.
    pub fn absent(key: impl AsRef<[u8]>) -> Self {
        Self::new(key, proto::compare::Target::Present(false))
    }

    /// The inline value is this; an uploaded value never is.
    pub fn value(key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Self {
        Self::new(key, proto::compare::Target::Value(value.into()))
    }

    /// The revision of the last write is this.
    pub fn mod_revision(key: impl AsRef<[u8]>, revision: u64) -> Self {
        Self::new(key, proto::compare::Target::ModRevision(revision))
    }

    /// The revision of the creation is this.
    pub fn create_revision(key: impl AsRef<[u8]>, revision: u64) -> Self {
        Self::new(key, proto::compare::Target::CreateRevision(revision))
    }

    /// The version is this.
    pub fn version(key: impl AsRef<[u8]>, version: u64) -> Self {
        Self::new(key, proto::compare::Target::Version(version))
    }

    /// The same comparison with another relation than equality.
    #[must_use]
    pub fn is(mut self, relation: Relation) -> Self {
        self.0.set_operator(match relation {
            Relation::Equal => proto::compare::Operator::Equal,
            Relation::NotEqual => proto::compare::Operator::NotEqual,
            Relation::Less => proto::compare::Operator::Less,
            Relation::Greater => proto::compare::Operator::Greater,
        });
        self
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct TxnOperation(proto::txn_operation::Operation);

impl TxnOperation {
    /// Writes a key. A precondition that does not hold leaves out this operation only.
    pub fn put(key: impl AsRef<[u8]>, value: impl Into<Bytes>, options: WriteOptions) -> Self {
        let key = Bytes::copy_from_slice(key.as_ref());
        Self(proto::txn_operation::Operation::Put(put_request(key, value.into(), options)))
    }

    /// Deletes a key. A precondition that does not hold leaves out this operation only.
    pub fn delete(key: impl AsRef<[u8]>, options: WriteOptions) -> Self {
        let key = Bytes::copy_from_slice(key.as_ref());
        Self(proto::txn_operation::Operation::Delete(delete_request(key, options)))
    }

    /// Reads a key.
    pub fn get(key: impl AsRef<[u8]>) -> Self {
        let key = Bytes::copy_from_slice(key.as_ref());
        Self(proto::txn_operation::Operation::Get(get_request(key, GetOptions::default())))
    }
}

impl From<TxnOperation> for proto::TxnOperation {
    fn from(operation: TxnOperation) -> Self {
        Self { operation: Some(operation.0) }
    }
}

impl Txn {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a comparison; all of them must hold.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.request.compare.push(compare.0);
        self
    }

    /// Does this when all comparisons hold.
    #[must_use]
    pub fn then(mut self, operation: TxnOperation) -> Self {
        self.request.then.push(operation.into());
        self
    }

    /// Does this when a comparison does not hold.
    #[must_use]
    pub fn otherwise(mut self, operation: TxnOperation) -> Self {
        self.request.r#else.push(operation.into());
        self
    }

    /// Writes a key when all comparisons hold.
    #[must_use]
    pub fn then_put(self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Self {
        self.then(TxnOperation::put(key, value, WriteOptions::default()))
    }

    /// Deletes a key when all comparisons hold.
    #[must_use]
    pub fn then_delete(self, key: impl AsRef<[u8]>) -> Self {
        self.then(TxnOperation::delete(key, WriteOptions::default()))
    }

    /// Reads a key when all comparisons hold.
    #[must_use]
    pub fn then_get(self, key: impl AsRef<[u8]>) -> Self {
        self.then(TxnOperation::get(key))
    }

    /// Reads a key when a comparison does not hold.
    #[must_use]
    pub fn otherwise_get(self, key: impl AsRef<[u8]>) -> Self {
        self.otherwise(TxnOperation::get(key))
    }

    fn operations(&self) -> impl Iterator<Item = &proto::txn_operation::Operation> {
        self.request
            .then
            .iter()
            .chain(&self.request.r#else)
            .filter_map(|operation| operation.operation.as_ref())
    }

    pub(crate) fn writes(&self) -> bool {
        self.operations().any(|operation| !matches!(operation, proto::txn_operation::Operation::Get(_)))
    }

    /// Names the shard.
    pub(crate) fn first_key(&self) -> Option<&Bytes> {
        let compared = self.request.compare.first().map(|compare| &compare.key);
        compared.or_else(|| {
            self.operations().next().map(|operation| match operation {
                proto::txn_operation::Operation::Get(get) => &get.key,
                proto::txn_operation::Operation::Put(put) => &put.key,
                proto::txn_operation::Operation::Delete(delete) => &delete.key,
            })
        })
    }
}

impl From<Txn> for proto::TxnRequest {
    fn from(txn: Txn) -> Self {
        txn.request
    }
}

/// Answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnReply {
    /// Where it was made.
    pub header: Header,
    /// True: every comparison held; false: the other branch ran.
    pub succeeded: bool,
    /// One for each operation of the branch that ran, in order. Left out when replayed.
    pub results: Vec<TxnResult>,
    /// As in [`PutReply::replayed`].
    pub replayed: bool,
}

/// What one operation of a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnResult {
    /// A read.
    Get(GetReply),
    /// A write.
    Put(PutReply),
    /// A delete.
    Delete(DeleteReply),
}

impl TryFrom<proto::TxnResponse> for TxnReply {
    type Error = Error;

    fn try_from(reply: proto::TxnResponse) -> Result<Self> {
        use proto::txn_operation_result::Result as Part;
        let results = reply.results.into_iter().map(|part| match part.result {
            Some(Part::Get(get)) => Ok(TxnResult::Get(get.into())),
            Some(Part::Put(put)) => Ok(TxnResult::Put(put.into())),
            Some(Part::Delete(delete)) => Ok(TxnResult::Delete(delete.into())),
            None => Err(Error::protocol("Txn", "a result is missing")),
        });
        Ok(Self {
            header: reply.header.into(),
            succeeded: reply.succeeded,
            results: results.collect::<Result<_>>()?,
            replayed: reply.replayed,
        })
    }
}
