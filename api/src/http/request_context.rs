//! The origin of the request that a task answers: the audit log records it with each change.

use attune_store::tenancy::audit::Origin;

tokio::task_local! {
    /// The origin of the request's changes; `None` for a request that only reads.
    static ORIGIN: Option<Origin>;
}

/// Returns the origin of the current request's changes; `None` outside of a request, and in one that only reads.
pub fn origin() -> Option<Origin> {
    ORIGIN.try_with(|origin| *origin).ok().flatten()
}

/// Runs `future` with this origin.
pub fn with_origin<F: Future>(origin: Option<Origin>, future: F) -> impl Future<Output = F::Output> {
    ORIGIN.scope(origin, future)
}

/// Runs `future` with the current request's origin, for a separate task.
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    with_origin(origin(), future)
}
