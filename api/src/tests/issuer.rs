//! A local identity provider, with keys that it can rotate.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Json, Router, extract::State, routing::get};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use chrono::Utc;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use rsa::{RsaPrivateKey, pkcs1::EncodeRsaPrivateKey, traits::PublicKeyParts};
use serde_json::{Value, json};

use crate::config::OidcConfig;

/// The audience of its tokens.
pub(crate) const AUDIENCE: &str = "attune";

/// A signing key, with its published part.
#[derive(Clone)]
pub(crate) struct Signer {
    pub(crate) algorithm: Algorithm,
    pub(crate) key: EncodingKey,
    pub(crate) jwk: Value,
    /// The published part as raw bytes, which an attacker might try as a shared secret.
    pub(crate) public: Vec<u8>,
}

impl Signer {
    pub(crate) fn ed25519(kid: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let public = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap().public_key().as_ref().to_vec();
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(&public), "kid": kid, "use": "sig",
            "alg": "EdDSA"});
        Self { algorithm: Algorithm::EdDSA, key: EncodingKey::from_ed_der(pkcs8.as_ref()), jwk, public }
    }

    pub(crate) fn p256(kid: &str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let public = pair.public_key().as_ref().to_vec();
        let (x, y) = (BASE64.encode(&public[1..33]), BASE64.encode(&public[33..]));
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "alg": "ES256"});
        Self { algorithm: Algorithm::ES256, key: EncodingKey::from_ec_der(pkcs8.as_ref()), jwk, public }
    }

    pub(crate) fn rsa(kid: &str) -> Self {
        let private = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        let (n, e) = (private.n().to_bytes_be(), private.e().to_bytes_be());
        let jwk = json!({"kty": "RSA", "n": BASE64.encode(&n), "e": BASE64.encode(e), "kid": kid, "use": "sig"});
        let key = EncodingKey::from_rsa_der(private.to_pkcs1_der().unwrap().as_bytes());
        Self { algorithm: Algorithm::RS256, key, jwk, public: n }
    }

    pub(crate) fn kid(&self) -> &str {
        self.jwk["kid"].as_str().unwrap()
    }

    /// Returns a header that names this key.
    pub(crate) fn header(&self) -> Header {
        Header { kid: Some(self.kid().into()), ..Header::new(self.algorithm) }
    }

    pub(crate) fn sign(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &self.key).unwrap()
    }
}

/// The provider. It serves requests as long as the test's runtime exists.
#[derive(Clone)]
pub(crate) struct Issuer {
    pub(crate) url: String,
    published: Published,
    signer: Arc<Mutex<Signer>>,
}

#[derive(Clone, Default)]
struct Published {
    keys: Arc<Mutex<Vec<Value>>>,
    asked: Arc<AtomicUsize>,
    url: Arc<Mutex<String>>,
}

impl Issuer {
    /// Starts a provider that signs with `signer` and publishes only that key.
    pub(crate) async fn start(signer: Signer) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let published = Published::default();
        *published.keys.lock().unwrap() = vec![signer.jwk.clone()];
        published.url.lock().unwrap().clone_from(&url);
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(keys))
            .with_state(published.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, published, signer: Arc::new(Mutex::new(signer)) }
    }

    pub(crate) fn config(&self, algorithms: &[&str]) -> OidcConfig {
        OidcConfig {
            issuer: self.url.clone(),
            audience: vec![AUDIENCE.into()],
            jwks_url: None,
            algorithms: algorithms.iter().map(|name| (*name).to_owned()).collect(),
            leeway_seconds: 5,
            refetch_seconds: 1,
        }
    }

    pub(crate) fn signer(&self) -> Signer {
        self.signer.lock().unwrap().clone()
    }

    /// Signs with another key from now on, and stops publishing the old one.
    pub(crate) fn rotate(&self, signer: Signer) {
        *self.published.keys.lock().unwrap() = vec![signer.jwk.clone()];
        *self.signer.lock().unwrap() = signer;
    }

    /// Publishes one more key.
    pub(crate) fn publish(&self, jwk: Value) {
        self.published.keys.lock().unwrap().push(jwk);
    }

    /// Returns how often its keys were fetched.
    pub(crate) fn asked(&self) -> usize {
        self.published.asked.load(Ordering::SeqCst)
    }

    /// Returns the claims of a valid token of `subject`.
    pub(crate) fn claims(&self, subject: &str) -> Value {
        let now = Utc::now().timestamp();
        json!({"iss": self.url, "sub": subject, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 600})
    }

    /// Returns a valid token of `subject`.
    pub(crate) fn token(&self, subject: &str) -> String {
        let signer = self.signer();
        signer.sign(&signer.header(), &self.claims(subject))
    }
}

async fn discovery(State(published): State<Published>) -> Json<Value> {
    let url = published.url.lock().unwrap().clone();
    Json(json!({"issuer": url, "jwks_uri": format!("{url}/keys")}))
}

async fn keys(State(published): State<Published>) -> Json<Value> {
    published.asked.fetch_add(1, Ordering::SeqCst);
    Json(json!({"keys": *published.keys.lock().unwrap()}))
}
