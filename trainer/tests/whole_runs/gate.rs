//! The publish gate, asked directly: what was written must be what was trained.

use attune_model::{
    adapter::{LoraAdapter, Provenance},
    decoder::Decoder,
};
use attune_text::model::TextModel;
use attune_trainer::{error::TrainerError, publish::check};

use super::{FACTORS, asked, tiny, tiny_world};

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_was_written_otherwise_does_not_pass() {
    let (platform, folder) = tiny_world().await;
    let model = folder.path().join("model");
    let spec = platform.offer(&model, &tiny::dataset(4), &asked()).train;
    let (text, decoder) = (TextModel::open(&model).unwrap(), Decoder::load(&model, spec.quantization).unwrap());
    let trained = decoder.new_adapter(spec.adapter, 3).unwrap();
    tiny::stir(&trained);
    let written = folder.path().join("adapter");
    trained.save(&written, &Provenance::default()).unwrap();
    check(&text, &decoder, &trained, &written).unwrap();

    // One factor of 28 that is a little larger in the file.
    let other = LoraAdapter::load(&written, decoder.architecture()).unwrap();
    let (name, factor) = other.parameters().pop().unwrap();
    let _ = factor.shallow_clone().f_mul_scalar_(1.05).unwrap();
    other.save(&written, &Provenance::default()).unwrap();
    let why = check(&text, &decoder, &trained, &written).unwrap_err();
    assert!(matches!(&why, TrainerError::Gate(why) if why.contains("its logits differ by")), "{name}: {why}");

    // A file that was cut off.
    let whole = std::fs::read(written.join(FACTORS)).unwrap();
    std::fs::write(written.join(FACTORS), &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(check(&text, &decoder, &trained, &written), Err(TrainerError::Gate(_))));
}
