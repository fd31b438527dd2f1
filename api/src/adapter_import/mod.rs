//! An adapter that was made elsewhere, brought in PEFT's form. It is checked as strictly as a trainer's own, against its
//! base, without reading more than a piece of it at a time; what is wrong is told in one answer, all of it.

/// What is asked of the files, once all have come.
pub mod check;
/// The form, read piece by piece.
pub mod form;
/// From the form to the row.
pub mod take;
/// The tensors, looked at while they stream by.
pub mod tensors;
/// The tokens that the folder names, against the base's.
pub mod tokens;
