//! Which group covers a module.

use super::config::{Config, Group};
use crate::Error;
use crate::error::shorten;
use regex_lite::Regex;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that the compiled patterns of a configuration share. A few characters of repetition compile to any
/// size, so that a limit for each pattern alone would not bound what a small file costs.
const PATTERNS_LIMIT: usize = 1 << 18;

/// The targets of all groups, in the order in which the Python package tries them: names, then
/// patterns in the order of their text, then classes.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    names: BTreeMap<String, usize>,
    patterns: Vec<(Pattern, usize)>,
    ignored_names: BTreeSet<String>,
    ignored_patterns: Vec<Pattern>,
}

/// A pattern must match from the start of a name, not to its end (Python's `re.match`).
#[derive(Clone, Debug)]
enum Pattern {
    Compiled(Regex),
    /// Reported when it is needed: patterns use more of Python's syntax than the engine here has.
    Broken {
        pattern: String,
        message: String,
    },
}

impl Pattern {
    /// Compiles one of `count` patterns. Each may take what plain text of its length needs, whatever the others do.
    fn new(pattern: &str, count: usize) -> Self {
        let limit = (PATTERNS_LIMIT / count.max(1)).max(1024 + 64 * pattern.len());
        match regex_lite::RegexBuilder::new(&format!("^(?:{pattern})")).size_limit(limit).build() {
            Ok(regex) => Self::Compiled(regex),
            Err(error) => Self::Broken { pattern: shorten(pattern), message: shorten(&error.to_string()) },
        }
    }

    fn matches(&self, name: &str) -> Result<bool, Error> {
        match self {
            Self::Compiled(regex) => Ok(regex.is_match(name)),
            Self::Broken { pattern, message } => {
                Err(Error::BadPattern { pattern: pattern.clone(), message: message.clone() })
            }
        }
    }
}

impl Targets {
    pub(super) fn new(config: &Config) -> Self {
        let mut by_target = BTreeMap::new();
        for (index, group) in config.groups.iter().enumerate() {
            // A target in two groups belongs to the later one.
            by_target.extend(group.targets.iter().map(|target| (target.clone(), index)));
        }
        let count = by_target.keys().chain(&config.ignore).filter(|target| target.starts_with("re:")).count();
        let (mut names, mut patterns) = (BTreeMap::new(), Vec::new());
        for (target, index) in by_target {
            match target.strip_prefix("re:") {
                Some(pattern) => patterns.push((Pattern::new(pattern, count), index)),
                None => {
                    names.insert(target, index);
                }
            }
        }
        let (mut ignored_names, mut ignored_patterns) = (BTreeSet::new(), Vec::new());
        for target in &config.ignore {
            match target.strip_prefix("re:") {
                Some(pattern) => ignored_patterns.push(Pattern::new(pattern, count)),
                None => {
                    ignored_names.insert(target.clone());
                }
            }
        }
        Self { names, patterns, ignored_names, ignored_patterns }
    }

    /// The group that covers a module; `None` when there is none or the module is ignored.
    ///
    /// A module's class is not known from its name: one whose last part speaks of an embedding is taken
    /// for an `Embedding` and every other one for a `Linear`, and where no group targets that class, a
    /// target that looks like a class name is taken to mean it.
    pub(super) fn group<'a>(&self, config: &'a Config, module: &str) -> Result<Option<&'a Group>, Error> {
        let found = match self.names.get(module) {
            Some(index) => Some(*index),
            None => match self.pattern(module)? {
                Some(index) => Some(index),
                None => self.class(module),
            },
        };
        if found.is_none() || self.ignores(module) {
            return Ok(None);
        }
        Ok(found.and_then(|index| config.groups.get(index)))
    }

    fn pattern(&self, module: &str) -> Result<Option<usize>, Error> {
        for (pattern, index) in &self.patterns {
            if pattern.matches(module)? {
                return Ok(Some(*index));
            }
        }
        Ok(None)
    }

    fn class(&self, module: &str) -> Option<usize> {
        let class = if is_embedding(module) { "Embedding" } else { "Linear" };
        let class_like = |name: &str| name.starts_with(|c: char| c.is_ascii_uppercase()) && !name.contains('.');
        self.names.get(class).or_else(|| self.names.iter().find(|(name, _)| class_like(name)).map(|(_, i)| i)).copied()
    }

    /// A pattern that does not parse ignores nothing: it cannot make a stored weight unreadable.
    fn ignores(&self, module: &str) -> bool {
        self.ignored_names.contains(module) || self.ignored_patterns.iter().any(|p| p.matches(module).unwrap_or(false))
    }
}

/// Whether a module's name says that it is an embedding rather than a linear layer.
pub(super) fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    last.contains("embed") || matches!(last, "wte" | "wpe")
}
