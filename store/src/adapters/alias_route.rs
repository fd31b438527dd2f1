//! The route of an alias's requests: the version that answers each, and the version that answers a copy of it. One
//! statement reads all of it, so a route never mixes the states before and after a change.

use attune_domain::{
    id::{AdapterCanaryId, AdapterShadowId, AdapterVersionId, ProjectId},
    traffic::canary,
};
use sqlx::PgConnection;

use crate::error::StoreError;

/// The route of an alias's requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRoute {
    /// The text that the shares of this alias are hashed with.
    salt: String,
    /// The version that the alias names.
    pub stable: AdapterVersionId,
    /// The version that a rollback moves the alias to.
    pub previous: Option<AdapterVersionId>,
    /// The canary that runs.
    pub canary: Option<Trial<AdapterCanaryId>>,
    /// The active shadow.
    pub shadow: Option<Trial<AdapterShadowId>>,
}

/// A version that answers a share of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial<Id> {
    /// The canary's or the shadow's ID.
    pub id: Id,
    /// The version.
    pub version: AdapterVersionId,
    /// The share, in percent.
    percent: u8,
}

impl<Id> Trial<Id> {
    fn new(id: Id, version: uuid::Uuid, percent: i16) -> Self {
        let percent = percent.unsigned_abs().try_into().unwrap_or(u8::MAX);
        Self { id, version: AdapterVersionId::new(version), percent }
    }
}

impl AliasRoute {
    /// Returns the version that answers a request. Requests with the same key have the same version, as long as the
    /// alias, the canary and its share stay the same.
    #[must_use]
    pub fn version(&self, key: &str) -> AdapterVersionId {
        let canary = self.canary.as_ref().filter(|canary| canary::is_in_share(&self.salt, key, canary.percent));
        canary.map_or(self.stable, |canary| canary.version)
    }

    /// Returns the shadow, if it answers a copy of a request with this key.
    #[must_use]
    pub fn shadow(&self, key: &str) -> Option<Trial<AdapterShadowId>> {
        // Another hash than the canary's, so that both sides of a canary are compared.
        self.shadow.filter(|shadow| canary::is_in_share(&format!("shadow of {}", self.salt), key, shadow.percent))
    }
}

/// Returns the route of the requests to a model's name; `None`: the name is no alias of the project.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn find(db: &mut PgConnection, project: ProjectId, name: &str) -> Result<Option<AliasRoute>, StoreError> {
    let Some((adapter, alias)) = name.split_once('@') else { return Ok(None) };
    let row = sqlx::query!(
        r#"select s.adapter_id, s.adapter_version_id,
             case when p.deleted_at is null then s.previous_version_id end as previous,
             c.adapter_canary_id as "canary?", c.adapter_version_id as "canary_version?",
             c.percent as "canary_percent?", h.adapter_shadow_id as "shadow?",
             h.adapter_version_id as "shadow_version?", h.percent as "shadow_percent?"
         from adapter l join adapter_alias s using (adapter_id)
             left join adapter_version p on p.adapter_version_id = s.previous_version_id
             left join adapter_canary c on c.adapter_id = s.adapter_id and c.alias = s.alias and c.state = 'running'
             left join adapter_shadow h on h.adapter_id = s.adapter_id and h.alias = s.alias and h.ended_at is null
         where l.project_id = $1 and l.name = $2 and s.alias = $3"#,
        project.uuid(),
        adapter,
        alias,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| AliasRoute {
        salt: format!("{}@{alias}", row.adapter_id),
        stable: AdapterVersionId::new(row.adapter_version_id),
        previous: row.previous.map(AdapterVersionId::new),
        canary: match (row.canary, row.canary_version, row.canary_percent) {
            (Some(id), Some(version), Some(percent)) => Some(Trial::new(AdapterCanaryId::new(id), version, percent)),
            _ => None,
        },
        shadow: match (row.shadow, row.shadow_version, row.shadow_percent) {
            (Some(id), Some(version), Some(percent)) => Some(Trial::new(AdapterShadowId::new(id), version, percent)),
            _ => None,
        },
    }))
}
