//! Trainers' reports: the changes that they make, and those that they cannot make.

use attune_domain::{
    job::JobState,
    run::{Directive, RunEvent},
};
use sqlx::PgPool;

use crate::{
    adapters::{
        adapter::{self, Model},
        model_name,
    },
    error::StoreError,
    jobs::{
        checkpoint, job, job_event,
        loss::{self, Blame, Loss},
        snapshot,
    },
    queue::DispatchJob,
    runs::{node, report, run},
    testing::{
        self, RUN_TOKEN, checkpointed, claimed_run, published, queued_job, report as says, run_end, seed, started,
        stepped,
    },
};

#[sqlx::test(migrations = false)]
async fn a_run_from_start_to_adapter(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    assert_eq!(run::by_token(&mut conn, RUN_TOKEN).await.unwrap(), run);
    assert!(matches!(run::by_token(&mut conn, "another").await, Err(StoreError::NotFound(_))));

    let reply = report::take(&mut conn, run.run_id, &says(&run, 0, &[started(), stepped(1)])).await.unwrap();
    assert_eq!(reply.directive, Directive::Continue);
    let now = job::load(&mut conn, id).await.unwrap();
    assert_eq!((now.state, now.steps_done, now.total_steps), (JobState::Running, 1, Some(75)));
    assert!(now.started_at.is_some());
    let newest = &job_event::list(&mut conn, seed.project_id, id, None, 1).await.unwrap()[0];
    assert_eq!((newest.kind.as_str(), newest.message.as_str()), ("metrics", "Step 1/75: training loss=0.81"));
    assert_eq!(newest.data.as_ref().unwrap()["tokens_per_second"], 2000.0);

    let reply = report::take(&mut conn, run.run_id, &says(&run, 2, &[published()])).await.unwrap();
    assert_eq!(reply.directive, Directive::Stop);
    let done = job::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!((done.state, done.trained_tokens), (JobState::Succeeded, Some(6000)));
    let name = done.fine_tuned_model.unwrap();
    assert!(name.starts_with("ft:tiny:default:mail:") && name.len() == "ft:tiny:default:mail:".len() + 8, "{name}");
    assert_eq!(run_end(&mut conn, run.run_id).await.unwrap(), ("ended".into(), Some("published".into())));
    assert!(node::active(&mut conn, "local").await.unwrap().is_empty());
}

#[sqlx::test(migrations = false)]
async fn a_report_that_comes_twice_is_taken_once(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    let first = says(&run, 0, &[started(), stepped(1)]);
    report::take(&mut conn, run.run_id, &first).await.unwrap();
    let before = job_event::list(&mut conn, seed.project_id, id, None, 100).await.unwrap().len();
    report::take(&mut conn, run.run_id, &first).await.unwrap();
    // An overlap: only new events are applied.
    report::take(&mut conn, run.run_id, &says(&run, 1, &[stepped(1), stepped(2)])).await.unwrap();
    let after = job_event::list(&mut conn, seed.project_id, id, None, 100).await.unwrap().len();
    assert_eq!(after, before + 1);

    let last = says(&run, 3, &[published()]);
    report::take(&mut conn, run.run_id, &last).await.unwrap();
    // The reply was lost: it is repeated, and nothing changes.
    assert_eq!(report::take(&mut conn, run.run_id, &last).await.unwrap().directive, Directive::Stop);
    let more = report::take(&mut conn, run.run_id, &says(&run, 4, &[stepped(9)])).await;
    assert!(matches!(more, Err(StoreError::Stale)), "{more:?}");
}

#[sqlx::test(migrations = false)]
async fn missing_events_and_a_stale_lease_are_refused(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let old = claimed_run(&mut conn, id).await.unwrap();
    report::take(&mut conn, old.run_id, &says(&old, 0, &[started()])).await.unwrap();
    let gap = report::take(&mut conn, old.run_id, &says(&old, 5, &[stepped(5)])).await;
    assert!(matches!(gap, Err(StoreError::Gap { expected: 1, given: 5 })), "{gap:?}");
    let mut wrong = says(&old, 1, &[stepped(1)]);
    wrong.run_lease += 1;
    assert!(matches!(report::take(&mut conn, old.run_id, &wrong).await, Err(StoreError::Stale)));

    // The first trainer was only disconnected, and reports again after the job was given to another run.
    let loss = Loss::new("silent", Blame::Job { max_attempts: 3 });
    loss::lost(&mut conn, old.run_id, &loss).await.unwrap();
    let new = testing::claimed_run(&mut conn, id).await.unwrap();
    assert_eq!((old.run_lease, new.run_lease), (1, 2));
    let ghost = report::take(&mut conn, old.run_id, &says(&old, 1, &[published()])).await;
    assert!(matches!(ghost, Err(StoreError::Stale)), "{ghost:?}");
    assert_eq!(job::load(&mut conn, id).await.unwrap().state, JobState::Provisioning);
}

