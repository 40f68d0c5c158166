//! Kinds of codes, as products keep them, and the products.
//!
//! Codes lie in lines of 64 bytes, a lane of four bytes for each of sixteen rows, byte `i` of a lane holding column `i` of
//! each four: see `tiles/pack.rs`. How a kind packs them is said by the bits of its planes; a unit has as many columns as
//! its narrowest plane has in a line. Where they lie, how one is stored, and how values and bytes come from them follows.

use super::isas::{ISAS, list};
use super::{Signature, doc, fill};

struct Kind {
    name: &'static str,
    doc: &'static str,
    stored: Stored,
}

/// How codes are stored.
enum Stored {
    /// Names of values, in planes of so many bits, the lowest first; at most four bits in all.
    Names(&'static [u32]),
    /// Integers plus 128.
    Integers,
    /// The upper byte of an f16, or that without its highest exponent bit.
    Floats { wide: bool },
}

#[rustfmt::skip]
const KINDS: &[Kind] = &[
    Kind { name: "Two", doc: "Names of four values.", stored: Stored::Names(&[2]) },
    Kind { name: "Three", doc: "Names of eight values.", stored: Stored::Names(&[2, 1]) },
    Kind { name: "Four", doc: "Names of sixteen values.", stored: Stored::Names(&[4]) },
    Kind { name: "Byte", doc: "Integers.", stored: Stored::Integers },
    Kind { name: "Float", doc: "Floats that are the upper byte of an f16 with its highest exponent bit left out.",
        stored: Stored::Floats { wide: false } },
    Kind { name: "WideFloat", doc: "Floats that are the upper byte of an f16.", stored: Stored::Floats { wide: true } },
];

/// A plane of a unit.
struct Plane {
    bits: u32,
    /// Bits of a code below its own.
    below: u32,
    /// Lines before its own.
    first: u32,
    /// Groups of four columns in a line.
    quads: u32,
}

impl Plane {
    /// The bit of a byte that the part of a code starts at.
    fn at(&self, quad: &str) -> String {
        if self.bits == 1 {
            format!("{quad} % {}", self.quads)
        } else {
            format!("{} * ({quad} % {})", self.bits, self.quads)
        }
    }
}

/// A number without its lowest bits.
fn shifted(number: &str, bits: u32) -> String {
    if bits == 0 { number.to_owned() } else { format!("({number} >> {bits})") }
}

impl Kind {
    /// Bits of each plane.
    fn widths(&self) -> &'static [u32] {
        if let Stored::Names(widths) = self.stored { widths } else { &[8] }
    }

    fn bits(&self) -> u32 {
        self.widths().iter().sum()
    }

    fn columns(&self) -> u32 {
        32 / self.widths().iter().min().unwrap_or(&8)
    }

    fn planes(&self) -> Vec<Plane> {
        let (mut below, mut first) = (0, 0);
        let plane = |&bits: &u32| {
            let plane = Plane { bits, below, first, quads: 8 / bits };
            (below, first) = (below + bits, first + self.columns() * bits / 32);
            plane
        };
        self.widths().iter().map(plane).collect()
    }

    fn lines(&self) -> u32 {
        self.columns() * self.bits() / 32
    }

    /// Stores a code of a cleared unit.
    fn put(&self) -> String {
        if let Stored::Floats { .. } = self.stored {
            return "unit[0].0[32 * (column / 2) + 2 * row + column % 2] = code;".to_owned();
        }
        if let Stored::Integers = self.stored {
            return "unit[0].0[byte] = code;".to_owned();
        }
        let plane = |plane: &Plane| {
            let part = format!("{} & {}", shifted("code", plane.below), (1 << plane.bits) - 1);
            format!("{}.0[byte] |= ({part}) << ({});", self.line(plane, "quad"), plane.at("quad"))
        };
        self.planes().iter().map(plane).collect()
    }

    /// The line of four columns in a plane.
    fn line(&self, plane: &Plane, quad: &str) -> String {
        match plane.first {
            first if self.columns() == 4 * plane.quads => format!("unit[{first}]"),
            0 => format!("unit[{quad} / {}]", plane.quads),
            first => format!("unit[{first} + {quad} / {}]", plane.quads),
        }
    }

