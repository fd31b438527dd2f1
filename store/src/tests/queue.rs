//! The queue of jobs: its snapshot, the places of waiting jobs, preemption, and the shares of projects.

use attune_domain::{
    bytes::Bytes,
    id::{JobId, ProjectId},
    job::{JobState, PauseReason, Priority},
    memory::{Margin, MemoryEstimate},
    queue::{HALF_LIFE_SECONDS, decayed_use},
    run::{Directive, RunEvent},
};
use sqlx::{PgConnection, PgPool};

use crate::{
    db::{self, Tenant},
    error::StoreError,
    ids,
    jobs::{
        job, job_event, job_pause,
        loss::{self, Blame, Loss},
        snapshot::{self, Measures, PLANNED_PER_PROJECT},
        waiting::{self, Neighbors, Place},
    },
    queue::DispatchJob,
    runs::{
        placement::{self, NotTaken, Placed, Predicted},
        report,
    },
    tenancy::{
        project_queue::{self, PROJECT_KEY, Settings},
        tenant,
    },
    testing::{self, checkpointed, claimed_run, neighbor, queued_job, rank, report as says, seed, started, stepped},
};

const MEASURES: Measures = Measures { need: Bytes::mib(300), seconds: 120.0, slowness: Vec::new() };

/// Creates a waiting job with [`MEASURES`].
async fn measured(conn: &mut PgConnection, seed: testing::Seed) -> JobId {
    let id = queued_job(conn, seed).await.unwrap();
    snapshot::measure(conn, &[(id, MEASURES)]).await.unwrap();
    id
}

#[sqlx::test(migrations = false)]
async fn a_snapshot_has_the_waiting_and_the_running_jobs_of_all_projects(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = neighbor(&mut conn, seed, "other").await.unwrap();
    let (waiting, urgent) = (measured(&mut conn, seed).await, measured(&mut conn, other).await);
    rank(&mut conn, urgent, Priority::High, false).await.unwrap();
    let unmeasured = queued_job(&mut conn, seed).await.unwrap();
    let running = measured(&mut conn, other).await;
    rank(&mut conn, running, Priority::Low, true).await.unwrap();
    let run = claimed_run(&mut conn, running).await.unwrap();
    report::take(&mut conn, run.run_id, &says(&run, 0, &[started(), stepped(15)])).await.unwrap();

    let found = snapshot::load(&mut conn, PLANNED_PER_PROJECT).await.unwrap();
    let jobs: Vec<_> = found.waiting.iter().map(|job| (job.job, job.project, job.priority)).collect();
    assert_eq!(jobs, [(waiting, seed.project_id, 0), (urgent, other.project_id, 1)]);
    assert!(found.waiting.iter().all(|job| job.need == MEASURES.need && job.since <= found.now && !job.was_preempted));
    assert_eq!(found.waiting[0].seconds.to_bits(), MEASURES.seconds.to_bits());
    assert_eq!((found.priorities[&urgent], found.kept.len()), (Priority::High, 0));
    assert_eq!(snapshot::unmeasured(&mut conn, 10).await.unwrap(), [unmeasured]);

    let [held] = found.running.as_slice() else { panic!("{:?}", found.running) };
    assert_eq!((held.job, held.project, held.priority, held.is_preemptible), (running, other.project_id, -1, true));
    assert_eq!((held.offer.0.as_str(), held.offer.1.as_str()), ("local", "this machine"));
    assert_eq!(held.memory, Bytes::mib(400));
    // 60 steps of 100 ms are left.
    assert!((held.ends_at - found.now - 6.0).abs() < 1.0, "{} {}", held.ends_at, found.now);
    let shares: Vec<ProjectId> = found.projects.iter().map(|share| share.project).collect();
    assert_eq!((shares.len(), shares.contains(&seed.project_id)), (2, true));

    // A claim makes the measures invalid, and a job that ran keeps its plan.
    let lost = Loss::new("The trainer died", Blame::Nobody);
    loss::lost(&mut conn, run.run_id, &lost).await.unwrap();
    assert!(snapshot::unmeasured(&mut conn, 10).await.unwrap().contains(&running));
    snapshot::measure(&mut conn, &[(running, MEASURES)]).await.unwrap();
    let found = snapshot::load(&mut conn, PLANNED_PER_PROJECT).await.unwrap();
    assert_eq!(found.kept[&running], run.plan);
}

