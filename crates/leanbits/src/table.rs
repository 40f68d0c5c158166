//! Tables for the terminal and for Markdown, from the same rows.

/// Rows of text under headings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    headings: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

/// Side on which a column is flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

impl Table {
    pub(crate) fn new(headings: &[(&str, Align)]) -> Self {
        Self { headings: headings.iter().map(|(text, align)| ((*text).to_owned(), *align)).collect(), rows: Vec::new() }
    }

    /// Adds a row; it has one cell for each heading.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.headings.len(), "a row has one cell a heading");
        self.rows.push(cells);
    }

    pub(crate) fn to_text(&self) -> String {
        let widths = self.widths();
        let mut out = String::new();
        self.line(&mut out, self.headings.iter().map(|(text, _)| text.as_str()), &widths);
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        out.push_str(&rule.join("  "));
        out.push('\n');
        for row in &self.rows {
            self.line(&mut out, row.iter().map(String::as_str), &widths);
        }
        out
    }

    pub(crate) fn to_markdown(&self) -> String {
        let mut out = String::from("|");
        for (text, _) in &self.headings {
            out.push_str(&format!(" {} |", escape(text)));
        }
        out.push_str("\n|");
        for (_, align) in &self.headings {
            out.push_str(if *align == Align::Left { "---|" } else { "---:|" });
        }
        out.push('\n');
        for row in &self.rows {
            out.push('|');
            for cell in row {
                out.push_str(&format!(" {} |", escape(cell)));
            }
            out.push('\n');
        }
        out
    }

    fn widths(&self) -> Vec<usize> {
        let column = |at: usize| self.rows.iter().filter_map(move |row| row.get(at)).map(|cell| cell.chars().count());
        let heading = |text: &str| text.chars().count();
        self.headings.iter().enumerate().map(|(at, (text, _))| column(at).fold(heading(text), usize::max)).collect()
    }

    fn line<'a>(&self, out: &mut String, cells: impl Iterator<Item = &'a str>, widths: &[usize]) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in cells.zip(widths).zip(&self.headings) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            match align {
                Align::Left => line.push_str(&format!("{cell:<width$}")),
                Align::Right => line.push_str(&format!("{cell:>width$}")),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// Text that cannot break out of a Markdown table cell.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// A number of bytes for people: `1.25 MiB`.
#[expect(clippy::cast_precision_loss, reason = "three digits for people")]
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.2} {unit}")
}

/// A shape as `256×1024`.
pub(crate) fn shape(dims: &[usize]) -> String {
    if dims.is_empty() {
        return "scalar".to_owned();
    }
    dims.iter().map(ToString::to_string).collect::<Vec<_>>().join("×")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_trailing_blanks_are_cut() {
        let mut table = Table::new(&[("name", Align::Left), ("bits", Align::Right)]);
        table.row(vec!["a".into(), "4.25".into()]);
        table.row(vec!["longer".into(), "16".into()]);
        let expected = "name    bits\n------  ----\na       4.25\nlonger    16\n";
        assert_eq!(table.to_text(), expected, "text form");
        assert_eq!(
            table.to_markdown(),
            "| name | bits |\n|---|---:|\n| a | 4.25 |\n| longer | 16 |\n",
            "markdown form"
        );
    }

    #[test]
    fn byte_counts_pick_the_largest_unit_that_leaves_a_whole_part() {
        assert_eq!(bytes(1023), "1023 B", "below a KiB");
        assert_eq!(bytes(1536), "1.50 KiB", "KiB");
        assert_eq!(bytes(7 << 20), "7.00 MiB", "MiB");
    }
}
