//! Reported cases, each with its files in `tests/testdata/cases`.

mod dora_with_dropout;
mod kept_plan;
