//! The pool, the roles of transactions, and the schema.
//!
//! `attune_app` sees one tenant's rows, `attune_platform` all; see `migrations/0007` and `0010`.

use std::time::{Duration, Instant};

use apalis_postgres::PostgresStorage;
use attune_domain::id::{OrganizationId, ProjectId};
use attune_process::metrics::{DB_CONNECTIONS, DB_CONNECTIONS_MAX};
use secrecy::ExposeSecret;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, SqlSafeStr,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

pub use crate::connection::{Single, Tx};
use crate::{config::DatabaseConfig, error::StoreError, tenancy::audit::Origin};

/// This project's migrations; apalis has its own, in its own schema.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// Opens the pool of a binary that serves users. Its login role needs access to no rows: each transaction assumes the
/// role that it needs.
///
/// # Errors
/// [`StoreError::Database`]: the server does not answer, or refuses the connection.
pub async fn connect(config: &DatabaseConfig) -> Result<PgPool, StoreError> {
    Ok(pool(config).connect(config.url.expose_secret()).await?)
}

/// Creates the pool of a binary that does the platform's own work only: each of its connections is `attune_platform`
/// from the start. Connects when it is first used, since that role exists only once the schema does.
///
/// # Errors
/// [`StoreError::Database`]: the URL is invalid.
pub fn connect_as_platform(config: &DatabaseConfig) -> Result<PgPool, StoreError> {
    let options: PgConnectOptions = config.url.expose_secret().parse()?;
    Ok(pool(config).connect_lazy_with(options.options([("role", "attune_platform")])))
}

fn pool(config: &DatabaseConfig) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(Duration::from_secs(30))
        // A recently used connection is not tested: that would cost a round trip per request.
        .test_before_acquire(false)
        .before_acquire(|conn, meta| {
            Box::pin(async move {
                if meta.idle_for > ASSUMED_ALIVE {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
}

/// Sets the metrics of the pool.
pub fn publish_pool(pool: &PgPool) {
    let (size, idle) = (pool.size() as usize, pool.num_idle());
    DB_CONNECTIONS.set(["idle"], idle as f64);
    DB_CONNECTIONS.set(["used"], size.saturating_sub(idle) as f64);
    DB_CONNECTIONS_MAX.set([], f64::from(pool.options().get_max_connections()));
}

/// The idle time below which a connection is assumed to be alive.
const ASSUMED_ALIVE: Duration = Duration::from_secs(1);

/// The tenant whose rows a transaction sees, and to which a request's changes belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenant {
    /// A project: its files, jobs, models.
    Project(ProjectId),
    /// An organization's administration: its projects, users, keys and audit log.
    Organization(OrganizationId),
}

impl Tenant {
    /// Returns the project's or organization's ID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        match self {
            Self::Project(id) => id.uuid(),
            Self::Organization(id) => id.uuid(),
        }
    }

    const fn setting(self) -> &'static str {
        match self {
            Self::Project(_) => "attune.project_id",
            Self::Organization(_) => "attune.organization_id",
        }
    }
}

/// Begins a transaction that sees only this project's rows; row security enforces it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn tenant(pool: &PgPool, project: ProjectId) -> Result<Tx, StoreError> {
    scoped(pool, Tenant::Project(project), None).await
}

/// Begins a transaction that sees only this tenant's rows. Changes are recorded under `origin`, if there is one.
///
/// Begins, assumes the role and sets the tenant in one round trip; all of it ends with the transaction. The text is
/// fixed except for a UUID, which contains only hex digits, and the origin, which cannot contain a quote either.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn scoped(pool: &PgPool, tenant: Tenant, origin: Option<Origin>) -> Result<Tx, StoreError> {
    let (setting, id) = (tenant.setting(), tenant.uuid());
    let noted = origin.map(|origin| format!("; set local attune.origin = '{origin}'")).unwrap_or_default();
    let begin = format!("begin; set local role attune_app; set local {setting} = '{id}'{noted}");
    Tx::begin(pool, AssertSqlSafe(begin).into_sql_str()).await
}

/// Begins a transaction that sees every project's rows, for the platform's own work.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn platform(pool: &PgPool) -> Result<Tx, StoreError> {
    Tx::begin(pool, "begin; set local role attune_platform".into_sql_str()).await
}

