//! Metadata values.

use super::file::Cursor;
use crate::Error;
use crate::error::shorten;

/// One metadata value. Strings and arrays are lent from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum GgufValue<'a> {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(&'a str),
    /// An array.
    Array(GgufArray<'a>),
}

/// An array, checked for its length and walked on demand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GgufArray<'a> {
    key: &'a str,
    element: u32,
    len: u64,
    bytes: &'a [u8],
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of fixed size.
fn fixed_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl<'a> GgufValue<'a> {
    /// Reads one value of a type.
    pub(super) fn read(cursor: &mut Cursor<'a>, key: &'a str, kind: u32) -> Result<Self, Error> {
        match kind {
            TEXT => Ok(Self::Text(cursor.text(|| format!("the value of {:?}", shorten(key)))?)),
            ARRAY => {
                let element = cursor.u32("an array")?;
                let len = cursor.u64("an array")?;
                let start = cursor.rest();
                match fixed_size(element) {
                    Some(size) => {
                        let what = || format!("the array {:?}", shorten(key));
                        let bytes = len.checked_mul(size);
                        let bytes = bytes.ok_or_else(|| Error::Overflow { what: what(), shape: vec![len, size] })?;
                        cursor.take(bytes, what)?;
                    }
                    // Every string takes at least its length, so this ends with the file.
                    None if element == TEXT => {
                        for _ in 0..len {
                            cursor.raw_text(|| format!("a string of the array {:?}", shorten(key)))?;
                        }
                    }
                    None => return Err(Error::BadValueType { key: shorten(key), id: element }),
                }
                let bytes = &start[..start.len() - cursor.rest().len()];
                Ok(Self::Array(GgufArray { key, element, len, bytes }))
            }
            _ => {
                let Some(size) = fixed_size(kind) else {
                    return Err(Error::BadValueType { key: shorten(key), id: kind });
                };
                scalar(key, kind, cursor.take(size, || format!("the value of {:?}", shorten(key)))?)
            }
        }
    }

    /// The value as an unsigned number, if it is one.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(n) => Some(n),
            Self::Signed(n) => u64::try_from(n).ok(),
            _ => None,
        }
    }

    /// The value as text, if it is that.
    #[must_use]
    pub fn as_text(&self) -> Option<&'a str> {
        if let Self::Text(text) = *self { Some(text) } else { None }
    }
}

#[expect(clippy::cast_possible_wrap, reason = "the bits of signed types are read as unsigned first")]
fn scalar<'a>(key: &str, kind: u32, bytes: &[u8]) -> Result<GgufValue<'a>, Error> {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    let raw = u64::from_le_bytes(word);
    let extend = |bits: u32| (raw as i64) << (64 - bits) >> (64 - bits);
    Ok(match kind {
        0 | 2 | 4 | 10 => GgufValue::Unsigned(raw),
        1 => GgufValue::Signed(extend(8)),
        3 => GgufValue::Signed(extend(16)),
        5 => GgufValue::Signed(extend(32)),
        11 => GgufValue::Signed(extend(64)),
        6 => GgufValue::Float(f64::from(f32::from_le_bytes([word[0], word[1], word[2], word[3]]))),
        12 => GgufValue::Float(f64::from_le_bytes(word)),
        _ if raw <= 1 => GgufValue::Bool(raw == 1),
        _ => return Err(Error::BadValue { key: shorten(key), message: format!("{raw} is no truth value") }),
    })
}

impl<'a> GgufArray<'a> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, one by one.
    pub fn iter(&self) -> impl Iterator<Item = Result<GgufValue<'a>, Error>> + use<'a> {
        let (mut cursor, array) = (Cursor::new(self.bytes), *self);
        (0..self.len).map(move |_| GgufValue::read(&mut cursor, array.key, array.element))
    }
}
