//! Reading with a key-value cache, in parts and token by token.

mod common;

use common::{all_logits, config, largest_difference, random_model, some_tokens};
use quant_models::eval::{Recording, Stepwise, WindowOptions, Windows};
use quant_models::{
    BoxError, Decoder, Error, KvCache, KvGeometry, KvRows, KvScratch, KvState, KvStep, PlainKvCache, Tokens,
};
use serde_json::{Value, json};

/// Logits of a text read in parts of these sizes.
fn in_parts(model: &Decoder, tokens: &[u32], sizes: &[usize], cache: &mut KvState) -> Vec<f32> {
    let mut rest = tokens;
    let mut out = Vec::new();
    for size in sizes.iter().copied().cycle() {
        let (part, after) = rest.split_at(size.min(rest.len()));
        let hidden = model.extend(part, cache, None).unwrap();
        out.extend(model.logits(&hidden, 0..hidden.rows()).unwrap());
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    out
}

fn variants() -> Vec<Value> {
    vec![
        json!({}),
        json!({"model_type": "mistral", "sliding_window": 6}),
        json!({"model_type": "qwen2"}),
        json!({"model_type": "qwen3", "head_dim": 12}),
        json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ]
}

#[test]
fn any_cutting_of_a_text_gives_the_logits_of_the_whole() {
    for changes in variants() {
        let model = random_model(&config(changes.clone()), 1);
        let tokens = some_tokens(41, 40, 1);
        let whole = all_logits(&model, &tokens);
        for sizes in [&[1][..], &[2], &[7], &[40, 1], &[1, 40], &[41], &[3, 1, 1, 9]] {
            let mut cache = KvState::plain(model.config());
            let parts = in_parts(&model, &tokens, sizes, &mut cache);
            let difference = largest_difference(&whole, &parts);
            assert!(difference < 3e-5, "{changes} cut at {sizes:?} differs by {difference}");
            assert_eq!(cache.len(), 41, "the cache holds the text");
            assert_eq!(cache.bytes(), 2 * 41 * model.config().kv_geometry().key_width() as u64 * 2 * 4, "and no more");
        }
    }
}

#[test]
fn texts_of_a_batch_do_not_see_each_other() {
    let model = random_model(&config(json!({})), 2);
    let texts: Vec<Vec<u32>> = [5, 17, 1, 9].iter().map(|n| some_tokens(*n, 40, *n as u64)).collect();
    let refs: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let hidden = model.hidden(&refs, None).unwrap();
    let batch = model.logits(&hidden, 0..32).unwrap();
    let single: Vec<f32> = texts.iter().flat_map(|text| all_logits(&model, text)).collect();
    assert!(largest_difference(&batch, &single) < 1e-5, "{}", largest_difference(&batch, &single));
}

#[test]
fn dynamic_scaling_of_a_batch_depends_on_each_text_alone() {
    let changes = json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8});
    let model = random_model(&config(changes), 2);
    let (short, long) = (some_tokens(6, 40, 1), some_tokens(30, 40, 2));
    let hidden = model.hidden(&[&short, &long], None).unwrap();
    let batch = model.logits(&hidden, 0..36).unwrap();
    let single = [all_logits(&model, &short), all_logits(&model, &long)].concat();
    assert!(largest_difference(&batch, &single) < 1e-5, "{}", largest_difference(&batch, &single));
}

#[test]
fn logits_of_some_rows_are_those_rows_of_all() {
    let model = random_model(&config(json!({})), 3);
    let tokens = some_tokens(10, 40, 3);
    let hidden = model.hidden(&[&tokens], None).unwrap();
    let all = all_logits(&model, &tokens);
    assert!(largest_difference(&model.logits(&hidden, 4..7).unwrap(), &all[160..280]) < 1e-5, "rows 4 to 6");
    assert!(model.logits(&hidden, 3..3).unwrap().is_empty(), "no rows");
    let error = model.logits(&hidden, 4..11).unwrap_err();
    assert!(matches!(error, Error::BadSetting { name: "rows", .. }), "{error}");
}

#[test]
fn a_reset_cache_is_as_good_as_new() {
    let model = random_model(&config(json!({})), 4);
    let tokens = some_tokens(8, 40, 4);
    let mut cache = KvState::plain(model.config());
    let first = in_parts(&model, &tokens, &[3], &mut cache);
    cache.reset();
    assert!(cache.is_empty(), "nothing is held");
    assert_eq!(in_parts(&model, &tokens, &[3], &mut cache), first, "bit for bit");
}

/// A cache that rounds what it keeps, decodes into the scratch buffers, and shows new tokens unrounded.
#[derive(Debug)]
struct Rounding(PlainKvCache);

