//! The lifecycle of an export.

use attune_domain::{
    bytes::Bytes,
    export::{BaseWeights, Drift, ExportDtype, ExportFormat, ExportSpec, ExportState},
    id::{ExportId, NodeId},
    run::{Blob, Directive, Report, RunEvent},
    spec::{AdapterSpec, Quantization},
};
use sqlx::{Connection, PgConnection, PgPool};

use crate::{
    error::StoreError,
    exports::{
        export::{self, NewExport},
        export_end::{self, Blame, LOST, Lost, MOST_ATTEMPTS, MOST_INTERRUPTIONS},
        export_file,
        export_run::{self, Placed, Placement},
        export_task::{self, Gone},
    },
    files::{file, storage},
    queue::EnsureExport,
    runs::node,
    tenancy::tenant,
    testing::{self, Seed, blob, replicas, seed, unreachable_objects},
};

async fn requested(conn: &mut PgConnection, seed: Seed) -> ExportId {
    export::insert(conn, seed.project_id, &new_export(seed)).await.unwrap().export_id
}

fn new_export(seed: Seed) -> NewExport {
    let spec = ExportSpec {
        format: ExportFormat::Merged,
        dtype: ExportDtype::Bf16,
        base_weights: BaseWeights::Dequantized,
        shard_bytes: Bytes(1 << 30),
        imatrix: false,
    };
    NewExport {
        model_name: "ft:tiny:default:house:1".into(),
        base_model_id: seed.base_model_id,
        quantization: Quantization::Int8,
        adapter: AdapterSpec::lora(8, 16.0, &["q_proj"]),
        adapter_files: vec![blob("adapter_config.json", 'a')],
        manifest: None,
        spec,
        imatrix_file: None,
    }
}

async fn placed(conn: &mut PgConnection, id: ExportId) -> Option<Placed> {
    let placement = Placement { node: replicas::node(0), threads: 2, heartbeat_seconds: 10 };
    export_run::place(conn, id, &placement).await.unwrap()
}

/// Takes a report in a transaction of its own, as the API does: a refused one changes nothing.
async fn says(
    conn: &mut PgConnection,
    id: ExportId,
    (lease, first): (i64, u64),
    events: &[RunEvent],
) -> Result<Directive, StoreError> {
    let report = Report { run_lease: lease, first_sequence: first, events: events.to_vec() };
    let mut tx = conn.begin().await.unwrap();
    let reply = export_run::take(&mut tx, id, &report).await?;
    tx.commit().await.unwrap();
    Ok(reply.directive)
}

async fn nodes(conn: &mut PgConnection) -> Vec<(NodeId, bool)> {
    let nodes = node::active(conn, "local").await.unwrap();
    nodes.iter().map(|node| (node.node_id, node.is_orphan())).collect()
}

