//! The body of a webhook, and its signature.
//!
//! The body has the shape of OpenAI's events. Headers and signature follow Standard Webhooks: HMAC-SHA256 over
//! `id.timestamp.body`, one `v1,…` for each valid secret.

use attune_store::{error::StoreError, webhooks::webhook_delivery::Event};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, header};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

/// Returns the event in OpenAI's format.
pub(super) fn body(event: &Event) -> Bytes {
    let view = json!({
        "object": "event",
        "id": event.event_id,
        "type": event.kind,
        "created_at": event.created_at.timestamp(),
        "data": event.data,
    });
    view.to_string().into()
}

/// Returns the headers of one attempt.
///
/// # Errors
/// [`StoreError::Seal`]: a secret is not `whsec_` and base64.
pub(super) fn headers(
    event: &Event,
    at: DateTime<Utc>,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<HeaderMap, StoreError> {
    let (id, timestamp) = (event.event_id.to_string(), at.timestamp().to_string());
    let signatures: Result<Vec<String>, StoreError> =
        secrets.iter().map(|secret| sign(secret, &id, &timestamp, body)).collect();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in
        [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signatures?.join(" "))]
    {
        let value =
            HeaderValue::try_from(value).map_err(|_| StoreError::Seal("a signature is not a valid header value"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn sign(secret: &SecretString, id: &str, timestamp: &str, body: &[u8]) -> Result<String, StoreError> {
    let key = secret.expose_secret().strip_prefix("whsec_").and_then(|text| BASE64_STANDARD.decode(text).ok());
    let key = key.ok_or(StoreError::Seal("the content is not a webhook secret"))?;
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed);
    Ok(format!("v1,{}", BASE64_STANDARD.encode(tag)))
}

#[cfg(test)]
mod tests {
    use attune_domain::id::EventId;
    use standardwebhooks::Webhook;

    use super::*;

    const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";
    const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhro=";

    fn event() -> Event {
        Event {
            event_id: EventId::new(uuid::Uuid::from_u128(7)),
            kind: "fine_tuning.job.succeeded".into(),
            data: json!({"id": "ftjob-1"}),
            created_at: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_official_library_verifies_with_each_valid_secret() {
        let body = body(&event());
        let secrets = [NEW, OLD].map(|secret| SecretString::from(secret.to_owned()));
        let both = headers(&event(), Utc::now(), &body, &secrets).unwrap();
        for secret in [OLD, NEW] {
            Webhook::new(secret).unwrap().verify(&body, &both).unwrap();
        }
        let new_alone = headers(&event(), Utc::now(), &body, &secrets[..1]).unwrap();
        assert!(Webhook::new(OLD).unwrap().verify(&body, &new_alone).is_err());
        let mut changed = body.to_vec();
        changed[1] ^= 1;
        assert!(Webhook::new(NEW).unwrap().verify(&changed, &both).is_err());
        let stale = headers(&event(), Utc::now() - chrono::TimeDelta::hours(1), &body, &secrets).unwrap();
        assert!(Webhook::new(NEW).unwrap().verify(&body, &stale).is_err());
    }

    #[test]
    fn the_body_is_an_event_as_openai_writes_it() {
        let text = String::from_utf8(body(&event()).to_vec()).unwrap();
        let id = "evt_00000000000000000000000000000007";
        let rest = r#""type":"fine_tuning.job.succeeded","created_at":0,"data":{"id":"ftjob-1"}}"#;
        assert_eq!(text, format!(r#"{{"object":"event","id":"{id}",{rest}"#));
    }
}
