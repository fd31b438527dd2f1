//! The entry that a configuration names: `aws:g6.xlarge`, in a region.

use std::collections::BTreeSet;

use super::entry::{Catalogue, InstanceType};
use crate::bad_field::BadField;

/// The number of similar names that an error for an unknown name has.
const SIMILAR: usize = 3;

impl Catalogue {
    /// Returns the entry of an instance type, named by its cloud and the cloud's name for it (`aws:g6.xlarge`), in a
    /// region, which may be left out for a type that the catalogue has in one region.
    ///
    /// # Errors
    /// [`BadField`] of `instance_type`, with the names that are most similar; of `region`, with those of the type.
    pub fn named(&self, name: &str, region: Option<&str>) -> Result<&InstanceType, BadField> {
        let found: Vec<&InstanceType> = self.instances.iter().filter(|entry| name_of(entry) == name).collect();
        let wrong_region = |given: &str| {
            let regions: Vec<&str> = found.iter().map(|entry| entry.region.as_str()).collect();
            let allowed = format!("a region that the catalogue has for {name}: {}", regions.join(", "));
            BadField { param: "region", given: given.into(), allowed }
        };
        match (found.as_slice(), region) {
            ([], _) => Err(self.unknown(name)),
            (entries, Some(region)) => {
                let entry = entries.iter().find(|entry| entry.region == region);
                entry.copied().ok_or_else(|| wrong_region(region))
            }
            ([only], None) => Ok(*only),
            (_, None) => Err(wrong_region("null")),
        }
    }

    fn unknown(&self, name: &str) -> BadField {
        let names: BTreeSet<String> = self.instances.iter().map(name_of).collect();
        let mut similar: Vec<(usize, String)> =
            names.into_iter().map(|other| (distance(name, &other), other)).collect();
        similar.sort();
        let similar: Vec<String> = similar.into_iter().take(SIMILAR).map(|(_, other)| other).collect();
        let allowed = format!("cloud:type of an entry of the catalogue; the most similar ones: {}", similar.join(", "));
        BadField { param: "instance_type", given: name.into(), allowed }
    }
}

/// Returns the name of an entry without its region.
fn name_of(entry: &InstanceType) -> String {
    format!("{}:{}", entry.cloud, entry.instance_type)
}

/// Returns the Levenshtein distance: the number of characters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::built_in;

    #[test]
    fn an_entry_is_found_by_its_name_and_its_region() {
        let found = built_in().named("aws:g6.xlarge", Some("eu-central-1")).unwrap();
        assert_eq!(found.id().to_string(), "aws.g6.xlarge.eu-central-1");
        let only = built_in().named("aws:g6.4xlarge", None).unwrap();
        assert_eq!(only.id().to_string(), "aws.g6.4xlarge.us-east-1");
    }

    #[test]
    fn a_name_that_is_not_in_the_catalogue_is_refused_with_similar_ones() {
        let refused = |name: &str, region| built_in().named(name, region).unwrap_err();
        let wrong = refused("aws:g6.xlrage", None);
        assert_eq!((wrong.param, wrong.given.as_str()), ("instance_type", "aws:g6.xlrage"));
        assert!(wrong.allowed.contains("the most similar ones: aws:g6.xlarge, "), "{wrong}");
        assert_eq!(refused("g6.xlarge", None).param, "instance_type");
        let wrong = refused("aws:g6.xlarge", None);
        assert_eq!((wrong.param, wrong.given.as_str()), ("region", "null"));
        assert!(wrong.allowed.contains("us-east-1") && wrong.allowed.contains("eu-central-1"), "{wrong}");
        assert_eq!(refused("aws:g6.xlarge", Some("mars")).given, "mars");
    }

    #[test]
    fn a_distance_counts_changed_characters() {
        let cases = [("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)];
        for (a, b, expected) in cases {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
