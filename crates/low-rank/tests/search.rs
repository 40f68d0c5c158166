//! The rank search of the ASVD paper, and sharing out a total.

use low_rank::{Candidate, Error, RankChoice, Ratio, allocate_ranks, kept_share, stable_rank_score, strs};
use proptest::prelude::*;

fn candidate(layer: usize, rank: usize, score: f64) -> Candidate {
    Candidate { layer, rank, score }
}

/// What a cut keeps, from its definition.
fn after(shapes: &[(usize, usize)], candidates: &[Candidate], cut: usize) -> (Vec<RankChoice>, f64) {
    let mut sorted = candidates.to_vec();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.layer.cmp(&b.layer)).then(a.rank.cmp(&b.rank)));
    let choices: Vec<RankChoice> = (0..shapes.len())
        .map(|layer| {
            let (m, n) = shapes[layer];
            let least = sorted[cut..].iter().filter(|c| c.layer == layer).map(|c| c.rank).min();
            match least {
                Some(rank) if rank * (m + n) < m * n => RankChoice::Rank(rank),
                _ => RankChoice::Dense,
            }
        })
        .collect();
    let kept = kept_share(shapes, &choices);
    (choices, kept)
}

#[test]
fn layers_of_one_sensitivity_differ_by_at_most_a_step() {
    let shapes = [(64, 64); 5];
    let ranks = [4, 8, 12, 16, 20, 24, 28];
    let candidates: Vec<_> =
        (0..5).flat_map(|layer| ranks.iter().map(move |&rank| candidate(layer, rank, 10.0 - rank as f64))).collect();
    for target in [0.2, 0.35, 0.5, 0.66, 0.8] {
        let found = strs(&shapes, &candidates, Ratio::Kept(target)).unwrap();
        assert!(found.kept <= target, "{target}: {found:?}");
        let position = |choice: &RankChoice| match choice {
            RankChoice::Dense => ranks.len(),
            RankChoice::Rank(rank) => ranks.iter().position(|r| r == rank).unwrap(),
        };
        let positions: Vec<usize> = found.choices.iter().map(position).collect();
        let (least, most) = (positions.iter().min().unwrap(), positions.iter().max().unwrap());
        assert!(most - least <= 1, "{target}: {:?}", found.choices);
    }
}

#[test]
fn the_cut_taken_is_the_largest_that_fits_not_the_last_one_probed() {
    // Two layers, four candidates; the authors' bisection would end on a probe beyond or short of this.
    let shapes = [(40, 40), (40, 40)];
    let candidates = [candidate(0, 5, 4.0), candidate(1, 5, 3.0), candidate(0, 10, 2.0), candidate(1, 10, 1.0)];
    let shares: Vec<f64> = (0..=4).map(|cut| after(&shapes, &candidates, cut).1).collect();
    assert_eq!(shares, [0.25, 0.375, 0.5, 0.75, 1.0]);
    for (target, cut) in
        [(0.25, 0), (0.3, 0), (0.375, 1), (0.49, 1), (0.5, 2), (0.74, 2), (0.75, 3), (0.99, 3), (1.0, 4)]
    {
        assert_eq!(strs(&shapes, &candidates, Ratio::Kept(target)).unwrap().cut, cut, "{target}");
    }
}

#[test]
fn a_candidate_from_the_break_even_on_leaves_its_layer_whole() {
    let found = strs(&[(40, 40)], &[candidate(0, 20, 1.0)], Ratio::Kept(1.0)).unwrap();
    assert_eq!((found.choices, found.kept), (vec![RankChoice::Dense], 1.0));
}

#[test]
fn what_cannot_be_reached_or_read_is_refused() {
    let shapes = [(40, 40), (40, 40)];
    let found = strs(&shapes, &[candidate(0, 4, 1.0)], Ratio::Kept(0.5));
    assert_eq!(found, Err(Error::Unreachable { kept: 0.5, smallest: 0.6 }));
    let found = strs(&shapes, &[candidate(2, 4, 1.0)], Ratio::Kept(0.5));
    assert_eq!(found, Err(Error::Candidate { candidate: 0, layer: 2, layers: 2, score: 1.0 }));
    assert!(matches!(strs(&shapes, &[candidate(0, 4, f64::NAN)], Ratio::Kept(0.5)), Err(Error::Candidate { .. })));
    assert!(matches!(strs(&shapes, &[candidate(0, 0, 1.0)], Ratio::Kept(0.5)), Err(Error::Rank { rank: 0, .. })));
    assert_eq!(strs(&shapes, &[], Ratio::Kept(0.0)), Err(Error::Ratio { kept: 0.0 }));
}

