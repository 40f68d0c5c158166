//! Cross-block reconstruction: what it computes is what a cache does token by token, and it never loses.

mod common;

use common::{config, largest_difference, some_tokens, weights, write_folder};
use quant_core::{Format, PackedTensor, Shaped, fake_quantize};
use quant_io::Checkpoint;
use quant_models::{
    Apply, BoxError, Config, Decoder, Error, KvCache, KvGeometry, KvRows, KvScratch, KvState, Layer, Layers, Loss,
    PastRounding, Reconstruction, RoundedBlock, Stream, StreamRounding,
};
use serde_json::{Value, json};

/// Layers of a random model, and texts before the first one.
struct Sample {
    _folder: tempfile::TempDir,
    decoder: Decoder,
    layers: Vec<Layer>,
    texts: Vec<Vec<u32>>,
    streams: Vec<Stream>,
    width: usize,
}

impl Sample {
    fn new(changes: Value, texts: &[usize]) -> Self {
        let json = config(changes);
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &json, &weights(&json, 5));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let layers = Layers::new(Config::from_folder(folder.path()).unwrap(), &checkpoint, Apply::Decoded);
        let texts: Vec<Vec<u32>> = (0..).zip(texts).map(|(seed, tokens)| some_tokens(*tokens, 40, seed)).collect();
        let lent: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let streams = vec![layers.embedding().unwrap().stream(&lent).unwrap()];
        let width = layers.config().kv_geometry().key_width();
        let layers = (0..layers.len()).map(|index| layers.layer(index).unwrap()).collect();
        let decoder = Decoder::open(folder.path()).unwrap();
        Self { _folder: folder, decoder, layers, texts, streams, width }
    }

    /// What the first so many layers make of the texts.
    fn through(&self, layers: usize) -> Vec<Stream> {
        let mut streams = self.streams.clone();
        for layer in &self.layers[..layers] {
            streams = streams.iter().map(|stream| layer.forward(stream, None).unwrap()).collect();
        }
        streams
    }

    /// Shifts and scales that are no round numbers.
    fn past(&self, format: &str, sinks: usize, window: usize) -> PastRounding {
        let stream = |by: f32| StreamRounding {
            format: format.parse().unwrap(),
            shift: (0..self.width).map(|c| (c as f32 * by).sin() * 0.2).collect(),
            scale: (0..self.width).map(|c| 0.8 + (c as f32 * by).cos() * 0.3).collect(),
        };
        PastRounding { keys: stream(1.1), values: stream(0.7), sinks, window }
    }

    fn block(&self, layer: usize, format: &str, past: PastRounding) -> RoundedBlock {
        let layer = &self.layers[layer];
        let formats: Vec<(String, Format)> =
            layer.slots().iter().map(|slot| (slot.name().to_owned(), format.parse().unwrap())).collect();
        RoundedBlock::new(layer, &formats).unwrap().with_past(past).unwrap()
    }
}

/// Keeps rows and gives back what two-dimensional quantization makes of those that are no sinks and not in the window.
#[derive(Debug)]
struct Rounding {
    past: PastRounding,
    geometry: KvGeometry,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Rounding {
    fn read(&self, rows: &[f32], of: &StreamRounding, dim: usize) -> Vec<f32> {
        let width = of.shift.len();
        let tokens = rows.len() / width;
        let held: Vec<f32> =
            fake_quantize("f16".parse().unwrap(), &Shaped::new(rows, &[tokens, width]).unwrap()).unwrap();
        let scaled: Vec<f32> =
            held.iter().enumerate().map(|(at, x)| (x - of.shift[at % width]) / of.scale[at % width]).collect();
        let shape = [scaled.len() / dim, dim];
        let rounded = fake_quantize(of.format, &Shaped::new(&scaled, &shape).unwrap()).unwrap();
        let exact = |token: usize| token < self.past.sinks || token + self.past.window >= tokens;
        let read = |(at, x): (usize, &f32)| match exact(at / width) {
            true => rows[at],
            false => x * of.scale[at % width] + of.shift[at % width],
        };
        rounded.iter().enumerate().map(read).collect()
    }
}

impl KvCache for Rounding {
    fn len(&self) -> usize {
        self.keys.len() / self.geometry.key_width()
    }