impl KvCache for Rounding {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn append<'a>(&'a mut self, new: KvRows<'_>, scratch: &'a mut KvScratch) -> Result<KvRows<'a>, BoxError> {
        let round = |x: &[f32]| x.iter().map(|v| (v * 4.0).round() / 4.0).collect::<Vec<f32>>();
        let (keys, values) = (round(new.keys), round(new.values));
        let mut unused = KvScratch::default();
        let kept = self.0.append(KvRows { keys: &keys, values: &values }, &mut unused)?;
        scratch.keys.clear();
        scratch.keys.extend(&kept.keys[..kept.keys.len() - new.keys.len()]);
        scratch.keys.extend(new.keys);
        scratch.values.clear();
        scratch.values.extend(&kept.values[..kept.values.len() - new.values.len()]);
        scratch.values.extend(new.values);
        Ok(KvRows { keys: &scratch.keys, values: &scratch.values })
    }
    fn reset(&mut self) {
        self.0.reset();
    }
    fn bytes(&self) -> u64 {
        self.0.bytes() / 4
    }
}

#[test]
fn any_cache_can_be_plugged_in_and_decides_what_attention_reads() {
    let model = random_model(&config(json!({})), 5);
    let tokens = some_tokens(20, 40, 5);
    let whole = all_logits(&model, &tokens);
    let rounding = || KvState::with(model.config(), |_, geometry| Box::new(Rounding(PlainKvCache::new(geometry))));
    let at_once = in_parts(&model, &tokens, &[20], &mut rounding());
    assert!(largest_difference(&whole, &at_once) < 1e-5, "new tokens are read as they are");
    let mut cache = rounding();
    let in_steps = in_parts(&model, &tokens, &[1], &mut cache);
    assert!(largest_difference(&whole, &in_steps) > 1e-3, "old tokens are read rounded");
    assert_eq!(cache.bytes(), 20 * 16 * 2 * 2, "bytes are the caches' own");
}

#[test]
fn an_evaluation_that_reads_stepwise_meets_what_the_cache_keeps() {
    let model = random_model(&config(json!({"model_type": "qwen2"})), 6);
    let tokens = Tokens { ids: some_tokens(64, 40, 5), ends: (1..=64).collect() };
    let windows = Windows::of_text(&tokens, WindowOptions { stride: Some(8), ..WindowOptions::new(16) }).unwrap();
    let reference = Recording::new(&model, windows, &mut |_| {}).unwrap();
    let rounding = || KvState::with(model.config(), |_, geometry| Box::new(Rounding(PlainKvCache::new(geometry))));
    let found = |step: usize, make: &dyn Fn() -> KvState| {
        reference.compare(&Stepwise::new(&model, step, make).unwrap(), &mut |_| {}).unwrap()
    };
    for step in [1, 5, 16] {
        let plain = found(step, &|| KvState::plain(model.config()));
        assert!(plain.kl.abs() < 1e-9 && plain.top1 == 1.0, "a plain cache loses nothing: {plain:?}");
        assert!((plain.model.nll / reference.score().nll - 1.0).abs() < 1e-6, "{plain:?}");
    }
    let (one, five, whole) = (found(1, &rounding).kl, found(5, &rounding).kl, found(16, &rounding).kl);
    assert!(one > five && five > 1e-6, "the more of the past is rounded, the more is lost: {one} {five}");
    assert!(whole.abs() < 1e-9, "a window read at once meets no rounded past: {whole}");
    assert!(matches!(Stepwise::new(&model, 0, rounding), Err(Error::BadSetting { name: "step", .. })), "no step");
}

/// A cache with a fault.
#[derive(Debug)]
struct Faulty {
    inner: PlainKvCache,
    fails: bool,
}

impl KvCache for Faulty {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn append<'a>(&'a mut self, new: KvRows<'_>, scratch: &'a mut KvScratch) -> Result<KvRows<'a>, BoxError> {
        if self.fails {
            return Err("no room".into());
        }
        let rows = self.inner.append(new, scratch)?;
        Ok(KvRows { keys: &rows.keys[1..], values: rows.values })
    }
    fn reset(&mut self) {
        self.inner.reset();
    }
    fn bytes(&self) -> u64 {
        0
    }
}

