//! Datasets in every format and in parts, through the real API; and hostile files, through the real parser child.

use std::{
    io::Write,
    os::unix::process::ExitStatusExt,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use attune_tests::{
    platform::{Platform, client, program},
    tiny,
};
use flate2::{Compression, write::GzEncoder};
use nix::sys::signal::Signal;
use parquet::{
    basic::Compression as Codec,
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::house::get;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    packer.write_all(content).unwrap();
    packer.finish().unwrap()
}

/// Creates a Parquet file with one column, `text`.
fn texts(rows: &[Vec<u8>]) -> Vec<u8> {
    let schema = parse_message_type("message rows { REQUIRED BYTE_ARRAY text (UTF8); }").unwrap();
    let properties = WriterProperties::builder().set_compression(Codec::SNAPPY).set_dictionary_enabled(false);
    let mut writer = SerializedFileWriter::new(Vec::new(), schema.into(), Arc::new(properties.build())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let cells: Vec<ByteArray> = rows.iter().map(|row| row.clone().into()).collect();
    column.typed::<ByteArrayType>().write_batch(&cells, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.into_inner().unwrap()
}

/// Runs the API's parser child alone; writes to its stdin until `next` returns `None` or the child closes it.
fn child(orders: &Value, mut next: impl FnMut() -> Option<Vec<u8>>) -> Output {
    let mut command = Command::new(program("attune-api").unwrap());
    command.arg("read-dataset").arg(orders.to_string()).env_clear();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    while let Some(piece) = next() {
        if stdin.write_all(&piece).is_err() {
            break;
        }
    }
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn orders(memory_bytes: u64, cpu_seconds: u64) -> Value {
    json!({"filename": "a", "memory_bytes": memory_bytes, "cpu_seconds": cpu_seconds, "file_bytes": 1_u64 << 40,
        "rows_bytes": 1_u64 << 40})
}

#[test]
fn the_child_ends_at_its_limits_and_only_the_child() {
    let rows = "{\"text\": \"once upon a time\"}\n".repeat(10_000).into_bytes();
    let sound = child(&orders(1 << 30, 60), {
        let mut pieces = vec![rows.clone()];
        move || pieces.pop()
    });
    let said = String::from_utf8_lossy(&sound.stderr).into_owned();
    assert!(sound.status.success() && said.contains(r#""rows":10000"#), "{said}");

    // One cell of 200 MiB, compressed to a small file.
    let mut cell = vec![texts(&[vec![b'x'; 200 << 20]])];
    let ended = child(&orders(350 << 20, 60), move || cell.pop());
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("memory allocation"), "{}: {said}", ended.status);

    // Valid rows without end.
    let ended = child(&orders(1 << 30, 1), || Some(rows.clone()));
    let signal = ended.status.signal().and_then(|number| Signal::try_from(number).ok());
    assert!(matches!(signal, Some(Signal::SIGXCPU | Signal::SIGKILL)), "{}", ended.status);
}

/// Sends a form; returns the status and the body.
async fn send(platform: &Platform, path: &str, form: Form) -> (u16, Value) {
    let url = format!("{}{path}", platform.url);
    let answer = client().post(url).bearer_auth(&platform.api_key).multipart(form).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn upload(platform: &Platform, name: &str, bytes: Vec<u8>) -> (u16, Value) {
    // The file comes before its purpose: the order must not matter.
    let form = Form::new().part("file", Part::bytes(bytes).file_name(name.to_owned())).text("purpose", "fine-tune");
    send(platform, "/v1/files", form).await
}

async fn content(platform: &Platform, id: &Value) -> Vec<u8> {
    let url = format!("{}/v1/files/{}/content", platform.url, id.as_str().unwrap());
    client().get(url).bearer_auth(&platform.api_key).send().await.unwrap().bytes().await.unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn datasets_come_in_every_form_and_in_parts_and_hostile_ones_are_answered() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    hostile(&platform).await;
    forms(&platform).await;
    other_files(&platform).await;
    parts(&platform).await;
    report(&platform).await;
}

async fn hostile(platform: &Platform) {
    let whole = texts(&vec![b"once upon a time".to_vec(); 1000]);
    let deep = format!("[{}{}]", "[".repeat(200_000), "]".repeat(200_000));
    let bomb = gzip(format!("{{\"text\": \"{}\"}}\n", "x".repeat(1000)).repeat(200_000).as_bytes());
    let quoted = format!("text\n\"{}\"\n", "x".repeat(9 << 20));
    let cell = format!("text\n{}\n", "x".repeat(9 << 20));
    for (name, bytes, wanted) in [
        ("bomb.jsonl.gz", bomb, "times its own length"),
        ("deep.json", deep.into_bytes(), "recursion limit"),
        ("quoted.csv", quoted.into_bytes(), "is not closed within"),
        ("cell.csv", cell.into_bytes(), "a row takes more than"),
        ("cut.parquet", whole[..whole.len() - 20].to_vec(), "Parquet"),
        ("cut.jsonl.gz", gzip(tiny::rows(9).as_bytes())[..60].to_vec(), "gzip"),
        ("bad.csv", b"prompt,completion\na,b\nc,\n".to_vec(), "row 2: completion: must not be empty"),
    ] {
        let (status, answer) = upload(platform, name, bytes).await;
        let error = &answer["error"];
        assert_eq!((status, &error["code"]), (400, &json!("invalid_file_format")), "{name}: {answer}");
        assert!(error["message"].as_str().unwrap().contains(wanted), "{name}: {answer}");
    }
    assert_eq!(get(platform, "/v1/files").await["data"], json!([]), "a refused file left a row");
}

async fn forms(platform: &Platform) {
    let table = b"instruction,input,output\nsay,yes,yes\nsay,no,no\n".to_vec();
    let (status, file) = upload(platform, "train.csv.gz", gzip(&table)).await;
    assert_eq!(status, 200, "{file}");
    assert_eq!(file["source"], json!({"container": "csv", "compression": "gzip", "shape": "alpaca"}));
    assert_eq!((&file["format"], &file["rows"]), (&json!("chat"), &json!(2)));
    assert_eq!(content(platform, &file["id"]).await, gzip(&table), "the content is what was uploaded");
    // A job trains on the converted rows.
    let preview = format!("/v1/files/{}/preview", file["id"].as_str().unwrap());
    let (status, rows) = platform.call(Method::POST, &preview, Some(json!({"model": "tiny"}))).await.unwrap();
    assert_eq!((status, rows["data"].as_array().map(Vec::len)), (200, Some(2)), "{rows}");

    let message = |text| json!([{"role": "assistant", "content": text}]);
    let preference = json!({"input": {"messages": [{"role": "user", "content": "q"}]},
        "preferred_output": message("a"), "non_preferred_output": message("b")});
    let (_, file) = upload(platform, "preferences.jsonl", format!("{preference}\n").repeat(3).into_bytes()).await;
    assert_eq!(file["format"], "preference", "{file}");
    let job = json!({"model": "tiny", "training_file": file["id"]});
    let (status, refused) = platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(job)).await.unwrap();
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("training_file")), "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("preference rows"), "{refused}");
}

async fn other_files(platform: &Platform) {
    let note = |seconds: &str| {
        let form = Form::new().text("purpose", "user_data").text("expires_after[anchor]", "created_at");
        form.text("expires_after[seconds]", seconds.to_owned()).part("file", Part::bytes(vec![0, 255]).file_name("n"))
    };
    let (status, file) = send(platform, "/v1/files", note("3600")).await;
    assert_eq!(status, 200, "{file}");
    let life = file["expires_at"].as_i64().unwrap() - file["created_at"].as_i64().unwrap();
    assert_eq!((life, &file["rows"], &file["source"]), (3600, &Value::Null, &Value::Null));
    let (status, refused) = send(platform, "/v1/files", note("10")).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("expires_after.seconds")), "{refused}");
    let listed = get(platform, "/v1/files?purpose=user_data").await;
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(1));
    let job = json!({"model": "tiny", "training_file": file["id"]});
    let (status, refused) = platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(job)).await.unwrap();
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("training_file")), "{refused}");
}

