//! Maps a Ludwig config to a job. Pure.
//!
//! If a missing key has a default of Ludwig's that changes the result of training (rank, dropout, schedule), that
//! default is set in the job, so that the job is the one that Ludwig would have run.
//!
//! Source: Ludwig's documentation, "Large Language Models", "Trainer" and "Preprocessing" (0.10).

use serde_json::{Map, Value, json};

use super::{
    report::{Report, Verdict},
    rows::{Recipe, Split},
    section::{Job, Section},
    template::Template,
    trainer,
};

/// The job of a config.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// The request's body, except for its files.
    pub(crate) body: Map<String, Value>,
    /// The conversion of the table's rows to rows of prompt and completion.
    pub(crate) recipe: Option<Recipe>,
    /// The mapping of each key.
    pub(crate) report: Report,
}

/// Returns whether a job file is a Ludwig config.
pub(crate) fn is_ludwig(config: &Map<String, Value>) -> bool {
    ["model_type", "base_model", "input_features", "output_features"].iter().any(|key| config.contains_key(*key))
}

/// Maps a config; the report lists the keys that are not supported.
pub(crate) fn map(config: Map<String, Value>) -> Mapping {
    let mut top = Section::top(config);
    let mut job = Job::default();
    top.only(&mut job, "model_type", &[json!("llm")], "only configs of language models (llm) are supported");
    base_model(&mut top, &mut job);
    let seed = top.take("random_seed");
    match &seed {
        Some(seed) => top.mapped(&mut job, "random_seed", "seed", seed.clone()),
        None => job.set("seed", json!(42)),
    }
    let seed = seed.and_then(|seed| seed.as_u64()).unwrap_or(42);
    adapter(&mut top, &mut job);
    quantization(&mut top, &mut job);
    trainer::map(&mut top, &mut job);
    let input = feature(&mut top, &mut job, "input_features");
    let output = feature(&mut top, &mut job, "output_features");
    let template = prompt(&mut top, &mut job, input.as_deref());
    let (split, sample_ratio) = preprocessing(&mut top, &mut job);
    top.ignore(&mut job, &["generation"], "sampling parameters, such as temperature, belong to each request");
    top.ignore(&mut job, &["backend"], "the platform chooses the node");
    top.ignore(&mut job, &["ludwig_version"], "the release of the config has no effect");
    top.done(&mut job);
    let recipe = template.zip(output).map(|(template, answer)| Recipe {
        template,
        sample: input,
        answer,
        split,
        sample_ratio,
        seed,
    });
    Mapping { body: job.body, recipe, report: job.report }
}

/// Maps the base model's name: `meta-llama/Llama-2-7b-hf` becomes `llama-2-7b-hf`.
fn base_model(top: &mut Section, job: &mut Job) {
    match top.take("base_model") {
        Some(Value::String(name)) => {
            let own = name.rsplit('/').next().unwrap_or(&name).to_ascii_lowercase();
            job.report.note("base_model", Verdict::Mapped(format!("model: {own:?} (--model overrides it)")));
            job.set("model", own.into());
        }
        Some(other) => top.refused(job, "base_model", format!("it must be a name, not {other}")),
        None => top.refused(job, "base_model", "it is missing"),
    }
}