#[test]
fn faults_of_a_cache_are_errors_that_name_the_layer() {
    let model = random_model(&config(json!({})), 6);
    let with = |fails| {
        KvState::with(model.config(), move |layer, geometry| match layer {
            1 => Box::new(Faulty { inner: PlainKvCache::new(geometry), fails }),
            _ => Box::new(PlainKvCache::new(geometry)),
        })
    };
    let mut cache = with(true);
    let error = model.extend(&[1, 2], &mut cache, None).unwrap_err();
    assert!(matches!(error, Error::Cache { layer: 1, .. }) && error.to_string().contains("no room"), "{error}");
    let error = model.extend(&[1, 2], &mut cache, None).unwrap_err();
    assert!(error.to_string().contains("reset it"), "the layers are uneven now: {error}");
    cache.reset();
    let error = with(false);
    let error = model.extend(&[1, 2], &mut { error }, None).unwrap_err();
    assert!(error.to_string().contains("gave back"), "{error}");
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let model = random_model(&config(json!({})), 7);
    let other = random_model(&config(json!({"num_hidden_layers": 1})), 7);
    let error = model.extend(&[1], &mut KvState::plain(other.config()), None).unwrap_err();
    assert!(matches!(error, Error::Cache { .. }), "{error}");
    let geometry = KvGeometry { kv_heads: 2, q_heads: 4, dim_k: 3, dim_v: 5 };
    let mut cache = PlainKvCache::new(geometry);
    let rows = KvRows { keys: &[0.0; 12], values: &[0.0; 10] };
    assert!(cache.append(rows, &mut KvScratch::default()).is_err(), "two tokens of keys, one of values");
    assert!(cache.is_empty(), "nothing was added");
}

#[test]
fn bad_tokens_are_errors_that_name_their_place() {
    let model = random_model(&config(json!({})), 8);
    let error = model.hidden(&[&[1, 2], &[3, 40]], None).unwrap_err();
    assert!(matches!(error, Error::TokenRange { index: 1, id: 40, vocab: 40 }), "{error}");
    let error = model.hidden(&[&[1], &[]], None).unwrap_err();
    assert!(matches!(error, Error::EmptySequence { index: 1 }), "{error}");
    let error = model.extend(&[], &mut KvState::plain(model.config()), None).unwrap_err();
    assert!(matches!(error, Error::EmptySequence { index: 0 }), "{error}");
}

/// A cache that attends by itself: plain rows, sums in f64.
#[derive(Debug)]
struct Attending {
    geometry: KvGeometry,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache for Attending {
    fn len(&self) -> usize {
        self.keys.len() / self.geometry.key_width()
    }

    fn append<'a>(&'a mut self, _new: KvRows<'_>, _scratch: &'a mut KvScratch) -> Result<KvRows<'a>, BoxError> {
        Err("attends by itself".into())
    }

    fn attends(&self) -> bool {
        true
    }

    fn attend(&mut self, step: KvStep<'_>, out: &mut [f32]) -> Result<(), BoxError> {
        let KvGeometry { kv_heads, q_heads, dim_k, dim_v } = self.geometry;
        self.keys.extend_from_slice(step.new.keys);
        self.values.extend_from_slice(step.new.values);
        let first = step.window.map_or(0, |window| self.len().saturating_sub(window));
        for (head, (q, out)) in step.queries.chunks_exact(dim_k).zip(out.chunks_exact_mut(dim_v)).enumerate() {
            let kv = head / (q_heads / kv_heads);
            let key = |t: usize| &self.keys[(t * kv_heads + kv) * dim_k..][..dim_k];
            let score = |t| q.iter().zip(key(t)).map(|(a, b)| f64::from(a * b)).sum::<f64>() / (dim_k as f64).sqrt();
            let weights: Vec<f64> = (first..self.len()).map(|t| score(t).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (d, out) in out.iter_mut().enumerate() {
                let value = |t: usize| f64::from(self.values[(t * kv_heads + kv) * dim_v + d]);
                let mixed = (first..self.len()).zip(&weights).map(|(t, w)| w * value(t)).sum::<f64>() / sum;
                #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
                let rounded = mixed as f32;
                *out = rounded;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.keys.clear();
        self.values.clear();
    }

    fn bytes(&self) -> u64 {
        0
    }
}

#[test]
fn a_cache_that_attends_by_itself_is_given_token_after_token() {
    for changes in variants() {
        let model = random_model(&config(changes.clone()), 1);
        let tokens = some_tokens(41, 40, 1);
        let whole = all_logits(&model, &tokens);
        for sizes in [&[1][..], &[41], &[3, 1, 9]] {
            let make = |_, geometry| Box::new(Attending { geometry, keys: vec![], values: vec![] }) as Box<dyn KvCache>;
            let mut cache = KvState::with(model.config(), make);
            let parts = in_parts(&model, &tokens, sizes, &mut cache);
            let difference = largest_difference(&whole, &parts);
            assert!(difference < 3e-5, "{changes} cut at {sizes:?} differs by {difference}");
        }
    }
}
