//! Attack a01: a digest is no right to read. A project names another project's content as a file of a base model of its
//! own, trains over it, and takes the file home with its adapter; or asks whether, and how long, the content is.

use std::process::Command;

use attune_tests::platform::{Platform, client, program};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::json;

use super::tenants::{Tenant, sha256};

#[tokio::test(flavor = "multi_thread")]
async fn attack_a01_what_another_project_has_put_cannot_be_named_by_its_digest() {
    let platform = Platform::start().unwrap();
    let (victim, attacker) = (Tenant::new(&platform, "victim").await, Tenant::new(&platform, "attacker").await);
    let secret = b"another tenant's secret\n".repeat(40);
    let form = Form::new().text("purpose", "user_data").part("file", Part::bytes(secret.clone()).file_name("s.txt"));
    let upload = client().post(format!("{}/v1/files", platform.url)).bearer_auth(&victim.key).multipart(form);
    assert_eq!(upload.send().await.unwrap().status(), 200);
    let blob = b"put as a file of a base model".to_vec();
    assert_eq!(victim.put(&sha256(&blob), &blob).await.0, 201);

    let files = attacker.tiny_files(&platform, 7).await;
    let mut told = Vec::new();
    for (content, is_there) in [(&secret, true), (&blob, true), (&b"nobody has this".to_vec(), false)] {
        let digest = sha256(content);
        let path = format!("/v1/base_models/blobs/{digest}");
        assert_eq!(attacker.call(Method::HEAD, &path, None).await.0, 404, "there: {is_there}");
        for bytes in [content.len(), 1] {
            let stolen = json!({"name": "special_tokens_map.json", "sha256": digest, "bytes": bytes});
            let (status, answer) = attacker.base("stolen", &[files.as_slice(), &[stolen]].concat()).await;
            assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_value")), "{answer}");
            told.push(answer["error"]["message"].as_str().unwrap().replace(&digest, "D"));
        }
        // Whoever guesses at content is told that it is another, whether it is there or not.
        let (status, answer) = attacker.put(&digest, b"").await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("digest_mismatch")), "{answer}");
    }
    assert!(told.iter().all(|message| *message == told[0]), "{told:?}");

    // Who brings the content itself may name it, and so may the project that uses a base model of it.
    assert_eq!(attacker.put(&sha256(&blob), &blob).await.0, 201);
    let own = json!({"name": "special_tokens_map.json", "sha256": sha256(&blob), "bytes": blob.len()});
    let (status, made) = attacker.base("own", &[files.as_slice(), std::slice::from_ref(&own)].concat()).await;
    assert_eq!((status, &made["owner"]), (201, &json!("project")), "{made}");
    assert_eq!(attacker.base("own", &[files.as_slice(), &[own]].concat()).await.0, 200, "the very same again");
    assert_eq!(attacker.put(&sha256(&blob), b"").await.0, 200, "what it may name is not sent again");

    // A project's base model is its own, and its name is not taken from others. What the first key brings is for all.
    assert_eq!(victim.call(Method::GET, "/v1/base_models/own", None).await.0, 404);
    let files = victim.tiny_files(&platform, 8).await;
    assert_eq!(victim.base("own", &files).await.0, 201);
    platform.import_tiny().unwrap();
    let (status, tiny) = attacker.call(Method::GET, "/v1/base_models/tiny", None).await;
    assert_eq!((status, &tiny["owner"]), (200, &json!("installation")), "{tiny}");
    for (key, model) in [(&attacker.key, "own"), (&platform.api_key, "tiny")] {
        let deleted = Command::new(program("attune").unwrap())
            .args(["models", "delete", model])
            .env("ATTUNE_API_URL", &platform.url)
            .env("ATTUNE_API_KEY", key)
            .output()
            .unwrap();
        assert!(deleted.status.success(), "{model}: {}", String::from_utf8_lossy(&deleted.stderr));
        assert_eq!(attacker.call(Method::GET, &format!("/v1/base_models/{model}"), None).await.0, 404);
    }
    assert_eq!(victim.call(Method::GET, "/v1/base_models/own", None).await.0, 200);
}