#[sqlx::test(migrations = false)]
async fn an_export_is_placed_reports_and_has_its_files(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = requested(&mut conn, seed).await;
    assert_eq!(testing::messages::<EnsureExport>(&mut conn).await.unwrap(), 1);
    let attempt = placed(&mut conn, id).await.unwrap();
    assert!(placed(&mut conn, id).await.is_none(), "it is not queued any more");
    assert_eq!(nodes(&mut conn).await, [(attempt.node_id, false)]);
    let held = export_run::by_token(&mut conn, &attempt.token).await.unwrap();
    assert_eq!((held.export_id, held.lease, held.state), (id, 1, ExportState::Running));
    let task = export_task::get(&mut conn, &unreachable_objects(), id).await.unwrap();
    assert_eq!((task.run_lease, task.adapter.len(), task.threads), (1, 1, 2));

    let progress = RunEvent::Exporting { done: Bytes(50), total: Bytes(200) };
    assert_eq!(says(&mut conn, id, (1, 0), &[progress]).await.unwrap(), Directive::Continue);
    let running = export::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!((running.done, running.total, running.files.len()), (Bytes(50), Some(Bytes(200)), 0));

    let file = Blob { name: "model.safetensors".into(), ..blob("x", 'b') };
    let drift = Drift { tokens: 9, max_logit_difference: 0.5, mean_kl_divergence: 0.25 };
    let exported = RunEvent::Exported { files: vec![file.clone()], drift: Some(drift), peak_memory: Bytes::mib(300) };
    let early = says(&mut conn, id, (1, 1), std::slice::from_ref(&exported)).await;
    assert!(matches!(early, Err(StoreError::NotGranted(name)) if name == "model.safetensors"));
    export_file::record(&mut conn, id, 1, std::slice::from_ref(&file)).await.unwrap();
    for _ in 0..2 {
        // The second report repeats the first, whose reply was lost.
        let end = says(&mut conn, id, (1, 1), std::slice::from_ref(&exported)).await;
        assert_eq!(end.unwrap(), Directive::Stop);
    }
    let done = export::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!((done.state, done.drift, &done.files), (ExportState::Succeeded, Some(drift), &vec![file]));
    assert!(done.expires_at > done.ended_at);
    assert!(nodes(&mut conn).await.is_empty());
    assert!(storage::stored(&mut conn, seed.project_id).await.unwrap().bytes >= Bytes(10));
}

#[sqlx::test(migrations = false)]
async fn a_lost_attempt_is_followed_by_another_one_until_all_are_used(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = requested(&mut conn, seed).await;
    for attempt in 1..=MOST_ATTEMPTS {
        placed(&mut conn, id).await.unwrap();
        let active = export_run::active(&mut conn, "local").await.unwrap();
        assert_eq!(active.len(), 1, "attempt {attempt}");
        lose(&mut conn, id, Blame::Export).await;
        assert!(placed(&mut conn, id).await.is_none(), "there is a pause");
        end_pause(&mut conn).await;
        assert!(nodes(&mut conn).await.is_empty());
        assert!(matches!(says(&mut conn, id, (1, 0), &[]).await, Err(StoreError::Stale)), "the lease is over");
    }
    let failed = export::get(&mut conn, seed.project_id, id).await.unwrap();
    let error = failed.error.unwrap();
    assert_eq!((failed.state, error.code.as_str()), (ExportState::Failed, LOST));
    assert!(error.message.contains("after 3 attempts"), "{}", error.message);
}

async fn lose(conn: &mut PgConnection, id: ExportId, blame: Blame) {
    export_end::lose(conn, id, &Lost { code: LOST, message: "its process ended", blame }).await.unwrap();
}

async fn end_pause(conn: &mut PgConnection) {
    sqlx::query("update export set next_try_at = now()").execute(conn).await.unwrap();
}

