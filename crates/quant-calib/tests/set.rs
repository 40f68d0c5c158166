//! Calibration sets: cutting, hashing, refusing.

use quant_calib::{CalibrationSet, Error, WindowChoice, WindowConfig};

fn text(tokens: u32) -> Vec<u32> {
    (0..tokens).collect()
}

#[test]
fn consecutive_windows_follow_each_other() {
    let config = WindowConfig { length: 3, count: None, choice: WindowChoice::Consecutive, seed: 0 };
    let set = CalibrationSet::cut("text", &text(10), &config).unwrap();
    assert_eq!(set.windows(), [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7, 8]]);
    let two = CalibrationSet::cut("text", &text(10), &WindowConfig { count: Some(2), ..config }).unwrap();
    assert_eq!(two.windows(), &set.windows()[..2]);
}

#[test]
fn random_windows_reach_both_ends_and_repeat_with_their_seed() {
    let config = WindowConfig { length: 4, count: Some(200), ..WindowConfig::default() };
    let set = CalibrationSet::cut("text", &text(10), &config).unwrap();
    assert!(set.windows().iter().all(|w| w.len() == 4 && w.windows(2).all(|pair| pair[1] == pair[0] + 1)), "whole");
    for start in 0..7 {
        assert!(set.windows().iter().any(|w| w[0] == start), "no window starts at {start}");
    }
    assert_eq!(set, CalibrationSet::cut("text", &text(10), &config).unwrap());
    let other = CalibrationSet::cut("text", &text(10), &WindowConfig { seed: 1, ..config }).unwrap();
    assert_ne!(set.windows(), other.windows());
}

#[test]
fn texts_that_are_too_short_are_refused() {
    let config = WindowConfig { length: 4, count: Some(3), ..WindowConfig::default() };
    let cut = |tokens, config: &WindowConfig| CalibrationSet::cut("text", &text(tokens), config);
    assert_eq!(cut(3, &config), Err(Error::ShortText { windows: 3, length: 4, needed: 4, found: 3 }));
    let consecutive = WindowConfig { choice: WindowChoice::Consecutive, ..config.clone() };
    assert_eq!(cut(11, &consecutive), Err(Error::ShortText { windows: 3, length: 4, needed: 12, found: 11 }));
    let all = WindowConfig { count: None, ..consecutive };
    assert_eq!(cut(3, &all), Err(Error::ShortText { windows: 1, length: 4, needed: 4, found: 3 }));
    assert_eq!(cut(9, &WindowConfig { length: 0, ..config.clone() }), Err(Error::EmptySet { window: 0 }));
    assert_eq!(cut(9, &WindowConfig { count: Some(0), ..config }), Err(Error::EmptySet { window: 0 }));
    assert_eq!(CalibrationSet::new("text", vec![]), Err(Error::EmptySet { window: 0 }));
    assert_eq!(CalibrationSet::new("text", vec![vec![1], vec![]]), Err(Error::EmptySet { window: 1 }));
}

#[test]
fn the_hash_tells_sets_apart() {
    let set = |source: &str, windows: &[&[u32]]| {
        CalibrationSet::new(source, windows.iter().map(|w| w.to_vec()).collect()).unwrap().hash()
    };
    let first = set("a", &[&[1, 2], &[3]]);
    assert_eq!(first, set("a", &[&[1, 2], &[3]]));
    for other in [set("b", &[&[1, 2], &[3]]), set("a", &[&[1], &[2, 3]]), set("a", &[&[3], &[1, 2]])] {
        assert_ne!(first, other);
    }
    // Part of the format: it must not change.
    assert_eq!(first, 0xa5d1_dcf6_47d6_62fd);
}

#[test]
fn tokens_outside_the_vocabulary_are_named() {
    let set = CalibrationSet::new("text", vec![vec![1, 2], vec![3, 9]]).unwrap();
    assert_eq!(set.check_vocabulary(10), Ok(()));
    assert_eq!(set.check_vocabulary(9), Err(Error::Token { window: 1, position: 1, token: 9, vocabulary: 9 }));
}

#[test]
fn a_set_comes_back_from_json_and_a_changed_one_does_not() {
    let set = CalibrationSet::new("text", vec![vec![1, 2], vec![3, 9]]).unwrap();
    let json = serde_json::to_string(&set).unwrap();
    assert_eq!(serde_json::from_str::<CalibrationSet>(&json).unwrap(), set);
    for (from, to) in [("[1,2]", "[1,3]"), ("text", "test"), ("[1,2],", ""), ("[1,2]", "[]")] {
        let changed = json.replace(from, to);
        assert_ne!(changed, json);
        assert!(serde_json::from_str::<CalibrationSet>(&changed).is_err(), "{changed}");
    }
}
