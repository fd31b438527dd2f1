//! New IDs and secrets: the only use of the clock and the random source.

use attune_domain::{
    id::{Id, Kind},
    text::key_text,
};
use rand::RngExt;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Generates an ID. UUIDv7: later ones sort after earlier ones.
#[must_use]
pub fn id<K: Kind>() -> Id<K> {
    Id::new(Uuid::now_v7())
}

/// Generates a UUIDv7 for a row without a public ID.
#[must_use]
pub fn uuid() -> Uuid {
    Uuid::now_v7()
}

/// Generates a secret for a machine: 64 hex digits, 244 of their bits from the system's random source.
#[must_use]
pub fn secret() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Generates an API key: 43 letters and digits from the system's random source, 256 bits, and their checksum.
#[must_use]
pub fn api_key() -> String {
    let mut random = rand::rng();
    let letters = (0..key_text::RANDOM).map(|_| char::from(random.sample(rand::distr::Alphanumeric)));
    key_text::compose(&letters.collect::<String>())
}

/// Returns the SHA-256 that is stored of a secret. No slow hash: the secrets are random.
#[must_use]
pub fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}
