//! Commands on keys.

use serde_json::{Value as Json, json};

use crate::{against, fake::FakeCluster, kvctl, with_input};

fn parsed(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn a_value_comes_back_as_it_was() {
    let cluster = FakeCluster::start(1).await;
    assert_eq!(against(&cluster, &["put", "greeting", "hello"]).expect(0), "ok, revision 2, version 1\n");
    assert_eq!(against(&cluster, &["get", "greeting"]).expect(0), "hello");
    assert_eq!(
        against(&cluster, &["set", "greeting", "hi", "--prev"]).expect(0),
        "ok, revision 3, version 2\nwas hello\n"
    );
    assert_eq!(against(&cluster, &["delete", "greeting", "--prev"]).expect(0), "ok\nwas hi\n");
    let run = against(&cluster, &["get", "greeting"]);
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (3, "", "greeting is absent\n"));
    against(&cluster, &["delete", "greeting"]).expect(3);
}

#[tokio::test]
async fn values_come_from_files_and_standard_input() {
    let cluster = FakeCluster::start(1).await;
    with_input(&cluster, &["put", "k", "--stdin"], b"a\nb\n").expect(0);
    assert_eq!(against(&cluster, &["get", "k"]).expect(0), "a\nb\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from a file").unwrap();
    against(&cluster, &["put", "k", "--file", file.path().to_str().unwrap()]).expect(0);
    assert_eq!(against(&cluster, &["get", "k"]).expect(0), "from a file");
    let run = with_input(&cluster, &["put", "k", "--stdin"], &vec![b'x'; 1024 * 1024 + 1]);
    assert!(run.err.contains("kvctl upload"), "{run:?}");
    run.expect(2);
}

#[tokio::test]
async fn preconditions_that_do_not_hold_have_an_exit_code() {
    let cluster = FakeCluster::start(1).await;
    against(&cluster, &["put", "k", "1", "--if-absent"]).expect(0);
    let run = against(&cluster, &["put", "k", "2", "--if-absent"]);
    assert!(run.err.contains("revision 2, version 1"), "{run:?}");
    run.expect(4);
    against(&cluster, &["put", "k", "2", "--if-revision", "2"]).expect(0);
    against(&cluster, &["put", "k", "3", "--if-version", "1"]).expect(4);
    against(&cluster, &["put", "l", "3", "--if-present"]).expect(4);
    against(&cluster, &["delete", "k", "--if-version", "9"]).expect(4);
    against(&cluster, &["put", "k", "3", "--if-absent", "--if-present"]).expect(2);
}

#[tokio::test]
async fn json_has_revisions_and_where_it_came_from() {
    let cluster = FakeCluster::start(1).await;
    let put = parsed(&against(&cluster, &["-o", "json", "put", "k", "v"]).expect(0));
    assert_eq!(
        (&put["applied"], &put["mod_revision"], &put["previous"]),
        (&json!(true), &json!(2), &Json::Null)
    );
    let get = parsed(&against(&cluster, &["get", "k", "-o", "json"]).expect(0));
    assert_eq!(
        get["kv"],
        json!({"key": "k", "value": "v", "create_revision": 2, "mod_revision": 2, "version": 1})
    );
    assert_eq!((&get["header"]["node"], &get["header"]["served_by"]), (&json!(1), &json!("leader")));
    let absent = parsed(&against(&cluster, &["get", "none", "-o", "json"]).expect(3));
    assert_eq!(absent["kv"], Json::Null);
}

#[tokio::test]
async fn keys_and_values_are_bytes() {
    let cluster = FakeCluster::start(1).await;
    with_input(&cluster, &["put", "--hex", "00ff", "--stdin"], &[0xfe]).expect(0);
    let get = parsed(&against(&cluster, &["get", "--base64", "AP8=", "-o", "json"]).expect(0));
    assert_eq!((&get["kv"]["key_base64"], &get["kv"]["value_base64"]), (&json!("AP8="), &json!("/g==")));
    assert_eq!(against(&cluster, &["scan"]).expect(0), "\\x00\\xff\t\\xfe\n");
    against(&cluster, &["get", "--hex", "0"]).expect(2);
    against(&cluster, &["get", "--hex", "--base64", "00"]).expect(2);
}

