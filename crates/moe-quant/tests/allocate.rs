//! The allocator against trying everything, and the orderings that it promises.
#![allow(clippy::cast_possible_truncation, reason = "small numbers made up for the tests")]

mod common;

use common::{Random, Toy, schemes};
use moe_quant::{
    AllocateConfig, Block, Budget, Device, DeviceKind, Error, Granularity, LayerTable, LossSum, Plan, Profile, Scheme,
    SchemeTimes, Scope, Sensitivity, Tile, TileTimes, allocate, sweep,
};

const WIDTHS: [usize; 2] = [64, 32];
const EXPONENTS: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

fn three() -> Vec<Scheme> {
    schemes(&["int2-g32-asym", "int4-g32-asym", "int8"])
}

/// Times of no pattern: each scheme has two tiles, in two groups when `groups`.
fn random_profile(random: &mut Random, schemes: &[Scheme], groups: bool) -> Profile {
    let mut tile = |columns: usize, group: u32| Tile {
        columns,
        group,
        launch: 0.0,
        times: vec![TileTimes {
            features: 64,
            seconds: vec![(1 + random.below(4), 0.01 + random.uniform()), (8, 1.0 + random.uniform())],
        }],
    };
    let mut entry =
        |scheme: &Scheme| SchemeTimes { scheme: *scheme, tiles: vec![tile(16, 0), tile(32, u32::from(groups))] };
    let device = Device { kind: DeviceKind::Gpu, name: "dice".into(), workers: 3 };
    Profile::new(device, schemes.iter().map(&mut entry).collect()).unwrap()
}

fn random_table(random: &mut Random, experts: usize, schemes: &[Scheme]) -> LayerTable {
    let delta = (0..experts * 3 * schemes.len()).map(|_| random.uniform()).collect();
    let rows = (0..experts).map(|_| random.below(20) as u64).collect();
    LayerTable::new(WIDTHS, Sensitivity::new(experts, schemes.to_vec(), delta).unwrap(), rows).unwrap()
}

/// Loss, time and bytes of given choices under given tiles.
fn judge(table: &LayerTable, profile: &Profile, tiles: &[usize], choices: &[[usize; 3]]) -> (f64, f64, u64) {
    let (mut loss, mut time, mut bytes) = (0.0, 0.0, 0);
    for (expert, choice) in choices.iter().enumerate() {
        for block in Block::ALL {
            let (index, shape) = (choice[block.index()], block.shape(WIDTHS));
            let scheme = table.losses().schemes()[index];
            loss += table.losses().delta(expert, block, index);
            time += profile.seconds(scheme, tiles[index], table.rows()[expert], shape).unwrap();
            bytes += scheme.bytes(shape).unwrap();
        }
    }
    (loss, time, bytes)
}

/// The least product over all choices and tiles; infinite when nothing fits.
fn brute_force(table: &LayerTable, profile: &Profile, budget: u64, r: f64, free: bool, groups: bool) -> f64 {
    let mut best = f64::INFINITY;
    let experts = table.rows().len();
    let all = 3_usize.pow(u32::try_from(3 * experts).unwrap());
    for code in 0..all {
        let digit = |i: usize| code / 3_usize.pow(u32::try_from(i).unwrap()) % 3;
        let choices: Vec<[usize; 3]> =
            (0..experts).map(|e| [digit(3 * e), digit(3 * e + 1), digit(3 * e + 2)]).collect();
        if !free && choices.iter().any(|c| c[0] != c[1]) {
            continue;
        }
        for tiles in 0..8_usize {
            let tiles = [tiles & 1, tiles >> 1 & 1, tiles >> 2];
            if groups && (tiles != [0; 3] && tiles != [1; 3]) {
                continue;
            }
            let (loss, time, bytes) = judge(table, profile, &tiles, &choices);
            if bytes <= budget {
                best = best.min(loss.powf(r) * time.powf(1.0 - r));
            }
        }
    }
    best
}