fn adapter(top: &mut Section, job: &mut Job) {
    let Some(mut adapter) = top.section(job, "adapter") else {
        top.refused(job, "adapter", "it is missing; full fine-tuning is not supported. Use type: lora");
        return;
    };
    match adapter.take("type") {
        None => {}
        Some(kind) if kind == "lora" => job.report.note("adapter.type", Verdict::Mapped("adapter".into())),
        Some(kind) => adapter.refused(job, "type", format!("{kind} is not supported. Use lora")),
    }
    let rank = adapter.take("r");
    match rank.clone() {
        Some(rank) => adapter.mapped(job, "r", "adapter.rank", rank),
        None => adapter.map_or(job, "r", "adapter.rank", json!(8)),
    }
    let alpha = rank.and_then(|rank| rank.as_i64()).map_or(16, |rank| 2 * rank);
    adapter.map_or(job, "alpha", "adapter.lora_alpha", json!(alpha));
    adapter.map_or(job, "dropout", "adapter.lora_dropout", json!(0.05));
    match adapter.take("target_modules") {
        Some(Value::String(all)) => adapter.mapped(job, "target_modules", "adapter.target_modules", json!([all])),
        Some(list) => adapter.mapped(job, "target_modules", "adapter.target_modules", list),
        None => adapter.map_or(job, "target_modules", "adapter.target_modules", json!(["q_proj", "v_proj"])),
    }
    adapter.map(job, "use_rslora", "adapter.use_rslora");
    adapter.map(job, "use_dora", "adapter.use_dora");
    adapter.only(job, "bias_type", &[json!("none")], "biases are not trained");
    adapter.only(job, "init_lora_weights", &[json!(true)], "only the initialization of the LoRA paper is supported");
    adapter.only(
        job,
        "pretrained_adapter_weights",
        &[],
        "the adapter to start from must be on the platform. Set its ID with --continue-from",
    );
    if let Some(mut after) = adapter.section(job, "postprocessor") {
        after.only(
            job,
            "merge_adapter_into_base_model",
            &[json!(false)],
            "adapters are not merged into the base model",
        );
        after.ignore(job, &["progressbar"], "nothing is merged");
        after.done(job);
    }
    adapter.done(job);
}

fn quantization(top: &mut Section, job: &mut Job) {
    let Some(mut held) = top.section(job, "quantization") else {
        job.report.note("quantization", Verdict::Default("quantization.type: \"none\"".into()));
        job.set("quantization.type", "none".into());
        return;
    };
    let bits = held.take("bits");
    match bits.as_ref().and_then(Value::as_i64) {
        Some(4) => held.mapped(job, "bits", "quantization.type", "nf4".into()),
        Some(8) => held.mapped(job, "bits", "quantization.type", "int8".into()),
        None if bits.is_none() => held.map_or(job, "bits", "quantization.type", "nf4".into()),
        _ => held.refused(job, "bits", "only 4 and 8 are supported"),
    }
    held.only(job, "bnb_4bit_quant_type", &[json!("nf4")], "only nf4 is supported for 4 bits");
    held.map(job, "bnb_4bit_use_double_quant", "quantization.double_quant");
    held.ignore(job, &["bnb_4bit_compute_dtype"], "the device determines the compute dtype");
    held.ignore(
        job,
        &["llm_int8_threshold", "llm_int8_has_fp16_weight"],
        "int8 has one scale per row and no outlier columns",
    );
    held.done(job);
}

/// Returns the column of the list's only feature.
fn feature(top: &mut Section, job: &mut Job, list: &str) -> Option<String> {
    let mut features = match top.take(list) {
        Some(Value::Array(features)) => features,
        _ => {
            top.refused(job, list, "it must be a list with one feature");
            return None;
        }
    };
    if features.len() != 1 {
        top.refused(
            job,
            list,
            format!("it must have one feature, not {}. Use further columns in prompt.template", features.len()),
        );
        return None;
    }
    let mut nested = Map::new();
    let key = format!("{list}[0]");
    nested.insert(key.clone(), features.swap_remove(0));
    let mut one = Section::top(nested).section(job, &key)?;
    one.only(job, "type", &[json!("text")], "only text features are supported");
    let name = one.take("name").and_then(|name| name.as_str().map(str::to_owned));
    let column = one.take("column").and_then(|column| column.as_str().map(str::to_owned));
    let found = column.or_else(|| name.clone());
    match &found {
        Some(column) => {
            let becomes = if list == "input_features" { "the prompt" } else { "the completion" };
            job.report.note(one.key("name"), Verdict::Mapped(format!("{becomes}, from the column {column:?}")));
        }
        None => one.refused(job, "name", "it is missing"),
    }
    if let Some(mut own) = one.section(job, "preprocessing") {
        let why = "prompts and answers are not truncated separately. Use preprocessing.global_max_sequence_length";
        own.only(job, "max_sequence_length", &[], why);
        own.done(job);
    }
    one.done(job);
    found
}

