//! Events are written in the transaction of the change that they report.

use sqlx::PgPool;

use crate::{
    jobs::job,
    runs::report,
    testing::{self, checkpointed, claimed_run, new_job, published, queued_job, report as says, seed, started},
};

async fn told(pool: &PgPool) -> Vec<(String, serde_json::Value)> {
    sqlx::query_as("select type, data from outbox order by event_id").fetch_all(pool).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn each_step_of_a_job_is_reported_with_its_id(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    let events = [started(), testing::stepped(1), checkpointed(1, 'a'), published()];
    report::take(&mut conn, run.run_id, &says(&run, 0, &events)).await.unwrap();
    let told = told(&pool).await;
    let types: Vec<&str> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    let steps = ["created", "queued", "provisioning", "running"].map(|step| format!("fine_tuning.job.{step}"));
    assert_eq!(types[..4], steps);
    let ends = ["fine_tuning.checkpoint.created", "adapter_version.created", "fine_tuning.job.succeeded"];
    assert_eq!(types[4..], ends);
    for (_, data) in told.iter().filter(|(kind, _)| kind.starts_with("fine_tuning.job.")) {
        assert_eq!(*data, serde_json::json!({ "id": id }));
    }
    assert_eq!(told[4].1["fine_tuning_job"], id.to_string());
    assert!(told[5].1["model"].as_str().unwrap().starts_with("ft:tiny:default:mail:"), "{}", told[5].1);
}

#[sqlx::test(migrations = false)]
async fn what_did_not_happen_is_not_reported(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let id = new_job(&mut tx, seed).await.unwrap();
    job::cancel(&mut tx, seed.project_id, id).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(told(&pool).await, []);
}
