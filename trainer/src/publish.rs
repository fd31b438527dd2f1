//! The end of a good run: the adapter is written, read again, compared with the trained one, and put where the platform
//! can name it.

use std::{fs, path::Path};

use attune_domain::run::RunEvent;
use attune_model::adapter::{LoraAdapter, Provenance};

use crate::{
    blobs::put_folder,
    error::TrainerError,
    guard::{Fault, non_finite_factor},
    memory,
    run::Link,
    setup::Session,
};

/// What the gate asks both adapters.
const GATE_PROMPT: &str = "The quick brown fox jumps over the lazy dog. 0123456789 {\"key\": \"value\"}";

/// The file holds the very numbers that were trained, and one thread order gives one result, so a difference of zero is
/// expected; the allowance is for kernels that share work out differently from call to call. Logits are of order 10.
const GATE_ALLOWANCE: f64 = 1e-4;

/// What else of the base travels with the adapter, so that the folder is a whole tokenizer for others.
const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// Writes, checks and puts the adapter; the run's last event.
///
/// # Errors
/// [`TrainerError::NonFinite`]: a factor holds a number that is none. [`TrainerError::Gate`]: what was written is not what
/// was trained. [`TrainerError::Model`], [`TrainerError::Node`],
/// [`TrainerError::Ended`].
pub fn publish(session: &Session, base: &Path, link: &Link) -> Result<RunEvent, TrainerError> {
    if let Some(name) = non_finite_factor(&session.adapter)? {
        let (step, what) = (session.progress.step, format!("factor '{name}'"));
        return Err(TrainerError::NonFinite(Fault { step, what, lines: Vec::new(), again: false }));
    }
    let folder = link.scratch.join("adapter");
    write(session, base, &folder)?;
    check(session, &folder)?;
    let files = link.network.block_on(put_folder(&link.platform, link.run_lease, &folder))?;
    tracing::info!(files = files.len(), "the adapter is published");
    Ok(RunEvent::Published {
        files,
        chat_template_sha256: session.text.template_sha256().map(str::to_owned),
        trained_tokens: session.progress.trained_tokens,
        peak_memory: memory::peak(),
    })
}

/// A PEFT folder, as others load it.
fn write(session: &Session, base: &Path, folder: &Path) -> Result<(), TrainerError> {
    session.adapter.save(folder, &Provenance { base_model: session.spec.base_name.clone() })?;
    let put = |name: &str, content: &str| {
        let path = folder.join(name);
        fs::write(&path, content).map_err(TrainerError::io(&path))
    };
    put("README.md", &readme(session))?;
    let Some(template) = session.text.template() else { return Ok(()) };
    put("chat_template.jinja", template.source())?;
    for name in TOKENIZER_FILES {
        let (from, to) = (base.join(name), folder.join(name));
        if from.is_file() {
            fs::copy(&from, &to).map_err(TrainerError::io(&to))?;
        }
    }
    Ok(())
}

/// The publish gate.
fn check(session: &Session, folder: &Path) -> Result<(), TrainerError> {
    let ids = session.text.tokenizer().encode(GATE_PROMPT)?;
    let read_again = LoraAdapter::load(folder, session.decoder.architecture())?;
    let logits = |adapter| session.decoder.logits(&ids, &[ids.len()], Some(adapter)); // [t, v]
    let apart = logits(&session.adapter)?.f_sub(&logits(&read_again)?).and_then(|d| d.f_abs()?.f_max());
    let difference = apart.and_then(|d| d.f_double_value(&[])).map_err(attune_model::error::ModelError::from)?;
    // Written so that NaN, which is neither more nor less, does not pass.
    if difference <= GATE_ALLOWANCE {
        return Ok(());
    }
    Err(TrainerError::Gate { difference, allowed: GATE_ALLOWANCE })
}

fn readme(session: &Session) -> String {
    let (spec, progress) = (&session.spec, &session.progress);
    let adapter = &spec.train.adapter;
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\ntags:\n- lora\n- attune\n---\n\n\
         # A LoRA adapter for {base}\n\n\
         Made by Attune, job `{job}`: rank {rank}, alpha {alpha}, on {targets}; {steps} steps, \
         {tokens} trained tokens, seed {seed}.{history}\n\n\
         ```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
         model = AutoModelForCausalLM.from_pretrained(\"{base}\")\n\
         model = PeftModel.from_pretrained(model, \".\")\n```\n",
        base = spec.base_name,
        job = spec.job_id,
        rank = adapter.rank,
        alpha = adapter.lora_alpha,
        targets = adapter.target_modules.join(", "),
        steps = progress.step,
        tokens = progress.trained_tokens,
        seed = spec.train.seed,
        history = history(session),
    )
}

/// Where the adapter began, and where it was left.
fn history(session: &Session) -> String {
    let mut said = String::new();
    if let Some(first) = &session.spec.continue_from {
        said += &format!(" It continues from the adapter `{}`.", first.adapter_version_id);
    }
    if let Some(found) = session.progress.found_learning_rate {
        said += &format!(" A range test found the learning rate {found:?}.");
    }
    if let Some(step) = session.adapter_step {
        said += &format!(" It is the adapter of step {step}, whose validation loss was the lowest.");
    }
    said
}
