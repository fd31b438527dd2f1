//! Memory figures from `/proc`.

use std::fs;

use attune_domain::bytes::Bytes;

/// Returns this process's peak resident set size.
#[must_use]
pub fn peak() -> Bytes {
    kib_field("/proc/self/status", "VmHWM:")
}

/// Returns the machine's available memory, without swapping.
#[must_use]
pub fn available() -> Bytes {
    kib_field("/proc/meminfo", "MemAvailable:")
}

/// Reads a line `name   123 kB` of a `/proc` file. Returns 0 if the file or the line does not exist.
fn kib_field(path: &str, name: &str) -> Bytes {
    let text = fs::read_to_string(path).unwrap_or_default();
    let field = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok());
    Bytes(field.unwrap_or(0_u64) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_some_memory() {
        assert!(peak() > Bytes::mib(1));
        assert!(available() > Bytes(0));
    }
}