/// Returns the seconds until the next attempt.
async fn pause(conn: &mut PgConnection) -> f64 {
    let until = "select extract(epoch from next_try_at - now())::float8 from export";
    sqlx::query_scalar(until).fetch_one(conn).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn an_attempt_that_did_not_run_counts_among_no_maximum_and_is_followed_by_longer_pauses(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = requested(&mut conn, seed).await;
    let mut pauses = Vec::new();
    for _ in 0..MOST_INTERRUPTIONS + 5 {
        placed(&mut conn, id).await.unwrap();
        lose(&mut conn, id, Blame::NotRun).await;
        assert!(nodes(&mut conn).await.is_empty(), "its node is released");
        pauses.push(pause(&mut conn).await.round());
        assert!(
            export_run::claim_unpushed(&mut conn, -1.0).await.unwrap().is_empty(),
            "no message before the pause ends"
        );
        end_pause(&mut conn).await;
    }
    assert_eq!((pauses[..4].to_vec(), pauses.last()), (vec![5.0, 10.0, 20.0, 40.0], Some(&300.0)));
    assert_eq!(export_run::claim_unpushed(&mut conn, -1.0).await.unwrap(), [id]);
    // The attempts that run are counted from the first one, and an interruption does not count among them.
    for blame in [Blame::Export, Blame::Circumstances, Blame::Export] {
        placed(&mut conn, id).await.unwrap();
        lose(&mut conn, id, blame).await;
        end_pause(&mut conn).await;
    }
    let waiting = export::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!((waiting.state, waiting.error), (ExportState::Queued, None));
}

#[sqlx::test(migrations = false)]
async fn an_export_that_is_interrupted_each_time_fails_in_the_end(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = requested(&mut conn, seed).await;
    for attempt in 1..=MOST_INTERRUPTIONS {
        placed(&mut conn, id).await.unwrap();
        let failed = RunEvent::Failed {
            code: "upload_failed".into(),
            message: "the object store does not answer".into(),
            passing: true,
            param: None,
        };
        says(&mut conn, id, (i64::from(attempt), 0), &[failed]).await.unwrap();
        end_pause(&mut conn).await;
    }
    let failed = export::get(&mut conn, seed.project_id, id).await.unwrap();
    let error = failed.error.unwrap();
    assert_eq!((failed.state, error.code.as_str()), (ExportState::Failed, "upload_failed"));
    assert!(error.message.contains("after 20 attempts"), "{}", error.message);
}

#[sqlx::test(migrations = false)]
async fn a_deleted_export_is_hidden_and_leaves_its_node_to_the_reconciler(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = requested(&mut conn, seed).await;
    let attempt = placed(&mut conn, id).await.unwrap();
    let other = tenant::ensure(&mut conn, "other", "other").await.unwrap().project_id;
    assert!(matches!(export::get(&mut conn, other, id).await, Err(StoreError::NotFound("export"))));
    assert!(export::delete(&mut conn, other, id).await.is_err());
    export::delete(&mut conn, seed.project_id, id).await.unwrap();
    assert!(export::list(&mut conn, seed.project_id, None, 10).await.unwrap().is_empty());
    assert!(export_run::by_token(&mut conn, &attempt.token).await.is_err());
    let refused = export_file::record(&mut conn, id, 1, &[blob("x", 'b')]).await;
    assert!(matches!(refused, Err(StoreError::Stale)));
    assert_eq!(nodes(&mut conn).await, [(attempt.node_id, true)]);
}

#[sqlx::test(migrations = false)]
async fn an_export_without_its_adapter_or_its_base_cannot_be_written(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = requested(&mut conn, seed).await;
    assert_eq!(export_task::hold_inputs(&mut conn, id).await.unwrap(), Some(Gone::Adapter));
    sqlx::query("update base_model set deleted_at = now()").execute(&mut *conn).await.unwrap();
    assert_eq!(export_task::hold_inputs(&mut conn, id).await.unwrap(), Some(Gone::Base));
    export_end::fail(&mut conn, id, "input_deleted", "the base model was deleted").await.unwrap();
    let failed = export::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!((failed.state, failed.error.unwrap().code.as_str()), (ExportState::Failed, "input_deleted"));
}

#[sqlx::test(migrations = false)]
async fn an_export_with_an_importance_matrix_reads_the_rows_of_its_file_and_needs_it(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let new = NewExport { imatrix_file: Some(seed.file_id), ..new_export(seed) };
    let made = export::insert(&mut conn, seed.project_id, &new).await.unwrap();
    assert_eq!(made.imatrix_file, Some(seed.file_id));
    placed(&mut conn, made.export_id).await.unwrap();
    let task = export_task::get(&mut conn, &unreachable_objects(), made.export_id).await.unwrap();
    let rows = file::get(&mut conn, seed.project_id, seed.file_id).await.unwrap().rows_sha256();
    assert_eq!(task.calibration.map(|file| file.sha256), Some(rows));
    assert_eq!(export_task::hold_inputs(&mut conn, made.export_id).await.unwrap(), Some(Gone::Adapter));
    sqlx::query("update file set deleted_at = now()").execute(&mut *conn).await.unwrap();
    assert_eq!(export_task::hold_inputs(&mut conn, made.export_id).await.unwrap(), Some(Gone::Calibration));
}
