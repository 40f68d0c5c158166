//! How many tokens a second does a whole model give, with its weights as f32, f16, 8-bit and 4-bit integers?
//!
//! `cargo bench --workspace --bench tokens` runs criterion and then prints tables beside the floors; `-- --table` prints the
//! tables alone. Decoding one token after the other can be no faster than reading its weights once a token from where they
//! are; a prompt no faster than its products.

use criterion::{Criterion, Throughput};
use leanbits::Weights;
use leanbits_benches::{Case, floors, on_one_thread, print_table_in, weights};
use quant_core::{Activations, Format, Linear, PackedTensor, PreparedLinear, Shaped};
use quant_models::{Apply, Config, Decoder, Error, KvState, WeightSource};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Tokens before those that are timed one by one, and tokens of a prompt.
const PROMPT: usize = 128;
/// Tokens that are timed one by one.
const TOKENS: usize = 8;

/// Labels, formats of the linears in the layers, and what their products take.
const WAYS: &[(&str, Option<&str>, Activations)] = &[
    ("f32", None, Activations::Float),
    ("f16", Some("f16"), Activations::Float),
    ("int8", Some("int8"), Activations::Float),
    ("int8, int8 inputs", Some("int8"), Activations::Int8Row),
    ("int4-g128", Some("int4-g128"), Activations::Float),
    ("int4-g128, int8 inputs", Some("int4-g128"), Activations::Int8Row),
];

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") || !on_one_thread() {
        return;
    }
    // Where the sources lay when this was compiled, or the folder that is the current one.
    let compiled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
    let folder = if compiled.is_dir() { compiled } else { "models/tiny-llama".into() };
    let config = Config::from_folder(&folder).expect("the repository has this model");
    let stored = Weights::open(&folder).expect("the repository has this model");
    let mut larger = config.clone();
    (larger.hidden_size, larger.intermediate_size, larger.layers) = (1024, 2816, 6);
    (larger.heads, larger.kv_heads, larger.windows) = (16, 8, vec![None; 6]);
    let made = Made(larger.clone());
    // Work runs on the only thread of the pool, whose time is measured.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(|| {
        if !std::env::args().any(|argument| argument == "--table") {
            criterion(&config, &stored);
        }
        tables("models/tiny-llama", &config, &stored);
        tables("a Llama of 6 layers of 1024 × 2816 with made-up weights", &larger, &made);
    });
}

/// Weights out of nowhere for a model of some shape.
struct Made(Config);

impl WeightSource for Made {
    fn origin(&self) -> String {
        "made-up weights".to_owned()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let Config { hidden_size: hidden, intermediate_size: inner, vocab_size, .. } = self.0;
        let (queries, keys) = (self.0.heads * self.0.head_dim, self.0.kv_heads * self.0.head_dim);
        let part = name.strip_prefix("model.").unwrap_or(name).strip_suffix(".weight")?;
        Some(match part.rsplit('.').next()? {
            "embed_tokens" => vec![vocab_size, hidden],
            "q_proj" => vec![queries, hidden],
            "k_proj" | "v_proj" => vec![keys, hidden],
            "o_proj" => vec![hidden, queries],
            "gate_proj" | "up_proj" => vec![inner, hidden],
            "down_proj" => vec![hidden, inner],
            "norm" | "input_layernorm" | "post_attention_layernorm" => vec![hidden],
            _ => return None,
        })
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error> {
        Ok(weights(self.shape(name).unwrap_or_default().iter().product()))
    }

    fn linear(&self, _: &str) -> Result<Option<Arc<dyn Linear>>, Error> {
        Ok(None)
    }
}

/// A model whose linears in the layers are packed.
struct Packed<'a> {
    source: &'a dyn WeightSource,
    format: Option<Format>,
    activations: Activations,
}

impl WeightSource for Packed<'_> {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error> {
        self.source.tensor(name)
    }

    fn linear(&self, name: &str) -> Result<Option<Arc<dyn Linear>>, Error> {
        let name = format!("{name}.weight");
        let (Some(format), Some(shape), true) = (self.format, self.shape(&name), name.contains("_proj")) else {
            return Ok(None);
        };
        let values = self.tensor(&name)?;
        let tensor = Shaped::new(&values, &shape).expect("as many values as the shape has");
        let packed = PackedTensor::encode(format, &tensor).expect("finite values");
        // 16-bit floats have no arrangement of their own and are multiplied as they are stored.
        Ok(Some(match PreparedLinear::new(&packed).and_then(|linear| linear.with_activations(self.activations)) {
            Ok(prepared) => Arc::new(prepared),
            Err(_) => Arc::new(packed),
        }))
    }
}

