//! OIDC tokens of users: JWTs of the configured issuers, verified with the issuers' published keys.
//!
//! A token's content only selects a configured issuer and one of its published keys. The algorithm must be one of the
//! configured ones and match the key. Keys and key URLs inside a token (`jwk`, `jku`, `x5c`, `x5u`) are ignored.
//! Source: RFC 8725 (JSON Web Token Best Current Practices).

use std::{collections::HashMap, sync::Arc, time::Duration};

use attune_store::tenancy::member::Identity;
use chrono::{DateTime, Utc};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse},
};
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};

use crate::{config::OidcConfig, error::ApiError};

/// The maximum length of a token, in bytes.
const TOKEN_BYTES: usize = 16 << 10;

/// The maximum length of a key set or discovery document, in bytes.
const DOCUMENT_BYTES: usize = 1 << 20;

/// The age after which keys are fetched again, so that a withdrawn key stops working.
const REFRESH: Duration = Duration::from_secs(600);

/// The age after which keys that could not be fetched again are no longer used.
const STALE: Duration = Duration::from_secs(3600);

/// The configured issuers.
#[derive(Debug, Clone, Default)]
pub struct Issuers(Arc<Vec<Issuer>>);

#[derive(Debug)]
struct Issuer {
    config: OidcConfig,
    algorithms: Vec<Algorithm>,
    http: reqwest::Client,
    keys: Mutex<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    by_id: HashMap<String, Key>,
    /// The time of the last successful fetch.
    fetched: Option<Instant>,
    /// The time of the last attempt to fetch.
    asked: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Key {
    key: Arc<DecodingKey>,
    /// The one algorithm that the issuer restricts the key to, if it names one.
    algorithm: Option<Algorithm>,
}

/// The claims of a valid token.
#[derive(Debug, Clone, Deserialize)]
pub struct Claims {
    /// The issuer.
    pub iss: String,
    /// The subject.
    pub sub: String,
    /// The expiry, in Unix seconds; after verification, the configured leeway is added.
    pub exp: f64,
    iat: Option<f64>,
    /// The start of validity, which the library checks, but treats as absent if its type is wrong; this field rejects
    /// that.
    #[serde(rename = "nbf")]
    _nbf: Option<f64>,
    email: Option<String>,
    name: Option<String>,
}

impl Claims {
    /// Returns the user's identity at the issuer.
    pub fn identity(&self) -> Identity<'_> {
        Identity { issuer: &self.iss, subject: &self.sub, email: self.email.as_deref(), name: self.name.as_deref() }
    }

    /// Returns the expiry, leeway included.
    pub fn expires_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.exp as i64, 0).unwrap_or_default()
    }
}

const REFUSED: ApiError = ApiError::Unauthenticated(
    "Incorrect token provided: it is not a valid token that a configured issuer signed for this platform.",
);

impl Issuers {
    /// Creates the issuers from the configuration. Fetches nothing yet.
    ///
    /// # Errors
    /// An entry is invalid: the message names it and what is allowed.
    pub fn new(configs: Vec<OidcConfig>) -> Result<Self, String> {
        // A redirect would let another server answer for the issuer.
        let http = |local| {
            let builder = reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(5))
                .timeout(Duration::from_secs(10))
                .redirect(reqwest::redirect::Policy::none());
            // A proxy would resolve a loopback address to its own machine.
            let builder = if local { builder.no_proxy() } else { builder };
            builder.build().map_err(|e| e.to_string())
        };
        let issuers = configs.into_iter().map(|config| {
            let algorithms = config.check()?;
            let http = http(config.issuer.starts_with("http://"))?;
            Ok(Issuer { config, algorithms, http, keys: Mutex::default() })
        });
        Ok(Self(Arc::new(issuers.collect::<Result<_, String>>()?)))
    }

    /// Returns whether `issuer` is a configured issuer.
    pub fn knows(&self, issuer: &str) -> bool {
        self.0.iter().any(|one| one.config.issuer == issuer)
    }

    /// Returns the names of all issuers, for a message.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|one| format!("'{}'", one.config.issuer)).collect();
        if names.is_empty() { "there is none".into() } else { names.join(", ") }
    }

    /// Returns the claims of `token`, if a configured issuer signed it for this platform and it is currently valid.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`]; the reason is only logged.
    pub async fn verify(&self, token: &str) -> Result<Claims, ApiError> {
        self.look(token).await.map_err(|reason| {
            tracing::debug!(reason, "a token is refused: {reason}");
            REFUSED
        })
    }

    async fn look(&self, token: &str) -> Result<Claims, String> {
        if token.len() > TOKEN_BYTES {
            return Err("it is too long".into());
        }
        let header = jsonwebtoken::decode_header(token).map_err(|e| e.to_string())?;
        let plain = ["jwt", "at+jwt", "application/at+jwt"];
        if header.typ.as_ref().is_some_and(|typ| !plain.contains(&typ.to_ascii_lowercase().as_str())) {
            return Err("its type is not that of an access or ID token".into());
        }
        if header.crit.is_some() || header.extras.inner().contains_key("b64") {
            return Err("its header has an unsupported critical parameter".into());
        }
        let unchecked = jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(token).map_err(|e| e.to_string())?;
        let issuer = self.0.iter().find(|one| one.config.issuer == unchecked.iss).ok_or("its issuer is unknown")?;
        if !issuer.algorithms.contains(&header.alg) {
            return Err(format!("its algorithm {:?} is not allowed", header.alg));
        }
        let key = issuer.key(header.kid.as_deref().ok_or("it names no key")?).await?;
        if key.algorithm.is_some_and(|algorithm| algorithm != header.alg) {
            return Err("its key is for another algorithm".into());
        }
        issuer.check(token, header.alg, &key)
    }
}

