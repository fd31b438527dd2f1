//! Tests that need a whole model folder, one module per topic.

#![expect(clippy::unwrap_used, reason = "tests may panic on failure")]

mod bounds;
mod encode;
mod pieces;
mod policies;
mod same;
mod seam;
mod templates;
mod tiny;
mod tool_rows;