#[sqlx::test(migrations = false)]
async fn two_publishes_at_once_give_one_version(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    report::take(&mut conn, run.run_id, &says(&run, 0, &[started()])).await.unwrap();
    let (run_id, last) = (run.run_id, says(&run, 1, &[published()]));
    let publish = |pool: PgPool| {
        let last = last.clone();
        async move {
            let mut tx = pool.begin().await.unwrap();
            let reply = report::take(&mut tx, run_id, &last).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            tx.commit().await.unwrap();
            reply
        }
    };
    let (one, other) = tokio::join!(publish(pool.clone()), publish(pool.clone()));
    assert_eq!((one.unwrap().directive, other.unwrap().directive), (Directive::Stop, Directive::Stop));
    assert!(job::load(&mut conn, id).await.unwrap().fine_tuned_model.is_some());
}

#[sqlx::test(migrations = false)]
async fn a_cancel_reaches_the_trainer_with_the_next_answer(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    job::cancel(&mut conn, seed.project_id, id).await.unwrap();
    let reply = report::take(&mut conn, run.run_id, &says(&run, 0, &[])).await.unwrap();
    assert_eq!(reply.directive, Directive::Stop);
    let reply = report::take(&mut conn, run.run_id, &says(&run, 0, &[started(), stepped(1)])).await.unwrap();
    assert_eq!(reply.directive, Directive::Stop);
    report::take(&mut conn, run.run_id, &says(&run, 2, &[RunEvent::Stopped { step: 1 }])).await.unwrap();
    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((job.state, job.error), (JobState::Cancelled, None));
    assert!(node::active(&mut conn, "local").await.unwrap().is_empty());
}

#[sqlx::test(migrations = false)]
async fn a_failure_is_the_jobs_error(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    let failed =
        RunEvent::Failed { code: "non_finite_loss".into(), message: "NaN".into(), param: None, passing: false };
    report::take(&mut conn, run.run_id, &says(&run, 0, &[failed])).await.unwrap();
    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((job.state, job.error.unwrap().code.as_str()), (JobState::Failed, "non_finite_loss"));
    assert_eq!(run_end(&mut conn, run.run_id).await.unwrap().1.as_deref(), Some("failed"));
}

#[sqlx::test(migrations = false)]
async fn attack_a28_a_run_that_lacked_what_may_come_again_gives_its_job_back_after_a_pause(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let full = RunEvent::Failed {
        code: "disk_full".into(),
        message: "The node's disk was full".into(),
        param: None,
        passing: true,
    };
    for pause in ["5 s", "10 s", "20 s", "40 s"] {
        let run = claimed_run(&mut conn, id).await.unwrap();
        report::take(&mut conn, run.run_id, &says(&run, 0, std::slice::from_ref(&full))).await.unwrap();
        let job = job::load(&mut conn, id).await.unwrap();
        assert_eq!((job.state, job.barren_attempts, job.error), (JobState::Queued, 0, None));
        let told = job_event::list(&mut conn, seed.project_id, id, None, 1).await.unwrap();
        let said = format!("The node's disk was full; the job is queued again, for another attempt in {pause}");
        assert_eq!(told[0].message, said);
        assert_eq!(snapshot::unmeasured(&mut conn, 10).await.unwrap(), [], "it pauses");
        testing::pass_a_minute(&mut conn).await.unwrap();
        assert_eq!(snapshot::unmeasured(&mut conn, 10).await.unwrap(), [id]);
    }
    // A checkpoint resets the count.
    let run = claimed_run(&mut conn, id).await.unwrap();
    let events = [started(), checkpointed(20, '1'), full];
    report::take(&mut conn, run.run_id, &says(&run, 0, &events)).await.unwrap();
    assert_eq!(snapshot::unmeasured(&mut conn, 10).await.unwrap(), [id], "no pause after progress");
}

#[sqlx::test(migrations = false)]
async fn a_stop_that_was_not_requested_hands_the_job_back(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    testing::lose_messages(&mut conn).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    let told = [started(), RunEvent::Stopped { step: 0 }];
    report::take(&mut conn, run.run_id, &says(&run, 0, &told)).await.unwrap();
    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((job.state, job.run_id), (JobState::Queued, None));
    assert_eq!(testing::messages::<DispatchJob>(&mut conn).await.unwrap(), 1);
}

