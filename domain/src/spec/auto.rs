//! `"auto"`, or a number or a boolean, as in OpenAI's hyperparameters. Deserialized by hand, so that an error keeps the
//! field's path and states the allowed values.

#[cfg(feature = "schema")]
use std::borrow::Cow;
use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Unexpected, Visitor},
};
#[cfg(feature = "schema")]
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, OneOfBuilder, Type},
    },
};

/// A value, or `"auto"`: `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Auto<T>(pub Option<T>);

/// An integer, or `"auto"`.
pub type AutoInt = Auto<i64>;

/// A number, or `"auto"`.
pub type AutoFloat = Auto<f64>;

/// A boolean, or `"auto"`.
pub type AutoBool = Auto<bool>;

/// A type of which a value may be `"auto"`.
pub trait AutoValue: Sized + Serialize {
    /// The name of the schema of [`Auto`] of this type.
    #[cfg(feature = "schema")]
    const SCHEMA: &'static str;

    /// The type in the schema.
    #[cfg(feature = "schema")]
    const TYPE: Type;

    /// The allowed values, as messages name them.
    const EXPECTED: &'static str;

    /// Converts a JSON value other than a string; returns `None` if it has another type.
    fn read(value: Unexpected<'_>) -> Option<Self>;
}

impl AutoValue for i64 {
    #[cfg(feature = "schema")]
    const SCHEMA: &'static str = "AutoInt";
    #[cfg(feature = "schema")]
    const TYPE: Type = Type::Integer;
    const EXPECTED: &'static str = "\"auto\" or a whole number";

    fn read(value: Unexpected<'_>) -> Option<Self> {
        match value {
            Unexpected::Signed(n) => Some(n),
            Unexpected::Unsigned(n) => Some(Self::try_from(n).unwrap_or(Self::MAX)),
            // An integer of JSON Schema: `4.0` is one.
            Unexpected::Float(n) if n.fract() == 0.0 => Some(n as Self),
            _ => None,
        }
    }
}

impl AutoValue for f64 {
    #[cfg(feature = "schema")]
    const SCHEMA: &'static str = "AutoFloat";
    #[cfg(feature = "schema")]
    const TYPE: Type = Type::Number;
    const EXPECTED: &'static str = "\"auto\" or a number";

    fn read(value: Unexpected<'_>) -> Option<Self> {
        match value {
            Unexpected::Signed(n) => Some(n as Self),
            Unexpected::Unsigned(n) => Some(n as Self),
            Unexpected::Float(n) => Some(n),
            _ => None,
        }
    }
}

impl AutoValue for bool {
    #[cfg(feature = "schema")]
    const SCHEMA: &'static str = "AutoBool";
    #[cfg(feature = "schema")]
    const TYPE: Type = Type::Boolean;
    const EXPECTED: &'static str = "\"auto\", true or false";

    fn read(value: Unexpected<'_>) -> Option<Self> {
        match value {
            Unexpected::Bool(is_on) => Some(is_on),
            _ => None,
        }
    }
}

impl<T: AutoValue> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            None => serializer.serialize_str("auto"),
            Some(value) => value.serialize(serializer),
        }
    }
}

struct AutoVisitor<T>(PhantomData<T>);

impl<T: AutoValue> AutoVisitor<T> {
    fn read<E: Error>(&self, value: Unexpected<'_>) -> Result<Auto<T>, E> {
        T::read(value).map(|value| Auto(Some(value))).ok_or_else(|| E::invalid_type(value, self))
    }
}

impl<T: AutoValue> Visitor<'_> for AutoVisitor<T> {
    type Value = Auto<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Auto<T>, E> {
        if text == "auto" { Ok(Auto(None)) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
    }

    fn visit_bool<E: Error>(self, is_on: bool) -> Result<Auto<T>, E> {
        self.read(Unexpected::Bool(is_on))
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<Auto<T>, E> {
        self.read(Unexpected::Signed(n))
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<Auto<T>, E> {
        self.read(Unexpected::Unsigned(n))
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<Auto<T>, E> {
        self.read(Unexpected::Float(n))
    }
}

impl<'de, T: AutoValue> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AutoVisitor(PhantomData))
    }
}

#[cfg(feature = "schema")]
impl<T: AutoValue> PartialSchema for Auto<T> {
    fn schema() -> RefOr<Schema> {
        let word = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["auto"])).build();
        let value = ObjectBuilder::new().schema_type(T::TYPE).build();
        RefOr::T(Schema::OneOf(OneOfBuilder::new().item(word).item(value).build()))
    }
}

#[cfg(feature = "schema")]
impl<T: AutoValue> ToSchema for Auto<T> {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed(T::SCHEMA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_and_numbers_are_read_and_shown_alike() {
        for text in ["\"auto\"", "3", "-1"] {
            let read: AutoInt = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        let most: AutoInt = serde_json::from_str(&u64::MAX.to_string()).unwrap();
        assert_eq!(most, Auto(Some(i64::MAX)));
        assert_eq!(serde_json::from_str::<AutoInt>("4.0").unwrap(), Auto(Some(4)));
        for (text, value) in [("2", 2.0), ("-2", -2.0), ("2.5", 2.5)] {
            let read: AutoFloat = serde_json::from_str(text).unwrap();
            assert_eq!(read, Auto(Some(value)));
        }
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
        for text in ["\"many\"", "true", "{}"] {
            let refused = serde_json::from_str::<AutoFloat>(text).unwrap_err().to_string();
            assert!(refused.contains("expected \"auto\" or a number"), "{text}: {refused}");
        }
        for text in ["\"on\"", "1"] {
            let refused = serde_json::from_str::<AutoBool>(text).unwrap_err().to_string();
            assert!(refused.contains("expected \"auto\", true or false"), "{text}: {refused}");
        }
    }

    #[cfg(feature = "schema")]
    #[test]
    fn each_type_has_a_schema_of_its_own() {
        assert_eq!([AutoInt::name(), AutoFloat::name(), AutoBool::name()], ["AutoInt", "AutoFloat", "AutoBool"]);
    }
}
