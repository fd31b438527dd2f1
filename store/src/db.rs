//! The pool, the roles that transactions take on, the schema, and the lock that lets one scheduler work at a time.
//!
//! `attune_app` sees one tenant's rows, `attune_platform` all; see `migrations/0007` and `0010`.

use std::time::{Duration, Instant};

use apalis_postgres::PostgresStorage;
use attune_domain::id::{OrganizationId, ProjectId};
use secrecy::ExposeSecret;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, SqlSafeStr,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

pub use crate::connection::{Single, Tx};
use crate::{config::DatabaseConfig, error::StoreError, tenancy::audit::Origin};

/// Our own migrations; apalis has its own, in its own schema.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// Opens the pool of a door that serves users. Its login role by itself need see no row: each transaction takes on the
/// role that it is for.
///
/// # Errors
/// [`StoreError::Database`]: nobody answers there, or refuses.
pub async fn connect(config: &DatabaseConfig) -> Result<PgPool, StoreError> {
    Ok(pool(config).connect(config.url.expose_secret()).await?)
}

/// The pool of a door that does the platform's work alone: each of its connections is `attune_platform` from its
/// beginning. Connects when it is first used, since that role is there only once the schema is.
///
/// # Errors
/// [`StoreError::Database`]: the URL is none.
pub fn connect_as_platform(config: &DatabaseConfig) -> Result<PgPool, StoreError> {
    let options: PgConnectOptions = config.url.expose_secret().parse()?;
    Ok(pool(config).connect_lazy_with(options.options([("role", "attune_platform")])))
}

fn pool(config: &DatabaseConfig) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(Duration::from_secs(30))
        // A connection that was in use a moment ago is not asked whether it lives: that would be a round trip a request.
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

/// For how long an idle connection is taken to be alive.
const ASSUMED_ALIVE: Duration = Duration::from_secs(1);

/// Whose rows a transaction sees, and whose a request's changes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenant {
    /// A project: its files, jobs, models.
    Project(ProjectId),
    /// An organization's administration: its projects, people, keys and audit log.
    Organization(OrganizationId),
}

impl Tenant {
    /// The project's or organization's id.
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

/// A transaction in which only this project's rows are there: row security holds it to them.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn tenant(pool: &PgPool, project: ProjectId) -> Result<Tx, StoreError> {
    scoped(pool, Tenant::Project(project), None).await
}

/// A transaction in which only this tenant's rows are there. What it changes is noted under `origin`, if there is one.
///
/// Begins, takes on the role and names the tenant in one round trip; all of it ends with the transaction. The text is
/// fixed but for a UUID, which can hold nothing but hex digits, and the origin, which can hold no quote either.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn scoped(pool: &PgPool, tenant: Tenant, origin: Option<Origin>) -> Result<Tx, StoreError> {
    let (setting, id) = (tenant.setting(), tenant.uuid());
    let noted = origin.map(|origin| format!("; set local attune.origin = '{origin}'")).unwrap_or_default();
    let begin = format!("begin; set local role attune_app; set local {setting} = '{id}'{noted}");
    Tx::begin(pool, AssertSqlSafe(begin).into_sql_str()).await
}

/// A transaction that sees every project's rows: the platform's own work.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn platform(pool: &PgPool) -> Result<Tx, StoreError> {
    Tx::begin(pool, "begin; set local role attune_platform".into_sql_str()).await
}

/// A transaction in the role that the pool's connections log in with ([`connect_as_platform`]).
///
/// # Errors
/// As [`platform`].
pub async fn begin(pool: &PgPool) -> Result<Tx, StoreError> {
    Tx::begin(pool, "begin".into_sql_str()).await
}

/// A connection outside of a transaction, in the role that the pool's connections log in with.
///
/// # Errors
/// As [`platform`].
pub async fn single(pool: &PgPool) -> Result<Single, StoreError> {
    Single::take(pool).await
}

/// From here on the transaction is that of somebody who administers the installation too.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn as_installation(tx: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set local attune.installation = 'on'").execute(tx).await?;
    Ok(())
}

/// From here on the transaction, one of somebody who administers the installation, administers this organization.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn as_organization(tx: &mut PgConnection, organization: OrganizationId) -> Result<(), StoreError> {
    let id = organization.uuid().to_string();
    sqlx::query("select set_config('attune.organization_id', $1, true)").bind(id).execute(tx).await?;
    Ok(())
}

