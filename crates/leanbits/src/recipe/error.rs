//! Why recipes are refused.

use super::{MAX_RECIPE_BYTES, MAX_RULES};

/// Why a recipe was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The text is longer than [`MAX_RECIPE_BYTES`].
    #[error("a recipe of {len} bytes is longer than {MAX_RECIPE_BYTES}")]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// The text is no TOML, has an unknown key, or a value of the wrong kind.
    #[error("line {line}: {reason}")]
    Syntax {
        /// Line of the first mistake, counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// More rules than [`MAX_RULES`].
    #[error("{found} rules are more than {MAX_RULES}")]
    TooManyRules {
        /// Rules given.
        found: usize,
    },
    /// A rule without a pattern can never apply.
    #[error("rule {rule} has no pattern to match")]
    NoPattern {
        /// Position of the rule, counted from 1.
        rule: usize,
    },
    /// A rule that keeps its tensors names a method.
    #[error("rule {rule} keeps its tensors as they are and names a method, which would do nothing")]
    MethodOfKept {
        /// Position of the rule, counted from 1.
        rule: usize,
    },
    /// A setting is outside its range.
    #[error("{name} is {value}, expected {expected}")]
    BadSetting {
        /// The key.
        name: &'static str,
        /// The value given.
        value: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// No preset has this name.
    #[error("no preset is called {name:?}")]
    UnknownPreset {
        /// The name that was given.
        name: String,
    },
}
