//! The pool, the schema, and the lock that lets one scheduler work at a time.

use std::time::{Duration, Instant};

use apalis_postgres::PostgresStorage;
use attune_domain::id::ProjectId;
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction, postgres::PgPoolOptions};

use crate::{config::DatabaseConfig, error::StoreError};

/// Our own migrations; apalis has its own, in its own schema.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// Opens the pool.
///
/// # Errors
/// [`StoreError::Database`]: nobody answers there, or refuses.
pub async fn connect(config: &DatabaseConfig) -> Result<PgPool, StoreError> {
    Ok(PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(Duration::from_secs(30))
        .connect(config.url.expose_secret())
        .await?)
}

/// A transaction; what is not committed is undone.
pub type Tx = Transaction<'static, Postgres>;

/// A transaction in which only this project's rows are there.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn tenant(pool: &PgPool, project: ProjectId) -> Result<Tx, StoreError> {
    let mut tx = pool.begin().await?;
    // For this transaction alone.
    sqlx::query("select set_config('attune.project_id', $1, true)")
        .bind(project.uuid().to_string())
        .execute(&mut *tx)
        .await?;
    Ok(tx)
}

/// A transaction that sees every project's rows: the platform's own work.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn platform(pool: &PgPool) -> Result<Tx, StoreError> {
    Ok(pool.begin().await?)
}

/// Brings the schema up to date: ours, then the queue's. Two processes may call it at once; sqlx takes a lock.
///
/// # Errors
/// [`StoreError::Migrate`]: a migration failed, or one that ran before has changed since.
pub async fn migrate(pool: &PgPool) -> Result<(), StoreError> {
    MIGRATOR.run(pool).await.map_err(|e| StoreError::Migrate(Box::new(e)))?;
    PostgresStorage::setup(pool).await.map_err(|e| StoreError::Migrate(Box::new(e)))
}

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
