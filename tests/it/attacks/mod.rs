//! Attacks on a running platform, each bounded in count and time, only over loopback: one module for each attack.

mod a01_content_by_digest;
mod a03_templates;
mod a04_poison_batch;
mod a05_pool;
mod a07_queue_fairness;
mod a10_cancelled_requests;
mod a13_api_outage;
mod a15_import_bombs;
mod a16_slow_callers;
mod a25_batch_fairness;
mod a27_parent_gone;
mod a28_full_disk;
mod base_models;
mod callers;
