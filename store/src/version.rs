//! Row versions: the value of an `ETag`, and the condition of an `If-Match`.
//!
//! The version is PostgreSQL's own `xmin`, the transaction that last wrote the row: it changes with every write, by any
//! writer, and needs no column and no trigger. After a restore from a dump every version differs, so earlier ones no
//! longer match: an `If-Match` may then be refused without need, but is never accepted wrongly.

use attune_domain::{
    catalogue::{EntryId, built_in},
    id::{ApiKey, Batch, Deployment, Export, File, Id, Job, Kind, Person, Project, ProjectId, Upload, WebhookEndpoint},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    adapters::{
        adapter::{self, AdapterVersion},
        adapter_alias,
    },
    catalogue,
    db::Tenant,
    error::StoreError,
    tenancy::{member, money},
};

/// A kind of versioned resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    /// A fine-tuning job.
    Job,
    /// A file.
    File,
    /// An upload: a file that is uploaded in parts.
    Upload,
    /// A batch.
    Batch,
    /// An export of an adapter.
    Export,
    /// An adapter, by its ID or its model's name.
    Adapter,
    /// An adapter's alias: the adapter, then the alias.
    Alias,
    /// A webhook endpoint.
    WebhookEndpoint,
    /// A deployment.
    Deployment,
    /// A project's budget. It has no name, and always exists.
    Budget,
    /// A project of an organization.
    Project,
    /// A project's share of the machines. It always exists, as its project does.
    ProjectQueue,
    /// An instance type of the catalogue, by its ID.
    CatalogueEntry,
    /// A key of a project: the project, then the key.
    ApiKey,
    /// A user of an organization.
    User,
    /// A user of a project: the project, then the user.
    ProjectUser,
}

/// The version of settings that were never set.
const UNSET: &str = "0";

/// The version of the row that `$from` finds. With `$locks`, the row is locked until the transaction ends.
macro_rules! row {
    ($db:expr, $locks:expr, $from:tt, $($id:expr),+) => {{
        if $locks {
            sqlx::query!("select from " + $from + " for update", $($id),+).fetch_optional(&mut *$db).await?;
        }
        // A separate statement, so that it sees what was written while this one waited for the lock.
        sqlx::query_scalar!("select xmin::text as \"version!\" from " + $from, $($id),+)
            .fetch_optional(&mut *$db)
            .await?
    }};
}

/// Returns the version of the tenant's resource with these names; `None`: it does not exist, or belongs to another
/// tenant.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of(
    db: &mut PgConnection,
    tenant: Tenant,
    thing: Thing,
    names: &[String],
) -> Result<Option<String>, StoreError> {
    match tenant {
        Tenant::Project(project) => of_project(db, false, project, thing, names).await,
        Tenant::Organization(_) => of_organization(db, false, tenant.uuid(), thing, names).await,
    }
}

/// As [`of`], and locks the row until the transaction ends. Rows that the handlers lock first are locked first here
/// too.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn lock(
    tx: &mut PgConnection,
    tenant: Tenant,
    thing: Thing,
    names: &[String],
) -> Result<Option<String>, StoreError> {
    match tenant {
        Tenant::Project(project) => of_project(tx, true, project, thing, names).await,
        Tenant::Organization(organization) => {
            if thing == Thing::User {
                member::lock_owners(tx, organization).await?;
            }
            of_organization(tx, true, tenant.uuid(), thing, names).await
        }
    }
}

