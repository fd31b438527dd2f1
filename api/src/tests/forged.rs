//! Invalid keys and tokens: none is accepted.

use attune_domain::{access::Scope, text::key_text};
use attune_store::{
    db,
    tenancy::api_key::{self, NewKey},
};
use axum::http::{Method, StatusCode};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use chrono::Utc;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{
    issuer::{AUDIENCE, Issuer, Signer},
    world::{World, unknown_secret},
};

type Case = (String, String);

#[sqlx::test(migrations = false)]
async fn no_forged_key_or_token_is_accepted(pool: PgPool) {
    let world = World::with_signer(pool, Signer::p256("first"), &["ES256", "EdDSA"]).await;
    let good = world.person("alice", attune_domain::access::Role::Owner).await;
    assert_eq!(world.get("/v1/files", &good).await.status, StatusCode::OK, "the control: a good token");
    assert_eq!(world.get("/v1/files", &world.key).await.status, StatusCode::OK, "the control: a good key");

    let mut cases = keys(&world).await;
    cases.extend(signatures(&world, &good));
    cases.extend(headers(&world).await);
    cases.extend(claims(&world));
    cases.extend(texts(&good));
    let mut accepted = Vec::new();
    for (name, bearer) in &cases {
        let answer = world.get("/v1/files", bearer).await;
        if answer.status != StatusCode::UNAUTHORIZED {
            accepted.push(format!("{name}: {} {}", answer.status, answer.text));
        }
    }
    let schemes = ["Basic", "Token", "", "Bearer:", "BearerBearer", "Digest", "sk-attune"];
    for scheme in schemes {
        let header = format!("{scheme} {good}");
        let answer = world.call_with(Method::GET, "/v1/files", &[("authorization", &header)], None).await;
        if answer.status != StatusCode::UNAUTHORIZED {
            accepted.push(format!("scheme '{scheme}': {}", answer.status));
        }
    }
    // Other headers in which a caller might send a token.
    for (name, value) in
        [("x-api-key", &good), ("cookie", &good), ("proxy-authorization", &good), ("api-key", &world.key)]
    {
        let answer = world.call_with(Method::GET, "/v1/files", &[(name, value)], None).await;
        if answer.status != StatusCode::UNAUTHORIZED {
            accepted.push(format!("header {name}: {}", answer.status));
        }
    }
    let tried = cases.len() + schemes.len() + 4;
    for figure in [
        json!({"figure": "forged_tokens_tried", "value": tried, "bar": 60}),
        json!({"figure": "forged_tokens_accepted", "value": accepted.len(), "bar": 0, "at_most": true}),
    ] {
        attune_tests::figure(&figure.to_string());
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
    assert!(tried >= 60, "{tried}");
    assert_eq!(world.get("/v1/files", &good).await.status, StatusCode::OK, "the control again");
}

fn case(name: &str, bearer: impl Into<String>) -> Case {
    (name.to_owned(), bearer.into())
}

async fn keys(world: &World) -> Vec<Case> {
    let good = &world.key;
    let random = &good[key_text::PREFIX.len()..][..key_text::RANDOM];
    let revoked = issue(world, None).await;
    let expired = issue(world, Some(0)).await;
    let mut tx = db::platform(&world.pool).await.unwrap();
    let project = world.seed.project_id;
    let newest = api_key::list(&mut tx, project, None, 10).await.unwrap();
    let hint = newest[0].hint.clone();
    // Newest first: the expired one, the revoked one, …
    api_key::revoke(&mut tx, project, newest[1].api_key_id).await.unwrap();
    tx.commit().await.unwrap();
    let mut swapped: Vec<char> = random.chars().collect();
    let at = (1..swapped.len()).find(|i| swapped[i - 1] != swapped[*i]).unwrap();
    swapped.swap(at - 1, at);
    let swapped: String = swapped.into_iter().collect();
    vec![
        case("a key that nobody made", unknown_secret()),
        case("an old key that nobody made", format!("sk-attune-{}", "z".repeat(43))),
        case("a revoked key", revoked),
        case("an expired key", expired),
        case("a key in upper case", good.to_uppercase()),
        case("a key in lower case", good.to_lowercase()),
        case("a key without its prefix", &good[key_text::PREFIX.len()..]),
        case("a key with OpenAI's prefix", good.replacen("sk-attune-", "sk-", 1)),
        case("a key without its last letter", &good[..good.len() - 1]),
        case("a key without its checksum", &good[..good.len() - 6]),
        case("a key with one letter more", format!("{good}0")),
        case("a key with two letters exchanged", format!("sk-attune-{swapped}{}", &good[good.len() - 6..])),
        case("a key whose letters are exchanged under a right checksum", key_text::compose(&swapped)),
        case("a key with a wrong checksum", format!("sk-attune-{random}000000")),
        case("the hint of a key", hint),
        case("the id of a key", newest[0].api_key_id.to_string()),
        case("a key twice", format!("{good}{good}")),
        case("two keys with a comma", format!("{good},{good}")),
        case("a key with a space inside", format!("{} {}", &good[..20], &good[20..])),
        case("a key in quotes", format!("\"{good}\"")),
        case("a pattern", "sk-attune-%"),
        case("an injection", "' or '1'='1"),
        case("the word null", "null"),
        case("a very long key", format!("sk-attune-{}", "a".repeat(100_000))),
    ]
}

async fn issue(world: &World, expires_in_seconds: Option<u32>) -> String {
    let mut tx = db::platform(&world.pool).await.unwrap();
    let new = NewKey { project_id: world.seed.project_id, name: "x", scopes: &[Scope::All], expires_in_seconds };
    let (_, secret) = api_key::insert(&mut tx, &new).await.unwrap();
    tx.commit().await.unwrap();
    secret
}

fn part(value: &Value) -> String {
    BASE64.encode(value.to_string())
}

/// Returns tokens without a signature, or with another key's signature.
fn signatures(world: &World, good: &str) -> Vec<Case> {
    let claims = world.issuer.claims("alice");
    let signer = world.issuer.signer();
    let kid = signer.kid();
    let mut cases = Vec::new();
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let unsigned = format!("{}.{}.", part(&json!({"alg": none, "kid": kid})), part(&claims));
        cases.push(case(&format!("the algorithm '{none}'"), unsigned.clone()));
        cases.push(case(&format!("the algorithm '{none}' and no last dot"), unsigned.trim_end_matches('.')));
    }
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64.encode(&signer.public));
    let secrets: [(&str, &[u8]); 5] = [
        ("its raw bytes", &signer.public),
        ("its published x", signer.jwk["x"].as_str().unwrap().as_bytes()),
        ("its PEM", pem.as_bytes()),
        ("an empty secret", b""),
        ("its id", kid.as_bytes()),
    ];
    for (what, secret) in secrets {
        for algorithm in [Algorithm::HS256, Algorithm::HS512] {
            let header = Header { kid: Some(kid.into()), ..Header::new(algorithm) };
            let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap();
            cases.push(case(&format!("{algorithm:?} with {what}"), token));
        }
    }
    let stranger = Signer::p256(kid);
    cases.push(case("another key under the same id", stranger.sign(&stranger.header(), &claims)));
    let edwards = Signer::ed25519(kid);
    cases.push(case("another algorithm under the same id", edwards.sign(&edwards.header(), &claims)));
    let body = good.rsplit_once('.').unwrap().0;
    let zeros = BASE64.encode([0; 64]); // r = s = 0: CVE-2022-21449
    for (what, signature) in
        [("zeros", zeros.as_str()), ("no letters", ""), ("too few letters", "AAAA"), ("no base64", "!!!!")]
    {
        cases.push(case(&format!("a signature of {what}"), format!("{body}.{signature}")));
    }
    let mut parts: Vec<&str> = good.split('.').collect();
    let theirs = part(&world.issuer.claims("bob"));
    parts[1] = &theirs;
    cases.push(case("other claims under a good signature", parts.join(".")));
    cases
}

