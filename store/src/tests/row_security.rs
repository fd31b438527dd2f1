//! Row security: the database separates tenants, even for a statement without a condition.

use attune_domain::id::{OrganizationId, ProjectId};
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use crate::{
    db::{self, Tenant},
    files::file,
    queue,
    runs::report,
    tenancy::{api_key, tenant},
    testing::{self, Seed, claimed_run, new_job, queued_job, seed, started},
};

/// Tables without a tenant: the installation's own.
const UNTENANTED: [&str; 8] =
    ["_sqlx_migrations", "leadership", "loose_blob", "node", "offer", "pool_load", "provider", "replica"];

async fn names(conn: &mut PgConnection, query: &'static str) -> Vec<String> {
    sqlx::query_scalar(query).fetch_all(conn).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn every_table_of_tenants_is_protected_and_forced(pool: PgPool) {
    seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let open = names(
        &mut conn,
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
             and not (relrowsecurity and relforcerowsecurity
                 and exists (select from pg_policy where polrelid = pg_class.oid
                     and polroles @> array['attune_app'::regrole::oid])) order by 1",
    )
    .await;
    assert_eq!(open, UNTENANTED, "a new table calls protect_tenant_table or protect_child_table in its migration");
    let loose = names(
        &mut conn,
        "select polrelid::regclass::text from pg_policy
         where polroles && array['attune_app'::regrole::oid, 0::oid]
             and coalesce(pg_get_expr(polqual, polrelid), '') !~ 'tenant_|parent|EXISTS'
             and coalesce(pg_get_expr(polwithcheck, polrelid), '') !~ 'tenant_|parent|EXISTS'",
    )
    .await;
    assert_eq!(loose, [""; 0], "a policy for the application that asks for no tenant");
}

/// Tables that the application writes without an audit log: rows that belong to an audited change, the platform's own
/// records, and rows that are no change by a user.
const UNAUDITED: [&str; 21] = [
    "adapter",            // created with its first version
    "adapter_alias_move", // created with the alias's move
    "adapter_traffic",
    "audit_log",
    "base_model_file", // created with the model
    "batch_answer",
    "checkpoint",
    "deployment_use", // created with the deployment
    "export_file",
    "idempotency_key",
    "job_event",
    "loose_blob",
    "outbox",
    "person", // created with its membership
    "project_blob",
    "run",
    "run_blob",
    "upload_part", // created with the upload
    "usage",
    "webhook_attempt",
    "webhook_delivery",
];

#[sqlx::test(migrations = false)]
async fn what_users_change_is_audited(pool: PgPool) {
    seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let silent = names(
        &mut conn,
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
             and has_table_privilege('attune_app', oid, 'insert, update, delete')
             and not exists (select from pg_trigger where tgrelid = pg_class.oid and tgname = 'note_change')
         order by 1",
    )
    .await;
    assert_eq!(silent, UNAUDITED, "a table that users change calls audit_table in its migration");
}

#[sqlx::test(migrations = false)]
async fn the_applications_roles_own_nothing_and_pass_no_policy(pool: PgPool) {
    seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let mighty = names(
        &mut conn,
        "select rolname::text from pg_roles where rolname in ('attune_app', 'attune_platform')
             and (rolsuper or rolbypassrls or rolcanlogin or rolcreaterole or rolcreatedb
                 or exists (select from pg_class where relowner = pg_roles.oid)
                 or exists (select from pg_proc where proowner = pg_roles.oid)
                 or has_schema_privilege(pg_roles.oid, 'public', 'create'))",
    )
    .await;
    assert_eq!(mighty, [""; 0]);
}

#[sqlx::test(migrations = false)]
async fn who_names_no_tenant_sees_no_row_and_writes_none(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut nobody = pool.begin_with("begin; set local role attune_app").await.unwrap();
    for table in ["file", "job", "adapter_version", "job_event", "run", "checkpoint", "project", "organization"] {
        assert_eq!(count(&mut nobody, table).await, 0, "{table}");
    }
    let new = file::NewFile {
        filename: "x".into(),
        purpose: "fine-tune".into(),
        bytes: attune_domain::bytes::Bytes(1),
        sha256: testing::sha256('e'),
        dataset: None,
        expires_after_seconds: None,
    };
    let refused = file::insert(&mut nobody, seed.project_id, new).await.unwrap_err();
    assert!(format!("{refused:?}").contains("row-level security"), "{refused:?}");
}

#[sqlx::test(migrations = false)]
async fn a_statement_that_forgets_the_tenant_still_finds_only_its_own(pool: PgPool) {
    let (seed, other) = two_projects(&pool).await;
    let mut mine = db::tenant(&pool, seed.project_id).await.unwrap();
    let mut theirs = db::tenant(&pool, other).await.unwrap();
    for (table, rows) in [("file", 1), ("job", 1), ("run", 1), ("adapter_version", 1), ("project", 1), ("api_key", 1)] {
        assert_eq!(count(&mut mine, table).await, rows, "{table}");
    }
    for table in ["file", "job", "run", "job_event", "checkpoint", "adapter_version"] {
        assert_eq!(count(&mut theirs, table).await, 0, "{table}");
    }
    assert_eq!((count(&mut theirs, "project").await, count(&mut theirs, "organization").await), (1, 1));
    let stolen =
        sqlx::query("update file set project_id = $1").bind(other.uuid()).execute(&mut *mine).await.unwrap_err();
    assert!(stolen.to_string().contains("row-level security"), "{stolen}");
    let renamed = sqlx::query("update project set name = 'x'").execute(&mut *theirs).await.unwrap();
    assert_eq!(renamed.rows_affected(), 0, "a project does not rename itself");
    for own in ["node", "replica"] {
        let refused = sqlx::query("select from pg_class where has_table_privilege($1, 'select') limit 1")
            .bind(own)
            .fetch_optional(&mut *theirs)
            .await
            .unwrap();
        assert!(refused.is_none(), "{own} is the platform's alone");
    }
    let mut platform = db::platform(&pool).await.unwrap();
    assert_eq!((count(&mut platform, "project").await, count(&mut platform, "job").await), (2, 1));
}

#[sqlx::test(migrations = false)]
async fn an_organizations_administration_sees_its_projects_and_no_other(pool: PgPool) {
    let (seed, _) = two_projects(&pool).await;
    let mut conn = pool.acquire().await.unwrap();
    tenant::ensure(&mut conn, "elsewhere", "default").await.unwrap();
    let ours: Uuid = sqlx::query_scalar("select organization_id from project where project_id = $1")
        .bind(seed.project_id.uuid())
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    let mut tx = db::scoped(&pool, Tenant::Organization(OrganizationId::new(ours)), None).await.unwrap();
    assert_eq!((count(&mut tx, "project").await, count(&mut tx, "organization").await), (2, 1));
    assert_eq!(count(&mut tx, "api_key").await, 1);
    assert_eq!(count(&mut tx, "file").await, 0, "to administer is not to read datasets");
}

/// Logs in like a real installation: neither superuser nor owner, member of both roles, inheriting neither.
#[sqlx::test(migrations = false)]
async fn a_login_that_owns_nothing_works_through_the_roles_alone(pool: PgPool) {
    let (seed, _) = two_projects(&pool).await;
    let login = format!("login_{}", Uuid::new_v4().simple());
    let mut conn = pool.acquire().await.unwrap();
    sqlx::query("select set_config('attune.test_login', $1, false)").bind(&login).execute(&mut *conn).await.unwrap();
    sqlx::raw_sql(
        "do $$ begin execute format('create role %I login noinherit in role attune_app, attune_platform',
             current_setting('attune.test_login')); end $$",
    )
    .execute(&mut *conn)
    .await
    .unwrap();
    let options = (*pool.connect_options()).clone().username(&login);
    let restricted = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    let refused = sqlx::query("select from file").execute(&restricted).await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");

    let mut tx = db::tenant(&restricted, seed.project_id).await.unwrap();
    let job = new_job(&mut tx, seed).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = db::platform(&restricted).await.unwrap();
    assert_eq!(testing::messages::<queue::ValidateJob>(&mut tx).await.unwrap(), 2, "a tenant's job is on the queue");
    crate::jobs::job::load(&mut tx, job).await.unwrap();
    drop(tx);
    let refused = sqlx::query("select from file").execute(&restricted).await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "the role ends with the transaction: {refused}");
    restricted.close().await;
    sqlx::raw_sql("do $$ begin execute format('drop role %I', current_setting('attune.test_login')); end $$")
        .execute(&mut *conn)
        .await
        .unwrap();
}

/// Creates a project with a file, a key, and a job that has published an adapter; and an empty one.
async fn two_projects(pool: &PgPool) -> (Seed, ProjectId) {
    let seed = seed(pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap().project_id;
    api_key::ensure(&mut conn, seed.project_id, "first", "x").await.unwrap();
    let job = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, job).await.unwrap();
    let events = [started(), testing::published()];
    report::take(&mut conn, run.run_id, &testing::report(&run, 0, &events)).await.unwrap();
    (seed, other)
}

async fn count(conn: &mut PgConnection, table: &str) -> i64 {
    let query = match table {
        "file" => "select count(*) from file",
        "job" => "select count(*) from job",
        "run" => "select count(*) from run",
        "job_event" => "select count(*) from job_event",
        "checkpoint" => "select count(*) from checkpoint",
        "adapter_version" => "select count(*) from adapter_version",
        "project" => "select count(*) from project",
        "api_key" => "select count(*) from api_key",
        "organization" => "select count(*) from organization",
        other => panic!("count {other} how?"),
    };
    sqlx::query_scalar(query).fetch_one(conn).await.unwrap()
}
