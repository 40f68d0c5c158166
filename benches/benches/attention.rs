//! How close does attention over a packed cache come to reading the cache once?
//!
//! `cargo bench --workspace --bench attention` runs criterion on one query over each cache and then prints tables
//! beside the floors; `-- --table` prints the tables alone, `-- --attention` those of attention, `-- --attention --grouped`
//! that of four queries a head; names of methods, only those. A floor reads as many bytes as the cache stores and does
//! nothing else.

use criterion::Criterion;
use kv_cache_quant::{
    Attention, Codec, Factors, KeyStorage, KvCacheLayer, KvGeometry, KvMethod, KvPolicy, KvRows, PmKvq, PmKvqConfig,
    Positions, QuantizedKv, TokenFormat, Workspace,
};
use leanbits_benches::floors::{aligned, narrow4, narrow8, read};
use leanbits_benches::{Case, print_table, process_seconds, weights};
use std::cell::RefCell;
use std::hint::black_box;
use std::time::Duration;

const TOKENS: usize = 8192;
const DIM: usize = 128;
/// Tokens that are appended at once.
const PIECE: usize = 256;
/// Methods, and what reading as many bytes as each stores is called.
const METHODS: [[&str; 2]; 13] = [
    ["f32", "reading f32"],
    ["f16", "reading f16"],
    ["int8", "reading int8"],
    ["int8-g32", "reading int8-g32"],
    ["int4-g128", "reading int4-g128"],
    ["int4-min", "reading int4-min"],
    ["int4-g32-min", "reading int4-g32-min"],
    ["int2-min", "reading int2-min"],
    ["int2-g32-min", "reading int2-g32-min"],
    ["mxfp4", "reading mxfp4"],
    ["nvfp4", "reading nvfp4"],
    ["rotated:int4-min", "reading rotated:int4-min"],
    ["kivi:2", "reading kivi:2"],
];
/// Those that are also measured with factors of 8 bits, and what they are called then.
const COARSE: [[&str; 2]; 5] = [
    ["int8", "int8, 8-bit factors"],
    ["int4-g128", "int4-g128, 8-bit factors"],
    ["int4-g32-min", "int4-g32-min, 8-bit factors"],
    ["int2-min", "int2-min, 8-bit factors"],
    ["nvfp4", "nvfp4, 8-bit factors"],
];
const ROUNDS: usize = 15;

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("no pool was started before");
    let asked = |name: &str| std::env::args().any(|argument| argument == name);
    if !asked("--table") && !asked("--attention") {
        criterion();
    }
    if asked("--seal") {
        return seal();
    }
    if !asked("--grouped") {
        attention(32, 32);
    }
    attention(8, 32);
    if asked("--attention") {
        return;
    }
    two_threads();
    seal();
    shrink();
}

fn filled(method: &str, geometry: KvGeometry) -> QuantizedKv {
    let method: KvMethod = method.parse().expect("the table names methods that exist");
    let storage = KeyStorage::PostRope;
    let mut cache = method.cache(geometry, storage, KvPolicy::default(), None).expect("the geometry fits");
    let rows = weights(PIECE * geometry.key_width() + 8 * TOKENS);
    for first in (0..TOKENS).step_by(PIECE) {
        // Other rows every time.
        let rows = &rows[first..first + PIECE * geometry.key_width()];
        cache.append(KvRows { keys: rows, values: rows }, Positions::Next).expect("finite rows");
    }
    cache
}

fn geometry(kv_heads: usize, q_heads: usize) -> KvGeometry {
    KvGeometry { kv_heads, q_heads, dim_k: DIM, dim_v: DIM }
}

/// Whether a method is named on the command line, or none is.
fn is_named(method: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).peekable();
    named.peek().is_none() || named.any(|name| name == method)
}

fn methods() -> Vec<[&'static str; 2]> {
    METHODS.into_iter().filter(|[method, _]| is_named(method)).collect()
}

/// What a method is called with factors of 8 bits, where it is measured with them.
fn coarse(method: &str) -> Option<&'static str> {
    COARSE.into_iter().find(|[of, _]| *of == method).map(|[_, name]| name)
}