#[test]
fn the_plan_is_the_best_of_all_plans_on_random_instances() {
    let mut random = Random::new(1);
    for instance in 0..240 {
        let (free, groups) = (instance % 2 == 0, instance % 3 == 0);
        let table = random_table(&mut random, 2, &three());
        let profile = random_profile(&mut random, &three(), groups);
        let bits = 2.7 + 6.0 * random.uniform();
        let weights = 2 * 3 * 64 * 32;
        let budget = (bits * f64::from(weights) / 8.0) as u64;
        for r in EXPONENTS {
            let granularity = if free { Granularity::Free } else { Granularity::Block };
            let config = AllocateConfig { r, granularity, ..AllocateConfig::new(Budget::Bytes(budget)) };
            let best = brute_force(&table, &profile, budget, r, free, groups);
            let plan = allocate(std::slice::from_ref(&table), Some(&profile), &config);
            let Ok(plan) = plan else {
                assert!(matches!(plan, Err(Error::Budget { .. })), "{plan:?}");
                assert!(best.is_infinite(), "instance {instance}: a plan exists");
                continue;
            };
            let (loss, time, bytes) = judge(&table, &profile, &plan.tiles, &plan.choices[0]);
            assert!((plan.loss - loss).abs() < 1e-9 && (plan.seconds - time).abs() < 1e-9, "instance {instance}");
            assert_eq!(plan.bytes, bytes, "instance {instance}");
            assert!(bytes <= budget, "instance {instance}");
            let found = loss.powf(r) * time.powf(1.0 - r);
            assert!(found <= best * (1.0 + 1e-6) + 1e-9, "instance {instance}, r {r}: {found} but {best} can be had");
        }
    }
}

#[test]
fn loss_alone_ignores_times_and_time_alone_ignores_losses() {
    let mut random = Random::new(2);
    let (table, other) = (random_table(&mut random, 4, &three()), random_table(&mut random, 4, &three()));
    let (one, two) = (random_profile(&mut random, &three(), false), random_profile(&mut random, &three(), false));
    let config = |r| AllocateConfig { r, ..AllocateConfig::new(Budget::Bits(5.0)) };
    let of = |table: &LayerTable, profile, r| allocate(std::slice::from_ref(table), Some(profile), &config(r)).unwrap();
    assert_eq!(of(&table, &one, 1.0).choices, of(&table, &two, 1.0).choices, "r = 1");
    let same_rows = LayerTable::new(WIDTHS, other.losses().clone(), table.rows().to_vec()).unwrap();
    assert_eq!(of(&table, &one, 0.0).seconds, of(&same_rows, &one, 0.0).seconds, "r = 0");
    let without = allocate(std::slice::from_ref(&table), None, &config(1.0)).unwrap();
    assert_eq!(without.choices, of(&table, &one, 1.0).choices, "no profile is needed");
    assert_eq!(
        allocate(std::slice::from_ref(&table), None, &config(0.5)),
        Err(Error::NoProfile { r: 0.5 }),
        "a profile is needed"
    );
}

#[test]
fn a_larger_budget_and_more_freedom_never_hurt() {
    let mut random = Random::new(3);
    for _ in 0..30 {
        let tables = [random_table(&mut random, 3, &three()), random_table(&mut random, 3, &three())];
        let profile = random_profile(&mut random, &three(), false);
        for r in EXPONENTS {
            let mut last = f64::INFINITY;
            for bits in [3.0, 3.5, 4.7, 6.0, 8.5] {
                let of = |granularity, scope| {
                    let config = AllocateConfig { r, granularity, scope, ..AllocateConfig::new(Budget::Bits(bits)) };
                    allocate(&tables, Some(&profile), &config).unwrap()
                };
                let plan = of(Granularity::Block, Scope::Model);
                assert!(plan.bits <= bits, "{} bits of {bits}", plan.bits);
                assert!(plan.objective <= last * (1.0 + 1e-9), "{} after {last}", plan.objective);
                last = plan.objective;
                let order = [Granularity::Free, Granularity::Block, Granularity::Expert, Granularity::Layer];
                let objectives = order.map(|granularity| of(granularity, Scope::Model).objective);
                assert!(objectives.windows(2).all(|w| w[0] <= w[1] * (1.0 + 1e-9)), "{objectives:?}");
                if r == 1.0 {
                    let each = of(Granularity::Block, Scope::Layer).loss;
                    assert!(plan.loss <= each * (1.0 + 1e-9), "{} together, {each} layer by layer", plan.loss);
                }
            }
        }
    }
}

