//! Estimates of jobs: the tokens, counted by the code that validation and training use; the memory and machine, from
//! the function that dispatch uses; the time, from the rate of earlier runs and the operations of the job.
//!
//! The files are streamed through the tokenizer in constant memory, on a thread of their own, in a slot of
//! [`crate::files::text_places`].

use std::sync::Arc;

use attune_dataprep::{
    base_text,
    blob::read_blob,
    refusal::JobFile,
    scan::{self, scan},
};
use attune_domain::{
    catalogue::advice,
    dataset::file_facts::FileFacts,
    id::ProjectId,
    memory::{self, Margin, Workload},
    offer::{Decision, Offer, Ranking, Terms, place, prospect, refusal, unsupported},
    run::Plan,
    throughput::{JobFacts, JobTokens, Rate, TokenCost, is_exact, over_all_steps},
};
use attune_store::{
    adapters::base_model,
    catalogue,
    files::file::File,
    runs::{offer, past_runs},
};
use attune_text::{model::TextModel, rows::RowPolicy};
use chrono::Utc;

use crate::{
    app::App,
    error::ApiError,
    files::{
        row_errors::{refused, unopened, unread},
        text_places::TextPlace,
    },
    jobs::{prepare::Made, quotas},
    wire::{
        advice::AdviceView,
        estimate::{BandView, EstimateView, FactsView, MemoryView, OfferView, PaceView, RefusalView},
        job_view::QuantizationView,
        method::MethodView,
        project_queue::QuotasView,
        trainer::TrainerView,
    },
};

/// The facts of both files.
struct Scanned {
    training: FileFacts,
    validation: Option<FileFacts>,
    notes: Vec<String>,
}

impl Scanned {
    /// Returns the number of tokens of the longest row.
    fn longest_row(&self) -> u64 {
        self.training.longest_row.max(self.validation.map_or(0, |facts| facts.longest_row)).max(1)
    }

    fn facts(&self) -> JobFacts {
        JobFacts { training: self.training, validation: self.validation }
    }
}

/// Computes an estimate. Creates nothing.
///
/// # Errors
/// A row that a job would refuse: the error has its code and names the lines. [`ApiError::Busy`]: the files are too
/// large to be read in time, or too many other requests are reading files.
pub async fn work_out(app: &App, project: ProjectId, made: Made) -> Result<EstimateView, ApiError> {
    let scanned = app.text.work(project, |place| count(app, &made, Arc::new(place))).await?;
    let mut db = app.platform().await?;
    let offers = offer::list(&mut db).await?;
    let work =
        Workload { architecture: &made.base.architecture, train: &made.row.spec, longest_row: scanned.longest_row() };
    let past = past_runs::recent(&mut db).await?;
    let rate = |offer| Rate::on_offer(&past, made.base.base_model_id, &made.base.architecture, offer);
    let rates: Vec<Rate> = offers.iter().map(rate).collect();
    let place = Placed::find(work, &offers, &ranking(&made, (work, &scanned), (&offers, &rates)));
    let advice = match place.taken {
        Some(_) => None,
        None => {
            let (need, entries) = (memory::smallest_on_cuda(work), catalogue::load(&mut db).await?);
            Some(AdviceView::new(&advice(&need, &entries), Utc::now()))
        }
    };
    let pace = place.taken.map(|index| {
        let cost = TokenCost::on_offer(work, scanned.facts(), place.plan.as_ref(), &offers[index]);
        Pace { rate: rates[index].clone(), cost }
    });
    let quotas = quotas::of(app, &mut db, project).await?;
    Ok(view(&made, (scanned, place, pace), (advice, quotas)))
}

/// The rate on the offer that is taken, and the operations of the job there.
struct Pace {
    rate: Rate,
    cost: TokenCost,
}

