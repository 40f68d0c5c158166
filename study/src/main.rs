//! "INT v.s. FP" (arXiv 2510.25602) with this code: QSNR over the crest factor, and the formats on known distributions.
//! `cargo xtask study` runs it.
#![forbid(unsafe_code)]

mod measure;
mod sample;

use xtask::Failure;
use xtask::chart::{self, Axis, Panel, Series, Style};
use xtask::docs::{Mode, publish, replace_section};

use measure::{PAIRS, Pair, Point};
use quant_core::{Format, Layout, NamedFormat};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread::ScopedJoinHandle;

const PAGE: &str = "docs/src/int-vs-fp.md";
const FORMATS_PAGE: &str = "docs/src/formats.md";
const FIGURE: &str = "docs/src/figures/int-vs-fp.svg";
const INT_COLOUR: &str = "#1b6ca8";
const FLOAT_COLOUR: &str = "#c8553d";

struct Study {
    pair: &'static Pair,
    /// The paper's scale rule, and OCP's where the pair has power-of-two scales.
    planted: Vec<Point>,
    planted_floor: Option<Vec<Point>>,
    binned: Vec<Point>,
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mode = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => Mode::Write,
        ["--check"] => Mode::Check,
        _ => {
            eprintln!("Usage: study [--check]");
            return ExitCode::from(2);
        }
    };
    match run(root, mode) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Measures everything and writes the page and the figure, or checks that they would not change.
fn run(root: &Path, mode: Mode) -> Result<(), Failure> {
    let (studies, tables) = std::thread::scope(|scope| {
        let tables = scope.spawn(|| Ok::<_, Failure>([("formats", formats()?), ("integers", integers()?)]));
        let studies: Vec<_> = PAIRS.iter().map(|pair| scope.spawn(|| study(pair))).collect();
        let studies: Result<Vec<Study>, Failure> = studies.into_iter().map(join).collect();
        Ok::<_, Failure>((studies?, join(tables)?))
    })?;
    publish(&root.join(FIGURE), &figure(&studies)?, mode)?;

    let path = root.join(PAGE);
    let mut page = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    for (name, content) in [("crossovers", crossovers(&studies)?)].into_iter().chain(tables) {
        page = replace_section(&page, name, &content)?;
    }
    publish(&path, &page, mode)?;

    let path = root.join(FORMATS_PAGE);
    let page = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    publish(&path, &replace_section(&page, "named", &named()?)?, mode)
}

/// The named formats and what they take.
fn named() -> Result<String, Failure> {
    const SIZE: usize = 4096;
    let mut text = String::from("| name | what | bits a code | bits a value |\n|---|---|---|---|\n");
    for NamedFormat { name, summary, format } in Format::named() {
        let layout = Layout::new(*format, &[SIZE, SIZE]).map_err(|error| error.to_string())?;
        let bytes = layout.code_bytes() + layout.scale_bytes() + layout.zero_bytes() + 4 * layout.second_len;
        let bits = 8.0 * bytes as f64 / (SIZE * SIZE) as f64;
        let _ = writeln!(text, "| `{name}` | {summary} | {} | {bits:.3} |", format.code_bits());
    }
    Ok(text)
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T, Failure>>) -> Result<T, Failure> {
    thread.join().map_err(|_| "a measurement panicked".to_owned())?
}

fn study(pair: &'static Pair) -> Result<Study, Failure> {
    let names = (pair.int, pair.float);
    let floor = |name: &'static str| name.strip_suffix("-rceil");
    let (planted, planted_floor) = match (floor(pair.int), floor(pair.float)) {
        (Some(int), Some(float)) => {
            let [planted, floor] = measure::planted(pair.block, [names, (int, float)])?;
            (planted, Some(floor))
        }
        _ => {
            let [planted] = measure::planted(pair.block, [names])?;
            (planted, None)
        }
    };
    Ok(Study { pair, planted, planted_floor, binned: measure::binned(pair)? })
}

