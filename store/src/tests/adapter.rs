//! Adapters: version numbers, manifests, aliases.

use attune_domain::{
    id::{JobId, ProjectId},
    manifest::{Manifest, Origin},
    spec::{AdapterSpec, Quantization},
};
use sqlx::{PgConnection, PgPool};

use crate::{
    adapters::{
        adapter::{self, AdapterVersion, Model, Needed},
        adapter_alias::{self, Outcome},
        adapter_version::{self, NewVersion},
        base_model,
    },
    ids,
    jobs::job,
    runs::report,
    testing::{Seed, blob, claimed_run, published, queued_job, report as says, seed, sha256, started, stepped},
};

/// Imports a version of `name` with one file of this digit.
pub(super) async fn imported(conn: &mut PgConnection, seed: Seed, name: &str, digit: char) -> AdapterVersion {
    let new = NewVersion {
        project_id: seed.project_id,
        adapter: name.into(),
        base: base_model::get(conn, seed.base_model_id).await.unwrap(),
        quantization: Quantization::None,
        job_id: None,
        suffix: Some(name.into()),
        spec: AdapterSpec::lora(4, 8.0, &["q_proj"]),
        files: vec![blob("adapter_model.safetensors", digit)],
        chat_template_sha256: None,
        origin: Origin::Import { brought: None },
    };
    adapter_version::insert(conn, new).await.unwrap()
}

async fn trained(conn: &mut PgConnection, seed: Seed) -> (JobId, AdapterVersion) {
    let id = queued_job(conn, seed).await.unwrap();
    let run = claimed_run(conn, id).await.unwrap();
    let events = [started(), stepped(1), stepped(2), published()];
    report::take(conn, run.run_id, &says(&run, 0, &events)).await.unwrap();
    let name = job::load(conn, id).await.unwrap().fine_tuned_model.unwrap();
    (id, adapter::find(conn, seed.project_id, &name).await.unwrap())
}

#[sqlx::test(migrations = false)]
async fn jobs_and_imports_of_one_name_are_versions_of_one_adapter(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (_, first) = trained(&mut conn, seed).await;
    let second = imported(&mut conn, seed, "mail", '1').await;
    let other = imported(&mut conn, seed, "other", '1').await;
    assert_eq!((first.adapter.as_str(), first.version, second.version, other.version), ("mail", 1, 2, 1));
    assert_eq!(first.adapter_id, second.adapter_id);
    assert_eq!((first.digest == second.digest, second.digest == other.digest), (false, true), "by content");
    assert_eq!(second.digest, base_model::digest(&[blob("adapter_model.safetensors", '1')]));
    let held = adapter_version::by_digest(&mut conn, seed.project_id, "mail", second.digest, Quantization::None)
        .await
        .unwrap();
    assert_eq!(held, Some(2));

    for (named, version) in [("mail", 2), ("mail@1", 1), ("mail@2", 2), (&*first.model_name, 1), ("other", 1)] {
        assert_eq!(adapter::find(&mut conn, seed.project_id, named).await.unwrap().version, version, "{named}");
    }
    for named in ["mail@3", "mail@0", "mail@2x", "mail@99999999999", "mail@prod", "mail@", "@1", "nobody", ""] {
        assert!(adapter::find(&mut conn, seed.project_id, named).await.is_err(), "{named}");
    }
    let versions = adapter::list(&mut conn, seed.project_id, Some("mail"), None, 10).await.unwrap();
    assert_eq!(versions.iter().map(|found| found.version).collect::<Vec<_>>(), [2, 1]);

    assert_eq!(adapter::delete(&mut conn, seed.project_id, "mail@2").await.unwrap(), None);
    assert_eq!(imported(&mut conn, seed, "mail", '2').await.version, 3, "a number is given once");
}

