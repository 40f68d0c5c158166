//! Curves in `docs/src/figures`, drawn from the tables of the pages that show them, so that the two cannot disagree.

use std::fs;
use std::path::Path;
use xtask::chart::{self, Axis, Panel, Series, Style};
use xtask::docs::{Mode, publish};
use xtask::{Failure, docs};

/// A figure of some panels; all have the same lines.
struct Figure {
    page: &'static str,
    file: &'static str,
    description: &'static str,
    axes: [&'static str; 2],
    /// Whether the first axis is logarithmic; the second always is.
    log_x: bool,
    panels: &'static [&'static str],
    lines: &'static [Line],
}

/// Rows of tables that make a line: those of tables whose first heading is one of `tables` and whose first cell is one
/// of `rows`, or all where none is named.
struct Line {
    label: &'static str,
    tables: &'static [&'static str],
    rows: &'static [&'static str],
    /// Columns of x and y, for each panel.
    columns: &'static [[usize; 2]],
}

const COLOURS: [&str; 8] = ["#1b6ca8", "#c8553d", "#3a8f5c", "#8a5aab", "#b8860b", "#17868c", "#c2528b", "#6b6b6b"];

const FIGURES: &[Figure] = &[
    Figure {
        page: "vector-quant.md",
        file: "vector-quant.svg",
        description: "Perplexity over bits a weight of vector and scalar codes on two models",
        axes: ["bits a weight", "perplexity"],
        log_x: false,
        panels: &["tiny-llama", "stories15M"],
        lines: &[
            vectors("int-g32, GPTQ", &["`int2-g32-asym`, gptq", "`int3-g32-asym`, gptq"]),
            vectors("int-row, GPTQ", &["`int2-row-asym`, gptq", "`int3-row-asym`, gptq"]),
            vectors("k-means, pairs", &["`kmeans`, 2 × 4 bits", "`kmeans`, 2 × 6 bits"]),
            vectors("k-means, fours", &["`kmeans`, 4 × 8 bits"]),
            vectors("GPTVQ", &["`gptvq`, 2 × 4 bits", "`gptvq`, 2 × 6 bits"]),
            vectors("PCDVQ", &["`pcdvq`", "`pcdvq`, 16 + 2 bits"]),
            vectors("PCDVQ as published", &["`pcdvq` without feedback (as published)"]),
            vectors("E8P", &["`e8p`"]),
        ],
    },
    Figure {
        page: "low-rank.md",
        file: "low-rank.svg",
        description: "Perplexity over bits a weight of factored and of rounded weights on two models",
        axes: ["bits a weight", "perplexity"],
        log_x: false,
        panels: &["tiny-llama", "stories15M"],
        lines: &[
            Line { label: "SVD", tables: &["kept"], rows: &[], columns: &[[1, 2], [1, 6]] },
            Line { label: "FWSVD", tables: &["kept"], rows: &[], columns: &[[1, 3], [1, 7]] },
            Line { label: "ASVD", tables: &["kept"], rows: &[], columns: &[[1, 4], [1, 8]] },
            Line { label: "SVD-LLM", tables: &["kept"], rows: &[], columns: &[[1, 5], [1, 9]] },
            Line {
                label: "int-g32, rounded to nearest",
                tables: &["stored"],
                rows: &["`int8-g32`", "`int6-g32`", "`int4-g32`, rtn", "`int3-g32`, rtn"],
                columns: &[[1, 3], [5, 6]],
            },
            Line {
                label: "int-g32, GPTQ",
                tables: &["stored"],
                rows: &["`int4-g32`, gptq", "`int3-g32`, gptq"],
                columns: &[[1, 3], [5, 6]],
            },
        ],
    },
    Figure {
        page: "kv-cache-quant.md",
        file: "cskv-bytes.svg",
        description: "KL divergence over bytes a token of caches of latents and of formats, on two models of bytes",
        axes: ["bytes a token", "KL divergence (nats)"],
        log_x: true,
        panels: &["tiny-llama", "tiny-qwen"],
        lines: &[
            of_bytes("formats", &["`int8-g32`", "`int4-g32-min`"]),
            of_bytes("KIVI, 2 bits", &["`kivi:2`"]),
            of_bytes("CSKV, f16", &["`cskv:0.5`", "`cskv:0.2`"]),
            of_bytes("CSKV, 4 bits", &["`cskv:0.5@int4-min`", "`cskv:0.2@int4-min`"]),
            of_bytes("4 bits, block window", &["`cskv-block:0.5@int4-min`", "`cskv-block:0.2@int4-min`"]),
            of_bytes("CSKV, 2 bits", &["`cskv:0.5@int2-min`", "`cskv:0.2@int2-min`"]),
        ],
    },
    Figure {
        page: "kv-cache-quant.md",
        file: "cskv-words.svg",
        description: "KL divergence over bytes a token of caches of latents and of formats, on two models of words",
        axes: ["bytes a token", "KL divergence (nats)"],
        log_x: true,
        panels: &["stories15M", "SmolLM2-135M, four sinks"],
        lines: &[
            of_words("formats", &["`int8-g32`", "`int4-g32-min`"]),
            of_words("KIVI, 2 bits", &["`kivi:2`"]),
            of_words("CSKV, f16", &["`cskv:0.5`", "`cskv:0.2`"]),
            of_words("CSKV, 4 bits", &["`cskv:0.5@int4-min`", "`cskv:0.2@int4-min`"]),
        ],
    },
];

