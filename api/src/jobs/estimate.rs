//! Estimates of jobs: the tokens, counted by the code that validation and training use; the memory and machine, from
//! the function that dispatch uses; the time, from the throughput of similar runs.
//!
//! The files are streamed through the tokenizer in constant memory, on a thread of their own, in a slot of
//! [`crate::files::text_places`].

use std::sync::Arc;

use attune_domain::{
    id::ProjectId,
    memory::{self, Workload},
    offer::{Offer, Placement, place, refusal},
    spec::TrainSpec,
    throughput::{JobTokens, Source, Throughput},
};
use attune_store::{
    adapters::base_model,
    files::file::File,
    jobs::job::FileFacts,
    runs::offer::{self, Throughput as MeasuredThroughput},
};
use attune_text::{
    model::{FILES, TextModel},
    row_stats::RowsError,
    rows::{RowPolicy, RowReader},
};
use tokio::sync::mpsc::channel;

use crate::{
    app::App,
    error::ApiError,
    files::{
        preview::{stream, unusable},
        text_places::TextPlace,
    },
    jobs::prepare::Made,
    wire::{
        estimate::{BandView, EstimateView, FactsView, MemoryView, OfferView, PaceView, RefusalView},
        hyperparameters::HyperparametersView,
        job_view::{QuantizationView, TrainerView},
        method::MethodView,
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
    let scanned = app.text.work(project, |place| scan(app, &made, Arc::new(place))).await?;
    let mut db = app.platform().await?;
    let offers = offer::list(&mut db).await?;
    let longest = scanned.training.longest_row.max(scanned.validation.map_or(0, |facts| facts.longest_row)).max(1);
    let work = Workload { architecture: &made.base.architecture, train: &made.row.spec, longest_row: longest };
    let place = Placed::find(work, &offers);
    let throughput = match &place.offer {
        Some(offer) => offer::throughput(&mut db, &offer.name, made.base.base_model_id).await?,
        None => None,
    };
    Ok(view(&made, scanned, place, throughput))
}

/// Counts both files.
async fn scan(app: &App, made: &Made, place: Arc<TextPlace>) -> Result<Scanned, ApiError> {
    let mut db = app.platform().await?;
    let blobs = base_model::files(&mut db, made.base.base_model_id).await?;
    drop(db);
    let files = base_model::small_files(&app.objects, &blobs, &FILES).await?;
    let model = tokio::task::spawn_blocking(move || TextModel::from_files(&files)).await.map_err(ApiError::internal)?;
    let model = model.map_err(|error| unusable(&error))?.with_kwargs(made.row.spec.chat_template_kwargs.clone());
    let model = Arc::new(model);
    let policy = RowPolicy::new(&made.row.spec, chrono::Utc::now().timestamp());
    let (training, mut notes) = scan_file(app, (&model, &place), &made.training, ("training_file", policy)).await?;
    let mut validation = None;
    if let Some(file) = &made.validation {
        let (facts, more) = scan_file(app, (&model, &place), file, ("validation_file", policy)).await?;
        notes.extend(more);
        validation = Some(facts);
    }
    Ok(Scanned { training, validation, notes })
}

async fn scan_file(
    app: &App,
    (model, place): (&Arc<TextModel>, &Arc<TextPlace>),
    file: &File,
    (param, policy): (&'static str, RowPolicy),
) -> Result<(FileFacts, Vec<String>), ApiError> {
    let (pieces, mut inbox) = channel::<bytes::Bytes>(4);
    let (model, place) = (model.clone(), place.clone());
    let counting = tokio::task::spawn_blocking(move || {
        let mut rows = RowReader::new(&model, policy);
        while let Some(piece) = inbox.blocking_recv().filter(|_| !place.stop().is_set()) {
            rows.push(&piece, &mut drop);
        }
        rows.finish(&mut drop)
    });
    let streamed = stream(&app.objects, file.rows_sha256(), pieces).await;
    let stats = counting.await.map_err(ApiError::internal)?;
    streamed?;
    let stats = stats.map_err(|error| refused(param, &error))?;
    let max_length = policy.max_length;
    let notes = stats.changes(max_length).into_iter().chain(stats.packing(max_length));
    let facts = stats.facts;
    let facts = FileFacts {
        rows: facts.rows,
        tokens: facts.tokens,
        trained_tokens: facts.trained_tokens,
        longest_row: facts.longest_row,
    };
    Ok((facts, notes.map(|note| format!("{param}: {note}")).collect()))
}

fn refused(param: &'static str, error: &RowsError) -> ApiError {
    let code = match (error.is_length(), param) {
        (true, _) => "row_too_long",
        (false, "training_file") => "invalid_training_file",
        (false, _) => "invalid_validation_file",
    };
    ApiError::Invalid { param: Some(param.into()), code, message: format!("Invalid '{param}': {error}.") }
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
            Placement::Later(_) => (place(work, &idle), true),
            found => (found, false),
        };
        let Placement::Now { offer, plan, estimate } = placement else {
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

/// Returns the tokens and the trained tokens of the whole job, and whether they are exact.
fn whole(spec: &TrainSpec, facts: FileFacts) -> (u64, u64, bool) {
    let all = TrainSpec { max_steps: None, ..spec.clone() }.total_steps(facts.rows).max(1);
    let steps = spec.total_steps(facts.rows);
    let of = |per_epoch: u64| {
        let epochs = u128::from(per_epoch) * u128::from(spec.n_epochs);
        u64::try_from(epochs * u128::from(steps) / u128::from(all)).unwrap_or(u64::MAX)
    };
    let per_epoch = (all / u64::from(spec.n_epochs.max(1))).max(1);
    let is_exact = steps.is_multiple_of(per_epoch) && spec.early_stopping_patience == 0;
    (of(facts.tokens), of(facts.trained_tokens), is_exact)
}

/// Returns the number of passes over the validation file: one every `eval_every_steps` steps, the last at the end.
fn validations(spec: &TrainSpec, steps: u64) -> u64 {
    match spec.eval_every_steps {
        0 => 1,
        every => steps.div_ceil(every).max(1),
    }
}

fn view(made: &Made, scanned: Scanned, place: Placed, measured: Option<MeasuredThroughput>) -> EstimateView {
    let spec = made.row.spec.clone();
    let total_steps = spec.total_steps(scanned.training.rows);
    let (tokens, trained_tokens, is_exact) = whole(&spec, scanned.training);
    let validated = scanned.validation.map_or(0, |facts| facts.tokens * validations(&spec, total_steps));
    let throughput = place.plan.as_ref().map(|plan| match measured {
        Some(seen) => {
            let throughput = Throughput { tokens_per_second: seen.tokens_per_second, source: Source::Measured };
            (throughput, seen.runs)
        }
        None => (Throughput::assumed(&made.base.architecture, plan.threads, plan.checkpointing), 0),
    });
    let duration = throughput.map(|(throughput, _)| throughput.seconds(JobTokens { trained: tokens, validated }));
    let usd_per_second = place.offer.as_ref().map_or(0.0, |offer| offer.micro_usd_per_hour as f64 / 3.6e9);
    let usd_for_tokens = trained_tokens as f64 * made.row.micro_usd_per_million_tokens as f64 / 1e12;
    EstimateView {
        object: "fine_tuning.estimate",
        model: made.base.name.clone(),
        method: MethodView::from(&spec),
        hyperparameters: HyperparametersView::from(&spec),
        quantization: QuantizationView::from(spec.quantization),
        trainer: TrainerView::from(&spec),
        seed: spec.seed,
        adapter: spec.adapter.into(),
        training: FactsView::from(scanned.training),
        validation: scanned.validation.map(FactsView::from),
        notes: scanned.notes,
        total_steps,
        tokens,
        trained_tokens,
        is_exact,
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
    use attune_domain::{architecture::Architecture, bytes::Bytes, spec::Requested};

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
    fn a_job_that_must_wait_is_told_what_it_will_get() {
        let found = placed(&[offer("busy", 4000, 0, 0)]);
        assert_eq!((found.offer.as_ref().unwrap().name.as_str(), found.waits), ("busy", true));
        assert_eq!(codes(&found), ["no_slot"]);
        let none = placed(&[offer("small", 100, 1, 0)]);
        assert!(none.offer.is_none() && none.plan.is_none() && !none.waits);
        assert!(none.memory.peak > Bytes::mib(100));
    }

    #[test]
    fn whole_epochs_are_exact_and_a_cut_one_is_its_share() {
        let facts = FileFacts { rows: 10, tokens: 1000, trained_tokens: 400, longest_row: 100 };
        let asked = |max_steps| {
            let asked =
                Requested { effective_batch_size: Some(4), n_epochs: Some(2), max_steps, ..Requested::default() };
            whole(&TrainSpec::check(&asked, 10, 512).unwrap(), facts)
        };
        assert_eq!(asked(None), (2000, 800, true));
        assert_eq!(asked(Some(3)), (1000, 400, true));
        assert_eq!(asked(Some(4)), (1333, 533, false));
    }
}
