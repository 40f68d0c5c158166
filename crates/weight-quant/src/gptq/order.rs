//! In which order the columns are quantized.

use serde::{Deserialize, Serialize};

/// The order in which GPTQ quantizes the columns of a weight. Columns that come late can make up for fewer others,
/// so important ones should come early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As they stand (the paper).
    #[default]
    Natural,
    /// By falling diagonal of the Hessian (`desc_act`). Groups keep their columns, so that they have to be static
    /// where a row has more than one: groups in this order would need an index of groups beside the weight.
    ActOrder,
    /// By falling diagonal inside each group, groups by their largest diagonal (GPTQModel's group-aware order).
    /// Groups stay whole, so that they may be fitted when they are reached.
    GroupAware,
}

impl Order {
    /// The columns in this order; equal diagonals keep theirs. `group` columns form a group, the last may be shorter.
    #[must_use]
    pub fn columns(self, diagonal: &[f64], group: usize) -> Vec<usize> {
        let mut columns: Vec<usize> = (0..diagonal.len()).collect();
        let falling = |a: &usize, b: &usize| diagonal[*b].total_cmp(&diagonal[*a]);
        match self {
            Self::Natural => columns,
            Self::ActOrder => {
                columns.sort_by(falling);
                columns
            }
            Self::GroupAware => {
                let mut groups: Vec<&mut [usize]> = columns.chunks_mut(group.max(1)).collect();
                for group in &mut groups {
                    group.sort_by(falling);
                }
                groups.sort_by(|a, b| falling(&a[0], &b[0]));
                groups.into_iter().flat_map(|group| group.iter().copied()).collect()
            }
        }
    }

    /// Where each group ends in this order; one end for all where groups do not stay whole.
    #[must_use]
    pub fn group_ends(self, columns: &[usize], group: usize) -> Vec<usize> {
        if self == Self::ActOrder {
            return vec![columns.len()];
        }
        let of = |position: usize| columns[position] / group.max(1);
        (1..=columns.len()).filter(|&end| end == columns.len() || of(end) != of(end - 1)).collect()
    }
}