#[sqlx::test(migrations = false)]
async fn limit_a_flood_of_one_project_displaces_no_other_from_the_plan(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = neighbor(&mut conn, seed, "other").await.unwrap();
    let first = measured(&mut conn, seed).await;
    let copied = sqlx::query(
        "insert into job (job_id, project_id, base_model_id, training_file_id, state, spec, token_facts, queued_at,
             need_bytes, expected_seconds)
         select gen_random_uuid(), project_id, base_model_id, training_file_id, state, spec, token_facts, now(),
             need_bytes, expected_seconds
         from job, generate_series(1, $2) where job_id = $1",
    )
    .bind(first.uuid())
    .bind(i32::try_from(PLANNED_PER_PROJECT).unwrap())
    .execute(&mut *conn)
    .await
    .unwrap();
    assert_eq!(copied.rows_affected(), PLANNED_PER_PROJECT.unsigned_abs());
    let late = measured(&mut conn, other).await;
    let found = snapshot::load(&mut conn, PLANNED_PER_PROJECT).await.unwrap();
    let of = |project: ProjectId| found.waiting.iter().filter(|job| job.project == project).count();
    assert_eq!((of(seed.project_id), of(other.project_id)), (usize::try_from(PLANNED_PER_PROJECT).unwrap(), 1));
    assert!(found.waiting.iter().any(|job| job.job == first) && found.waiting.iter().any(|job| job.job == late));

    // Of unmeasured jobs, projects take turns as well.
    sqlx::query("update job set need_bytes = null").execute(&mut *conn).await.unwrap();
    assert!(snapshot::unmeasured(&mut conn, 2).await.unwrap().contains(&late));
}

#[sqlx::test(migrations = false)]
async fn places_are_stored_where_they_changed_and_end_with_the_wait(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (one, two) = (measured(&mut conn, seed).await, measured(&mut conn, seed).await);
    let place = |job, position, estimated_start| Place {
        job,
        position,
        reason: "other jobs are ahead".into(),
        estimated_start,
    };
    let first = [place(one, 1, Some(4_000_000_000.0)), place(two, 2, None)];
    assert_eq!(waiting::store(&mut conn, &first).await.unwrap(), 2);
    assert_eq!(waiting::store(&mut conn, &first).await.unwrap(), 0, "nothing has changed");
    let nearly = [place(one, 1, Some(4_000_000_004.0)), place(two, 2, None)];
    assert_eq!(waiting::store(&mut conn, &nearly).await.unwrap(), 0, "a few seconds are no change");
    let moved = [place(one, 1, Some(4_000_000_060.0)), place(two, 2, Some(4_000_000_000.0))];
    assert_eq!(waiting::store(&mut conn, &moved).await.unwrap(), 2);

    let shown = job::get(&mut conn, seed.project_id, two).await.unwrap();
    assert_eq!((shown.queue_position, shown.waiting_reason.as_deref()), (Some(2), Some("other jobs are ahead")));
    assert_eq!(shown.estimated_start.map(|at| at.timestamp()), Some(4_000_000_000));
    let neighbors = waiting::neighbors(&mut conn, seed.project_id, two).await.unwrap();
    assert_eq!(neighbors, Neighbors { ahead: 1, running: 0 });

    claimed_run(&mut conn, two).await.unwrap();
    let started = job::get(&mut conn, seed.project_id, two).await.unwrap();
    assert_eq!((started.queue_position, started.estimated_start, started.waiting_reason), (None, None, None));
    assert_eq!(waiting::store(&mut conn, &moved).await.unwrap(), 0, "a job that does not wait has no place");
    let neighbors = waiting::neighbors(&mut conn, seed.project_id, one).await.unwrap();
    assert_eq!(neighbors, Neighbors { ahead: 0, running: 1 });
}

