//! Frozen projections with a trainable low-rank update, forward and backward: `y = x·Wᵀ + c + s·(x·Aᵀ)·Bᵀ`.
//!
//! Projections of the same input (q, k, v; gate, up) are one [`FrozenLinear`], so that one matmul computes them all. A
//! 4-bit weight is unpacked for each use and then dropped; the gradient of `W` is never computed. Training adds the
//! update to the unpacked weight, `W + s·B·A`, which costs less than two thin products and a pass over the output.
//!
//! Shapes: `t` rows (tokens), `in`, `out` widths, `r` rank, `p` parts of one linear that have factors.
//!
//! Sources: Hu et al., arXiv:2106.09685, §4.1; Dettmers et al., arXiv:2305.14314, §3. The backward is written by hand:
//! with `v = s·dy·B`: `dx = dy·(W + s·B·A)`, `dA = vᵀ·x`, `dB = s·dyᵀ·(x·Aᵀ)`.
//!
//! With dropout, the update has a separate input for each projection, so the thin products are computed explicitly.
//! DoRA (Liu et al., arXiv:2402.09353) scales the rows of the updated weight `V = W + s·B·A` to the norm `m`. As in
//! PEFT, and §4.3 of the paper, no gradient flows through the row norms of `V`: with `G = dyᵀ·x` and `ρ = m/|V|`,
//! `dB = s·(ρ∘G)·Aᵀ`, `dA = s·Bᵀ·(ρ∘G)`, `dm = Σ(G∘V)/|V|`.

use attune_domain::architecture::PROJECTIONS;
use tch::{Device, Kind, Tensor};

use crate::{
    adapter::{LayerPairs, LoraAdapter, LoraPair},
    error::ModelError,
    io::weights::projection_path,
    kernels::{
        ffi::is_plain,
        integer_matmul,
        matmul::{add_mm, linear, mm},
        placement::HOST,
    },
    nn::{
        frozen_weight::Weight,
        low_rank::{FEW_ROWS, Factors, Update, add_updates},
        row_ops::{add_product, join, lengths, scale_rows, slice_of},
        scratch::{self, InUse, Scratch, Slot},
    },
    noise::Dropout,
    quant::packed::Source,
};

/// One or more projections of the same input, with concatenated outputs.
#[derive(Debug)]
pub(crate) struct FrozenLinear {
    parts: Vec<Part>,
    in_dim: i64,
    out_dim: i64,
    weight: Weight,
    /// The bias, `[out]`.
    bias: Option<Tensor>,
    kind: Kind,
}

/// The range of one projection in the output.
#[derive(Debug)]
struct Part {
    /// The projection's index in [`PROJECTIONS`].
    projection: usize,
    start: i64,
    out: i64,
}

/// The low-rank update of a linear: factors, scale and dropout.
#[derive(Clone, Copy)]
pub(crate) struct Correction<'a> {
    pub(crate) pairs: &'a LayerPairs,
    pub(crate) scale: f64,
    /// The dropout of the update's input, while training.
    pub(crate) dropout: Option<Dropout>,
}

impl<'a> Correction<'a> {
    /// Returns the update that `adapter` makes to block `layer`. Without an adapter it is empty: the base model.
    ///
    /// # Errors
    /// [`ModelError::Input`]: the adapter has no such layer.
    pub(crate) fn of(adapter: Option<&'a LoraAdapter>, layer: usize) -> Result<Self, ModelError> {
        const NO_PAIRS: &LayerPairs = &[const { None }; PROJECTIONS.len()];
        Ok(match adapter {
            Some(adapter) => Self { pairs: adapter.layer(layer)?, scale: adapter.scale(), dropout: None },
            None => Self { pairs: NO_PAIRS, scale: 0.0, dropout: None },
        })
    }
}

/// The state of a block's backward: the adapter's update, and the gradients to add to.
pub(crate) struct Learning<'a> {
    pub(crate) correction: Correction<'a>,
    pub(crate) gradients: &'a mut LayerPairs,
    /// Flag to compute the gradient of the block's input too.
    pub(crate) want_dx: bool,
}

