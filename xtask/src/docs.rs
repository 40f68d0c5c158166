//! Markdown: parts that are generated, and links that must lead somewhere.

use crate::Failure;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Whether generated files are written or only compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Files are written.
    Write,
    /// A file that would change is a failure.
    Check,
}

/// Writes a generated file, or says that it is out of date.
///
/// # Errors
/// In [`Mode::Check`] if the file would change, else if it cannot be written.
pub fn publish(path: &Path, content: &str, mode: Mode) -> Result<(), Failure> {
    let current = fs::read_to_string(path).unwrap_or_default();
    match mode {
        _ if current == content => Ok(()),
        Mode::Check => {
            let tasks = "`cargo xtask codegen`, `cargo xtask study` and `cargo xtask curves`";
            Err(format!("{} is out of date; run {tasks}", path.display()))
        }
        Mode::Write => {
            println!("writes {}", path.display());
            fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
        }
    }
}

/// The page of benchmarks.
pub const BENCHMARKS: &str = "docs/src/benchmarks.md";

/// Where the text between `<!-- begin generated: NAME -->` and `<!-- end generated -->` lies.
fn generated(page: &str, name: &str) -> Result<Range<usize>, Failure> {
    let begin = format!("<!-- begin generated: {name} -->\n");
    let missing = || format!("the page has no section {name:?}");
    let start = page.find(&begin).ok_or_else(missing)? + begin.len();
    let length = page[start..].find("<!-- end generated -->").ok_or_else(missing)?;
    Ok(start..start + length)
}

/// A generated section of a page.
///
/// # Errors
/// If the page has no such section.
pub fn section<'a>(page: &'a str, name: &str) -> Result<&'a str, Failure> {
    Ok(&page[generated(page, name)?])
}

/// Replaces a generated section.
///
/// # Errors
/// If the page has no such section.
pub fn replace_section(page: &str, name: &str, content: &str) -> Result<String, Failure> {
    let Range { start, end } = generated(page, name)?;
    Ok(format!("{}\n{}\n\n{}", &page[..start], content.trim_end(), &page[end..]))
}

/// Text as XML has it.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// A table of a page: the heading row first, then the others.
pub struct Table<'a> {
    /// The last heading of the page before it.
    pub title: &'a str,
    headings: Vec<&'a str>,
    /// Their cells.
    pub rows: Vec<Vec<&'a str>>,
}

impl Table<'_> {
    /// The heading of the first column.
    #[must_use]
    pub fn heading(&self) -> &str {
        self.headings.first().copied().unwrap_or_default()
    }
}

/// The tables of a page, in their order.
#[must_use]
pub fn tables(page: &str) -> Vec<Table<'_>> {
    fn cells(line: &str) -> Vec<&str> {
        line.trim_matches('|').split('|').map(str::trim).collect()
    }
    let mut tables: Vec<Table<'_>> = Vec::new();
    let (mut inside, mut title) = (false, "");
    for line in page.lines() {
        match (line.starts_with('|'), inside) {
            (true, false) => tables.push(Table { title, headings: cells(line), rows: Vec::new() }),
            (true, true) if line.starts_with("|--") || line.starts_with("|:-") => {}
            (true, true) => tables.last_mut().map_or((), |table| table.rows.push(cells(line))),
            (false, _) if line.starts_with('#') => title = line.trim_start_matches('#').trim(),
            (false, _) => {}
        }
        inside = line.starts_with('|');
    }
    tables
}

/// Checks the relative links of the Markdown files at the root, of the crates and of the book.
///
/// # Errors
/// Names the links that lead nowhere, or the file that cannot be read.
pub fn check_links(root: &Path) -> Result<(), Failure> {
    let mut pages = Vec::new();
    for folder in ["", "docs", "crates", "study", "xtask", "models", "benches", "fuzz"] {
        collect(&root.join(folder), !folder.is_empty(), &mut pages)?;
    }
    let mut broken = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page).map_err(|error| format!("{}: {error}", page.display()))?;
        for target in links(&text) {
            let file = target.split('#').next().unwrap_or_default();
            let exists = page.parent().is_some_and(|folder| folder.join(file).exists());
            if !file.is_empty() && !file.contains(':') && !exists {
                broken.push(format!("{}: {target}", page.strip_prefix(root).unwrap_or(page).display()));
            }
        }
    }
    println!("{} pages, {} broken links", pages.len(), broken.len());
    if broken.is_empty() { Ok(()) } else { Err(format!("links that lead nowhere:\n  {}", broken.join("\n  "))) }
}

fn collect(folder: &Path, deep: bool, pages: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(|error| format!("{}: {error}", folder.display()))?.path();
        if path.is_dir() && deep && path.file_name().is_none_or(|name| name != "target" && name != "book") {
            collect(&path, deep, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(())
}

/// Targets of inline links `[text](target)` outside code.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every other piece between backticks is code.
        for piece in line.split('`').step_by(2) {
            for after in piece.split("](").skip(1) {
                if let Some((target, _)) = after.split_once(')') {
                    found.push(target);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{links, replace_section};

    #[test]
    fn links_in_code_are_not_followed() {
        let text = "[a](one.md) and `x[0](no)` and [b](two.md#part)\n```\n[c](no)\n```\n[d](three)";
        assert_eq!(links(text), ["one.md", "two.md#part", "three"]);
    }

    #[test]
    fn links_around_code_in_their_text_are_followed() {
        assert_eq!(links("see [`quant-core`](core.md)"), ["core.md"]);
    }

    #[test]
    fn only_the_named_section_is_replaced() {
        let page = "a\n<!-- begin generated: t -->\nold\n<!-- end generated -->\nb\n";
        let new = replace_section(page, "t", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- begin generated: t -->\n\nnew\n\n<!-- end generated -->\nb\n");
        assert_eq!(replace_section(&new, "t", "new").unwrap(), new);
        assert!(replace_section(page, "u", "new").is_err(), "a section that does not exist");
    }
}
