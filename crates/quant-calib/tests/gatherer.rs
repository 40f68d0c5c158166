//! Many inputs by name: sharing, routing, caches, coverage.

use quant_calib::{Error, ExpertCounts, Gatherer, KvStatistics, KvStream, Needs};

fn attention() -> Gatherer {
    let mut gatherer = Gatherer::default();
    gatherer.declare("q", 2, &Needs::gram()).unwrap();
    gatherer.declare("k", 2, &Needs::channels()).unwrap();
    gatherer.declare("o", 3, &Needs::gram()).unwrap();
    gatherer.share("k", "q").unwrap();
    gatherer.share("v", "k").unwrap(); // through another that shares; it needs nothing of its own
    gatherer
}

#[test]
fn linears_that_share_an_input_gather_it_once_for_the_needs_of_all() {
    let mut gatherer = attention();
    let added = ["q", "k", "v", "o", "other"].map(|linear| {
        let rows: &[f32] = if linear == "o" { &[1.0, 2.0, 3.0] } else { &[1.0, 2.0] };
        gatherer.observe(linear, rows, None).unwrap()
    });
    assert_eq!(added, [true, false, false, true, false]);
    for linear in ["q", "k", "v"] {
        let statistics = gatherer.statistics(linear).unwrap();
        assert_eq!(statistics.tokens(), 1);
        assert!(statistics.gram().is_some() && statistics.channels().is_some(), "{linear}");
    }
    let names: Vec<_> = gatherer.inputs().map(|(leader, sharing, _)| (leader, sharing)).collect();
    assert_eq!(names, [("o", vec![]), ("q", vec!["k", "v"])]);
    assert_eq!(gatherer.take("v").unwrap().tokens(), 1);
    for linear in ["q", "k", "v"] {
        assert_eq!(gatherer.statistics(linear), Err(Error::Unknown { name: linear.to_owned() }));
    }
    assert_eq!(gatherer.inputs().count(), 1);
}

#[test]
fn a_bad_batch_names_the_input_and_the_batch() {
    let mut gatherer = attention();
    gatherer.observe("q", &[1.0, 2.0], None).unwrap();
    let refused = gatherer.observe("q", &[0.0, 1.0, 2.0, f32::INFINITY], None).unwrap_err();
    let source = Box::new(Error::NonFinite { row: 1, channel: 1, value: f32::INFINITY });
    assert_eq!(refused, Error::Input { name: "q".to_owned(), batch: 1, source });
    assert_eq!(
        refused.to_string(),
        "input q, batch 1: row 1, channel 1 is inf; the model that is calibrated must compute finite activations"
    );
    assert_eq!(gatherer.statistics("q").unwrap().tokens(), 1);
    gatherer.declare_experts("moe", 4, 2).unwrap();
    let refused = gatherer.observe_routing("moe", &[0, 4], None).unwrap_err();
    assert_eq!(refused.to_string(), "input moe, batch 0: token 0 is sent to expert 4; the layer has 4");
}