/// Attention of one query.
#[derive(Clone)]
struct Step {
    cache: QuantizedKv,
    factors: Factors,
    query: Vec<f32>,
    out: Vec<f32>,
    workspace: Workspace,
}

impl Step {
    fn new(method: &str, geometry: KvGeometry) -> Self {
        let query: Vec<f32> = weights(geometry.q_heads * DIM).iter().map(|x| 100.0 * x).collect();
        let out = vec![0.0; query.len()];
        let (cache, factors) = (filled(method, geometry), Factors::default());
        Self { cache, factors, query, out, workspace: Workspace::default() }
    }

    fn run(&mut self) {
        let request = Attention::of(&self.query).with_factors(self.factors);
        self.cache.attend(&request, &mut self.out, &mut self.workspace).expect("the query fits");
    }

    fn bytes(&self) -> usize {
        usize::try_from(self.cache.bytes().total()).expect("it is in memory")
    }
}

fn criterion() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    let mut group = criterion.benchmark_group("attention");
    for [method, _] in methods() {
        let mut step = Step::new(method, geometry(8, 32));
        group.bench_function(method, |bencher| bencher.iter(|| step.run()));
    }
    group.finish();
    criterion.final_summary();
}

/// Bits of a token, which floors are looked up by.
fn bits(bytes: usize) -> u32 {
    u32::try_from(8 * bytes / TOKENS).expect("a few thousand")
}

fn attention(kv_heads: usize, q_heads: usize) {
    let steps: Vec<Step> = methods().iter().map(|[method, _]| Step::new(method, geometry(kv_heads, q_heads))).collect();
    let most = steps.iter().map(Step::bytes).max().unwrap_or(0);
    let memory = vec![1.0_f32; most / 4 + 1];
    let elements = 2 * TOKENS * kv_heads * DIM;
    let mut cases = Vec::new();
    let mut start = 0;
    for ([_, name], step) in methods().iter().zip(&steps) {
        // Not what the floor before has left in the third-level cache.
        let count = step.bytes() / 4;
        start = if start + count > memory.len() { 0 } else { start };
        let codes = &memory[start..][..count];
        start += count;
        cases.push(Case::floor(name, bits(step.bytes()), elements, || {
            black_box(read(codes));
        }));
    }
    // Those with other factors come last, as they read the same pages, which must not be in a cache still.
    let mut last = Vec::new();
    for ([method, _], mut step) in methods().iter().zip(steps) {
        let bits = bits(step.bytes());
        if let Some(name) = coarse(method) {
            let mut step = Step { factors: Factors::Bits8, ..step.clone() };
            last.push(Case::ours(name, bits, elements, move || step.run()));
        }
        cases.push(Case::ours(method, bits, elements, move || step.run()));
    }
    cases.append(&mut last);
    let title = format!(
        "Attention of one query, {q_heads} heads over {kv_heads} key-value heads of {DIM}, {TOKENS} tokens, one thread, \
         GB/s of the cache as f32"
    );
    print_table(&title, &mut cases, ROUNDS);
}

/// Seconds that cores were busy with one query on one thread and on two: twice as fast on two is a ratio of 1.
fn two_threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
    println!("\nWork of one query on two threads over that on one, 32 heads\n\n| | ratio |\n|---|---|");
    for method in ["f16", "int8", "int4-min", "int2-min"] {
        let mut step = Step::new(method, geometry(32, 32));
        let mut seconds = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let start = process_seconds();
            step.run();
            let middle = process_seconds();
            pool.install(|| step.run());
            seconds[0].push(middle - start);
            seconds[1].push(process_seconds() - middle);
        }
        let [one, two] = seconds.map(|mut list| {
            list.sort_by(f64::total_cmp);
            list[ROUNDS / 2]
        });
        println!("| {method} | {:.2} |", two / one);
    }
}

