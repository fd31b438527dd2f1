//! Estimates of jobs: the tokens, counted by the code that validation and training use; the memory and machine, from
//! the function that dispatch uses; the time, from the throughput of similar runs.
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
    file_facts::FileFacts,
    id::ProjectId,
    memory::{self, Workload},
    offer::{Decision, Offer, place, refusal},
    throughput::{JobTokens, Source, Throughput, is_exact, over_all_steps},
};
use attune_store::{
    adapters::base_model,
    files::file::File,
    runs::offer::{self, Throughput as MeasuredThroughput},
};
use attune_text::{model::TextModel, rows::RowPolicy};

use crate::{
    app::App,
    error::ApiError,
    files::{
        row_errors::{refused, unopened, unread},
        text_places::TextPlace,
    },
    jobs::prepare::Made,
    wire::{
        estimate::{BandView, EstimateView, FactsView, MemoryView, OfferView, PaceView, RefusalView},
        job_view::QuantizationView,
        method::MethodView,
        trainer::TrainerView,
    },
};

/// The facts of both files.
struct Scanned {
    training: FileFacts,
    validation: Option<FileFacts>,
    notes: Vec<String>,
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
    let longest = scanned.training.longest_row.max(scanned.validation.map_or(0, |facts| facts.longest_row)).max(1);
    let work = Workload { architecture: &made.base.architecture, train: &made.row.spec, longest_row: longest };
    let place = Placed::find(work, &offers);
    let throughput = match &place.offer {
        Some(offer) => offer::throughput(&mut db, offer, made.base.base_model_id).await?,
        None => None,
    };
    Ok(view(&made, scanned, place, throughput))
}

/// Counts both files.
async fn count(app: &App, made: &Made, place: Arc<TextPlace>) -> Result<Scanned, ApiError> {
    let mut db = app.platform().await?;
    let blobs = base_model::files(&mut db, made.base.base_model_id).await?;
    drop(db);
    let model = base_text::open(&app.objects, &blobs, place.clone()).await.map_err(unopened)?;
    let model = Arc::new(model.with_kwargs(made.row.spec.chat_template_kwargs.clone()));
    let policy = RowPolicy::new(&made.row.spec, chrono::Utc::now().timestamp());
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
    plan: Option<attune_domain::run::Plan>,
    memory: memory::MemoryEstimate,
    refusals: Vec<RefusalView>,
    waits: bool,
}

impl Placed {
    /// Places the job as dispatch would now; if it would have to wait, as dispatch would on unused machines.
    fn find(work: Workload<'_>, offers: &[Offer]) -> Self {
        let idle: Vec<Offer> = offers.iter().map(idle).collect();
        let (placement, waits) = match place(work, offers) {
            Decision::Later(_) => (place(work, &idle), true),
            found => (found, false),
        };
        let Decision::Now { offer, plan, estimate } = placement else {
            let refusals = offers.iter().filter_map(|offer| refusal(memory::smallest(work).peak, true, offer));
            let refusals = refusals.map(|refusal| RefusalView::from(&refusal)).collect();
            return Self { offer: None, plan: None, memory: memory::smallest(work), refusals, waits };
        };
        let is_taken = |other: &Offer| (&other.provider, &other.name) == (&offer.provider, &offer.name);
        let refusals = offers.iter().filter_map(|other| match refusal(memory::smallest(work).peak, true, other) {
            Some(refusal) => Some(RefusalView::from(&refusal)),
            None if !is_taken(other) => Some(RefusalView::not_cheaper(&other.name, &offer.name)),
            None => None,
        });
        let refusals = refusals.collect();
        let found = offers.iter().find(|other| is_taken(other)).cloned();
        Self { offer: found, plan: Some(plan), memory: estimate, refusals, waits }
    }
}

/// Returns the offer without any reservations.
fn idle(offer: &Offer) -> Offer {
    Offer { reserved: attune_domain::bytes::Bytes(0), free_slots: offer.free_slots.max(1), ..offer.clone() }
}

fn view(made: &Made, scanned: Scanned, place: Placed, measured: Option<MeasuredThroughput>) -> EstimateView {
    let spec = made.row.spec.clone();
    let total_steps = spec.total_steps(scanned.training.rows);
    let FileFacts { rows, trained_tokens: per_epoch, .. } = scanned.training;
    let tokens = JobTokens::of(&spec, scanned.training, scanned.validation);
    let trained_tokens = over_all_steps(&spec, rows, per_epoch);
    let throughput = place.plan.as_ref().map(|plan| match measured {
        Some(seen) => {
            let throughput = Throughput { tokens_per_second: seen.tokens_per_second, source: Source::Measured };
            (throughput, seen.runs)
        }
        None => (Throughput::assumed(&made.base.architecture, plan.threads, plan.checkpointing), 0),
    });
    let duration = throughput.map(|(throughput, _)| throughput.seconds(tokens));
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
        memory: MemoryView::from(&place.memory),
        plan: place.plan.as_ref().map(Into::into),
        offer: place.offer.as_ref().map(OfferView::from),
        refusals: place.refusals,
        waits: place.waits,
        pace: throughput.map(|(throughput, runs)| PaceView::new(throughput, runs)),
        duration_seconds: duration.map(BandView::from),
        price_usd: duration.map(|band| band.scaled(usd_per_second, usd_for_tokens).into()),
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::Architecture,
        bytes::Bytes,
        spec::{Requested, TrainSpec},
    };

    use super::*;

    const TINY: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512}"#;

    fn offer(name: &str, mib: u64, free_slots: usize, price: u64) -> Offer {
        let (provider, name, memory, reserved) = ("local".into(), name.to_owned(), Bytes::mib(mib), Bytes(0));
        Offer { provider, name, memory, reserved, free_slots, threads: 2, micro_usd_per_hour: price }
    }

    fn placed(offers: &[Offer]) -> Placed {
        let architecture = Architecture::from_config_json(TINY.as_bytes()).unwrap();
        let train = TrainSpec::check(&Requested::default(), 100, 512).unwrap();
        Placed::find(Workload { architecture: &architecture, train: &train, longest_row: 80 }, offers)
    }

    fn codes(placed: &Placed) -> Vec<&'static str> {
        placed.refusals.iter().map(|refusal| refusal.code).collect()
    }

    #[test]
    fn every_offer_but_the_one_that_is_taken_is_refused_with_its_reason() {
        let found = placed(&[offer("small", 100, 1, 0), offer("dear", 4000, 1, 9), offer("fits", 4000, 1, 3)]);
        assert_eq!(found.offer.as_ref().unwrap().name, "fits");
        assert_eq!((codes(&found), found.waits), (vec!["too_small", "not_cheaper"], false));
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
