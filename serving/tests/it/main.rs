//! Serving as its parts work together, in this process, on a tiny model with random weights.
//!
//! `cfg(test)` is always true here; it tells clippy that helpers too are tests, which may unwrap.

#[cfg(test)]
mod adapters;
#[cfg(test)]
mod bounds;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod door;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod life;
#[cfg(test)]
mod trained;
#[cfg(test)]
mod world;