/// From here on the transaction sees every project's rows. [`as_application`] ends that.
pub(crate) async fn as_platform(tx: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set local role attune_platform").execute(tx).await?;
    Ok(())
}

/// The transaction sees its own tenant's rows again.
pub(crate) async fn as_application(tx: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set local role attune_app").execute(tx).await?;
    Ok(())
}

/// Brings the schema of the configured database up to date, as its owner where one is named.
///
/// # Errors
/// [`StoreError::Database`]: the owner is not let in. As [`migrate`].
pub async fn migrate_as_owner(config: &DatabaseConfig) -> Result<(), StoreError> {
    let url = config.owner_url.as_ref().unwrap_or(&config.url);
    let owner = PgPoolOptions::new().max_connections(2).connect(url.expose_secret()).await?;
    let migrated = migrate(&owner).await;
    owner.close().await;
    migrated
}

/// Brings the schema up to date: ours, then the queue's, then what our roles may do in the queue's. Two processes may
/// call it at once; sqlx takes a lock, and so do the grants.
///
/// # Errors
/// [`StoreError::Migrate`]: a migration failed, or one that ran before has changed since.
pub async fn migrate(pool: &PgPool) -> Result<(), StoreError> {
    MIGRATOR.run(pool).await.map_err(|e| StoreError::Migrate(Box::new(e)))?;
    PostgresStorage::setup(pool).await.map_err(|e| StoreError::Migrate(Box::new(e)))?;
    sqlx::raw_sql(AFTER_MIGRATIONS).execute(pool).await.map_err(|e| StoreError::Migrate(Box::new(e)))?;
    Ok(())
}

/// What must hold whichever migration came last. A request puts messages on a queue; workers take them off. Several
/// statements in one text are one transaction.
const AFTER_MIGRATIONS: &str = "
    select pg_advisory_xact_lock(hashtext('attune: after migrations'));
    grant select on public._sqlx_migrations to attune_platform;
    grant usage on schema apalis to attune_app, attune_platform;
    grant select, insert on apalis.jobs to attune_app;
    grant select, insert, update, delete on all tables in schema apalis to attune_platform;
    grant usage on all sequences in schema apalis to attune_platform;
";

/// Waits until another process has brought the schema up to date.
///
/// # Errors
/// [`StoreError::Migrate`]: it is not there after `patience`.
pub async fn wait_for_schema(pool: &PgPool, patience: Duration) -> Result<(), StoreError> {
    let since = Instant::now();
    while !schema_is_there(pool).await {
        if since.elapsed() > patience {
            let message = format!("it is not there after {} s; is attune-api running?", patience.as_secs());
            return Err(StoreError::Migrate(message.into()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Whether every migration of this release has run. A missing table is an answer here, not a failure.
async fn schema_is_there(pool: &PgPool) -> bool {
    let ours = sqlx::query_scalar::<_, i64>("select count(*) from public._sqlx_migrations where success");
    let queue =
        sqlx::query_scalar::<_, bool>("select to_regprocedure('apalis.get_jobs(text,text,integer)') is not null");
    let wanted = MIGRATOR.iter().count() as i64;
    matches!(ours.fetch_one(pool).await, Ok(done) if done >= wanted) && matches!(queue.fetch_one(pool).await, Ok(true))
}

/// The right to be the one scheduler; it lasts as long as its connection.
#[derive(Debug)]
pub struct Leadership(PgConnection);

/// "attune" in ASCII: the advisory lock's number.
const LEADERSHIP: i64 = 0x61_74_74_75_6e_65;

impl Leadership {
    /// Asks once; `None`: another process has it.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn try_take(config: &DatabaseConfig) -> Result<Option<Self>, StoreError> {
        let mut own = PgConnection::connect(config.url.expose_secret()).await?;
        let taken = sqlx::query_scalar!(r#"select pg_try_advisory_lock($1) as "taken!""#, LEADERSHIP)
            .fetch_one(&mut own)
            .await?;
        Ok(taken.then_some(Self(own)))
    }

    /// Whether it is still held: the lock goes with the connection.
    pub async fn is_held(&mut self) -> bool {
        self.0.ping().await.is_ok()
    }
}
