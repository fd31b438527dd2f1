//! The mapping of the trainer section: batch sizes, learning rate, optimizer, evaluation, early stopping.

use serde_json::{Value, json};

use super::{
    report::Verdict,
    section::{Job, Section},
};

const HYPERPARAMETERS: &str = "method.supervised.hyperparameters";

pub(super) fn map(top: &mut Section, job: &mut Job) {
    job.set("method.type", "supervised".into());
    let mut trainer = top.section(job, "trainer").unwrap_or_else(|| Section::top(serde_json::Map::new()));
    match trainer.take("type") {
        None => {}
        Some(kind) if kind == "finetune" => job.report.note("trainer.type", Verdict::Mapped("a job".into())),
        Some(kind) => trainer.refused(job, "type", format!("{kind} does not train. Use finetune")),
    }
    trainer.map(job, "learning_rate", "trainer.learning_rate");
    trainer.map(job, "epochs", &format!("{HYPERPARAMETERS}.n_epochs"));
    trainer.map(job, "train_steps", "trainer.max_steps");
    batches(&mut trainer, job);
    schedule(&mut trainer, job);
    optimizer(&mut trainer, job);
    clipping(&mut trainer, job);
    trainer.map(job, "enable_gradient_checkpointing", "trainer.gradient_checkpointing");
    looks(&mut trainer, job);
    trainer.only(job, "should_shuffle", &[json!(true)], "rows are always shuffled, by the seed");
    trainer.only(job, "regularization_lambda", &[json!(0)], "only weight_decay is supported");
    trainer.only(job, "increase_batch_size_on_plateau", &[json!(0)], "the batch size is constant");
    trainer.only(job, "reduce_learning_rate_on_plateau", &[json!(0)], "the schedule does not depend on the loss");
    trainer.only(job, "base_learning_rate", &[json!(0)], "only learning_rate is supported");
    trainer.only(job, "bucketing_field", &[], "batches are always packed by length");
    trainer.ignore(job, &["use_mixed_precision", "compile"], "the device determines the compute dtype and kernels");
    trainer.ignore(job, &["regularization_type"], "there is no regularization");
    trainer.ignore(job, &["max_batch_size"], "the batch size is set, or is computed from the number of rows");
    trainer.ignore(job, &["enable_profiling", "profiler"], "every step's time is an event of the job");
    trainer.done(job);
}

/// Maps the batch sizes: `batch_size` is the micro-batch, and a step's batch is `batch_size` times
/// `gradient_accumulation_steps`.
fn batches(trainer: &mut Section, job: &mut Job) {
    let number = |value: &Option<Value>| value.as_ref().and_then(Value::as_i64);
    let (at_once, steps) = (trainer.take("batch_size"), trainer.take("gradient_accumulation_steps"));
    let effective = trainer.take("effective_batch_size");
    let to = format!("{HYPERPARAMETERS}.batch_size");
    if let Some(at_once) = &at_once {
        trainer.mapped(job, "batch_size", "trainer.micro_batch_size", at_once.clone());
    }
    match (number(&effective), number(&at_once)) {
        (Some(effective), _) => {
            trainer.mapped(job, "effective_batch_size", &to, effective.into());
            if steps.is_some() {
                let why = "it follows from the two batch sizes".to_owned();
                job.report.note(trainer.key("gradient_accumulation_steps"), Verdict::Ignored(why));
            }
        }
        (None, Some(at_once)) => {
            let whole = at_once.saturating_mul(number(&steps).unwrap_or(1));
            trainer.mapped(job, "gradient_accumulation_steps", &to, whole.into());
            if effective.is_some() {
                job.report.note(trainer.key("effective_batch_size"), Verdict::Mapped(format!("{to}: {whole}")));
            }
        }
        (None, None) => {
            job.set(&to, "auto".into());
            for (name, value) in [("gradient_accumulation_steps", &steps), ("effective_batch_size", &effective)] {
                match value {
                    Some(value) if value.is_number() => {
                        trainer.refused(job, name, "it needs batch_size to determine the rows of a step");
                    }
                    Some(_) => job.report.note(trainer.key(name), Verdict::Mapped(format!("{to}: \"auto\""))),
                    None => {}
                }
            }
        }
    }
}

fn schedule(trainer: &mut Section, job: &mut Job) {
    let Some(mut rate) = trainer.section(job, "learning_rate_scheduler") else {
        let what = "trainer.schedule: \"constant\", trainer.warmup_ratio: 0";
        job.report.note("trainer.learning_rate_scheduler", Verdict::Default(what.into()));
        job.set("trainer.schedule", "constant".into());
        job.set("trainer.warmup_ratio", json!(0.0));
        return;
    };
    let decay = rate.take("decay");
    match decay.as_ref().map(|decay| decay.as_str().unwrap_or("")) {
        None => rate.map_or(job, "decay", "trainer.schedule", "constant".into()),
        Some("linear") => rate.mapped(job, "decay", "trainer.schedule", "linear".into()),
        Some("cosine") if rate.take("t_0").is_none() => {
            rate.mapped(job, "decay", "trainer.schedule", "cosine".into());
        }
        Some("cosine") => {
            rate.refused(job, "t_0", "the restart period is not supported. Use trainer.num_cycles in a job file")
        }
        Some(_) => rate.refused(job, "decay", "only linear, cosine and no decay are supported"),
    }
    rate.map_or(job, "warmup_fraction", "trainer.warmup_ratio", json!(0.0));
    rate.only(job, "warmup_evaluations", &[json!(0)], "the warm-up is a fraction of all steps. Use warmup_fraction");
    rate.only(job, "reduce_on_plateau", &[json!(0)], "the schedule does not depend on the loss");
    rate.only(job, "eta_min", &[json!(0)], "the learning rate decays to 0");
    rate.only(job, "t_mult", &[json!(1)], "all cycles have the same length");
    rate.ignore(
        job,
        &["reduce_on_plateau_patience", "reduce_on_plateau_rate", "reduce_eval_metric", "reduce_eval_split"],
        "the learning rate is not reduced on a plateau",
    );
    rate.ignore(job, &["decay_steps", "decay_rate", "staircase"], "they belong to exponential decay");
    rate.done(job);
}

