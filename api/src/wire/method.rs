//! The `method` object: of a request to create a job, of a job in a response, and of a preview.

use attune_domain::spec::{self, HyperparametersSpec, TrainSpec, request::Hyperparameters};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::ApiError;

/// The training method.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// The type of the method. `supervised`: chats, or prompts and completions, with a loss on the answers.
    /// `continued_pretraining`: plain texts, with a loss on every token.
    #[schema(example = "supervised")]
    pub r#type: String,
    /// The settings of the type `supervised`.
    pub supervised: Option<MethodFields>,
    /// The settings of the type `continued_pretraining`. Attune extension.
    pub continued_pretraining: Option<MethodFields>,
    /// Not supported.
    #[schema(value_type = Option<Object>)]
    pub dpo: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Object>)]
    pub reinforcement: Option<Value>,
}

impl Method {
    /// Checks that the type is supported, and that only this type has settings.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: another type, or settings of another type.
    pub fn check(&self) -> Result<(), ApiError> {
        let kind = self.r#type.as_str();
        if spec::Method::from_name(kind).is_none() {
            let allowed = spec::Method::one_of(|method| format!("'{}'", method.name()));
            let message = format!("Invalid 'method.type': '{kind}'; it must be {allowed}.");
            return Err(ApiError::unsupported("method.type", message));
        }
        let supported = spec::Method::ALL.map(|method| (method.name(), self.settings_of(method).is_some()));
        // OpenAI's methods without support. When one becomes supported, remove the name from the unsupported fields,
        // and make its field above an `Option<MethodFields>`.
        let unsupported = [("dpo", self.dpo.is_some()), ("reinforcement", self.reinforcement.is_some())];
        for (name, is_given) in supported.into_iter().chain(unsupported) {
            if is_given && name != kind {
                let message = format!("'method.{name}' does not go with the type '{kind}'.");
                return Err(ApiError::unsupported(format!("method.{name}"), message));
            }
        }
        Ok(())
    }

    /// Returns the settings of the method's type; [`Self::check`] has refused all others.
    pub fn settings(&self) -> Option<MethodFields> {
        spec::Method::ALL.into_iter().find_map(|method| self.settings_of(method))
    }

    const fn settings_of(&self, method: spec::Method) -> Option<MethodFields> {
        match method {
            spec::Method::Supervised => self.supervised,
            spec::Method::ContinuedPretraining => self.continued_pretraining,
        }
    }
}

/// The settings of a training method.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MethodFields {
    /// The hyperparameters.
    pub hyperparameters: Option<Hyperparameters>,
}

/// The training method of a job.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MethodView {
    /// The type: `supervised` or `continued_pretraining`.
    #[schema(example = "supervised")]
    pub r#type: &'static str,
    /// The settings of the type `supervised`, where OpenAI's clients look for the hyperparameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervised: Option<MethodSettingsView>,
    /// The settings of the type `continued_pretraining`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continued_pretraining: Option<MethodSettingsView>,
}

/// The settings of a training method.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MethodSettingsView {
    /// The hyperparameters in use, with a number for each `"auto"`.
    pub hyperparameters: HyperparametersSpec,
}

impl From<&TrainSpec> for MethodView {
    fn from(train: &TrainSpec) -> Self {
        let settings = Some(MethodSettingsView { hyperparameters: train.hyperparameters });
        let view = Self { r#type: train.method.name(), supervised: None, continued_pretraining: None };
        match train.method {
            spec::Method::Supervised => Self { supervised: settings, ..view },
            spec::Method::ContinuedPretraining => Self { continued_pretraining: settings, ..view },
        }
    }
}

/// The part of a job's `method` that affects rows.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewMethod {
    /// The type: `supervised` (the default) or `continued_pretraining`.
    #[schema(example = "supervised")]
    pub r#type: String,
}

#[cfg(test)]
mod tests {
    use attune_domain::spec::Requested;
    use serde_json::json;

    use super::*;
    use crate::http::json_body::from_value;

    #[test]
    fn another_type_or_its_settings_are_refused() {
        let refused = |body| from_value::<Method>(body).unwrap().check().unwrap_err().body().error.message;
        let allowed = spec::Method::one_of(|method| format!("'{}'", method.name()));
        assert_eq!(
            refused(json!({"type": "no_such_method"})),
            format!("Invalid 'method.type': 'no_such_method'; it must be {allowed}.")
        );
        assert_eq!(
            refused(json!({"type": "continued_pretraining", "supervised": {}})),
            "'method.supervised' does not go with the type 'continued_pretraining'."
        );
    }

    #[test]
    fn a_method_is_shown_under_its_own_name() {
        for method in spec::Method::ALL {
            let name = method.name();
            let train = TrainSpec { method, ..TrainSpec::check(&Requested::default(), 360, 8192).unwrap() };
            let view = serde_json::to_value(MethodView::from(&train)).unwrap();
            assert_eq!((&view["type"], &view[name]["hyperparameters"]["n_epochs"]), (&json!(name), &json!(3)));
            assert_eq!(view.as_object().unwrap().len(), 2, "{view}");
        }
    }
}
