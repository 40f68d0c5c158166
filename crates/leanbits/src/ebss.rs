//! Calibration text that a mixture of experts writes itself (MoEQuant's EBSS).

use crate::models::{
    Config, Decoder, Error as ModelFault, KvCache, KvRows, KvScratch, KvState, Observer, PlainKvCache, Routing,
};
use crate::{Error, Progress};
use moe_quant::{Ebss, EbssConfig, ModelError, RoutedModel, Step, ebss};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Samples calibration text from a model folder: token ids with their report, for `compress`.
///
/// Text is at most as long as the model reads. The ids are the same for any number of threads.
///
/// # Errors
///
/// [`Error::Experts`] for settings that make no sense and for models without a mixture, [`Error::Model`].
pub fn sample_calibration(
    model: impl AsRef<Path>,
    config: &EbssConfig,
    progress: &mut dyn Progress,
) -> Result<Ebss, Error> {
    let model = model.as_ref();
    let decoder = Decoder::open(model)?;
    let config = EbssConfig { length: config.length.min(decoder.config().max_positions), ..config.clone() };
    progress.begin("sampling", config.sequences as u64);
    let (mut done, sequences) = (0, config.sequences);
    let sampled = ebss(&Sampled(&decoder), &config, &mut |finished| {
        progress.advance((finished - done) as u64, &format!("{finished} of {sequences} sequences"));
        done = finished;
    });
    progress.end();
    sampled.map_err(|source| Error::Sampling { model: model.to_owned(), source: Box::new(source) })
}

/// Reads what [`sample_calibration`] gave, as it is saved by serde.
pub(crate) fn parse(text: &[u8]) -> Result<Ebss, serde_json::Error> {
    serde_json::from_slice(text)
}

/// A decoder whose routing is seen.
struct Sampled<'a>(&'a Decoder);

/// A cache that can be copied while a [`KvState`] owns it.
#[derive(Clone, Debug)]
struct Shared {
    cache: Arc<Mutex<PlainKvCache>>,
    /// What it last lent.
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache for Shared {
    fn len(&self) -> usize {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn append<'a>(
        &'a mut self,
        new: KvRows<'_>,
        scratch: &'a mut KvScratch,
    ) -> Result<KvRows<'a>, crate::models::BoxError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = cache.append(new, scratch)?;
        (self.keys, self.values) = (rows.keys.to_vec(), rows.values.to_vec());
        drop(cache);
        Ok(KvRows { keys: &self.keys, values: &self.values })
    }

    fn reset(&mut self) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).reset();
    }

    fn bytes(&self) -> u64 {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).bytes()
    }
}

/// What the model remembers of a branch.
struct Past {
    state: KvState,
    caches: Vec<Arc<Mutex<PlainKvCache>>>,
}

impl Past {
    fn new(config: &Config, copied: Option<&Self>) -> Self {
        let mut caches = Vec::new();
        let state = KvState::with(config, |layer, geometry| {
            let held = copied
                .and_then(|past| past.caches.get(layer))
                .map(|cache| cache.lock().unwrap_or_else(PoisonError::into_inner).clone());
            let cache = Arc::new(Mutex::new(held.unwrap_or_else(|| PlainKvCache::new(geometry))));
            caches.push(Arc::clone(&cache));
            Box::new(Shared { cache, keys: Vec::new(), values: Vec::new() })
        });
        Self { state, caches }
    }
}

/// The choices for one token, by mixture layer.
#[derive(Default)]
struct Choices(Vec<Vec<u32>>);

impl Observer for Choices {
    fn input(&mut self, _slot: &str, _features: usize, _input: &[f32]) {}

    fn routing(&mut self, routing: &Routing<'_>) {
        self.0.push(routing.ids.iter().map(|id| u32::try_from(*id).unwrap_or(u32::MAX)).collect());
    }
}

impl RoutedModel for Sampled<'_> {
    type Past = Mutex<Past>;

    fn vocabulary(&self) -> usize {
        self.0.config().vocab_size
    }

    fn mixtures(&self) -> Vec<(usize, usize)> {
        let of = |mixture: &crate::models::Mixture| {
            mixture.layers.iter().filter(|is| **is).map(|_| (mixture.experts, mixture.top_k)).collect()
        };
        self.0.config().mixture.as_ref().map(of).unwrap_or_default()
    }

    fn begin(&self) -> Result<Mutex<Past>, ModelError> {
        Ok(Mutex::new(Past::new(self.0.config(), None)))
    }

    fn fork(&self, past: &Mutex<Past>) -> Result<Mutex<Past>, ModelError> {
        let past = past.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Mutex::new(Past::new(self.0.config(), Some(&past))))
    }

    fn step(&self, past: &mut Mutex<Past>, token: u32) -> Result<Step, ModelError> {
        let past = past.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut choices = Choices::default();
        let run = |past: &mut Past, choices: &mut Choices| -> Result<Vec<f32>, ModelFault> {
            let hidden = self.0.extend(&[token], &mut past.state, Some(choices))?;
            self.0.logits(&hidden, 0..1)
        };
        Ok(Step { log_probs: run(past, &mut choices)?, experts: choices.0 })
    }
}
