//! Tokens of people: JWTs of the configured issuers, checked with the issuers' own keys.
//!
//! What a token says of itself decides nothing but which configured issuer and which of its published keys are asked: the
//! algorithm must be one of the configured ones and fit the key, and keys or addresses of keys inside a token (`jwk`,
//! `jku`, `x5c`, `x5u`) are never looked at. Source: RFC 8725 (best current practices of JWTs).

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

/// The longest token that is looked at.
const TOKEN_BYTES: usize = 16 << 10;

/// The longest key set or discovery document that is read.
const DOCUMENT_BYTES: usize = 1 << 20;

/// Keys are fetched anew when they are older, so that a withdrawn one goes.
const REFRESH: Duration = Duration::from_secs(600);

/// Keys that could not be fetched anew for so long are not used any more.
const STALE: Duration = Duration::from_secs(3600);

/// All configured issuers.
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
    /// When they came.
    fetched: Option<Instant>,
    /// When they were last asked for.
    asked: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Key {
    key: Arc<DecodingKey>,
    /// The one algorithm that the issuer keeps it for, if it says so.
    algorithm: Option<Algorithm>,
}

/// What a good token says.
#[derive(Debug, Clone, Deserialize)]
pub struct Claims {
    /// Who vouches.
    pub iss: String,
    /// For whom.
    pub sub: String,
    /// Until when, in Unix seconds.
    pub exp: f64,
    iat: Option<f64>,
    /// Looked at by the library, which takes a wrong kind for none.
    #[serde(rename = "nbf")]
    _nbf: Option<f64>,
    email: Option<String>,
    name: Option<String>,
}

impl Claims {
    /// Who it is.
    pub fn identity(&self) -> Identity<'_> {
        Identity { issuer: &self.iss, subject: &self.sub, email: self.email.as_deref(), name: self.name.as_deref() }
    }

    /// Until when they are.
    pub fn expires_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.exp as i64, 0).unwrap_or_default()
    }
}

const REFUSED: ApiError = ApiError::Unauthenticated(
    "Incorrect token provided: it is not one that a configured issuer signed for this platform and that is good now.",
);

impl Issuers {
    /// Issuers as configured. Nothing is fetched yet.
    ///
    /// # Errors
    /// An entry cannot be: it is named, with what is allowed.
    pub fn new(configs: Vec<OidcConfig>) -> Result<Self, String> {
        // A redirect would let an issuer's address be answered by somebody else.
        let http = |local| {
            let builder = reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(5))
                .timeout(Duration::from_secs(10))
                .redirect(reqwest::redirect::Policy::none());
            // A proxy has another idea of "this machine".
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

    /// Whether this is a configured issuer.
    pub fn knows(&self, issuer: &str) -> bool {
        self.0.iter().any(|one| one.config.issuer == issuer)
    }

    /// All of them, for a message.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|one| format!("'{}'", one.config.issuer)).collect();
        if names.is_empty() { "there is none".into() } else { names.join(", ") }
    }

    /// What `token` says, if an issuer signed it for us and it is good now.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`]; the reason goes to the log alone.
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
            return Err("it is of another type".into());
        }
        if header.crit.is_some() || header.extras.inner().contains_key("b64") {
            return Err("its header asks for something unknown to be understood".into());
        }
        let unchecked = jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(token).map_err(|e| e.to_string())?;
        let issuer = self.0.iter().find(|one| one.config.issuer == unchecked.iss).ok_or("nobody knows its issuer")?;
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
            return Err("its subject has no letters or too many".into());
        }
        Ok(Claims { exp: claims.exp + self.config.leeway_seconds as f64, ..claims })
    }

    /// The issuer's key of this id. An unknown id has the keys fetched anew, but not too often: anybody can make one up.
    async fn key(&self, id: &str) -> Result<Key, String> {
        let mut keys = self.keys.lock().await; // one asks, the others wait for the answer
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
        // A key of a kind that we do not know is no reason to do without the others.
        let all = set["keys"].as_array().ok_or("it is no key set")?;
        let known = all.iter().filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        Ok(usable(&JwkSet { keys: known.collect() }))
    }

    /// Source: OpenID Connect Discovery 1.0, §4.
    async fn discover(&self) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Discovered {
            issuer: String,
            jwks_uri: String,
        }
        let url = format!("{}/.well-known/openid-configuration", self.config.issuer.trim_end_matches('/'));
        let found: Discovered = self.get(&url).await?;
        if found.issuer != self.config.issuer {
            return Err(format!("it calls itself '{}'", found.issuer));
        }
        crate::config::check_issuer_url(&found.jwks_uri)?;
        Ok(found.jwks_uri)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let mut answer = self.http.get(url).send().await.map_err(|e| e.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("{url} answers {}", answer.status()));
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

/// Public keys for signatures that have an id; never a shared secret.
fn usable(set: &JwkSet) -> HashMap<String, Key> {
    let key = |jwk: &Jwk| {
        let for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        let id = jwk.common.key_id.clone().filter(|_| for_signatures)?;
        let algorithm = jwk.common.key_algorithm.map(|named| named.to_string().parse::<Algorithm>());
        // The library takes the first 32 bytes of such a key, and does not look whether there are so many.
        if matches!(&jwk.algorithm, AlgorithmParameters::OctetKeyPair(pair) if pair.x.len() != 43) {
            return None;
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let public = key.family() != jsonwebtoken::AlgorithmFamily::Hmac;
        public.then_some((id, Key { key: Arc::new(key), algorithm: algorithm.transpose().ok()? }))
    };
    set.keys.iter().filter_map(key).collect()
}