#[sqlx::test(migrations = false)]
async fn a_place_far_behind_is_stored_when_it_has_changed_by_two_per_cent_or_for_another_reason(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let job = measured(&mut conn, seed).await;
    let mut stored = async |position: u32, reason: &str, estimated_start| {
        let place = Place { job, position, reason: reason.into(), estimated_start };
        waiting::store(&mut conn, &[place]).await.unwrap()
    };
    let later = |seconds: f64| Some(4_000_000_000.0 + seconds);
    assert_eq!(stored(1000, "999 jobs are ahead", later(0.0)).await, 1);
    assert_eq!(stored(985, "984 jobs are ahead", later(60.0)).await, 0);
    assert_eq!(stored(985, "a machine is missing", later(60.0)).await, 1);
    assert_eq!(stored(960, "959 jobs are ahead", later(60.0)).await, 1);
    assert_eq!(stored(940, "939 jobs are ahead", later(60.0)).await, 1);
    assert_eq!(stored(40, "39 jobs are ahead", later(60.0)).await, 1);
    assert_eq!(stored(39, "38 jobs are ahead", later(60.0)).await, 1);
    assert_eq!(stored(39, "38 jobs are ahead", later(90.0)).await, 1);
}

#[sqlx::test(migrations = false)]
async fn another_project_sees_no_place_and_counts_no_neighbor(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = neighbor(&mut conn, seed, "other").await.unwrap();
    let (job, run) = (measured(&mut conn, seed).await, measured(&mut conn, seed).await);
    claimed_run(&mut conn, run).await.unwrap();
    let place = Place { job, position: 1, reason: "next".into(), estimated_start: None };
    waiting::store(&mut conn, &[place]).await.unwrap();
    let mut theirs = db::tenant(&pool, other.project_id).await.unwrap();
    let found = job::get(&mut theirs, seed.project_id, job).await;
    assert!(matches!(found, Err(StoreError::NotFound(_))), "{found:?}");
    let neighbors = waiting::neighbors(&mut theirs, seed.project_id, job).await.unwrap();
    assert_eq!(neighbors, Neighbors { ahead: 0, running: 0 });
    assert_eq!(placement::last(&mut theirs, run).await.unwrap(), None);
}

