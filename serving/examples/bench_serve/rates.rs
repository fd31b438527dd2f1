//! Tokens per second of prompts and answers, as `bench/serve/peer_llama.py` and `bench/serve/peer_transformers.py`
//! measure theirs.

use anyhow::{Result, ensure};
use attune_domain::serve::{AdapterRef, Prompt};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Ask, Client},
    platform::Served,
    prompts::Random,
    replica::Replica,
    setup::Setup,
    stats::{common_rate, median},
};

/// The tokens of the prompt whose rate is measured.
const LONG_PROMPT: u64 = 512;
/// The tokens of the prompts before measured answers.
const PROMPT: u64 = 128;
/// The tokens of an answer alone.
const ANSWER: u64 = 64;
/// The tokens of eight answers at a time. More, since they are sampled together only after the last of their prompts.
const BATCH_ANSWER: u64 = 128;
/// The number of answers at a time, next to one alone.
const BATCH: u64 = 8;
/// Measurements of each rate that is not of a batch; the median counts.
const REPEATS: usize = 3;
/// A text to copy.
const TEXT: &str = "On the second Tuesday of March the harbour master wrote down what had come in: forty barrels of \
    lamp oil from Bergen, nine crates of green glass, two hundred and six sacks of rye, a piano without its lid, and \
    a letter for Mrs. Okafor that had been to three other towns before this one. The tide was late, the wind came \
    from the north-east at eleven knots, and no one could say where the piano was to go.";

/// Measures one round. Returns its line.
pub(crate) async fn measure(setup: &Setup) -> Result<Value> {
    let adapters = setup.adapters(1)?;
    let replica = Replica::start(setup, setup.served(1)?).await?;
    let adapter = adapters.refs(replica.platform.url()).await?.into_iter().next();
    let mut rates = Rates { client: &replica.client, random: Random::new(std::process::id().into()), seed: 0 };
    // The first requests pay for page faults, and for the load of the adapter.
    rates.alone(None).await?;
    rates.alone(adapter.clone()).await?;
    let mut line = json!({
        "prefill_tokens_per_s": rates.prefill().await?,
        "decode_tokens_per_s_1": rates.repeated(None).await?,
        "decode_tokens_per_s_8": rates.batch(None).await?,
        "adapter_decode_tokens_per_s_1": rates.repeated(adapter.clone()).await?,
        "adapter_decode_tokens_per_s_8": rates.batch(adapter).await?,
        "copied_tokens_per_s": rates.copied().await?,
    });
    replica.stop().await?;
    let replica = Replica::start(setup, Served { speculation: false, ..setup.served(1)? }).await?;
    let mut rates = Rates { client: &replica.client, random: Random::new(0), seed: 0 };
    rates.alone(None).await?;
    line["copied_tokens_per_s_without_drafts"] = rates.copied().await?.into();
    replica.stop().await?;
    Ok(line)
}

struct Rates<'a> {
    client: &'a Client,
    random: Random,
    seed: u64,
}

impl Rates<'_> {
    fn ask(&mut self, prompt: u64, tokens: u64, adapter: Option<AdapterRef>) -> Ask {
        self.seed += 1;
        Ask { adapter, ..Ask::sampled(self.random.prompt(prompt), tokens, self.seed) }
    }

    async fn alone(&mut self, adapter: Option<AdapterRef>) -> Result<Answer> {
        let ask = self.ask(PROMPT, ANSWER, adapter);
        self.client.answer(ask).await
    }

    /// Returns the tokens per second of a prompt, up to and including the first token of its answer.
    async fn prefill(&mut self) -> Result<f64> {
        let mut rates = Vec::new();
        for _ in 0..REPEATS {
            let ask = self.ask(LONG_PROMPT, 1, None);
            let answer = self.client.answer(ask).await?;
            ensure!(answer.cached_tokens == 0, "the prompt shares a prefix with an earlier one");
            rates.push(answer.prompt_tokens as f64 / answer.to_first().as_secs_f64());
        }
        Ok(median(&rates))
    }

    /// Returns the tokens per second of one answer alone.
    async fn repeated(&mut self, adapter: Option<AdapterRef>) -> Result<f64> {
        let mut rates = Vec::new();
        for _ in 0..REPEATS {
            rates.push(self.alone(adapter.clone()).await?.rate());
        }
        Ok(median(&rates))
    }

    /// Returns the tokens per second of eight answers at a time, while all of them are sampled.
    async fn batch(&mut self, adapter: Option<AdapterRef>) -> Result<f64> {
        let asks: Vec<Ask> = (0..BATCH).map(|_| self.ask(PROMPT, BATCH_ANSWER, adapter.clone())).collect();
        let answers = asks.into_iter().map(|ask| self.client.answer(ask));
        let rate = common_rate(&futures::future::try_join_all(answers).await?);
        ensure!(rate.is_finite(), "the answers were not sampled at the same time");
        Ok(rate)
    }

    /// Returns the tokens per second of a greedy answer that copies its prompt: two copies of a text, and the first
    /// words of a third.
    async fn copied(&mut self) -> Result<f64> {
        let mut rates = Vec::new();
        for number in 0..REPEATS {
            // A text of its own, so that no prefix is shared.
            let text = format!("Entry {number}{}. {TEXT}", self.seed);
            let beginning: String = text.split_inclusive(' ').take(12).collect();
            let prompt = Prompt::Text { text: format!("{text}\n\n{text}\n\n{}", beginning.trim_end()) };
            self.seed += 1;
            let ask = Ask { prompt, temperature: 0.0, ..Ask::sampled(Vec::new(), ANSWER, self.seed) };
            rates.push(self.client.answer(ask).await?.rate());
        }
        Ok(median(&rates))
    }
}
