//! `attune up` with external services: a PostgreSQL database, and an S3 service that behaves differently from the
//! embedded one.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use attune_tests::{
    platform::{Folder, Platform, client},
    tiny,
};
use nix::sys::signal::Signal;
use reqwest::{Method, multipart};
use serde_json::{Value, json};

use crate::house::{create, job};

/// A process of `tests/python/s3_store.py`, killed on drop.
struct S3Store {
    process: Child,
    url: String,
}

impl S3Store {
    fn start(options: &[&str]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/s3_store.py");
        let mut process = Command::new("python3").arg(script).args(options).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { process, url: url.trim().to_owned() }
    }

    fn settings(&self) -> String {
        format!("[object_store]\nendpoint = '{}'\naccess_key_id = 'x'\nsecret_access_key = 'y'\n", self.url)
    }

    /// Sets the result of further uploads: a failure, such as `507/XMinioStorageFull`, or success: `take`.
    async fn uploads(&self, how: &str) {
        client().post(format!("{}/-/uploads/{how}", self.url)).send().await.unwrap();
    }

    async fn checksums(&self) -> String {
        client().get(format!("{}/-/uploads", self.url)).send().await.unwrap().text().await.unwrap()
    }
}

impl Drop for S3Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A database in the tests' cluster, created as docs/CLI.md describes; dropped after the test.
struct Database {
    cluster: String,
    name: String,
}

impl Database {
    #[expect(clippy::disallowed_methods, reason = "scripts/test-postgres passes the cluster in this variable")]
    fn create() -> Self {
        let cluster = std::env::var("DATABASE_URL").expect("run by scripts/test-postgres, which sets DATABASE_URL");
        let made = Self { cluster, name: format!("attune_external_{}", std::process::id()) };
        let name = &made.name;
        for role in ["attune_app", "attune_platform"] {
            made.sql(&format!(
                "do $$ begin create role {role} nologin;
                 exception when duplicate_object or unique_violation then null; end $$"
            ));
        }
        made.sql(&format!("create role {name} login noinherit password 'secret' in role attune_app, attune_platform"));
        made.sql(&format!("create database {name}"));
        made
    }

    fn sql(&self, statement: &str) {
        let mut psql = Command::new("psql");
        psql.args(["-q", "-X", "-v", "ON_ERROR_STOP=1", "-d", &self.cluster, "-c", statement]);
        let said = psql.output().unwrap();
        assert!(said.status.success(), "{statement}: {}", String::from_utf8_lossy(&said.stderr));
    }

    fn settings(&self) -> String {
        let owner = self.cluster.replace("/postgres?", &format!("/{}?", self.name));
        let login = owner.replace("://attune@", &format!("://{}:secret@", self.name));
        format!("[database]\nurl = '{login}'\nowner_url = '{owner}'\n")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.sql(&format!("drop database {} with (force)", self.name));
            self.sql(&format!("drop role {}", self.name));
        }
    }
}

async fn upload(platform: &Platform) -> (u16, Value) {
    let rows = multipart::Part::text(tiny::rows(4)).file_name("rows.jsonl");
    let form = multipart::Form::new().text("purpose", "fine-tune").part("file", rows);
    let request = client().post(format!("{}/v1/files", platform.url)).bearer_auth(&platform.api_key);
    let answer = request.multipart(form).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn case_19_a_job_over_an_external_database_and_an_s3_that_refuses_checksums_is_slow_and_busy() {
    let (store, database) =
        (S3Store::start(&["--refuse-checksums", "--slow", "0.01", "--unavailable-every", "9"]), Database::create());
    let platform = Platform::start_with(&format!("{}{}", database.settings(), store.settings())).unwrap();
    assert!(platform.descendants().unwrap().iter().all(|(_, command)| !command.contains("postgres")));
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let id = create(&platform, job(&file)).await;
    let done = platform.ended(&id, Duration::from_secs(180)).await.unwrap();
    assert_eq!((&done["status"], &done["attempts"]), (&json!("succeeded"), &json!(1)), "{done}");
    let chat = json!({"model": done["fine_tuned_model"], "max_tokens": 4,
        "messages": [{"role": "user", "content": "hi"}]});
    let (status, said) = platform.call(Method::POST, "/v1/chat/completions", Some(chat)).await.unwrap();
    assert_eq!(status, 200, "{said}");
    assert_eq!(store.checksums().await, "0", "an upload has a checksum that was not requested");
    platform.stop(Signal::SIGTERM).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn case_19_an_answer_has_the_message_of_the_object_store() {
    let store = S3Store::start(&[]);
    let platform = Platform::start_with(&store.settings()).unwrap();
    for (how, status, code, said) in [
        ("501/NotImplemented", 502, "object_store_failed", "it answered NotImplemented (501)."),
        ("403/AccessDenied", 502, "object_store_failed", "it answered AccessDenied (403)."),
        (
            "507/XMinioStorageFull",
            507,
            "insufficient_storage",
            "has no space for the file: it answered XMinioStorageFull (507).",
        ),
    ] {
        store.uploads(how).await;
        let (got, told) = upload(&platform).await;
        assert_eq!((got, told["error"]["code"].as_str()), (status, Some(code)), "{told}");
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains(said) && !message.contains("disk"), "{message}");
        assert_eq!(message.contains("no space"), status == 507, "{message}");
    }
    store.uploads("take").await;
    assert_eq!(upload(&platform).await.0, 200);
    platform.stop(Signal::SIGTERM).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn case_19_a_start_tries_an_upload_and_fails_with_the_services_reason() {
    let store = S3Store::start(&[]);
    store.uploads("403/AccessDenied").await;
    let folder = Folder::new().unwrap();
    std::fs::write(folder.path("settings.toml"), store.settings()).unwrap();
    let refused = tokio::task::spawn_blocking(|| Platform::start_on(folder).map(drop)).await.unwrap().unwrap_err();
    let told = format!("{refused:#}");
    assert!(told.contains("the object store cannot be used") && told.contains("AccessDenied"), "{told}");
}