/// Returns tokens whose headers refer to a key elsewhere, or require an unknown extension.
async fn headers(world: &World) -> Vec<Case> {
    let claims = world.issuer.claims("alice");
    let mine = world.issuer.signer();
    let evil = Signer::p256("evil");
    let elsewhere = Issuer::start(evil.clone()).await;
    let with = |change: &dyn Fn(&mut Header)| {
        let mut header = evil.header();
        change(&mut header);
        evil.sign(&header, &claims)
    };
    let jwk: Jwk = serde_json::from_value(evil.jwk.clone()).unwrap();
    let mut cases = vec![
        case("an unknown key id", with(&|_| ())),
        case("no key id", with(&|h| h.kid = None)),
        case("a key in the header", with(&|h| h.jwk = Some(jwk.clone()))),
        case(
            "a key in the header under our id",
            with(&|h| (h.kid, h.jwk) = (Some(mine.kid().into()), Some(jwk.clone()))),
        ),
        case("a key's address in the header", with(&|h| h.jku = Some(format!("{}/keys", elsewhere.url)))),
        case("a certificate's address in the header", with(&|h| h.x5u = Some(format!("{}/keys", elsewhere.url)))),
        case("a certificate in the header", with(&|h| h.x5c = Some(vec![BASE64.encode("x")]))),
    ];
    for kid in
        ["../../../dev/null", "/dev/null", "' or 1=1 --", "first' union select", "", "first ", "FIRST", "first\0"]
    {
        cases.push(case(&format!("the key id {kid:?}"), with(&|h| h.kid = Some(kid.into()))));
    }
    for (name, value) in [("crit", json!(["b64"])), ("b64", json!(false)), ("crit", json!([]))] {
        let mut header = mine.header();
        header.extras.insert(name, value.clone());
        cases.push(case(&format!("a good signature over {name} = {value}"), mine.sign(&header, &claims)));
    }
    for typ in ["logout+jwt", "secevent+jwt", "dpop+jwt"] {
        let header = Header { typ: Some(typ.into()), ..mine.header() };
        cases.push(case(&format!("a good signature over the type {typ}"), mine.sign(&header, &claims)));
    }
    assert_eq!(elsewhere.asked(), 0, "an address in a token was fetched");
    cases
}

