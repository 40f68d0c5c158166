//! Line charts as SVG, with nothing but coordinates rounded to a tenth: the same bytes everywhere.

use crate::docs::escape;
use std::fmt::Write;

/// One line or set of marks.
pub struct Series<'a> {
    /// What the legend calls it.
    pub label: &'a str,
    /// As SVG has it.
    pub colour: &'static str,
    /// How it is drawn.
    pub style: Style,
    /// Values on both axes, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A line.
    Solid,
    /// A dashed line.
    Dashed,
    /// Dots alone.
    Dots,
    /// Dots on a line.
    Marked,
}

/// The range of an axis.
#[derive(Clone, Copy)]
pub enum Axis {
    /// From `low` to `high`, with ticks at multiples of `step`.
    Linear {
        /// The left or lower end.
        low: f64,
        /// The right or upper end.
        high: f64,
        /// Between ticks.
        step: f64,
    },
    /// Logarithmic, from `low` to `high`, both positive.
    Log {
        /// The left or lower end.
        low: f64,
        /// The right or upper end.
        high: f64,
    },
}

impl Axis {
    /// Where a value stands, 0 at the low end and 1 at the high one.
    fn share(self, value: f64) -> f64 {
        match self {
            Self::Linear { low, high, .. } => (value - low) / (high - low),
            Self::Log { low, high } => (value / low).log10() / (high / low).log10(),
        }
    }

    fn contains(self, value: f64) -> bool {
        let (Self::Linear { low, high, .. } | Self::Log { low, high }) = self;
        (low..=high).contains(&value)
    }

    /// Multiples of the step; or 1, 2 and 5 times powers of ten, or the powers alone where there are many.
    fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear { low, high, step } => {
                let first = (low / step).ceil();
                let last = (high / step + 1e-9).floor();
                (0..).map(|i| first + f64::from(i)).take_while(|i| *i <= last).map(|i| i * step).collect()
            }
            Self::Log { low, high } => {
                let steps: &[f64] = if high / low > 200.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let decades = -9..9_i32;
                let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)));
                all.filter(|tick| self.contains(*tick)).collect()
            }
        }
    }
}

/// A tick as people write it.
fn tick(value: f64) -> String {
    if value >= 1e4 { format!("{}k", value / 1e3) } else { format!("{}", (value * 1e9).round() / 1e9) }
}

/// One of the panels of a figure.
pub struct Panel<'a> {
    /// What stands above it.
    pub title: &'a str,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// Vertical lines with their labels.
    pub marks: Vec<(f64, String)>,
    /// What is drawn, in this order.
    pub series: Vec<Series<'a>>,
}

const WIDTH: f64 = 430.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 42.0;
/// Of a line of the legend.
const LEGEND: f64 = 28.0;

/// Draws panels two in a row; the first one's series make the legend.
#[must_use]
pub fn draw(description: &str, x_label: &str, y_label: &str, panels: &[Panel<'_>]) -> String {
    let width = 2.0 * WIDTH;
    let (places, legend) = legend(panels.first().map_or(&[], |panel| &panel.series), width);
    let height = panels.len().div_ceil(2) as f64 * HEIGHT + legend;
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         font-family=\"sans-serif\" font-size=\"12\">"
    ));
    line(format!("<title>{}</title>", escape(description)));
    line(format!("<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"));
    for (series, (x, y)) in panels.iter().take(1).flat_map(|panel| &panel.series).zip(places) {
        line(stroke(series, &[(x, y - 4.0), (x + 15.0, y - 4.0), (x + 30.0, y - 4.0)]));
        line(format!("<text x=\"{}\" y=\"{y}\" fill=\"#222222\">{}</text>", x + 36.0, escape(series.label)));
    }
    for (i, panel) in panels.iter().enumerate() {
        let (column, row) = ((i % 2) as f64, (i / 2) as f64);
        line(format!("<g transform=\"translate({} {})\">", column * WIDTH, legend + row * HEIGHT));
        draw_panel(panel, x_label, y_label, &mut line);
        line("</g>".to_owned());
    }
    line("</svg>".to_owned());
    out
}

