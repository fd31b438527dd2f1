//! Attacks on a running platform, each bounded in count and time, over loopback alone: one module for each attack.

mod a04_poison_batch;
mod a07_queue_fairness;
mod a25_batch_fairness;
