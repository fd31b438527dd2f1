//! Connections of the pool: a transaction leaves a clean connection behind whenever its future is dropped, and a task
//! holds one connection at a time.
//!
//! sqlx 0.9.0 returns a connection to the pool inside an open transaction if the future that begins it is dropped
//! between the `begin` and its answer (launchbadge/sqlx#4385). `Beginning` owns the connection for that time.

use std::{
    collections::HashSet,
    ops::{Deref, DerefMut},
    sync::{LazyLock, Mutex, PoisonError},
    time::Instant,
};

use attune_process::failpoint::FailPoint;
use attune_process::metrics::DB_WAIT_SECONDS;
use sqlx::{Database, PgConnection, PgPool, Postgres, SqlStr, pool::PoolConnection};
use sqlx_core::transaction::TransactionManager;
use tokio::{runtime::Handle, task};

use crate::error::StoreError;

type Manager = <Postgres as Database>::TransactionManager;

/// A transaction; uncommitted changes are rolled back.
#[derive(Debug)]
pub struct Tx {
    connection: PoolConnection<Postgres>,
    is_open: bool,
    has_savepoint: bool,
    _held: Held,
}

impl Tx {
    /// Begins a transaction with `statement`, in one round trip.
    ///
    /// # Errors
    /// [`StoreError::Database`]. [`StoreError::Nested`]: the task holds a connection already.
    pub(crate) async fn begin(pool: &PgPool, statement: SqlStr) -> Result<Self, StoreError> {
        let held = Held::one()?;
        let beginning = Beginning(Some(acquire(pool).await?));
        let connection = beginning.finish(statement).await?;
        Ok(Self { connection, is_open: true, has_savepoint: false, _held: held })
    }

    /// Commits. If the future is dropped before the answer, the transaction is committed or rolled back as a whole.
    ///
    /// # Errors
    /// [`StoreError::Database`]: the outcome is unknown.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        Manager::commit(&mut self.connection).await?;
        self.is_open = false;
        Ok(())
    }

    /// Commits, with fail points around it.
    ///
    /// # Errors
    /// As [`Tx::commit`].
    pub async fn commit_at(self, point: FailPoint) -> Result<(), StoreError> {
        self.commit_at_all(&[point]).await
    }

    /// Commits, with the fail points of everything that was changed around it.
    ///
    /// # Errors
    /// As [`Tx::commit`].
    pub async fn commit_at_all(self, points: &[FailPoint]) -> Result<(), StoreError> {
        points.iter().for_each(|point| point.before());
        self.commit().await?;
        points.iter().for_each(|point| point.after());
        Ok(())
    }

    /// Sets the savepoint; it replaces the previous one.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn savepoint(&mut self) -> Result<(), StoreError> {
        // One round trip. sqlx need not know of it: a rollback of the transaction ends it too.
        let statement = match self.has_savepoint {
            true => "release savepoint part; savepoint part",
            false => "savepoint part",
        };
        sqlx::raw_sql(statement).execute(&mut *self.connection).await?;
        self.has_savepoint = true;
        Ok(())
    }

    /// Rolls back to the savepoint, which remains.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn rollback_to_savepoint(&mut self) -> Result<(), StoreError> {
        sqlx::raw_sql("rollback to savepoint part").execute(&mut *self.connection).await?;
        Ok(())
    }

    /// Rolls back.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn rollback(mut self) -> Result<(), StoreError> {
        Manager::rollback(&mut self.connection).await?;
        self.is_open = false;
        Ok(())
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if self.is_open {
            // Queued here, and sent by the pool before the connection is used again.
            Manager::start_rollback(&mut self.connection);
        }
    }
}

/// A connection whose `begin` may be on its way to the server. Empty once the transaction is open.
struct Beginning(Option<PoolConnection<Postgres>>);

impl Beginning {
    async fn finish(mut self, statement: SqlStr) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let Some(connection) = &mut self.0 else { return Err(sqlx::Error::PoolClosed) };
        let begun = Manager::begin(connection, Some(statement)).await;
        let mut connection = self.0.take().ok_or(sqlx::Error::PoolClosed)?;
        if begun.is_err() {
            // The server may have executed the first of the statement's commands.
            connection.close_on_drop();
        }
        begun.map(|()| connection)
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let (Some(mut connection), Ok(runtime)) = (self.0.take(), Handle::try_current()) else { return };
        runtime.spawn(async move {
            // Waits for the answer to the `begin`, then ends the transaction that it opened.
            if sqlx::raw_sql("rollback").execute(&mut *connection).await.is_err() {
                connection.close_on_drop();
            }
        });
    }
}

/// A connection outside of a transaction: each statement commits on its own.
#[derive(Debug)]
pub struct Single {
    connection: PoolConnection<Postgres>,
    _held: Held,
}

impl Single {
    /// Acquires a connection from the pool.
    ///
    /// # Errors
    /// As [`Tx::begin`].
    pub(crate) async fn take(pool: &PgPool) -> Result<Self, StoreError> {
        let held = Held::one()?;
        Ok(Self { connection: acquire(pool).await?, _held: held })
    }
}

impl Deref for Single {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Single {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

async fn acquire(pool: &PgPool) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    let began = Instant::now();
    let acquired = pool.acquire().await;
    let outcome = if acquired.is_ok() { "ok" } else { "error" };
    DB_WAIT_SECONDS.observe([outcome], began.elapsed().as_secs_f64());
    acquired
}

/// The tasks that hold a connection, in builds with debug assertions.
static HOLDERS: LazyLock<Mutex<HashSet<task::Id>>> = LazyLock::new(Mutex::default);

/// A task's right to one connection. Tasks that each hold one and wait for another deadlock as soon as the pool is
/// exhausted; builds with debug assertions, which all tests run, refuse the second one immediately.
#[derive(Debug)]
struct Held(Option<task::Id>);

impl Held {
    fn one() -> Result<Self, StoreError> {
        let task = if cfg!(debug_assertions) { task::try_id() } else { None };
        if task.is_some_and(|id| !HOLDERS.lock().unwrap_or_else(PoisonError::into_inner).insert(id)) {
            tracing::error!(at = %std::backtrace::Backtrace::force_capture(), "a task requested a second connection");
            return Err(StoreError::Nested);
        }
        Ok(Self(task))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(task) = self.0 {
            HOLDERS.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
        }
    }
}
