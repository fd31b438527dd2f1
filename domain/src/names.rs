//! Assertions about the names of enums, which strum derives.

use std::{fmt::Debug, str::FromStr};

use serde::Serialize;
use strum::VariantArray;

/// Asserts that the enum parses each of its names.
pub(crate) fn assert_names_read_back<T>()
where
    T: VariantArray + Copy + Debug + PartialEq + FromStr + Into<&'static str>,
{
    for &variant in T::VARIANTS {
        let name: &'static str = variant.into();
        assert_eq!(name.parse::<T>().ok(), Some(variant), "{name}");
    }
    assert!("unknown".parse::<T>().is_err());
}

/// Asserts that serde writes each variant as its name.
pub(crate) fn assert_serialized_by_name<T>()
where
    T: VariantArray + Copy + Serialize + Into<&'static str>,
{
    for &variant in T::VARIANTS {
        let name: &'static str = variant.into();
        assert_eq!(serde_json::to_value(variant).unwrap(), name);
    }
}
