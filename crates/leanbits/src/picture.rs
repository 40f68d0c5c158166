//! The pictures of reports, as SVG text.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A point of [`pareto`].
#[derive(Clone, Debug)]
pub(crate) struct ParetoPoint {
    pub(crate) label: String,
    /// Where it lies: smaller is better on both axes.
    pub(crate) x: f64,
    pub(crate) y: f64,
}

/// What a picture says beside its points.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Captions<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
}

const SIZE: (u32, u32) = (960, 600);
/// Width of the strip on the right in which kinds of tensors are named.
const LEGEND: u32 = 130;
const INK: RGBColor = RGBColor(34, 40, 49);
const FAINT: RGBColor = RGBColor(214, 219, 225);
const FRONT: RGBColor = RGBColor(0, 114, 178);
const OTHER: RGBColor = RGBColor(150, 158, 168);
/// Colours that people who see colours differently can tell apart (Okabe and Ito).
const SERIES: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(120, 94, 40),
    RGBColor(90, 90, 90),
];

type Drawn<T> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// Points that no other point beats on both axes, from left to right.
pub(crate) fn front(points: &[ParetoPoint]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| points[a].x.total_cmp(&points[b].x).then(points[a].y.total_cmp(&points[b].y)));
    let mut best = f64::INFINITY;
    order.retain(|&at| {
        let better = points[at].y < best;
        best = best.min(points[at].y);
        better
    });
    order
}

/// Size against quality with the Pareto front drawn; the y axis is logarithmic.
pub(crate) fn pareto(captions: Captions<'_>, points: &[ParetoPoint]) -> String {
    let mut svg = String::new();
    // Drawing into a string fails only for coordinates that are not finite, which are left out below.
    let drawn = draw_pareto(&mut svg, captions, points);
    debug_assert!(drawn.is_ok(), "{drawn:?}");
    tidy(&svg)
}

fn draw_pareto(svg: &mut String, captions: Captions<'_>, points: &[ParetoPoint]) -> Drawn<()> {
    let points: Vec<ParetoPoint> =
        points.iter().filter(|p| p.x.is_finite() && p.y.is_finite() && p.y > 0.0).cloned().collect();
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    if points.is_empty() {
        return root.present();
    }
    let (x0, x1) = bounds(points.iter().map(|p| p.x));
    let (y0, y1) = bounds(points.iter().map(|p| p.y));
    let x_pad = (x1 - x0).max(x1 * 0.05) * 0.07;
    let y_ratio = (y1 / y0).max(1.05).powf(0.08);
    let mut chart = ChartBuilder::on(&root)
        .margin(18)
        .margin_right(28)
        .caption(captions.title, ("sans-serif", 22).into_font().color(&INK))
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d((x0 - x_pad)..(x1 + x_pad), ((y0 / y_ratio)..(y1 * y_ratio)).log_scale())?;
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(WHITE.mix(0.0))
        .axis_style(INK)
        .x_desc(captions.x)
        .y_desc(captions.y)
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 16).into_font().color(&INK))
        .draw()?;
    let on_front = front(&points);
    chart
        .draw_series(LineSeries::new(on_front.iter().map(|&at| (points[at].x, points[at].y)), FRONT.stroke_width(2)))?;
    let pixels: Vec<(i32, i32)> = points.iter().map(|p| chart.backend_coord(&(p.x, p.y))).collect();
    let colour = |at: usize| if on_front.contains(&at) { FRONT } else { OTHER };
    for (at, pixel) in pixels.iter().enumerate() {
        root.draw(&Circle::new(*pixel, 5, colour(at).filled()))?;
    }
    let (x, y) = (chart.plotting_area().get_x_axis_pixel_range(), chart.plotting_area().get_y_axis_pixel_range());
    let plot = Rect {
        left: x.start.min(x.end),
        right: x.start.max(x.end),
        top: y.start.min(y.end),
        bottom: y.start.max(y.end),
    };
    let line: Vec<(i32, i32)> = on_front.iter().map(|&at| pixels[at]).collect();
    let mut labels = Labels::new(plot, &pixels, &line);
    // Front points choose their places first: their labels are the ones people look for.
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|at| !on_front.contains(at));
    for at in order {
        let ink = if on_front.contains(&at) { FRONT } else { INK };
        labels.place(&root, &points[at].label, pixels[at], ink)?;
    }
    root.present()
}

