//! Mixtures of experts in few bits.
//!
//! The experts of a layer differ in how often they are used and in what they lose to rounding, and so do the three
//! matrices of one expert. This crate chooses a format for each, calibrates so that rare experts get their share, and
//! computes with experts of different formats in one call.
//!
//! ```
//! use moe_quant::{AllocateConfig, Block, Budget, LayerTable, Scheme, Sensitivity, allocate};
//!
//! let schemes: Vec<Scheme> = vec!["int2-g32-asym".parse()?, "int4-g32-asym".parse()?, "int8".parse()?];
//! // Two experts of 64 × 32. The second one's down matrix suffers most.
//! let losses = |scale: f64| [scale * 16.0, scale, scale / 256.0];
//! let delta = [1.0, 1.0, 4.0, 0.5, 0.5, 9.0].into_iter().flat_map(losses).collect();
//! let table = LayerTable::new([64, 32], Sensitivity::new(2, schemes, delta)?, vec![10, 5])?;
//!
//! let config = AllocateConfig { r: 1.0, ..AllocateConfig::new(Budget::Bits(5.5)) };
//! let plan = allocate(&[table], None, &config)?;
//! let bits = |expert, block: Block| plan.scheme(0, expert, block).weight.code_bits();
//! assert_eq!(bits(1, Block::Down), 8);
//! assert_eq!(bits(1, Block::Gate), bits(1, Block::Up));
//! assert!(plan.bits <= 5.5);
//! # Ok::<(), moe_quant::Error>(())
//! ```
//!
//! | item | what |
//! |---|---|
//! | [`Scheme`], [`Sensitivity`] | formats of weight and input; what each costs each block (MxMoE, arXiv 2505.05799) |
//! | [`Profile`] | measured times of a machine, and the time model |
//! | [`allocate()`] | the least `L^r · T^(1−r)` under a budget, exactly |
//! | [`Router`], [`Dispatch`] | from logits to rows sorted by expert |
//! | [`MixedExperts`] | experts of different formats in one call |
//! | [`ExpertGrams`] | gate-weighted Hessians for GPTQ and AWQ; experts without tokens (MoEQuant, arXiv 2505.03804) |
//! | [`ebss()`], [`imbalance`] | calibration text that the model samples itself, balanced over experts |
//! | [`SkipRule`], [`frontier_search`] | skipping experts at run time (MoDES, arXiv 2511.15690) |
//!
//! No model is needed: layers are slices of weights, tokens and router choices.

#![forbid(unsafe_code)]

mod activations;
mod agq;
mod allocate;
mod dispatch;
mod ebss;
mod error;
mod experts;
mod layer;
mod profile;
mod router;
mod scheme;
mod sensitivity;
mod skip;

pub use agq::{ExpertGrams, HessianSource, UnseenExpert};
pub use allocate::{AllocateConfig, Budget, Granularity, LayerTable, LossSum, Plan, Scope, allocate, sweep};
pub use dispatch::Dispatch;
pub use ebss::{
    Counters, Ebss, EbssConfig, EbssError, EbssReport, Filters, LeftOut, ModelError, RoutedModel, Step, ebss, imbalance,
};
pub use error::Error;
pub use experts::{BlockLinear, MixedExperts, Scratch};
pub use layer::{Activation, Block, ExpertWeights, MoeLayer};
pub use profile::{Device, DeviceKind, Profile, SchemeTimes, Tile, TileTimes, crossover_rows};
pub use router::{Router, Scores};
pub use scheme::Scheme;
pub use sensitivity::Sensitivity;
pub use skip::{
    Frontier, FrontierMode, LayerImportance, Modality, SkipRule, SkipStats, frontier_search, threshold_grid,
};

/// A count as a number to compute with; counts of bytes and tokens stay below 2⁵³.
fn real(count: u64) -> f64 {
    count as f64
}

/// The examples of this crate's page in the book.
#[cfg(doctest)]
mod outside {
    #[doc = include_str!("../../../docs/src/moe-quant.md")]
    struct Page;
}
