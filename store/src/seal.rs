//! Secrets that must be read again: sealed before they become rows, under a key that only the doors' configuration has.
//!
//! API keys are kept as hashes, since they only have to be recognised. What deliveries are signed with must be there in
//! clear at each signature, so it is encrypted (ChaCha20-Poly1305, a fresh nonce each time) and bound to the row that it
//! stands in: neither a copy of the database nor a swap of two rows gives it away.

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest,
    rand::{SecureRandom, SystemRandom},
};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::error::StoreError;

/// The fewest characters of a key's text.
pub const LEAST_KEY_CHARACTERS: usize = 32;

/// The key of the seal.
pub struct SealKey(LessSafeKey);

impl SealKey {
    /// The key that a text of the configuration stands for: its SHA-256.
    ///
    /// # Errors
    /// [`StoreError::Seal`]: the text is too short to be a secret.
    pub fn new(text: &SecretString) -> Result<Self, StoreError> {
        if text.expose_secret().len() < LEAST_KEY_CHARACTERS {
            return Err(StoreError::Seal("its key has fewer than 32 characters"));
        }
        let key = digest::digest(&digest::SHA256, text.expose_secret().as_bytes());
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).map_err(|_| StoreError::Seal("its key is none"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Nonce, ciphertext and tag of a secret of the row `of`.
    ///
    /// # Errors
    /// [`StoreError::Seal`]: the system gives no random bytes.
    pub fn seal(&self, of: Uuid, secret: &[u8]) -> Result<Vec<u8>, StoreError> {
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut sealed = secret.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(of.as_bytes()), &mut sealed)
            .map_err(|_| StoreError::Seal("it cannot be closed"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// The secret again.
    ///
    /// # Errors
    /// [`StoreError::Seal`]: it was sealed under another key or for another row, or was changed.
    pub fn open(&self, of: Uuid, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        const CANNOT: StoreError = StoreError::Seal("the key is another one than it was closed with");
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(CANNOT)?;
        let mut rest = rest.to_vec();
        let opened = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(of.as_bytes()), &mut rest);
        Ok(opened.map_err(|_| CANNOT)?.to_vec())
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::Seal("the system gives no random bytes"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> SealKey {
        SealKey::new(&text.to_owned().into()).unwrap()
    }

    #[test]
    fn a_secret_opens_only_with_its_key_and_in_its_row() {
        let (row, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mine = key(&"a".repeat(32));
        let sealed = mine.seal(row, b"secret").unwrap();
        assert_eq!(mine.open(row, &sealed).unwrap(), b"secret");
        assert_ne!(mine.seal(row, b"secret").unwrap(), sealed);
        assert!(mine.open(other, &sealed).is_err());
        assert!(key(&"b".repeat(32)).open(row, &sealed).is_err());
        assert!(mine.open(row, &sealed[..8]).is_err());
        let mut changed = sealed;
        changed[NONCE_LEN] ^= 1;
        assert!(mine.open(row, &changed).is_err());
        assert!(SealKey::new(&"short".to_owned().into()).is_err());
    }
}
