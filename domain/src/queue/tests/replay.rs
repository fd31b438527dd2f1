//! A replay of a few jobs until all have ended, with a virtual clock. Expected durations are wrong by up to a factor of
//! two, and runs are stopped for other jobs.

use super::*;

/// The interval between two plans, in seconds.
const STEP: f64 = 10.0;

/// A job of the replay.
#[derive(Debug, Clone)]
struct Job {
    waiting: WaitingJob,
    is_preemptible: bool,
    /// The real duration over the expected one.
    factor: f64,
}

/// A run of a job: its offer, its start and its real end.
#[derive(Debug, Clone)]
struct Run {
    job: usize,
    offer: usize,
    start: f64,
    end: f64,
    stopping: bool,
}

struct Replay {
    jobs: Vec<Job>,
    offers: Vec<Offer>,
    now: f64,
    waiting: BTreeSet<usize>,
    runs: Vec<Run>,
    ended: Vec<usize>,
    used: Vec<(ProjectId, f64, f64)>,
    /// The stopped job and the job that it was stopped for.
    preemptions: Vec<(JobId, JobId)>,
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let one = (waiting(), any::<bool>(), 0.5..2.0_f64, 0.0..600.0_f64, 1_u64..100);
    vec(one, 1..40).prop_map(|jobs| {
        let job = |(number, (waiting, is_preemptible, factor, since, need))| {
            let waiting = WaitingJob { job: job_id(number), since, need: Bytes(need), was_preempted: false, ..waiting };
            Job { waiting, is_preemptible, factor }
        };
        (1..).zip(jobs).map(job).collect::<Vec<_>>()
    })
}

impl Replay {
    fn new(jobs: Vec<Job>) -> Self {
        let offers = vec![offer(0, 100, 3), offer(1, 60, 2)];
        let waiting = (0..jobs.len()).collect();
        let (runs, ended, used, preemptions) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { jobs, offers, now: 0.0, waiting, runs, ended, used, preemptions }
    }

    fn running(&self, run: &Run) -> RunningJob {
        let Job { waiting, is_preemptible, .. } = &self.jobs[run.job];
        RunningJob {
            job: waiting.job,
            project: waiting.project,
            priority: waiting.priority,
            is_preemptible: *is_preemptible,
            offer: name(&self.offers[run.offer]),
            memory: waiting.need,
            ends_at: run.start + waiting.seconds,
            lost_seconds: self.now - run.start,
        }
    }

    /// Ends runs whose time has come, and those that the step before stopped.
    fn end_runs(&mut self) {
        let (over, rest): (Vec<Run>, _) = self.runs.drain(..).partition(|run| run.stopping || run.end <= self.now);
        self.runs = rest;
        for run in over {
            let job = &mut self.jobs[run.job].waiting;
            self.used.push((job.project, run.start, self.now));
            if run.end <= self.now {
                self.ended.push(run.job);
            } else {
                job.was_preempted = true;
                self.waiting.insert(run.job);
            }
        }
    }

    fn queue(&self) -> Queue {
        let offers = self.offers.iter().enumerate().map(|(index, offer)| {
            let here: Vec<&Run> = self.runs.iter().filter(|run| run.offer == index).collect();
            let reserved: Bytes = here.iter().map(|run| self.jobs[run.job].waiting.need).sum();
            assert!(reserved <= offer.memory && here.len() <= offer.free_slots, "an offer is overcommitted");
            Offer { reserved, free_slots: offer.free_slots - here.len(), ..offer.clone() }
        });
        let still = self.runs.iter().map(|run| (self.jobs[run.job].waiting.project, run.start, self.now));
        let all: Vec<_> = self.used.iter().copied().chain(still).collect();
        let share = |number| {
            let project = project_id(number);
            let own = all.iter().filter(|&&(owner, _, _)| owner == project);
            let used = own.map(|&(_, from, until)| decayed_use(from, until, self.now)).sum();
            ProjectShare { project, weight: 1.0, used, max_running: None, node_time: None }
        };
        let due = self.waiting.iter().map(|&index| &self.jobs[index].waiting).filter(|job| job.since <= self.now);
        Queue {
            now: self.now,
            waiting: due.cloned().collect(),
            running: self.runs.iter().map(|run| self.running(run)).collect(),
            offers: offers.collect(),
            projects: (0..PROJECTS).map(share).collect(),
        }
    }

    fn step(&mut self) {
        self.end_runs();
        let plan = plan(&self.queue());
        let index: BTreeMap<JobId, usize> =
            (0..).zip(&self.jobs).map(|(index, job)| (job.waiting.job, index)).collect();
        for (job, offer) in plan.starts {
            let job = index[&job];
            assert!(self.waiting.remove(&job), "a job starts that does not wait");
            let Job { waiting, factor, .. } = &self.jobs[job];
            let end = self.now + waiting.seconds * factor;
            self.runs.push(Run { job, offer, start: self.now, end, stopping: false });
        }
        for (stopped, waiting) in plan.preemptions {
            let run = self.runs.iter_mut().find(|run| run.job == index[&stopped]).unwrap();
            assert!(!std::mem::replace(&mut run.stopping, true), "a run is stopped twice");
            self.preemptions.push((stopped, waiting));
        }
        self.now += STEP;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// All jobs end once, no offer is overcommitted, and no job that was stopped for another one stops any.
    #[test]
    fn all_jobs_end_once_and_preemption_has_no_cycle(jobs in jobs()) {
        let count = jobs.len();
        let mut replay = Replay::new(jobs);
        // A job runs for at most 1,000 s, and starts again at most once for each other job.
        let enough = |replay: &Replay| replay.now > 600.0 + 1000.0 * (count * (count + 1)) as f64;
        while replay.ended.len() < count && !enough(&replay) {
            replay.step();
        }
        let mut ended = replay.ended;
        ended.sort_unstable();
        prop_assert_eq!(ended, (0..count).collect::<Vec<_>>());
        for (place, (stopped, waiting)) in replay.preemptions.iter().enumerate() {
            prop_assert!(!replay.preemptions[..place].iter().any(|(earlier, _)| earlier == waiting));
            prop_assert!(!replay.preemptions.contains(&(*waiting, *stopped)));
        }
    }
}