#[sqlx::test(migrations = false)]
async fn the_newest_three_checkpoints_are_kept_and_the_next_run_continues_from_the_last(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let first = claimed_run(&mut conn, id).await.unwrap();
    let events =
        [started(), checkpointed(10, '0'), checkpointed(20, '1'), checkpointed(40, '2'), checkpointed(60, '3')];
    report::take(&mut conn, first.run_id, &says(&first, 0, &events)).await.unwrap();
    let loss = Loss::new("died", Blame::Job { max_attempts: 1 });
    assert_eq!(
        loss::lost(&mut conn, first.run_id, &loss).await.unwrap(),
        Some(JobState::Queued),
        "it brought something"
    );

    let second = claimed_run(&mut conn, id).await.unwrap();
    let kept = checkpoint::list(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(kept.iter().map(|checkpoint| checkpoint.step).collect::<Vec<_>>(), [60, 40, 20]);
    assert_eq!(second.resume_id, Some(kept[0].checkpoint_id));
    // The same step again: the newer files replace the older ones.
    report::take(&mut conn, second.run_id, &says(&second, 0, &[started(), checkpointed(60, '4')])).await.unwrap();
    let newest = checkpoint::newest(&mut conn, id).await.unwrap().unwrap();
    assert_eq!((newest.step, newest.files), (60, vec![testing::blob("state", '4')]));
    let told = job_event::list(&mut conn, seed.project_id, id, None, 100).await.unwrap();
    assert!(told.iter().any(|e| e.message == "Fine-tuning job resumed from the last checkpoint (attempt 2)"));
}

#[sqlx::test(migrations = false)]
async fn a_checkpoint_is_a_model_before_and_after_its_job_has_an_adapter_and_goes_with_it(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let run = claimed_run(&mut conn, id).await.unwrap();
    let files = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"];
    let files: Vec<_> = files.iter().zip("abcd".chars()).map(|(name, digit)| testing::blob(name, digit)).collect();
    let kept = RunEvent::Checkpointed { step: 20, files: files.clone(), train_loss: 0.8, valid_loss: None };
    report::take(&mut conn, run.run_id, &says(&run, 0, &[started(), kept])).await.unwrap();
    let model = model_name::of_job("tiny", "default", Some("mail"), id);
    let name = model_name::of_checkpoint(&model, 20);

    let Model::Checkpoint(found) = adapter::resolve(&mut conn, seed.project_id, &name).await.unwrap() else {
        panic!("{name} is no checkpoint");
    };
    assert_eq!((found.base_model_id, found.checkpoint.step), (seed.base_model_id, 20));
    assert_eq!(found.adapter_files().cloned().collect::<Vec<_>>(), files[..2]);
    let stranger = attune_domain::id::ProjectId::new(uuid::Uuid::from_u128(1));
    for (project, name) in [
        (stranger, name.clone()),
        (seed.project_id, model_name::of_checkpoint(&model, 21)),
        (seed.project_id, name.replace("mail", "male")),
    ] {
        assert!(adapter::resolve(&mut conn, project, &name).await.is_err(), "{name}");
    }

    report::take(&mut conn, run.run_id, &says(&run, 2, &[published()])).await.unwrap();
    assert_eq!(job::load(&mut conn, id).await.unwrap().fine_tuned_model.as_ref(), Some(&model));
    assert!(matches!(adapter::resolve(&mut conn, seed.project_id, &name).await, Ok(Model::Checkpoint(_))));
    adapter::delete(&mut conn, seed.project_id, &model).await.unwrap();
    assert!(adapter::resolve(&mut conn, seed.project_id, &name).await.is_err());
}

#[sqlx::test(migrations = false)]
async fn a_damaged_checkpoint_is_abandoned_for_the_one_before_and_without_one_the_job_fails(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    let first = claimed_run(&mut conn, id).await.unwrap();
    let events = [started(), checkpointed(20, '1'), checkpointed(40, '2'), RunEvent::Stopped { step: 40 }];
    report::take(&mut conn, first.run_id, &says(&first, 0, &events)).await.unwrap();
    testing::lose_messages(&mut conn).await.unwrap();

    let message = "cannot resume from the checkpoint: state.json is missing".to_owned();
    let damaged = RunEvent::Failed { code: "invalid_checkpoint".into(), message, param: None, passing: false };
    let second = claimed_run(&mut conn, id).await.unwrap();
    report::take(&mut conn, second.run_id, &says(&second, 0, std::slice::from_ref(&damaged))).await.unwrap();
    assert_eq!(run_end(&mut conn, second.run_id).await.unwrap().1.as_deref(), Some("failed"));
    assert_eq!(job::load(&mut conn, id).await.unwrap().state, JobState::Queued);
    assert_eq!(testing::messages::<DispatchJob>(&mut conn).await.unwrap(), 1);
    let told = job_event::list(&mut conn, seed.project_id, id, None, 1).await.unwrap();
    assert!(
        told[0]
            .message
            .ends_with("state.json is missing; the job is queued again and resumes from the previous checkpoint")
    );

    let third = claimed_run(&mut conn, id).await.unwrap();
    let kept = checkpoint::list(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(kept.iter().map(|checkpoint| checkpoint.step).collect::<Vec<_>>(), [20]);
    assert_eq!(third.resume_id, Some(kept[0].checkpoint_id));
    report::take(&mut conn, third.run_id, &says(&third, 0, &[damaged])).await.unwrap();
    let job = job::load(&mut conn, id).await.unwrap();
    assert_eq!((job.state, job.error.unwrap().code.as_str()), (JobState::Failed, "invalid_checkpoint"));
}