/// Returns tokens with good signatures over claims that are for another audience, or not valid now.
fn claims(world: &World) -> Vec<Case> {
    let signer = world.issuer.signer();
    let now = Utc::now().timestamp();
    let with = |field: &str, value: Value| {
        let mut claims = world.issuer.claims("alice");
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(field)),
            value => claims[field] = value,
        }
        signer.sign(&signer.header(), &claims)
    };
    let slashed = format!("{}/", world.issuer.url);
    let both = json!([world.issuer.url, "https://elsewhere.example"]);
    let changes: Vec<(&str, &str, Value)> = vec![
        ("expired", "exp", json!(now - 60)),
        ("expired in the last century", "exp", json!(0)),
        ("an expiry before time", "exp", json!(-1)),
        ("an expiry in words", "exp", json!("tomorrow")),
        ("no expiry", "exp", Value::Null),
        ("not yet good", "nbf", json!(now + 600)),
        ("good from a time in words", "nbf", json!("yesterday")),
        ("issued in the future", "iat", json!(now + 600)),
        ("no audience", "aud", Value::Null),
        ("another audience", "aud", json!("somebody-else")),
        ("another case of the audience", "aud", json!(AUDIENCE.to_uppercase())),
        ("an audience with ours as a beginning", "aud", json!(format!("{AUDIENCE}2"))),
        ("no audience in a list", "aud", json!([])),
        ("an empty audience", "aud", json!("")),
        ("no issuer", "iss", Value::Null),
        ("another issuer", "iss", json!("https://elsewhere.example")),
        ("the issuer with a slash", "iss", json!(slashed)),
        ("two issuers", "iss", both),
        ("no subject", "sub", Value::Null),
        ("an empty subject", "sub", json!("")),
        ("a subject that is a number", "sub", json!(7)),
        ("a subject with a zero", "sub", json!("alice\0")),
        ("a subject without end", "sub", json!("a".repeat(300))),
        ("a subject that nobody let in", "sub", json!("mallory")),
        ("another case of the subject", "sub", json!("Alice")),
    ];
    changes.into_iter().map(|(name, field, value)| case(name, with(field, value))).collect()
}

/// Returns texts that are not well-formed tokens.
fn texts(good: &str) -> Vec<Case> {
    let parts: Vec<&str> = good.split('.').collect();
    vec![
        case("a token without its last letters", &good[..good.len() - 10]),
        case("a token without its signature", format!("{}.{}", parts[0], parts[1])),
        case("a token with a fourth part", format!("{good}.x")),
        case("a token with five parts", format!("{good}.x.y")),
        case("a token backwards", good.chars().rev().collect::<String>()),
        case("a token with padding", format!("{}=.{}=.{}=", parts[0], parts[1], parts[2])),
        case("two dots", ".."),
        case("a header that is a list", format!("{}.{}.{}", part(&json!([])), parts[1], parts[2])),
        case("a header without an algorithm", format!("{}.{}.{}", part(&json!({})), parts[1], parts[2])),
        case("a token as large as a file", format!("{good}{}", "A".repeat(200_000))),
    ]
}
