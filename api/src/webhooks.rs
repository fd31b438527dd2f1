//! The configuration of webhooks: the key that encrypts their secrets, and the addresses that endpoints may have.

use attune_outbound::policy::Policy;
use attune_store::{config::WebhooksConfig, error::StoreError, webhooks::seal::SealKey};

use crate::error::ApiError;

/// The part of the shared state that webhooks need.
#[derive(Debug)]
pub struct Webhooks {
    key: Option<SealKey>,
    policy: Policy,
}

impl Webhooks {
    /// Creates the state from the configuration.
    ///
    /// # Errors
    /// [`StoreError::Seal`]: the key is too short.
    pub fn new(config: &WebhooksConfig) -> Result<Self, StoreError> {
        let policy = Policy { allow_loopback: config.allow_loopback, ports: config.ports.clone() };
        Ok(Self { key: config.seal_key()?, policy })
    }

    /// Returns the key that encrypts secrets.
    ///
    /// # Errors
    /// This installation has no such key, and so no webhooks.
    pub fn key(&self) -> Result<&SealKey, ApiError> {
        self.key.as_ref().ok_or_else(|| ApiError::Invalid {
            param: None,
            code: "webhooks_not_configured",
            message: "This installation sends no webhooks: 'webhooks.secret_key' is not set in its configuration."
                .into(),
        })
    }

    /// Returns the URL of an endpoint in the form in which it is stored. Its addresses are checked again at each
    /// connection.
    ///
    /// # Errors
    /// The URL is not allowed.
    pub fn url(&self, text: &str) -> Result<String, ApiError> {
        match self.policy.url(text) {
            Ok(url) => Ok(url.into()),
            Err(refusal) => {
                let given: String = text.chars().take(200).collect();
                Err(ApiError::Invalid {
                    param: Some("url".into()),
                    code: "invalid_url",
                    message: format!("Invalid 'url': '{given}' is not allowed: {refusal}."),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_must_not_be_called_is_refused_with_its_reason() {
        let webhooks = Webhooks::new(&WebhooksConfig::default()).unwrap();
        let error = webhooks.url("http://169.254.169.254/latest").unwrap_err().body().error;
        assert_eq!((error.param.as_deref(), error.code), (Some("url"), Some("invalid_url")));
        assert!(error.message.contains("not public"), "{}", error.message);
        assert_eq!(webhooks.url("https://hooks.example").unwrap(), "https://hooks.example/");
        assert_eq!(webhooks.key().unwrap_err().body().error.code, Some("webhooks_not_configured"));
    }
}
