//! Rows of datasets: what is read, shown in a preview, and rendered by templates.

mod datasets;
mod migrating;
mod preview;
mod template_cases;