/// A rectangle in pixels.
#[derive(Clone, Copy, Debug)]
struct Rect {
    left: i32,
    top: i32,
    right: i32,
    bottom: i32,
}

impl Rect {
    fn overlap(&self, other: &Self) -> i32 {
        let width = self.right.min(other.right) - self.left.max(other.left);
        let height = self.bottom.min(other.bottom) - self.top.max(other.top);
        if width > 0 && height > 0 { width * height } else { 0 }
    }

    fn inside(&self, outer: &Self) -> bool {
        self.left >= outer.left && self.right <= outer.right && self.top >= outer.top && self.bottom <= outer.bottom
    }
}

/// Places labels where they cover neither points nor the line nor each other.
struct Labels {
    plot: Rect,
    taken: Vec<Rect>,
}

const LABEL_HEIGHT: i32 = 14;
/// Width of one character of the 14-pixel label font, on the wide side.
const CHAR_WIDTH: i32 = 8;

impl Labels {
    fn new(plot: Rect, points: &[(i32, i32)], line: &[(i32, i32)]) -> Self {
        let around = |x, y, r| Rect { left: x - r, top: y - r, right: x + r, bottom: y + r };
        let mut taken: Vec<Rect> = points.iter().map(|&(x, y)| around(x, y, 6)).collect();
        for pair in line.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let steps = ((x1 - x0).abs().max((y1 - y0).abs()) / 4).max(1);
            taken.extend((0..=steps).map(|i| around(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, 2)));
        }
        Self { plot, taken }
    }

    fn place<DB: DrawingBackend>(
        &mut self,
        root: &DrawingArea<DB, Shift>,
        text: &str,
        (x, y): (i32, i32),
        colour: RGBColor,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let width = CHAR_WIDTH * i32::try_from(text.chars().count()).unwrap_or(i32::MAX / CHAR_WIDTH);
        let mut best: Option<(i32, Rect, i32)> = None;
        for ring in 0..12 {
            let d = 9 + 9 * ring;
            // Right, left, above, below, then the diagonals.
            let places = [
                (d, 0),
                (-d - width, 0),
                (-width / 2, -d - 4),
                (-width / 2, d + 4),
                (d, -d),
                (d, d),
                (-d - width, -d),
                (-d - width, d),
            ];
            for (dx, dy) in places {
                let area = Rect {
                    left: x + dx,
                    top: y + dy - LABEL_HEIGHT / 2,
                    right: x + dx + width,
                    bottom: y + dy + LABEL_HEIGHT / 2,
                };
                let covered: i32 = self.taken.iter().map(|other| area.overlap(other)).sum();
                let outside = if area.inside(&self.plot) { 0 } else { 10_000 };
                let cost = covered * 10 + outside + 12 * ring;
                if best.is_none_or(|(least, ..)| cost < least) {
                    best = Some((cost, area, ring));
                }
            }
        }
        let Some((_, area, ring)) = best else { return Ok(()) };
        self.taken.push(area);
        let middle = (area.top + area.bottom) / 2;
        if ring > 0 {
            let end = (x.clamp(area.left, area.right), middle.clamp(area.top, area.bottom));
            root.draw(&PathElement::new(vec![(x, y), end], OTHER.stroke_width(1)))?;
        }
        let style = ("sans-serif", 14).into_font().color(&colour).pos(Pos::new(HPos::Center, VPos::Center));
        root.draw(&Text::new(text.to_owned(), ((area.left + area.right) / 2, middle), style))
    }
}

