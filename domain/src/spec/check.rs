//! The check of a request: every group, in the order in which a request's faults are reported, and the rules between
//! groups.

use super::{
    AdapterSpec, Auto, BASE_LEARNING_RATE, HyperparametersSpec, Method, Quantization, Requested, TrainSpec,
    TrainerSpec,
    range::{bad, set_int},
};
use crate::{bad_field::BadField, template_kwargs::TemplateKwargs};

impl TrainSpec {
    /// Checks every field and fills in every default. `rows` is the number of rows in the training file, `longest` the
    /// base's maximum context in tokens.
    ///
    /// # Errors
    /// The first [`BadField`].
    pub fn check(asked: &Requested, rows: u64, longest: u64) -> Result<Self, BadField> {
        let longest = i64::try_from(longest).unwrap_or(i64::MAX);
        let mut hyperparameters = HyperparametersSpec::defaults(rows);
        let mut trainer = TrainerSpec::defaults(longest);
        set_learning_rate(asked, &mut hyperparameters, &mut trainer)?;
        trainer.set_validations(&asked.trainer)?;
        trainer.set_schedule(&asked.trainer)?;
        hyperparameters.set_batch_size(&asked.hyperparameters)?;
        let method = Method::check(asked.method.as_deref())?;
        trainer.set_prompts(&asked.trainer, method)?;
        hyperparameters.set_epochs(&asked.hyperparameters)?;
        trainer.set_steps(&asked.trainer)?;
        let mut seed = 42;
        set_int(&mut seed, "seed", asked.seed, 0..=i64::from(u32::MAX))?;
        trainer.set_lengths(&asked.trainer, longest)?;
        let adapter = AdapterSpec::check(&asked.adapter)?;
        let quantization = Quantization::check(&asked.quantization)?;
        trainer.set_optimizer(&asked.trainer)?;
        trainer.set_plan(&asked.trainer, hyperparameters.batch_size)?;
        let chat_template_kwargs = chat_template_kwargs(asked, method)?;
        Ok(Self { seed, hyperparameters, adapter, quantization, method, trainer, chat_template_kwargs })
    }
}

/// Sets the learning rate, which a request gives directly or as a multiple, in both forms.
fn set_learning_rate(
    asked: &Requested,
    hyperparameters: &mut HyperparametersSpec,
    trainer: &mut TrainerSpec,
) -> Result<(), BadField> {
    if asked.hyperparameters.learning_rate_multiplier.0.is_some()
        && let Some(Auto(rate)) = asked.trainer.learning_rate
    {
        let rate = rate.map_or_else(|| "auto".to_owned(), |rate| rate.to_string());
        return Err(bad("trainer.learning_rate", rate, "left out when learning_rate_multiplier is given"));
    }
    hyperparameters.set_multiplier(&asked.hyperparameters)?;
    trainer.set_learning_rate(&asked.trainer, hyperparameters.learning_rate_multiplier)?;
    hyperparameters.learning_rate_multiplier = trainer.learning_rate / BASE_LEARNING_RATE;
    Ok(())
}

