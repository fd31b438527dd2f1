//! Events of replicas.

use attune_domain::{
    event::EventType,
    id::{ProjectId, ReplicaId},
};
use sqlx::PgConnection;

use crate::{error::StoreError, webhooks::outbox};

/// Pushes an event to the project that had the replica started, if there is one.
pub(super) async fn tell(tx: &mut PgConnection, id: ReplicaId, event: EventType) -> Result<(), StoreError> {
    let row = sqlx::query!(
        "select wanted_by, base_model.name as model, quantization, error
         from replica join base_model using (base_model_id)
         where replica_id = $1",
        id.uuid(),
    )
    .fetch_one(&mut *tx)
    .await?;
    let Some(project) = row.wanted_by else { return Ok(()) };
    let mut data = serde_json::json!({ "id": id, "model": row.model, "quantization": row.quantization });
    if let Some(error) = row.error {
        data["error"] = error.into();
    }
    outbox::push(tx, ProjectId::new(project), event, &data).await?;
    Ok(())
}
