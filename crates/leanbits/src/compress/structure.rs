//! What a model consists of, known from its configuration and the shapes of its tensors before a weight is read.

use super::Source;
use crate::Error;
use crate::models::{Apply, Config, Error as ModelError, Layer, Layers, Origin, Role, Slot, WeightSource};
use quant_core::Linear;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A model as a sequence of layers.
#[derive(Clone, Debug)]
pub(super) struct Structure {
    pub(super) config: Config,
    pub(super) layers: Vec<LayerShape>,
}

/// The tensors of one layer and the linears that are made of them.
#[derive(Clone, Debug)]
pub(super) struct LayerShape {
    /// Names of the tensors of the checkpoint that belong to the layer.
    pub(super) tensors: BTreeSet<String>,
    pub(super) slots: Vec<SlotShape>,
    /// Names of its element-wise multipliers.
    pub(super) multipliers: Vec<String>,
}

/// One linear of a layer.
#[derive(Clone, Debug)]
pub(super) struct SlotShape {
    pub(super) name: String,
    pub(super) shape: [usize; 2],
    pub(super) origin: Origin,
    pub(super) role: Role,
    /// Linears of one group see the same input.
    pub(super) group: usize,
    /// Inputs of linears of one stage do not depend on each other; stages follow one another.
    pub(super) stage: usize,
}

impl SlotShape {
    /// The head, which is in no layer.
    pub(super) fn of_head(slot: &Slot) -> Self {
        let (name, origin) = (slot.name().to_owned(), slot.origin().clone());
        Self { name, shape: slot.shape(), origin, role: slot.role(), group: 0, stage: 0 }
    }

    /// Whether it mixes tokens, so that it stands before the feed-forward block.
    pub(super) fn mixes(&self) -> bool {
        mixes(self.role)
    }
}

fn mixes(role: Role) -> bool {
    matches!(role, Role::Mixer | Role::LowRank)
}

impl Structure {
    /// Finds the layers of a model without reading its weights.
    pub(super) fn new(source: &Source<'_>, config: &Config) -> Result<Self, Error> {
        let shapes = Shapes { source, asked: RefCell::default() };
        let layers = Layers::new(config.clone(), &shapes, Apply::Decoded);
        let layer = |index| {
            shapes.asked.borrow_mut().clear();
            let layer = layers.layer(index)?;
            let multipliers = layer.multipliers().iter().map(|vector| vector.name().to_owned()).collect();
            Ok(LayerShape { tensors: shapes.asked.take(), slots: slots(&layer), multipliers })
        };
        Ok(Self { config: config.clone(), layers: (0..layers.len()).map(layer).collect::<Result<_, Error>>()? })
    }

    /// The layer that a tensor belongs to.
    pub(super) fn layer_of(&self, tensor: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.tensors.contains(tensor))
    }
}

impl LayerShape {
    /// The linears whose weights lie in a tensor, in the order of its rows.
    pub(super) fn slots_of<'a>(&'a self, tensor: &str) -> Vec<&'a SlotShape> {
        let mut slots: Vec<&SlotShape> = self.slots.iter().filter(|slot| slot.origin.tensor == tensor).collect();
        slots.sort_by_key(|slot| slot.origin.rows.start);
        slots
    }

    /// The multipliers that a tensor holds, one after the other: itself, or those that RWKV-7 stacks in one tensor,
    /// `x_r`, `x_w`, … in `x_rwkvag`.
    pub(super) fn multipliers_of(&self, tensor: &str) -> Vec<String> {
        let known = |name: &String| self.multipliers.contains(name);
        if known(&tensor.to_owned()) {
            return vec![tensor.to_owned()];
        }
        let Some((stem, letters)) = tensor.rsplit_once('_') else { return Vec::new() };
        let names: Vec<String> = letters.chars().map(|letter| format!("{stem}_{letter}")).collect();
        if names.len() > 1 && names.iter().all(known) { names } else { Vec::new() }
    }

    /// Number of stages.
    pub(super) fn stages(&self) -> usize {
        self.slots.iter().map(|slot| slot.stage + 1).max().unwrap_or(0)
    }
}

fn slots(layer: &Layer) -> Vec<SlotShape> {
    let groups = layer.groups();
    let stages = stages(&groups.iter().map(|group| group.first().map(|slot| slot.role())).collect::<Vec<_>>());
    let mut slots = Vec::new();
    for (group, (members, stage)) in groups.iter().zip(stages).enumerate() {
        slots.extend(members.iter().map(|slot| SlotShape {
            name: slot.name().to_owned(),
            shape: slot.shape(),
            origin: slot.origin().clone(),
            role: slot.role(),
            group,
            stage,
        }));
    }
    slots
}

/// The stage of each group, from the roles of the groups in the order they are computed.
///
/// Groups of one part of a layer (attention, feed-forward block, one expert) follow one another; experts, the shared
/// expert and the router stand side by side.
fn stages(roles: &[Option<Role>]) -> Vec<usize> {
    let mixes = |role: &Option<Role>| role.is_some_and(mixes);
    let (mut first, mut next) = (0, 0);
    let mut stages = Vec::with_capacity(roles.len());
    for (at, role) in roles.iter().enumerate() {
        if at > 0 && mixes(role) != mixes(&roles[at - 1]) {
            first = next;
        }
        let same_part = |other: &&Option<Role>| *other == role || (mixes(role) && mixes(other));
        let start = stages.iter().position(|stage| *stage >= first).unwrap_or(at);
        let stage = first + roles[start..at].iter().filter(same_part).count();
        next = next.max(stage + 1);
        stages.push(stage);
    }
    stages
}

/// Weights of the right shapes that are all zero, and a list of what was asked for.
struct Shapes<'a> {
    source: &'a Source<'a>,
    asked: RefCell<BTreeSet<String>>,
}

impl WeightSource for Shapes<'_> {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.asked.borrow_mut().insert(name.to_owned());
        Ok(vec![0.0; self.shape(name).unwrap_or_default().iter().product()])
    }

    fn linear(&self, _name: &str) -> Result<Option<Arc<dyn Linear>>, ModelError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_a_part_follow_one_another_and_experts_stand_side_by_side() {
        let of = |roles: &[Role]| stages(&roles.iter().copied().map(Some).collect::<Vec<_>>());
        use Role::{Expert, FeedForward, LowRank, Mixer, Router, SharedExpert};
        assert_eq!(of(&[Mixer, Mixer, FeedForward, FeedForward]), [0, 1, 2, 3], "q k v, o, gate up, down");
        let mixture = [Mixer, Mixer, Router, Expert(0), Expert(0), Expert(1), Expert(1), SharedExpert, SharedExpert];
        assert_eq!(of(&mixture), [0, 1, 2, 2, 3, 2, 3, 2, 3], "experts are done together");
        assert_eq!(of(&[Mixer, LowRank, Mixer, FeedForward]), [0, 1, 2, 3], "halves of pairs in their order");
    }
}