/// A plan for a toy layer and the loss that it really has.
fn real_loss(toy: &Toy, table: &LayerTable, granularity: Granularity, budget: Budget) -> (Plan, f64) {
    // The loss that is measured is a root of squares, so squares are what must be least.
    let config = AllocateConfig { r: 1.0, granularity, sum: LossSum::Squares, ..AllocateConfig::new(budget) };
    let plan = allocate(std::slice::from_ref(table), None, &config).unwrap();
    let loss = toy.loss(&toy.rounded(|expert, block| plan.scheme(0, expert, block)));
    (plan, loss)
}

fn toy_table(toy: &Toy, names: &[&str]) -> LayerTable {
    let losses = Sensitivity::measure(&toy.layer(), &toy.x, &toy.dispatch, &schemes(names)).unwrap();
    LayerTable::new([toy.hidden, toy.inner], losses, toy.dispatch.counts()).unwrap()
}

#[test]
fn real_losses_at_equal_bytes_fall_from_uniform_over_expert_to_block() {
    let names = ["int2-g32-asym", "int3-g32-asym", "int4-g32-asym", "int6-g32-asym", "int8-g32-asym"];
    for seed in 0..4 {
        let toy = Toy::new(seed, 8, 2, [64, 128], 64, 0.3);
        let table = toy_table(&toy, &names);
        for uniform in ["int3-g32-asym", "int4-g32-asym"] {
            let scheme: Scheme = uniform.parse().unwrap();
            let bytes: u64 = Block::ALL.iter().map(|b| 8 * scheme.bytes(b.shape([64, 128])).unwrap()).sum();
            let of = |granularity| real_loss(&toy, &table, granularity, Budget::Bytes(bytes)).1;
            let (block, expert, layer) = (of(Granularity::Block), of(Granularity::Expert), of(Granularity::Layer));
            assert_eq!(layer, toy.loss(&toy.rounded(|_, _| scheme)), "the best uniform plan is that of the budget");
            assert!(block <= expert && expert <= layer, "seed {seed}, {uniform}: {block}, {expert}, {layer}");
        }
    }
}

#[test]
fn a_down_matrix_with_outliers_gets_eight_bits() {
    let mut toy = Toy::new(7, 8, 2, [64, 128], 128, 0.0);
    for (i, weight) in toy.weights[5][2].iter_mut().enumerate() {
        *weight *= if i % 17 == 0 { 100.0 } else { 1.0 };
    }
    let table = toy_table(&toy, &["int2-g32-asym", "int4-g32-asym", "int8"]);
    let (plan, _) = real_loss(&toy, &table, Granularity::Block, Budget::Bits(4.75));
    assert_eq!(plan.scheme(0, 5, Block::Down).to_string(), "int8");
}

#[test]
fn summed_sensitivities_rank_real_losses() {
    let names = ["int2-g32-asym", "int3-g32-asym", "int4-g32-asym", "int8"];
    let toy = Toy::new(11, 8, 2, [64, 128], 48, 0.2);
    let table = toy_table(&toy, &names);
    let mut random = Random::new(12);
    let (mut summed, mut real) = (Vec::new(), Vec::new());
    for allocation in 0..100 {
        // From nearly all wide to nearly all narrow.
        let narrow = f64::from(allocation) / 100.0;
        let choices: Vec<[usize; 3]> = (0..8)
            .map(|_| [0; 3].map(|_| if random.uniform() < narrow { random.below(2) } else { 2 + random.below(2) }))
            .collect();
        let blocks = (0..8).flat_map(|e| Block::ALL.map(|block| (e, block)));
        summed.push(blocks.map(|(e, b)| table.losses().delta(e, b, choices[e][b.index()])).sum::<f64>());
        let all = schemes(&names);
        real.push(toy.loss(&toy.rounded(|e, b| all[choices[e][b.index()]])));
    }
    let rho = spearman(&summed, &real);
    assert!(rho > 0.9, "Spearman's rank correlation is {rho}");
}

fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
        let mut ranks = vec![0.0; values.len()];
        order.iter().enumerate().for_each(|(rank, &i)| ranks[i] = rank as f64);
        ranks
    };
    let n = a.len() as f64;
    let squares: f64 = ranks(a).iter().zip(ranks(b)).map(|(x, y)| (x - y).powi(2)).sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}

#[test]
fn experts_that_were_not_seen_are_not_driven_to_the_fewest_bits() {
    // Expert 7 is never chosen.
    let mut toy = Toy::new(13, 8, 2, [64, 128], 128, 0.0);
    let (mut ids, mut gates) = (Vec::new(), Vec::new());
    let mut random = Random::new(14);
    for _ in 0..128 {
        let first = random.below(7);
        ids.extend([first, (first + 1 + random.below(6)) % 7]);
        gates.extend([0.6, 0.3]);
    }
    toy.dispatch = moe_quant::Dispatch::new(8, 2, &ids, &gates).unwrap();
    let table = toy_table(&toy, &["int2-g32-asym", "int4-g32-asym", "int8"]);
    let counts = toy.dispatch.counts();
    assert_eq!(counts[7], 0);
    let bits = |table: &LayerTable| {
        let (plan, _) = real_loss(&toy, table, Granularity::Block, Budget::Bits(5.0));
        Block::ALL.map(|block| plan.scheme(0, 7, block).weight.code_bits())
    };
    assert_eq!(bits(&table), [2, 2, 2], "its losses are zero");
    // As if it had seen as many as the others on average.
    let floored = table.losses().clone().with_least_tokens(&counts, 36).unwrap();
    let floored = LayerTable::new([64, 128], floored, counts).unwrap();
    assert!(bits(&floored).iter().all(|bits| *bits > 2), "{:?}", bits(&floored));
}

#[test]
fn a_model_of_28_layers_with_64_experts_takes_seconds() {
    let mut random = Random::new(4);
    let schemes =
        schemes(&["int2-g128-asym", "int3-g128-asym", "int4-g128-asym", "int8", "int4-g128/int8", "int8/int8"]);
    let widths = [2048, 1408];
    let tables: Vec<LayerTable> = (0..28)
        .map(|_| {
            let mut delta = Vec::new();
            for _ in 0..64 * 3 {
                let scale = random.normal().exp();
                for noise in [1.0, 0.4, 0.15, 0.01, 0.25, 0.03] {
                    delta.push(scale * noise * (1.0 + 0.1 * random.uniform()));
                }
            }
            let rows = (0..64).map(|_| (2000.0 * random.uniform().powi(3)) as u64).collect();
            LayerTable::new(widths, Sensitivity::new(64, schemes.clone(), delta).unwrap(), rows).unwrap()
        })
        .collect();
    // As on a CPU, each scheme has one tile, and one has two.
    let full = random_profile(&mut random, &schemes, false);
    let mut times = full.schemes().to_vec();
    times.iter_mut().skip(1).for_each(|entry| entry.tiles.truncate(1));
    let profile = Profile::new(full.device().clone(), times).unwrap();
    for (scope, r) in [(Scope::Layer, 0.75), (Scope::Layer, 1.0), (Scope::Model, 0.5), (Scope::Model, 0.75)] {
        let started = std::time::Instant::now();
        let config = AllocateConfig { r, scope, ..AllocateConfig::new(Budget::Bits(3.25)) };
        let plan = allocate(&tables, Some(&profile), &config).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        println!("{scope:?}, r = {r}: {:.4} bits, {seconds:.2} s", plan.bits);
        assert!(plan.bits <= 3.25, "{}", plan.bits);
        assert!(seconds < 60.0, "{seconds} s");
    }
}

