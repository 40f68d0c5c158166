//! From a method and a shape to the form that a tensor will be stored in, before a value is read.

use super::methods::Refused;
use crate::recipe::{Choice, Corrected, Method, RwkvQuant};
use crate::storage::{Form, RotationForm, VectorForm, as_matrix};
use low_rank::{Size, Storage};
use quant_core::Format;
use vector_quant::rwkvquant::MultiplierConfig;
use vector_quant::{BooksHeader, FixedBook, GptvqConfig, KMeansVq};

/// A form, and what is to be said about it.
pub(super) struct Chosen {
    pub(super) form: Form,
    pub(super) note: Option<String>,
}

impl From<Form> for Chosen {
    fn from(form: Form) -> Self {
        Self { form, note: None }
    }
}

/// The form of a tensor that a method compresses; `None` for a choice to keep it.
pub(super) fn of(method: &Method, choice: Choice, shape: &[usize]) -> Result<Option<Chosen>, Refused> {
    let matrix = as_matrix(shape);
    Ok(Some(match (choice, method) {
        (Choice::Keep, _) => return Ok(None),
        (Choice::Quantize(format), Method::Corrected(corrected)) => corrected_form(corrected, format, matrix)?.into(),
        (Choice::Quantize(format), method) => match method.ranks().and_then(|ranks| ranks.size()) {
            Some(size) => factors(size, format, matrix)?,
            None => Form::Packed(format).into(),
        },
        (Choice::Vectors, method) => Form::Vectors(vectors(method, matrix)?).into(),
    }))
}

/// Two factors, or the whole weight where two factors would not be smaller.
fn factors(size: Size, format: Format, [rows, columns]: [usize; 2]) -> Result<Chosen, Refused> {
    let factors = Storage::Packed(format);
    let rank = match size {
        // Above any break-even.
        Size::Rank(rank) if rank > rows.min(columns) => rank,
        size => size.rank(rows, columns, 1)?,
    };
    let pair = factors.bytes(rows, rank)? + factors.bytes(rank, columns)?;
    if pair >= factors.bytes(rows, columns)? {
        let note = format!("kept whole: two factors of rank {rank} would not be smaller");
        return Ok(Chosen { form: Form::Packed(format), note: Some(note) });
    }
    Ok(Form::LowRank { rank, factors }.into())
}

fn corrected_form(corrected: &Corrected, base: Format, [rows, columns]: [usize; 2]) -> Result<Form, Refused> {
    let rank = Size::Rank(corrected.rank).rank(rows, columns, 1)?;
    Ok(Form::Corrected { base, rank, factors: corrected.factors })
}

fn vectors(method: &Method, [rows, columns]: [usize; 2]) -> Result<VectorForm, Refused> {
    // 0 stands for all.
    let group = |of: usize, all: usize| if of == 0 { all } else { of.min(all) };
    if let Some(rotated) = method.rotated() {
        let books = match rotated.book {
            FixedBook::Polar(config) => BooksHeader::Polar { config },
            FixedBook::E8pTwice => BooksHeader::E8pTwice { gain: vector_quant::E8P::RESIDUAL_GAIN },
            _ => BooksHeader::E8p,
        };
        let rotation = RotationForm::largest(columns, rotated.seed).map_err(vector_quant::Error::from)?;
        return Ok(VectorForm { books, row_scales: true, rotation: Some(rotation) });
    }
    let books = match method {
        Method::Gptvq(GptvqConfig { dim, bits, rows: r, columns: c, values, .. })
        | Method::Kmeans(KMeansVq { dim, bits, rows: r, columns: c, values, .. }) => BooksHeader::Learned {
            dim: *dim,
            bits: *bits,
            values: *values,
            rows: group(*r, rows),
            columns: group(*c, columns),
        },
        _ => return Err(Refused::Unsuitable("it makes no codes of vectors")),
    };
    Ok(VectorForm { books, row_scales: false, rotation: None })
}

/// The form of a tensor of multipliers, each row of which has code books of its own.
pub(super) fn multiplier(config: &RwkvQuant, shape: &[usize]) -> Form {
    let MultiplierConfig { bits, group, values, .. } = config.multiplier;
    let [_, columns] = as_matrix(shape);
    let books = BooksHeader::Learned { dim: 1, bits, values, rows: 1, columns: group.clamp(1, columns.max(1)) };
    Form::Vectors(VectorForm { books, row_scales: false, rotation: None })
}
