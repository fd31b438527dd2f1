//! Attacks on a running platform, each bounded in count and time, over loopback alone: one module for each attack.
