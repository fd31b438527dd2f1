//! A GGUF file, written tensor by tensor.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::export::error::ExportError;
use crate::export::interface::{Weights, Written};
use crate::export::metadata::Metadata;
use crate::export::tensors::{Planned, Settings};

/// Writes the file. A partial file is removed.
pub(crate) fn write<W: Weights>(
    out: &Path,
    metadata: &Metadata,
    (tensors, settings): (&[Planned], Settings<'_>),
    weights: &mut W,
) -> Result<(), ExportError> {
    let written = write_all(out, metadata, (tensors, settings), weights);
    if written.is_err() {
        // The file may not exist; the first error is the one to report.
        let _ = std::fs::remove_file(out);
    }
    written
}

fn write_all<W: Weights>(
    out: &Path,
    metadata: &Metadata,
    (tensors, settings): (&[Planned], Settings<'_>),
    weights: &mut W,
) -> Result<(), ExportError> {
    let failed = |source| ExportError::Write { path: out.to_owned(), source };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(out).map_err(failed)?);
    file.write_all(&metadata.file_header(tensors)).map_err(failed)?;
    let total = tensors.iter().map(Planned::bytes).sum();
    let mut done = 0;
    for tensor in tensors {
        let bytes = tensor.encoded(weights, settings)?;
        file.write_all(&bytes).map_err(failed)?;
        file.write_all(&vec![0; tensor.padding()]).map_err(failed)?;
        done += bytes.len() as u64;
        weights.written(Written { done, total }).map_err(|why| ExportError::Weights(Box::new(why)))?;
    }
    file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)
}