/// Ranks the offers as dispatch does, by the predicted cost of the job.
fn ranking(made: &Made, (work, scanned): (Workload<'_>, &Scanned), (offers, rates): (&[Offer], &[Rate])) -> Ranking {
    let need = memory::smallest(work).needed();
    let is_usable = |offer: &Offer| {
        offer.is_large_enough(need) && unsupported(offer).is_none() && made.row.limits.refusal(offer).is_none()
    };
    let costs: Vec<TokenCost> =
        offers.iter().map(|offer| TokenCost::on_offer(work, scanned.facts(), None, offer)).collect();
    let speed =
        |(index, offer): (usize, &Offer)| is_usable(offer).then(|| rates[index].tokens_per_second(costs[index]));
    let speeds: Vec<_> = offers.iter().enumerate().map(speed).collect();
    let tokens = JobTokens::of(&made.row.spec, scanned.training, scanned.validation);
    let found = prospect(offers, &speeds);
    let seconds = found.as_ref().map_or(0.0, |(first, _)| rates[*first].seconds(costs[*first], tokens).likely);
    let slowness = found.map(|(_, slowness)| slowness).unwrap_or_default();
    let now = Utc::now().timestamp() as f64;
    Ranking::of(offers, Terms { limits: &made.row.limits, seconds, slowness: &slowness, now })
}

/// Counts both files.
async fn count(app: &App, made: &Made, place: Arc<TextPlace>) -> Result<Scanned, ApiError> {
    let mut db = app.platform().await?;
    let blobs = base_model::files(&mut db, made.base.base_model_id).await?;
    drop(db);
    let model = base_text::open(&app.objects, &blobs, place.clone()).await.map_err(unopened)?;
    let model = Arc::new(model.with_kwargs(made.row.spec.chat_template_kwargs.clone()));
    let policy = RowPolicy::new(&made.row.spec, Utc::now().timestamp());
    let counter = Counter { app, model, place, policy };
    let scan::Scanned { facts: training, mut notes } = counter.scan(JobFile::Training, &made.training).await?;
    let mut validation = None;
    if let Some(file) = &made.validation {
        let scanned = counter.scan(JobFile::Validation, file).await?;
        notes.extend(scanned.notes);
        validation = Some(scanned.facts);
    }
    Ok(Scanned { training, validation, notes: notes.into_iter().map(|(_, note)| note).collect() })
}

/// A counter of rows' tokens, in a slot.
struct Counter<'a> {
    app: &'a App,
    model: Arc<TextModel>,
    place: Arc<TextPlace>,
    policy: RowPolicy,
}

impl Counter<'_> {
    async fn scan(&self, which: JobFile, file: &File) -> Result<scan::Scanned, ApiError> {
        let (model, place, policy) = (self.model.clone(), self.place.clone(), self.policy);
        let counting = read_blob(&self.app.objects, file.rows_sha256(), move |chunks| {
            scan(&model, policy, which, chunks.take_while(|_| !place.stop().is_set()))
        });
        counting.await.map_err(unread)?.map_err(refused)
    }
}

/// The placement of the job.
struct Placed {
    offer: Option<Offer>,
    /// The index of the offer.
    taken: Option<usize>,
    plan: Option<Plan>,
    memory: memory::MemoryEstimate,
    refusals: Vec<RefusalView>,
    waits: bool,
}

impl Placed {
    /// Places the job as dispatch would now; if it would have to wait, as dispatch would on unused machines.
    fn find(work: Workload<'_>, offers: &[Offer], ranking: &Ranking) -> Self {
        let smallest = memory::smallest(work);
        let now = first(work, offers, ranking);
        let waits = now.is_none();
        let found = now.or_else(|| first(work, &offers.iter().map(idle).collect::<Vec<_>>(), ranking));
        let taken = found.as_ref().map(|(index, ..)| *index);
        let views = offers.iter().enumerate().filter_map(|(index, offer)| {
            match ranking.refused[index].clone().or_else(|| refusal(smallest.needed(), true, offer)) {
                Some(refusal) => Some(RefusalView::from(&refusal)),
                None => taken
                    .filter(|taken| *taken != index)
                    .map(|taken| RefusalView::not_cheaper(&offer.name, &offers[taken].name)),
            }
        });
        let refusals = views.collect();
        match found {
            Some((index, plan, memory)) => {
                Self { offer: Some(offers[index].clone()), taken, plan: Some(plan), memory, refusals, waits }
            }
            None => Self { offer: None, taken, plan: None, memory: smallest, refusals, waits: false },
        }
    }
}

/// Returns the first offer in the job's order that has room for it, and its plan there.
fn first(work: Workload<'_>, offers: &[Offer], ranking: &Ranking) -> Option<(usize, Plan, memory::MemoryEstimate)> {
    ranking.order.iter().find_map(|&index| match place(work, std::slice::from_ref(&offers[index])) {
        Decision::Now { plan, estimate, .. } => Some((index, plan, estimate)),
        _ => None,
    })
}

/// Returns the offer without any reservations.
fn idle(offer: &Offer) -> Offer {
    Offer { reserved: attune_domain::bytes::Bytes(0), free_slots: offer.free_slots.max(1), ..offer.clone() }
}