async fn parts(platform: &Platform) {
    let rows = tiny::rows(500);
    let (first, second) = rows.as_bytes().split_at(7_001);
    let begin = |bytes: usize| {
        json!({"filename": "train.jsonl", "purpose": "fine-tune", "bytes": bytes, "mime_type": "text/jsonl",
            "expires_after": {"anchor": "created_at", "seconds": 7200}})
    };
    let post = |path: String, body: Value| async move { platform.call(Method::POST, &path, Some(body)).await.unwrap() };
    let (status, upload) = post("/v1/uploads".into(), begin(rows.len())).await;
    assert_eq!((status, &upload["status"], &upload["file"]), (200, &json!("pending"), &Value::Null), "{upload}");
    let at = |step: &str| format!("/v1/uploads/{}/{step}", upload["id"].as_str().unwrap());
    let mut ids = Vec::new();
    for bytes in [second, first] {
        let form = Form::new().part("data", Part::bytes(bytes.to_vec()).file_name("part"));
        let (status, part) = send(platform, &at("parts"), form).await;
        assert_eq!(
            (status, &part["object"], &part["upload_id"]),
            (200, &json!("upload.part"), &upload["id"]),
            "{part}"
        );
        ids.insert(0, part["id"].clone());
    }
    for (body, param) in [
        (json!({"part_ids": [ids[0]]}), "part_ids"),
        (json!({"part_ids": [ids[0], ids[0]]}), "part_ids[1]"),
        (json!({"part_ids": ids, "md5": "0".repeat(32)}), "md5"),
        (json!({"part_ids": [ids[1], ids[0]]}), "file"),
    ] {
        let (status, refused) = post(at("complete"), body).await;
        assert_eq!((status, &refused["error"]["param"]), (400, &json!(param)), "{refused}");
    }
    let (status, done) = post(at("complete"), json!({"part_ids": ids})).await;
    assert_eq!((status, &done["status"], &done["file"]["rows"]), (200, &json!("completed"), &json!(500)), "{done}");
    assert_eq!(content(platform, &done["file"]["id"]).await, rows.as_bytes());
    let life = done["file"]["expires_at"].as_i64().unwrap() - done["file"]["created_at"].as_i64().unwrap();
    assert_eq!(life, 7200);
    let (status, again) = post(at("complete"), json!({"part_ids": ids})).await;
    assert_eq!((status, &again), (200, &done), "a repeated call changes nothing");
    assert_eq!(post(at("cancel"), json!({})).await.0, 400);

    let (_, other) = post("/v1/uploads".into(), begin(5)).await;
    let cancel = format!("/v1/uploads/{}/cancel", other["id"].as_str().unwrap());
    assert_eq!(post(cancel.clone(), json!({})).await.1["status"], "cancelled");
    let form = Form::new().part("data", Part::bytes(vec![1]).file_name("part"));
    let (status, refused) = send(platform, &cancel.replace("cancel", "parts"), form).await;
    assert_eq!(status, 400, "{refused}");
    let nobody = "/v1/uploads/upload_00000000000000000000000000000000/cancel";
    assert_eq!(post(nobody.into(), json!({})).await.0, 404);
    from_the_command_line(platform).await;
}

