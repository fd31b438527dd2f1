//! The trainer's settings in responses: the checked settings, with `"auto"` for what the plan chooses.

use std::borrow::Cow;

use attune_domain::spec::{TrainSpec, TrainerSpec};
use serde::{Serialize, Serializer, ser::Error};
use serde_json::Value;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

/// The settings that are `"auto"` if the request leaves them out.
const AUTO: [&str; 2] = ["micro_batch_size", "gradient_checkpointing"];

/// The trainer's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainerView(TrainerSpec);

impl From<&TrainSpec> for TrainerView {
    fn from(spec: &TrainSpec) -> Self {
        let train_on_prompt = spec.trainer.train_on_prompt || spec.method.trains_every_token();
        Self(TrainerSpec { train_on_prompt, ..spec.trainer })
    }
}

impl Serialize for TrainerView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut view = serde_json::to_value(self.0).map_err(S::Error::custom)?;
        for name in AUTO {
            if view[name].is_null() {
                view[name] = Value::from("auto");
            }
        }
        view.serialize(serializer)
    }
}

impl PartialSchema for TrainerView {
    fn schema() -> RefOr<Schema> {
        TrainerSpec::schema()
    }
}

impl ToSchema for TrainerView {
    fn name() -> Cow<'static, str> {
        TrainerSpec::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        TrainerSpec::schemas(schemas);
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::spec::{Auto, Requested, request::TrainerFields};
    use serde_json::json;

    use super::*;

    fn shown(asked: &Requested) -> Value {
        let spec = TrainSpec::check(asked, 360, 8192).unwrap();
        serde_json::to_value(TrainerView::from(&spec)).unwrap()
    }

    #[test]
    fn a_trainer_is_shown_with_the_fields_that_ask_for_it() {
        let trainer = TrainerFields {
            learning_rate: Some(Auto(None)),
            micro_batch_size: Some(Auto(Some(2))),
            gradient_checkpointing: Some(Auto(Some(true))),
            optimizer: Some("adamw_8bit".into()),
            schedule: Some("cosine_with_restarts".into()),
            num_cycles: Some(3),
            over_length: Some("split".into()),
            ..TrainerFields::default()
        };
        let view = shown(&Requested { trainer, ..Requested::default() });
        let plain = shown(&Requested::default());
        for (name, value, default) in [
            ("learning_rate_auto", json!(true), json!(false)),
            ("learning_rate", json!(2e-4), json!(2e-4)),
            ("micro_batch_size", json!(2), json!("auto")),
            ("gradient_checkpointing", json!(true), json!("auto")),
            ("optimizer", json!("adamw_8bit"), json!("adamw")),
            ("schedule", json!("cosine_with_restarts"), json!("cosine")),
            ("num_cycles", json!(3), json!(1)),
            ("over_length", json!("split"), json!("error")),
        ] {
            assert_eq!((&view[name], &plain[name]), (&value, &default), "{name}");
        }
        assert_eq!(plain["max_steps"], Value::Null);
    }

    #[test]
    fn a_method_that_trains_every_token_is_shown_with_its_prompts() {
        let texts = Requested { method: Some("continued_pretraining".into()), ..Requested::default() };
        assert_eq!(
            (&shown(&texts)["train_on_prompt"], &shown(&Requested::default())["train_on_prompt"]),
            (&json!(true), &json!(false))
        );
    }
}
