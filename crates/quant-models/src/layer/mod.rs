//! One layer of a model, whatever its family.

mod attend;
mod attention;
pub(crate) mod graph;
mod link;
mod mixture;
mod mlp;
pub(crate) mod past;
mod recurrence;
mod rwkv6;
mod rwkv7;
mod transformer;

use crate::loader::Loader;
use crate::outliers::OutlierSite;
use crate::slot::Slot;
use crate::stream::{Place, Stream};
use crate::vector::Vector;
use crate::{Config, Error, Family, KvState, Observer};
use candle_core::Tensor;
pub(crate) use link::{End, Link, Side};
use rwkv6::Rwkv6;
use rwkv7::Rwkv7;
use std::sync::Arc;
use transformer::Transformer;

/// One layer of a model: what a layer-by-layer method holds while it works.
///
/// [`crate::Layers::layer`] reads one from a source of weights; [`crate::Decoder::layers`] are the same objects. A clone
/// shares its weights with the original until they are replaced.
#[derive(Clone, Debug)]
pub struct Layer {
    config: Arc<Config>,
    index: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Transformer(Box<Transformer>),
    Rwkv6(Box<Rwkv6>),
    Rwkv7(Box<Rwkv7>),
}

/// What each kind of layer must say about itself.
trait Parts {
    fn groups(&self) -> Vec<Vec<&Slot>>;
    fn slots_mut(&mut self) -> Vec<&mut Slot>;
    fn vectors(&self) -> Vec<&Vector>;
    fn vectors_mut(&mut self) -> Vec<&mut Vector>;
    fn multipliers(&self) -> Vec<&Vector> {
        Vec::new()
    }
    fn multipliers_mut(&mut self) -> Vec<&mut Vector> {
        Vec::new()
    }
    /// The places of a kind where channels may be scaled; none where the family has no such place.
    fn links(&self, site: OutlierSite, config: &Config) -> Vec<Link>;
    fn forward(&self, x: &Stream, pass: &mut Pass<'_>) -> Result<Stream, Error>;
}

/// What one layer runs with.
struct Pass<'a> {
    config: &'a Config,
    layer: usize,
    texts: &'a [Place],
    memory: Option<&'a mut KvState>,
    observer: Option<&'a mut (dyn Observer + 'a)>,
}

/// The same observer for a shorter time.
pub(crate) fn again<'b>(observer: &'b mut Option<&mut (dyn Observer + '_)>) -> Option<&'b mut (dyn Observer + 'b)> {
    match observer {
        Some(observer) => Some(&mut **observer),
        None => None,
    }
}

impl Layer {
    pub(crate) fn load(loader: &Loader<'_>, config: &Arc<Config>, index: usize) -> Result<Self, Error> {
        let kind = match config.family {
            Family::Rwkv6 => Kind::Rwkv6(Rwkv6::load(loader, config, index)?.into()),
            Family::Rwkv7 => Kind::Rwkv7(Rwkv7::load(loader, config, index)?.into()),
            _ => Kind::Transformer(Transformer::load(loader, config, index)?.into()),
        };
        Ok(Self { config: Arc::clone(config), index, kind })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Its place in the model, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The linears that share an input, in the order the groups are computed. A statistic of a group's input, such as
    /// its Gram matrix, has to be gathered once.
    #[must_use]
    pub fn groups(&self) -> Vec<Vec<&Slot>> {
        self.parts().groups()
    }

    /// The linears, in the order of [`Layer::groups`].
    #[must_use]
    pub fn slots(&self) -> Vec<&Slot> {
        self.groups().concat()
    }

    /// The linears, to be given other weights, biases or input formats.
    pub fn slots_mut(&mut self) -> Vec<&mut Slot> {
        self.parts_mut().slots_mut()
    }

    /// The linear of this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSlot`].
    pub fn slot(&self, name: &str) -> Result<&Slot, Error> {
        named(self.slots(), name)
    }

    /// The linear of this name, to be changed.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSlot`].
    pub fn slot_mut(&mut self, name: &str) -> Result<&mut Slot, Error> {
        named_mut(self.slots_mut(), name)
    }

    /// The gains of norms and whatever else is one-dimensional and added or scaled by, but for the biases of linears.
    #[must_use]
    pub fn vectors(&self) -> Vec<&Vector> {
        self.parts().vectors()
    }

    /// The same, to be changed.
    pub fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        self.parts_mut().vectors_mut()
    }

    /// The element-wise multipliers of RWKV, which methods compress beside the linears. Other families have none.
    #[must_use]
    pub fn multipliers(&self) -> Vec<&Vector> {
        self.parts().multipliers()
    }

    /// The same, to be changed.
    pub fn multipliers_mut(&mut self) -> Vec<&mut Vector> {
        self.parts_mut().multipliers_mut()
    }

    /// Runs the layer over a batch of texts, each from its first token on.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`] for a stream of another width; [`Error::Linear`] from slots that are applied directly or
    /// round their input.
    pub fn forward(&self, x: &Stream, observer: Option<&mut dyn Observer>) -> Result<Stream, Error> {
        self.run(x, None, observer.map(|o| o as _))
    }

    pub(crate) fn run(
        &self,
        x: &Stream,
        memory: Option<&mut KvState>,
        observer: Option<&mut (dyn Observer + '_)>,
    ) -> Result<Stream, Error> {
        if x.width() != self.config.hidden_size {
            let (expected, found) = (vec![x.tokens(), self.config.hidden_size], vec![x.tokens(), x.width()]);
            return Err(Error::WeightShape { name: "hidden states".into(), expected, found });
        }
        let (config, texts) = (&*self.config, x.places());
        self.parts()
            .forward(x, &mut Pass { config, layer: self.index, texts, memory, observer: observer.map(|o| o as _) })
    }

    /// The layer over one text as a graph, see [`graph`]; `None` for layers that have none.
    pub(crate) fn trace(
        &self,
        x: &Tensor,
        nudges: Option<[&Tensor; 2]>,
        frame: &graph::Frame<'_>,
    ) -> Result<Option<graph::Traced>, Error> {
        match &self.kind {
            Kind::Transformer(layer) => layer.trace(x, nudges, frame),
            Kind::Rwkv6(_) | Kind::Rwkv7(_) => Ok(None),
        }
    }

    /// The places of a kind where channels may be scaled.
    pub(crate) fn links(&self, site: OutlierSite) -> Vec<Link> {
        self.parts().links(site, &self.config)
    }

    fn parts(&self) -> &dyn Parts {
        match &self.kind {
            Kind::Transformer(layer) => &**layer,
            Kind::Rwkv6(layer) => &**layer,
            Kind::Rwkv7(layer) => &**layer,
        }
    }

    fn parts_mut(&mut self) -> &mut dyn Parts {
        match &mut self.kind {
            Kind::Transformer(layer) => &mut **layer,
            Kind::Rwkv6(layer) => &mut **layer,
            Kind::Rwkv7(layer) => &mut **layer,
        }
    }
}

/// The slot of this name.
pub(crate) fn named<'a>(slots: impl IntoIterator<Item = &'a Slot>, name: &str) -> Result<&'a Slot, Error> {
    slots.into_iter().find(|slot| slot.name() == name).ok_or_else(|| Error::UnknownSlot { name: name.to_owned() })
}

/// The slot of this name, to be changed.
pub(crate) fn named_mut<'a>(slots: impl IntoIterator<Item = &'a mut Slot>, name: &str) -> Result<&'a mut Slot, Error> {
    slots.into_iter().find(|slot| slot.name() == name).ok_or_else(|| Error::UnknownSlot { name: name.to_owned() })
}
