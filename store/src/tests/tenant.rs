//! Tenants: a project sees its own rows, and no others.

use attune_domain::{access::Scope, bytes::Bytes};
use sqlx::PgPool;

use crate::{
    adapters::{
        adapter::{self, Model},
        base_model::{self, NewBaseModel},
    },
    error::StoreError,
    files::file::{self, NewFile, Page},
    ids,
    runs::report,
    tenancy::{api_key, tenant},
    testing::{self, claimed_run, new_job, queued_job, seed, started},
};

#[sqlx::test(migrations = false)]
async fn a_key_authorizes_until_it_is_revoked(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let hash = ids::hash("sk-attune-secret");
    for _ in 0..2 {
        api_key::ensure(&mut conn, seed.project_id, "first", "sk-attune-secret").await.unwrap();
    }
    let grant = api_key::by_hash(&mut conn, &hash).await.unwrap().unwrap();
    assert_eq!((grant.holder.project_id, grant.holder.project.as_str()), (seed.project_id, "default"));
    assert_eq!(
        grant.scopes,
        [Scope::All, Scope::Admin, Scope::Installation],
        "a key that was configured may do everything"
    );
    api_key::touch(&mut conn, grant.holder.api_key_id.unwrap()).await.unwrap();
    assert!(api_key::by_hash(&mut conn, &ids::hash("sk-attune-other")).await.unwrap().is_none());
    assert_eq!(grant.expires_in, None);
    sqlx::query("update api_key set expires_at = now() + interval '1 hour'").execute(&mut *conn).await.unwrap();
    let rest = api_key::by_hash(&mut conn, &hash).await.unwrap().unwrap().expires_in.unwrap();
    assert!((3_500..=3_600).contains(&rest.as_secs()), "{rest:?}");
    sqlx::query("update api_key set expires_at = now()").execute(&mut *conn).await.unwrap();
    assert!(api_key::by_hash(&mut conn, &hash).await.unwrap().is_none(), "expired");
    sqlx::query("update api_key set expires_at = null").execute(&mut *conn).await.unwrap();
    sqlx::query("update api_key set revoked_at = now()").execute(&mut *conn).await.unwrap();
    assert!(api_key::by_hash(&mut conn, &hash).await.unwrap().is_none());
}

#[sqlx::test(migrations = false)]
async fn another_projects_files_and_adapters_do_not_exist(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap().project_id;
    let job = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, job).await.unwrap();
    let events = [started(), testing::published()];
    report::take(&mut conn, run.run_id, &testing::report(&run, 0, &events)).await.unwrap();

    let page = Page { after: None, limit: 10, ascending: false };
    let mine = file::list(&mut conn, seed.project_id, None, &page).await.unwrap();
    assert_eq!(mine.len(), 1);
    assert!(file::list(&mut conn, other, None, &page).await.unwrap().is_empty());
    assert!(file::get(&mut conn, seed.project_id, seed.file_id).await.is_ok());
    for refused in [
        file::get(&mut conn, other, seed.file_id).await.err(),
        file::lock_for_job(&mut conn, other, seed.file_id).await.err(),
        file::delete(&mut conn, other, seed.file_id).await.err(),
    ] {
        assert!(matches!(refused, Some(StoreError::NotFound("file"))), "{refused:?}");
    }

    let version = adapter::list(&mut conn, seed.project_id, None, None, 10).await.unwrap().remove(0);
    let name = version.model_name.clone();
    assert!(adapter::list(&mut conn, other, None, None, 10).await.unwrap().is_empty());
    assert!(adapter::get(&mut conn, other, version.adapter_version_id).await.is_err());
    assert!(adapter::find(&mut conn, other, &name).await.is_err());
    assert!(adapter::resolve(&mut conn, other, &name).await.is_err());
    assert!(adapter::delete(&mut conn, other, &name).await.is_err());
    assert_eq!(adapter::resolve(&mut conn, seed.project_id, &name).await.unwrap(), Model::Tuned(version));
    assert!(matches!(adapter::resolve(&mut conn, other, "tiny").await.unwrap(), Model::Base(_)));

    assert_eq!(adapter::delete(&mut conn, seed.project_id, &name).await.unwrap(), None);
    assert!(adapter::resolve(&mut conn, seed.project_id, &name).await.is_err());
}

#[sqlx::test(migrations = false)]
async fn a_file_that_a_job_needs_stays(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let job = new_job(&mut conn, seed).await.unwrap();
    assert_eq!(file::delete(&mut conn, seed.project_id, seed.file_id).await.unwrap(), Some(job));
    crate::jobs::job::cancel(&mut conn, seed.project_id, job).await.unwrap();
    assert_eq!(file::delete(&mut conn, seed.project_id, seed.file_id).await.unwrap(), None);
    assert!(file::get(&mut conn, seed.project_id, seed.file_id).await.is_err());
}

#[sqlx::test(migrations = false)]
async fn a_base_models_name_is_taken_once(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let tiny = base_model::get(&mut conn, seed.base_model_id).await.unwrap();
    let new = NewBaseModel { name: "tiny", architecture: &tiny.architecture, files: &[], origin: None, license: None };
    let again = base_model::insert(&mut conn, None, &new).await.unwrap_err();
    assert!(again.on_constraint(base_model::INSTALLATION_NAME_KEY), "{again}");
    assert_eq!(base_model::files(&mut conn, seed.base_model_id).await.unwrap(), [testing::blob("config.json", 'c')]);
}

#[sqlx::test(migrations = false)]
async fn a_file_goes_when_its_time_is_up_but_not_before_the_job_that_needs_it(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let note = NewFile {
        filename: "note.pdf".into(),
        purpose: "user_data".into(),
        bytes: Bytes(3),
        sha256: testing::sha256('a'),
        dataset: None,
        expires_after_seconds: Some(3600),
    };
    let note = file::insert(&mut conn, seed.project_id, note).await.unwrap();
    assert_eq!((note.expires_at.unwrap() - note.created_at).num_seconds(), 3600);
    assert_eq!(file::get(&mut conn, seed.project_id, note.file_id).await.unwrap(), note);
    let job = new_job(&mut conn, seed).await.unwrap();
    assert_eq!(file::expire(&mut conn).await.unwrap().gone, 0);

    sqlx::query("update file set expires_at = now() - interval '1 second'").execute(&mut *conn).await.unwrap();
    let page = Page { after: None, limit: 10, ascending: false };
    assert!(file::list(&mut conn, seed.project_id, None, &page).await.unwrap().is_empty());
    assert!(file::get(&mut conn, seed.project_id, note.file_id).await.is_err());
    assert!(file::delete(&mut conn, seed.project_id, note.file_id).await.is_err());
    assert!(file::of_job(&mut conn, seed.project_id, seed.file_id).await.is_ok());
    assert_eq!(file::expire(&mut conn).await.unwrap().gone, 1, "the job's file stays");
    crate::jobs::job::cancel(&mut conn, seed.project_id, job).await.unwrap();
    assert_eq!(file::expire(&mut conn).await.unwrap().gone, 1);
    assert_eq!(file::expire(&mut conn).await.unwrap().gone, 0);
}
