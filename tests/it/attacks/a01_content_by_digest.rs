//! Attack a01: knowing a digest must not grant access. A project names another project's content as a file of its own
//! base model, trains over it, and exports the file with its adapter; or probes the content's existence and length.

use std::process::Command;

use attune_tests::{
    platform::{Platform, program},
    sha256,
    tenant::Tenant,
};
use reqwest::Method;
use serde_json::json;

use super::base_models::{base, tiny_files};

#[tokio::test(flavor = "multi_thread")]
async fn attack_a01_what_another_project_has_put_cannot_be_named_by_its_digest() {
    let platform = Platform::start().unwrap();
    let (victim, attacker) =
        (Tenant::new(&platform, "victim").await.unwrap(), Tenant::new(&platform, "attacker").await.unwrap());
    let secret = b"another tenant's secret\n".repeat(40);
    victim.upload("user_data", "s.txt", secret.clone()).await.unwrap();
    let blob = b"put as a file of a base model".to_vec();
    assert_eq!(victim.put_blob(&sha256(&blob), &blob).await.unwrap().0, 201);

    let files = tiny_files(&attacker, &platform, 7).await;
    let mut told = Vec::new();
    for (content, is_there) in [(&secret, true), (&blob, true), (&b"nobody has this".to_vec(), false)] {
        let digest = sha256(content);
        let path = format!("/v1/base_models/blobs/{digest}");
        assert_eq!(attacker.call(Method::HEAD, &path, None).await.unwrap().0, 404, "there: {is_there}");
        for bytes in [content.len(), 1] {
            let stolen = json!({"name": "special_tokens_map.json", "sha256": digest, "bytes": bytes});
            let (status, answer) = base(&attacker, "stolen", &[files.as_slice(), &[stolen]].concat()).await;
            assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_value")), "{answer}");
            told.push(answer["error"]["message"].as_str().unwrap().replace(&digest, "D"));
        }
        // An upload of other content is refused as a mismatch, whether or not content with this digest exists.
        let (status, answer) = attacker.put_blob(&digest, b"").await.unwrap();
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("digest_mismatch")), "{answer}");
    }
    assert!(told.iter().all(|message| *message == told[0]), "{told:?}");

    // A project that uploads the content itself may name it, and so may one that has a base model with it.
    assert_eq!(attacker.put_blob(&sha256(&blob), &blob).await.unwrap().0, 201);
    let own = json!({"name": "special_tokens_map.json", "sha256": sha256(&blob), "bytes": blob.len()});
    let (status, made) = base(&attacker, "own", &[files.as_slice(), std::slice::from_ref(&own)].concat()).await;
    assert_eq!((status, &made["owner"]), (201, &json!("project")), "{made}");
    assert_eq!(base(&attacker, "own", &[files.as_slice(), &[own]].concat()).await.0, 200, "the very same again");
    assert_eq!(attacker.put_blob(&sha256(&blob), b"").await.unwrap().0, 200, "what it may name is not sent again");

    // A project's base model is visible to it alone, and other projects may use its name. A base model that the first
    // key imports is visible to all projects.
    assert_eq!(victim.call(Method::GET, "/v1/base_models/own", None).await.unwrap().0, 404);
    let files = tiny_files(&victim, &platform, 8).await;
    assert_eq!(base(&victim, "own", &files).await.0, 201);
    platform.import_tiny().unwrap();
    let (status, tiny) = attacker.call(Method::GET, "/v1/base_models/tiny", None).await.unwrap();
    assert_eq!((status, &tiny["owner"]), (200, &json!("installation")), "{tiny}");
    for (key, model) in [(&attacker.api_key, "own"), (&platform.api_key, "tiny")] {
        let deleted = Command::new(program("attune").unwrap())
            .args(["models", "delete", model])
            .env("ATTUNE_API_URL", &platform.url)
            .env("ATTUNE_API_KEY", key)
            .output()
            .unwrap();
        assert!(deleted.status.success(), "{model}: {}", String::from_utf8_lossy(&deleted.stderr));
        assert_eq!(attacker.call(Method::GET, &format!("/v1/base_models/{model}"), None).await.unwrap().0, 404);
    }
    assert_eq!(victim.call(Method::GET, "/v1/base_models/own", None).await.unwrap().0, 200);
}
