//! The pools, the tenants and their jobs.

use attune_domain::{bytes::Bytes, offer::Offer};

use crate::random::Random;

/// The number of tenants.
pub(crate) const TENANTS: usize = 30;

/// The tenant with few short jobs, which come in small bursts. It may run as many at a time as its equal share of the
/// slots has, so it waits for its own jobs also when it is alone.
pub(crate) const LIGHT: usize = 0;

/// The maximum number of running jobs of the light tenant: 100 slots, shared by 30 tenants.
const LIGHT_RUNNING: u32 = 3;

/// The number of jobs that the light tenant submits at a time.
const LIGHT_BURST: usize = 9;

/// The tenant that submits many jobs at once.
pub(crate) const FLOODING: usize = 1;

/// The number of jobs of the flood.
const FLOOD: usize = 1000;

/// The largest memory of a job, in GiB. Two pools are larger.
const LARGEST_GIB: f64 = 400.0;

/// A job.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The number of the tenant.
    pub(crate) tenant: usize,
    /// The time of submission, in seconds.
    pub(crate) since: f64,
    pub(crate) need: Bytes,
    pub(crate) priority: i32,
    pub(crate) is_preemptible: bool,
    /// The real duration of training, in seconds.
    pub(crate) seconds: f64,
    /// The duration that the planner expects: wrong by up to a factor of two.
    pub(crate) expected: f64,
}

/// The jobs of all tenants and the time in which they are submitted.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) jobs: Vec<Job>,
    /// The time of the last submission, in seconds.
    pub(crate) span: f64,
}

/// Returns the five pools: 100 slots in machines of different memory and price.
pub(crate) fn pools() -> Vec<Offer> {
    let pool = |(name, gib, free_slots, micro_usd_per_hour): (&str, u64, usize, u64)| Offer {
        free_slots,
        micro_usd_per_hour,
        ..Offer::cpu("simulated", name, Bytes(gib << 30), 8)
    };
    let pools = [
        ("workstation", 96, 8, 0),
        ("l4", 192, 12, 800_000),
        ("a10g", 384, 24, 1_200_000),
        ("a100", 640, 24, 4_000_000),
        ("h100", 1280, 32, 8_000_000),
    ];
    pools.map(pool).to_vec()
}

/// Returns the limits of running jobs: the light tenant has one, and the last third of the tenants.
pub(crate) fn limits() -> Vec<Option<u32>> {
    let limit = |tenant| match tenant {
        LIGHT => Some(LIGHT_RUNNING),
        _ => (tenant >= TENANTS * 2 / 3).then_some(40),
    };
    (0..TENANTS).map(limit).collect()
}

/// Returns a job of a tenant whose jobs have this median duration.
fn job(random: &mut Random, tenant: usize, since: f64, median_seconds: f64) -> Job {
    let gib = match random.chance(0.02) {
        true => random.between(100.0, LARGEST_GIB),
        false => random.log_normal(12.0, 0.7).clamp(2.0, 100.0),
    };
    let seconds = random.log_normal(median_seconds, 1.0).clamp(60.0, 40_000.0);
    Job {
        tenant,
        since,
        need: Bytes((gib * 1024.0) as u64 * (1 << 20)),
        priority: i32::from(random.chance(0.1)),
        is_preemptible: random.chance(0.3),
        seconds,
        expected: seconds * random.between(-1.0, 1.0).exp2(),
    }
}

/// Returns `count` jobs of all tenants, submitted in the time in which all slots together train `1 / load` of them.
/// Almost half of the jobs of all but the light tenant come in bursts.
pub(crate) fn mixed(random: &mut Random, count: usize, load: f64) -> Workload {
    let light = count * 3 / 100;
    let mut jobs = Vec::with_capacity(count);
    // Times are fractions of the span until the sum of the durations is known.
    let mut since = 0.0;
    for number in 0..light {
        let other = random.between(0.0, 1.0);
        since = if number.is_multiple_of(LIGHT_BURST) { other } else { since };
        jobs.push(Job { is_preemptible: false, priority: 0, ..job(random, LIGHT, since, 600.0) });
    }
    while jobs.len() < count {
        // Of two tenants the one with the lower number: the first are three times as active as the average.
        let tenant = random.between(1.0, TENANTS as f64).min(random.between(1.0, TENANTS as f64)) as usize;
        let since = random.between(0.0, 1.0);
        let burst = if random.chance(0.02) { random.between(20.0, 60.0) as usize } else { 1 };
        for _ in 0..burst.min(count - jobs.len()) {
            jobs.push(job(random, tenant, since, 1800.0));
        }
    }
    let slots: usize = pools().iter().map(|pool| pool.free_slots).sum();
    let span = jobs.iter().map(|job| job.seconds).sum::<f64>() / (slots as f64 * load);
    jobs.iter_mut().for_each(|job| job.since *= span);
    jobs.sort_by(|a, b| a.since.total_cmp(&b.since));
    Workload { jobs, span }
}

/// Returns the jobs of the light tenant alone.
pub(crate) fn light(workload: &Workload) -> Workload {
    let own = workload.jobs.iter().filter(|job| job.tenant == LIGHT);
    Workload { jobs: own.cloned().collect(), span: workload.span }
}

/// Returns the first `count` jobs of a workload, all submitted at the time 0.
pub(crate) fn at_once(workload: &Workload, count: usize) -> Vec<Job> {
    workload.jobs.iter().take(count).map(|job| Job { since: 0.0, ..job.clone() }).collect()
}

/// Returns the jobs of a workload, and then those of the flood, all submitted at one time.
pub(crate) fn flooded(random: &mut Random, workload: &Workload, at: f64) -> Workload {
    let flood = (0..FLOOD).map(|_| job(random, FLOODING, at, 1800.0));
    Workload { jobs: workload.jobs.iter().cloned().chain(flood).collect(), span: workload.span }
}

/// Returns `each` jobs of every tenant. The median duration differs by up to a factor of four between tenants.
pub(crate) fn equal(random: &mut Random, each: usize) -> Vec<Job> {
    let median = |tenant: usize| 900.0 * 4.0_f64.powf(tenant as f64 / (TENANTS - 1) as f64);
    let owners = (0..TENANTS).flat_map(|tenant| (0..each).map(move |_| tenant));
    owners.map(|tenant| job(random, tenant, 0.0, median(tenant))).collect()
}