#[test]
fn declarations_that_contradict_are_refused() {
    let mut gatherer = attention();
    let before = gatherer.clone();
    assert_eq!(gatherer.declare("q", 3, &Needs::gram()), Err(Error::Features { features: 2, found: 3 }));
    let refused = |gatherer: &mut Gatherer, linear, leader| match gatherer.share(linear, leader) {
        Err(Error::Declared { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&mut gatherer, "k", "o"), "it shares the input of another linear");
    assert_eq!(refused(&mut gatherer, "q", "q"), "a linear cannot share its own input");
    assert_eq!(refused(&mut gatherer, "q", "o"), "others share its input");
    assert_eq!(gatherer.share("x", "nobody"), Err(Error::Unknown { name: "nobody".to_owned() }));
    gatherer.declare("p", 3, &Needs { seed: 1, ..Needs::reservoir(2) }).unwrap();
    gatherer.declare("r", 3, &Needs { seed: 2, ..Needs::reservoir(2) }).unwrap();
    assert!(matches!(gatherer.share("r", "p"), Err(Error::Settings { .. })), "two seeds");
    gatherer.take("p").unwrap();
    gatherer.take("r").unwrap();
    assert_eq!(gatherer, before);
    gatherer.observe("q", &[1.0, 2.0], None).unwrap();
    for linear in ["q", "v"] {
        let refused = gatherer.declare(linear, 2, &Needs::channels());
        assert!(matches!(refused, Err(Error::Declared { .. })), "{linear}: tokens were gathered");
    }
    gatherer.declare_kv("layer", 2, 4, &Needs::channels()).unwrap();
    assert!(matches!(gatherer.declare_kv("layer", 2, 4, &Needs::gram()), Err(Error::Declared { .. })), "twice");
}

#[test]
fn workers_merge_by_name() {
    let (mut a, mut b) = (attention(), attention());
    a.observe("q", &[1.0, 2.0], None).unwrap();
    b.observe("q", &[3.0, 4.0, 5.0, 6.0], None).unwrap();
    let mut whole = attention();
    whole.observe("q", &[1.0, 2.0], None).unwrap();
    whole.observe("q", &[3.0, 4.0, 5.0, 6.0], None).unwrap();
    a.merge(&b).unwrap();
    assert_eq!(a.statistics("q").unwrap().gram(), whole.statistics("q").unwrap().gram());
    b.declare_experts("moe", 2, 1).unwrap();
    assert_eq!(a.merge(&b), Err(Error::Unknown { name: "moe".to_owned() }));
}

#[test]
fn usage_and_imbalance_are_those_of_the_paper() {
    let mut counts = ExpertCounts::new(4, 2).unwrap();
    counts.add(&[0, 1, 0, 2, 0, 1, 1, 0], None).unwrap();
    assert_eq!(counts.usage(), [0.5, 0.375, 0.125, 0.0]);
    // Deviations from 1/4: .25, .125, −.125, −.25.
    assert!((counts.imbalance() - (0.15625_f64 / 3.0).sqrt()).abs() < 1e-15, "{}", counts.imbalance());
    assert_eq!(counts.unseen(), [3]);
    let mut balanced = ExpertCounts::new(2, 1).unwrap();
    balanced.add(&[0, 1, 1, 0], Some(&[0.5; 4])).unwrap();
    assert_eq!(balanced.imbalance(), 0.0);
    assert_eq!((balanced.gate_sums(), balanced.squared_gate_sums()), (&[1.0, 1.0][..], &[0.5, 0.5][..]));
    let before = balanced.clone();
    balanced.merge(&before).unwrap();
    assert_eq!((balanced.tokens(), balanced.counts()), (8, &[4, 4][..]));
}

#[test]
fn impossible_choices_of_experts_are_refused() {
    assert_eq!(ExpertCounts::new(4, 5), Err(Error::Router { experts: 4, top_k: 5 }));
    assert_eq!(ExpertCounts::new(4, 0), Err(Error::Router { experts: 4, top_k: 0 }));
    let mut counts = ExpertCounts::new(4, 2).unwrap();
    let before = counts.clone();
    assert_eq!(counts.add(&[0, 1, 2], None), Err(Error::Width { features: 2, found: 3 }));
    assert_eq!(counts.add(&[0, 1, 2, 2], None), Err(Error::RepeatedExpert { row: 1, expert: 2 }));
    assert_eq!(counts.add(&[0, 4], None), Err(Error::Expert { row: 0, expert: 4, experts: 4 }));
    assert_eq!(counts.add(&[0, 1], Some(&[1.0])), Err(Error::WeightCount { rows: 2, found: 1 }));
    assert_eq!(counts.add(&[0, 1], Some(&[1.0, -0.5])), Err(Error::Weight { row: 1, value: -0.5 }));
    assert_eq!(counts, before);
    assert!(matches!(counts.merge(&ExpertCounts::new(4, 1).unwrap()), Err(Error::Settings { .. })), "another top-k");
}

#[test]
fn caches_keep_their_streams_apart() {
    let mut gatherer = Gatherer::default();
    gatherer.declare_kv("0", 2, 2, &Needs { channels: true, ..Needs::reservoir(2) }).unwrap();
    for (stream, scale) in KvStream::ALL.into_iter().zip([1.0, 10.0, 100.0]) {
        let rows: Vec<f32> = (0..20).map(|i| scale * (i as f32 - 10.0)).collect();
        assert!(gatherer.observe_kv("0", stream, &rows).unwrap(), "declared");
    }
    let mut kv = gatherer.kv()["0"].clone();
    let most = KvStream::ALL.map(|stream| kv.stream(stream).channels().unwrap().absmax()[0]);
    assert_eq!(most, [10.0, 100.0, 1000.0]);
    let rows = KvStream::ALL.map(|stream| kv.stream(stream).reservoir().unwrap().rows());
    assert!(rows[0].iter().zip(&rows[1]).all(|(a, b)| 10.0 * a == *b), "the streams sample the same tokens");
    assert!(!gatherer.observe_kv("1", KvStream::Values, &[1.0]).unwrap(), "not declared");
    let refused = gatherer.observe_kv("0", KvStream::Values, &[1.0]).unwrap_err();
    assert!(matches!(refused, Error::Input { batch: 5, .. }), "{refused:?}");
    let other = KvStatistics::new(4, 1, &Needs::channels()).unwrap();
    assert!(matches!(kv.merge(&other), Err(Error::Settings { .. })), "other heads");
}

#[test]
fn coverage_counts_tokens_dead_channels_and_unseen_experts() {
    let mut gatherer = attention();
    gatherer.declare("nothing", 2, &Needs::nothing()).unwrap();
    gatherer.declare_experts("moe", 4, 1).unwrap();
    gatherer.observe("q", &[1.0, 0.0, 2.0, 0.0, 3.0, 0.0], None).unwrap();
    gatherer.observe("o", &[1.0, 2.0, 3.0], None).unwrap();
    gatherer.observe_routing("moe", &[2, 2, 1], None).unwrap();
    let coverage = gatherer.coverage();
    let shares: Vec<_> = coverage.inputs.iter().map(|i| (i.linears[0].as_str(), i.tokens, i.dead_share())).collect();
    assert_eq!(shares, [("nothing", 0, None), ("o", 1, Some(0.0)), ("q", 3, Some(0.5))]);
    let poor: Vec<_> = coverage.rank_deficient().map(|i| i.linears[0].as_str()).collect();
    assert_eq!(poor, ["nothing", "o"]);
    assert_eq!(coverage.experts[0].unseen, [0, 3]);
    let expected = "\
| input of | features | tokens | dead channels |
|---|---:|---:|---:|
| nothing | 2 | 0 |  |
| o | 3 | 1 | 0.0 % |
| q, k, v | 2 | 3 | 50.0 % |

| experts of | tokens | fewest | most | unseen | imbalance |
|---|---:|---:|---:|---:|---:|
| moe | 3 | 0 | 2 | 2 | 0.3191 |
";
    assert_eq!(coverage.to_string(), expected);
}
