//! Fisher information of the weights that a method weighs by it: the original model, once forwards and once back over each
//! window of the calibration text. It is in memory as a whole meanwhile, in the basis of the recipe.

use super::calibration::Windows;
use super::source::{HEAD, Source};
use super::structure::{SlotShape, Structure};
use crate::models::{Apply, Decoder, weight_gradients};
use crate::plan::Treatment;
use crate::{Error, Progress};
use low_rank::Fisher;
use std::collections::{BTreeMap, BTreeSet};

/// By the names of linears.
#[derive(Debug, Default)]
pub(super) struct Information(BTreeMap<String, Fisher>);

impl Information {
    /// What is known of a linear.
    pub(super) fn of(&self, slot: &SlotShape) -> Option<&Fisher> {
        self.0.get(&slot.name)
    }

    /// Gathers it for all linears that are treated by a method which reads it; nothing where there are none.
    pub(super) fn gather(
        source: &Source<'_>,
        structure: &Structure,
        windows: &Windows,
        treatments: &[Treatment],
        progress: &mut dyn Progress,
    ) -> Result<Self, Error> {
        let asked = source.entries().iter().zip(treatments).filter(|(_, t)| t.method.needs_gradients());
        let asked: BTreeSet<&str> = asked.map(|(entry, _)| entry.name.as_str()).collect();
        if asked.is_empty() {
            return Ok(Self::default());
        }
        let decoder = Decoder::from_source(structure.config.clone(), source, Apply::Decoded)?;
        let slots = structure.layers.iter().flat_map(|layer| &layer.slots);
        let mut found: BTreeMap<String, Fisher> = slots
            .filter(|slot| asked.contains(slot.origin.tensor.as_str()))
            .map(|slot| (slot.name.clone(), Fisher::new(slot.shape[0], slot.shape[1])))
            .collect();
        if asked.contains(HEAD) {
            let head = decoder.head().slot();
            found.insert(head.name().to_owned(), Fisher::new(head.shape()[0], head.shape()[1]));
        }
        let wanted = found.keys().cloned().collect();
        progress.begin("differentiating", windows.report.tokens as u64);
        for text in &windows.texts {
            let mut refused = None;
            weight_gradients(&decoder, text, &wanted, |name, gradient| {
                if let Some(Err(error)) = found.get_mut(name).map(|fisher| fisher.add(gradient)) {
                    refused = Some((name.to_owned(), error));
                }
            })?;
            if let Some((tensor, error)) = refused {
                let file = source.path().to_owned();
                return Err(Error::LowRank { file, tensor, source: Box::new(error) });
            }
            progress.advance(text.len() as u64, "");
        }
        progress.end();
        Ok(Self(found))
    }
}