#[tokio::test]
async fn scans_list_in_order() {
    let cluster = FakeCluster::start(1).await;
    for key in ["b", "a", "c", "d"] {
        against(&cluster, &["put", key, "v"]).expect(0);
    }
    assert_eq!(against(&cluster, &["scan"]).expect(0), "a\tv\nb\tv\nc\tv\nd\tv\n");
    assert_eq!(
        against(&cluster, &["scan", "--reverse", "--keys-only", "--limit", "3"]).expect(0),
        "d\nc\nb\n"
    );
    assert_eq!(against(&cluster, &["scan", "--start", "b", "--end", "d", "--keys-only"]).expect(0), "b\nc\n");
    assert_eq!(
        against(&cluster, &["scan", "--prefix", "c", "-o", "json", "--keys-only"]).expect(0).lines().count(),
        1
    );
    assert_eq!(against(&cluster, &["scan", "--count"]).expect(0), "4\n");
    against(&cluster, &["scan", "--prefix", "a", "--start", "b"]).expect(2);
}

#[tokio::test]
async fn everything_is_deleted_only_on_demand() {
    let cluster = FakeCluster::start(1).await;
    for key in ["a1", "a2", "a3", "b"] {
        against(&cluster, &["put", key, "v"]).expect(0);
    }
    assert_eq!(against(&cluster, &["delete-range", "--prefix", "a"]).expect(0), "3 keys deleted\n");
    let run = against(&cluster, &["delete-range"]);
    assert!(run.err.contains("--yes"), "{run:?}");
    run.expect(2);
    assert_eq!(against(&cluster, &["delete-range", "--yes"]).expect(0), "1 keys deleted\n");
}

#[tokio::test]
async fn many_keys_in_one_call() {
    let cluster = FakeCluster::start(1).await;
    let lines = b"{\"put\":\"a\",\"value\":\"1\"}\n\n{\"put_base64\":\"/w==\",\"value\":\"2\"}\n{\"delete\":\"none\"}\n";
    let run = with_input(&cluster, &["bulk"], lines);
    assert_eq!(run.expect(0), "2 applied, 1 deletes of absent keys, 0 failed\n");
    assert_eq!(against(&cluster, &["batch-get", "a"]).expect(0), "a\t1\n");
    let run = against(&cluster, &["batch-get", "a", "none"]);
    assert_eq!((run.out.as_str(), run.err.as_str()), ("a\t1\n", "none is absent\n"));
    run.expect(3);
    let run = with_input(&cluster, &["bulk"], b"{\"put\":\"b\",\"value\":\"1\"}\n{\"put\":\"a\"}\n");
    assert!(run.err.contains("line 2"), "{run:?}");
    assert_eq!(run.expect(2), "1 applied, 0 deletes of absent keys, 0 failed\n");
}

#[tokio::test]
async fn bulk_takes_files_and_standard_input() {
    let cluster = FakeCluster::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let put = |key: &str| format!("{{\"put\":\"{key}\",\"value\":\"v\"}}\n");
    let (one, two) = (file("one", &put("a")), file("two", &[put("b"), "nonsense\n".to_owned()].concat()));
    let run = with_input(&cluster, &["bulk", &one, "-"], put("c").as_bytes());
    assert_eq!(run.expect(0), "2 applied, 0 deletes of absent keys, 0 failed\n");
    let run = with_input(&cluster, &["bulk", "--stdin"], put("d").as_bytes());
    assert_eq!(run.expect(0), "1 applied, 0 deletes of absent keys, 0 failed\n");
    assert_eq!(against(&cluster, &["scan", "--keys-only"]).expect(0), "a\nc\nd\n");

    let run = against(&cluster, &["bulk", &two, &one]);
    assert!(run.err.contains(&format!("{two} line 2: ")), "{run:?}");
    assert_eq!(run.expect(2), "1 applied, 0 deletes of absent keys, 0 failed\n");
    let run = against(&cluster, &["bulk", &file("three", &put("e")), "/no/such/file"]);
    assert!(run.err.contains("/no/such/file"), "{run:?}");
    run.expect(1);
    against(&cluster, &["bulk", folder.path().to_str().unwrap()]).expect(2);
    against(&cluster, &["bulk", &one, "--stdin"]).expect(2);
    let run = with_input(&cluster, &["bulk", "--stdin"], b"{\"put\":\"\xff\",\"value\":\"v\"}\n");
    assert!(run.err.contains("line 1"), "{run:?}");
    run.expect(1);
    assert_eq!(against(&cluster, &["scan", "--keys-only"]).expect(0), "a\nb\nc\nd\n", "nothing of three");
}