fn optimizer(trainer: &mut Section, job: &mut Job) {
    let Some(mut moves) = trainer.section(job, "optimizer") else {
        job.report
            .note("trainer.optimizer", Verdict::Default("trainer.optimizer: \"adamw\", without weight decay".into()));
        job.set("trainer.optimizer", "adamw".into());
        job.set("trainer.weight_decay", json!(0.0));
        return;
    };
    let kind = moves.take("type");
    let kind = kind.as_ref().map_or("adam", |kind| kind.as_str().unwrap_or(""));
    let decay = moves.take("weight_decay").unwrap_or_else(|| json!(0.0));
    match kind {
        "adamw" | "paged_adamw" => moves.mapped(job, "type", "trainer.optimizer", "adamw".into()),
        "adamw_8bit" | "paged_adamw_8bit" => moves.mapped(job, "type", "trainer.optimizer", "adamw_8bit".into()),
        // Without weight decay, Adam and AdamW are the same.
        "adam" | "paged_adam" | "adam_8bit" | "paged_adam_8bit" if decay.as_f64() == Some(0.0) => {
            let own = if kind.ends_with("8bit") { "adamw_8bit" } else { "adamw" };
            moves.mapped(job, "type", "trainer.optimizer", own.into());
        }
        "adam" | "paged_adam" | "adam_8bit" | "paged_adam_8bit" => {
            moves.refused(
                job,
                "type",
                "Adam's coupled weight decay is not supported. Use adamw, whose decay is decoupled",
            );
        }
        other => moves.refused(job, "type", format!("{other} is not supported. Use adamw or adamw_8bit")),
    }
    moves.mapped(job, "weight_decay", "trainer.weight_decay", decay);
    moves.only(job, "betas", &[json!([0.9, 0.999])], "only 0.9 and 0.999 are supported");
    moves.only(job, "eps", &[json!(1e-8)], "only 1e-8 is supported");
    moves.only(job, "amsgrad", &[json!(false)], "AMSGrad is not supported");
    moves.ignore(
        job,
        &["optim_bits", "percentile_clipping", "block_wise", "min_8bit_size"],
        "the optimizer type determines the format of the moments",
    );
    moves.done(job);
}

fn clipping(trainer: &mut Section, job: &mut Job) {
    let norm = "trainer.max_grad_norm";
    let Some(mut clip) = trainer.section(job, "gradient_clipping") else {
        job.report.note("trainer.gradient_clipping", Verdict::Default(format!("{norm}: 0.5")));
        job.set(norm, json!(0.5));
        return;
    };
    clip.map_or(job, "clipglobalnorm", norm, json!(0.5));
    clip.only(job, "clipnorm", &[], "only the global norm is clipped. Use clipglobalnorm");
    clip.only(job, "clipvalue", &[], "only the global norm is clipped. Use clipglobalnorm");
    clip.done(job);
}

/// Maps checkpoints and evaluation: Ludwig evaluates at every checkpoint.
fn looks(trainer: &mut Section, job: &mut Job) {
    let looks = trainer.take("steps_per_checkpoint");
    let has_looks = looks.as_ref().and_then(Value::as_i64).is_some_and(|steps| steps > 0);
    match looks {
        Some(steps) if has_looks => {
            trainer.mapped(job, "steps_per_checkpoint", "trainer.checkpoint_every_steps", steps.clone());
            job.set("trainer.eval_every_steps", steps);
        }
        Some(_) => {
            let why = "0 means Attune's default: a checkpoint every 20 steps, an evaluation at the end".to_owned();
            job.report.note(trainer.key("steps_per_checkpoint"), Verdict::Ignored(why));
        }
        None => {}
    }
    trainer.only(job, "checkpoints_per_epoch", &[json!(0)], "checkpoints are set in steps. Use steps_per_checkpoint");
    match trainer.take("early_stop") {
        Some(rounds) if rounds.as_i64().is_some_and(|rounds| rounds > 0) && !has_looks => {
            trainer.refused(job, "early_stop", "it counts evaluations. Set steps_per_checkpoint too");
        }
        Some(rounds) if rounds.as_i64().is_some_and(|rounds| rounds > 0) => {
            trainer.mapped(job, "early_stop", "trainer.early_stopping_patience", rounds);
        }
        Some(_) => job.report.note(trainer.key("early_stop"), Verdict::Ignored("the job runs to its end".into())),
        None => {}
    }
    trainer.only(job, "validation_metric", &[json!("loss")], "only the loss is supported");
    trainer.ignore(job, &["validation_field"], "there is one output");
    trainer.ignore(job, &["eval_batch_size"], "the evaluation batch size does not change the loss");
    trainer.only(job, "evaluate_training_set", &[json!(false)], "the loss of every step is an event of the job");
    trainer.only(job, "skip_all_evaluation", &[json!(false)], "remove the validation file instead");
}
