//! The conditions of a request: `If-Match`, the claim on its `Idempotency-Key`, and the `Range` of a download.
//!
//! A condition must be checked in the transaction that makes the change. All of a user's transactions are opened by
//! [`App::tenant`](crate::app::App::tenant) and [`App::organization`](crate::app::App::organization), so conditions are
//! checked there, once for all handlers: `Conditions::check` locks the row that the path names and compares its
//! version. Of two changes with the same version in `If-Match`, the second waits for the lock, finds another version,
//! and is refused.

use std::sync::{Mutex, PoisonError};

use attune_store::{
    db::Tenant,
    error::StoreError,
    idempotency::{self, Claim},
    version::{self, Thing},
};
use axum::http::{HeaderMap, HeaderName, Method, header, request::Parts};
use sqlx::PgConnection;

use crate::{error::ApiError, policy::Policy};

/// The conditions of one request.
#[derive(Debug)]
pub struct Conditions {
    thing: Option<(Thing, Vec<String>)>,
    /// The tags of `If-Match`.
    wanted: Option<Vec<String>>,
    claim: Option<Claim>,
    /// True if the request creates the object when it does not exist.
    makes: bool,
    /// True if the response has the object's version in its `ETag`.
    shows: bool,
    /// The `Range` header, and the tag of its `If-Range`.
    range: Option<(String, Option<String>)>,
    /// The object's version when the request's transaction began.
    seen: Mutex<Option<String>>,
}

/// The conditions that a transaction checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demands {
    /// Preconditions and `Idempotency-Key`: the transaction makes the change.
    All,
    /// Preconditions only: the transaction comes before the one that makes the change.
    Preconditions,
    /// `Idempotency-Key` only: the transaction makes the change, and an earlier one has checked the preconditions.
    IdempotencyKey,
}

impl Conditions {
    /// Reads the conditions of a request from its head. `policy` is that of its operation, and `names` are the values
    /// of the parameters in its path.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a condition that nothing would check.
    pub fn read(parts: &Parts, policy: Option<Policy>, mut names: Vec<String>) -> Result<Self, ApiError> {
        let thing = policy.and_then(|policy| policy.thing).map(|thing| {
            names.truncate(name_count(thing));
            (thing, names)
        });
        let looks = parts.method == Method::GET;
        let shows = looks && policy.is_some_and(|policy| policy.shows_version);
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let range = text(header::RANGE).filter(|_| looks).map(|range| (range, text(header::IF_RANGE)));
        let wanted = wanted(&parts.headers, thing.is_some(), looks)?;
        let claim = parts.extensions.get::<Claim>().cloned();
        let makes = parts.method == Method::PUT;
        Ok(Self { thing, wanted, claim, makes, shows, range, seen: Mutex::new(None) })
    }

    /// Checks the conditions in a transaction that was just opened for the request.
    ///
    /// # Errors
    /// [`ApiError::PreconditionFailed`]: the row has another version. [`ApiError::Conflict`]: another request has taken
    /// over the `Idempotency-Key`.
    pub async fn check(&self, tx: &mut PgConnection, tenant: Tenant, demands: Demands) -> Result<(), ApiError> {
        if let Some(claim) = self.claim.as_ref().filter(|_| demands != Demands::Preconditions) {
            idempotency::mark(tx, claim).await.map_err(|error| match error {
                StoreError::Stale => {
                    ApiError::Conflict("The Idempotency-Key was taken over by another request.".into())
                }
                other => other.into(),
            })?;
        }
        let Some((thing, names)) = self.thing.as_ref().filter(|_| demands != Demands::IdempotencyKey) else {
            return Ok(());
        };
        if let Some(wanted) = &self.wanted {
            match version::lock(tx, tenant, *thing, names).await? {
                Some(current) if matches(wanted, &current) => {}
                // The handler reports a missing object, as it does for requests without a condition.
                None if !self.makes => {}
                current => {
                    return Err(ApiError::PreconditionFailed { current: current.map(|tag| format!("\"{tag}\"")) });
                }
            }
        } else if self.shows {
            let current = version::of(tx, tenant, *thing, names).await?;
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = current;
        }
        Ok(())
    }

