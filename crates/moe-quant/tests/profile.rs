//! Times: interpolation, the saved form, refusals.

use moe_quant::{Device, DeviceKind, Error, Profile, Scheme, SchemeTimes, Tile, TileTimes};

fn device() -> Device {
    Device { kind: DeviceKind::Cpu, name: "one with avx2".into(), workers: 1 }
}

fn scheme() -> Scheme {
    "int8/int8".parse().unwrap()
}

fn profile(times: Vec<TileTimes>) -> Result<Profile, Error> {
    let tiles = vec![Tile { columns: 10, group: 0, launch: 0.5, times }];
    Profile::new(device(), vec![SchemeTimes { scheme: scheme(), tiles }])
}

#[test]
fn times_are_interpolated_between_rows_and_features_and_proportional_beyond() {
    let at = |features, scale: f64| TileTimes {
        features,
        seconds: [(1, 1.0), (4, 2.0), (8, 6.0)].into_iter().map(|(rows, s)| (rows, s * scale)).collect(),
    };
    let profile = profile(vec![at(100, 1.0), at(200, 3.0)]).unwrap();
    let time = |rows, shape| profile.seconds(scheme(), 0, rows, shape).unwrap();
    assert_eq!(time(0, [10, 100]), 0.0, "no rows, no time");
    assert_eq!(time(1, [10, 100]), 1.5, "launch and one tile");
    assert_eq!(time(6, [10, 100]), 4.5, "between 4 and 8 rows");
    assert_eq!(time(20, [10, 100]), 2.0f64.mul_add(6.0, 2.5), "two tiles of 8 and one of 4");
    assert_eq!(time(4, [21, 100]), 6.5, "three tiles beside each other");
    assert_eq!(time(4, [10, 150]), 4.5, "between two numbers of features");
    assert_eq!(time(4, [10, 50]), 1.5, "half of the fewest");
    assert_eq!(time(4, [10, 400]), 12.5, "twice the most");
}

#[test]
fn what_a_layer_does_beside_products_is_interpolated_between_batches_and_proportional_beyond() {
    let plain = || profile(vec![TileTimes { features: 64, seconds: vec![(16, 1e-6)] }]).unwrap();
    let overhead = |seconds| TileTimes { features: 30, seconds };
    let with = plain().with_overhead(overhead(vec![(2, 1.0), (4, 2.0), (8, 6.0)])).unwrap();
    let at = |rows, widths| with.overhead(rows, widths);
    assert_eq!(at(0, [10, 20]), 0.0, "no rows, no time");
    assert_eq!(at(1, [10, 20]), 1.0, "a call takes its time however few its rows");
    assert_eq!(at(6, [10, 20]), 4.0, "between 4 and 8 rows");
    assert_eq!(at(24, [10, 20]), 18.0, "three times the most");
    assert_eq!(at(4, [20, 40]), 4.0, "twice the widths");
    assert_eq!(plain().overhead(3, [10, 20]), 0.0, "not measured");
    let text = serde_json::to_string(&with).unwrap();
    assert_eq!(serde_json::from_str::<Profile>(&text).unwrap(), with);
    for bad in [vec![], vec![(0, 1.0)], vec![(1, -1.0)], vec![(1, f64::NAN)], vec![(2, 1.0), (1, 2.0)]] {
        let refused = plain().with_overhead(overhead(bad.clone()));
        assert!(matches!(refused, Err(Error::Profile { .. })), "{bad:?}: {refused:?}");
    }
}

#[test]
fn a_profile_survives_being_saved_and_belongs_to_its_machine() {
    let profile = profile(vec![TileTimes { features: 64, seconds: vec![(16, 1e-6)] }]).unwrap();
    let text = serde_json::to_string(&profile).unwrap();
    assert_eq!(serde_json::from_str::<Profile>(&text).unwrap(), profile);
    profile.check_device(&device()).unwrap();
    let other = Device { workers: 2, ..device() };
    let refused = profile.check_device(&other).unwrap_err();
    assert!(matches!(refused, Error::OtherMachine { .. }), "{refused}");
    assert!(refused.to_string().contains("with 2 workers"), "{refused}");
    for (from, to) in [("\"version\":2", "\"version\":1"), ("1e-6", "-1.0"), ("1e-6", "0.0"), ("\"cpu\"", "\"abacus\"")]
    {
        let text = text.replace(from, to);
        assert!(serde_json::from_str::<Profile>(&text).is_err(), "{to}");
    }
}

#[test]
fn contradictions_are_refused() {
    let times = |features, seconds| TileTimes { features, seconds };
    let bad = [
        vec![],
        vec![times(64, vec![])],
        vec![times(0, vec![(1, 1.0)])],
        vec![times(64, vec![(0, 1.0)])],
        vec![times(64, vec![(4, 1.0), (4, 2.0)])],
        vec![times(64, vec![(1, f64::NAN)])],
        vec![times(64, vec![(1, 1.0)]), times(64, vec![(1, 1.0)])],
    ];
    for times in bad {
        let refused = profile(times.clone());
        assert!(matches!(refused, Err(Error::Profile { .. })), "{times:?}: {refused:?}");
    }
    let nobody = Profile::new(Device { workers: 0, ..device() }, Vec::new());
    assert!(matches!(nobody, Err(Error::Setting { .. })), "{nobody:?}");
    let good = profile(vec![times(64, vec![(1, 1.0)])]).unwrap();
    let refused = good.seconds("int4".parse().unwrap(), 0, 1, [8, 8]);
    assert!(matches!(refused, Err(Error::NoTimes { .. })), "{refused:?}");
    assert!(matches!(good.seconds(scheme(), 3, 1, [8, 8]), Err(Error::Length { .. })));
}