const fn of_bytes(label: &'static str, rows: &'static [&'static str]) -> Line {
    Line { label, tables: &["cache, models of bytes"], rows, columns: &[[2, 4], [5, 7]] }
}

const fn of_words(label: &'static str, rows: &'static [&'static str]) -> Line {
    Line { label, tables: &["cache, models of words"], rows, columns: &[[1, 3], [4, 8]] }
}

const fn vectors(label: &'static str, rows: &'static [&'static str]) -> Line {
    Line { label, tables: &["around 2 bits", "around 3 bits"], rows, columns: &[[1, 3], [5, 6]] }
}

/// Draws all curves, or checks that they would not change.
pub(crate) fn run(root: &Path, mode: Mode) -> Result<(), Failure> {
    for figure in FIGURES {
        let page = root.join("docs/src").join(figure.page);
        let text = fs::read_to_string(&page).map_err(|error| format!("{}: {error}", page.display()))?;
        let svg = draw(figure, &docs::tables(&text)).map_err(|error| format!("{}: {error}", figure.page))?;
        publish(&root.join("docs/src/figures").join(figure.file), &svg, mode)?;
    }
    Ok(())
}

fn draw(figure: &Figure, tables: &[docs::Table<'_>]) -> Result<String, Failure> {
    let mut panels = Vec::new();
    for (index, title) in figure.panels.iter().enumerate() {
        let mut series = Vec::new();
        for (line, colour) in figure.lines.iter().zip(COLOURS) {
            series.push(Series {
                label: line.label,
                colour,
                style: Style::Marked,
                points: points(line, index, tables)?,
            });
        }
        let all = |of: fn(&(f64, f64)) -> f64| series.iter().flat_map(|line| &line.points).map(of).collect::<Vec<_>>();
        let (x, y) = (all(|point| point.0), all(|point| point.1));
        let x = if figure.log_x { logarithmic(&x) } else { linear(&x) };
        panels.push(Panel { title, x, y: logarithmic(&y), marks: Vec::new(), series });
    }
    Ok(chart::draw(figure.description, figure.axes[0], figure.axes[1], &panels))
}

/// The points of a line, from left to right.
fn points(line: &Line, panel: usize, tables: &[docs::Table<'_>]) -> Result<Vec<(f64, f64)>, Failure> {
    let [x, y] = line.columns[panel.min(line.columns.len() - 1)];
    let mut points = Vec::new();
    for table in tables.iter().filter(|table| line.tables.contains(&table.heading())) {
        let wanted =
            |row: &&Vec<&str>| line.rows.is_empty() || line.rows.iter().any(|label| row.first() == Some(label));
        for row in table.rows.iter().filter(wanted) {
            let cell = |column: usize| {
                let text = row.get(column).copied().unwrap_or_default().replace([',', '*', '`'], "");
                text.trim().parse::<f64>().map_err(|_| format!("{}: {text:?} is no number", row[0]))
            };
            points.push((cell(x)?, cell(y)?));
        }
    }
    if points.is_empty() || points.len() < line.rows.len() {
        return Err(format!("tables have {} of the rows of {:?}", points.len(), line.label));
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(points)
}

fn extremes(values: &[f64]) -> (f64, f64) {
    let least = values.iter().fold(f64::INFINITY, |m, v| m.min(*v));
    (least, values.iter().fold(0.0, |m, v| v.max(m)))
}

fn linear(values: &[f64]) -> Axis {
    let (low, high) = extremes(values);
    let step = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0].into_iter().find(|step| (high - low) / step <= 9.0);
    let step = step.unwrap_or(100.0);
    Axis::Linear { low: ((low / step) - 0.2).floor() * step, high: ((high / step) + 0.2).ceil() * step, step }
}

fn logarithmic(values: &[f64]) -> Axis {
    let (low, high) = extremes(values);
    Axis::Log { low: low / 1.2, high: high * 1.2 }
}

#[cfg(test)]
mod tests {
    use super::{FIGURES, Line, draw, points};
    use xtask::docs::tables;

    #[test]
    fn a_line_takes_the_rows_and_columns_that_it_names() {
        let page = "text\n\n| a | x | y |\n|---|---:|---:|\n| `one` | 2 | 1,000 |\n| two | 3 | 4 |\n| one more | 1 | **5** |\n";
        let line = |rows| Line { label: "l", tables: &["a"], rows, columns: &[[1, 2]] };
        assert_eq!(points(&line(&["`one`", "one more"]), 0, &tables(page)).unwrap(), [(1.0, 5.0), (2.0, 1000.0)]);
        assert_eq!(points(&line(&[]), 0, &tables(page)).unwrap().len(), 3);
        assert!(points(&line(&["two", "three"]), 0, &tables(page)).is_err(), "no such row");
        assert!(draw(&FIGURES[0], &tables(page)).is_err(), "no such tables");
    }
}
