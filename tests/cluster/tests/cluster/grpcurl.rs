//! What the README has people type into a terminal with grpcurl: reflection, health, text, errors with their details.
//!
//! grpcurl is looked for as `GRPCURL`, on the path, and where `go install` puts it. Without it the test is skipped, and
//! fails in CI, where `scripts/setup` installs it.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use kv_cluster_tests::{Cluster, DEADLINE, Plan, wait_until};
use tokio::task::spawn_blocking;

/// Prints why there is none.
fn find() -> Option<PathBuf> {
    let named = env::var_os("GRPCURL").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("grpcurl"));
    let go = env::var_os("GOPATH").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join("go")));
    let installed = go.map(|go| go.join("bin/grpcurl"));
    let found = named.into_iter().chain(on_path).chain(installed).find(|program| program.is_file());
    if found.is_none() {
        assert!(env::var("CI").as_deref() != Ok("true"), "there is no grpcurl: run scripts/setup");
        eprintln!(
            "SKIPPED: there is no grpcurl; go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"
        );
    }
    found
}

struct Grpcurl {
    program: PathBuf,
    address: String,
}

impl Grpcurl {
    /// `grpcurl -plaintext OPTIONS ADDRESS WORDS`.
    async fn run(&self, options: &[&str], words: &[&str]) -> Output {
        let mut command = Command::new(Path::new(&self.program));
        command.arg("-plaintext").args(options).arg(&self.address).args(words);
        spawn_blocking(move || command.output()).await.expect("it does not panic").expect("grpcurl starts")
    }

    /// What it printed; it must have succeeded.
    async fn says(&self, options: &[&str], words: &[&str]) -> String {
        let output = self.run(options, words).await;
        assert!(output.status.success(), "{options:?} {words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("grpcurl prints text")
    }

    /// The reply to a request, which is repeated until it shows all of these: a leader may be lost meanwhile.
    async fn call(&self, method: &str, request: &str, parts: &[&str]) {
        let shown = wait_until(format!("{parts:?} in the reply of {method}"), DEADLINE, || async {
            let output = self.run(&["-d", request], &[method]).await;
            let text = String::from_utf8_lossy(&output.stdout);
            let all = output.status.success() && parts.iter().all(|part| text.contains(part));
            if all { Ok(()) } else { Err(format!("{output:?}")) }
        });
        shown.await.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn assert_shows(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_grpcurl_asks_of_a_node_is_answered() {
    let Some(program) = find() else { return };
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let address = cluster.nodes[0].ports.client_address().to_string();
    let grpcurl = Grpcurl { program, address };

    let services = grpcurl.says(&[], &["list"]).await;
    let all = ["kv.v1.Kv", "kv.v1.KvText", "admin.v1.Admin", "grpc.health.v1.Health"];
    for service in all {
        assert!(services.lines().any(|line| line == service), "{service} is not in: {services}");
    }
    let described = grpcurl.says(&[], &["describe", "kv.v1.KvText"]).await;
    assert_shows(&described, &["rpc Put ( .kv.v1.TextPutRequest )", "rpc Scan"]);
    let described = grpcurl.says(&[], &["describe", "kv.v1.Precondition"]).await;
    assert_shows(&described, &["oneof condition", "uint64 mod_revision"]);
    // The details of errors can only be printed if reflection knows them.
    let described = grpcurl.says(&[], &["describe", "google.rpc.ErrorInfo"]).await;
    assert_shows(&described, &["string reason"]);

    grpcurl.call("grpc.health.v1.Health/Check", "{}", &[r#""status": "SERVING""#]).await;

    let put = [r#""applied": true"#, r#""modRevision""#];
    grpcurl.call("kv.v1.KvText/Put", r#"{"key":"greeting","value":"hello"}"#, &put).await;
    grpcurl.call("kv.v1.KvText/Get", r#"{"key":"greeting"}"#, &[r#""text": "hello""#]).await;
    grpcurl.call("kv.v1.KvText/Scan", r#"{"prefix":"gre"}"#, &[r#""key": "greeting""#]).await;

    refused_with_details(&grpcurl).await;
}

async fn refused_with_details(grpcurl: &Grpcurl) {
    let refused = grpcurl.run(&["-d", r#"{"key":"","value":"x"}"#], &["kv.v1.KvText/Put"]).await;
    assert!(!refused.status.success());
    let errors = String::from_utf8(refused.stderr).expect("grpcurl prints text");
    let details = ["Code: InvalidArgument", "google.rpc.ErrorInfo", "kvcluster.dev", "google.rpc.BadRequest"];
    assert_shows(&errors, &details);
    assert_shows(&errors, &[r#""field": "key""#]);
}
