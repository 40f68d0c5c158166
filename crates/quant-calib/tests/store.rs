//! Saved statistics: exact return, resumption, refusal of anything else.

use proptest::prelude::*;
use quant_calib::{Error, GatePower, Gatherer, KvStream, Needs, QuantileNeeds};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::HashMap;

fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 101) % 211) as f32 / 50.0 - 2.0).collect()
}

fn declared() -> Gatherer {
    let needs = Needs {
        channels: true,
        quantiles: Some(QuantileNeeds { bits: 3, per_channel: true }),
        reservoir: Some(5),
        seed: 7,
        gate_power: GatePower::Linear,
        ..Needs::gram()
    };
    let mut gatherer = Gatherer::default();
    gatherer.declare("all", 3, &needs).unwrap();
    gatherer.share("sharing", "all").unwrap();
    gatherer.declare("large", 5, &Needs::gram()).unwrap();
    gatherer.declare("without tokens", 2, &needs).unwrap();
    gatherer.declare("without needs", 2, &Needs::nothing()).unwrap();
    gatherer.declare_experts("moe", 4, 2).unwrap();
    gatherer.declare_kv("cache", 2, 2, &Needs::channels()).unwrap();
    gatherer
}

fn feed(gatherer: &mut Gatherer, seed: usize) {
    gatherer.observe("all", &values(3 * 20, seed), Some(&[0.5; 20])).unwrap();
    gatherer.observe("large", &values(5 * 700, seed), None).unwrap();
    gatherer.observe("without needs", &[1.0, 2.0], None).unwrap();
    gatherer.observe_routing("moe", &[0, 1, 3, 0], Some(&[0.75, 0.25, 0.5, 0.5])).unwrap();
    gatherer.observe_kv("cache", KvStream::Values, &values(8, seed)).unwrap();
}

#[test]
fn what_was_saved_comes_back_to_the_bit_and_goes_on_as_if_nothing_had_happened() {
    let mut whole = declared();
    feed(&mut whole, 1);
    let bytes = whole.to_bytes().unwrap();
    let mut resumed = Gatherer::from_bytes(&bytes).unwrap();
    assert_eq!(resumed, whole);
    assert_eq!(resumed.to_bytes().unwrap(), bytes, "the same bytes every time");
    feed(&mut whole, 2);
    feed(&mut resumed, 2);
    assert_eq!(resumed, whole);
    assert_eq!(Gatherer::from_bytes(&Gatherer::default().to_bytes().unwrap()), Ok(Gatherer::default()));
    assert_eq!(Gatherer::from_bytes(&declared().to_bytes().unwrap()), Ok(declared()));
}

#[test]
fn merged_statistics_come_back_too() {
    let (mut a, mut b) = (declared(), declared());
    feed(&mut a, 1);
    let needs = Needs { seed: 8, ..Needs::reservoir(5) };
    for (gatherer, seed) in [(&mut a, 7), (&mut b, 8)] {
        gatherer.take("all").unwrap();
        gatherer.declare("sample", 1, &Needs { seed, ..needs.clone() }).unwrap();
        gatherer.observe("sample", &values(30, 3), None).unwrap();
    }
    feed(&mut a, 2);
    a.merge(&b).unwrap();
    assert_eq!(Gatherer::from_bytes(&a.to_bytes().unwrap()), Ok(a));
}

type Tensors = Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// Takes a file apart, changes index and tensors, puts it together.
fn changed(change: impl FnOnce(&mut String, &mut Tensors)) -> Result<Gatherer, Error> {
    let mut gatherer = declared();
    feed(&mut gatherer, 1);
    let bytes = gatherer.to_bytes().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut index = metadata.metadata().as_ref().unwrap()["leanbits-calibration"].clone();
    let take =
        |(name, view): (String, TensorView<'_>)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
    let mut tensors: Tensors = file.tensors().into_iter().map(take).collect();
    change(&mut index, &mut tensors);
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let metadata = HashMap::from([("leanbits-calibration".to_owned(), index)]);
    Gatherer::from_bytes(&safetensors::serialize(views, Some(metadata)).unwrap())
}

fn tensor<'a>(tensors: &'a mut Tensors, name: &str) -> &'a mut (String, safetensors::Dtype, Vec<usize>, Vec<u8>) {
    tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
}

