//! A transformer layer: attention, then a feed-forward block, each behind a norm and added to the stream.

use super::attention::Attention;
use super::mixture::Experts;
use super::mlp::Mlp;
use super::{Link, Parts, Pass};
use crate::loader::Loader;
use crate::norm::Norm;
use crate::ops::{self, Rows};
use crate::outliers::OutlierSite;
use crate::slot::{Role, Slot};
use crate::stream::Stream;
use crate::vector::Vector;
use crate::{Config, Error};

#[derive(Clone, Debug)]
pub(super) struct Transformer {
    pub(super) mixer_norm: Norm,
    pub(super) attention: Attention,
    pub(super) mlp_norm: Norm,
    pub(super) mlp: FeedForward,
}

/// What stands between the two norms of the second half.
#[derive(Clone, Debug)]
pub(super) enum FeedForward {
    Dense(Box<Mlp>),
    Sparse(Box<Experts>),
}

impl Transformer {
    pub(super) fn load(loader: &Loader<'_>, config: &Config, layer: usize) -> Result<Self, Error> {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let norm = |part: &str| Norm::rms(loader, &at(part), config.hidden_size, config.norm_eps);
        Ok(Self {
            mixer_norm: norm("input_layernorm")?,
            attention: Attention::load(loader, config, &at("self_attn"))?,
            mlp_norm: norm("post_attention_layernorm")?,
            mlp: FeedForward::load(loader, config, layer)?,
        })
    }
}

impl FeedForward {
    fn load(loader: &Loader<'_>, config: &Config, layer: usize) -> Result<Self, Error> {
        let name = format!("model.layers.{layer}");
        match &config.mixture {
            Some(mixture) if mixture.layers.get(layer) == Some(&true) => {
                Experts::load(loader, config, mixture, &name).map(|experts| Self::Sparse(experts.into()))
            }
            _ => {
                let (name, inner) = (format!("{name}.mlp"), config.intermediate_size);
                Mlp::load(loader, config, Role::FeedForward, &name, Mlp::PARTS, inner)
                    .map(|mlp| Self::Dense(mlp.into()))
            }
        }
    }

    fn groups(&self) -> Vec<Vec<&Slot>> {
        match self {
            Self::Dense(mlp) => mlp.groups(),
            Self::Sparse(experts) => experts.groups(),
        }
    }

    fn slots_mut(&mut self) -> Vec<&mut Slot> {
        match self {
            Self::Dense(mlp) => mlp.slots_mut(),
            Self::Sparse(experts) => experts.slots_mut(),
        }
    }

    /// The linears that read the block's input.
    fn readers(&self) -> Vec<&Slot> {
        match self {
            Self::Dense(mlp) => vec![&mlp.gate, &mlp.up],
            Self::Sparse(experts) => experts.readers(),
        }
    }

    fn mlps(&self) -> Vec<&Mlp> {
        match self {
            Self::Dense(mlp) => vec![mlp],
            Self::Sparse(experts) => experts.mlps(),
        }
    }

    fn forward(&self, x: &Rows, pass: &mut Pass<'_>) -> Result<Rows, Error> {
        match self {
            Self::Dense(mlp) => mlp.forward(x, pass),
            Self::Sparse(experts) => experts.forward(x, pass),
        }
    }
}

impl Parts for Transformer {
    fn groups(&self) -> Vec<Vec<&Slot>> {
        [self.attention.groups(), self.mlp.groups()].concat()
    }

    fn slots_mut(&mut self) -> Vec<&mut Slot> {
        self.attention.slots_mut().into_iter().chain(self.mlp.slots_mut()).collect()
    }

    fn vectors(&self) -> Vec<&Vector> {
        [self.mixer_norm.vectors(), self.attention.vectors(), self.mlp_norm.vectors()].concat()
    }

    fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        let norm = self.mixer_norm.vectors_mut().into_iter().chain(self.attention.vectors_mut());
        norm.chain(self.mlp_norm.vectors_mut()).collect()
    }

    fn links(&self, site: OutlierSite, config: &Config) -> Vec<Link> {
        match site {
            OutlierSite::Norms => vec![
                Link::from_norm(&self.mixer_norm.vectors(), &self.attention.readers()),
                Link::from_norm(&self.mlp_norm.vectors(), &self.mlp.readers()),
            ],
            OutlierSite::Inner => self.mlp.mlps().iter().map(|mlp| Link::between(&mlp.up, &mlp.down, 1)).collect(),
            OutlierSite::Values => vec![self.attention.value_link(config)],
            OutlierSite::Keys => vec![self.attention.key_link(config)],
        }
    }

    fn forward(&self, x: &Stream, pass: &mut Pass<'_>) -> Result<Stream, Error> {
        let mut middle = self.attention.forward(&self.mixer_norm.of(x.rows())?, pass)?;
        middle.update_with(x.rows(), ops::add)?;
        let mut out = self.mlp.forward(&self.mlp_norm.of(&middle)?, pass)?;
        out.update_with(&middle, ops::add)?;
        Ok(x.with_rows(out))
    }
}
