//! Bars in `docs/src/figures`, drawn from the tables of the page of benchmarks: rates of ours, of peers, and of floors.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use xtask::docs::{Mode, Table, publish};
use xtask::{Failure, docs};

/// Sections of the page with tables of rates, and how many of their first tables have bars.
const SECTIONS: &[(&str, usize)] = &[("encode", 2), ("decode", 2), ("products", 4), ("attention", 2), ("tokens", 4)];

/// How the names of rows begin that are other people's crates.
const PEERS: &[&str] = &["candle", "half", "float8", "faer"];

/// Draws a figure for each section, or checks that it would not change.
pub(crate) fn run(root: &Path, mode: Mode) -> Result<(), Failure> {
    let page = root.join(docs::BENCHMARKS);
    let page = fs::read_to_string(&page).map_err(|error| format!("{}: {error}", docs::BENCHMARKS))?;
    for (name, count) in SECTIONS {
        let tables = docs::tables(docs::section(&page, name)?);
        let panels = tables.iter().take(*count).map(Panel::new).collect::<Result<Vec<_>, _>>();
        let panels = panels.map_err(|error| format!("{}, {name}: {error}", docs::BENCHMARKS))?;
        publish(&root.join(format!("docs/src/figures/bench-{name}.svg")), &draw(&panels), mode)?;
    }
    Ok(())
}

struct Panel<'a> {
    title: &'a str,
    bars: Vec<Bar<'a>>,
}

struct Bar<'a> {
    label: &'a str,
    rate: f64,
    /// Of the floor, as the table has it; floors and peers have none.
    share: &'a str,
}

impl<'a> Panel<'a> {
    fn new(table: &Table<'a>) -> Result<Self, Failure> {
        let bar = |row: &Vec<&'a str>| {
            let cell = |column: usize| row.get(column).copied().unwrap_or_default();
            let rate = cell(1).parse().map_err(|_| format!("{}: {:?} is no number", cell(0), cell(1)))?;
            Ok(Bar { label: cell(0), rate, share: cell(2) })
        };
        Ok(Self { title: table.title, bars: table.rows.iter().map(bar).collect::<Result<_, Failure>>()? })
    }

    fn height(&self) -> f64 {
        TOP + STEP * self.bars.len() as f64
    }
}

impl Bar<'_> {
    fn colour(&self) -> &'static str {
        match self.share {
            "" if PEERS.iter().any(|peer| self.label.starts_with(peer)) => PEER,
            "" => FLOOR,
            _ => OURS,
        }
    }
}

const OURS: &str = "#1b6ca8";
const PEER: &str = "#c8553d";
const FLOOR: &str = "#9aa3ad";

const WIDTH: f64 = 900.0;
/// Where bars begin, the names of rows being left of it.
const LEFT: f64 = 270.0;
/// Of the longest bar.
const LENGTH: f64 = 500.0;
const TOP: f64 = 34.0;
/// From one bar to the next.
const STEP: f64 = 15.0;
const LEGEND: f64 = 30.0;

/// Panels below each other, each with a scale of its own.
fn draw(panels: &[Panel<'_>]) -> String {
    let height = LEGEND + panels.iter().map(Panel::height).sum::<f64>() + 10.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let kinds = [(OURS, "leanbits, and its share of the floor"), (PEER, "other crates"), (FLOOR, "floors")];
    for ((colour, name), x) in kinds.into_iter().zip([LEFT, LEFT + 230.0, LEFT + 330.0]) {
        let _ = writeln!(out, "<rect x=\"{x}\" y=\"11\" width=\"14\" height=\"9\" fill=\"{colour}\"/>");
        let _ = writeln!(out, "<text x=\"{}\" y=\"20\" fill=\"#222222\">{name}</text>", x + 20.0);
    }
    let mut top = LEGEND;
    for panel in panels {
        let title = format!("y=\"{}\" font-weight=\"bold\" font-size=\"12\"", top + 22.0);
        let _ = writeln!(out, "<text x=\"10\" {title} fill=\"#222222\">{}</text>", docs::escape(panel.title));
        let longest = panel.bars.iter().fold(0.0_f64, |longest, bar| longest.max(bar.rate));
        for (bar, at) in panel.bars.iter().zip(0..) {
            let (y, length) = (top + TOP + STEP * f64::from(at), LENGTH * bar.rate / longest);
            let name = format!("x=\"{}\" y=\"{:.1}\" text-anchor=\"end\"", LEFT - 6.0, y + 9.0);
            let _ = writeln!(out, "<text {name} fill=\"#333333\">{}</text>", docs::escape(bar.label));
            let size = format!("width=\"{length:.1}\" height=\"10\"");
            let _ = writeln!(out, "<rect x=\"{LEFT}\" y=\"{y:.1}\" {size} fill=\"{}\"/>", bar.colour());
            let share = if bar.share.is_empty() { String::new() } else { format!(" · {}", bar.share) };
            let place = format!("x=\"{:.1}\" y=\"{:.1}\"", LEFT + length + 5.0, y + 9.0);
            let _ = writeln!(out, "<text {place} fill=\"#555555\">{:.2}{share}</text>", bar.rate);
        }
        top += panel.height();
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::{FLOOR, OURS, PEER, Panel, draw};
    use xtask::docs::tables;

    #[test]
    fn bars_are_as_long_as_rates_and_coloured_by_who_they_are_of() {
        let page = "### Title, GB/s\n\n| | GB/s | us / floor |\n|---|---|---|\n| read | 10 | |\n| candle Q8_0 | 2.5 | |\n| int8 | 5 | 0.50 |\n";
        let panel = Panel::new(&tables(page)[0]).unwrap();
        let svg = draw(&[panel]);
        for (width, colour) in [("500.0", FLOOR), ("125.0", PEER), ("250.0", OURS)] {
            assert!(svg.contains(&format!("width=\"{width}\" height=\"10\" fill=\"{colour}\"")), "{svg}");
        }
        assert!(svg.contains(">Title, GB/s<") && svg.contains(">5.00 · 0.50<"), "{svg}");
        assert!(Panel::new(&tables("| | GB/s |\n|---|---|\n| read | fast |\n")[0]).is_err(), "no number");
    }
}
