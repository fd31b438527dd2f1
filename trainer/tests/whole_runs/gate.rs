//! The publish gate, called directly: the written adapter must equal the trained one.

use attune_domain::{placement::Placement, spec::Quantization};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    decoder::Decoder,
    served::Hold,
};
use attune_text::model::TextModel;
use attune_trainer::{
    error::TrainerError,
    publishing::publish::{check, check_codes, prompts, trained_logits},
};

use tch::{Kind, Tensor};

use super::{FACTORS, asked, tiny, tiny_world};

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_was_written_otherwise_does_not_pass() {
    let (platform, folder) = tiny_world().await;
    let model = folder.path().join("model");
    let spec = platform.offer(&model, &tiny::dataset(4), &asked()).train;
    let (text, placement) = (TextModel::open(&model).unwrap(), Placement::default());
    let decoder = Decoder::load(&model, spec.quantization, placement).unwrap();
    let trained = decoder.new_adapter(spec.adapter, 3).unwrap();
    tiny::stir(&trained);
    let written = folder.path().join("adapter");
    trained.save(&written, &Provenance::default()).unwrap();
    let prompts = prompts(&text).unwrap();
    let want = trained_logits(&decoder, &trained, &prompts).unwrap();
    let packed = folder.path().join("packed");
    let served = Decoder::load_served(&model, spec.quantization, placement, &packed, Hold::Packed).unwrap();
    let difference = check(&want, &prompts, &served, &written).unwrap();
    assert!(difference > 0.0 && difference < 1e-4, "{difference}");

    // Computed from the codes of the base, it is nearly the same; with other codes it is not.
    let mut codes = Decoder::load_served(&model, spec.quantization, placement, &packed, Hold::Packed).unwrap();
    codes.compute_from_codes().unwrap();
    let difference = check_codes(&want, &prompts, &codes, &written).unwrap();
    assert!(difference > 0.0 && difference < 0.05, "{difference}");
    let noise = Tensor::randn_like(&want) * want.square().mean(Kind::Float).sqrt();
    let why = check_codes(&(&want + noise), &prompts, &codes, &written).unwrap_err();
    assert!(matches!(&why, TrainerError::Gate(why) if why.contains("over the codes of the base")), "{why}");

    // With another base than in training, the served model differs from the trained one.
    let f32_base = Decoder::load_served(&model, Quantization::None, placement, &packed, Hold::Unpacked).unwrap();
    let why = check(&want, &prompts, &f32_base, &written).unwrap_err();
    assert!(matches!(&why, TrainerError::Gate(why) if why.contains("its logits differ by")), "{why}");

    // One of 28 factors is larger in the file.
    let other = LoraAdapter::load(&written, decoder.architecture()).unwrap();
    let (name, factor) = other.parameters().pop().unwrap();
    let _ = factor.shallow_clone().f_mul_scalar_(1.5).unwrap();
    other.save(&written, &Provenance::default()).unwrap();
    let why = check(&want, &prompts, &served, &written).unwrap_err();
    assert!(matches!(&why, TrainerError::Gate(why) if why.contains("its logits differ by")), "{name}: {why}");

    // A truncated file.
    let whole = std::fs::read(written.join(FACTORS)).unwrap();
    std::fs::write(written.join(FACTORS), &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(check(&want, &prompts, &served, &written), Err(TrainerError::Gate(_))));
}