    /// Codes in the low bits of what they are in, which starts at bit `start`; `mask` makes a mask of the bits of one.
    fn gather(&self, quad: &str, start: &str, mask: impl Fn(u32) -> String) -> String {
        let planes = self.planes();
        // A unit of one line is no array.
        let line = |plane: &Plane| if self.lines() == 1 { "unit".to_owned() } else { self.line(plane, quad) };
        let low = format!("l.right({}, bits({start}{}))", line(&planes[0]), planes[0].at(quad));
        planes[1..].iter().fold(low, |code, plane| {
            let own = mask(((1 << plane.bits) - 1) << plane.below);
            let by = format!("({start}{} + {}) % 32", plane.at(quad), 32 - plane.below);
            format!("l.select(l.int({own}), l.rotate({}, bits({by})), {code})", line(plane))
        })
    }

    /// The unit as it is loaded, and the expression of a value and of bytes.
    fn reading(&self) -> [String; 4] {
        let lines: Vec<String> = (0..self.lines()).map(|line| format!("l.line(&lines[{line}])")).collect();
        let one = |held: &str, load: &str, value: &str, bytes: &str| [held, load, value, bytes].map(str::to_owned);
        match self.stored {
            Stored::Names(_) => {
                let value = self.gather("(column / 4)", "8 * (column % 4) + ", |mask| mask.to_string());
                let codes = self.gather("quad", "", |mask| format!("in_each_byte({mask})"));
                let mask = (1 << self.bits()) - 1;
                let (held, load) = match lines.as_slice() {
                    [line] => ("L::Ints".to_owned(), line.clone()),
                    _ => (format!("[L::Ints; {}]", lines.len()), format!("[{}]", lines.join(", "))),
                };
                let bytes = format!("l.and({codes}, l.int(in_each_byte({mask})))");
                [held, load, format!("l.lookup(table, {value})"), bytes]
            }
            Stored::Integers => one(
                "L::Ints",
                "l.line(&lines[0])",
                "let _ = table; l.signed_byte(l.plus_bytes(unit, l.int(in_each_byte(128))), bits(column))",
                "let _ = (l, quad); unit",
            ),
            Stored::Floats { wide } => one(
                "[L::Floats; 4]",
                &format!("l.small_floats(&lines[0], {wide})"),
                "let _ = (l, table); unit[column]",
                // Never asked for: such tensors stand for no integers.
                "let _ = (unit, quad); l.int(0)",
            ),
        }
    }
}

/// The enum of kinds and how each is read.
pub(super) fn write() -> String {
    let (mut variants, mut columns, mut lines, mut bits, mut put) =
        (String::new(), String::new(), String::new(), String::new(), String::new());
    let (mut naming, mut types) = (String::new(), String::new());
    for kind in KINDS {
        let name = kind.name;
        variants += &format!("{}{name},\n", doc(kind.doc));
        columns += &format!("Self::{name} => {},\n", kind.columns());
        lines += &format!("Self::{name} => {},\n", kind.lines());
        bits += &format!("Self::{name} => {},\n", kind.bits());
        put += &format!("Self::{name} => {{ {} }}\n", kind.put());
        if let Stored::Names(_) = kind.stored {
            naming += &format!("_ if bits <= {} => Some(Self::{name}),\n", kind.bits());
        }
        let [held, load, value, bytes] = kind.reading();
        let numbers = [("columns", kind.columns().to_string()), ("lines", kind.lines().to_string())];
        let values = [("name", name.to_owned()), ("held", held), ("load", load), ("value", value), ("bytes", bytes)];
        types += &fill(&fill(CODES, &values), &numbers);
    }
    let values = [("variants", variants), ("columns", columns), ("lines", lines), ("bits", bits), ("put", put)];
    fill(&fill(KIND, &values), &[("naming", naming), ("types", types)])
}

const KIND: &str = "//! Kinds of codes: where the codes of a unit lie, and how they are read.

use super::lanes::Lanes;
use crate::kernels::tiles::Line;

/// How codes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    $variants
}

impl Kind {
    /// The kind that names as many values as codes of some bits do.
    pub(crate) fn naming(bits: u32) -> Option<Self> {
        match bits {
            $naming _ => None,
        }
    }

    /// Columns that are stored together, a unit.
    pub(crate) fn columns(self) -> usize {
        match self { $columns }
    }

    /// Lines of a unit.
    pub(crate) fn lines(self) -> usize {
        match self { $lines }
    }

    /// Bits of a stored code.
    pub(crate) fn bits(self) -> u32 {
        match self { $bits }
    }

    /// Stores a code of a cleared unit.
    pub(crate) fn put(self, unit: &mut [Line], row: usize, column: usize, code: u8) {
        let (quad, byte) = (column / 4, 4 * row + column % 4);
        match self { $put }
    }
}

