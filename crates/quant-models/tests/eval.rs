//! Windows, perplexity and divergence.

mod common;

use common::{Noise, all_logits, config, random_model, some_tokens};
use quant_models::eval::{Recording, WindowOptions, Windows, compare, log_softmax, perplexity};
use quant_models::{Decoder, Error, Text, Tokens};
use serde_json::json;

fn text(tokens: usize) -> Tokens {
    Tokens { ids: some_tokens(tokens, 40, 9), ends: (1..=tokens).map(|i| 3 * i).collect() }
}

fn model(seed: u64) -> Decoder {
    random_model(&config(json!({})), seed)
}

fn uniform() -> Decoder {
    let mut model = model(1);
    model.slot_mut("lm_head").unwrap().set_dense(vec![0.0; 40 * 32]).unwrap();
    model
}

/// The same model with a slightly different head.
fn nudged(model: &Decoder) -> Decoder {
    let mut other = model.clone();
    let mut weight = model.slot("lm_head").unwrap().weight().unwrap();
    let mut noise = Noise(77);
    weight.iter_mut().for_each(|w| *w += 0.1 * noise.next());
    other.slot_mut("lm_head").unwrap().set_dense(weight).unwrap();
    other
}

#[test]
fn a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() {
    let windows = Windows::of_text(&text(100), WindowOptions::new(16)).unwrap();
    let score = perplexity(&uniform(), &windows, &mut |_| {}).unwrap();
    assert!((score.perplexity() - 40.0).abs() < 1e-9, "{}", score.perplexity());
    assert!((score.bits_per_byte() - 40.0_f64.log2() / 3.0).abs() < 1e-9, "each token is three bytes");
}

#[test]
fn perplexity_is_the_mean_log_probability_of_each_token_after_the_ones_before() {
    let (model, text) = (model(2), text(23));
    let windows = Windows::of_text(&text, WindowOptions::new(8)).unwrap();
    assert_eq!(windows.list().len(), 2, "the rest of seven tokens is left out");
    let mut nll = 0.0;
    for window in text.ids[..16].chunks(8) {
        let logits = all_logits(&model, window);
        nll -= (1..8).map(|t| log_softmax(&logits[(t - 1) * 40..t * 40], window[t] as usize)).sum::<f64>();
    }
    let score = perplexity(&model, &windows, &mut |_| {}).unwrap();
    assert_eq!((score.tokens, score.bytes), (14, 42));
    assert!((score.nll - nll).abs() < 1e-4, "{} and {nll}", score.nll);
}

#[test]
fn overlapping_windows_score_every_token_once() {
    let text = text(50);
    let cut = |stride, bos| {
        let options = WindowOptions { stride: Some(stride), bos, ..WindowOptions::new(11) };
        Windows::of_text(&text, options).unwrap()
    };
    for (stride, bos) in [(1, None), (4, None), (11, None), (1, Some(0)), (4, Some(0)), (10, Some(0))] {
        let windows = cut(stride, bos);
        let mut next = usize::from(bos.is_none());
        let mut bytes = 0;
        for (index, window) in windows.list().iter().enumerate() {
            assert_eq!(window.tokens.len(), 11, "whole windows");
            let start = index * stride;
            let shift = usize::from(bos.is_some());
            assert_eq!(window.tokens[shift..], text.ids[start..start + 11 - shift], "the text at {start}");
            let scored = start + window.scored.start - shift..start + window.scored.end - shift;
            if stride < 11 {
                assert_eq!(scored.start, next, "stride {stride}: no gap and no overlap");
            }
            next = scored.end;
            bytes += window.bytes;
        }
        let unread = if bos.is_some() {
            0
        } else if stride < 11 {
            1
        } else {
            windows.list().len()
        };
        assert_eq!(windows.scored(), next - unread, "stride {stride}");
        assert_eq!(bytes, 3 * windows.scored() as u64, "three bytes a token");
    }
}

#[test]
fn more_past_gives_the_probabilities_of_the_longer_text() {
    // With stride 1 every token after the first window is predicted from a full window.
    let (model, text) = (model(3), text(14));
    let options = WindowOptions { stride: Some(1), ..WindowOptions::new(6) };
    let score = perplexity(&model, &Windows::of_text(&text, options).unwrap(), &mut |_| {}).unwrap();
    let mut nll = 0.0;
    for t in 1..14_usize {
        let past = &text.ids[(t + 1).saturating_sub(6)..t];
        let logits = all_logits(&model, past);
        nll -= log_softmax(&logits[(past.len() - 1) * 40..], text.ids[t] as usize);
    }
    assert_eq!(score.tokens, 13);
    assert!((score.nll - nll).abs() < 1e-4, "{} and {nll}", score.nll);
}

