//! A bounded run of the fuzz bodies: seeded mutations of the corpus. Nothing may panic or hang.

use quant_io::fuzz_bodies;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::path::Path;

type Body = fn(&[u8]) -> Result<(), quant_io::Error>;

fn corpus(prefixes: &[&str]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let wanted = |path: &Path| prefixes.iter().any(|p| path.file_name().unwrap().to_str().unwrap().starts_with(p));
    files.into_iter().filter(|f| wanted(f)).map(|f| std::fs::read(f).unwrap()).collect()
}

fn below(rng: &mut ChaCha8Rng, limit: usize) -> usize {
    usize::try_from(rng.next_u64() % u64::try_from(limit.max(1)).unwrap()).unwrap()
}

/// Flips bits, sets extreme bytes and words, cuts, doubles and swaps stretches.
fn mutate(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    const WORDS: [u64; 8] = [0, 1, 31, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX];
    const TEXT: &[u8] = b"{}[]\",:0189-.eE\\ug";
    for _ in 0..=below(rng, 4) {
        let (at, len) = (below(rng, bytes.len()), bytes.len());
        match below(rng, 8) {
            0 if len > 0 => bytes[at] ^= 1 << below(rng, 8),
            1 if len > 0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][below(rng, 5)],
            2 if len > 0 => bytes[at] = TEXT[below(rng, TEXT.len())],
            3 if at + 8 <= len => bytes[at..at + 8].copy_from_slice(&WORDS[below(rng, WORDS.len())].to_le_bytes()),
            4 => bytes.truncate(at),
            5 => bytes.insert(at, TEXT[below(rng, TEXT.len())]),
            6 => {
                let stretch = bytes[at..(at + below(rng, 40)).min(len)].to_vec();
                let to = below(rng, len + 1);
                bytes.splice(to..to, stretch);
            }
            _ => {
                let end = (at + below(rng, 16)).min(len);
                bytes.drain(at..end);
            }
        }
    }
}

/// Sets the header length of a safetensors file to where its JSON ends; most changes would else end there.
fn mend_length(bytes: &mut [u8]) {
    if bytes.get(8) == Some(&b'{')
        && let Some(end) = bytes.windows(2).rposition(|pair| pair == b"}}")
    {
        let length = u64::try_from((end + 2).saturating_sub(8)).unwrap_or(0);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
    }
}

/// How much longer than usual to run: `LEANBITS_MUTATIONS=100 cargo test -p quant-io --test mutations`.
fn factor() -> usize {
    std::env::var("LEANBITS_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn run(name: &str, body: Body, seeds: &[Vec<u8>], rounds: usize) {
    let rounds = rounds * factor();
    let mut rng = ChaCha8Rng::seed_from_u64(0x6c65_616e);
    let (mut accepted, mut refused) = (0, 0);
    for seed in seeds {
        for _ in 0..rounds {
            let mut bytes = seed.clone();
            mutate(&mut bytes, &mut rng);
            if below(&mut rng, 2) == 0 {
                mend_length(&mut bytes);
            }
            match body(&bytes) {
                Ok(()) => accepted += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty(), "an error says something");
                    refused += 1;
                }
            }
        }
    }
    // Mutations that are all refused alike would mean that nothing behind the first check is reached.
    println!("{name}: {accepted} accepted, {refused} refused");
    assert!(accepted > 0 && refused > 0, "{name}: {accepted} accepted, {refused} refused");
}

#[test]
fn mutated_safetensors_files_never_panic() {
    run("safetensors", fuzz_bodies::safetensors, &corpus(&["container-", "packed-"]), 200);
}

#[test]
fn mutated_gguf_files_never_panic() {
    run("gguf", fuzz_bodies::gguf, &corpus(&["gguf-"]), 300);
}

#[test]
fn mutated_indexes_never_panic() {
    run("index", fuzz_bodies::index, &corpus(&["index-"]), 200);
}

#[test]
fn mutated_configs_never_panic() {
    run("config", fuzz_bodies::config, &corpus(&["config-"]), 300);
}

#[test]
fn mutated_compressed_tensors_checkpoints_never_panic() {
    run("compressed_tensors", fuzz_bodies::compressed_tensors, &corpus(&["compressed-"]), 300);
}

#[test]
fn sections_of_any_bytes_are_decoded_or_refused() {
    let seed = |named: &quant_core::NamedFormat| [&[3, 70], named.name.as_bytes(), b"\n", &[0x3c; 600]].concat();
    let seeds: Vec<Vec<u8>> = quant_core::Format::named().iter().map(seed).collect();
    run("sections", fuzz_bodies::sections, &seeds, 300);
    let mut rng = ChaCha8Rng::seed_from_u64(0x7365_6374);
    for named in quant_core::Format::named() {
        for _ in 0..40 {
            let mut input = [&[3, 70], named.name.as_bytes(), b"\n"].concat();
            input.extend((0..3000).map(|_| rng.next_u64().to_le_bytes()[0]));
            // Random scales may be NaN, which is an error; nothing may panic.
            let _ = fuzz_bodies::sections(&input);
        }
    }
}

#[test]
fn mutated_format_names_never_panic() {
    let names: Vec<Vec<u8>> = quant_core::Format::named()
        .iter()
        .map(|named| named.name.as_bytes().to_vec())
        .chain(
            ["int4-g32-asym-bf16", "nvfp4-ct", "fp8-e5m2-t128x128", "sefp4-g32", "nf4-dq"]
                .map(|n| n.as_bytes().to_vec()),
        )
        .collect();
    run("format_name", fuzz_bodies::format_name, &names, 500);
}
