//! Encryption of secrets that must be readable: sealed before they are stored, under a key that only the binaries'
//! configuration has.
//!
//! API keys are stored as hashes, since they only have to be recognized. A webhook secret is needed in clear for each
//! signature, so it is encrypted (ChaCha20-Poly1305, a new nonce each time) and bound to its row: neither a copy of the
//! database nor a swap of two rows reveals it.

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest,
    rand::{SecureRandom, SystemRandom},
};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::error::StoreError;

/// The minimum length of a key's text.
pub const LEAST_KEY_CHARACTERS: usize = 32;

/// The current key, and former keys, which only open.
pub struct SealKey {
    current: LessSafeKey,
    previous: Vec<LessSafeKey>,
}

impl SealKey {
    /// Derives the key from a text of the configuration: its SHA-256.
    ///
    /// # Errors
    /// [`StoreError::Seal`]: the text is too short to be a secret.
    pub fn new(text: &SecretString) -> Result<Self, StoreError> {
        Self::with_previous(text, &[])
    }

    /// As [`SealKey::new`], with former keys that still open.
    ///
    /// # Errors
    /// As [`SealKey::new`], of any of them.
    pub fn with_previous(text: &SecretString, previous: &[SecretString]) -> Result<Self, StoreError> {
        Ok(Self { current: key(text)?, previous: previous.iter().map(key).collect::<Result<_, _>>()? })
    }

    /// Returns nonce, ciphertext and tag of a secret of the row `of`.
    ///
    /// # Errors
    /// [`StoreError::Seal`]: the system provides no random bytes.
    pub fn seal(&self, of: Uuid, secret: &[u8]) -> Result<Vec<u8>, StoreError> {
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut sealed = secret.to_vec();
        self.current
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(of.as_bytes()), &mut sealed)
            .map_err(|_| StoreError::Seal("the encryption failed"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Returns the decrypted secret.
    ///
    /// # Errors
    /// [`StoreError::Seal`]: it was sealed under another key or for another row, or was changed.
    pub fn open(&self, of: Uuid, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut keys = std::iter::once(&self.current).chain(&self.previous);
        keys.find_map(|key| open(key, of, sealed))
            .ok_or(StoreError::Seal("it was sealed under another key or for another row"))
    }

    /// Returns the secret sealed under the current key, if it was sealed under a former one.
    ///
    /// # Errors
    /// As [`SealKey::open`] and [`SealKey::seal`].
    pub fn renew(&self, of: Uuid, sealed: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if open(&self.current, of, sealed).is_some() {
            return Ok(None);
        }
        self.seal(of, &self.open(of, sealed)?).map(Some)
    }
}

fn key(text: &SecretString) -> Result<LessSafeKey, StoreError> {
    if text.expose_secret().len() < LEAST_KEY_CHARACTERS {
        return Err(StoreError::Seal("the key has fewer than 32 characters"));
    }
    let key = digest::digest(&digest::SHA256, text.expose_secret().as_bytes());
    let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).map_err(|_| StoreError::Seal("the key is invalid"))?;
    Ok(LessSafeKey::new(key))
}

fn open(key: &LessSafeKey, of: Uuid, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut rest = rest.to_vec();
    let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(of.as_bytes()), &mut rest);
    Some(opened.ok()?.to_vec())
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

/// Returns random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::Seal("the system provides no random bytes"))?;
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

    #[test]
    fn a_key_that_was_replaced_opens_and_closes_nothing() {
        let row = Uuid::from_u128(1);
        let (old, new) = ("a".repeat(32), "b".repeat(32));
        let both = SealKey::with_previous(&new.clone().into(), &[old.clone().into()]).unwrap();
        let sealed = key(&old).seal(row, b"secret").unwrap();
        assert_eq!(both.open(row, &sealed).unwrap(), b"secret");
        let renewed = both.renew(row, &sealed).unwrap().unwrap();
        assert_eq!(key(&new).open(row, &renewed).unwrap(), b"secret");
        assert!(key(&old).open(row, &renewed).is_err());
        assert_eq!(both.renew(row, &renewed).unwrap(), None);
        assert!(both.renew(row, &key(&"c".repeat(32)).seal(row, b"secret").unwrap()).is_err());
    }
}