fn load(config: &Config, source: &dyn WeightSource, format: Option<&str>, activations: Activations) -> Decoder {
    let format = format.map(|name| name.parse().expect("the table names formats that exist"));
    let packed = Packed { source, format, activations };
    Decoder::from_source(config.clone(), &packed, Apply::Direct).expect("a whole model")
}

fn tokens(decoder: &Decoder, count: usize) -> Vec<u32> {
    let vocabulary = decoder.config().vocab_size;
    (0..count).map(|i| u32::try_from(i * 7919 % vocabulary).expect("a small vocabulary")).collect()
}

fn prefill(decoder: &Decoder) -> KvState {
    let mut cache = KvState::plain(decoder.config());
    let hidden = decoder.extend(&tokens(decoder, PROMPT), &mut cache, None).expect("a prompt that fits");
    black_box(decoder.logits(&hidden, PROMPT - 1..PROMPT).expect("the last token"));
    cache
}

/// Some tokens after a prompt, one at a time.
fn decode(decoder: &Decoder, cache: &mut KvState) {
    for token in tokens(decoder, TOKENS) {
        let hidden = decoder.extend(&[token], cache, None).expect("a token that fits");
        black_box(decoder.logits(&hidden, 0..1).expect("the only token"));
    }
}

fn criterion(config: &Config, source: &dyn WeightSource) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    let mut group = criterion.benchmark_group("tiny-llama");
    for &(name, format, activations) in WAYS {
        let decoder = load(config, source, format, activations);
        group.throughput(Throughput::Elements(PROMPT as u64));
        group.bench_function(format!("{name}, prompt"), |bencher| bencher.iter(|| prefill(&decoder)));
        group.throughput(Throughput::Elements(TOKENS as u64));
        group.bench_function(format!("{name}, token by token"), |bencher| {
            let after = |mut cache: KvState| decode(&decoder, &mut cache);
            bencher.iter_batched(|| prefill(&decoder), after, criterion::BatchSize::LargeInput);
        });
    }
    group.finish();
    criterion.final_summary();
}

/// Weights of the linears and of the head, which every token passes, and their bytes.
fn size(decoder: &Decoder) -> (usize, usize) {
    let bytes: u64 = decoder.slots().map(quant_models::Slot::bytes_read).sum();
    let count = decoder.slots().map(|slot| slot.shape().iter().product::<usize>()).sum();
    (count, usize::try_from(bytes).expect("it is in memory"))
}

/// Both tables of a model. `bits` of a floor is the place of its way.
fn tables(name: &str, config: &Config, source: &dyn WeightSource) {
    let decoders: Vec<Decoder> =
        WAYS.iter().map(|&(_, format, activations)| load(config, source, format, activations)).collect();
    let mut caches: Vec<KvState> = decoders.iter().map(prefill).collect();
    let sizes: Vec<(usize, usize)> = decoders.iter().map(size).collect();
    let memory = vec![1.0_f32; sizes[0].1 / 4];
    let mut cases = Vec::new();
    for (way, (&(label, ..), &(_, bytes))) in (0_u32..).zip(WAYS.iter().zip(&sizes)) {
        let memory = &memory[..bytes / 4];
        #[expect(clippy::cast_precision_loss, reason = "bytes of a model")]
        let label = format!("reading {:.1} MB a token: {label}", bytes as f64 / 1e6).leak();
        cases.push(Case::floor(label, way, 1, move || {
            for _ in 0..TOKENS {
                black_box(floors::read(memory));
            }
        }));
    }
    for (way, ((&(label, ..), decoder), cache)) in (0_u32..).zip(WAYS.iter().zip(&decoders).zip(&mut caches)) {
        // The cache grows by the same number of tokens in every round, whichever the way.
        cases.push(Case::ours(label, way, 1, move || decode(decoder, cache)));
    }
    print(&format!("Token by token after {PROMPT}: {name}, one thread, tokens/s"), cases, TOKENS);
    #[expect(clippy::cast_precision_loss, reason = "products of a model")]
    let operations = (2 * sizes[0].0 * PROMPT) as f64;
    let mut cases = vec![
        Case::floor("multiply-adds in registers", 32, 1, || floors::multiply_adds(operations)),
        Case::floor("products of bytes in registers", 8, 1, || floors::byte_products(operations)),
    ];
    for (&(label, _, activations), decoder) in WAYS.iter().zip(&decoders) {
        let floor = if activations == Activations::Float { 32 } else { 8 };
        cases.push(Case::ours(label, floor, 1, move || {
            black_box(prefill(decoder));
        }));
    }
    print(&format!("A prompt of {PROMPT}: {name}, one thread, tokens/s"), cases, PROMPT);
}

fn print(title: &str, cases: Vec<Case<'_>>, tokens: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a number of tokens")]
    let mut cases: Vec<Case<'_>> = cases.into_iter().map(|case| case.counted_as(tokens as f64)).collect();
    print_table_in("tokens/s", title, &mut cases, 5);
}