    /// Returns the requested range of the content with this tag; `None` for all of it, also if `If-Range` names other
    /// content.
    pub fn range(&self, tag: &str) -> Option<String> {
        let (range, of) = self.range.as_ref()?;
        of.as_ref().is_none_or(|of| of == tag).then(|| range.clone())
    }

    /// Returns whether the response has the object's version in its `ETag`.
    pub(super) const fn shows_version(&self) -> bool {
        self.shows
    }

    /// Takes the version that the object had when the request's transaction began, if [`Self::check`] has read it.
    pub(super) fn take_seen(&self) -> Option<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Returns the number of path parameters that name an object of this kind.
const fn name_count(thing: Thing) -> usize {
    match thing {
        Thing::Budget => 0,
        Thing::Job
        | Thing::File
        | Thing::Upload
        | Thing::Batch
        | Thing::Export
        | Thing::Deployment
        | Thing::Adapter
        | Thing::WebhookEndpoint
        | Thing::Project
        | Thing::ProjectQueue
        | Thing::CatalogueEntry
        | Thing::User => 1,
        Thing::Alias | Thing::ApiKey | Thing::ProjectUser => 2,
    }
}

/// Returns the tags of `If-Match`; a condition that nothing would check is refused.
fn wanted(headers: &HeaderMap, has_versions: bool, looks: bool) -> Result<Option<Vec<String>>, ApiError> {
    let refused = |header: &HeaderName, message: &str| ApiError::Invalid {
        param: Some(header.to_string()),
        code: "precondition_not_supported",
        message: message.into(),
    };
    if !looks && headers.contains_key(header::IF_NONE_MATCH) {
        return Err(refused(
            &header::IF_NONE_MATCH,
            "If-None-Match is only supported for GET. To change an object, send If-Match.",
        ));
    }
    if headers.contains_key(header::IF_UNMODIFIED_SINCE) {
        let message = "If-Unmodified-Since is not supported: times are too coarse. Send If-Match with the ETag.";
        return Err(refused(&header::IF_UNMODIFIED_SINCE, message));
    }
    let tags = tags(headers, &header::IF_MATCH);
    if tags.is_some() && !has_versions {
        return Err(refused(
            &header::IF_MATCH,
            "If-Match is not supported for this path: it names no object with an ETag.",
        ));
    }
    Ok(tags)
}

/// Returns all tags of a header, as they are written; `None` if the header is missing.
pub(super) fn tags(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<String>> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    let tags = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    Some(tags.map(|tag| tag.trim().to_owned()).collect())
}

/// Returns whether one of the tags matches this version. A weak tag never matches. Source: RFC 9110, §13.1.1.
fn matches(tags: &[String], version: &str) -> bool {
    tags.iter().any(|tag| {
        let inner = tag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        tag == "*" || inner.is_some_and(|inner| inner.split('.').next() == Some(version))
    })
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderValue, Request};

    use super::*;
    use crate::{
        policy::{self, Policies},
        router, routes,
    };

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_tag_matches_by_its_version_alone() {
        for (line, is_match) in [
            ("\"7\"", true),
            ("\"7.abc\"", true),
            ("\"6\", \"7.old\"", true),
            ("*", true),
            ("\"77\"", false),
            ("W/\"7\"", false),
            ("7", false),
            ("\"abc.7\"", false),
            ("", false),
        ] {
            let wanted = wanted(&headers(header::IF_MATCH, &[line]), true, false).unwrap().unwrap();
            assert_eq!(matches(&wanted, "7"), is_match, "{line}");
        }
        let two = wanted(&headers(header::IF_MATCH, &["\"1\"", "\"7\""]), true, false).unwrap().unwrap();
        assert!(matches(&two, "7"), "two lines are one list");
    }

