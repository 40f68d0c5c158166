//! Methods by name.

mod common;

use common::*;
use kv_cache_quant::*;
use std::sync::Arc;

const NAMES: [&str; 20] = [
    "f32",
    "f16",
    "int4-g32-min",
    "int8/nvfp4",
    "rotated:int4-min",
    "rotated:int4-min/int2-g32-min",
    "centred:int4-min",
    "smooth:int4-min",
    "kivi:2",
    "kivi:4/2",
    "2d:4/2",
    "skvq:2",
    "skvq:2/ternary",
    "skvq:2-g32/ternary-g64",
    "2d-range:4",
    "cskv:0.5",
    "cskv:60/0.875",
    "cskv:1.0@int4-min/0.9@int8",
    "cskv-block:1.0@int4-min/0.9@int8-g32",
    "pm-kvq",
];

fn statistics(g: KvGeometry) -> Pair<StreamStatistics> {
    let (keys, values) = rows(g, 64, 1);
    Pair {
        keys: StreamStatistics::of(&keys, g.key_width()).unwrap(),
        values: StreamStatistics::of(&values, g.value_width()).unwrap(),
    }
}

#[test]
fn every_name_prints_as_it_was_parsed_and_makes_a_cache_that_works() {
    let g = geometry(64);
    let data = rows(g, 300, 2);
    for name in NAMES {
        let method: KvMethod = name.parse().unwrap();
        assert_eq!(method.to_string(), name);
        let json = serde_json::to_string(&method).unwrap();
        assert_eq!(json, format!("\"{name}\""));
        assert_eq!(serde_json::from_str::<KvMethod>(&json).unwrap(), method);
        let mut cache = method.cache(g, KeyStorage::PostRope, method.policy(), Some(&statistics(g))).unwrap();
        append(&mut cache, &data, 0..300);
        let (keys, values) = decoded(&cache);
        let error = relative_mse(&data.0, &keys, g.key_width()).max(relative_mse(&data.1, &values, g.value_width()));
        // Of channels that have nothing in common, latents lose their share.
        let worst = if name.starts_with("cskv") { 0.6 } else { 0.3 };
        assert!(error < worst, "{name}: {error}");
        let without = method.cache(g, KeyStorage::PostRope, method.policy(), None);
        match without {
            Ok(_) => assert!(!method.needs_statistics(), "{name}"),
            Err(Error::Statistics { stream: Stream::Keys }) => assert!(method.needs_statistics(), "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn trained_maps_come_with_the_statistics_and_are_asked_for_by_name() {
    let g = geometry(64);
    let method: KvMethod = "cskv-block:0.5@int4-min+trained/0.9@int8".parse().unwrap();
    assert_eq!(method.to_string(), "cskv-block:0.5@int4-min+trained/0.9@int8");
    let (codes, blocks) = method.latents().unwrap();
    assert!(blocks && codes.keys.trained && !codes.values.trained);
    assert_eq!(method.untrained().to_string(), "cskv-block:0.5@int4-min/0.9@int8");
    let mut seen = statistics(g);
    let cache = |seen: &Pair<StreamStatistics>| method.cache(g, KeyStorage::PostRope, method.policy(), Some(seen));
    assert!(matches!(cache(&seen), Err(Error::Unsupported { what: "maps of latents", .. })));
    // Maps that keep the first half of the channels: what is rebuilt says that they are used.
    let (channels, width) = (g.key_width(), g.kv_heads * 32);
    let pick: Vec<f32> = (0..channels * width).map(|i| f32::from(u8::from(i / width == i % width))).collect();
    let back: Vec<f32> = (0..channels * width).map(|i| f32::from(u8::from(i / channels == i % channels))).collect();
    let maps = Adapter::new(&pick, &back, vec![0.0; channels], width, FullPrecision::F16).unwrap();
    seen.keys.adapter = Some(Arc::new(maps));
    let mut cache = cache(&seen).unwrap();
    append(&mut cache, &rows(g, 64, 2), 0..64);
    let (keys, _) = decoded(&cache);
    assert!(keys.chunks_exact(channels).all(|key| key[width..].iter().all(|x| *x == 0.0) && key[0] != 0.0));
    let narrow =
        Adapter::new(&pick[..channels], &back[..channels], vec![0.0; channels], 1, FullPrecision::F16).unwrap();
    seen.keys.adapter = Some(Arc::new(narrow));
    assert!(matches!(
        method.cache(g, KeyStorage::PostRope, method.policy(), Some(&seen)),
        Err(Error::Width { what: "codec of latents", .. })
    ));
}

#[test]
fn statistics_of_rows_are_what_they_say() {
    let s = StreamStatistics::of(&[1.0, -2.0, 3.0, -2.0], 2).unwrap();
    assert_eq!((s.min, s.max), (vec![1.0, -2.0], vec![3.0, -2.0]));
    assert_eq!((s.mean, s.deviation), (vec![2.0, -2.0], vec![1.0, 0.0]));
    for (rows, channels) in [(&[][..], 2), (&[1.0, 2.0, 3.0][..], 2), (&[1.0][..], 0)] {
        assert!(matches!(StreamStatistics::of(rows, channels), Err(Error::Shape { .. })));
    }
}

#[test]
fn names_that_mean_nothing_are_refused() {
    for name in [
        "",
        "kivi",
        "kivi:0",
        "kivi:9",
        "kivi:2/",
        "skvq:ternar",
        "2d:4/x",
        "turbo:3",
        "rotated:nothing",
        "cskv:",
        "cskv:0.1234",
        "cskv:2.0",
        "cskv:0.5@",
        "cskv:0.5@nothing",
        "cskv:-1",
        "cskv:0.5+trained",
        "cskv:0.5@int4-min+",
    ] {
        assert!(name.parse::<KvMethod>().is_err(), "`{name}`");
    }
    let text = "turbo:3".parse::<KvMethod>().unwrap_err().to_string();
    assert!(text.contains("turbo:3") && text.contains("skvq:BITS"), "{text}");
}
