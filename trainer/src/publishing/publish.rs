//! The third phase: the adapter is written, loaded again as a serving process loads it, compared with the trained one,
//! and uploaded to the object store.
//!
//! The gate needs no more memory than training: the trained base and its optimizer are dropped before the served base
//! is loaded. The served base stays packed, as in training, and each weight is unpacked only while it is used. Where a
//! replica may compute from the codes of the base, the gate then does the same.

use std::{fs, path::Path};

use attune_domain::{
    memory::GATE_PROMPTS,
    run::{Gate, RunEvent},
};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    allocator,
    decoder::Decoder,
    error::ModelError,
    served::Hold,
};
use attune_process::failpoint::FailPoint;
use attune_text::model::TextModel;
use tch::{Kind, TchError, Tensor};

use crate::{
    context::RunContext,
    error::{NonFinite, TrainerError},
    inputs::Inputs,
    memory,
    publishing::{blobs::put_folder, card},
    session::Session,
};

/// The maximum difference of a logit, relative to the largest logit. The file holds exactly the trained factors, and
/// the base is the same. But training adds the correction to the weight, while serving adds it to the product, over
/// cached keys and values, so the two round differently. Over another quantization the difference is some hundredths.
const GATE_ALLOWANCE: f64 = 1e-4;

/// The maximum root mean square of the differences of the logits, relative to that of the logits, where a replica
/// computes from codes. The embedding and the output projection have 8 bits there, an error of about 0.006 each, and
/// activations are rounded. The exact comparison finds a wrong factor; this one finds a wrong kernel or layout, which
/// changes the logits by about their size.
const CODES_ALLOWANCE: f64 = 0.05;

/// The base's tokenizer files, which are published with the adapter so that other programs can load the folder alone.
const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// Writes, checks and uploads the adapter. Returns the run's last event.
///
/// # Errors
/// [`TrainerError::NonFinite`]: a factor is NaN or infinite. [`TrainerError::Gate`]: the served adapter differs from
/// the trained one. [`TrainerError::Model`], [`TrainerError::Node`], [`TrainerError::Ended`].
pub fn publish(session: Session, inputs: &Inputs, context: &RunContext) -> Result<RunEvent, TrainerError> {
    if let Some(name) = session.adapter.not_finite()? {
        let (step, what) = (session.progress.step, format!("factor '{name}'"));
        return Err(TrainerError::NonFinite(NonFinite { step, what, lines: Vec::new(), again: false }));
    }
    allocator::return_freed_memory();
    let folder = context.scratch.join("adapter");
    write(&session, &inputs.base, &folder)?;
    let prompts = prompts(&session.text)?;
    let trained = trained_logits(&session.decoder, &session.adapter, &prompts)?;
    let (quantization, placement) = (session.spec.train.quantization, session.spec.plan.placement);
    drop((session.decoder, session.optimizer, session.adapter));
    let mut served = Decoder::load_served(&inputs.base, quantization, placement, &inputs.packed_base, Hold::Packed)?;
    let logit_difference = check(&trained, &prompts, &served, &folder)?;
    if served.has_codes() {
        served.compute_from_codes()?;
        check_codes(&trained, &prompts, &served, &folder)?;
    }
    FailPoint::PublishUpload.before();
    let files = context.network.block_on(put_folder(&context.platform, context.run_lease, &folder))?;
    FailPoint::PublishUpload.after();
    let peak = memory::peak();
    tracing::info!(
        files = files.len(),
        logit_difference,
        base = %quantization,
        "the adapter is published: {peak} at the peak"
    );
    Ok(RunEvent::Published {
        files,
        chat_template_sha256: session.text.template_sha256(),
        trained_tokens: session.progress.trained_tokens,
        best_step: session.adapter_step,
        peak_memory: peak,
        gate: Gate { quantization, logit_difference },
    })
}

