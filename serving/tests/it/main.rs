//! Serving as its parts work together, in this process, on a tiny model with random weights.

mod adapters;
mod door;
mod engine;
mod life;
mod world;
