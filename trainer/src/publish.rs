//! The end of a good run: the adapter is written, read again, compared with the trained one, and put where the platform
//! can name it.

use std::{fs, path::Path};

use attune_domain::run::RunEvent;
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    decoder::Decoder,
    error::ModelError,
};
use attune_text::model::TextModel;

use crate::{blobs::put_folder, error::TrainerError, guard::Fault, memory, run::Link, setup::Session};

/// What the gate asks both adapters: prose, a structure, and letters of other scripts.
const GATE_PROMPTS: [&str; 3] = [
    "The quick brown fox jumps over the lazy dog, as it has done since typewriters were tried with it.",
    "{\"key\": [0, 1, -2.5e3, null], \"0123456789\": {\"nested\": true}}\n\tif (a != b) { return c; }",
    "Grüße aus Köln; 東京は今日も晴れ; Привет, мир; مرحبا بالعالم",
];

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
    if let Some(name) = session.adapter.not_finite()? {
        let (step, what) = (session.progress.step, format!("factor '{name}'"));
        return Err(TrainerError::NonFinite(Fault { step, what, lines: Vec::new(), again: false }));
    }
    let folder = link.scratch.join("adapter");
    write(session, base, &folder)?;
    check(&session.text, &session.decoder, &session.adapter, &folder)?;
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

/// The publish gate: the adapter in `folder` must answer as the one that was trained.
///
/// # Errors
/// [`TrainerError::Gate`]: it cannot be read, or its logits are others. [`TrainerError::Text`], [`TrainerError::Model`].
pub fn check(text: &TextModel, decoder: &Decoder, trained: &LoraAdapter, folder: &Path) -> Result<(), TrainerError> {
    let gate = |why: ModelError| TrainerError::Gate(why.to_string());
    let written = LoraAdapter::load(folder, decoder.architecture()).map_err(gate)?;
    let (mut ids, mut lengths) = (Vec::new(), Vec::new());
    for prompt in GATE_PROMPTS {
        let prompt = text.tokenizer().encode(prompt)?;
        lengths.push(prompt.len());
        ids.extend(prompt);
    }
    let logits = |adapter| decoder.logits(&ids, &lengths, Some(adapter)); // [t, v]
    let apart = logits(trained)?.f_sub(&logits(&written)?).and_then(|d| d.f_abs()?.f_max());
    let difference = apart.and_then(|d| d.f_double_value(&[])).map_err(ModelError::from)?;
    // Written so that NaN, which is neither more nor less, does not pass.
    if difference <= GATE_ALLOWANCE {
        return Ok(());
    }
    Err(TrainerError::Gate(format!("its logits differ by {difference:e}, and {GATE_ALLOWANCE:e} is allowed")))
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
