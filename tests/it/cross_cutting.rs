//! Cross-cutting behavior of all requests, over HTTP: idempotency keys, ETags and preconditions, rate limits, headers,
//! /docs.

use std::{collections::HashSet, fs};

use attune_tests::{
    platform::{Platform, client, text},
    tiny,
};
use reqwest::{
    Method, RequestBuilder, Response,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

/// The rate limit; high enough for all requests before the one test that exceeds it.
const REQUESTS_PER_MINUTE: &str = "600";

fn request(platform: &Platform, method: Method, path: &str) -> RequestBuilder {
    client().request(method, format!("{}{path}", platform.url)).bearer_auth(&platform.api_key)
}

async fn read(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_repeated_conditioned_limited_and_distinguished() {
    let platform = Platform::start_with(&format!(
        "[rate_limits]\nrequests_per_minute = {REQUESTS_PER_MINUTE}\n\
         [cors]\nallowed_origins = ['https://app.example.org']\n"
    ))
    .unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(8)).unwrap();
    of_eight_twins_one_makes_a_job(&platform, &file).await;
    a_key_represents_one_request(&platform, &file).await;
    a_repeated_upload_is_one_file(&platform).await;
    what_is_known_is_not_sent_again(&platform, &file).await;
    of_eight_changes_to_one_version_one_is_made(&platform).await;
    a_batch_is_cancelled_as_it_was_read(&platform).await;
    the_command_line_takes_jobs_as_files(&platform);
    the_command_line_shows_the_status(&platform);
    every_answer_has_its_headers(&platform).await;
    the_document_can_be_browsed(&platform).await;
    a_key_has_its_share_and_no_more(&platform).await;
}

async fn of_eight_twins_one_makes_a_job(platform: &Platform, file: &str) {
    let body = json!({"model": "tiny", "training_file": file, "metadata": {"twin": "yes"}});
    let ask = || request(platform, Method::POST, "/v1/fine_tuning/jobs").header("Idempotency-Key", "twins").json(&body);
    let twins: Vec<_> = (0..8).map(|_| tokio::spawn(ask().send())).collect();
    let mut ids = HashSet::new();
    for twin in twins {
        let mut response = twin.await.unwrap().unwrap();
        for _ in 0..20 {
            if response.status() != 409 {
                break;
            }
            assert_eq!(header(&response, "retry-after"), "1");
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
            response = ask().send().await.unwrap();
        }
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        ids.insert(read(response).await["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    let (_, jobs) = platform.call(Method::GET, "/v1/fine_tuning/jobs?metadata[twin]=yes", None).await.unwrap();
    assert_eq!(jobs["data"].as_array().unwrap().len(), 1, "{jobs}");
    let replayed = ask().send().await.unwrap();
    assert_eq!(header(&replayed, "idempotent-replayed"), "true");
    assert_eq!(header(&replayed, "content-type"), "application/json");
}

async fn a_key_represents_one_request(platform: &Platform, file: &str) {
    let ask = |path: &str, body: &Value, key: &str| {
        request(platform, Method::POST, path).header("Idempotency-Key", key).json(body).send()
    };
    let jobs = "/v1/fine_tuning/jobs";
    let other_body = json!({"model": "tiny", "training_file": file});
    for response in [ask(jobs, &other_body, "twins"), ask("/v1/base_models", &json!({}), "twins")] {
        let response = response.await.unwrap();
        assert_eq!(response.status(), 422);
        assert_eq!(read(response).await["error"]["code"], "idempotency_key_reused");
    }
    // A failed request releases its idempotency key, also for a corrected request.
    let bad = ask(jobs, &json!({"model": "none", "training_file": file}), "mended").await.unwrap();
    assert!(bad.status().is_client_error());
    let mended = ask(jobs, &other_body, "mended").await.unwrap();
    assert_eq!((mended.status().as_u16(), header(&mended, "idempotent-replayed")), (200, ""));
    let chat = ask("/v1/chat/completions", &json!({"model": "tiny", "messages": []}), "chat").await.unwrap();
    assert_eq!(read(chat).await["error"]["code"], "idempotency_not_supported");
}

async fn a_repeated_upload_is_one_file(platform: &Platform) {
    let upload = |rows: String| {
        let part = Part::text(rows).file_name("rows.jsonl");
        let form = Form::new().text("purpose", "fine-tune").part("file", part);
        request(platform, Method::POST, "/v1/files").header("Idempotency-Key", "upload").multipart(form).send()
    };
    let first = read(upload(tiny::rows(3)).await.unwrap()).await;
    let again = upload(tiny::rows(3)).await.unwrap();
    assert_eq!(header(&again, "idempotent-replayed"), "true");
    assert_eq!(read(again).await, first);
    assert_eq!(upload(tiny::rows(4)).await.unwrap().status(), 422);
}

async fn what_is_known_is_not_sent_again(platform: &Platform, file: &str) {
    let path = format!("/v1/files/{file}");
    let first = request(platform, Method::GET, &path).send().await.unwrap();
    let tag = header(&first, "etag").to_owned();
    assert!(tag.starts_with('"') && tag.contains('.'), "{tag}");
    let again = request(platform, Method::GET, &path).header("If-None-Match", &tag).send().await.unwrap();
    assert_eq!((again.status().as_u16(), header(&again, "etag")), (304, tag.as_str()));
    assert!(again.bytes().await.unwrap().is_empty());
    let other = request(platform, Method::GET, &path).header("If-None-Match", "\"other\"").send().await.unwrap();
    assert_eq!(other.status(), 200);
}

async fn of_eight_changes_to_one_version_one_is_made(platform: &Platform) {
    let file = platform.upload(&tiny::rows(5)).unwrap();
    let path = format!("/v1/files/{file}");
    let stale = request(platform, Method::DELETE, &path).header("If-Match", "\"1.abc\"").send().await.unwrap();
    assert_eq!(stale.status(), 412);
    let current = header(&stale, "etag").to_owned();
    assert!(read(stale).await["error"]["message"].as_str().unwrap().contains(&current));

    let read_before = request(platform, Method::GET, &path).send().await.unwrap();
    let tag = header(&read_before, "etag").to_owned();
    let delete = || request(platform, Method::DELETE, &path).header("If-Match", &tag).send();
    let racing: Vec<_> = (0..8).map(|_| tokio::spawn(delete())).collect();
    let mut statuses = Vec::new();
    for one in racing {
        statuses.push(one.await.unwrap().unwrap().status().as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412, 412, 412, 412, 412, 412, 412]);
    let listed = request(platform, Method::POST, "/v1/files").header("If-Match", &tag).send().await.unwrap();
    assert_eq!(read(listed).await["error"]["code"], "precondition_not_supported");
}

async fn a_batch_is_cancelled_as_it_was_read(platform: &Platform) {
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
    let row = json!({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body});
    let path = platform.folder().path("requests.jsonl");
    std::fs::write(&path, row.to_string()).unwrap();
    let batch = platform.json(&["batches", "create", path.to_str().unwrap()]).unwrap();
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let shown = request(platform, Method::GET, &path).send().await.unwrap();
    let (version, _) = header(&shown, "etag").trim_matches('"').split_once('.').unwrap();
    assert!(version.parse::<u64>().is_ok(), "{shown:?}");
    let cancel = format!("{path}/cancel");
    let stale = request(platform, Method::POST, &cancel).header("If-Match", "\"1.abc\"").send().await.unwrap();
    assert_eq!(stale.status(), 412);
    assert_ne!(read(request(platform, Method::GET, &path).send().await.unwrap()).await["status"], "cancelled");
}

/// Creates jobs from a YAML file and from a Ludwig config, each with a local dataset.
fn the_command_line_takes_jobs_as_files(platform: &Platform) {
    let folder = platform.folder();
    let (rows, yaml) = (folder.path("own.jsonl"), folder.path("job.yaml"));
    fs::write(&rows, tiny::rows(4)).unwrap();
    let job = "# yaml-language-server: $schema=job.schema.json\nmodel: tiny\nsuffix: yaml\nadapter: {rank: 8}\n\
               trainer:\n  learning_rate: 1e-3\n";
    fs::write(&yaml, format!("{job}training_file: {}\n", rows.display())).unwrap();
    let made = platform.json(&["jobs", "create", "-f", text(&yaml).unwrap()]).unwrap();
    assert_eq!((&made["adapter"]["rank"], &made["trainer"]["learning_rate"]), (&json!(8), &json!(0.001)), "{made}");

    let (config, table) = (folder.path("ludwig.yaml"), folder.path("table.csv"));
    let ludwig = include_str!("../../cli/testdata/ludwig_alpaca.yaml");
    fs::write(&config, ludwig.replace("global_max_sequence_length: 512", "global_max_sequence_length: 300")).unwrap();
    let lines: String = (0..60).map(|i| format!("say {i},in,out {i}\n")).collect();
    fs::write(&table, format!("instruction,input,output\n{lines}")).unwrap();
    let create =
        ["jobs", "create", "-f", text(&config).unwrap(), "--training-file", text(&table).unwrap(), "--model", "tiny"];
    let planned = platform.json(&[&create[..], &["--dry-run"]].concat()).unwrap();
    assert_eq!(planned["trainer"]["max_length"], 300, "{planned}");
    let said = platform.attune(&create).unwrap();
    let told = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{told}");
    assert!(told.contains("prompt.template") && told.contains("ignored"), "{told}");
    let listed = platform.json(&["jobs", "list", "--limit", "1"]).unwrap();
    let job = &listed["data"][0];
    assert_eq!((&job["seed"], &job["trainer"]["over_length"]), (&json!(7), &json!("truncate")), "{job}");
    assert!(job["validation_file"].is_string(), "{job}");
}

/// Prints the status once, as JSON and as tables.
fn the_command_line_shows_the_status(platform: &Platform) {
    let status = platform.json(&["top"]).unwrap();
    assert_eq!(
        (&status["object"], &status["machines"]["total"]),
        (&json!("organization.status"), &json!(1)),
        "{status}"
    );
    let machine = status["machines"]["data"][0]["name"].as_str().unwrap();
    let shown = platform.attune(&["top", "--once"]).unwrap();
    let told = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success() && told.contains(&format!("{machine} of local")), "{told}");
    assert!(!told.contains('\x1b'), "no screen is cleared: {told}");
}

async fn every_answer_has_its_headers(platform: &Platform) {
    let chosen =
        request(platform, Method::GET, "/v1/files/").header("X-Client-Request-Id", "mine-1").send().await.unwrap();
    assert_eq!(chosen.status(), 200, "a slash at the end");
    assert_eq!(header(&chosen, "x-request-id"), "mine-1");
    assert_eq!(header(&chosen, "openai-organization"), "default");
    assert_eq!(header(&chosen, "openai-version"), "2020-10-01");
    assert_eq!(header(&chosen, "x-content-type-options"), "nosniff");
    assert!(header(&chosen, "openai-processing-ms").parse::<u64>().is_ok());
    let refused = request(platform, Method::PUT, "/v1/files").send().await.unwrap();
    assert_eq!((refused.status().as_u16(), header(&refused, "allow")), (405, "POST,GET,HEAD"));
    let asked = request(platform, Method::OPTIONS, "/v1/files").send().await.unwrap();
    assert_eq!((asked.status().as_u16(), header(&asked, "allow")), (200, "POST,GET,HEAD"));
    for (origin, allowed) in [("https://app.example.org", "https://app.example.org"), ("https://evil.example", "")] {
        let preflight = client()
            .request(Method::OPTIONS, format!("{}/v1/files", platform.url))
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .send();
        assert_eq!(header(&preflight.await.unwrap(), "access-control-allow-origin"), allowed);
    }
}

async fn the_document_can_be_browsed(platform: &Platform) {
    let page = client().get(format!("{}/docs", platform.url)).send().await.unwrap();
    assert!(page.url().path().starts_with("/docs/"), "{}", page.url());
    assert!(header(&page, "content-security-policy").contains("script-src 'self'"));
    assert!(page.text().await.unwrap().contains("swagger-ui"));
    let script = client().get(format!("{}/docs/swagger-ui-bundle.js", platform.url)).send().await.unwrap();
    assert!(script.bytes().await.unwrap().len() > 100_000);
}

async fn a_key_has_its_share_and_no_more(platform: &Platform) {
    let ask = || request(platform, Method::GET, "/v1/models").send();
    let mut response = ask().await.unwrap();
    assert_eq!(header(&response, "x-ratelimit-limit-requests"), REQUESTS_PER_MINUTE);
    let left: u64 = header(&response, "x-ratelimit-remaining-requests").parse().unwrap();
    assert!(left < 600, "{left}");
    // The bucket refills at 10 requests per second, far slower than this loop sends them.
    for _ in 0..2000 {
        if response.status() == 429 {
            break;
        }
        response = ask().await.unwrap();
    }
    assert_eq!(response.status(), 429);
    assert!(header(&response, "retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(header(&response, "x-ratelimit-remaining-requests"), "0");
    assert_eq!(read(response).await["error"]["code"], "rate_limit_exceeded");
}