fn view(
    made: &Made,
    (scanned, place, pace): (Scanned, Placed, Option<Pace>),
    (advice, quotas): (Option<AdviceView>, QuotasView),
) -> EstimateView {
    let quota = quotas.wait_reason();
    let spec = made.row.spec.clone();
    let total_steps = spec.total_steps(scanned.training.rows);
    let FileFacts { rows, trained_tokens: per_epoch, .. } = scanned.training;
    let tokens = JobTokens::of(&spec, scanned.training, scanned.validation);
    let trained_tokens = over_all_steps(&spec, rows, per_epoch);
    let duration = pace.as_ref().map(|pace| pace.rate.seconds(pace.cost, tokens));
    let usd_per_second = place.offer.as_ref().map_or(0.0, |offer| offer.micro_usd_per_hour as f64 / 3.6e9);
    let usd_for_tokens = trained_tokens as f64 * made.row.micro_usd_per_million_tokens as f64 / 1e12;
    EstimateView {
        object: "fine_tuning.estimate",
        model: made.base.name.clone(),
        method: MethodView::from(&spec),
        hyperparameters: spec.hyperparameters,
        quantization: QuantizationView::from(spec.quantization),
        trainer: TrainerView::from(&spec),
        seed: spec.seed,
        adapter: spec.adapter,
        training: FactsView::from(scanned.training),
        validation: scanned.validation.map(FactsView::from),
        notes: scanned.notes,
        total_steps,
        tokens: tokens.trained,
        trained_tokens,
        is_exact: is_exact(&made.row.spec, rows),
        memory: MemoryView::new(&place.memory, place.offer.as_ref().map_or_else(Margin::default, |offer| offer.margin)),
        plan: place.plan.as_ref().map(Into::into),
        offer: place.offer.as_ref().map(OfferView::from),
        refusals: place.refusals,
        gpu_advice: advice,
        waits: place.waits || quota.is_some(),
        waiting_reason: quota.map(|reason| reason.to_string()),
        quotas,
        pace: pace.as_ref().map(|pace| PaceView::new(&pace.rate, pace.cost)),
        duration_seconds: duration.map(BandView::from),
        duration_source: pace.as_ref().map(|pace| pace.rate.source.into()),
        duration_note: pace.as_ref().map(|pace| pace.rate.note()),
        price_usd: duration.map(|band| band.scaled(usd_per_second, usd_for_tokens).into()),
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::Architecture,
        bytes::Bytes,
        offer::ComputeLimits,
        spec::{Requested, TrainSpec},
    };

    use super::*;

    const TINY: &str = include_str!("../../../domain/testdata/tiny.json");

    fn offer(name: &str, mib: u64, free_slots: usize, price: u64) -> Offer {
        Offer { free_slots, micro_usd_per_hour: price, ..Offer::cpu("local", name, Bytes::mib(mib), 2) }
    }

    fn placed(offers: &[Offer]) -> Placed {
        let architecture = Architecture::from_config_json(TINY.as_bytes()).unwrap();
        let train = TrainSpec::check(&Requested::default(), 100, 512).unwrap();
        let limits = ComputeLimits { max_micro_usd_per_hour: Some(20), ..ComputeLimits::default() };
        let ranking = Ranking::of(offers, Terms { limits: &limits, seconds: 60.0, slowness: &[], now: 0.0 });
        Placed::find(Workload { architecture: &architecture, train: &train, longest_row: 80 }, offers, &ranking)
    }

    fn codes(placed: &Placed) -> Vec<&'static str> {
        placed.refusals.iter().map(|refusal| refusal.code).collect()
    }

    #[test]
    fn every_offer_but_the_one_that_is_taken_is_refused_with_its_reason() {
        let found = placed(&[
            offer("small", 100, 1, 0),
            offer("dear", 4000, 1, 9),
            offer("gold", 4000, 1, 21),
            offer("fits", 4000, 1, 3),
        ]);
        assert_eq!((found.offer.as_ref().unwrap().name.as_str(), found.taken), ("fits", Some(3)));
        assert_eq!((codes(&found), found.waits), (vec!["too_small", "not_cheaper", "price"], false));
    }

    #[test]
    fn a_job_that_must_wait_is_shown_what_it_will_get() {
        let found = placed(&[offer("busy", 4000, 0, 0)]);
        assert_eq!((found.offer.as_ref().unwrap().name.as_str(), found.waits), ("busy", true));
        assert_eq!(codes(&found), ["no_slot"]);
        let none = placed(&[offer("small", 100, 1, 0)]);
        assert!(none.offer.is_none() && none.plan.is_none() && !none.waits);
        assert!(none.memory.peak > Bytes::mib(100));
    }
}
