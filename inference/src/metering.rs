//! The metering of inference usage: summed in memory by API key and model, and written every few seconds and once more
//! at the end. So a clean shutdown loses nothing, and a killed process loses what it counted since its last write.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use attune_domain::id::{AdapterVersionId, ApiKeyId, ProjectId};
use attune_store::{
    db,
    tenancy::usage::{self, Answered},
};
use sqlx::PgPool;

use crate::{config::Prices, error::InferenceError};

/// Charges tokens to an allowance, in addition to an [`Account`].
pub type TokenAllowance = Arc<dyn Fn(u64) + Send + Sync>;

/// The project, API key and model for which usage is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Account {
    /// The project.
    pub project_id: ProjectId,
    /// The API key of the request, if it has one.
    pub api_key_id: Option<ApiKeyId>,
    /// The model's own name, not an alias.
    pub model: String,
    /// The adapter version, if the model has one.
    pub adapter_version_id: Option<AdapterVersionId>,
    /// `true`: the replicas of a deployment answer, whose hours are charged instead of the tokens.
    pub is_charged_by_hour: bool,
}

/// The usage of one or more requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The number of requests.
    pub requests: u64,
    /// The number of prompt tokens.
    pub input: u64,
    /// The number of generated tokens.
    pub output: u64,
}

/// The usage that has been counted and not written yet.
#[derive(Debug)]
pub struct Meter {
    prices: Prices,
    counted: Mutex<HashMap<Account, Tokens>>,
}

impl Meter {
    /// Creates an empty meter.
    #[must_use]
    pub fn new(prices: Prices) -> Self {
        Self { prices, counted: Mutex::default() }
    }

    /// Adds usage to an account.
    pub fn count(&self, account: &Account, tokens: Tokens) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = counted.entry(account.clone()).or_default();
        sum.requests += tokens.requests;
        sum.input += tokens.input;
        sum.output += tokens.output;
    }

    /// Moves the usage that another meter has counted into this one.
    pub fn absorb(&self, other: &Self) {
        let counted = std::mem::take(&mut *other.counted.lock().unwrap_or_else(PoisonError::into_inner));
        counted.iter().for_each(|(account, tokens)| self.count(account, *tokens));
    }

    /// Writes the counted usage to the database. If that fails, the usage is kept for the next attempt.
    ///
    /// # Errors
    /// [`InferenceError::Internal`]: the database is unavailable.
    pub async fn write(&self, pool: &PgPool) -> Result<(), InferenceError> {
        let counted = std::mem::take(&mut *self.counted.lock().unwrap_or_else(PoisonError::into_inner));
        if counted.is_empty() {
            return Ok(());
        }
        let written = self.written(pool, &counted).await;
        if written.is_err() {
            counted.iter().for_each(|(account, tokens)| self.count(account, *tokens));
        }
        written
    }

    async fn written(&self, pool: &PgPool, counted: &HashMap<Account, Tokens>) -> Result<(), InferenceError> {
        let answers: Vec<Answered> = counted.iter().map(|(account, tokens)| self.priced(account, *tokens)).collect();
        let mut tx = db::platform(pool).await?;
        usage::count_answers(&mut tx, &answers).await?;
        Ok(tx.commit().await?)
    }

    fn priced(&self, account: &Account, tokens: Tokens) -> Answered {
        let price = |usd_per_million: f64, tokens: u64| usd_per_million * tokens as f64;
        let by_token = price(self.prices.usd_per_million_input_tokens, tokens.input)
            + price(self.prices.usd_per_million_output_tokens, tokens.output);
        let micro_usd = if account.is_charged_by_hour { 0.0 } else { by_token };
        Answered {
            project_id: account.project_id,
            api_key_id: account.api_key_id,
            model: account.model.clone(),
            adapter_version_id: account.adapter_version_id,
            requests: tokens.requests,
            input_tokens: tokens.input,
            output_tokens: tokens.output,
            micro_usd: micro_usd.round() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn account(model: &str) -> Account {
        let project_id = ProjectId::new(uuid::Uuid::from_u128(1));
        let model = model.into();
        Account { project_id, api_key_id: None, model, adapter_version_id: None, is_charged_by_hour: false }
    }

    fn meter() -> Meter {
        Meter::new(Prices {
            usd_per_million_input_tokens: 0.5,
            usd_per_million_output_tokens: 2.0,
            ..Prices::default()
        })
    }

    #[test]
    fn answers_of_one_key_and_model_are_added_up() {
        let meter = meter();
        for model in ["a", "b", "a"] {
            meter.count(&account(model), Tokens { requests: 1, input: 10, output: 4 });
        }
        let counted = meter.counted.lock().unwrap();
        assert_eq!(counted[&account("a")], Tokens { requests: 2, input: 20, output: 8 });
        assert_eq!(meter.priced(&account("a"), counted[&account("a")]).micro_usd, 26);
        let by_hour = Account { is_charged_by_hour: true, ..account("a") };
        let priced = meter.priced(&by_hour, counted[&account("a")]);
        assert_eq!((priced.micro_usd, priced.input_tokens, priced.output_tokens), (0, 20, 8), "a deployment answers");
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_kept() {
        let meter = meter();
        let tokens = Tokens { requests: 1, input: 10, output: 4 };
        meter.count(&account("a"), tokens);
        let away = sqlx::postgres::PgPoolOptions::new()
            .acquire_timeout(Duration::from_millis(200))
            .connect_lazy("postgres://attune@127.0.0.1:1/attune")
            .unwrap();
        assert!(meter.write(&away).await.is_err());
        assert_eq!(meter.counted.lock().unwrap()[&account("a")], tokens);
    }
}