#[test]
fn a_limit_leaves_out_windows_and_cuts_only_the_first() {
    let text = text(100);
    let cut = |max| Windows::of_text(&text, WindowOptions { max_tokens: Some(max), ..WindowOptions::new(10) }).unwrap();
    assert_eq!(cut(18).scored(), 18, "two windows of nine");
    assert_eq!(cut(26).scored(), 18, "a third would be too much");
    let short = cut(4);
    assert_eq!((short.scored(), short.list()[0].tokens.len()), (4, 5), "the first window is cut");
}

#[test]
fn documents_are_windows_of_their_own() {
    let documents = [text(5), text(1), text(30), Tokens::default(), text(3)];
    let windows = Windows::of_documents(&documents, WindowOptions::new(10)).unwrap();
    let lengths: Vec<usize> = windows.list().iter().map(|window| window.tokens.len()).collect();
    assert_eq!(lengths, [5, 10, 3], "what has nothing to predict is left out, what is long is cut");
    let options = WindowOptions { bos: Some(7), ..WindowOptions::new(10) };
    let windows = Windows::of_documents(&documents, options).unwrap();
    let lengths: Vec<usize> = windows.list().iter().map(|window| window.tokens.len()).collect();
    assert_eq!((lengths, windows.scored()), (vec![6, 2, 10, 4], 18), "all tokens are predicted after the begin token");
    // Ragged windows in one batch score as each does alone.
    let model = model(4);
    let together = perplexity(&model, &windows, &mut |_| {}).unwrap();
    let alone: f64 = documents
        .iter()
        .filter_map(|document| Windows::of_documents(std::slice::from_ref(document), options).ok())
        .map(|windows| perplexity(&model, &windows, &mut |_| {}).unwrap().nll)
        .sum();
    assert!((together.nll - alone).abs() < 1e-4, "{} and {alone}", together.nll);
}

#[test]
fn settings_that_leave_nothing_to_predict_are_refused() {
    let text = text(20);
    let bad = |options: WindowOptions| Windows::of_text(&text, options).unwrap_err();
    assert!(matches!(bad(WindowOptions::new(1)), Error::BadSetting { name: "context", .. }));
    for stride in [0, 9] {
        let error = bad(WindowOptions { stride: Some(stride), ..WindowOptions::new(8) });
        assert!(matches!(error, Error::BadSetting { name: "stride", .. }), "{error}");
    }
    let error = bad(WindowOptions { max_tokens: Some(0), ..WindowOptions::new(8) });
    assert!(matches!(error, Error::BadSetting { name: "tokens", .. }), "{error}");
    for few in [Tokens::default(), Tokens { ids: vec![1], ends: vec![1] }] {
        let error = Windows::of_text(&few, WindowOptions::new(8)).unwrap_err();
        assert!(matches!(error, Error::TooFewTokens { needed: 2, .. }), "{error}");
        let error = Windows::of_documents(&[few], WindowOptions::new(8)).unwrap_err();
        assert!(matches!(error, Error::TooFewTokens { .. }), "{error}");
    }
    let short = Windows::of_text(&text, WindowOptions::new(512)).unwrap();
    assert_eq!(short.scored(), 19, "a text shorter than a window is one window");
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let model = model(5);
    let windows = Windows::of_text(&text(60), WindowOptions::new(20)).unwrap();
    let found = compare(&model, &[&model], &windows, &mut |_| {}).unwrap()[0];
    assert_eq!((found.kl, found.kl_max, found.kl_p999, found.top1), (0.0, 0.0, 0.0, 1.0));
    assert_eq!(found.model, found.reference);
    assert_eq!(found.model, perplexity(&model, &windows, &mut |_| {}).unwrap());
}

#[test]
fn divergence_is_that_of_the_definition() {
    let model = model(6);
    let other = nudged(&model);
    let text = text(30);
    let windows = Windows::of_text(&text, WindowOptions::new(30)).unwrap();
    let (p, q) = (all_logits(&model, &text.ids), all_logits(&other, &text.ids));
    let mut divergences = Vec::new();
    let mut agreed = 0;
    for row in 0..29 {
        let (p, q) = (&p[row * 40..][..40], &q[row * 40..][..40]);
        divergences
            .push((0..40).map(|i| log_softmax(p, i).exp() * (log_softmax(p, i) - log_softmax(q, i))).sum::<f64>());
        let top = |x: &[f32]| (0..40).max_by(|a, b| x[*a].total_cmp(&x[*b])).unwrap();
        agreed += usize::from(top(p) == top(q));
    }
    let found = compare(&model, &[&other], &windows, &mut |_| {}).unwrap()[0];
    let mean = divergences.iter().sum::<f64>() / 29.0;
    let largest = divergences.iter().copied().fold(0.0, f64::max);
    assert!(mean > 1e-3 && (found.kl - mean).abs() < 1e-5 * mean.max(1.0), "{} and {mean}", found.kl);
    assert!((found.kl_max - largest).abs() < 1e-5 && found.kl_p999 == found.kl_max, "{} and {largest}", found.kl_max);
    assert_eq!(found.top1, agreed as f64 / 29.0);
}

