//! Rows of datasets: parsing, previews, and rendering by chat templates.

mod datasets;
mod migrating;
mod preview;
mod template_cases;
