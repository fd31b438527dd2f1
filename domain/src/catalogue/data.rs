//! The catalogue that every installation begins with.

use std::sync::LazyLock;

use super::{check::whole, entry::Catalogue};

/// The data file; each entry has its source and its date.
const DATA: &str = include_str!("../../data/catalogue.json");

static BUILT_IN: LazyLock<Catalogue> = LazyLock::new(|| match read(DATA) {
    Ok(catalogue) => catalogue,
    // The file is a part of this build, and a test reads it.
    Err(wrong) => unreachable!("domain/data/catalogue.json: {wrong}"),
});

/// Returns the catalogue that every installation begins with.
#[must_use]
pub fn built_in() -> &'static Catalogue {
    &BUILT_IN
}

/// Parses and checks a catalogue.
fn read(text: &str) -> Result<Catalogue, String> {
    let catalogue: Catalogue = serde_json::from_str(text).map_err(|error| error.to_string())?;
    whole(&catalogue).map_err(|wrong| wrong.to_string())?;
    Ok(catalogue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_of_the_data_file_passes_the_checks() {
        let catalogue = read(DATA).unwrap();
        assert!(catalogue.gpus.len() >= 5 && catalogue.instances.len() >= 20);
        for entry in &catalogue.instances {
            assert_eq!(entry.id().to_string().parse(), Ok(entry.id()));
        }
        for cloud in ["aws", "azure", "gcp"] {
            assert!(catalogue.instances.iter().any(|entry| entry.cloud == cloud), "{cloud}");
        }
    }

    #[test]
    fn a_catalogue_with_a_fault_is_not_read() {
        for (before, after, named) in [
            ("\"usd_per_hour\": 0.8048", "\"usd_per_hour\": 0", "usd_per_hour: 0 "),
            ("\"usable_mib\": 22487", "\"usable_mib\": 0", "usable_mib: 0 "),
            ("\"fetched\": \"2026-11-30\"", "\"fetched\": \"2026-02-30\"", "fetched: 2026-02-30"),
            ("\"vcpus\"", "\"cpus\"", "unknown field `cpus`"),
        ] {
            assert!(DATA.contains(before), "{before}");
            let wrong = read(&DATA.replacen(before, after, 1)).unwrap_err();
            assert!(wrong.contains(named), "{wrong}");
        }
    }
}