/// Uploads a file in three parts, two of 1 MiB and the rest; then a file that is not a dataset, which is refused.
async fn from_the_command_line(platform: &Platform) {
    let path = platform.folder().path("long.jsonl");
    let rows = tiny::rows(24_000);
    assert!((2 << 20..3 << 20).contains(&rows.len()), "{}", rows.len());
    std::fs::write(&path, &rows).unwrap();
    let upload = |path: &std::path::Path| {
        platform.json(&["files", "upload", path.to_str().unwrap(), "--part-mib", "1", "--expires-after", "7200"])
    };
    let file = upload(&path).unwrap();
    assert_eq!((&file["rows"], &file["filename"]), (&json!(24_000), &json!("long.jsonl")), "{file}");
    assert_eq!(file["expires_at"].as_i64().unwrap() - file["created_at"].as_i64().unwrap(), 7200);
    assert_eq!(content(platform, &file["id"]).await, rows.as_bytes());
    std::fs::write(&path, "no row\n").unwrap();
    let refused = upload(&path).unwrap_err().to_string();
    assert!(refused.contains("line 1") || refused.contains("Line 1"), "{refused}");
}

async fn report(platform: &Platform) {
    let pair = |prompt: &str, completion: &str| json!({"prompt": prompt, "completion": completion}).to_string() + "\n";
    let train = [pair("a", "b"), pair("A ", "b"), pair("a", "b"), pair("", "long ".repeat(40).trim())].concat();
    let validation = [pair("new", "b"), pair("a", "B")].concat();
    let (_, train) = upload(platform, "train.jsonl", train.into_bytes()).await;
    let (_, validation) = upload(platform, "validation.jsonl", validation.into_bytes()).await;
    let path = format!("/v1/files/{}/report", train["id"].as_str().unwrap());
    let plain = get(platform, &path).await;
    assert_eq!((&plain["rows"], &plain["tokens"]), (&json!(4), &Value::Null), "{plain}");
    let query = format!("{path}?model=tiny&max_length=16&validation_file={}", validation["id"].as_str().unwrap());
    let report = get(platform, &query).await;
    assert_eq!(report["duplicates"]["exact"], json!({"rows": 1, "lines": [3]}), "{report}");
    assert_eq!(report["duplicates"]["normalised"], json!({"rows": 2, "lines": [2, 3]}));
    assert_eq!(report["leakage"]["exact"]["rows"], 0);
    assert_eq!(report["leakage"]["normalised"], json!({"rows": 1, "lines": [2]}));
    assert_eq!(report["odd_rows"]["empty_prompt"], json!({"rows": 1, "lines": [4]}));
    assert_eq!(report["over_length"]["above"], json!({"rows": 1, "lines": [4]}));
    assert_eq!(report["over_length"]["policies"]["drop"]["changed"], 1);
    assert!(report["tokens"]["max"].as_u64() > Some(16), "{report}");
    assert_eq!(get(platform, &query).await, report, "the second time it is remembered");
    let said = platform.attune(&["files", "report", train["id"].as_str().unwrap(), "--model", "tiny"]).unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("1 row repeated: lines 3"), "{said}");
    let (status, refused) = platform.call(Method::GET, &format!("{path}?max_length=3"), None).await.unwrap();
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("max_length")));
}