/// Writes the adapter as a PEFT folder.
fn write(session: &Session, base: &Path, folder: &Path) -> Result<(), TrainerError> {
    session.adapter.save(folder, &Provenance { base_model: session.spec.base.name.clone() })?;
    let put = |name: &str, content: &str| {
        let path = folder.join(name);
        fs::write(&path, content).map_err(TrainerError::io(&path))
    };
    put("README.md", &card::write(session))?;
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

/// Returns the token IDs of the gate's prompts.
///
/// # Errors
/// [`TrainerError::Text`].
pub fn prompts(text: &TextModel) -> Result<Vec<Vec<u32>>, TrainerError> {
    GATE_PROMPTS.iter().map(|prompt| Ok(text.tokenizer().encode(prompt)?)).collect()
}

/// Returns the logits `[t, v]` at every token of the prompts, as training computes them.
///
/// # Errors
/// [`TrainerError::Model`].
pub fn trained_logits(decoder: &Decoder, trained: &LoraAdapter, prompts: &[Vec<u32>]) -> Result<Tensor, TrainerError> {
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    Ok(decoder.logits(&prompts.concat(), &lengths, Some(trained))?)
}

/// Runs the publish gate: the adapter in `folder`, over the base as it is served, must give the logits of the trained
/// adapter. Returns the largest difference.
///
/// # Errors
/// [`TrainerError::Gate`]: it cannot be read, or its logits differ.
pub fn check(trained: &Tensor, prompts: &[Vec<u32>], served: &Decoder, folder: &Path) -> Result<f64, TrainerError> {
    let gate = |why: ModelError| TrainerError::Gate(why.to_string());
    let written = LoraAdapter::load(folder, served.architecture()).map_err(gate)?;
    let logits = served.served_logits(prompts, Some(&written)).map_err(gate)?; // [t, v]
    let (difference, size) = difference(trained, logits).map_err(ModelError::from)?;
    let allowed = GATE_ALLOWANCE * size.max(1.0);
    // `<=` is false for NaN, so NaN does not pass.
    if difference <= allowed {
        return Ok(difference);
    }
    Err(TrainerError::Gate(format!("its logits differ by {difference:e}, and {allowed:e} is allowed")))
}

/// Runs the publish gate over a base that computes from its codes. Returns the root mean square of the differences,
/// relative to that of the logits.
///
/// # Errors
/// As [`check`].
pub fn check_codes(
    trained: &Tensor,
    prompts: &[Vec<u32>],
    served: &Decoder,
    folder: &Path,
) -> Result<f64, TrainerError> {
    let gate = |why: ModelError| TrainerError::Gate(why.to_string());
    let written = LoraAdapter::load(folder, served.architecture()).map_err(gate)?;
    let logits = served.served_logits(prompts, Some(&written)).map_err(gate)?; // [t, v]
    let size =
        |logits: &Tensor| Ok::<_, ModelError>(logits.f_square()?.f_mean(Kind::Float)?.f_double_value(&[])?.sqrt());
    let apart = trained.f_sub(&logits).map_err(ModelError::from)?;
    let difference = size(&apart)? / size(trained)?.max(f64::MIN_POSITIVE);
    // `<=` is false for NaN, so NaN does not pass.
    if difference <= CODES_ALLOWANCE {
        return Ok(difference);
    }
    Err(TrainerError::Gate(format!(
        "over the codes of the base its logits differ by {difference:e} of their size, and {CODES_ALLOWANCE} is allowed"
    )))
}

/// Returns the largest difference of a logit, and the largest logit of `trained`, without a third tensor of their size.
fn difference(trained: &Tensor, mut logits: Tensor) -> Result<(f64, f64), TchError> {
    let apart = logits.f_sub_(trained)?.f_abs_()?.f_max()?.f_double_value(&[])?;
    let largest = trained.f_max()?.f_double_value(&[])?.abs();
    Ok((apart, largest.max(trained.f_min()?.f_double_value(&[])?.abs())))
}
