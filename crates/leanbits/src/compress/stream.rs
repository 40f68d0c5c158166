//! Tensors that need no calibration, one at a time.

use super::Source;
use super::methods::{self, Made};
use super::outcome::{Energy, Outcome};
use super::run::Run;
use crate::encode::{encode, encode_searched, largest_magnitude};
use crate::plan::{Plan, PlannedTensor};
use crate::recipe::Method;
use crate::storage::{Compressed, Section};
use crate::{Error, Progress, StorageLayout};
use std::collections::BTreeMap;

/// Writes tensors that need no calibration.
pub(super) struct Stream<'a> {
    source: &'a Source<'a>,
    plan: &'a Plan,
    layout: StorageLayout,
    /// Largest magnitudes of tensors that share a scale.
    shared: BTreeMap<String, f32>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(source: &'a Source<'a>, plan: &'a Plan, layout: StorageLayout) -> Self {
        Self { source, plan, layout, shared: BTreeMap::new() }
    }

    /// Writes every tensor that is missing.
    pub(super) fn write_all(&mut self, run: &mut Run<'_>, progress: &mut dyn Progress) -> Result<(), Error> {
        for tensor in &self.plan.tensors {
            self.write(run, tensor)?;
            progress.advance(tensor.source_bytes, &tensor.name);
        }
        Ok(())
    }

    /// Writes a tensor if it is missing.
    pub(super) fn write(&mut self, run: &mut Run<'_>, tensor: &PlannedTensor) -> Result<(), Error> {
        if run.is_done(tensor) {
            return Ok(());
        }
        if tensor.is_kept() {
            let sections = run.io.time(|| self.source.kept(&tensor.name))?;
            run.put(tensor, &sections, Outcome::default())?;
        } else {
            let values = run.io.time(|| self.source.read(&tensor.name))?;
            let amax = run.io.time(|| self.shared_amax(tensor))?;
            let (sections, outcome) = run.packing.time(|| {
                let made = round(self.source, tensor, &values, amax)?;
                drop(values);
                Ok::<_, Error>((Section::compressed(&tensor.name, &made.weight, self.layout)?, made.outcome))
            })?;
            run.put(tensor, &sections, outcome)?;
        }
        run.io.time(|| self.source.checkpoint().release_pages());
        Ok(())
    }

    /// The largest magnitude of all tensors that share a scale with this one, found when the first of them is written.
    fn shared_amax(&mut self, tensor: &PlannedTensor) -> Result<Option<f32>, Error> {
        let Some(format) = tensor.packed_format() else { return Ok(None) };
        let Some(key) = self.layout.shared_scale(&tensor.name, format) else { return Ok(None) };
        if let Some(amax) = self.shared.get(&key) {
            return Ok(Some(*amax));
        }
        let mut amax = 0.0_f32;
        for other in self.plan.compressed() {
            let Some(format) = other.packed_format() else { continue };
            if self.layout.shared_scale(&other.name, format).as_ref() == Some(&key) {
                amax = amax.max(largest_magnitude(&self.source.read(&other.name)?));
            }
        }
        self.shared.insert(key, amax);
        Ok(Some(amax))
    }
}

/// Compresses a tensor by a method that looks at nothing else.
pub(super) fn round(
    source: &Source<'_>,
    tensor: &PlannedTensor,
    values: &[f32],
    amax: Option<f32>,
) -> Result<Made, Error> {
    let (packed, errors) = match (&tensor.treatment.method, tensor.packed_format()) {
        (_, None) => return methods::alone(source.path(), tensor, values),
        (Method::Mse(clip), Some(format)) => {
            encode_searched(source.path(), &tensor.name, values, &tensor.shape, format, clip)?
        }
        (_, Some(format)) => encode(source.path(), &tensor.name, values, &tensor.shape, format, amax)?,
    };
    let outcome = Outcome { weights: Some(Energy::of(&errors)), ..Outcome::default() };
    Ok(Made { weight: Compressed::Packed(packed), outcome })
}