#[test]
fn models_walked_together_alone_or_against_a_recording_score_the_same() {
    let model = model(7);
    let (a, b) = (nudged(&model), uniform());
    let options = WindowOptions { stride: Some(7), ..WindowOptions::new(20) };
    let windows = Windows::of_text(&text(200), options).unwrap();
    let together = compare(&model, &[&a, &b], &windows, &mut |_| {}).unwrap();
    let recording = Recording::new(&model, windows.clone(), &mut |_| {}).unwrap();
    assert_eq!(recording.bytes(), 4 * 40 * windows.scored() as u64);
    assert_eq!(recording.score(), together[0].reference);
    for (model, expected) in [&a, &b].into_iter().zip(&together) {
        assert_eq!(recording.compare(model, &mut |_| {}).unwrap(), *expected, "bit for bit");
        assert_eq!(perplexity(model, &windows, &mut |_| {}).unwrap(), expected.model, "bit for bit");
    }
    assert!((together[1].model.perplexity() - 40.0).abs() < 1e-9, "the uniform one");
}

/// The thread pools of a process are set once, so each count of threads gets a process of its own.
#[test]
fn figures_do_not_depend_on_the_number_of_threads() {
    const CHILD: &str = "LEANBITS_TEST_THREADS";
    let json = json!({"hidden_size": 192, "intermediate_size": 256, "vocab_size": 300});
    if std::env::var_os(CHILD).is_some() {
        let model = random_model(&config(json), 1);
        let text = Tokens { ids: some_tokens(1200, 300, 1), ends: (1..=1200).collect() };
        let windows = Windows::of_text(&text, WindowOptions::new(300)).unwrap();
        let found = compare(&model, &[&nudged(&model)], &windows, &mut |_| {}).unwrap()[0];
        println!("figures {:x} {:x}", found.model.nll.to_bits(), found.kl.to_bits());
        return;
    }
    let run = |threads: &str| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "figures_do_not_depend_on_the_number_of_threads", "--nocapture"])
            .env(CHILD, "1")
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = text.lines().find_map(|line| line.find("figures ").map(|at| line[at..].to_owned()));
        found.unwrap_or_else(|| panic!("no figures in {text}"))
    };
    let one = run("1");
    assert_eq!(run("2"), one, "two threads");
    assert_eq!(run("5"), one, "five threads");
}

#[test]
fn progress_counts_up_to_the_end() {
    let windows = Windows::of_text(&text(6000), WindowOptions::new(500)).unwrap();
    let mut seen = Vec::new();
    let score = perplexity(&uniform(), &windows, &mut |progress| seen.push(progress)).unwrap();
    assert!(seen.len() > 1, "more than one batch");
    assert!(seen.windows(2).all(|pair| pair[0].scored < pair[1].scored), "rising");
    let last = seen[seen.len() - 1];
    assert_eq!((last.scored, last.total), (score.tokens, score.tokens));
    assert_eq!(last.perplexity, score.perplexity());
}

#[test]
fn models_of_different_vocabularies_do_not_compare() {
    let other = random_model(&config(json!({"vocab_size": 41})), 8);
    let windows = Windows::of_text(&text(20), WindowOptions::new(10)).unwrap();
    let error = compare(&model(8), &[&other], &windows, &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::VocabularyMismatch { reference: 40, model: 41 }), "{error}");
    let recording = Recording::new(&model(8), windows, &mut |_| {}).unwrap();
    assert!(matches!(recording.compare(&other, &mut |_| {}), Err(Error::VocabularyMismatch { .. })));
}

#[test]
fn logits_that_overflow_and_tokens_out_of_range_are_errors() {
    let mut broken = model(9);
    broken.slot_mut("lm_head").unwrap().set_dense(vec![f32::MAX; 40 * 32]).unwrap();
    let windows = Windows::of_text(&text(20), WindowOptions::new(10)).unwrap();
    let error = perplexity(&broken, &windows, &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::NonFiniteLogits { .. }), "{error}");
    // The last token of a window is only a target; it is checked as well.
    let wrong = Tokens { ids: vec![1, 2, 99], ends: vec![1, 2, 3] };
    let windows = Windows::of_text(&wrong, WindowOptions::new(3)).unwrap();
    assert!(matches!(perplexity(&model(9), &windows, &mut |_| {}), Err(Error::TokenRange { id: 99, .. })));
}

#[test]
fn bytes_of_a_text_are_its_tokens() {
    let tokens = Text::Bytes.encode(&[0, 255, b'a']).unwrap();
    assert_eq!(tokens.ids, [0, 255, 97]);
    assert_eq!(Text::Bytes.decode(&[72, 105, 255]).unwrap(), "Hi\u{fffd}");
    assert!(matches!(Text::Bytes.decode(&[72, 256]), Err(Error::TokenRange { index: 1, id: 256, .. })));
}
