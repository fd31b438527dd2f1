//! The catalogue of GPUs and of cloud instance types with prices: data with a source and a date per entry, and the
//! checks that an entry must pass. `docs/CATALOGUE.md` describes it.

mod advice;
mod check;
mod data;
mod date;
mod entry;
mod named;

pub use advice::{Advice, Holder, advice};
pub use check::check;
pub use data::built_in;
pub use date::{Date, STALE_DAYS};
pub use entry::{Catalogue, EntryId, Gpu, InstanceType};