fn prompt(top: &mut Section, job: &mut Job, input: Option<&str>) -> Option<Template> {
    let Some(mut prompt) = top.section(job, "prompt") else { return input.map(Template::column) };
    let task = prompt.take("task").and_then(|task| task.as_str().map(str::to_owned));
    if let Some(mut retrieval) = prompt.section(job, "retrieval") {
        retrieval.only(job, "type", &[], "retrieval for prompts is not supported");
        retrieval.only(job, "k", &[json!(0)], "retrieval for prompts is not supported");
        retrieval.ignore(job, &["index_name", "model_name"], "nothing is retrieved");
        retrieval.done(job);
    }
    let text = prompt.take("template");
    let template = match (&text, &task) {
        (Some(Value::String(text)), _) => match Template::parse(text, task.as_deref()) {
            Ok(template) => {
                let columns = template.columns().join(", ");
                let what = format!("the prompt of every row, with the columns {columns}");
                job.report.note("prompt.template", Verdict::Mapped(what));
                Some(template)
            }
            Err(why) => {
                prompt.refused(job, "template", why);
                None
            }
        },
        (Some(other), _) => {
            prompt.refused(job, "template", format!("it must be text, not {other}"));
            None
        }
        (None, Some(_)) => None,
        (None, None) => input.map(Template::column),
    };
    match (&task, &text) {
        (Some(_), Some(Value::String(text))) if text.contains("{__task__}") => {
            job.report.note("prompt.task", Verdict::Mapped("{__task__} in the template".into()));
        }
        (Some(_), Some(_)) => prompt.refused(job, "task", "prompt.template has no {__task__} for it"),
        (Some(_), None) => prompt.refused(job, "task", "prompt.template is missing. Set it, with {__task__} in it"),
        (None, _) => {}
    }
    prompt.done(job);
    template
}

fn preprocessing(top: &mut Section, job: &mut Job) -> (Split, f64) {
    let Some(mut before) = top.section(job, "preprocessing") else {
        let all = "all rows are trained on; Ludwig would hold out 30 %. Set --validation-file, or preprocessing.split";
        job.report.note("preprocessing.split", Verdict::Ignored(all.into()));
        return (Split::None, 1.0);
    };
    if let Some(most) = before.take("global_max_sequence_length") {
        before.mapped(job, "global_max_sequence_length", "trainer.max_length", most);
        job.set("trainer.over_length", "truncate".into());
    }
    let ratio = match before.take("sample_ratio").map(|ratio| (ratio.as_f64(), ratio)) {
        Some((Some(ratio), _)) if ratio > 0.0 && ratio <= 1.0 => {
            let what = format!("a fraction of {ratio} of the rows, sampled by the seed");
            job.report.note("preprocessing.sample_ratio", Verdict::Mapped(what));
            ratio
        }
        Some((_, other)) => {
            before.refused(job, "sample_ratio", format!("{other} is not a fraction above 0 and up to 1"));
            1.0
        }
        None => 1.0,
    };
    let split = split(&mut before, job);
    before.done(job);
    (split, ratio)
}

