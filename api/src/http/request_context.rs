//! The state of the request that a task answers. Each middleware adds its part, and runs the rest of the request with
//! it; [`App`](crate::app::App), which opens all transactions of a request, reads it, so that no handler passes it on.

use std::sync::Arc;

use attune_inference::metering::TokenAllowance;
use attune_store::{db::Tenant, tenancy::audit::Origin};
use sqlx::PgConnection;
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::{
    error::ApiError,
    middleware::{
        conditions::{Conditions, Demands},
        rate_limiter::Allowance,
    },
};

tokio::task_local! {
    static CURRENT: RequestContext;
}

/// The state of one request. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RequestContext {
    origin: Option<Origin>,
    allowance: Option<Allowance>,
    conditions: Option<Arc<Conditions>>,
}

impl RequestContext {
    /// Returns the context of the current request; an empty one outside of a request.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }

    /// Returns the context with this origin of the request's changes; `None` for a request that only reads.
    #[must_use]
    pub fn with_origin(self, origin: Option<Origin>) -> Self {
        Self { origin, ..self }
    }

    /// Returns the context with the allowance that the request is charged to.
    #[must_use]
    pub fn with_allowance(self, allowance: Allowance) -> Self {
        Self { allowance: Some(allowance), ..self }
    }

    /// Returns the context with the request's conditions.
    #[must_use]
    pub fn with_conditions(self, conditions: Arc<Conditions>) -> Self {
        Self { conditions: Some(conditions), ..self }
    }

    /// Runs `future` with this context as the current one.
    pub fn run<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Returns the origin of the request's changes, which the audit log records; `None` outside of a request, and in
    /// one that only reads.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        self.origin
    }

    /// Returns the allowance that the tokens of the request's answers are charged to; `None` if it is not limited.
    #[must_use]
    pub fn allowance(&self) -> Option<TokenAllowance> {
        let allowance = self.allowance.clone()?;
        Some(Arc::new(move |tokens: u64| allowance.charge(tokens)))
    }

    /// Checks the request's conditions, in a transaction that was just opened for it.
    ///
    /// # Errors
    /// As [`Conditions::check`].
    pub async fn check(&self, tx: &mut PgConnection, tenant: Tenant, demands: Demands) -> Result<(), ApiError> {
        match &self.conditions {
            Some(conditions) => conditions.check(tx, tenant, demands).await,
            None => Ok(()),
        }
    }

    /// Returns the requested range of the content with this tag; `None` for all of it.
    #[must_use]
    pub fn range(&self, tag: &str) -> Option<String> {
        self.conditions.as_ref()?.range(tag)
    }
}

/// Spawns a task that inherits the context of the current request, and continues if the request's own task is dropped.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(CURRENT.scope(RequestContext::current(), future).in_current_span())
}

#[cfg(test)]
mod tests {
    use attune_domain::{access::Actor, id::ApiKeyId};
    use axum::http::{Request, header};
    use uuid::Uuid;

    use super::*;
    use crate::{config::RateLimits, middleware::rate_limiter::RateLimiter};

    fn origin() -> Origin {
        let actor = Actor::ApiKey(ApiKeyId::new(Uuid::nil()));
        Origin { actor, address: None, request: Uuid::nil(), operation: "create_file" }
    }

    fn allowance() -> Allowance {
        Allowance::new(Arc::new(RateLimiter::new(RateLimits::default())), Uuid::nil())
    }

    fn conditions() -> Arc<Conditions> {
        let (parts, ()) = Request::get("/").header(header::RANGE, "bytes=0-1").body(()).unwrap().into_parts();
        Arc::new(Conditions::read(&parts, None, Vec::new()).unwrap())
    }

    /// Returns whether the current context has each of its parts.
    fn parts() -> [bool; 3] {
        let context = RequestContext::current();
        [context.origin().is_some(), context.allowance().is_some(), context.range("a").is_some()]
    }

    #[tokio::test]
    async fn each_layer_keeps_the_parts_of_the_layers_around_it() {
        assert_eq!(parts(), [false; 3], "outside of a request");
        let inner = async {
            let innermost = async {
                assert_eq!(RequestContext::current().origin(), Some(origin()));
                parts()
            };
            let all = RequestContext::current().with_conditions(conditions()).run(innermost).await;
            (parts(), all)
        };
        let middle = async { RequestContext::current().with_allowance(allowance()).run(inner).await };
        let (before, all) = RequestContext::current().with_origin(Some(origin())).run(middle).await;
        assert_eq!((before, all), ([true, true, false], [true; 3]));
        assert_eq!(parts(), [false; 3], "after the request");
    }

    #[tokio::test]
    async fn a_detached_task_inherits_the_context() {
        let context = RequestContext::default().with_origin(Some(origin())).with_conditions(conditions());
        let request = async {
            let bare = tokio::spawn(async { parts() }).await.unwrap();
            (bare, spawn(async { parts() }).await.unwrap())
        };
        assert_eq!(context.run(request).await, ([false; 3], [true, false, true]));
        assert_eq!(spawn(async { parts() }).await.unwrap(), [false; 3], "outside of a request");
    }
}
