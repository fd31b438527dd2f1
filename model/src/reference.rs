//! The whole decoder with adapter and loss in plain tensor operations and libtorch's autograd: slow, and simple enough
//! to be obviously correct. The tests below compare the hand-written gradients with it in `f64`.

use tch::{Device, Kind, Tensor};

use attune_domain::architecture::Architecture;

use crate::{adapter::LoraAdapter, decoder::Decoder, nn::rope::Rope, noise::Dropout};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Computes `x · (mean(x²) + ε)^-½ · w`.
fn norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Tensor {
    let root = (x.square().mean_dim([-1i64].as_slice(), true, None) + epsilon).sqrt();
    x / root * weight
}

/// Rotates `x: [s, heads, d]`, the halves of each head against each other.
fn rotate(x: &Tensor, rope: &Rope) -> Tensor {
    let (rows, half) = (x.size()[0], x.size()[2] / 2);
    // [s, 1, d/2]
    let angles = (Tensor::arange(rows, DOUBLE).unsqueeze(1) * rope.frequencies.unsqueeze(0)).unsqueeze(1);
    let (first, second) = (x.narrow(2, 0, half), x.narrow(2, half, half));
    let (cos, sin) = (angles.cos() * rope.magnitude, angles.sin() * rope.magnitude);
    Tensor::cat(&[&first * &cos - &second * &sin, &second * &cos + &first * &sin], 2)
}

/// Computes one projection of a block with its low-rank update. The dropout applies to the update's input.
fn project(decoder: &Decoder, (adapter, dropout): Trained<'_>, layer: usize, at: usize, x: &Tensor) -> Tensor {
    let (weight, bias) = decoder.blocks[layer].projection(at);
    let Some(pair) = &adapter.layer(layer).unwrap()[at] else { return x.linear(&weight, bias.as_ref()) };
    if let Some(magnitude) = &pair.magnitude {
        let corrected = weight + pair.b.matmul(&pair.a) * adapter.scale();
        // As in PEFT, and §4.3 of the DoRA paper: no gradient through the row norms.
        let lengths = corrected.square().sum_dim_intlist([1i64].as_slice(), true, None).sqrt().detach();
        return x.linear(&(corrected * magnitude.unsqueeze(1) / lengths), bias.as_ref());
    }
    let input = match dropout {
        Some(dropout) => x * dropout.at(layer).at(at).apply(&x.ones_like()).unwrap(),
        None => x.shallow_clone(),
    };
    x.linear(&weight, bias.as_ref()) + input.matmul(&pair.a.tr()).matmul(&pair.b.tr()) * adapter.scale()
}

/// The trained adapter, and its dropout.
type Trained<'a> = (&'a LoraAdapter, Option<Dropout>);

/// Runs one sequence through one block.
fn block(decoder: &Decoder, adapter: Trained<'_>, layer: usize, x: &Tensor) -> Tensor {
    let Architecture { num_attention_heads: h, num_key_value_heads: n, head_dim: d, rms_norm_eps: eps, .. } =
        *decoder.architecture();
    let (h, n, d) = (h as i64, n as i64, d as i64);
    let rows = x.size()[0];
    let norms = decoder.blocks[layer].norms();
    let normed = norm(x, norms[0].unwrap(), eps);
    let part = |at, heads| project(decoder, adapter, layer, at, &normed).view([rows, heads, d]);
    let (mut q, mut k, v) = (part(0, h), part(1, n), part(2, n));
    if let (Some(q_norm), Some(k_norm)) = (norms[2], norms[3]) {
        (q, k) = (norm(&q, q_norm, eps), norm(&k, k_norm, eps));
    }
    let rope = Rope::new(decoder.architecture(), Kind::Double, Device::Cpu).unwrap();
    let spread = |x: &Tensor| x.repeat_interleave_self_int(h / n, 1, None).permute([1, 0, 2]); // [h, s, d]
    let (q, k, v) = (rotate(&q, &rope).permute([1, 0, 2]), spread(&rotate(&k, &rope)), spread(&v));
    let scores = q.matmul(&k.transpose(1, 2)) / (d as f64).sqrt(); // [h, s, s]
    let mut seen = Tensor::ones([rows, rows], (Kind::Bool, Device::Cpu)).tril(0);
    if let Some(window) = decoder.architecture().layers.window(layer as u64) {
        seen = seen.triu(1 - window as i64);
    }
    let p = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY).softmax(-1, None);
    let attended = p.matmul(&v).permute([1, 0, 2]).reshape([rows, h * d]);
    let middle = x + project(decoder, adapter, layer, 3, &attended);
    let normed = norm(&middle, norms[1].unwrap(), eps);
    let inner = project(decoder, adapter, layer, 4, &normed).silu() * project(decoder, adapter, layer, 5, &normed);
    middle + project(decoder, adapter, layer, 6, &inner)
}