fn item(result: Result<Gatherer, Error>) -> String {
    match result {
        Err(Error::Stored { item, .. }) => item,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_unchanged_file_is_read() {
    assert!(changed(|_, _| {}).is_ok(), "the tests below must fail for what they change");
}

#[test]
fn each_tensor_is_missed_and_checked() {
    let mut names = Vec::new();
    changed(|_, tensors| names = tensors.iter().map(|t| t.0.clone()).collect()).unwrap();
    assert!(names.len() > 40, "{names:?}");
    for name in &names {
        assert_eq!(item(changed(|_, tensors| tensors.retain(|t| t.0 != *name))), *name, "missing");
        let wrong_type = changed(|_, tensors| {
            let tensor = tensor(tensors, name);
            tensor.1 =
                if tensor.1 == safetensors::Dtype::F32 { safetensors::Dtype::I32 } else { safetensors::Dtype::I64 };
        });
        assert_eq!(item(wrong_type), *name, "type");
        let wrong_shape = changed(|_, tensors| tensor(tensors, name).2.push(1));
        assert_eq!(item(wrong_shape), *name, "shape");
        let is_float = |t: &safetensors::Dtype| matches!(t, safetensors::Dtype::F32 | safetensors::Dtype::F64);
        changed(|_, tensors| {
            let (_, dtype, _, bytes) = tensor(tensors, name);
            if is_float(dtype) && !bytes.is_empty() {
                let refused = changed(|_, tensors| tensor(tensors, name).3[..bytes.len()].fill(0xff));
                assert!(name.starts_with(&item(refused)), "NaN in {name}");
            }
        })
        .unwrap();
    }
    let extra = changed(|_, tensors| tensors.push(("extra".to_owned(), safetensors::Dtype::U8, vec![1], vec![0])));
    assert_eq!(item(extra), "extra");
}

#[test]
fn impossible_figures_are_refused() {
    type Case = (&'static str, &'static str, fn(&mut Vec<u8>));
    let cases: [Case; 8] = [
        ("inputs.0.channels.min", "inputs.0.channels", |b| b[..4].copy_from_slice(&1e9_f32.to_le_bytes())),
        ("inputs.0.channels.square_sum", "inputs.0.channels.square_sum", |b| b[7] ^= 0x80),
        ("inputs.0.gram.weight_sum", "inputs.0.gram.weight_sum", |b| b[7] ^= 0x80),
        ("inputs.0.quantiles.layout", "inputs.0.quantiles", |b| b[..8].fill(0xff)),
        ("inputs.0.quantiles.counts", "inputs.0.quantiles", |b| b[0] ^= 1),
        ("inputs.0.reservoir.keys", "inputs.0.reservoir", |b| b[..8].fill(0xff)),
        ("inputs.0.reservoir.weights", "inputs.0.reservoir", |b| b[3] ^= 0x80),
        ("experts.0.counts", "experts.0", |b| b[0] ^= 1),
    ];
    for (name, expected, change) in cases {
        assert_eq!(item(changed(|_, tensors| change(&mut tensor(tensors, name).3))), expected, "{name}");
    }
}

#[test]
fn a_contradictory_index_is_refused() {
    let cases = [
        ("\"version\":1", "\"version\":2", "index"),
        ("\"version\":1", "\"version\":-1", "index"),
        ("\"version\":1,", "\"version\":1,\"other\":0,", "index"),
        ("\"version\":1,", "", "index"),
        ("{\"sharing\":\"all\"}", "{\"sharing\":\"nobody\"}", "sharing"),
        ("{\"sharing\":\"all\"}", "{\"large\":\"all\"}", "large"),
        ("\"linear\":\"large\"", "\"linear\":\"all\"", "all"),
        ("\"features\":5", "\"features\":6", "inputs.1.gram.pending"),
        ("\"features\":5", "\"features\":1099511627776", "inputs.1.gram.pending"),
        ("\"tokens\":20", "\"tokens\":21", "inputs.0.quantiles"),
        ("\"tokens\":700", "\"tokens\":7", "inputs.1.gram"),
        ("\"reservoir\":5", "\"reservoir\":4", "inputs.0.reservoir.keys"),
        ("\"reservoir\":5", "\"reservoir\":18446744073709551615", "inputs.0.reservoir.keys"),
        ("[[7],20]", "[[7],21]", "inputs.0.reservoir"),
        ("[[7],20]", "[[],20]", "inputs.0.reservoir"),
        ("[[7],20]", "null", "inputs.0"),
        ("\"top_k\":2", "\"top_k\":0", "experts.0"),
        ("\"top_k\":2", "\"top_k\":1", "experts.0"),
        ("\"experts\":4", "\"experts\":5", "experts.0.counts"),
        ("\"heads\":2", "\"heads\":3", "kv.0.0"),
        ("\"heads\":2", "\"heads\":18446744073709551615", "kv.0.0"),
    ];
    for (from, to, expected) in cases {
        let found = changed(|index, _| {
            assert!(index.contains(from), "{from} is not in {index}");
            *index = index.replacen(from, to, 1);
        });
        match found {
            Err(Error::Stored { item, .. }) if item.starts_with(expected) => {}
            other => panic!("{from} -> {to}: {other:?}"),
        }
    }
    let huge = changed(|index, tensors| {
        *index = index.replacen("\"features\":5", "\"features\":1099511627776", 1);
        let pending = tensor(tensors, "inputs.1.gram.pending");
        (pending.2, pending.3) = (vec![0, 1 << 40], vec![]);
    });
    assert_eq!(item(huge), "inputs.1.gram", "no loop over tiles that do not exist");
    let bits = changed(|index, _| *index = index.replacen("\"bits\":3", "\"bits\":30", 1));
    assert_eq!(bits, Err(Error::SketchBits { bits: 30, most: 12 }));
}

#[test]
fn bytes_that_are_no_file_are_refused() {
    let bytes = declared().to_bytes().unwrap();
    for end in [0, 7, 8, 100, bytes.len() - 1] {
        assert_eq!(item(Gatherer::from_bytes(&bytes[..end])), "file");
    }
    let other = safetensors::serialize(std::iter::empty::<(&str, TensorView<'_>)>(), None).unwrap();
    assert_eq!(item(Gatherer::from_bytes(&other)), "file");
}

proptest! {
    #[test]
    fn changed_bytes_never_panic(at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut gatherer = declared();
        feed(&mut gatherer, 1);
        let mut bytes = gatherer.to_bytes().unwrap();
        let position = at.index(bytes.len());
        bytes[position] = with;
        let _ = Gatherer::from_bytes(&bytes);
        let end = cut.index(bytes.len());
        prop_assert!(Gatherer::from_bytes(&bytes[..end]).is_err());
    }
}