    fn append<'a>(&'a mut self, new: KvRows<'_>, scratch: &'a mut KvScratch) -> Result<KvRows<'a>, BoxError> {
        scratch.keys.clear();
        scratch.values.clear();
        if !self.keys.is_empty() {
            scratch.keys = self.read(&self.keys, &self.past.keys, self.geometry.dim_k);
            scratch.values = self.read(&self.values, &self.past.values, self.geometry.dim_v);
        }
        scratch.keys.extend_from_slice(new.keys);
        scratch.values.extend_from_slice(new.values);
        self.keys.extend_from_slice(new.keys);
        self.values.extend_from_slice(new.values);
        Ok(KvRows { keys: &scratch.keys, values: &scratch.values })
    }

    fn reset(&mut self) {
        self.keys.clear();
        self.values.clear();
    }

    fn bytes(&self) -> u64 {
        4 * (self.keys.len() + self.values.len()) as u64
    }
}

#[test]
fn attention_over_a_rounded_past_is_that_of_a_cache_that_is_read_token_by_token() {
    for (changes, sinks, window) in [
        (json!({}), 0, 0),
        (json!({"model_type": "qwen2"}), 2, 3),
        (json!({"model_type": "qwen3", "head_dim": 12}), 1, 0),
        (json!({"model_type": "mistral", "sliding_window": 5}), 0, 1),
    ] {
        let sample = Sample::new(changes.clone(), &[14]);
        let past = sample.past("int4-min", sinks, window);
        let mut state = KvState::with(sample.decoder.config(), |_, geometry: KvGeometry| {
            Box::new(Rounding { past: past.clone(), geometry, keys: Vec::new(), values: Vec::new() })
        });
        let mut expected = Vec::new();
        for token in &sample.texts[0] {
            let hidden = sample.decoder.extend(&[*token], &mut state, None).unwrap();
            expected.extend(sample.decoder.logits(&hidden, 0..1).unwrap());
        }
        let mut stream = sample.streams[0].clone();
        for layer in &sample.layers {
            stream = past.forward(layer, &stream).unwrap();
        }
        let head = sample.decoder.head();
        let found = head.logits(&head.hidden(&stream).unwrap(), 0..14, None).unwrap();
        let exact = common::all_logits(&sample.decoder, &sample.texts[0]);
        let (off, lost) = (largest_difference(&found, &expected), largest_difference(&found, &exact));
        assert!(off < 1e-3 && lost > 20.0 * off, "{changes}: {off} beside {lost} that rounding costs");
    }
}

#[test]
fn one_block_and_squares_is_reconstruction_of_the_blocks_own_output() {
    let sample = Sample::new(json!({}), &[20, 9]);
    let (inputs, targets) = (sample.through(1), sample.through(2));
    let mut block = sample.block(1, "int3-g16-asym", sample.past("int2-min", 1, 0));
    let plain = |block: &RoundedBlock| {
        let mut squares = 0.0;
        let (mut count, mut tokens) = (0.0, 0);
        for (input, target) in inputs.iter().zip(&targets) {
            let found = block.past().unwrap().forward(block.layer(), input).unwrap().values().unwrap();
            let wanted = target.values().unwrap();
            squares += found.iter().zip(&wanted).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
            count += found.len() as f64;
            tokens += input.tokens();
        }
        assert_eq!(tokens, 29);
        squares / count
    };
    let settings =
        Reconstruction { blocks: 1, loss: Loss::Mse, epochs: 4, clip_rate: 0.05, smoothing_rate: 0.01, seed: 1 };
    let start = plain(&block);
    let found = block.reconstruct(&[], &inputs, &targets, &settings).unwrap();
    assert!((found.before / start - 1.0).abs() < 1e-6, "{} beside {start}", found.before);
    assert!((found.after / plain(&block) - 1.0).abs() < 1e-6, "the loss is that of the parameters that are kept");
    assert!(found.after < 0.95 * found.before, "{found:?}");
    assert_eq!(found.epochs.len(), 4);
    // What is encoded is what was simulated.
    for slot in block.layer().slots() {
        let clipped = block.clipped(slot.name()).unwrap();
        let shaped = Shaped::new(&clipped, &slot.shape()).unwrap();
        let stored = PackedTensor::encode("int3-g16-asym".parse().unwrap(), &shaped).unwrap().decode();
        assert_eq!(stored, slot.weight().unwrap(), "{}", slot.name());
    }
}