/// Computes the weighted sum of the losses of one sequence.
fn loss(decoder: &Decoder, adapter: Trained<'_>, ids: &[u32], weights: &[f32]) -> Tensor {
    let wide: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let mut x = decoder.embed.rows(&wide).unwrap();
    for layer in 0..decoder.blocks.len() {
        x = block(decoder, adapter, layer, &x);
    }
    let logits = norm(&x, &decoder.head.norm.weight, decoder.head.norm.epsilon)
        .matmul(&decoder.head.lm_head.dense().unwrap().tr());
    let log = logits.log_softmax(-1, None);
    let picked = (1..ids.len())
        .filter(|&at| weights[at] != 0.0)
        .map(|at| log.get(at as i64 - 1).get(wide[at]) * f64::from(weights[at]));
    -picked.fold(Tensor::zeros([0i64; 0], DOUBLE), |sum, log| sum + log)
}

mod tests {
    use super::*;
    use crate::{
        batch::PackedBatch,
        noise::Noise,
        optim::gradients::Gradients,
        train::{TrainOptions, loss_and_gradients},
    };
    use attune_domain::{
        architecture::PROJECTIONS,
        placement::Placement,
        spec::{AdapterSpec, Quantization},
    };
    use std::{fs, path::PathBuf};

    /// The IDs and the weights of a sequence.
    type Row = (Vec<u32>, Vec<f32>);

    /// Four sequences with nothing in common, and four with a common prefix: two share 40 tokens, all four share 17,
    /// and one is only the prefix itself.
    fn rows() -> Vec<Row> {
        let weights = |length: usize| (0..length).map(|at| f32::from(at % 3 != 1)).collect();
        let apart = [1, 9, 23, 2].into_iter().enumerate().map(|(row, length)| {
            let ids = (0..length).map(|at| ((row * 37 + at * at * 11 + 5) % 128) as u32).collect();
            (ids, weights(length))
        });
        let stem: Vec<u32> = (0..40).map(|at| (at * 7 + 90) % 128).collect();
        let alike = [(40, vec![3, 4, 5]), (40, vec![9; 8]), (17, vec![1, 2]), (17, vec![])].map(|(length, rest)| {
            let ids = [&stem[..length], &rest].concat();
            let weights = weights(ids.len());
            (ids, weights)
        });
        apart.chain(alike).collect()
    }

    /// One comparison.
    struct Case {
        family: String,
        quantization: Quantization,
        spec: AdapterSpec,
        checkpointing: bool,
        share_prefixes: bool,
        /// Flag to give each row a weight of its own, negative ones included.
        weighted: bool,
    }

    fn case(family: &str, targets: &[&str]) -> Case {
        let family = family.to_owned();
        let spec = AdapterSpec::lora(3, 7.0, targets);
        let quantization = Quantization::None;
        Case { family, quantization, spec, checkpointing: false, share_prefixes: false, weighted: false }
    }