/// The rows of a batch that share an adapter.
pub(crate) struct RowGroup<'a> {
    pub(crate) correction: Correction<'a>,
    /// The row indices, `Int64`; `None`: all rows.
    pub(crate) rows: Option<&'a Tensor>,
}

impl FrozenLinear {
    /// Reads the projections `names` of a layer, with their biases if `biased` is set.
    pub(crate) fn read(
        source: &mut Source<'_>,
        layer: usize,
        names: &[&str],
        biased: bool,
    ) -> Result<Self, ModelError> {
        let (mut parts, mut biases) = (Vec::new(), Vec::new());
        let mut packed = Vec::new();
        let (mut start, mut in_dim) = (0, 0);
        for name in names {
            let path = projection_path(layer, name);
            let name_in_folder = format!("{path}.weight");
            let [out, ins] = source.weights.shape(&name_in_folder)?;
            let projection = PROJECTIONS.iter().position(|known| known == name);
            let projection = projection.ok_or_else(|| ModelError::Input(format!("'{name}' is not a projection")))?;
            parts.push(Part { projection, start, out });
            (start, in_dim) = (start + out, ins);
            packed.push(source.projection(&name_in_folder)?);
            if biased {
                biases.push(source.weights.read(&format!("{path}.bias"))?);
            }
        }
        let weight = Weight::of(packed)?;
        let bias = if biased { Some(join(biases)?) } else { None };
        Ok(Self { parts, in_dim, out_dim: start, weight, bias, kind: HOST.0 })
    }