/// Checks the variables of the chat template. A method whose rows are not rendered with a template allows none.
fn chat_template_kwargs(asked: &Requested, method: Method) -> Result<TemplateKwargs, BadField> {
    let Some(given) = &asked.chat_template_kwargs else { return Ok(TemplateKwargs::default()) };
    let kwargs = TemplateKwargs::check(given)?;
    if !method.uses_chat_template() && !kwargs.is_empty() {
        let names: Vec<_> = kwargs.as_map().keys().map(String::as_str).collect();
        let allowed = format!("left out when method.type is {}", method.name());
        return Err(bad("chat_template_kwargs", names.join(", "), allowed));
    }
    Ok(kwargs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        architecture::PROJECTIONS,
        spec::request::{AdapterFields, Hyperparameters, QuantizationFields, TrainerFields},
    };

    fn check(asked: &Requested) -> Result<TrainSpec, String> {
        TrainSpec::check(asked, 360, 8192).map_err(|e| e.to_string())
    }

    fn with(trainer: TrainerFields) -> Requested {
        Requested { trainer, ..Requested::default() }
    }

    #[test]
    fn defaults_fill_every_field() {
        let spec = check(&Requested::default()).unwrap();
        let HyperparametersSpec { n_epochs, batch_size, learning_rate_multiplier } = spec.hyperparameters;
        assert_eq!((n_epochs, batch_size, learning_rate_multiplier), (3, 5, 1.0));
        assert_eq!((spec.adapter.rank, spec.trainer.max_length, spec.seed), (16, 2048, 42));
        assert_eq!(spec.adapter.target_modules, PROJECTIONS);
        assert_eq!(spec.quantization, Quantization::Nf4 { double_quant: true });
        assert_eq!(spec.total_steps(360), 216);
    }

    #[test]
    fn a_refusal_names_the_field_the_value_and_the_range() {
        let rank = AdapterFields { rank: Some(512), ..AdapterFields::default() };
        assert_eq!(
            check(&Requested { adapter: rank, ..Requested::default() }).unwrap_err(),
            "adapter.rank: 512 is not allowed; it must be a whole number from 1 to 256"
        );
        let nan = TrainerFields { learning_rate: Some(Auto(Some(f64::NAN))), ..TrainerFields::default() };
        assert_eq!(
            check(&with(nan)).unwrap_err(),
            "trainer.learning_rate: NaN is not allowed; it must be a number from 0.00000001 to 1"
        );
    }

    #[test]
    fn the_learning_rate_and_its_multiple_are_one_setting() {
        let twice = Hyperparameters { learning_rate_multiplier: Auto(Some(2.0)), ..Hyperparameters::default() };
        let twice = Requested { hyperparameters: twice, ..Requested::default() };
        let spec = check(&twice).unwrap();
        assert_eq!((spec.trainer.learning_rate, spec.hyperparameters.learning_rate_multiplier), (4e-4, 2.0));
        let direct = TrainerFields { learning_rate: Some(Auto(Some(1e-4))), ..TrainerFields::default() };
        let spec = check(&with(direct.clone())).unwrap();
        assert_eq!((spec.trainer.learning_rate, spec.hyperparameters.learning_rate_multiplier), (1e-4, 0.5));
        for (trainer, given) in [(direct, "0.0001"), (auto_rate(), "auto")] {
            let refused = check(&Requested { trainer, ..twice.clone() }).unwrap_err();
            assert!(refused.starts_with(&format!("trainer.learning_rate: {given} is not allowed")), "{refused}");
        }
        assert!(check(&with(auto_rate())).unwrap().trainer.learning_rate_auto);
    }

    fn auto_rate() -> TrainerFields {
        TrainerFields { learning_rate: Some(Auto(None)), ..TrainerFields::default() }
    }

    #[test]
    fn fields_that_need_another_are_refused_without_it() {
        let by_hand = TrainerFields::default();
        for (trainer, param) in [
            (
                TrainerFields { early_stopping_patience: Some(2), ..by_hand.clone() },
                "trainer.early_stopping_patience: 2",
            ),
            (
                TrainerFields { early_stopping_threshold: Some(0.1), ..by_hand.clone() },
                "trainer.early_stopping_threshold: 0.1",
            ),
            (TrainerFields { num_cycles: Some(2), ..by_hand.clone() }, "trainer.num_cycles: 2"),
            (TrainerFields { micro_batch_size: Some(Auto(Some(0))), ..by_hand.clone() }, "trainer.micro_batch_size: 0"),
            (TrainerFields { optimizer: Some("sgd".into()), ..by_hand.clone() }, "trainer.optimizer: sgd"),
            (TrainerFields { over_length: Some("cut".into()), ..by_hand.clone() }, "trainer.over_length: cut"),
        ] {
            let refused = check(&with(trainer)).unwrap_err();
            assert!(refused.starts_with(param), "{refused}");
        }
        let unknown = Requested { method: Some("no_such_method".into()), ..Requested::default() };
        assert!(check(&unknown).unwrap_err().starts_with("method.type: no_such_method"));
        assert_eq!(
            check(&with(TrainerFields { micro_batch_size: Some(Auto(Some(6))), ..by_hand })).unwrap_err(),
            "trainer.micro_batch_size: 6 is not allowed; it must be \"auto\", or a whole number from 1 to 5, the \
             batch size"
        );
    }

    /// Each request repairs the fault that the one before it was refused for.
    #[test]
    fn the_first_fault_is_reported_whatever_its_group() {
        let mut asked = Requested {
            seed: Some(-1),
            method: Some("no_such_method".into()),
            hyperparameters: Hyperparameters {
                n_epochs: Auto(Some(0)),
                batch_size: Auto(Some(0)),
                learning_rate_multiplier: Auto(Some(0.0)),
            },
            adapter: AdapterFields { rank: Some(0), ..AdapterFields::default() },
            quantization: QuantizationFields { r#type: Some("fp4".into()), double_quant: None },
            trainer: TrainerFields {
                eval_every_steps: Some(-1),
                schedule: Some("steep".into()),
                max_steps: Some(0),
                max_length: Some(0),
                over_length: Some("cut".into()),
                micro_batch_size: Some(Auto(Some(0))),
                ..TrainerFields::default()
            },
            chat_template_kwargs: None,
        };
        type Repair = (&'static str, fn(&mut Requested));
        let repairs: [Repair; 12] = [
            ("hyperparameters.learning_rate_multiplier", |r| r.hyperparameters.learning_rate_multiplier = Auto(None)),
            ("trainer.eval_every_steps", |r| r.trainer.eval_every_steps = None),
            ("trainer.schedule", |r| r.trainer.schedule = None),
            ("hyperparameters.batch_size", |r| r.hyperparameters.batch_size = Auto(None)),
            ("method.type", |r| r.method = None),
            ("hyperparameters.n_epochs", |r| r.hyperparameters.n_epochs = Auto(None)),
            ("trainer.max_steps", |r| r.trainer.max_steps = None),
            ("seed", |r| r.seed = None),
            ("trainer.max_length", |r| r.trainer.max_length = None),
            ("adapter.rank", |r| r.adapter.rank = None),
            ("quantization.type", |r| r.quantization.r#type = None),
            ("trainer.over_length", |r| r.trainer.over_length = None),
        ];
        for (param, repair) in repairs {
            assert_eq!(TrainSpec::check(&asked, 360, 8192).unwrap_err().param, param);
            repair(&mut asked);
        }
        assert_eq!(TrainSpec::check(&asked, 360, 8192).unwrap_err().param, "trainer.micro_batch_size");
    }

    #[test]
    fn variables_of_a_chat_template_go_with_chats() {
        let kwargs = serde_json::json!({"enable_thinking": false}).as_object().cloned();
        let asked = Requested { chat_template_kwargs: kwargs, ..Requested::default() };
        assert!(!check(&asked).unwrap().chat_template_kwargs.is_empty());
        let texts = Requested { method: Some("continued_pretraining".into()), ..asked };
        assert!(check(&texts).unwrap_err().starts_with("chat_template_kwargs: enable_thinking is not allowed"));
    }
}
