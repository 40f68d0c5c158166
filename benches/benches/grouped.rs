//! What does one call for all experts of a mixture save?
//!
//! `cargo bench --workspace --bench grouped` runs criterion on the grouped product and then prints a table for
//! several numbers of tokens, with f32 and with 8-bit inputs; `-- --table` prints the tables alone. Experts are 1408 × 2048 in
//! turn of four formats, eight of 64 a token with a skewed router. Beside the grouped call: one product for each expert after
//! the other, and one product for each token and expert, which is what repacked kernels do that group tokens but multiply
//! vectors.

use criterion::{Criterion, Throughput};
use leanbits_benches::weights;
use quant_core::{Activations, Format, Group, Linear, PackedTensor, PreparedLinear, Shaped, grouped_matmul};
use std::time::{Duration, Instant};

const OUTPUTS: usize = 1408;
const FEATURES: usize = 2048;
const EXPERTS: usize = 64;
const TOP_K: usize = 8;
const FORMATS: [&str; 4] = ["int2-g128-asym", "int4-g128-asym", "int3-g128-asym", "int8"];

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let experts = experts(Activations::Float);
    if !std::env::args().any(|argument| argument == "--table") {
        criterion(&experts);
    }
    table(&experts, "f32 inputs");
    table(&self::experts(Activations::Int8Row), "8-bit inputs");
}

fn experts(activations: Activations) -> Vec<Box<dyn Linear>> {
    let values = weights(OUTPUTS * FEATURES);
    let pack = |expert: usize| {
        let format: Format = FORMATS[expert % FORMATS.len()].parse().expect("the table names formats that exist");
        let tensor = Shaped::new(&values, &[OUTPUTS, FEATURES]).expect("the shape fits");
        let packed = PackedTensor::encode(format, &tensor).expect("finite values");
        let prepared = PreparedLinear::new(&packed).and_then(|prepared| prepared.with_activations(activations));
        Box::new(prepared.expect("integers can be arranged")) as Box<dyn Linear>
    };
    (0..EXPERTS).map(pack).collect()
}

/// Rows of each expert for a batch of tokens: expert `e` is chosen with a weight that falls as `1/(e + 4)`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
fn rows(tokens: usize) -> Vec<usize> {
    let weight = |expert: usize| 1.0 / (expert + 4) as f64;
    let total: f64 = (0..EXPERTS).map(weight).sum();
    let mut left = tokens * TOP_K;
    let mut rows: Vec<usize> = Vec::with_capacity(EXPERTS);
    for expert in 0..EXPERTS {
        let share = ((tokens * TOP_K) as f64 * weight(expert) / total).ceil() as usize;
        rows.push(share.min(left).min(tokens));
        left -= rows[expert];
    }
    rows
}

/// A batch: rows sorted by expert.
struct Batch<'a> {
    groups: Vec<Group<'a>>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl<'a> Batch<'a> {
    fn new(experts: &'a [Box<dyn Linear>], tokens: usize) -> Self {
        let pairs = experts.iter().zip(rows(tokens));
        let groups: Vec<Group<'_>> = pairs.map(|(weight, rows)| Group { weight: weight.as_ref(), rows }).collect();
        let total: usize = groups.iter().map(|group| group.rows).sum();
        Self { groups, x: weights(total * FEATURES), y: vec![0.0; total * OUTPUTS] }
    }

    fn pairs(&self) -> usize {
        self.x.len() / FEATURES
    }

    fn grouped(&mut self) {
        grouped_matmul(&self.groups, &self.x, &mut self.y).expect("shapes fit");
    }

    /// One product of at most `most` rows after the other.
    fn one_by_one(&mut self, most: usize) {
        let (mut x, mut y) = (self.x.as_slice(), self.y.as_mut_slice());
        for group in &self.groups {
            let mut left = group.rows;
            while left > 0 {
                let rows = left.min(most);
                let (here, rest) = x.split_at(rows * FEATURES);
                let (out, later) = std::mem::take(&mut y).split_at_mut(rows * OUTPUTS);
                group.weight.matmul(here, out).expect("shapes fit");
                (x, y) = (rest, later);
                left -= rows;
            }
        }
    }
}

fn criterion(experts: &[Box<dyn Linear>]) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    let mut group = criterion.benchmark_group("grouped");
    for tokens in [1, 64] {
        let mut batch = Batch::new(experts, tokens);
        group.throughput(Throughput::Elements((batch.pairs() * OUTPUTS * FEATURES) as u64));
        group.bench_function(format!("{tokens} tokens"), |bencher| bencher.iter(|| batch.grouped()));
    }
    group.finish();
    criterion.final_summary();
}

fn table(experts: &[Box<dyn Linear>], inputs: &str) {
    println!(
        "\n{EXPERTS} experts of {OUTPUTS} × {FEATURES}, {TOP_K} a token, {inputs}, {} threads, ms\n",
        rayon::current_num_threads()
    );
    println!("| tokens | rows | grouped | an expert at a time | a token and expert at a time | G products/s grouped |");
    println!("|---:|---:|---:|---:|---:|---:|");
    for tokens in [1, 8, 64, 1024] {
        let mut batch = Batch::new(experts, tokens);
        let rounds = if tokens < 256 { 5 } else { 2 };
        let mut best = [f64::INFINITY; 3];
        // In turn, so that a busy machine disturbs all alike.
        for _ in 0..rounds {
            let runs: [&dyn Fn(&mut Batch<'_>); 3] =
                [&|batch| batch.grouped(), &|batch| batch.one_by_one(usize::MAX), &|batch| batch.one_by_one(1)];
            for (best, run) in best.iter_mut().zip(runs) {
                let start = Instant::now();
                run(&mut batch);
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
        let rate = (batch.pairs() * OUTPUTS * FEATURES) as f64 / best[0] / 1e9;
        let [grouped, expert, token] = best.map(|seconds| seconds * 1e3);
        println!("| {tokens} | {} | {grouped:.1} | {expert:.1} | {token:.1} | {rate:.1} |", batch.pairs());
    }
}