#[test]
fn the_stable_rank_scores_a_flat_spectrum_as_less_sensitive() {
    let score = |spectrum: &[f64], kept| stable_rank_score(spectrum, Ratio::Kept(kept)).unwrap();
    assert_eq!(score(&[2.0, 2.0, 2.0, 2.0], 1.0), -2.0);
    assert!(score(&[1.0, 0.0, 0.0, 0.0], 1.0) > score(&[1.0, 1.0, 1.0, 1.0], 1.0));
    assert!(score(&[1.0, 1.0], 0.1) > score(&[1.0, 1.0], 0.9), "a harder cut is worse");
    assert_eq!(stable_rank_score(&[0.0], Ratio::Kept(0.5)), Err(Error::AllZero { what: "singular values" }));
}

#[test]
fn ranks_follow_importance_and_meet_the_total() {
    assert_eq!(allocate_ranks(&[1.0, 1.0, 1.0], 100, 1, 1, &[64; 3]).unwrap(), [34, 33, 33]);
    assert_eq!(
        allocate_ranks(&[1.0, 100.0], 128, 32, 32, &[128, 64]).unwrap(),
        [64, 64],
        "a maximum passes the rest on"
    );
    let found = allocate_ranks(&[1.0, 1.0], 10, 1, 8, &[64; 2]);
    assert_eq!(found, Err(Error::TotalRank { total: 10, least: 16, most: 128 }));
    assert_eq!(allocate_ranks(&[0.0, 0.0], 10, 1, 1, &[64; 2]), Err(Error::AllZero { what: "importances" }));
    assert!(matches!(allocate_ranks(&[f64::NAN], 10, 1, 1, &[64]), Err(Error::Statistic { index: 0, .. })));
    assert!(matches!(allocate_ranks(&[1.0], 10, 0, 1, &[64]), Err(Error::Setting { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn bisection_finds_what_trying_every_cut_finds(
        sizes in prop::collection::vec((8_usize..40, 8_usize..40), 1..6),
        raw in prop::collection::vec((0_usize..6, 1_usize..8, 0_u8..6), 0..24),
        target in 0.05_f64..1.0,
    ) {
        let candidates: Vec<_> =
            raw.iter().map(|&(layer, rank, score)| candidate(layer % sizes.len(), rank, f64::from(score))).collect();
        let cuts: Vec<_> = (0..=candidates.len()).map(|cut| after(&sizes, &candidates, cut)).collect();
        prop_assert!(cuts.is_sorted_by(|a, b| a.1 <= b.1), "what is kept grows with the cut");
        let expected = cuts.iter().rposition(|(_, kept)| *kept <= target);
        match (strs(&sizes, &candidates, Ratio::Kept(target)), expected) {
            (Ok(found), Some(cut)) => {
                prop_assert_eq!(found.cut, cut);
                prop_assert_eq!(&found.choices, &cuts[cut].0);
                prop_assert_eq!(found.kept, cuts[cut].1);
            }
            (Err(Error::Unreachable { smallest, .. }), None) => prop_assert_eq!(smallest, cuts[0].1),
            (found, expected) => prop_assert!(false, "{:?} and {:?}", found, expected),
        }
    }

    #[test]
    fn shares_keep_their_limits_and_their_total(
        importance in prop::collection::vec(0.01_f64..10.0, 1..8),
        multiple in 1_usize..5,
        percent in 0_usize..100,
    ) {
        let max: Vec<usize> = (0..importance.len()).map(|i| multiple * (3 + i)).collect();
        let (least, most) = (multiple * importance.len(), max.iter().sum::<usize>());
        let total = least + (most - least) * percent / 100 / multiple * multiple;
        let ranks = allocate_ranks(&importance, total, multiple, multiple, &max).unwrap();
        prop_assert_eq!(ranks.iter().sum::<usize>(), total);
        prop_assert!(ranks.iter().zip(&max).all(|(rank, max)| *rank >= multiple && rank <= max && rank % multiple == 0));
    }
}
