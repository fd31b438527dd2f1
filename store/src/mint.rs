//! New ids and new secrets: the one place where the clock and the dice are.

use attune_domain::{
    id::{Id, Kind},
    text::key_text,
};
use rand::RngExt;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A new id. UUIDv7: later ones sort after earlier ones.
#[must_use]
pub fn id<K: Kind>() -> Id<K> {
    Id::new(Uuid::now_v7())
}

/// A new number for a row that nobody names.
#[must_use]
pub fn uuid() -> Uuid {
    Uuid::now_v7()
}

/// A new secret for a machine: 64 hex digits, 244 of their bits from the system's random source.
#[must_use]
pub fn secret() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// A new API key: 43 letters and digits of the system's random source, 256 bits, and their checksum.
#[must_use]
pub fn api_key() -> String {
    let mut random = rand::rng();
    let letters = (0..key_text::RANDOM).map(|_| char::from(random.sample(rand::distr::Alphanumeric)));
    key_text::compose(&letters.collect::<String>())
}

/// What is kept of a secret. No slow hash: there is nothing to guess.
#[must_use]
pub fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}
