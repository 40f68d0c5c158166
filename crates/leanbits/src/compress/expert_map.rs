//! The allocation of experts as a picture: a square for each block, coloured by bits.

use super::experts::ExpertsReport;
use quant_core::Format;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Side of a square and the space between layers.
const SIDE: usize = 14;
const GAP: usize = 10;
/// Space for names on the left and for the title above.
const LEFT: usize = 90;
const TOP: usize = 56;

/// Rows are layers and blocks, columns are experts; below each layer, the tokens that each expert saw.
pub(super) fn picture(report: &ExpertsReport) -> String {
    let experts = report.layers.iter().map(|layer| layer.formats.len()).max().unwrap_or(0);
    let layer_height = 4 * SIDE + GAP;
    let legend = legend(report);
    let (width, height) = ((LEFT + experts * SIDE + 20).max(420), TOP + report.layers.len() * layer_height + 30);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">Experts at {:.3} bits a weight</text>\n",
        report.bits_per_weight
    );
    let mut x = 10;
    for (name, colour) in &legend {
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"30\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"39\">{name}</text>",
            x + 14
        );
        x += 24 + 7 * name.len();
    }
    for (at, layer) in report.layers.iter().enumerate() {
        let top = TOP + at * layer_height;
        let most = layer.tokens.iter().copied().max().unwrap_or(1).max(1);
        for (row, block) in ["gate", "up", "down", "tokens"].into_iter().enumerate() {
            let name = if row == 0 { format!("layer {} {block}", layer.layer) } else { block.to_owned() };
            let y = top + row * SIDE + 11;
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{name}</text>", LEFT - 6);
        }
        for (expert, (formats, tokens)) in layer.formats.iter().zip(&layer.tokens).enumerate() {
            let x = LEFT + expert * SIDE;
            for (row, format) in formats.iter().enumerate() {
                let colour = legend.get(format).map_or("#dddddd", String::as_str);
                let y = top + row * SIDE;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{0}\" height=\"{0}\" fill=\"{colour}\"><title>expert {expert}: \
                     {format}</title></rect>",
                    SIDE - 1
                );
            }
            let bar = usize::try_from(tokens * (SIDE as u64 - 2) / most).unwrap_or(0);
            let y = top + 4 * SIDE - bar;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{bar}\" fill=\"#59616b\"><title>{tokens} tokens</title></rect>",
                SIDE - 1
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// A colour for each format, from light to dark by the bits of a code.
fn legend(report: &ExpertsReport) -> BTreeMap<String, String> {
    const COLOURS: [&str; 9] =
        ["#fff3d6", "#fde0a6", "#fbc074", "#f59c5a", "#e4715f", "#c24e73", "#93377f", "#5f2a80", "#2b1d63"];
    let names = report.layers.iter().flat_map(|layer| layer.formats.iter().flatten());
    names
        .map(|name| {
            let bits = name.parse::<Format>().map_or(0, |format| format.code_bits() as usize);
            (name.clone(), COLOURS[bits.min(COLOURS.len() - 1)].to_owned())
        })
        .collect()
}