#[test]
fn the_sweep_of_r_trades_loss_for_time() {
    let mut random = Random::new(5);
    let table = random_table(&mut random, 6, &three());
    let profile = random_profile(&mut random, &three(), false);
    let config = AllocateConfig::new(Budget::Bits(6.0));
    let plans = sweep(&[table], &profile, &config, &EXPONENTS).unwrap();
    assert!(plans.windows(2).all(|w| w[1].loss <= w[0].loss * (1.0 + 1e-9)), "loss falls as r grows");
    assert!(plans.windows(2).all(|w| w[1].seconds >= w[0].seconds * (1.0 - 1e-9)), "time grows with r");
}

#[test]
fn a_budget_below_the_minimum_names_the_smallest_reachable() {
    let mut random = Random::new(6);
    let tables = [random_table(&mut random, 3, &three())];
    let config = |budget| AllocateConfig { r: 1.0, ..AllocateConfig::new(budget) };
    let refused = allocate(&tables, None, &config(Budget::Bits(2.0)));
    let Err(Error::Budget { smallest, smallest_bits, .. }) = refused else { panic!("{refused:?}") };
    assert!(smallest_bits > 2.0, "{smallest_bits}");
    assert_eq!(allocate(&tables, None, &config(Budget::Bytes(smallest))).unwrap().bytes, smallest);
    assert_eq!(allocate(&tables, None, &config(Budget::Bits(smallest_bits))).unwrap().bytes, smallest);
    let one_less = allocate(&tables, None, &config(Budget::Bytes(smallest - 1)));
    assert!(matches!(one_less, Err(Error::Budget { .. })), "{one_less:?}");
}

#[test]
fn bad_input_is_refused_by_name() {
    let table = |values: Vec<f64>| Sensitivity::new(1, three(), values);
    let mut values = vec![1.0; 9];
    values[7] = f64::NAN;
    let refused = table(values);
    assert!(matches!(refused, Err(Error::Sensitivity { expert: 0, block: Block::Down, scheme: 1, .. })), "{refused:?}");
    assert!(matches!(table(vec![-1.0; 9]), Err(Error::Sensitivity { .. })), "negative");
    assert!(matches!(table(vec![1.0; 8]), Err(Error::Length { expected: 9, found: 8, .. })), "too short");
    let good = table(vec![1.0; 9]).unwrap();
    assert!(matches!(LayerTable::new(WIDTHS, good.clone(), vec![1, 2]), Err(Error::Length { .. })), "rows of two");
    let layer = [LayerTable::new(WIDTHS, good, vec![4]).unwrap()];
    let config = |r, budget| AllocateConfig { r, ..AllocateConfig::new(budget) };
    for bits in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
        assert!(matches!(allocate(&layer, None, &config(1.0, Budget::Bits(bits))), Err(Error::Bits { .. })), "{bits}");
    }
    let mut random = Random::new(7);
    let profile = random_profile(&mut random, &three()[..2], false);
    let refused = allocate(&layer, Some(&profile), &config(0.5, Budget::Bits(6.0)));
    assert!(matches!(&refused, Err(Error::NoTimes { scheme, .. }) if scheme == "int8"), "{refused:?}");
    let refused =
        allocate(&layer, Some(&random_profile(&mut random, &three(), false)), &config(1.5, Budget::Bits(6.0)));
    assert!(matches!(refused, Err(Error::Allocation(bit_allocation::Error::Exponent { .. }))), "{refused:?}");
    assert_eq!(allocate(&[], None, &config(1.0, Budget::Bits(6.0))), Err(Error::Nothing { what: "layers" }));
}