#[sqlx::test(migrations = false)]
async fn a_preempted_job_stops_with_a_checkpoint_and_is_queued_again(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = measured(&mut conn, seed).await;
    rank(&mut conn, id, Priority::Normal, true).await.unwrap();
    assert!(!job_pause::preempt(&mut conn, id, Priority::High).await.unwrap(), "it holds no machine");
    let run = claimed_run(&mut conn, id).await.unwrap();
    report::take(&mut conn, run.run_id, &says(&run, 0, &[started(), stepped(1)])).await.unwrap();
    testing::lose_messages(&mut conn).await.unwrap();
    assert!(job_pause::preempt(&mut conn, id, Priority::High).await.unwrap());
    assert!(!job_pause::preempt(&mut conn, id, Priority::High).await.unwrap(), "it is being stopped already");
    let stopping = job::load(&mut conn, id).await.unwrap();
    assert_eq!((stopping.state, stopping.pause_reason), (JobState::Pausing, Some(PauseReason::Preempted)));
    let found = snapshot::load(&mut conn, PLANNED_PER_PROJECT).await.unwrap();
    assert!(!found.running[0].is_preemptible && found.running[0].ends_at > found.now);
    // A resume would only keep the machine from the other job.
    let resumed = job_pause::resume(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(resumed.state, JobState::Pausing);

    let told = [stepped(2), checkpointed(2, '1'), RunEvent::Stopped { step: 2 }];
    let reply = report::take(&mut conn, run.run_id, &says(&run, 2, &told)).await.unwrap();
    assert_eq!(reply.directive, Directive::Stop);
    let queued = job::load(&mut conn, id).await.unwrap();
    assert_eq!((queued.state, queued.pause_reason, queued.run_id), (JobState::Queued, None, None));
    assert_eq!(testing::messages::<DispatchJob>(&mut conn).await.unwrap(), 1);
    let events = job_event::list(&mut conn, seed.project_id, id, None, 20).await.unwrap();
    let said = |part: &str| events.iter().any(|event| event.message.contains(part));
    assert!(said("Preempted: a job of high priority needs the machine") && said("continues after step 2"));
    snapshot::measure(&mut conn, &[(id, MEASURES)]).await.unwrap();
    assert!(snapshot::load(&mut conn, PLANNED_PER_PROJECT).await.unwrap().waiting[0].was_preempted);
    let second = claimed_run(&mut conn, id).await.unwrap();
    assert!(second.resume_id.is_some());
}

#[sqlx::test(migrations = false)]
async fn a_preempted_job_whose_trainer_dies_is_queued_again_and_one_that_a_user_pauses_stays_paused(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    for (is_paused, expected) in [(false, JobState::Queued), (true, JobState::Paused)] {
        let id = measured(&mut conn, seed).await;
        rank(&mut conn, id, Priority::Low, true).await.unwrap();
        let run = claimed_run(&mut conn, id).await.unwrap();
        assert!(job_pause::preempt(&mut conn, id, Priority::Normal).await.unwrap());
        if is_paused {
            job_pause::pause(&mut conn, seed.project_id, id).await.unwrap();
        }
        let lost = Loss::new("The trainer died", Blame::Nobody);
        assert_eq!(loss::lost(&mut conn, run.run_id, &lost).await.unwrap(), Some(expected));
        assert_eq!(job::load(&mut conn, id).await.unwrap().state, expected);
    }
    // A job that is not preemptible is not stopped.
    let id = measured(&mut conn, seed).await;
    claimed_run(&mut conn, id).await.unwrap();
    assert!(!job_pause::preempt(&mut conn, id, Priority::High).await.unwrap());
}

#[sqlx::test(migrations = false)]
async fn the_usage_of_a_project_decays_with_its_age(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = neighbor(&mut conn, seed, "other").await.unwrap();
    // One run of an hour that ended a half-life ago, one that ended long ago, and one that runs for an hour.
    for (owner, from, until) in [
        (seed, HALF_LIFE_SECONDS + 3600.0, Some(HALF_LIFE_SECONDS)),
        (seed, 400.0 * 86_400.0, Some(399.0 * 86_400.0)),
        (other, 3600.0, None),
    ] {
        let id = queued_job(&mut conn, owner).await.unwrap();
        let run = claimed_run(&mut conn, id).await.unwrap();
        if until.is_some() {
            loss::lost(&mut conn, run.run_id, &Loss::new("ended", Blame::Nobody)).await.unwrap();
        }
        let moved = "with moved as (update node set created_at = now() - make_interval(secs => $2) where node_id = $3),
                 charged as (update usage set used_at = now() - make_interval(secs => $4), node_ms = ($2 - $4) * 1000
                     where run_id = $1)
             update run set ended_at = now() - make_interval(secs => $4) where run_id = $1";
        sqlx::query(moved)
            .bind(run.run_id.uuid())
            .bind(from)
            .bind(run.node_id.uuid())
            .bind(until)
            .execute(&mut *conn)
            .await
            .unwrap();
    }
    let shares = project_queue::shares(&mut conn).await.unwrap();
    let used = |project: ProjectId| shares.iter().find(|share| share.project == project).unwrap().used;
    let want = [
        (seed.project_id, decayed_use(-HALF_LIFE_SECONDS - 3600.0, -HALF_LIFE_SECONDS, 0.0)),
        (other.project_id, decayed_use(-3600.0, 0.0, 0.0)),
    ];
    for (project, want) in want {
        assert!((used(project) - want).abs() < 5.0, "{} instead of {want}", used(project));
    }
    assert!(used(seed.project_id) < 1900.0, "half of an hour");
}

#[sqlx::test(migrations = false)]
async fn the_shares_of_projects_are_set_by_the_installation_alone(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = neighbor(&mut conn, seed, "other").await.unwrap();
    let organization = tenant::ensure(&mut conn, "default", "default").await.unwrap().organization_id;
    let settings = Settings {
        weight: 2.5,
        max_running_jobs: Some(3),
        max_node_hours: Some(1.5),
        max_stored_bytes: Some(Bytes::mib(64)),
        max_replicas: Some(2),
        max_priority: Priority::High,
    };

    let mut own = db::tenant(&pool, seed.project_id).await.unwrap();
    let refused = project_queue::set(&mut own, seed.project_id, settings).await.unwrap_err();
    assert!(format!("{refused:?}").contains("row-level security"), "{refused:?}");
    drop(own);
    let mut administration = db::scoped(&pool, Tenant::Organization(organization), None).await.unwrap();
    let refused = project_queue::set(&mut administration, seed.project_id, settings).await.unwrap_err();
    assert!(format!("{refused:?}").contains("row-level security"), "{refused:?}");
    drop(administration);

    let mut installation = db::scoped(&pool, Tenant::Organization(organization), None).await.unwrap();
    db::as_installation(&mut installation).await.unwrap();
    for again in [Settings { weight: 1.5, ..settings }, settings] {
        project_queue::set(&mut installation, seed.project_id, again).await.unwrap();
    }
    installation.commit().await.unwrap();
    let mut installation = db::scoped(&pool, Tenant::Organization(organization), None).await.unwrap();
    db::as_installation(&mut installation).await.unwrap();
    let unknown = project_queue::set(&mut installation, ids::id(), settings).await.unwrap_err();
    assert!(unknown.on_constraint(PROJECT_KEY), "{unknown:?}");
    drop(installation);

    let mut own = db::tenant(&pool, seed.project_id).await.unwrap();
    assert_eq!(project_queue::get(&mut own, seed.project_id).await.unwrap(), settings);
    drop(own);
    let mut theirs = db::tenant(&pool, other.project_id).await.unwrap();
    assert_eq!(project_queue::get(&mut theirs, seed.project_id).await.unwrap(), Settings::default());
    drop(theirs);
    queued_job(&mut conn, seed).await.unwrap();
    let shares = project_queue::shares(&mut conn).await.unwrap();
    let [share] = shares.as_slice() else { panic!("{shares:?}") };
    assert_eq!((share.weight.to_bits(), share.max_running), (2.5_f64.to_bits(), Some(3)));
    let time = share.node_time.unwrap();
    assert_eq!((time.used, time.max), (0.0, 5400.0));
}

#[sqlx::test(migrations = false)]
async fn the_placement_of_a_run_is_kept(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = queued_job(&mut conn, seed).await.unwrap();
    assert_eq!(placement::last(&mut conn, id).await.unwrap(), None);
    let run = claimed_run(&mut conn, id).await.unwrap();
    let unrecorded = placement::last(&mut conn, id).await.unwrap().unwrap();
    assert_eq!((unrecorded.attempt, unrecorded.placed, unrecorded.plan), (1, None, run.plan.clone()));
    let other = NotTaken {
        provider: "local".into(),
        offer: "small".into(),
        reason: "small is too small".into(),
        predicted: None,
    };
    let placed = Placed {
        provider: "local".into(),
        offer: "this machine".into(),
        micro_usd_per_hour: 7,
        estimate: MemoryEstimate { terms: vec![("base".into(), Bytes::mib(1))], peak: Bytes::mib(1) },
        margin: Margin::measured(12),
        predicted: Some(Predicted { seconds: 90.5, micro_usd: 1 }),
        others: vec![other],
    };
    placement::record(&mut conn, &[(run.run_id, placed.clone())]).await.unwrap();
    let mut own = db::tenant(&pool, seed.project_id).await.unwrap();
    let last = placement::last(&mut own, id).await.unwrap().unwrap();
    assert_eq!((last.placed, last.measured_peak, last.ended_at), (Some(placed), None, None));
}