    /// Returns the folder of the tiny models.
    fn tiny() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny")
    }

    /// Returns a decoder in `f64`, and an adapter with nonzero factors.
    fn made(case: &Case) -> (Decoder, LoraAdapter) {
        let folder = tiny().join(&case.family);
        let decoder = Decoder::load(&folder, case.quantization, Placement::default())
            .unwrap()
            .to(Kind::Double, Device::Cpu)
            .unwrap();
        let adapter = decoder.new_adapter(case.spec.clone(), 5).unwrap();
        let adapter = adapter.to(Kind::Double, Device::Cpu).unwrap();
        tch::manual_seed(11);
        for (_, factor) in adapter.parameters() {
            let moved = Tensor::randn_like(factor) * 0.2;
            let _ = factor.shallow_clone().g_add_(&moved);
        }
        (decoder, adapter)
    }

    /// Compares the loss and every gradient.
    fn compare(case: &Case) {
        let (decoder, adapter) = made(case);
        let mut rows = rows();
        if case.weighted {
            for (row, (_, weights)) in rows.iter_mut().enumerate() {
                weights.iter_mut().for_each(|weight| *weight *= 0.5 * row as f32 - 1.25);
            }
        }
        let mut packed = PackedBatch::new();
        for (ids, weights) in &rows {
            packed.push(ids, weights).unwrap();
        }
        let mut gradients = Gradients::zeros(&adapter).unwrap();
        let Case { checkpointing, share_prefixes, spec, .. } = case;
        let (checkpointing, share_prefixes) = (*checkpointing, *share_prefixes);
        let options = TrainOptions { checkpointing, normaliser: 31, share_prefixes, noise: None };
        // Called twice, since gradients accumulate.
        let got = loss_and_gradients(&decoder, &adapter, &packed, options, &mut gradients).unwrap();
        loss_and_gradients(&decoder, &adapter, &packed, options, &mut gradients).unwrap();

        for (_, factor) in adapter.parameters() {
            let _ = factor.shallow_clone().set_requires_grad(true);
        }
        let what = format!("{} {:?} {spec:?} {options:?}", case.family, case.quantization);
        let want = rows
            .iter()
            .map(|(ids, weights)| loss(&decoder, (&adapter, None), ids, weights))
            .fold(Tensor::zeros([0i64; 0], DOUBLE), |sum, loss| sum + loss);
        let off = (got.sum / want.double_value(&[]) - 1.0).abs();
        assert!(off < 1e-12, "{what}: loss off by {off}");
        (want * (2.0 / 31.0)).backward();
        for ((name, got), (_, factor)) in gradients.named().into_iter().zip(adapter.parameters()) {
            let want = factor.grad();
            let off = (got - &want).norm().double_value(&[]) / want.norm().double_value(&[]);
            assert!(off < 1e-10, "{what}: {name} off by {off}");
        }
    }

    #[test]
    fn hand_made_gradients_are_those_of_autograd_in_every_family() {
        let mut families = 0;
        for folder in fs::read_dir(tiny()).unwrap() {
            let family = folder.unwrap().file_name().into_string().unwrap();
            for (checkpointing, share_prefixes) in [(false, false), (true, false), (false, true), (true, true)] {
                compare(&Case { checkpointing, share_prefixes, ..case(&family, &PROJECTIONS) });
            }
            families += 1;
        }
        assert!(families > 0);
    }

    #[test]
    fn weighted_losses_have_their_gradients() {
        for share_prefixes in [false, true] {
            compare(&Case { share_prefixes, weighted: true, ..case("llama", &PROJECTIONS) });
        }
    }

    #[test]
    fn a_packed_base_has_the_gradients_of_its_unpacked_numbers() {
        let nf4 = |double_quant| Quantization::Nf4 { double_quant };
        for (quantization, checkpointing) in [(nf4(false), false), (nf4(true), true), (Quantization::Int8, false)] {
            compare(&Case { quantization, checkpointing, share_prefixes: true, ..case("qwen3", &PROJECTIONS) });
        }
    }

    #[test]
    fn any_subset_of_projections_can_be_trained() {
        compare(&case("llama", &["q_proj", "v_proj"]));
        compare(&Case { checkpointing: true, share_prefixes: true, ..case("qwen2", &["k_proj", "up_proj"]) });
        compare(&case("mistral", &["o_proj"]));
        compare(&Case { share_prefixes: true, ..case("qwen3", &["down_proj", "gate_proj"]) });
    }

    #[test]
    fn rank_stabilised_and_magnitude_adapters_have_their_gradients() {
        let lora = AdapterSpec::lora(3, 7.0, &PROJECTIONS);
        let rslora = AdapterSpec { use_rslora: true, ..lora.clone() };
        compare(&Case { spec: rslora, ..case("llama", &[]) });
        for (family, checkpointing) in [("llama", false), ("qwen2", true), ("qwen3", false)] {
            let spec = AdapterSpec { use_dora: true, use_rslora: checkpointing, ..lora.clone() };
            compare(&Case { spec, checkpointing, share_prefixes: true, ..case(family, &[]) });
        }
        let some = AdapterSpec { use_dora: true, ..AdapterSpec::lora(2, 3.0, &["k_proj", "down_proj"]) };
        let quantization = Quantization::Nf4 { double_quant: true };
        compare(&Case { spec: some, quantization, ..case("mistral", &[]) });
    }

    /// With dropout, checkpointing must drop the same numbers in both passes, and each projection must drop different
    /// ones.
    #[test]
    fn dropped_inputs_have_their_gradients() {
        for family in ["llama", "qwen2"] {
            let spec = AdapterSpec { lora_dropout: 0.3, ..AdapterSpec::lora(3, 7.0, &PROJECTIONS) };
            let case = Case { spec, ..case(family, &[]) };
            let (decoder, adapter) = made(&case);
            // The mask depends on the row index, and the last block computes only the rows that predict a token.
            let (ids, weights) = (&rows()[2].0, &[1.0_f32; 23]);
            let mut packed = PackedBatch::new();
            packed.push(ids, weights).unwrap();
            let dropout = Dropout { share: 0.3, seed: 77 };
            for (_, factor) in adapter.parameters() {
                let _ = factor.shallow_clone().set_requires_grad(true);
            }
            let want = loss(&decoder, (&adapter, Some(dropout)), ids, weights);
            (&want / 31.0).backward();
            for checkpointing in [false, true] {
                let noise = Some(Noise { seed: 77, neftune_noise_alpha: 0.0 });
                let options = TrainOptions { checkpointing, normaliser: 31, share_prefixes: true, noise };
                let mut gradients = Gradients::zeros(&adapter).unwrap();
                let got = tch::no_grad(|| loss_and_gradients(&decoder, &adapter, &packed, options, &mut gradients));
                let off = (got.unwrap().sum / want.double_value(&[]) - 1.0).abs();
                assert!(off < 1e-12, "{family}: loss off by {off}");
                for ((name, got), (_, factor)) in gradients.named().into_iter().zip(adapter.parameters()) {
                    let want = factor.grad();
                    let off = (got - &want).norm().double_value(&[]) / want.norm().double_value(&[]);
                    assert!(off < 1e-10, "{family}: {name} off by {off}");
                }
            }
        }
    }
}
