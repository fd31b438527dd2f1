//! Lists: the query parameters of a request, and the list object of its response, in OpenAI's cursor style.

use std::str::FromStr;

use attune_domain::id::{Id, Kind};
use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{error::ApiError, http::path_id::truncated};

/// The latest Unix time that a query may name: the end of the year 9999.
pub const LATEST: i64 = 253_402_300_799;

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct List<T> {
    /// Always `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    /// The objects of this page.
    pub data: Vec<T>,
    /// The ID of the first object; `null` if the page is empty.
    pub first_id: Option<String>,
    /// The ID of the last object, to be sent as `after` for the next page.
    pub last_id: Option<String>,
    /// True if there are more objects after this page.
    pub has_more: bool,
}

impl<T> List<T> {
    /// Returns a page of the fetched objects, which are one more than `limit` if there are more.
    pub fn cut(mut fetched: Vec<T>, limit: i64, id: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(0);
        let has_more = fetched.len() > limit;
        fetched.truncate(limit);
        let (first_id, last_id) = (fetched.first().map(&id), fetched.last().map(&id));
        Self { object: "list", data: fetched, first_id, last_id, has_more }
    }

    /// Returns a complete list as one page.
    pub fn whole(all: Vec<T>, id: impl Fn(&T) -> String) -> Self {
        let count = i64::try_from(all.len()).unwrap_or(i64::MAX);
        Self::cut(all, count, id)
    }
}

/// The parameters of a query; [`Params::done`] refuses those that no other method has taken.
#[derive(Debug, Clone)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let Query(pairs) = Query::try_from_uri(&parts.uri).map_err(|e| ApiError::Invalid {
            param: None,
            code: "invalid_query",
            message: e.body_text(),
        })?;
        let pairs: Vec<(String, String)> = pairs;
        match pairs.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
            Some((name, _)) => Err(ApiError::invalid(
                name.replace('\0', "\\u0000"),
                "The character U+0000 is not allowed in a query.".to_owned(),
            )),
            None => Ok(Self(pairs)),
        }
    }
}

impl Params {
    /// Returns the value of `name`.
    ///
    /// # Errors
    /// The parameter is repeated.
    pub fn take(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let mut found = self.0.extract_if(.., |(key, _)| key == name).map(|(_, value)| value);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(ApiError::invalid(name, format!("'{name}' is given twice."))),
            (value, None) => Ok(value),
        }
    }

    /// Returns a Unix time, in seconds.
    ///
    /// # Errors
    /// The value is not a number from 0 to [`LATEST`].
    pub fn moment(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        let moment = text.parse().ok().filter(|moment| (0..=LATEST).contains(moment));
        moment.map(Some).ok_or_else(|| {
            let shown = truncated(&text);
            ApiError::invalid(name, format!("Invalid '{name}': {shown} is not a Unix time from 0 to {LATEST}."))
        })
    }

    /// Returns all values of `name` and of `name[]`, the two ways in which clients write lists.
    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        let is_it = |key: &str| key == name || key.strip_suffix("[]") == Some(name);
        self.0.extract_if(.., |(key, _)| is_it(key)).map(|(_, value)| value).collect()
    }

    /// Returns the ID after which the list continues.
    ///
    /// # Errors
    /// The value is not an ID of this kind.
    pub fn after<K: Kind>(&mut self) -> Result<Option<Id<K>>, ApiError> {
        self.take("after")?
            .map(|text| Id::from_str(&text))
            .transpose()
            .map_err(|e| ApiError::invalid("after", format!("Invalid 'after': {e}.")))
    }

    /// Returns the maximum number of objects.
    ///
    /// # Errors
    /// The value is not a number from 1 to `most`.
    pub fn limit(&mut self, default: i64, most: i64) -> Result<i64, ApiError> {
        let Some(text) = self.take("limit")? else { return Ok(default) };
        text.parse().ok().filter(|n| (1..=most).contains(n)).ok_or_else(|| {
            ApiError::invalid("limit", format!("Invalid 'limit': {text} is not a whole number from 1 to {most}."))
        })
    }

    /// Returns whether the oldest objects come first.
    ///
    /// # Errors
    /// The value is neither `asc` nor `desc`.
    pub fn ascending(&mut self) -> Result<bool, ApiError> {
        match self.take("order")?.as_deref() {
            None | Some("desc") => Ok(false),
            Some("asc") => Ok(true),
            Some(other) => Err(ApiError::invalid("order", format!("Invalid 'order': '{other}'. Use asc or desc."))),
        }
    }

    /// Returns whether `name` is `true`.
    ///
    /// # Errors
    /// The value is neither `true` nor `false`.
    pub fn truth(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(ApiError::invalid(name, format!("Invalid '{name}': '{other}'. Use true or false."))),
        }
    }

    /// Returns all pairs `metadata[key]=value`.
    pub fn metadata(&mut self) -> Vec<(String, String)> {
        let name = |key: &str| key.strip_prefix("metadata[").and_then(|k| k.strip_suffix(']')).map(str::to_owned);
        let taken = self.0.extract_if(.., |(key, _)| name(key).is_some());
        taken.filter_map(|(key, value)| name(&key).map(|key| (key, value))).collect()
    }

    /// Refuses parameters that no method has taken.
    ///
    /// # Errors
    /// The first such parameter.
    pub fn done(self) -> Result<(), ApiError> {
        let Some((name, _)) = self.0.into_iter().next() else { return Ok(()) };
        let message = format!("Unknown query parameter: '{name}'.");
        Err(ApiError::Invalid { param: Some(name), code: "unknown_parameter", message })
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::id::File;

    use super::*;

    fn params(query: &str) -> Params {
        let uri = format!("/v1/files?{query}").parse().unwrap();
        Params(Query::try_from_uri(&uri).unwrap().0)
    }

    #[test]
    fn a_part_knows_whether_more_follow() {
        let list = List::cut(vec![1, 2, 3], 2, ToString::to_string);
        assert_eq!((list.data, list.has_more), (vec![1, 2], true));
        assert_eq!((list.first_id.as_deref(), list.last_id.as_deref()), (Some("1"), Some("2")));
        assert!(!List::cut(vec![1, 2], 2, ToString::to_string).has_more);
    }

    #[test]
    fn metadata_is_read_from_brackets() {
        let mut query = params("metadata%5Bteam%5D=a%20b&metadata[x]=1&limit=7");
        assert_eq!(query.metadata(), [("team".into(), "a b".into()), ("x".into(), "1".into())]);
        assert_eq!(query.limit(20, 100).unwrap(), 7);
        query.done().unwrap();
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (query, param) in
            [("limit=0", "limit"), ("limit=101", "limit"), ("limit=", "limit"), ("limit=1&limit=2", "limit")]
        {
            let error = params(query).limit(20, 100).unwrap_err();
            assert_eq!(error.body().error.param.as_deref(), Some(param), "{query}");
        }
        assert!(params("after=ftjob-1").after::<File>().is_err());
        assert!(params("order=up").ascending().is_err());
        assert_eq!(params("colour=red").done().unwrap_err().body().error.code, Some("unknown_parameter"));
    }
}
