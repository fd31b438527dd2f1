//! What needs a whole model's folder, one module a theme.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod bounds;
mod encode;
mod pieces;
mod policies;
mod same;
mod seam;
mod templates;
mod tiny;
mod tool_rows;