/// Begins a transaction in the role that the pool's connections log in with ([`connect_as_platform`]).
///
/// # Errors
/// As [`platform`].
pub async fn begin(pool: &PgPool) -> Result<Tx, StoreError> {
    Tx::begin(pool, "begin".into_sql_str()).await
}

/// Acquires a connection outside of a transaction, in the role that the pool's connections log in with.
///
/// # Errors
/// As [`platform`].
pub async fn single(pool: &PgPool) -> Result<Single, StoreError> {
    Single::take(pool).await
}

/// Gives the transaction the rights of an administrator of the installation.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn as_installation(tx: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set local attune.installation = 'on'").execute(tx).await?;
    Ok(())
}

/// Lets the transaction, an installation administrator's, administer this organization.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn as_organization(tx: &mut PgConnection, organization: OrganizationId) -> Result<(), StoreError> {
    let id = organization.uuid().to_string();
    sqlx::query("select set_config('attune.organization_id', $1, true)").bind(id).execute(tx).await?;
    Ok(())
}

/// Lets the transaction see every project's rows, until [`as_application`].
pub(crate) async fn as_platform(tx: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set local role attune_platform").execute(tx).await?;
    Ok(())
}

/// Limits the transaction to its own tenant's rows again.
pub(crate) async fn as_application(tx: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set local role attune_app").execute(tx).await?;
    Ok(())
}

/// Migrates the schema of the configured database, as its owner where one is configured.
///
/// # Errors
/// [`StoreError::Database`]: the owner cannot connect. As [`migrate`].
pub async fn migrate_as_owner(config: &DatabaseConfig) -> Result<(), StoreError> {
    let url = config.owner_url.as_ref().unwrap_or(&config.url);
    let owner = PgPoolOptions::new().max_connections(2).connect(url.expose_secret()).await?;
    let migrated = migrate(&owner).await;
    owner.close().await;
    migrated
}

/// Migrates the schema: this project's, then the queue's, then our roles' privileges on the queue's. Two processes may
/// call it at once; sqlx takes a lock, and so do the grants.
///
/// # Errors
/// [`StoreError::Migrate`]: a migration failed, or one that was applied before has changed since.
pub async fn migrate(pool: &PgPool) -> Result<(), StoreError> {
    MIGRATOR.run(pool).await.map_err(|e| StoreError::Migrate(Box::new(e)))?;
    PostgresStorage::setup(pool).await.map_err(|e| StoreError::Migrate(Box::new(e)))?;
    sqlx::raw_sql(AFTER_MIGRATIONS).execute(pool).await.map_err(|e| StoreError::Migrate(Box::new(e)))?;
    Ok(())
}

/// Statements run after all migrations. Requests push messages to a queue; workers take them off. Several statements in
/// one text are one transaction.
const AFTER_MIGRATIONS: &str = "
    select pg_advisory_xact_lock(hashtext('attune: after migrations'));
    grant select on public._sqlx_migrations to attune_platform;
    grant usage on schema apalis to attune_app, attune_platform;
    grant select, insert on apalis.jobs to attune_app;
    grant select, insert, update, delete on all tables in schema apalis to attune_platform;
    grant usage on all sequences in schema apalis to attune_platform;
";

/// Waits until another process has migrated the schema.
///
/// # Errors
/// [`StoreError::Migrate`]: the schema is not complete after `patience`.
pub async fn wait_for_schema(pool: &PgPool, patience: Duration) -> Result<(), StoreError> {
    let since = Instant::now();
    while !schema_is_there(pool).await {
        if since.elapsed() > patience {
            let message = format!("it is not complete after {} s; is attune-api running?", patience.as_secs());
            return Err(StoreError::Migrate(message.into()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Returns whether every migration of this release was applied. A missing table means false, not a failure.
async fn schema_is_there(pool: &PgPool) -> bool {
    let ours = sqlx::query_scalar::<_, i64>("select count(*) from public._sqlx_migrations where success");
    let queue =
        sqlx::query_scalar::<_, bool>("select to_regprocedure('apalis.get_jobs(text,text,integer)') is not null");
    let wanted = MIGRATOR.iter().count() as i64;
    matches!(ours.fetch_one(pool).await, Ok(done) if done >= wanted) && matches!(queue.fetch_one(pool).await, Ok(true))
}