    #[test]
    fn a_condition_that_nothing_checks_is_refused() {
        assert!(wanted(&headers(header::IF_MATCH, &["\"7\""]), false, false).is_err());
        assert!(wanted(&headers(header::IF_NONE_MATCH, &["*"]), true, false).is_err());
        assert!(wanted(&headers(header::IF_UNMODIFIED_SINCE, &["Tue, 24 Nov 2026 00:00:00 GMT"]), true, true).is_err());
        assert_eq!(wanted(&HeaderMap::new(), false, false).unwrap(), None);
    }

    #[test]
    fn a_range_is_that_of_the_content_which_if_range_names() {
        let range = |method: Method, lines: &[(HeaderName, &str)]| {
            let mut request = Request::builder().method(method).uri("/");
            for (name, value) in lines {
                request = request.header(name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            Conditions::read(&parts, None, Vec::new()).unwrap().range("\"a\"")
        };
        let same = [(header::RANGE, "bytes=0-1"), (header::IF_RANGE, "\"a\"")];
        let other = [(header::RANGE, "bytes=0-1"), (header::IF_RANGE, "\"b\"")];
        for lines in [&same[..1], &same] {
            assert_eq!(range(Method::GET, lines).as_deref(), Some("bytes=0-1"));
            assert_eq!(range(Method::POST, lines), None);
        }
        assert_eq!(range(Method::GET, &other), None);
        assert_eq!(range(Method::GET, &[]), None);
    }

    /// Returns all operations of the document: the method, the path, and the policy.
    fn operations() -> Vec<(Method, String, Policy)> {
        let document = router::document();
        let policies = Policies::of(&document, routes::POLICIES);
        let paths = document.paths.paths.iter();
        let all = paths.flat_map(|(path, item)| policy::operations(item).map(move |(method, _)| (method, path)));
        all.filter_map(|(method, path)| {
            let policy = policies.find(&method, path)?;
            Some((method, path.clone(), policy))
        })
        .collect()
    }

    /// Returns whether `path` is `of` or a path below it.
    fn belongs(path: &str, of: &str) -> bool {
        path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Every operation that changes an object which its path names has a policy that names it, or is here with its
    /// reason.
    #[test]
    fn every_thing_that_can_be_changed_has_versions() {
        let without: [(&str, &str); 3] = [
            ("/v1/base_models/", "a base model and its blobs are never changed"),
            ("/v1/fine_tuning/checkpoints/", "a permission is created and deleted, never changed"),
            ("/lorax/", "the path names the model that answers, as the body of a chat completion does"),
        ];
        for (method, path, policy) in operations() {
            let changes = ![Method::GET, Method::HEAD].contains(&method);
            let known = policy.thing.is_some() || without.iter().any(|(start, _)| path.starts_with(start));
            assert!(!changes || !path.contains('{') || known, "{method} {path} changes something without versions");
        }
    }

    /// Every operation names the object that is retrieved at its own path or at the nearest path above it.
    #[test]
    fn all_operations_at_and_below_an_object_name_it() {
        let operations = operations();
        let retrieved: Vec<_> = operations.iter().filter(|(_, _, policy)| policy.shows_version).collect();
        assert!(retrieved.len() >= 13, "{}", retrieved.len());
        for (method, path, policy) in &retrieved {
            assert_eq!(method, Method::GET, "{path}");
            assert_eq!(policy.thing.map(name_count), Some(path.matches('{').count()), "{path}");
        }
        for (method, path, policy) in &operations {
            let above = retrieved.iter().filter(|(_, of, _)| belongs(path, of));
            let nearest = above.max_by_key(|(_, of, _)| of.len());
            assert_eq!(policy.thing, nearest.and_then(|(_, _, above)| above.thing), "{method} {path}");
        }
    }
}