/// How the codes of a kind are read.
pub(crate) trait Codes {
    /// Columns of a unit.
    const COLUMNS: usize;
    /// Lines of a unit.
    const LINES: usize;
    /// A unit in registers.
    type Unit<L: Lanes>: Copy;

    fn unit<L: Lanes>(l: L, lines: &[Line]) -> Self::Unit<L>;
    /// The values of one column, without scale.
    fn value<L: Lanes>(l: L, unit: Self::Unit<L>, table: L::Table, column: usize) -> L::Floats;
    /// The codes of four columns, one a byte.
    fn bytes<L: Lanes>(l: L, unit: Self::Unit<L>, quad: usize) -> L::Ints;
}

/// A small number of bits.
#[expect(clippy::cast_possible_truncation, reason = \"at most 32\")]
const fn bits(count: usize) -> u32 {
    count as u32
}

/// The same bits in each byte of a lane.
const fn in_each_byte(bits: u8) -> i32 {
    i32::from_le_bytes([bits; 4])
}

$types";

const CODES: &str = "
/// Codes of [`Kind::$name`].
pub(crate) struct $name;

impl Codes for $name {
    const COLUMNS: usize = $columns;
    const LINES: usize = $lines;
    type Unit<L: Lanes> = $held;

    #[inline(always)]
    fn unit<L: Lanes>(l: L, lines: &[Line]) -> $held {
        $load
    }

    #[inline(always)]
    fn value<L: Lanes>(l: L, unit: $held, table: L::Table, column: usize) -> L::Floats {
        $value
    }

    #[inline(always)]
    fn bytes<L: Lanes>(l: L, unit: $held, quad: usize) -> L::Ints {
        $bytes
    }
}
";

/// Products of a table of functions, compiled for each instruction set, and what they are.
#[rustfmt::skip]
const PRODUCTS: &[(Signature, &str)] = &[
    (Signature("float_vector(tiles: &Tiles, x: &FloatInputs, panels: Range<usize>, out: &mut [f32])"),
        "One row of inputs: 16 sums for each panel."),
    (Signature("float_matrix(tiles: &Tiles, x: &FloatInputs, pair: usize, scratch: &mut Scratch, outputs: &mut [&mut [f32]])"),
        "Many rows of inputs and a pair of panels; for each row its outputs of the pair are written."),
    (Signature("int_vector(tiles: &Tiles, x: &IntInputs, panels: Range<usize>, out: &mut [f32])"),
        "One row of 8-bit inputs."),
    (Signature("int_matrix(tiles: &Tiles, x: &IntInputs, pair: usize, scratch: &mut Scratch, outputs: &mut [&mut [f32]])"),
        "Many rows of 8-bit inputs."),
    (Signature("quantize(chunks: &[Chunk], x: &[f32], per_row: bool, q: &mut [i8], steps: &mut [f32], sums: &mut [i32]) -> f32"),
        "Rounds a row to integers, see [`loops::quantize`]."),
];

/// What a loop is compiled for.
#[derive(Clone, Copy)]
enum Of {
    /// Every kind.
    Values,
    /// Kinds that stand for integers.
    Integers,
    /// The same, and what makes bytes of their codes.
    Bytes,
}

/// Loops that are compiled for kinds of codes, as `NAME_of::<L, kind>`.
#[rustfmt::skip]
const LOOPS: &[(Signature, Of)] = &[
    (Signature("float_vector(tiles: &Tiles, x: &FloatInputs, panels: Range<usize>, out: &mut [f32])"), Of::Values),
    (Signature("decode(tiles: &Tiles, panel: usize, half: usize, block: &[Chunk], out: &mut [[f32; ROWS]])"), Of::Values),
    (Signature("int_vector(tiles: &Tiles, integers: Integers, x: &IntInputs, panels: Range<usize>, out: &mut [f32])"), Of::Bytes),
    (Signature("unpack(tiles: &Tiles, integers: Integers, panel: usize, half: usize, block: &[Chunk], scratch: &mut Scratch)"),
        Of::Integers),
];