impl Issuer {
    fn check(&self, token: &str, algorithm: Algorithm, key: &Key) -> Result<Claims, String> {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.config.leeway_seconds;
        validation.validate_nbf = true;
        validation.set_audience(&self.config.audience);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map_err(|e| e.to_string())?.claims;
        let latest = (Utc::now().timestamp() as f64) + self.config.leeway_seconds as f64;
        if claims.iat.is_some_and(|iat| iat > latest) {
            return Err("it was issued in the future".into());
        }
        if claims.sub.is_empty() || claims.sub.contains('\0') || claims.sub.chars().count() > 255 {
            return Err("its subject is empty, too long or has U+0000".into());
        }
        Ok(Claims { exp: claims.exp + self.config.leeway_seconds as f64, ..claims })
    }

    /// Returns the issuer's key with this ID. An unknown ID makes it fetch the keys again, at most once per
    /// `refetch_seconds`, since any caller can invent an ID.
    async fn key(&self, id: &str) -> Result<Key, String> {
        let mut keys = self.keys.lock().await; // one task fetches, the others wait
        let older = |moment: Option<Instant>, age| moment.is_none_or(|moment| moment.elapsed() >= age);
        let wanted = !keys.by_id.contains_key(id) || older(keys.fetched, REFRESH);
        if wanted && older(keys.asked, Duration::from_secs(self.config.refetch_seconds)) {
            keys.asked = Some(Instant::now());
            match self.fetch().await {
                Ok(by_id) => (keys.by_id, keys.fetched) = (by_id, Some(Instant::now())),
                Err(reason) => {
                    tracing::warn!(issuer = self.config.issuer, reason, "an issuer's keys cannot be fetched: {reason}");
                }
            }
        }
        if older(keys.fetched, STALE) {
            return Err("its issuer's keys cannot be fetched".into());
        }
        keys.by_id.get(id).cloned().ok_or_else(|| "its issuer has no such key".into())
    }

    async fn fetch(&self) -> Result<HashMap<String, Key>, String> {
        let url = match &self.config.jwks_url {
            Some(url) => url.clone(),
            None => self.discover().await?,
        };
        let set: serde_json::Value = self.get(&url).await?;
        // A key of an unknown type must not make the others unusable.
        let all = set["keys"].as_array().ok_or("it is not a key set")?;
        let known = all.iter().filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        Ok(usable(&JwkSet { keys: known.collect() }))
    }

    /// Returns the URL of the issuer's key set. Source: OpenID Connect Discovery 1.0, §4.
    async fn discover(&self) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Discovered {
            issuer: String,
            jwks_uri: String,
        }
        let url = format!("{}/.well-known/openid-configuration", self.config.issuer.trim_end_matches('/'));
        let found: Discovered = self.get(&url).await?;
        if found.issuer != self.config.issuer {
            return Err(format!("its discovery document names the issuer '{}'", found.issuer));
        }
        crate::config::check_issuer_url(&found.jwks_uri)?;
        Ok(found.jwks_uri)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let mut answer = self.http.get(url).send().await.map_err(|e| e.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("{url} returned {}", answer.status()));
        }
        let mut document = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|e| e.to_string())? {
            document.extend_from_slice(&piece);
            if document.len() > DOCUMENT_BYTES {
                return Err(format!("{url} is longer than {DOCUMENT_BYTES} bytes"));
            }
        }
        serde_json::from_slice(&document).map_err(|e| format!("{url}: {e}"))
    }
}

/// Returns the public signature keys that have an ID; never a shared secret.
fn usable(set: &JwkSet) -> HashMap<String, Key> {
    let key = |jwk: &Jwk| {
        let for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        let id = jwk.common.key_id.clone().filter(|_| for_signatures)?;
        let algorithm = jwk.common.key_algorithm.map(|named| named.to_string().parse::<Algorithm>());
        // The library takes the first 32 bytes of an OKP key without checking its length.
        if matches!(&jwk.algorithm, AlgorithmParameters::OctetKeyPair(pair) if pair.x.len() != 43) {
            return None;
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let public = key.family() != jsonwebtoken::AlgorithmFamily::Hmac;
        public.then_some((id, Key { key: Arc::new(key), algorithm: algorithm.transpose().ok()? }))
    };
    set.keys.iter().filter_map(key).collect()
}