/// What appending a token costs: packing its row. Rows are in the second-level cache, as those are that a layer has just
/// computed.
fn seal() {
    const ROWS: usize = 16;
    const TIMES: usize = 128;
    let width = 32 * DIM;
    let x = weights(ROWS * width);
    let codes = RefCell::new(vec![0_u8; x.len() + 64]);
    let into = |count: usize, narrow: &dyn Fn(&mut [u8])| narrow(aligned(&mut codes.borrow_mut(), count));
    let mut cases = vec![
        Case::floor("narrow to 8 bits", 8, TIMES * x.len(), || {
            (0..TIMES).for_each(|_| into(x.len(), &|out| narrow8(&x, out)));
        }),
        Case::floor("narrow to 4 bits", 4, TIMES * x.len(), || {
            (0..TIMES).for_each(|_| into(x.len() / 2, &|out| narrow4(&x, out)));
        }),
    ];
    let formats = [
        ("int8", 8),
        ("int4-g128", 4),
        ("mxfp4", 4),
        ("nvfp4", 4),
        ("int4-min", 4),
        ("int4-g32-min", 4),
        ("int2-min", 4),
        ("int2-g32-min", 4),
    ];
    for (name, floor) in formats.into_iter().filter(|(name, _)| is_named(name)) {
        let codec = TokenFormat::new(32, DIM, name.parse().expect("a format")).expect("heads");
        let mut unit = vec![0; codec.bytes(0).total()];
        let x = &x;
        cases.push(Case::ours(name, floor, TIMES * x.len(), move || {
            for _ in 0..TIMES {
                x.chunks_exact(width).for_each(|row| codec.seal(row, 0, &mut unit).expect("finite rows"));
            }
        }));
    }
    print_table("Sealing tokens of 32 heads of 128 one by one, one thread, GB/s of f32", &mut cases, ROUNDS);
    let mut cases = Vec::new();
    for name in ["f16", "int8", "int4-min", "int2-min"].into_iter().filter(|name| is_named(name)) {
        let method: KvMethod = name.parse().expect("a method");
        let storage = KeyStorage::PostRope;
        let mut cache = method.cache(geometry(32, 32), storage, KvPolicy::default(), None).expect("it fits");
        let x = &x;
        cases.push(Case::ours(name, 0, 2 * TIMES * x.len(), move || {
            cache.reset();
            for row in (0..TIMES).flat_map(|_| x.chunks_exact(width)) {
                cache.append(KvRows { keys: row, values: row }, Positions::Next).expect("finite rows");
            }
        }));
    }
    print_table("Appending keys and values of 2048 tokens one by one, one thread, GB/s of f32", &mut cases, ROUNDS);
}

/// What lowering the precision costs, beside copying as many bytes.
fn shrink() {
    let codec = PmKvq::new(32, DIM, PmKvqConfig::default()).expect("heads");
    const UNITS: usize = 16;
    let mut cases = Vec::new();
    for (stage, name) in ["16 to 8 bits", "8 to 4 bits", "4 to 2 bits"].into_iter().enumerate() {
        let (from, to) = (codec.bytes(stage).total(), codec.bytes(stage + 1).total());
        let (old, mut new) = (vec![1_u8; UNITS * from], vec![0_u8; UNITS * to]);
        let (source, mut target) = (vec![1_u8; UNITS * from], vec![0_u8; UNITS * from]);
        let floor = u32::try_from(stage).expect("three") + 1;
        // A copy that reads and writes as many bytes in all.
        let bytes = UNITS * (from + to) / 2;
        let elements = UNITS * (from + to) / 4;
        cases.push(Case::floor("copy", floor, elements, move || {
            target[..bytes].copy_from_slice(black_box(&source[..bytes]))
        }));
        let codec = codec.clone();
        cases.push(Case::ours(name, floor, elements, move || {
            for (old, new) in old.chunks_exact(from).zip(new.chunks_exact_mut(to)) {
                codec.shrink(old, stage, new);
            }
        }));
    }
    print_table("Shrinking PM-KVQ's codes, one thread, GB/s read and written", &mut cases, ROUNDS);
}