fn figure(studies: &[Study]) -> Result<String, Failure> {
    let mut panels = Vec::new();
    for study in studies {
        let (int, float) = (measure::theory(study.pair.int)?, measure::theory(study.pair.float)?);
        let end = (study.pair.block as f64).sqrt();
        let grid: Vec<f64> = (0..=120).map(|i| 1.0 + (end - 1.0) * f64::from(i) / 120.0).collect();
        let measured = |points: &[Point], of: fn(&Point) -> f64| points.iter().map(|p| (p.crest, of(p))).collect();
        let series = vec![
            Series {
                label: "INT measured",
                colour: INT_COLOUR,
                style: Style::Solid,
                points: measured(&study.planted, |p| p.int_db),
            },
            Series {
                label: "INT theory",
                colour: INT_COLOUR,
                style: Style::Dashed,
                points: grid.iter().map(|&k| (k, int.qsnr_db(k))).collect(),
            },
            Series {
                label: "INT, normal",
                colour: INT_COLOUR,
                style: Style::Dots,
                points: measured(&study.binned, |p| p.int_db),
            },
            Series {
                label: "FP measured",
                colour: FLOAT_COLOUR,
                style: Style::Solid,
                points: measured(&study.planted, |p| p.float_db),
            },
            Series {
                label: "FP theory",
                colour: FLOAT_COLOUR,
                style: Style::Dashed,
                points: grid.iter().map(|&k| (k, float.qsnr_db(k))).collect(),
            },
            Series {
                label: "FP, normal",
                colour: FLOAT_COLOUR,
                style: Style::Dots,
                points: measured(&study.binned, |p| p.float_db),
            },
        ];
        let all = || study.planted.iter().flat_map(|p| [p.int_db, p.float_db]);
        let low = (all().fold(f64::INFINITY, f64::min) / 5.0).floor() * 5.0;
        let high = (all().fold(0.0, f64::max) / 5.0).ceil() * 5.0;
        let mut marks = Vec::new();
        if study.pair.published.0 < end {
            marks.push((study.pair.published.0, format!("paper {:.2}", study.pair.published.0)));
        }
        if let Some((crest, _)) = measure::crossover(&study.planted) {
            marks.push((crest, format!("measured {crest:.2}")));
        }
        let (x, y) = (Axis::Linear { low: 1.0, high: end, step: 0.5 }, Axis::Linear { low, high, step: 5.0 });
        panels.push(Panel { title: study.pair.title, x, y, marks, series });
    }
    let description = "QSNR over the crest factor of a block, integers against floats: theory and measurement";
    Ok(chart::draw(description, "crest factor", "QSNR (dB)", &panels))
}

fn crossovers(studies: &[Study]) -> Result<String, Failure> {
    let mut text = String::from(
        "| pair | paper | formula | formula, exact `Q` | measured | measured, normal blocks | measured, `floor` scales |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let cell = |found: Option<(f64, f64)>| match found {
        Some((crest, db)) => format!("{crest:.2} / {db:.2}"),
        None => "none".to_owned(),
    };
    for Study { pair, planted, planted_floor, binned } in studies {
        let (int, float) = (measure::theory(pair.int)?, measure::theory(pair.float)?);
        // Beyond √g no block exists; the formula of 8 bits crosses there all the same.
        let end = if pair.block == 16 { 4.0 } else { 12.0 };
        let solve = |int: quant_core::qsnr::Theory, float: quant_core::qsnr::Theory| {
            let crest = int.crossover(&float, 1.0, end);
            crest.map_or("none".to_owned(), |crest| format!("{crest:.3} / {:.2}", float.qsnr_db(crest)))
        };
        let mut formula = solve(int, float);
        if pair.block == 16 {
            let _ = write!(formula, " (ρ = 1.05: {})", solve(int.with_overhead(1.05), float.with_overhead(1.05)));
        }
        let _ = writeln!(
            text,
            "| {} | {:.2} / {:.2} | {formula} | {} | {} | {} | {} |",
            pair.title,
            pair.published.0,
            pair.published.1,
            solve(int.with_exact_range(), float),
            cell(measure::crossover(planted)),
            cell(measure::crossover(binned)),
            planted_floor.as_ref().map_or("—".to_owned(), |points| cell(measure::crossover(points))),
        );
    }
    Ok(text)
}

/// QSNR of the formats with power-of-two and two-level scales on whole samples.
fn formats() -> Result<String, Failure> {
    const ROWS: [(&str, &[&str]); 8] = [
        ("mxint8", &["floor", "rceil"]),
        ("mxfp8-e4m3", &["floor", "even", "rceil"]),
        ("mxfp8-e5m2", &["floor", "even", "rceil"]),
        ("mxint6", &["floor", "rceil"]),
        ("mxfp6-e2m3", &["floor", "even", "rceil"]),
        ("mxfp6-e3m2", &["floor", "even", "rceil"]),
        ("mxint4", &["floor", "rceil"]),
        ("mxfp4", &["floor", "even", "rceil"]),
    ];
    let names = ROWS.iter().flat_map(|(stem, rules)| rules.iter().map(move |rule| format!("{stem}-{rule}")));
    let names = names.chain(["nvint4", "nvfp4"].map(str::to_owned));
    table(&names.collect::<Vec<_>>())
}

/// QSNR of integers and code books with float scales on whole samples.
fn integers() -> Result<String, Failure> {
    let mut names = Vec::new();
    for bits in [8, 4, 3, 2] {
        for block in ["g128-sym", "g128-asym", "g32-sym", "g32-full", "g32-asym", "g32-min"] {
            names.push(format!("int{bits}-{block}-f32"));
        }
    }
    for stem in ["nf4", "af4", "bnbfp4"] {
        names.push(format!("{stem}-g64"));
    }
    names.push("ternary".to_owned());
    table(&names)
}

fn table(names: &[String]) -> Result<String, Failure> {
    let samples = measure::samples();
    let mut text = String::from("| format |");
    for (title, _) in &samples {
        let _ = write!(text, " {title} |");
    }
    text.push_str("\n|---|---|---|---|\n");
    for name in names {
        let _ = write!(text, "| `{}` |", measure::parse(name)?);
        for (_, values) in &samples {
            let _ = write!(text, " {:.2} |", measure::qsnr(name, values)?);
        }
        text.push('\n');
    }
    Ok(text)
}