/// One tensor of [`tensor_errors`].
#[derive(Clone, Debug)]
pub(crate) struct TensorPoint {
    /// What kind of tensor it is; points of one kind share a colour.
    pub(crate) kind: String,
    /// Signal to noise in dB.
    pub(crate) sqnr_db: f64,
}

/// The error of every quantized tensor, in the order of the file, a colour for each kind.
pub(crate) fn tensor_errors(captions: Captions<'_>, points: &[TensorPoint]) -> String {
    let mut svg = String::new();
    let drawn = draw_tensor_errors(&mut svg, captions, points);
    debug_assert!(drawn.is_ok(), "{drawn:?}");
    tidy(&svg)
}

#[expect(clippy::cast_precision_loss, reason = "positions in a picture")]
fn draw_tensor_errors(svg: &mut String, captions: Captions<'_>, points: &[TensorPoint]) -> Drawn<()> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let finite = || points.iter().enumerate().filter(|(_, p)| p.sqnr_db.is_finite());
    if finite().next().is_none() {
        return root.present();
    }
    let (low, high) = bounds(finite().map(|(_, p)| p.sqnr_db));
    let pad = ((high - low) * 0.08).max(0.5);
    let kinds = Kinds::new(finite().map(|(_, point)| point.kind.as_str()));
    let mut chart = ChartBuilder::on(&root)
        .margin(18)
        .margin_right(LEGEND)
        .caption(captions.title, ("sans-serif", 22).into_font().color(&INK))
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(-0.5..(points.len() as f64 - 0.5), (low - pad)..(high + pad))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(FAINT)
        .light_line_style(WHITE.mix(0.0))
        .axis_style(INK)
        .x_desc(captions.x)
        .y_desc(captions.y)
        .x_label_formatter(&|x| if x.fract() == 0.0 && *x >= 0.0 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| number(*y))
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 16).into_font().color(&INK))
        .draw()?;
    for (entry, colour) in SERIES.iter().enumerate() {
        let of_entry = finite().filter(|(_, p)| kinds.series(&p.kind) == entry);
        chart.draw_series(of_entry.map(|(at, p)| Circle::new((at as f64, p.sqnr_db), 4, colour.filled())))?;
    }
    kinds.legend(&root)?;
    root.present()
}

/// A curve of [`curves`].
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// What kind of tensor it is of; curves of one kind share a colour.
    pub(crate) kind: String,
    /// Where it lies.
    pub(crate) points: Vec<(f64, f64)>,
    /// A point of it that is marked.
    pub(crate) mark: Option<(f64, f64)>,
}

/// Curves, a colour for each kind, with a mark on each.
pub(crate) fn curves(captions: Captions<'_>, curves: &[Curve]) -> String {
    let mut svg = String::new();
    let drawn = draw_curves(&mut svg, captions, curves);
    debug_assert!(drawn.is_ok(), "{drawn:?}");
    tidy(&svg)
}

fn draw_curves(svg: &mut String, captions: Captions<'_>, curves: &[Curve]) -> Drawn<()> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    let all = || curves.iter().flat_map(|curve| curve.points.iter().chain(&curve.mark)).filter(|p| finite(p));
    if all().next().is_none() {
        return root.present();
    }
    let (x0, x1) = bounds(all().map(|p| p.0));
    let (y0, y1) = bounds(all().map(|p| p.1));
    let (x_pad, y_pad) = (((x1 - x0) * 0.04).max(1e-3), ((y1 - y0) * 0.06).max(1e-3));
    let kinds = Kinds::new(curves.iter().map(|curve| curve.kind.as_str()));
    let mut chart = ChartBuilder::on(&root)
        .margin(18)
        .margin_right(LEGEND)
        .caption(captions.title, ("sans-serif", 22).into_font().color(&INK))
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d((x0 - x_pad)..(x1 + x_pad), (y0 - y_pad)..(y1 + y_pad))?;
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(WHITE.mix(0.0))
        .axis_style(INK)
        .x_desc(captions.x)
        .y_desc(captions.y)
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 16).into_font().color(&INK))
        .draw()?;
    for curve in curves {
        let colour = SERIES[kinds.series(&curve.kind)];
        let line = curve.points.iter().copied().filter(|p| finite(p));
        chart.draw_series(LineSeries::new(line, colour.stroke_width(1)))?;
        chart.draw_series(curve.mark.iter().filter(|p| finite(p)).map(|p| Circle::new(*p, 4, colour.filled())))?;
    }
    kinds.legend(&root)?;
    root.present()
}

