//! Estimates of a job's duration: its operations, from the shapes of the base and the adapter and from its plan,
//! divided by a rate, which earlier runs measured or, without any, a benchmark.

mod band;
mod cost;
mod past_run;
mod rate;
mod tokens;

pub use band::Band;
pub use cost::{JobFacts, TokenCost};
pub use past_run::{Effort, PastRun, RunTimes};
pub use rate::{DurationSource, Rate, base_weights};
pub use tokens::{JobTokens, is_exact, over_all_steps};