    /// Returns the same weights for computation in another kind, on another device. A packed weight stays packed.
    pub(crate) fn to(&self, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(kind)?.f_to_device(device)).transpose()?;
        let weight = self.weight.to(kind, device)?;
        let parts = self.parts.iter().map(|p| Part { projection: p.projection, start: p.start, out: p.out }).collect();
        Ok(Self { parts, in_dim: self.in_dim, out_dim: self.out_dim, weight, bias, kind })
    }

    /// Returns the weight `[out, in]`, to be dropped after use: a packed weight is unpacked here.
    pub(crate) fn weight(&self) -> Result<Tensor, ModelError> {
        Ok(self.weight.whole(self.kind)?.f_to_kind(self.kind)?)
    }

    /// Returns the weight `[out, in]` for one use, in this thread's buffer. A dense weight is only copied if the caller
    /// changes it.
    fn weight_in_use(&self, is_changed: bool) -> Result<InUse, ModelError> {
        if self.weight.is_dense() && !is_changed {
            return Ok(InUse::Tensor(self.weight()?));
        }
        let options = self.weight.options(self.kind);
        let scratch = Scratch::of(Slot::Weight, (self.out_dim, self.in_dim), options)?;
        self.weight.write_to(scratch.matrix())?;
        if options.0 == self.kind {
            return Ok(InUse::Scratch(scratch));
        }
        Ok(InUse::Tensor(scratch.matrix().f_to_kind(self.kind)?))
    }

    /// Reserves the buffer that a step with this correction needs.
    pub(crate) fn reserve(&self, correction: Correction<'_>) -> Result<(), ModelError> {
        if self.weight.is_dense() && !self.changes(correction) {
            return Ok(());
        }
        scratch::reserve(Slot::Weight, self.out_dim * self.in_dim, self.weight.options(self.kind))
    }

    /// Returns whether training adds the update to the weight. With dropout it has an input of its own.
    fn changes(&self, correction: Correction<'_>) -> bool {
        correction.dropout.is_none() && self.corrected(correction.pairs).next().is_some()
    }

    /// Keeps the weight unpacked from now on: the same numbers that [`FrozenLinear::weight`] returned before.
    pub(crate) fn unpack(&mut self) -> Result<(), ModelError> {
        self.weight = Weight::Dense(self.weight()?);
        Ok(())
    }

    /// Computes from the codes of a quantized weight from now on, with activations as integers. A weight that is not
    /// quantized, or whose rows are not whole blocks, stays as it is.
    pub(crate) fn tile(&mut self) -> Result<(), ModelError> {
        if let Some(tiled) = self.weight.tiled()? {
            self.weight = tiled;
        }
        Ok(())
    }

    /// Returns the size of the weight and the bias in memory, in bytes.
    pub(crate) fn bytes(&self) -> Result<usize, ModelError> {
        let bias =
            self.bias.as_ref().map(|bias| Ok::<_, ModelError>(bias.numel() * bias.f_kind()?.elt_size_in_bytes()));
        Ok(self.weight.bytes()? + bias.transpose()?.unwrap_or(0))
    }

    /// Returns whether the weight is kept as codes.
    pub(crate) fn has_codes(&self) -> bool {
        !self.weight.is_dense()
    }

    /// Returns whether products are computed from codes.
    pub(crate) fn is_tiled(&self) -> bool {
        matches!(self.weight, Weight::Tiled(_))
    }

    /// Returns the row norms `[out]` of one projection's weight, if it is a part of this linear.
    pub(crate) fn row_norms(&self, projection: usize) -> Result<Option<Tensor>, ModelError> {
        match self.parts.iter().find(|part| part.projection == projection) {
            None => Ok(None),
            Some(part) => Ok(Some(lengths(&self.weight()?.f_narrow(0, part.start, part.out)?)?)),
        }
    }

    /// Returns the weight and bias of one projection, for the reference.
    #[cfg(test)]
    pub(crate) fn part(&self, projection: usize) -> (Tensor, Option<Tensor>) {
        let part = self.parts.iter().find(|part| part.projection == projection).unwrap();
        let cut = |t: &Tensor| t.narrow(0, part.start, part.out);
        (cut(&self.weight().unwrap()), self.bias.as_ref().map(cut))
    }

    /// Applies the frozen weight: `x: [t, in] -> [t, out]`.
    pub(crate) fn base(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (_, width) = x.size2()?;
        if width != self.in_dim {
            return Err(ModelError::Width { what: "projection", want: self.in_dim, got: width });
        }
        match &self.weight {
            Weight::Tiled(tiles) => integer_matmul::linear(x, tiles, self.bias.as_ref()),
            _ => linear(x, &self.weight()?, self.bias.as_ref()),
        }
    }

    /// Applies the weight and the update of each group of rows: `x: [t, in] -> [t, out]`.
    pub(crate) fn forward_rows(&self, x: &Tensor, groups: &[RowGroup<'_>]) -> Result<Tensor, ModelError> {
        let mut y = self.base(x)?; // [t, out]
        let (few, many): (Vec<_>, Vec<_>) = groups.iter().partition(|group| self.is_fused(x, group));
        if !few.is_empty() {
            let updates: Vec<Update<'_>> = few.into_iter().map(|group| self.update(group)).collect();
            add_updates(x, &mut y, &updates)?;
        }
        for group in many {
            let picked = group.rows.map(|rows| x.f_index_select(0, rows)).transpose()?;
            let Some(low) = self.low(picked.as_ref().unwrap_or(x), group.correction)? else { continue };
            for (place, (part, pair)) in self.corrected(group.correction.pairs).enumerate() {
                let low = slice_of(&low, place, pair)?;
                let mut y = y.f_narrow(1, part.start, part.out)?; // [t, out of part]
                match (group.rows, &pair.magnitude) {
                    (None, None) => drop(y.f_addmm_(&low, &self.kinds(&pair.b)?.f_tr()?)?),
                    (Some(rows), None) => drop(y.f_index_add_(0, rows, &low.f_mm(&self.kinds(&pair.b)?.f_tr()?)?)?),
                    (rows, Some(magnitude)) => {
                        let scale = self.row_scale(part, (pair, magnitude), group.correction.scale)?; // [out of part]
                        let delta = low.f_mm(&self.kinds(&pair.b)?.f_tr()?)?; // [rows, out of part]
                        let bias = self.bias.as_ref().map(|b| b.f_narrow(0, part.start, part.out)).transpose()?;
                        scale_rows(&mut y, &delta, rows, (&scale, bias.as_ref()))?;
                    }
                }
            }
        }
        Ok(y)
    }

    /// Returns whether the update of these rows is computed by [`add_updates`]. In `f32` it is not, since that rounds
    /// in another way than libtorch.
    fn is_fused(&self, x: &Tensor, group: &RowGroup<'_>) -> bool {
        let rows = group.rows.unwrap_or(x).size().first().map_or(0, |&rows| usize::try_from(rows).unwrap_or(0));
        let is_plain_pair = |pair: &LoraPair| pair.magnitude.is_none() && is_plain(&pair.a) && is_plain(&pair.b);
        self.is_tiled()
            && rows <= FEW_ROWS
            && is_plain(x)
            && self.corrected(group.correction.pairs).all(|(_, pair)| is_plain_pair(pair))
    }

    /// Returns the update of some rows.
    fn update<'a>(&'a self, group: &RowGroup<'a>) -> Update<'a> {
        let parts = self.corrected(group.correction.pairs).map(|(part, pair)| Factors {
            a: &pair.a,
            b: &pair.b,
            start: usize::try_from(part.start).unwrap_or(0),
        });
        Update { rows: group.rows, parts: parts.collect(), scale: group.correction.scale }
    }

    /// Applies the weight with one update, for training: `x: [t, in] -> [t, out]`.
    pub(crate) fn forward(&self, x: &Tensor, correction: Correction<'_>) -> Result<Tensor, ModelError> {
        let weight = self.corrected_weight(correction)?; // [out, in]
        let y = linear(x, &weight, self.bias.as_ref())?; // [t, out]
        drop(weight);
        let Some(dropout) = correction.dropout else { return Ok(y) };
        for (part, pair) in self.corrected(correction.pairs) {
            let dropped = dropout.at(part.projection).apply(x)?; // [t, in]
            let low = dropped.f_mm(&self.kinds(&pair.a)?.f_tr()?)?.f_mul_scalar_(correction.scale)?; // [t, r]
            let _ = y.f_narrow(1, part.start, part.out)?.f_addmm_(&low, &self.kinds(&pair.b)?.f_tr()?)?;
        }
        Ok(y)
    }

    /// Computes `dx: [t, in]` from `dy: [t, out]`.
    pub(crate) fn input_gradient(&self, dy: &Tensor, correction: Correction<'_>) -> Result<Tensor, ModelError> {
        let weight = self.corrected_weight(correction)?; // [out, in]
        let mut dx = mm(dy, &weight)?; // [t, in]
        drop(weight);
        let Some(dropout) = correction.dropout else { return Ok(dx) };
        for (part, pair) in self.corrected(correction.pairs) {
            let (a, b) = (self.kinds(&pair.a)?, self.kinds(&pair.b)?);
            let back = dy.f_narrow(1, part.start, part.out)?.f_mm(&b)?.f_mul_scalar_(correction.scale)?; // [t, r]
            let _ = dx.f_add_(&dropout.at(part.projection).apply(&back.f_mm(&a)?)?)?;
        }
        Ok(dx)
    }

    /// Adds the factors' gradients, from `dy: [t, out]` and the forward's `x: [t, in]`.
    pub(crate) fn accumulate_grad(
        &self,
        dy: &Tensor,
        x: &Tensor,
        learning: &mut Learning<'_>,
    ) -> Result<(), ModelError> {
        let pairs = learning.correction.pairs;
        let is_dora = self.corrected(pairs).any(|(_, pair)| pair.magnitude.is_some());
        match (self.corrected(pairs).next(), is_dora, learning.correction.dropout) {
            (None, ..) => Ok(()),
            (_, true, _) => self.accumulate_grad_with_magnitudes(dy, x, learning),
            (_, _, Some(dropout)) => self.accumulate_grad_with_dropout(dy, x, learning, dropout),
            _ => self.accumulate_grad_together(dy, x, learning),
        }
    }

    /// Adds the gradients where all parts have the same input: one thin product serves them all.
    fn accumulate_grad_together(&self, dy: &Tensor, x: &Tensor, learning: &mut Learning<'_>) -> Result<(), ModelError> {
        let Learning { correction, gradients, .. } = learning;
        let Some(low) = self.low(x, *correction)? else { return Ok(()) }; // [t, p·r]
        let mut backs = Vec::with_capacity(self.parts.len());
        for (place, (part, pair)) in self.corrected(correction.pairs).enumerate() {
            let Some(gradient) = &mut gradients[part.projection] else { continue };
            let dy = dy.f_narrow(1, part.start, part.out)?; // [t, out of part]
            // A third faster than its transpose, dyᵀ·low.
            let turned = mm(&slice_of(&low, place, pair)?.f_tr()?, &dy)?; // [r, out]
            let _ = gradient.b.f_add_(&turned.f_tr()?)?;
            backs.push(mm(&dy, &self.kinds(&pair.b)?)?); // [t, r]
        }
        let back = Tensor::f_cat(&backs, 1)?.f_mul_scalar_(correction.scale)?; // [t, p·r]
        let first = mm(&back.f_tr()?, x)?; // [p·r, in]
        for (place, (part, pair)) in self.corrected(correction.pairs).enumerate() {
            let (Some(gradient), (rank, _)) = (&mut gradients[part.projection], pair.a.size2()?) else { continue };
            let _ = gradient.a.f_add_(&first.f_narrow(0, place as i64 * rank, rank)?)?; // [r, in]
        }
        Ok(())
    }

    /// Adds the gradients where each part has its own dropout mask.
    fn accumulate_grad_with_dropout(
        &self,
        dy: &Tensor,
        x: &Tensor,
        learning: &mut Learning<'_>,
        dropout: Dropout,
    ) -> Result<(), ModelError> {
        let Learning { correction: Correction { pairs, scale, .. }, gradients, .. } = learning;
        for (part, pair) in self.corrected(pairs) {
            let Some(gradient) = &mut gradients[part.projection] else { continue };
            let x = dropout.at(part.projection).apply(x)?; // [t, in]
            let dy = dy.f_narrow(1, part.start, part.out)?; // [t, out of part]
            let low = x.f_mm(&self.kinds(&pair.a)?.f_tr()?)?.f_mul_scalar_(*scale)?; // [t, r]
            let back = dy.f_mm(&self.kinds(&pair.b)?)?.f_mul_scalar_(*scale)?; // [t, r]
            add_product(&mut gradient.b, &dy.f_tr()?, &low)?; // [out, r]
            add_product(&mut gradient.a, &back.f_tr()?, &x)?; // [r, in]
        }
        Ok(())
    }

    /// Adds the gradients of DoRA's two factors and its magnitude.
    fn accumulate_grad_with_magnitudes(
        &self,
        dy: &Tensor,
        x: &Tensor,
        learning: &mut Learning<'_>,
    ) -> Result<(), ModelError> {
        let Learning { correction: Correction { pairs, scale, .. }, gradients, .. } = learning;
        let weight = self.weight_in_use(false)?; // [out, in]
        for (part, pair) in self.corrected(pairs) {
            let (Some(gradient), Some(magnitude)) = (&mut gradients[part.projection], &pair.magnitude) else {
                continue;
            };
            let corrected = self.added(&weight, part, pair, *scale)?; // [out of part, in]
            let lengths = lengths(&corrected)?; // [out of part]
            let outer = mm(&dy.f_narrow(1, part.start, part.out)?.f_tr()?, x)?; // [out of part, in]
            let mut outer = outer.f_to_kind(pair.a.f_kind()?)?;
            if let Some(gradient) = &mut gradient.magnitude {
                // [out of part]
                let mut along = outer.f_mul(&corrected)?.f_sum_dim_intlist([1i64].as_slice(), false, None)?;
                let _ = gradient.f_add_(&along.f_div_(&lengths)?)?;
            }
            let row_scale = magnitude.f_div(&lengths)?.f_mul_scalar_(*scale)?.f_unsqueeze(1)?; // [out of part, 1]
            let outer = outer.f_mul_(&row_scale)?;
            let _ = gradient.b.f_addmm_(&outer, &pair.a.f_tr()?)?; // [out, r]
            let _ = gradient.a.f_addmm_(&pair.b.f_tr()?, &outer)?; // [r, in]
        }
        Ok(())
    }

    /// Returns the weight `[out, in]` that the input is multiplied by, for one use. With dropout it is the plain
    /// weight, since the update has separate inputs.
    fn corrected_weight(&self, correction: Correction<'_>) -> Result<InUse, ModelError> {
        let is_changed = self.changes(correction);
        let weight = self.weight_in_use(is_changed)?; // [out, in]
        if !is_changed {
            return Ok(weight);
        }
        for (part, pair) in self.corrected(correction.pairs) {
            let mut rows = weight.f_narrow(0, part.start, part.out)?; // [out of part, in]
            add_mm(&mut rows, &self.kinds(&pair.b)?.f_mul_scalar(correction.scale)?, &self.kinds(&pair.a)?)?;
            if let Some(magnitude) = &pair.magnitude {
                let _ = rows.f_mul_(&magnitude.f_div(&lengths(&rows)?)?.f_unsqueeze(1)?)?;
            }
        }
        Ok(weight)
    }

    /// Returns `W + s·B·A` of one part: `[out of part, in]`, in new memory.
    fn added(&self, weight: &Tensor, part: &Part, pair: &LoraPair, scale: f64) -> Result<Tensor, ModelError> {
        let rows = weight.f_narrow(0, part.start, part.out)?.f_to_kind(pair.a.f_kind()?)?;
        Ok(rows.f_addmm(&pair.b.f_mul_scalar(scale)?, &pair.a)?)
    }

    /// Returns `m/|V|` of one part, `[out of part]`, computed once.
    fn row_scale(
        &self,
        part: &Part,
        (pair, magnitude): (&LoraPair, &Tensor),
        scale: f64,
    ) -> Result<Tensor, ModelError> {
        if let Some(known) = pair.row_scale.get() {
            return Ok(known.shallow_clone());
        }
        let made = magnitude.f_div(&lengths(&self.added(&self.weight()?, part, pair, scale)?)?)?;
        Ok(pair.row_scale.get_or_init(|| made).shallow_clone())
    }

    /// Returns `s·x·Aᵀ` for all parts with factors at once: `[t, p·r]`.
    fn low(&self, x: &Tensor, correction: Correction<'_>) -> Result<Option<Tensor>, ModelError> {
        let firsts: Vec<&Tensor> = self.corrected(correction.pairs).map(|(_, pair)| &pair.a).collect();
        let a = match firsts.as_slice() {
            [] => return Ok(None),
            [one] => one.shallow_clone(),
            many => Tensor::f_cat(many, 0)?, // [p·r, in]
        };
        Ok(Some(mm(x, &self.kinds(&a)?.f_tr()?)?.f_mul_scalar_(correction.scale)?))
    }

    /// Converts a factor to the kind of the computation. Factors are always kept in `f32`.
    fn kinds(&self, factor: &Tensor) -> Result<Tensor, ModelError> {
        Ok(factor.f_to_kind(self.kind)?)
    }

    /// Returns the parts that have factors, in order.
    fn corrected<'a>(&'a self, pairs: &'a LayerPairs) -> impl Iterator<Item = (&'a Part, &'a LoraPair)> {
        self.parts.iter().filter_map(|part| pairs[part.projection].as_ref().map(|pair| (part, pair)))
    }
}
