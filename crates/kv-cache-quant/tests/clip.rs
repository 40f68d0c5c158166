//! The clip search by the output of attention.

mod common;

use common::gaussian;
use kv_cache_quant::*;

const GRID: [f32; 6] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5];

fn config() -> SkvqConfig {
    SkvqConfig { levels: Levels::Bits(2), meta: MetaFormat::F16, clip: ClipMode::Midpoint }
}

/// What coding all groups with some factors does to the outputs, summed over heads.
fn total(sample: &AttentionSample<'_>, plan: &ReorderPlan, alphas: &[f32], stream: Stream) -> f64 {
    let codec = Skvq::new(config(), plan.clone(), alphas.to_vec()).unwrap();
    let coded = |rows: &[f32]| common::through(&codec, rows);
    let (keys, values) = match stream {
        Stream::Keys => (coded(sample.rows.keys), sample.rows.values.to_vec()),
        Stream::Values => (sample.rows.keys.to_vec(), coded(sample.rows.values)),
    };
    attention_errors(sample, KvRows { keys: &keys, values: &values }).unwrap().iter().sum()
}

#[test]
fn with_one_group_the_best_factor_of_the_grid_is_found() {
    let geometry = KvGeometry { kv_heads: 1, q_heads: 1, dim_k: 32, dim_v: 32 };
    let (keys, values, queries) = (gaussian(1, 64 * 32), gaussian(2, 64 * 32), gaussian(3, 9 * 32));
    let sample = AttentionSample { geometry, queries: &queries, rows: KvRows { keys: &keys, values: &values } };
    let plan = ReorderPlan::identity(32, 32).unwrap();
    for stream in [Stream::Keys, Stream::Values] {
        let found = search_clip_by_attention(&sample, stream, &plan, config(), &GRID).unwrap();
        let least = GRID.map(|alpha| total(&sample, &plan, &[alpha], stream));
        let best = (0..GRID.len()).min_by(|a, b| least[*a].total_cmp(&least[*b])).unwrap();
        assert_eq!(found, [GRID[best]], "{stream:?}: {least:?}");
    }
}

#[test]
fn factors_chosen_by_attention_beat_none_in_what_they_were_chosen_by() {
    let geometry = KvGeometry { kv_heads: 2, q_heads: 4, dim_k: 32, dim_v: 32 };
    let (keys, values, queries) = (gaussian(4, 96 * 64), gaussian(5, 96 * 64), gaussian(6, 8 * 4 * 32));
    let sample = AttentionSample { geometry, queries: &queries, rows: KvRows { keys: &keys, values: &values } };
    let plan = ReorderPlan::identity(64, 16).unwrap();
    for stream in [Stream::Keys, Stream::Values] {
        let found = search_clip_by_attention(&sample, stream, &plan, config(), &GRID).unwrap();
        let (chosen, none) = (total(&sample, &plan, &found, stream), total(&sample, &plan, &[1.0; 4], stream));
        assert!(chosen < none, "{stream:?}: {chosen} with {found:?}, {none} without");
    }
}

#[test]
fn samples_that_do_not_fit_are_refused() {
    let geometry = KvGeometry { kv_heads: 1, q_heads: 1, dim_k: 4, dim_v: 4 };
    let rows = KvRows { keys: &[1.0; 8], values: &[1.0; 8] };
    let plan = ReorderPlan::identity(4, 4).unwrap();
    let search = |queries: &[f32], plan: &ReorderPlan, grid: &[f32]| {
        let sample = AttentionSample { geometry, queries, rows };
        search_clip_by_attention(&sample, Stream::Keys, plan, config(), grid)
    };
    assert!(matches!(search(&[], &plan, &GRID), Err(Error::Shape { .. })), "no queries");
    assert!(matches!(search(&[1.0; 12], &plan, &GRID), Err(Error::Shape { .. })), "more queries than tokens");
    assert!(matches!(search(&[f32::NAN; 4], &plan, &GRID), Err(Error::NonFinite { .. })), "NaN");
    assert!(matches!(search(&[1.0; 4], &plan, &[]), Err(Error::Unsupported { .. })), "no factors");
    let other = ReorderPlan::identity(8, 4).unwrap();
    assert!(matches!(search(&[1.0; 4], &other, &GRID), Err(Error::Width { .. })), "a plan for other channels");
}