/// Kinds of tensors and their colours; those beyond the palette share its last one under the name "other".
struct Kinds<'a> {
    names: Vec<&'a str>,
    named: usize,
}

impl<'a> Kinds<'a> {
    fn new(all: impl Iterator<Item = &'a str>) -> Self {
        let mut names: Vec<&str> = Vec::new();
        for kind in all {
            if !names.contains(&kind) {
                names.push(kind);
            }
        }
        let named = if names.len() > SERIES.len() { SERIES.len() - 1 } else { names.len() };
        Self { names, named }
    }

    fn series(&self, kind: &str) -> usize {
        self.names.iter().position(|k| *k == kind).unwrap_or(self.named).min(SERIES.len() - 1)
    }

    /// Names the colours in the strip on the right.
    fn legend<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let entries = if self.names.len() > self.named { self.named + 1 } else { self.named };
        let ink = ("sans-serif", 14).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        let left = i32::try_from(SIZE.0 - LEGEND + 18).unwrap_or(i32::MAX);
        let mut top = 66;
        for (entry, colour) in SERIES.iter().enumerate().take(entries) {
            let label = if entry < self.named { self.names[entry] } else { "other" };
            root.draw(&Circle::new((left, top), 4, colour.filled()))?;
            root.draw(&Text::new(label.to_owned(), (left + 12, top), ink.clone()))?;
            top += 22;
        }
        Ok(())
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// A number on an axis, as short as it can be.
fn number(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 1e-5 => format!("{value:.6}"),
        _ => return format!("{value:.1e}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// One final line feed, however the backend ends.
fn tidy(svg: &str) -> String {
    format!("{}\n", svg.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64) -> ParetoPoint {
        ParetoPoint { label: format!("{x},{y}"), x, y }
    }

    #[test]
    fn the_front_holds_exactly_the_points_that_nothing_beats() {
        let points = [point(3.0, 1.0), point(1.0, 3.0), point(2.0, 3.0), point(2.0, 2.0), point(4.0, 1.0)];
        assert_eq!(front(&points), [1, 3, 0], "dominated and tied points are left out");
    }

    #[test]
    fn every_label_is_in_the_picture_and_bad_points_are_left_out() {
        let mut points: Vec<_> = (1..12).map(|i| point(f64::from(i % 4) + 4.0, f64::from(i))).collect();
        points.push(ParetoPoint { label: "infinite".into(), x: 1.0, y: f64::INFINITY });
        let svg = pareto(Captions { title: "t", x: "MiB", y: "perplexity" }, &points);
        for p in &points[..11] {
            assert!(svg.contains(&p.label), "{} is missing", p.label);
        }
        assert!(!svg.contains("infinite") && !svg.contains("NaN"), "nothing that cannot be drawn");
    }

    #[test]
    fn many_kinds_fold_into_the_last_colour() {
        let points: Vec<_> =
            (0..12).map(|i| TensorPoint { kind: format!("kind{i}"), sqnr_db: 20.0 + f64::from(i) }).collect();
        let svg = tensor_errors(Captions { title: "t", x: "tensor", y: "dB" }, &points);
        assert!(svg.contains("kind6") && svg.contains("other") && !svg.contains("kind7"), "eight entries");
    }
}
