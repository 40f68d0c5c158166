//! What the tests of the program share: running it, and small models to run it on.
#![allow(dead_code, reason = "every test file uses its own part")]

use leanbits::io::safetensors::{DType, TensorSpec, serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The embedded model as a folder.
pub(crate) fn tiny_llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama")
}

/// The held-out text that goes with it.
pub(crate) fn heldout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/heldout.txt")
}

/// What a run of the program gave.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The JSON object on standard output, which must be all there is.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "exit code; standard error: {}", self.stderr);
        serde_json::from_str(&self.stdout).expect("standard output is one JSON object")
    }

    /// Asserts a failure: its code, one line that says all of `words`, and a line with a hint.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "exit code; standard error: {}", self.stderr);
        let lines: Vec<&str> = self.stderr.lines().filter(|line| !line.is_empty()).collect();
        let errors: Vec<&&str> = lines.iter().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "one line says what is wrong: {}", self.stderr);
        for word in words {
            assert!(errors[0].contains(word), "{word:?} is missing in {}", errors[0]);
        }
    }

    /// As [`Run::fails`], and the hint says `hint`.
    #[track_caller]
    pub(crate) fn fails_with_hint(&self, code: i32, words: &[&str], hint: &str) {
        self.fails(code, words);
        let found = self.stderr.lines().find(|line| line.starts_with("hint: ")).expect("a hint");
        assert!(found.contains(hint), "{hint:?} is missing in {found}");
    }
}

/// The program, to be given arguments.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leanbits"));
    command.stdin(Stdio::null()).env_remove("RAYON_NUM_THREADS");
    command
}

/// Runs the program.
pub(crate) fn run<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Run {
    Run::new(program().args(arguments).output().expect("the program starts"))
}

/// Arguments of different types in one list.
#[macro_export]
macro_rules! args {
    ($($argument:expr),* $(,)?) => { [$(std::ffi::OsString::from(&$argument)),*] };
}

/// Values between −1 and 1 with a few larger ones, different for every seed.
pub(crate) fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..count)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            if i % 97 == 0 { 4.0 * value } else { value }
        })
        .collect()
}

/// A tensor of f32 values as it lies in a file.
pub(crate) fn f32_tensor(name: &str, shape: &[usize], values: &[f32]) -> (TensorSpec, Vec<u8>) {
    (TensorSpec::new(name, DType::F32, shape), values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// Writes a safetensors file.
pub(crate) fn write_safetensors(path: &Path, tensors: &[(TensorSpec, Vec<u8>)]) {
    let lent: Vec<(TensorSpec, &[u8])> = tensors.iter().map(|(spec, bytes)| (spec.clone(), bytes.as_slice())).collect();
    let file = serialize(&lent, BTreeMap::from([("format".into(), "pt".into())])).expect("a file");
    std::fs::write(path, file).expect("the file is written");
}

const HIDDEN: usize = 32;
const INNER: usize = 64;

/// The tensors of a byte-level Llama with so many layers.
pub(crate) fn llama_tensors(layers: usize) -> Vec<(TensorSpec, Vec<u8>)> {
    let mut tensors = Vec::new();
    let mut seed = 0;
    let mut add = |name: &str, shape: &[usize], scale: f32| {
        seed += 1;
        let values: Vec<f32> = values(shape.iter().product(), seed).iter().map(|x| x * scale).collect();
        tensors.push(f32_tensor(name, shape, &values));
    };
    add("model.embed_tokens.weight", &[256, HIDDEN], 1.0);
    for layer in 0..layers {
        let mut part =
            |name: &str, shape: &[usize], scale| add(&format!("model.layers.{layer}.{name}.weight"), shape, scale);
        part("input_layernorm", &[HIDDEN], 1.0);
        part("post_attention_layernorm", &[HIDDEN], 1.0);
        for name in ["self_attn.q_proj", "self_attn.o_proj"] {
            part(name, &[HIDDEN, HIDDEN], 0.2);
        }
        for name in ["self_attn.k_proj", "self_attn.v_proj"] {
            part(name, &[HIDDEN / 2, HIDDEN], 0.2);
        }
        for name in ["mlp.gate_proj", "mlp.up_proj"] {
            part(name, &[INNER, HIDDEN], 0.2);
        }
        part("mlp.down_proj", &[HIDDEN, INNER], 0.2);
    }
    add("model.norm.weight", &[HIDDEN], 1.0);
    tensors
}

/// The configuration of such a model, with a tied head.
pub(crate) fn llama_config(layers: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "max_position_embeddings": 64, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": "float32",
    })
}

/// Writes a model folder with a side file.
pub(crate) fn write_llama(folder: &Path, layers: usize) {
    std::fs::create_dir_all(folder).expect("a folder");
    write_safetensors(&folder.join("model.safetensors"), &llama_tensors(layers));
    std::fs::write(folder.join("config.json"), llama_config(layers).to_string()).expect("a configuration");
    std::fs::write(folder.join("generation_config.json"), "{\"do_sample\": false}\n").expect("a side file");
}

/// Names and contents of all files of a folder.
pub(crate) fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    files.map(|f| (f.file_name().to_string_lossy().into_owned(), std::fs::read(f.path()).expect("a file"))).collect()
}

/// Names of all files of a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    contents(folder).into_keys().collect()
}

/// Stops the job in its tracks after so many tensors.
pub(crate) struct Stop(pub(crate) usize);

impl leanbits::Progress for Stop {
    fn advance(&mut self, _units: u64, _now: &str) {
        assert!(self.0 > 0, "stopped by the test");
        self.0 -= 1;
    }
}
