//! The processor that this run trains on, for the rates of later runs.

use std::fs;

use attune_domain::run::processor::Processor;

/// Returns the processor and the number of threads that libtorch uses; `None`: the system does not name its processor.
pub(crate) fn processor() -> Option<Processor> {
    let threads = u32::try_from(tch::get_num_threads()).unwrap_or(1);
    Processor::from_cpuinfo(&fs::read_to_string("/proc/cpuinfo").ok()?, threads)
}
