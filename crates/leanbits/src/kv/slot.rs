//! A quantized cache in a decoder's slot, and a meter of what it does to attention.

use crate::models::{BoxError, KvCache, KvRows as ModelRows, KvScratch, KvStep};
use kv_cache_quant::{
    Attention, Factors, FullPrecision, KeyStorage, KvCacheLayer, KvMethod, KvPolicy, KvRows, Mask, Positions,
    QuantizedKv, RopeTable, Workspace,
};
use std::sync::{Arc, Mutex};

/// Every so many tokens the outputs of attention are compared with those over exact rows.
const MEASURED: usize = 4;

/// Squared errors of attention outputs and their squared norms, by layer and query head.
#[derive(Debug)]
pub(crate) struct Meter {
    heads: usize,
    sums: Mutex<Vec<[f64; 2]>>,
}

impl Meter {
    pub(crate) fn new(layers: usize, heads: usize) -> Arc<Self> {
        Arc::new(Self { heads, sums: Mutex::new(vec![[0.0; 2]; layers * heads]) })
    }

    fn add(&self, layer: usize, found: &[f32], exact: &[f32]) {
        let dim = exact.len() / self.heads.max(1);
        let Ok(mut sums) = self.sums.lock() else { return };
        let heads = found.chunks_exact(dim.max(1)).zip(exact.chunks_exact(dim.max(1)));
        for (sum, (found, exact)) in sums.iter_mut().skip(layer * self.heads).zip(heads) {
            for (&x, &y) in found.iter().zip(exact) {
                sum[0] += (f64::from(x) - f64::from(y)).powi(2);
                sum[1] += f64::from(y).powi(2);
            }
        }
    }

    /// Relative error `√(Σ‖Δo‖²/Σ‖o‖²)` of every query head, `[layers, heads]`.
    pub(crate) fn errors(&self) -> Vec<f64> {
        let relative = |[error, signal]: &[f64; 2]| if *error == 0.0 { 0.0 } else { (error / signal).sqrt() };
        self.sums.lock().map(|sums| sums.iter().map(relative).collect()).unwrap_or_default()
    }
}

/// A quantized cache where a decoder expects one. Each token is attended unquantized by itself, and quantized
/// afterwards; attention runs on the packed cache.
#[derive(Debug)]
pub(crate) struct Slot {
    layer: usize,
    cache: QuantizedKv,
    turn: Option<Arc<RopeTable>>,
    factors: Factors,
    /// Exact rows beside it, and where to write how far attention is off.
    exact: Option<(QuantizedKv, Arc<Meter>)>,
    workspace: Workspace,
    keys: Vec<f32>,
    out: Vec<f32>,
}

impl Slot {
    pub(crate) fn new(
        layer: usize,
        cache: QuantizedKv,
        turn: Option<Arc<RopeTable>>,
        factors: Factors,
        meter: Option<Arc<Meter>>,
    ) -> Self {
        let policy = KvPolicy { precision: FullPrecision::F32, ..KvPolicy::default() };
        let plain = || KvMethod::Plain.cache(cache.geometry(), KeyStorage::PostRope, policy, None).ok();
        let exact = meter.and_then(|meter| plain().map(|plain| (plain, meter)));
        Self { layer, cache, turn, factors, exact, workspace: Workspace::default(), keys: Vec::new(), out: Vec::new() }
    }

    /// Keys as they are stored, of tokens that follow those held.
    fn take_back(&mut self, keys: &[f32]) -> Result<(), BoxError> {
        self.keys.clear();
        self.keys.extend_from_slice(keys);
        if let Some(table) = &self.turn {
            let geometry = self.cache.geometry();
            for (at, row) in self.keys.chunks_exact_mut(geometry.key_width()).enumerate() {
                table.unrotate(row, geometry.dim_k, u32::try_from(self.cache.len() + at)?)?;
            }
        }
        Ok(())
    }
}

impl KvCache for Slot {
    fn len(&self) -> usize {
        self.cache.len()
    }

    fn append<'a>(&'a mut self, new: ModelRows<'_>, scratch: &'a mut KvScratch) -> Result<ModelRows<'a>, BoxError> {
        let (geometry, past) = (self.cache.geometry(), self.cache.len());
        scratch.keys.resize(past * geometry.key_width(), 0.0);
        scratch.values.resize(past * geometry.value_width(), 0.0);
        self.cache.dequantize(0..past, &mut scratch.keys, &mut scratch.values)?;
        self.take_back(new.keys)?;
        self.cache.append(KvRows { keys: &self.keys, values: new.values }, Positions::Next)?;
        scratch.keys.extend_from_slice(new.keys);
        scratch.values.extend_from_slice(new.values);
        Ok(ModelRows { keys: &scratch.keys, values: &scratch.values })
    }

    fn attends(&self) -> bool {
        true
    }

    fn attend(&mut self, step: KvStep<'_>, out: &mut [f32]) -> Result<(), BoxError> {
        let mask = match step.window {
            None => Mask::Causal,
            Some(window) => Mask::Sliding(u32::try_from(window).unwrap_or(u32::MAX)),
        };
        let position = self.cache.len();
        self.take_back(step.new.keys)?;
        let fresh = KvRows { keys: &self.keys, values: step.new.values };
        let request = Attention { mask, ..Attention::of(step.queries).with_fresh(fresh).with_factors(self.factors) };
        self.cache.attend(&request, out, &mut self.workspace)?;
        self.cache.append(fresh, Positions::Next)?;
        if let Some((plain, meter)) = &mut self.exact {
            let fresh = KvRows { keys: step.new.keys, values: step.new.values };
            plain.append(fresh, Positions::Next)?;
            if (position + 1).is_multiple_of(MEASURED) {
                self.out.resize(out.len(), 0.0);
                let request = Attention { mask, ..Attention::of(step.queries) };
                plain.attend(&request, &mut self.out, &mut self.workspace)?;
                meter.add(self.layer, out, &self.out);
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.cache.reset();
        if let Some((plain, _)) = &mut self.exact {
            plain.reset();
        }
    }

    fn bytes(&self) -> u64 {
        self.cache.bytes().total()
    }
}
