//! Name patterns: `*` for any run of characters, `?` for exactly one.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest pattern that is accepted; matching costs at most this times the length of the name.
pub const MAX_PATTERN: usize = 512;

/// A pattern for tensor names. `*` also crosses dots and slashes, all other characters stand for themselves.
///
/// ```
/// use leanbits::NamePattern;
/// let down: NamePattern = "*.mlp.down_proj.weight".parse()?;
/// assert!(down.matches("model.layers.3.mlp.down_proj.weight"));
/// assert!(!down.matches("model.layers.3.mlp.up_proj.weight"));
/// # Ok::<(), leanbits::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

/// Why a name pattern was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// The pattern has no characters.
    #[error("a name pattern cannot be empty")]
    Empty,
    /// The pattern is longer than [`MAX_PATTERN`] bytes.
    #[error("a name pattern of {len} bytes is longer than {MAX_PATTERN}")]
    TooLong {
        /// Bytes given.
        len: usize,
    },
}

impl NamePattern {
    /// Whether the whole name matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Position after the last `*` and the place in the name from which it is being tried.
        let mut retry: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    p += 1;
                    retry = Some((p, n));
                }
                Some(b'?') => {
                    p += 1;
                    n += char_len(name, n);
                }
                Some(byte) if *byte == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => {
                    let Some((after_star, start)) = retry else { return false };
                    p = after_star;
                    n = start + char_len(name, start);
                    retry = Some((p, n));
                }
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Bytes of the character that starts at `at`, never past the end.
fn char_len(name: &[u8], at: usize) -> usize {
    let following = name[at + 1..].iter().take_while(|byte| **byte & 0xC0 == 0x80).count();
    1 + following
}

impl FromStr for NamePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for NamePattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        match text.len() {
            0 => Err(PatternError::Empty),
            len if len > MAX_PATTERN => Err(PatternError::TooLong { len }),
            _ => Ok(Self(text)),
        }
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
