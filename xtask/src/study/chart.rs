//! Line charts as SVG, with nothing but coordinates rounded to a tenth: the same bytes everywhere.

use std::fmt::Write;

/// One line or set of marks.
pub(crate) struct Series<'a> {
    pub(crate) label: &'a str,
    pub(crate) colour: &'static str,
    pub(crate) style: Style,
    pub(crate) points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Solid,
    Dashed,
    Dots,
}

/// One of the panels of a figure.
pub(crate) struct Panel<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: (f64, f64),
    pub(crate) y: (f64, f64),
    /// Vertical lines with their labels.
    pub(crate) marks: Vec<(f64, String)>,
    pub(crate) series: Vec<Series<'a>>,
}

const WIDTH: f64 = 430.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 42.0;
const LEGEND: f64 = 28.0;

/// Draws panels two in a row; the first one's series make the legend.
pub(crate) fn draw(description: &str, x_label: &str, y_label: &str, panels: &[Panel<'_>]) -> String {
    let (width, height) = (2.0 * WIDTH, panels.len().div_ceil(2) as f64 * HEIGHT + LEGEND);
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
    let mut x = LEFT;
    for series in panels.first().map_or(&[][..], |panel| &panel.series) {
        line(stroke(series, &[(x, 16.0), (x + 15.0, 16.0), (x + 30.0, 16.0)]));
        line(format!("<text x=\"{}\" y=\"20\" fill=\"#222222\">{}</text>", x + 36.0, escape(series.label)));
        x += 60.0 + 6.2 * series.label.chars().count() as f64;
    }
    for (i, panel) in panels.iter().enumerate() {
        let (column, row) = ((i % 2) as f64, (i / 2) as f64);
        line(format!("<g transform=\"translate({} {})\">", column * WIDTH, LEGEND + row * HEIGHT));
        draw_panel(panel, x_label, y_label, &mut line);
        line("</g>".to_owned());
    }
    line("</svg>".to_owned());
    out
}

fn draw_panel(panel: &Panel<'_>, x_label: &str, y_label: &str, line: &mut impl FnMut(String)) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let px = |x: f64| LEFT + (x - panel.x.0) / (panel.x.1 - panel.x.0) * (right - LEFT);
    let py = |y: f64| bottom - (y - panel.y.0) / (panel.y.1 - panel.y.0) * (bottom - TOP);
    line(format!("<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\" fill=\"#222222\">{}</text>", escape(panel.title)));
    for y in ticks(panel.y, 5.0) {
        line(format!("<path d=\"M{LEFT} {:.1}H{right}\" stroke=\"#dddddd\"/>", py(y)));
        line(format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555555\">{y}</text>",
            LEFT - 6.0,
            py(y) + 4.0
        ));
    }
    for x in ticks(panel.x, 0.5) {
        let middle = "text-anchor=\"middle\" fill=\"#555555\"";
        line(format!("<path d=\"M{:.1} {bottom}v4\" stroke=\"#888888\"/>", px(x)));
        line(format!("<text x=\"{:.1}\" y=\"{}\" {middle}>{x}</text>", px(x), bottom + 17.0));
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
        let inside =
            |&&(x, y): &&(f64, f64)| (panel.x.0..=panel.x.1).contains(&x) && (panel.y.0..=panel.y.1).contains(&y);
        let points: Vec<(f64, f64)> = series.points.iter().filter(inside).map(|&(x, y)| (px(x), py(y))).collect();
        line(stroke(series, &points));
    }
}

fn stroke(series: &Series<'_>, points: &[(f64, f64)]) -> String {
    let mut text = String::new();
    if series.style == Style::Dots {
        for (x, y) in points {
            let _ = write!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.4\" fill=\"{}\"/>", series.colour);
        }
        return text;
    }
    for (i, (x, y)) in points.iter().enumerate() {
        let _ = write!(text, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
    }
    let dash = if series.style == Style::Dashed { " stroke-dasharray=\"6 4\"" } else { "" };
    format!("<path d=\"{text}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"{dash}/>", series.colour)
}

fn ticks((low, high): (f64, f64), step: f64) -> impl Iterator<Item = f64> {
    let first = (low / step).ceil();
    (0..).map(move |i| (first + f64::from(i)) * step).take_while(move |&x| x <= high + 1e-9)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::{Panel, Series, Style, draw};

    #[test]
    fn points_outside_the_axes_are_left_out_and_text_is_escaped() {
        let points = vec![(1.0, 10.0), (2.0, 20.0), (3.0, 99.0)];
        let series = vec![Series { label: "a < b", colour: "#123456", style: Style::Solid, points }];
        let panel = Panel { title: "t", x: (1.0, 3.0), y: (10.0, 30.0), marks: Vec::new(), series };
        let svg = draw("d", "x", "y", &[panel]);
        assert!(svg.contains("M50.0 258.0L234.0 144.0\""), "{svg}");
        assert!(svg.contains("a &lt; b"), "{svg}");
    }
}
