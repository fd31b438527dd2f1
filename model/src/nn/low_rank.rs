//! The low-rank updates of few rows with many adapters, in `f32` on the CPU: `y += s·B·(A·x)` for each row, with the
//! factors of its adapter, without a call of libtorch for each factor. A row's result does not depend on the others.
//!
//! Shapes: `t` rows of the batch, `in`, `out` widths of a linear, `r` rank.
//!
//! Source: Chen et al., arXiv:2310.18547, §4 (rows with different adapters in one pass).

use tch::Tensor;

use crate::{
    error::ModelError,
    kernels::{
        ffi::{numbers, numbers_mut},
        fused::{run, share, sum_of},
    },
};

/// The number of rows of a pass up to which the memory bandwidth, and not the arithmetic, limits it.
pub const FEW_ROWS: usize = 16;

/// The update of the rows of one adapter.
pub(crate) struct Update<'a> {
    /// The row indices, `Int64`; `None`: all rows.
    pub(crate) rows: Option<&'a Tensor>,
    /// The factors of each part of the linear that has them.
    pub(crate) parts: Vec<Factors<'a>>,
    pub(crate) scale: f64,
}

/// The factors of one part of a linear.
pub(crate) struct Factors<'a> {
    /// The first factor, `[r, in]`.
    pub(crate) a: &'a Tensor,
    /// The second factor, `[out of part, r]`.
    pub(crate) b: &'a Tensor,
    /// The first output of the part.
    pub(crate) start: usize,
}

/// The factors of a part as slices.
struct Slices<'a> {
    a: &'a [f32],
    b: &'a [f32],
    rank: usize,
    start: usize,
}

/// One row with the factors of its adapter.
struct Task<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    parts: &'a [Slices<'a>],
    scale: f32,
}

/// Adds the updates of some rows of `x: [t, in]` to `y: [t, out]`. A row has at most one update.
///
/// # Errors
/// [`ModelError::Input`]: a tensor is not contiguous, or not `Float` on the CPU.
pub(crate) fn add_updates(x: &Tensor, y: &mut Tensor, updates: &[Update<'_>]) -> Result<(), ModelError> {
    let size = |number: i64| usize::try_from(number).unwrap_or(0);
    let (count, inputs) = x.size2()?;
    let (count, inputs, outputs) = (size(count), size(inputs), size(y.size2()?.1));
    let parts = updates.iter().map(slices).collect::<Result<Vec<_>, ModelError>>()?;
    let mut of_row = vec![None; count];
    for (update, parts) in updates.iter().zip(&parts) {
        let entry = Some((parts.as_slice(), update.scale as f32));
        match update.rows {
            None => of_row.fill(entry),
            Some(rows) => {
                for &row in numbers::<i64>(rows)? {
                    let place = of_row.get_mut(size(row));
                    *place.ok_or_else(|| ModelError::Input(format!("row {row} is not in the batch")))? = entry;
                }
            }
        }
    }
    let rows = numbers::<f32>(x)?.chunks_exact(inputs).zip(numbers_mut::<f32>(y)?.chunks_exact_mut(outputs));
    let mut tasks: Vec<Task<'_>> = rows
        .zip(of_row)
        .filter_map(|((x, y), entry)| entry.map(|(parts, scale)| Task { x, y, parts, scale }))
        .collect();
    let factors = |parts: &[Slices<'_>]| parts.iter().map(|part| part.a.len() + part.b.len()).sum::<usize>();
    let width = tasks.iter().map(|task| factors(task.parts)).max().unwrap_or(0);
    let share = share(tasks.len(), width);
    run(
        tasks.chunks_mut(share),
        #[inline(always)]
        |tasks| {
            for task in tasks {
                task.add();
            }
        },
    );
    Ok(())
}

fn slices<'a>(update: &Update<'a>) -> Result<Vec<Slices<'a>>, ModelError> {
    let part = |factors: &Factors<'a>| {
        let rank = usize::try_from(factors.a.size2()?.0).unwrap_or(0).max(1);
        Ok::<_, ModelError>(Slices { a: numbers(factors.a)?, b: numbers(factors.b)?, rank, start: factors.start })
    };
    update.parts.iter().map(part).collect()
}

impl Task<'_> {
    #[inline(always)]
    fn add(&mut self) {
        let mut low = Vec::new(); // [r]
        for part in self.parts {
            let products = part.a.chunks_exact(self.x.len());
            low.clear();
            low.extend(products.map(|a| {
                let x = &self.x[..a.len()];
                self.scale * sum_of(a.len(), |at| a[at] * x[at])
            }));
            for (y, b) in self.y[part.start..].iter_mut().zip(part.b.chunks_exact(part.rank)) {
                let low = &low[..b.len()];
                *y += sum_of(b.len(), |at| b[at] * low[at]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn each_row_gets_the_update_of_its_adapter() {
        tch::manual_seed(71);
        let random = |rows, columns| Tensor::randn([rows, columns], CPU);
        let (x, start) = (random(5, 40), random(5, 30));
        let factors = [(random(3, 40), random(20, 3)), (random(7, 40), random(10, 7)), (random(2, 40), random(30, 2))];
        let rows = [Tensor::from_slice(&[3i64, 0]), Tensor::from_slice(&[4i64])];
        let part = |at: usize, start| Factors { a: &factors[at].0, b: &factors[at].1, start };
        let updates = [
            Update { rows: Some(&rows[0]), parts: vec![part(0, 0), part(1, 20)], scale: 0.5 },
            Update { rows: Some(&rows[1]), parts: vec![part(2, 0)], scale: 2.0 },
        ];
        let mut y = start.copy();
        add_updates(&x, &mut y, &updates).unwrap();
        let delta = |at: usize| x.mm(&factors[at].0.tr()).mm(&factors[at].1.tr());
        let first = Tensor::cat(&[delta(0), delta(1)], 1) * 0.5;
        let second = delta(2) * 2.0;
        for (row, update) in [(0, Some(&first)), (1, None), (2, None), (3, Some(&first)), (4, Some(&second))] {
            let want = update.map_or_else(|| start.get(row), |update| start.get(row) + update.get(row));
            assert!(y.get(row).allclose(&want, 1e-5, 1e-4, false), "row {row}");
        }
        let mut all = start.copy();
        add_updates(&x, &mut all, &[Update { rows: None, parts: vec![part(2, 0)], scale: 2.0 }]).unwrap();
        assert!(all.allclose(&(&start + &second), 1e-5, 1e-4, false));
        assert!(all.get(4).equal(&y.get(4)), "alone and with others");
        let outside = Tensor::from_slice(&[5i64]);
        let outside = [Update { rows: Some(&outside), parts: Vec::new(), scale: 1.0 }];
        assert!(add_updates(&x, &mut all, &outside).is_err());
    }
}