#[tokio::test]
async fn bulk_ends_when_nothing_gets_through() {
    let mut cluster = FakeCluster::start(1).await;
    cluster.kill(1).await;
    let lines = "{\"put\":\"a\",\"value\":\"v\"}\n".repeat(2_500);
    let run = with_input(&cluster, &["bulk", "--stdin"], lines.as_bytes());
    assert!(run.err.contains("line 1000: ") && !run.err.contains("line 1001: "), "{}", run.err);
    assert!(run.err.contains("the rest was not sent") && run.err.contains("hint: nobody answers"), "{run:?}");
    assert_eq!(run.expect(6), "0 applied, 0 deletes of absent keys, 1000 failed\n");
}

#[tokio::test]
async fn a_shell_prints_one_value_a_line() {
    let cluster = FakeCluster::start(1).await;
    let script = "put a 1\nkvctl put b 'two words'\n# nothing\n\nget a\nkvctl get b\nget a -o json\n";
    let out = with_input(&cluster, &["shell"], script.as_bytes()).expect(0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[2..5], ["1", "two words", "{"], "{out}");
    assert!(out.contains("\"value\": \"1\""), "{out}");
    let run = with_input(&cluster, &["shell"], b"get a\nget none\n");
    assert_eq!((run.out.as_str(), run.err.as_str(), run.code), ("1\n", "none is absent\n", 3));
    // The rest of the script is the value, as in other shells.
    with_input(&cluster, &["shell"], b"put c --stdin\nget a\n").expect(0);
    assert_eq!(against(&cluster, &["get", "c"]).expect(0), "get a\n");
}

#[tokio::test]
async fn a_transaction_tells_its_branch() {
    let cluster = FakeCluster::start(1).await;
    let document = br#"{"compare": [{"key": "{o}/s", "present": false}],
        "then": [{"put": "{o}/s", "value": "new"}], "else": [{"get": "{o}/s"}]}"#;
    assert_eq!(
        with_input(&cluster, &["txn", "--stdin"], document).expect(0),
        "then branch, revision 2\nput     version 1\n"
    );
    assert_eq!(
        with_input(&cluster, &["txn", "--stdin"], document).expect(4),
        "else branch, revision 2\nget     {o}/s\tnew\n"
    );
    with_input(&cluster, &["txn", "--stdin"], b"{").expect(2);
}

#[tokio::test]
async fn a_shell_runs_line_by_line() {
    let cluster = FakeCluster::start(1).await;
    let lines = b"put a 'b c'\n# a comment\nget a\nget none\nnonsense\nget \"a\n\nscan --keys-only\n";
    let run = with_input(&cluster, &["shell"], lines);
    assert_eq!(run.out, "ok, revision 2, version 1\nb c\na\n");
    assert!(run.err.contains("none is absent") && run.err.contains("nonsense"), "{run:?}");
    assert!(run.err.contains("a quote is not closed"), "{run:?}");
    assert_eq!(run.code, 0, "that of the last command");
}

#[test]
fn completion_scripts_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(kvctl(&["completion", shell], b"").expect(0).contains("kvctl"));
    }
    assert!(kvctl(&["help", "put"], b"").expect(0).contains("--if-absent"));
}
