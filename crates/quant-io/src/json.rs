//! JSON with the guards that outside files need: duplicate names are refused, messages stay short.

use crate::Error;
use crate::error::shorten;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

/// Longest JSON side file (config.json, index) that is read.
pub(crate) const JSON_LIMIT: u64 = 64 << 20;

/// A map from strings to strings that remembers a key that came twice.
pub(crate) struct UniqueMap {
    pub(crate) entries: BTreeMap<String, String>,
    pub(crate) duplicate: Option<String>,
}

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = UniqueMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from strings to strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap, A::Error> {
                let mut result = UniqueMap { entries: BTreeMap::new(), duplicate: None };
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    match result.entries.entry(key) {
                        Entry::Vacant(slot) => {
                            slot.insert(value);
                        }
                        Entry::Occupied(slot) => result.duplicate = Some(slot.key().clone()),
                    }
                }
                Ok(result)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// serde's message, which may quote the input, cut to a readable length.
pub(crate) fn brief(error: &serde_json::Error) -> String {
    shorten(&error.to_string())
}

/// Parses JSON text into a typed value; `what` names the text in messages.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a str, what: &'static str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| {
        if error.is_data() {
            Error::BadField { field: what.to_owned(), message: brief(&error) }
        } else {
            Error::BadJson { what, message: brief(&error) }
        }
    })
}

/// A JSON object read into `T`: serde's structs would accept an array of their fields as well.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}