fn split(before: &mut Section, job: &mut Job) -> Split {
    let Some(mut section) = before.section(job, "split") else { return Split::None };
    let kind = section.take("type");
    let split = match kind.as_ref().map_or(Some("random"), Value::as_str) {
        Some("random") => {
            let shares = section.take("probabilities").unwrap_or_else(|| json!([0.7, 0.1, 0.2]));
            match serde_json::from_value::<[f64; 3]>(shares.clone()) {
                Ok(shares) if shares[0] > 0.0 && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-6 => {
                    let what = "sampled by the seed, not the rows that Ludwig would sample; the test split is left out";
                    job.report.note("preprocessing.split", Verdict::Mapped(format!("{shares:?}: {what}")));
                    Split::Random { train: shares[0], validation: shares[1] }
                }
                _ => {
                    section.refused(job, "probabilities", format!("{shares} are not three fractions that add up to 1"));
                    Split::None
                }
            }
        }
        Some("fixed") => {
            let column = section.take("column").and_then(|column| column.as_str().map(str::to_owned));
            let column = column.unwrap_or_else(|| "split".into());
            let what = format!("the column {column:?}: 0 trains, 1 validates, 2 is left out");
            job.report.note("preprocessing.split", Verdict::Mapped(what));
            Split::Fixed { column }
        }
        _ => {
            section.refused(job, "type", format!("{} is not supported. Use random or fixed", kind.unwrap_or_default()));
            Split::None
        }
    };
    section.done(job);
    split
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(yaml: &str) -> Mapping {
        map(serde_saphyr::from_str::<Map<String, Value>>(yaml).unwrap())
    }

    /// Ludwig's own example of Llama 2 in 4 bits.
    const LLAMA: &str = include_str!("../../testdata/ludwig_llama2_4bit.yaml");
    /// A config with every section of Ludwig's fine-tuning guide.
    const ALPACA: &str = include_str!("../../testdata/ludwig_alpaca.yaml");

    #[test]
    fn ludwigs_own_example_becomes_the_job_that_it_describes() {
        let mapping = mapped(LLAMA);
        assert_eq!(mapping.report.refused(), Vec::<&str>::new(), "{}", mapping.report);
        let want = json!({
            "model": "llama-2-7b-hf", "seed": 42,
            "adapter": {"rank": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
            "quantization": {"type": "nf4"},
            "trainer": {"learning_rate": 0.0003, "schedule": "constant", "warmup_ratio": 0.01, "micro_batch_size": 2,
                        "max_grad_norm": 0.5, "optimizer": "adamw", "weight_decay": 0.0},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 16}}},
        });
        assert_eq!(Value::Object(mapping.body), want);
        let recipe = mapping.recipe.unwrap();
        assert_eq!((recipe.template.columns(), recipe.answer.as_str()), (vec!["instruction"], "output"));
    }

    #[test]
    fn every_section_has_its_place() {
        let mapping = mapped(ALPACA);
        assert_eq!(mapping.report.refused(), Vec::<&str>::new(), "{}", mapping.report);
        let want = json!({
            "model": "smollm2-135m-instruct", "seed": 7,
            "adapter": {"rank": 16, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "k_proj"],
                        "use_rslora": true, "use_dora": false},
            "quantization": {"type": "int8"},
            "trainer": {"learning_rate": 0.0004, "schedule": "cosine", "warmup_ratio": 0.03, "micro_batch_size": 1,
                        "max_grad_norm": 1.0, "optimizer": "adamw_8bit", "weight_decay": 0.01, "max_length": 512,
                        "over_length": "truncate", "gradient_checkpointing": true, "checkpoint_every_steps": 100,
                        "eval_every_steps": 100, "early_stopping_patience": 3},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
        });
        assert_eq!(Value::Object(mapping.body), want);
        let recipe = mapping.recipe.unwrap();
        assert_eq!(recipe.template.columns(), ["instruction", "input"]);
        assert_eq!((recipe.sample_ratio, recipe.split), (0.5, Split::Random { train: 0.9, validation: 0.1 }));
        for key in ["generation", "backend", "quantization.llm_int8_threshold", "trainer.eval_batch_size"] {
            let found = mapping.report.0.iter().find(|(name, _)| name == key);
            assert!(matches!(found, Some((_, Verdict::Ignored(_)))), "{key}: {found:?}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_its_key() {
        let base = "model_type: llm\nbase_model: m\nadapter: {type: lora}\ninput_features: [{name: a, type: text}]\n\
                    output_features: [{name: b, type: text}]\n";
        assert!(mapped(base).report.refused().is_empty());
        for (more, key) in [
            ("hyperopt: {goal: minimize}", "hyperopt"),
            ("model_parameters: {rope_scaling: {factor: 2}}", "model_parameters"),
            ("trainer: {type: none}", "trainer.type"),
            ("trainer: {type: finetune, should_shuffle: false}", "trainer.should_shuffle"),
            ("trainer: {early_stop: 5}", "trainer.early_stop"),
            ("trainer: {optimizer: {type: lion}}", "trainer.optimizer.type"),
            ("trainer: {optimizer: {type: adamw, betas: [0.8, 0.9]}}", "trainer.optimizer.betas"),
            (
                "trainer: {learning_rate_scheduler: {reduce_on_plateau: 2}}",
                "trainer.learning_rate_scheduler.reduce_on_plateau",
            ),
            ("trainer: {learning_rate_scheduler: {decay: exponential}}", "trainer.learning_rate_scheduler.decay"),
            ("trainer: {gradient_clipping: {clipvalue: 1.0}}", "trainer.gradient_clipping.clipvalue"),
            ("quantization: {bits: 3}", "quantization.bits"),
            ("quantization: {bits: 4, bnb_4bit_quant_type: fp4}", "quantization.bnb_4bit_quant_type"),
            ("prompt: {task: sort}", "prompt.task"),
            ("prompt: {template: 'no column'}", "prompt.template"),
            ("prompt: {template: '{a}', retrieval: {type: semantic, k: 3}}", "prompt.retrieval.type"),
            ("preprocessing: {sample_ratio: 2}", "preprocessing.sample_ratio"),
            ("preprocessing: {split: {type: datetime}}", "preprocessing.split.type"),
            ("preprocessing: {oversample_minority: 0.5}", "preprocessing.oversample_minority"),
        ] {
            let refused = mapped(&format!("{base}{more}\n")).report;
            assert!(refused.refused().contains(&key), "{more}:\n{refused}");
        }
        for (config, key) in [
            ("model_type: ecd\n", "model_type"),
            ("base_model: m\n", "adapter"),
            ("base_model: m\nadapter: {type: adalora}\n", "adapter.type"),
            ("base_model: m\nadapter: {type: lora, init_lora_weights: eva}\n", "adapter.init_lora_weights"),
            ("base_model: m\ninput_features: [{name: a, type: text}, {name: b, type: text}]\n", "input_features"),
            ("base_model: m\noutput_features: [{name: b, type: category}]\n", "output_features[0].type"),
        ] {
            let refused = mapped(config).report;
            assert!(refused.refused().contains(&key), "{config}:\n{refused}");
        }
    }

    #[test]
    fn no_key_is_skipped() {
        for yaml in [LLAMA, ALPACA] {
            let config: Map<String, Value> = serde_saphyr::from_str(yaml).unwrap();
            let report = map(config.clone()).report;
            for path in leaves("", &Value::Object(config)) {
                let told = report.0.iter().any(|(key, _)| path == *key || path.starts_with(&format!("{key}.")));
                let told = told || path.ends_with(".name") || path.starts_with("preprocessing.split.");
                assert!(told, "no word on {path}:\n{report}");
            }
        }
    }

    fn leaves(path: &str, value: &Value) -> Vec<String> {
        let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match value {
            Value::Object(map) => map.iter().flat_map(|(name, value)| leaves(&join(name), value)).collect(),
            Value::Array(list) if list.iter().any(Value::is_object) => {
                list.iter().enumerate().flat_map(|(i, value)| leaves(&format!("{path}[{i}]"), value)).collect()
            }
            _ => vec![path.to_owned()],
        }
    }
}
