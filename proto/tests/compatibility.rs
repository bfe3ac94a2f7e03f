//! `kv.v1` as it is, compared with what was promised: the file `kv/v1/kv.v1.lock`.
//!
//! Each line of it is a promise: a method with its types, a field with its number, type, cardinality and oneof, an
//! enum value with its number. A promise may be added and never be broken. `make fix` writes additions down; it
//! refuses to write while a promise is broken.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

const PACKAGE: &str = "kv.v1";
const HEADER: &str =
    "# What kv.v1 promises to clients: a line is added by `make fix`, and never changed or removed.\n";

type Promises = BTreeSet<String>;

fn lock_file() -> PathBuf {
    PathBuf::from("kv/v1/kv.v1.lock")
}

/// The promises of the compiled descriptors.
fn current() -> Promises {
    let descriptors = FileDescriptorSet::decode(kv_proto::PUBLIC_DESCRIPTORS).expect("valid descriptors");
    promises(&descriptors)
}

fn promises(descriptors: &FileDescriptorSet) -> Promises {
    let mut promises = Promises::new();
    for file in descriptors.file.iter().filter(|file| file.package() == PACKAGE) {
        for message in &file.message_type {
            promise_message(PACKAGE, message, &mut promises);
        }
        for values in &file.enum_type {
            promise_enum(PACKAGE, values, &mut promises);
        }
        for service in &file.service {
            promise_service(service, &mut promises);
        }
    }
    promises
}

fn promise_message(scope: &str, message: &DescriptorProto, promises: &mut Promises) {
    let name = format!("{scope}.{}", message.name());
    promises.insert(format!("message {name}"));
    for field in &message.field {
        promises.insert(format!("field {name} {}", describe(message, field)));
    }
    for nested in &message.nested_type {
        promise_message(&name, nested, promises);
    }
    for values in &message.enum_type {
        promise_enum(&name, values, promises);
    }
}

/// Number first: it is what the wire carries.
fn describe(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let kind = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name().trim_start_matches('.').to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let cardinality = match (field.label(), field.proto3_optional()) {
        (Label::Repeated, _) => "repeated ",
        (_, true) => "optional ",
        (Label::Optional | Label::Required, false) => "",
    };
    let oneof = match field.oneof_index.filter(|_| !field.proto3_optional()) {
        Some(index) => {
            let index = usize::try_from(index).expect("an index");
            format!(" in {}", message.oneof_decl[index].name())
        }
        None => String::new(),
    };
    format!("{} {} {cardinality}{kind}{oneof}", field.number(), field.name())
}

fn promise_enum(scope: &str, values: &EnumDescriptorProto, promises: &mut Promises) {
    for value in &values.value {
        promises.insert(format!("value {scope}.{} {} {}", values.name(), value.number(), value.name()));
    }
}

fn promise_service(service: &ServiceDescriptorProto, promises: &mut Promises) {
    for method in &service.method {
        let stream = |is: bool| if is { "stream " } else { "" };
        promises.insert(format!(
            "method {PACKAGE}.{}/{} ({}{}) returns ({}{})",
            service.name(),
            method.name(),
            stream(method.client_streaming()),
            method.input_type().trim_start_matches('.'),
            stream(method.server_streaming()),
            method.output_type().trim_start_matches('.'),
        ));
    }
}

fn parse(lock: &str) -> Promises {
    lock.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

fn render(promises: &Promises) -> String {
    let lines: Vec<&str> = promises.iter().map(String::as_str).collect();
    format!("{HEADER}{}\n", lines.join("\n"))
}

/// Promises that no longer hold.
fn broken<'a>(promised: &'a Promises, now: &Promises) -> Vec<&'a str> {
    promised.iter().filter(|promise| !now.contains(*promise)).map(String::as_str).collect()
}

#[test]
fn no_promise_of_the_client_api_is_broken() {
    let promised = parse(&fs::read_to_string(lock_file()).unwrap_or_default());
    let now = current();
    let broken = broken(&promised, &now);
    assert!(broken.is_empty(), "kv.v1 promised this, and clients rely on it:\n{}", broken.join("\n"));
    if env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(lock_file(), render(&now)).expect("written");
        return;
    }
    let new: Vec<&str> = now.difference(&promised).map(String::as_str).collect();
    assert!(new.is_empty(), "not written down yet, run `make fix`:\n{}", new.join("\n"));
}

/// The descriptors after `change`, against the promises before it.
fn broken_by(change: impl FnOnce(&mut FileDescriptorSet)) -> Vec<String> {
    let mut descriptors = FileDescriptorSet::decode(kv_proto::PUBLIC_DESCRIPTORS).expect("valid descriptors");
    let before = promises(&descriptors);
    change(&mut descriptors);
    broken(&before, &promises(&descriptors)).into_iter().map(str::to_owned).collect()
}

fn message<'a>(descriptors: &'a mut FileDescriptorSet, name: &str) -> &'a mut DescriptorProto {
    let messages = descriptors.file.iter_mut().filter(|file| file.package() == PACKAGE);
    messages
        .flat_map(|file| &mut file.message_type)
        .find(|message| message.name() == name)
        .expect("a message")
}

#[test]
fn breaking_changes_are_noticed() {
    let value = "field kv.v1.PutRequest 2 value bytes";
    let removed = broken_by(|all| message(all, "PutRequest").field.retain(|field| field.name() != "value"));
    assert_eq!(removed, [value]);
    let renumbered = broken_by(|all| message(all, "PutRequest").field[1].number = Some(9));
    assert_eq!(renumbered, [value]);
    let retyped = broken_by(|all| message(all, "PutRequest").field[1].set_type(Type::String));
    assert_eq!(retyped, [value]);
    let repeated = broken_by(|all| message(all, "PutRequest").field[1].set_label(Label::Repeated));
    assert_eq!(repeated, [value]);
    let out_of_oneof = broken_by(|all| message(all, "KeyValue").field[4].oneof_index = None);
    assert_eq!(out_of_oneof, ["field kv.v1.KeyValue 5 inline bytes in value"]);
    let nested = broken_by(|all| message(all, "UploadRequest").nested_type.clear());
    assert!(nested.contains(&"field kv.v1.UploadRequest.Header 1 key bytes".to_owned()), "{nested:?}");
    let method = broken_by(|all| {
        for file in all.file.iter_mut().filter(|file| file.package() == PACKAGE) {
            for service in &mut file.service {
                service.method.retain(|method| method.name() != "Txn");
            }
        }
    });
    assert_eq!(method, ["method kv.v1.Kv/Txn (kv.v1.TxnRequest) returns (kv.v1.TxnResponse)"]);
    let value_of_enum = broken_by(|all| {
        for file in all.file.iter_mut().filter(|file| file.package() == PACKAGE) {
            file.enum_type.retain(|values| values.name() != "ServedBy");
        }
    });
    assert_eq!(value_of_enum.len(), 3, "{value_of_enum:?}");
}

#[test]
fn additions_break_nothing() {
    let added = broken_by(|all| {
        let field = FieldDescriptorProto {
            name: Some("later".to_owned()),
            number: Some(99),
            r#type: Some(Type::Bool.into()),
            ..FieldDescriptorProto::default()
        };
        message(all, "PutRequest").field.push(field);
    });
    assert!(added.is_empty(), "{added:?}");
}
