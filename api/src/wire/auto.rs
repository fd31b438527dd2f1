//! `"auto"`, or a number or a boolean, as in OpenAI's hyperparameters. Deserialized by hand, so that an error keeps the
//! field's path and states the allowed values.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, OneOfBuilder, Type},
    },
};

/// An integer; `None` is `"auto"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AutoInt(pub Option<i64>);

/// A number; `None` is `"auto"`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AutoFloat(pub Option<f64>);

/// A boolean; `None` is `"auto"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AutoBool(pub Option<bool>);

impl Serialize for AutoBool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => serializer.serialize_str("auto"),
            Some(is_on) => serializer.serialize_bool(is_on),
        }
    }
}

impl Serialize for AutoInt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => serializer.serialize_str("auto"),
            Some(n) => serializer.serialize_i64(n),
        }
    }
}

impl Serialize for AutoFloat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => serializer.serialize_str("auto"),
            Some(n) => serializer.serialize_f64(n),
        }
    }
}

struct IntVisitor;

impl Visitor<'_> for IntVisitor {
    type Value = AutoInt;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"auto\" or a whole number")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AutoInt, E> {
        auto(text, &self).map(|()| AutoInt(None))
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<AutoInt, E> {
        Ok(AutoInt(Some(n)))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<AutoInt, E> {
        Ok(AutoInt(Some(i64::try_from(n).unwrap_or(i64::MAX))))
    }
}

struct FloatVisitor;

impl Visitor<'_> for FloatVisitor {
    type Value = AutoFloat;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"auto\" or a number")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AutoFloat, E> {
        auto(text, &self).map(|()| AutoFloat(None))
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<AutoFloat, E> {
        Ok(AutoFloat(Some(n as f64)))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<AutoFloat, E> {
        Ok(AutoFloat(Some(n as f64)))
    }

    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<AutoFloat, E> {
        Ok(AutoFloat(Some(n)))
    }
}

struct BoolVisitor;

impl Visitor<'_> for BoolVisitor {
    type Value = AutoBool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"auto\", true or false")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AutoBool, E> {
        auto(text, &self).map(|()| AutoBool(None))
    }

    fn visit_bool<E: serde::de::Error>(self, is_on: bool) -> Result<AutoBool, E> {
        Ok(AutoBool(Some(is_on)))
    }
}

fn auto<E: serde::de::Error>(text: &str, wanted: &dyn serde::de::Expected) -> Result<(), E> {
    if text == "auto" { Ok(()) } else { Err(E::invalid_value(serde::de::Unexpected::Str(text), wanted)) }
}

impl<'de> Deserialize<'de> for AutoInt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IntVisitor)
    }
}

impl<'de> Deserialize<'de> for AutoFloat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FloatVisitor)
    }
}

impl<'de> Deserialize<'de> for AutoBool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BoolVisitor)
    }
}

fn auto_or(number: Type) -> RefOr<Schema> {
    let word = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["auto"])).build();
    let number = ObjectBuilder::new().schema_type(number).build();
    RefOr::T(Schema::OneOf(OneOfBuilder::new().item(word).item(number).build()))
}

impl PartialSchema for AutoInt {
    fn schema() -> RefOr<Schema> {
        auto_or(Type::Integer)
    }
}

impl ToSchema for AutoInt {}

impl PartialSchema for AutoFloat {
    fn schema() -> RefOr<Schema> {
        auto_or(Type::Number)
    }
}

impl ToSchema for AutoFloat {}

impl PartialSchema for AutoBool {
    fn schema() -> RefOr<Schema> {
        auto_or(Type::Boolean)
    }
}

impl ToSchema for AutoBool {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_and_numbers_are_read_and_shown_alike() {
        for text in ["\"auto\"", "3", "-1"] {
            let read: AutoInt = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        let read: AutoFloat = serde_json::from_str("2").unwrap();
        assert_eq!(read, AutoFloat(Some(2.0)));
        for text in ["\"auto\"", "true", "false"] {
            let read: AutoBool = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_is_allowed() {
        for text in ["\"many\"", "1.5", "true", "[]"] {
            let refused = serde_json::from_str::<AutoInt>(text).unwrap_err().to_string();
            assert!(refused.contains("expected \"auto\" or a whole number"), "{text}: {refused}");
        }
        for text in ["\"on\"", "1"] {
            let refused = serde_json::from_str::<AutoBool>(text).unwrap_err().to_string();
            assert!(refused.contains("expected \"auto\", true or false"), "{text}: {refused}");
        }
    }
}