/// The table of products, an implementation for each instruction set, and the choice by kind.
pub(super) fn write_products() -> String {
    let declared = PRODUCTS.iter().map(|(product, text)| format!("{}{};\n\n", doc(text), product.after("&self")));
    let declared: String = declared.collect();
    let mut sets = implementation("Plain", "", &[2, 1], None);
    for isa in ISAS {
        sets += &implementation(isa.lanes.name, &isa.cfg(), isa.lanes.batches, Some(&list(isa.lanes.features)));
    }
    let chosen: String = LOOPS.iter().map(choice).collect();
    fill(TABLE, &[("declared", declared), ("sets", sets), ("chosen", chosen)])
}

/// A function that calls the loop of a tensor's kind.
fn choice((signature, of): &(Signature, Of)) -> String {
    let (name, names) = (signature.name(), signature.names());
    let arm = |kind: &Kind| {
        let call = |from: &str| format!("{name}_of::<L, codes::{}{from}>(l, {names})", kind.name);
        let from = |source: &str| call(&format!(", {{ bytes::{source} }}"));
        let body = match (of, &kind.stored) {
            (Of::Values, _) | (Of::Integers, Stored::Names(_) | Stored::Integers) => call(""),
            (Of::Bytes, Stored::Names(_)) => format!(
                "match bytes_from(tiles, integers) {{ bytes::TABLE => {}, bytes::SHIFTED => {}, _ => {} }}",
                from("TABLE"),
                from("SHIFTED"),
                from("PLAIN")
            ),
            (Of::Bytes, Stored::Integers) => from("PLAIN"),
            (_, Stored::Floats { .. }) => "{}".to_owned(),
        };
        format!("Kind::{} => {body},\n", kind.name)
    };
    let arms: String = KINDS.iter().map(arm).collect();
    format!(
        "/// Calls the loop for the kind of codes that a tensor has.
        #[inline(always)]
        pub(crate) fn {name}<L: Lanes>(l: L, {}) {{
            match tiles.kind {{ {arms} }}
        }}\n\n",
        signature.list()
    )
}

/// The products in the instructions of some lanes.
fn implementation(lanes: &str, cfg: &str, batches: &[usize], features: Option<&str>) -> String {
    let mut methods = String::new();
    for (product, _) in PRODUCTS {
        let (name, given) = (product.name(), product.names());
        let body = match features {
            None => format!("loops::{name}(*self, {given})"),
            Some(features) => format!(
                "#[target_feature(enable = \"{features}\")]
                fn compiled(lanes: {lanes}, {}){} {{ loops::{name}(lanes, {given}) }}
                // SAFETY: a value of the lanes proves the features.
                unsafe {{ compiled(*self, {given}) }}",
                product.list(),
                product.out()
            ),
        };
        methods += &format!("{} {{ {body} }}\n\n", product.after("&self"));
    }
    format!(
        "{cfg}impl Products for {lanes} {{
            fn batch_sizes(&self) -> &'static [usize] {{ &{batches:?} }}

            {methods}
        }}\n\n"
    )
}

const TABLE: &str = "//! The products, for each instruction set, and for each kind of codes.

#[cfg(any(target_arch = \"x86_64\", target_arch = \"aarch64\"))]
use super::isa::*;
use super::codes::{self, Kind};
use super::lanes::{Lanes, Plain};
use crate::kernels::tiles::pack::{Chunk, Integers, Tiles};
use crate::kernels::tiles::products::{
    self as loops, bytes, bytes_from, decode_of, float_vector_of, int_vector_of, unpack_of,
};
use crate::kernels::tiles::{FloatInputs, IntInputs, ROWS, Scratch};
use std::ops::Range;

/// The products in the instructions of one instruction set, as a table of functions.
pub(crate) trait Products: Sync {
    /// How many rows of inputs go together, the most first.
    fn batch_sizes(&self) -> &'static [usize];

    $declared
}

$sets

$chosen";

#[cfg(test)]
mod tests {
    use super::{Kind, Stored};

    #[test]
    fn the_layout_of_a_unit_follows_from_the_bits_of_its_planes() {
        for (widths, columns, lines) in [(&[2][..], 16, 1), (&[2, 1], 32, 3), (&[4, 1], 32, 5), (&[4, 2], 16, 3)] {
            let kind = Kind { name: "", doc: "", stored: Stored::Names(widths) };
            assert_eq!((kind.columns(), kind.lines()), (columns, lines), "{widths:?}");
            let last = kind.planes().into_iter().last().map(|plane| (plane.below + plane.bits, plane.first));
            assert_eq!(last.map(|(bits, _)| bits), Some(kind.bits()), "{widths:?}");
            assert!(last.is_some_and(|(_, first)| first < lines), "{widths:?}");
        }
    }
}
