//! The serving process's parts together, in this process, on a tiny model with random weights.
//!
//! `cfg(test)` is always true here. It marks helpers as test code for clippy, so that they may unwrap.

#[cfg(test)]
mod adapters;
#[cfg(test)]
mod bounds;
#[cfg(test)]
mod bridge;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod door;
#[cfg(test)]
mod draft_model;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod grammars;
#[cfg(test)]
mod kv_cache;
#[cfg(test)]
mod life;
#[cfg(test)]
mod residency;
#[cfg(test)]
mod speculation;
#[cfg(test)]
mod trained;
#[cfg(test)]
mod world;