#[test]
fn what_is_returned_is_the_best_that_was_seen_however_wild_the_steps() {
    let sample = Sample::new(json!({"num_hidden_layers": 4}), &[16, 12, 12]);
    let (inputs, targets) = (sample.streams.clone(), sample.through(3));
    for rate in [1.0, 0.02] {
        for loss in [Loss::Mae, Loss::Mse] {
            let mut block = sample.block(0, "int3-g16-asym", sample.past("int2-min", 0, 0));
            let settings =
                Reconstruction { blocks: 3, loss, epochs: 3, clip_rate: rate, smoothing_rate: rate, seed: 7 };
            let found = block.reconstruct(&sample.layers[1..3], &inputs, &targets, &settings).unwrap();
            let best = found.epochs.iter().copied().fold(found.before, f64::min);
            assert_eq!(found.after, best, "{found:?}");
            let nothing = Reconstruction { epochs: 0, ..settings.clone() };
            let again = block.reconstruct(&sample.layers[1..3], &inputs, &targets, &nothing).unwrap();
            assert_eq!((again.before, again.after), (best, best), "the loss of the parameters themselves");
            if rate < 1.0 {
                assert!(found.after < 0.97 * found.before, "{found:?}");
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_parameters() {
    let sample = Sample::new(json!({}), &[10, 8, 6]);
    let learned = |seed: u64| {
        let mut block = sample.block(0, "int4-g16-asym", sample.past("int4-min", 0, 0));
        let settings = Reconstruction { blocks: 2, epochs: 2, seed, ..Reconstruction::default() };
        let found = block.reconstruct(&sample.layers[1..], &sample.streams, &sample.through(2), &settings).unwrap();
        (found.epochs, block.past().cloned())
    };
    assert_eq!(learned(3), learned(3));
    assert_ne!(learned(3), learned(4), "another order of the texts");
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let sample = Sample::new(json!({}), &[8]);
    let layer = &sample.layers[0];
    let name = "model.layers.0.mlp.up_proj".to_owned();
    let symmetric = RoundedBlock::new(layer, &[(name.clone(), Format::INT4_G128)]);
    assert!(matches!(symmetric, Err(Error::BadSetting { .. })), "{symmetric:?}");
    let unknown = RoundedBlock::new(layer, &[("elsewhere".to_owned(), Format::INT4_G128_ASYM)]);
    assert!(matches!(unknown, Err(Error::UnknownSlot { .. })));
    let block = || RoundedBlock::new(layer, &[(name.clone(), Format::INT4_G128_ASYM)]).unwrap();
    let mut short = sample.past("int4-min", 0, 0);
    short.keys.shift.pop();
    assert!(matches!(block().with_past(short), Err(Error::WeightShape { .. })));
    let mut flat = sample.past("int4-min", 0, 0);
    flat.values.scale[3] = 0.0;
    assert!(matches!(block().with_past(flat), Err(Error::NonFiniteWeight { index: 3, .. })));
    assert!(matches!(block().with_past(sample.past("int4", 0, 0)), Err(Error::BadSetting { .. })));

    let settings = Reconstruction::default();
    let with = |settings: &Reconstruction, inputs: &[Stream], targets: &[Stream]| {
        block().reconstruct(&[], inputs, targets, settings).unwrap_err()
    };
    let targets = sample.through(1);
    let none = with(&settings, &[], &[]);
    assert!(matches!(none, Error::TooFewTokens { .. }), "{none}");
    let other = with(&settings, &sample.streams, &Sample::new(json!({}), &[7]).streams);
    assert!(matches!(other, Error::WeightShape { .. }), "{other}");
    for bad in [
        Reconstruction { blocks: 0, ..settings.clone() },
        Reconstruction { clip_rate: f64::NAN, ..settings.clone() },
        Reconstruction { smoothing_rate: -0.1, ..settings.clone() },
    ] {
        let refused = with(&bad, &sample.streams, &targets);
        assert!(matches!(refused, Error::BadSetting { .. }), "{refused}");
    }
    let huge = targets[0].with_values(vec![f32::INFINITY; targets[0].tokens() * targets[0].width()]).unwrap();
    let infinite = with(&settings, &sample.streams, &[huge]);
    assert!(matches!(infinite, Error::NonFiniteLoss { layer: 0 }), "{infinite}");
}