#[sqlx::test(migrations = false)]
async fn the_manifest_says_where_a_version_comes_from(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (id, made) = trained(&mut conn, seed).await;
    let manifest: Manifest = serde_json::from_str(made.manifest.as_deref().unwrap()).unwrap();
    let base = base_model::get(&mut conn, seed.base_model_id).await.unwrap();
    assert_eq!((manifest.base_model.name, manifest.base_model.digest), (base.name, base.digest));
    assert_eq!((manifest.id, manifest.version, manifest.digest), (made.adapter_version_id, 1, made.digest));
    assert_eq!(manifest.files, made.files);
    let Origin::Job(training) = manifest.origin else { panic!("no job") };
    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((training.job, training.seed, &training.train), (id, job.spec.seed, &job.spec));
    assert_eq!((training.training_data.sha256, training.training_data.rows), (sha256('f'), Some(100)));
    assert_eq!((training.run.provider.as_str(), training.run.offer.as_str()), ("local", "this machine"));
    assert_eq!((training.metrics.train_loss, training.metrics.trained_tokens), (Some(0.81), 6000));
    assert_eq!(training.metrics.steps, 2);
}

#[sqlx::test(migrations = false)]
async fn an_alias_moves_only_from_what_was_expected_and_every_move_is_kept(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let project = seed.project_id;
    let (one, two) = (imported(&mut conn, seed, "house", '1').await, imported(&mut conn, seed, "house", '2').await);
    let (first, second) = (one.adapter_version_id, two.adapter_version_id);
    for (to, expected, outcome) in [
        (&one, Some(Some(second)), Outcome::Differs(None)),
        (&one, Some(None), Outcome::Moved),
        (&two, Some(None), Outcome::Differs(Some(first))),
        (&two, Some(Some(first)), Outcome::Moved),
        (&two, Some(Some(second)), Outcome::Same),
        (&one, None, Outcome::Moved),
    ] {
        assert_eq!(adapter_alias::set(&mut conn, project, "prod", to, expected).await.unwrap(), outcome);
    }
    let Model::Tuned(found) = adapter::resolve(&mut conn, project, "house@prod").await.unwrap() else { panic!() };
    assert_eq!((found.adapter_version_id, found.aliases), (first, vec!["prod".to_owned()]));
    let stranger: ProjectId = ids::id();
    assert!(adapter::resolve(&mut conn, stranger, "house@prod").await.is_err());
    assert!(adapter::resolve(&mut conn, project, "house").await.is_err(), "a lineage is no model");
    assert!(adapter_alias::list(&mut conn, stranger, "house", None).await.unwrap().is_empty());

    let needed = Needed::Alias("house@prod".into());
    assert_eq!(adapter::delete(&mut conn, project, "house@1").await.unwrap(), Some(needed));
    adapter_alias::remove(&mut conn, project, one.adapter_id, "prod").await.unwrap();
    assert!(adapter::resolve(&mut conn, project, "house@prod").await.is_err());
    assert_eq!(adapter::delete(&mut conn, project, "house@1").await.unwrap(), None);
    let moves = adapter_alias::history(&mut conn, project, ("house", "prod"), None, 10).await.unwrap();
    let moves: Vec<_> = moves.into_iter().map(|step| (step.from, step.to)).collect();
    let (first, second) = (Some(first), Some(second));
    assert_eq!(moves, [(first, None), (second, first), (first, second), (None, first)]);
}

#[sqlx::test(migrations = false)]
async fn of_two_who_move_an_alias_from_the_same_version_one_is_refused(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let versions = [imported(&mut conn, seed, "house", '1').await, imported(&mut conn, seed, "house", '2').await];
    let moved = async |to: &AdapterVersion| {
        let mut tx = pool.begin().await.unwrap();
        adapter_alias::lock(&mut tx, seed.project_id, "house").await.unwrap();
        let outcome = adapter_alias::set(&mut tx, seed.project_id, "prod", to, Some(None)).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        tx.commit().await.unwrap();
        outcome
    };
    let (a, b) = tokio::join!(moved(&versions[0]), moved(&versions[1]));
    let refused = [&a, &b].into_iter().filter(|outcome| matches!(outcome, Outcome::Differs(Some(_)))).count();
    assert_eq!((refused, a == Outcome::Moved || b == Outcome::Moved), (1, true), "{a:?} {b:?}");
}

#[sqlx::test(migrations = false)]
async fn two_versions_made_at_once_have_two_numbers(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let make = async |digit: char| {
        let mut tx = pool.begin().await.unwrap();
        let made = imported(&mut tx, seed, "house", digit).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        tx.commit().await.unwrap();
        made.version
    };
    let (a, b) = tokio::join!(make('1'), make('2'));
    assert_eq!(a + b, 3, "{a} and {b}");
}
