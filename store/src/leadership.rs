//! The leader among the schedulers: a lock that ends with its connection, and a term that fences the leader's writes.
//!
//! The lock makes a restart fast: it is free as soon as the previous leader's connection has ended. The term makes it
//! safe: a scheduler that was suspended, or whose connection was lost, finds another term in its next transaction.

use attune_process::failpoint::{FailPoint, Guard};
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection, PgPool, SqlSafeStr, postgres::PgConnectOptions};

use crate::{config::DatabaseConfig, connection::Tx, error::StoreError};

/// The advisory lock's number: "attune" in ASCII.
const LEADERSHIP: i64 = 0x61_74_74_75_6e_65;

/// The number of the lock that fenced transactions share, and that a new leader takes alone: "attunf" in ASCII.
const FENCE: i64 = LEADERSHIP + 1;

/// The time in seconds without a sign of life after which another scheduler ends the leader's connection.
const SILENT_SECONDS: f64 = 20.0;

/// The beginning of a fenced transaction. The lock must be held before the statement that reads the term begins. The
/// database ends such a transaction after 10 s without a statement; until then it holds back the next leader.
const BEGIN: &str = "begin; set local idle_in_transaction_session_timeout = '10s'; \
                     select pg_advisory_xact_lock_shared(107152797953638)";
const _: () = assert!(FENCE == 107_152_797_953_638, "the number in BEGIN");

/// The number of a leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term(i64);

impl Term {
    /// Creates the term of this number.
    #[must_use]
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// Returns the number.
    #[must_use]
    pub const fn number(self) -> i64 {
        self.0
    }

    /// Begins a transaction of the leader, in the role that the pool's connections log in with. No other leader begins
    /// before it ends.
    ///
    /// # Errors
    /// [`StoreError::Deposed`]: another scheduler leads. [`StoreError::Database`], [`StoreError::Nested`].
    pub async fn begin(self, pool: &PgPool) -> Result<Tx, StoreError> {
        let mut tx = Tx::begin(pool, BEGIN.into_sql_str()).await?;
        let current = sqlx::query_scalar!("select term from leadership").fetch_one(&mut *tx).await?;
        if current != self.0 && Guard::LeaderTerm.is_on() {
            return Err(StoreError::Deposed);
        }
        Ok(tx)
    }
}

/// The leadership of this process. The lock ends with it.
#[derive(Debug)]
pub struct Leadership {
    connection: PgConnection,
    term: Term,
}

impl Leadership {
    /// Tries once to lead; `None`: another process does. Ends the connection of a leader without a sign of life, so
    /// that the next attempt can succeed.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn try_take(config: &DatabaseConfig) -> Result<Option<Self>, StoreError> {
        Self::try_take_with(&config.url.expose_secret().parse()?).await
    }

    /// As [`try_take`](Self::try_take), with the options of a connection.
    pub(crate) async fn try_take_with(options: &PgConnectOptions) -> Result<Option<Self>, StoreError> {
        let mut connection = PgConnection::connect_with(options).await?;
        let taken = sqlx::query_scalar!(r#"select pg_try_advisory_lock($1) as "taken!""#, LEADERSHIP)
            .fetch_one(&mut connection)
            .await?;
        sqlx::query("set role attune_platform").execute(&mut connection).await?;
        if !taken {
            if is_silent(&mut connection).await? {
                end_leader(&mut connection).await?;
            }
            return Ok(None);
        }
        let term = next_term(&mut connection).await?;
        Ok(Some(Self { connection, term }))
    }

    /// Returns the term.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// Returns the connection that holds the lock.
    #[cfg(test)]
    pub(crate) const fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Records a sign of life. Returns whether this process still leads.
    ///
    /// # Errors
    /// [`StoreError::Database`]: the connection is lost, and with it the lock.
    pub async fn renew(&mut self) -> Result<bool, StoreError> {
        let renewed = sqlx::query!("update leadership set seen_at = clock_timestamp() where term = $1", self.term.0)
            .execute(&mut self.connection)
            .await?;
        Ok(renewed.rows_affected() > 0)
    }
}

/// Begins another term, as another scheduler does.
///
/// # Errors
/// [`StoreError::Database`].
#[cfg(any(test, feature = "testing"))]
pub async fn depose(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("update leadership set term = term + 1").execute(conn).await?;
    Ok(())
}

/// Begins the next term, after the open transactions of the previous one.
async fn next_term(connection: &mut PgConnection) -> Result<Term, StoreError> {
    let mut tx = connection.begin().await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(FENCE).execute(&mut *tx).await?;
    let term = sqlx::query_scalar!(
        "update leadership set term = term + 1, taken_at = clock_timestamp(), seen_at = clock_timestamp()
         returning term",
    )
    .fetch_one(&mut *tx)
    .await?;
    FailPoint::LeaderTake.before();
    tx.commit().await?;
    FailPoint::LeaderTake.after();
    Ok(Term(term))
}

/// Returns whether the leader has given no sign of life for a while.
async fn is_silent(connection: &mut PgConnection) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select seen_at < clock_timestamp() - make_interval(secs => $1) as "silent!" from leadership"#,
        SILENT_SECONDS,
    )
    .fetch_one(connection)
    .await?)
}

/// Ends the connection that holds the leadership. The login role may end its own connections, and no others.
async fn end_leader(connection: &mut PgConnection) -> Result<(), StoreError> {
    tracing::warn!("the leader has given no sign of life for {SILENT_SECONDS} s; its connection is ended");
    sqlx::query("reset role").execute(&mut *connection).await?;
    sqlx::query(
        "select pg_terminate_backend(pid) from pg_locks
         where locktype = 'advisory' and granted and objsubid = 1
             and classid = ($1::bigint >> 32)::oid and objid = ($1::bigint & 4294967295)::oid
             and database = (select oid from pg_database where datname = current_database())",
    )
    .bind(LEADERSHIP)
    .execute(connection)
    .await?;
    Ok(())
}
