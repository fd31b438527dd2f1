//! Counts what answers use: added up in memory by key and model, written down every few seconds and once more at the end,
//! so a clean stop loses nothing, and a killed process what it counted since it wrote last.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use attune_domain::id::{AdapterVersionId, ApiKeyId, ProjectId};
use attune_store::{
    db,
    tenancy::usage::{self, Answered},
};
use sqlx::PgPool;

use crate::{
    config::Prices,
    error::{ApiError, chain},
};

/// Between two writings.
const WRITE: Duration = Duration::from_secs(2);

/// Whose answers, and what answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Account {
    /// Whose.
    pub project_id: ProjectId,
    /// Who asked.
    pub api_key_id: Option<ApiKeyId>,
    /// What answered, by its own name.
    pub model: String,
    /// Which adapter, if one did.
    pub adapter_version_id: Option<AdapterVersionId>,
}

/// Tokens of one or more answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// How many answers.
    pub requests: u64,
    /// Of the prompts.
    pub input: u64,
    /// Of the answers.
    pub output: u64,
}

/// What was counted and not written down yet.
#[derive(Debug)]
pub struct Meter {
    prices: Prices,
    counted: Mutex<HashMap<Account, Tokens>>,
}

impl Meter {
    /// A meter that has counted nothing.
    #[must_use]
    pub fn new(prices: Prices) -> Self {
        Self { prices, counted: Mutex::default() }
    }

    /// Counts.
    pub fn count(&self, account: &Account, tokens: Tokens) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = counted.entry(account.clone()).or_default();
        sum.requests += tokens.requests;
        sum.input += tokens.input;
        sum.output += tokens.output;
    }

    /// Adds what another meter has counted, which counts nothing afterwards.
    pub fn absorb(&self, other: &Self) {
        let counted = std::mem::take(&mut *other.counted.lock().unwrap_or_else(PoisonError::into_inner));
        counted.iter().for_each(|(account, tokens)| self.count(account, *tokens));
    }

    /// Writes down what was counted. What cannot be written is kept for the next time.
    ///
    /// # Errors
    /// [`ApiError::Internal`]: the database is away.
    pub async fn write(&self, pool: &PgPool) -> Result<(), ApiError> {
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

    async fn written(&self, pool: &PgPool, counted: &HashMap<Account, Tokens>) -> Result<(), ApiError> {
        let answers: Vec<Answered> = counted.iter().map(|(account, tokens)| self.priced(account, *tokens)).collect();
        let mut tx = db::platform(pool).await?;
        usage::count_answers(&mut tx, &answers).await?;
        Ok(tx.commit().await?)
    }

    fn priced(&self, account: &Account, tokens: Tokens) -> Answered {
        let price = |usd_per_million: f64, tokens: u64| usd_per_million * tokens as f64;
        let micro_usd = price(self.prices.usd_per_million_input_tokens, tokens.input)
            + price(self.prices.usd_per_million_output_tokens, tokens.output);
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

    /// Writes every few seconds, for ever.
    pub async fn write_on(&self, pool: PgPool) {
        loop {
            tokio::time::sleep(WRITE).await;
            if let Err(error) = self.write(&pool).await {
                tracing::warn!("usage could not be written down; it is tried again: {}", chain(&error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(model: &str) -> Account {
        let project_id = ProjectId::new(uuid::Uuid::from_u128(1));
        Account { project_id, api_key_id: None, model: model.into(), adapter_version_id: None }
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