async fn of_project(
    db: &mut PgConnection,
    locks: bool,
    project: ProjectId,
    thing: Thing,
    names: &[String],
) -> Result<Option<String>, StoreError> {
    let of = project.uuid();
    Ok(match (thing, names) {
        (Thing::Job, [id]) => row!(db, locks, "job where job_id = $1 and project_id = $2", uuid::<Job>(id), of),
        (Thing::File, [id]) => row!(db, locks, "file where file_id = $1 and project_id = $2", uuid::<File>(id), of),
        (Thing::Upload, [id]) => {
            row!(db, locks, "upload where upload_id = $1 and project_id = $2", uuid::<Upload>(id), of)
        }
        (Thing::Batch, [id]) => row!(db, locks, "batch where batch_id = $1 and project_id = $2", uuid::<Batch>(id), of),
        (Thing::Export, [id]) => {
            let id = uuid::<Export>(id);
            row!(db, locks, "export where export_id = $1 and project_id = $2 and deleted_at is null", id, of)
        }
        (Thing::WebhookEndpoint, [id]) => {
            let id = uuid::<WebhookEndpoint>(id);
            row!(db, locks, "webhook_endpoint where webhook_endpoint_id = $1 and project_id = $2", id, of)
        }
        (Thing::Deployment, [id]) => {
            let id = uuid::<Deployment>(id);
            row!(db, locks, "deployment where deployment_id = $1 and project_id = $2", id, of)
        }
        (Thing::Adapter, [name]) => {
            let id = version_named(db, project, name).await?.map(|version| version.adapter_version_id.uuid());
            row!(db, locks, "adapter_version where adapter_version_id = $1 and project_id = $2", id, of)
        }
        (Thing::Alias, [name, alias]) => {
            let Some(version) = version_named(db, project, name).await? else { return Ok(None) };
            if locks {
                adapter_alias::lock(db, project, &version.adapter).await?;
            }
            let adapter = version.adapter_id.uuid();
            row!(
                db,
                locks,
                "adapter_alias where adapter_id = $1 and alias = $2 and project_id = $3",
                adapter,
                alias,
                of
            )
        }
        (Thing::Budget, []) => {
            if locks {
                money::lock_budget(db, project).await?;
            }
            row!(db, locks, "budget where project_id = $1", of).or_else(|| Some(UNSET.to_owned()))
        }
        _ => None,
    })
}

async fn of_organization(
    db: &mut PgConnection,
    locks: bool,
    of: Uuid,
    thing: Thing,
    names: &[String],
) -> Result<Option<String>, StoreError> {
    Ok(match (thing, names) {
        (Thing::Project, [id]) => {
            row!(db, locks, "project where project_id = $1 and organization_id = $2", uuid::<Project>(id), of)
        }
        (Thing::ProjectQueue, [id]) => {
            let id = uuid::<Project>(id);
            let project = row!(db, locks, "project where project_id = $1 and organization_id = $2", id, of);
            let set = row!(db, false, "project_queue where project_id = $1", id);
            project.map(|_| set.unwrap_or_else(|| UNSET.to_owned()))
        }
        (Thing::CatalogueEntry, [name]) => {
            let Ok(id) = name.parse::<EntryId>() else { return Ok(None) };
            if locks {
                catalogue::lock(db, &id).await?;
            }
            let is_built_in = built_in().instance(&id).is_some();
            match row!(db, false, "catalogue_entry where name = $1", name) {
                Some(version) => Some(version),
                None => is_built_in.then(|| UNSET.to_owned()),
            }
        }
        (Thing::User, [id]) => {
            let id = uuid::<Person>(id);
            row!(db, locks, "organization_member where person_id = $1 and organization_id = $2", id, of)
        }
        (Thing::ApiKey, [project, id]) => row!(
            db,
            locks,
            "api_key where api_key_id = $1 and project_id = (
                 select project_id from project where project_id = $2 and organization_id = $3)",
            uuid::<ApiKey>(id),
            uuid::<Project>(project),
            of
        ),
        (Thing::ProjectUser, [project, id]) => row!(
            db,
            locks,
            "project_member where person_id = $1 and project_id = (
                 select project_id from project where project_id = $2 and organization_id = $3)",
            uuid::<Person>(id),
            uuid::<Project>(project),
            of
        ),
        _ => None,
    })
}

/// Parses an ID; `None`, which matches no row, if the text is not an ID of this kind.
fn uuid<K: Kind>(text: &str) -> Option<Uuid> {
    text.parse::<Id<K>>().ok().map(|id| id.uuid())
}

async fn version_named(
    db: &mut PgConnection,
    project: ProjectId,
    name: &str,
) -> Result<Option<AdapterVersion>, StoreError> {
    match adapter::find(db, project, name).await {
        Ok(version) => Ok(Some(version)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