/// Where the legend names each series, and its height.
fn legend(series: &[Series<'_>], width: f64) -> (Vec<(f64, f64)>, f64) {
    let (mut x, mut y) = (LEFT, 20.0);
    let mut places = Vec::new();
    for series in series {
        let needed = 60.0 + 6.2 * series.label.chars().count() as f64;
        if x + needed > width {
            (x, y) = (LEFT, y + LEGEND - 8.0);
        }
        places.push((x, y));
        x += needed;
    }
    (places, y + LEGEND - 20.0)
}

fn draw_panel(panel: &Panel<'_>, x_label: &str, y_label: &str, line: &mut impl FnMut(String)) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let px = |x: f64| LEFT + panel.x.share(x) * (right - LEFT);
    let py = |y: f64| bottom - panel.y.share(y) * (bottom - TOP);
    line(format!("<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\" fill=\"#222222\">{}</text>", escape(panel.title)));
    for y in panel.y.ticks() {
        line(format!("<path d=\"M{LEFT} {:.1}H{right}\" stroke=\"#dddddd\"/>", py(y)));
        line(format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555555\">{}</text>",
            LEFT - 6.0,
            py(y) + 4.0,
            tick(y)
        ));
    }
    for x in panel.x.ticks() {
        let middle = "text-anchor=\"middle\" fill=\"#555555\"";
        line(format!("<path d=\"M{:.1} {bottom}v4\" stroke=\"#888888\"/>", px(x)));
        line(format!("<text x=\"{:.1}\" y=\"{}\" {middle}>{}</text>", px(x), bottom + 17.0, tick(x)));
    }
    line(format!("<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#888888\"/>"));
    line(format!(
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#222222\">{}</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 8.0,
        escape(x_label)
    ));
    line(format!(
        "<text transform=\"translate(15 {:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"#222222\">{}</text>",
        (TOP + bottom) / 2.0,
        escape(y_label)
    ));
    let leftmost = panel.marks.iter().map(|mark| mark.0).fold(f64::INFINITY, f64::min);
    for (x, label) in &panel.marks {
        let (dx, anchor) = if *x == leftmost { (-5.0, "end") } else { (5.0, "start") };
        line(format!("<path d=\"M{:.1} {TOP}V{bottom}\" stroke=\"#666666\" stroke-dasharray=\"2 3\"/>", px(*x)));
        let place = format!("x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\"", px(*x) + dx, bottom - 8.0);
        line(format!("<text {place} fill=\"#444444\">{}</text>", escape(label)));
    }
    for series in &panel.series {
        let inside = |&&(x, y): &&(f64, f64)| panel.x.contains(x) && panel.y.contains(y);
        let points: Vec<(f64, f64)> = series.points.iter().filter(inside).map(|&(x, y)| (px(x), py(y))).collect();
        line(stroke(series, &points));
    }
}

fn stroke(series: &Series<'_>, points: &[(f64, f64)]) -> String {
    let mut text = String::new();
    if matches!(series.style, Style::Dots | Style::Marked) {
        for (x, y) in points {
            let _ = write!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.4\" fill=\"{}\"/>", series.colour);
        }
    }
    if series.style == Style::Dots {
        return text;
    }
    let circles = std::mem::take(&mut text);
    for (i, (x, y)) in points.iter().enumerate() {
        let _ = write!(text, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
    }
    let dash = if series.style == Style::Dashed { " stroke-dasharray=\"6 4\"" } else { "" };
    format!("{circles}<path d=\"{text}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"{dash}/>", series.colour)
}

#[cfg(test)]
mod tests {
    use super::{Axis, Panel, Series, Style, draw};

    #[test]
    fn ticks_of_logarithms_are_round_numbers() {
        let ticks = Axis::Log { low: 2.0, high: 60.0 }.ticks();
        assert_eq!(ticks.iter().map(|tick| super::tick(*tick)).collect::<Vec<_>>(), ["2", "5", "10", "20", "50"]);
        assert_eq!(Axis::Log { low: 2.0, high: 3e4 }.ticks().len(), 4, "powers of ten alone");
    }

    #[test]
    fn points_outside_the_axes_are_left_out_and_text_is_escaped() {
        let points = vec![(1.0, 10.0), (2.0, 20.0), (3.0, 99.0)];
        let series = vec![Series { label: "a < b", colour: "#123456", style: Style::Solid, points }];
        let (x, y) =
            (Axis::Linear { low: 1.0, high: 3.0, step: 0.5 }, Axis::Linear { low: 10.0, high: 30.0, step: 5.0 });
        let panel = Panel { title: "t", x, y, marks: Vec::new(), series };
        let svg = draw("d", "x", "y", &[panel]);
        assert!(svg.contains("M64.0 258.0L241.0 144.0\""), "{svg}");
        assert!(svg.contains("a &lt; b"), "{svg}");
    }
}
