//! An interrupted compression goes on where it was and gives the same bytes.

mod common;

use common::{Stop, contents, names, program, run, write_llama};
use leanbits::{CompressOptions, Recipe, Silent, compress};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const JOURNAL: &str = "leanbits-journal.jsonl";

struct Job {
    _folder: tempfile::TempDir,
    model: PathBuf,
    out: PathBuf,
    options: CompressOptions,
    expected: BTreeMap<String, Vec<u8>>,
    tensors: usize,
}

impl Job {
    /// A model of several shards, and the folder that an uninterrupted run makes of it.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (model, out, whole) = (folder.path().join("m"), folder.path().join("out"), folder.path().join("whole"));
        write_llama(&model, 2);
        let mut options = CompressOptions::new(Recipe::uniform("int4-g32-asym".parse().expect("a format")));
        options.max_shard_bytes = 4_000;
        let report = compress(&model, &whole, &options, &mut Silent).expect("a whole run");
        let expected = contents(&whole);
        Self { _folder: folder, model, out, options, expected, tensors: report.tensors.len() }
    }

    /// Runs until so many tensors are done.
    fn interrupt(&self, after: usize) {
        let run = || compress(&self.model, &self.out, &self.options, &mut Stop(after));
        let stopped = catch_unwind(AssertUnwindSafe(run));
        assert!(stopped.is_err(), "the run was not interrupted after {after} tensors");
        assert!(self.out.join(JOURNAL).exists() && !self.out.join("config.json").exists(), "an unfinished folder");
    }

    /// Finishes, and compares with the uninterrupted run. Returns how many tensors were not written again.
    #[track_caller]
    fn resume(&self) -> usize {
        let report = compress(&self.model, &self.out, &self.options, &mut Silent).expect("the resumed run");
        assert_eq!(contents(&self.out), self.expected, "the folder differs from that of an uninterrupted run");
        std::fs::remove_dir_all(&self.out).expect("removed");
        report.run.expect("the costs of a run").resumed_tensors
    }

    fn files_of_weights(&self) -> Vec<PathBuf> {
        let weights = names(&self.out).into_iter().filter(|name| name.contains(".safetensors"));
        weights.map(|name| self.out.join(name)).collect()
    }
}

#[test]
fn after_any_tensor_the_run_goes_on_with_the_next() {
    let job = Job::new();
    assert!(job.expected.keys().filter(|name| name.ends_with(".safetensors")).count() > 2, "several shards");
    for after in 0..job.tensors {
        job.interrupt(after);
        // The tensor that was being counted when the run stopped was written.
        assert_eq!(job.resume(), after + 1, "tensors not written again");
    }
}

#[test]
fn a_run_may_be_interrupted_again_and_again() {
    let job = Job::new();
    for after in [2, 5, 6, 11] {
        job.interrupt(after);
    }
    assert_eq!(job.resume(), 12, "tensors not written again");
}

#[test]
fn damaged_bytes_are_written_again() {
    let job = Job::new();
    job.interrupt(9);
    let mut damaged = 0;
    for path in job.files_of_weights() {
        let mut bytes = std::fs::read(&path).expect("a file");
        // Inside the data of the first tensor of the file.
        let header =
            usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))).expect("a length");
        bytes[8 + header] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        damaged += 1;
    }
    assert!(damaged >= 2, "a finished and an unfinished file");
    let kept = job.resume();
    assert!((1..10).contains(&kept), "{kept} of 10 tensors were believed");
}

#[test]
fn missing_and_cut_files_are_made_again() {
    let job = Job::new();
    job.interrupt(9);
    let files = job.files_of_weights();
    std::fs::remove_file(&files[0]).expect("removed");
    std::fs::OpenOptions::new().write(true).open(&files[1]).expect("a file").set_len(100).expect("cut");
    job.resume();
    job.interrupt(9);
    for file in job.files_of_weights() {
        std::fs::remove_file(file).expect("removed");
    }
    assert_eq!(job.resume(), 0, "without files the journal says nothing");
}

#[test]
fn a_journal_that_was_cut_in_a_line_is_believed_up_to_there() {
    let job = Job::new();
    job.interrupt(9);
    let path = job.out.join(JOURNAL);
    let text = std::fs::read_to_string(&path).expect("a journal");
    let cut = text.len() - 20;
    std::fs::write(&path, &text[..cut]).expect("written");
    assert_eq!(job.resume(), 9, "the last line does not count");
}

#[test]
fn another_job_does_not_go_on_with_this_one() {
    let job = Job::new();
    job.interrupt(4);
    let with = |format: &str, more: &[&str]| {
        let arguments = args!["compress", job.model, "-o", job.out, "--format", format];
        run(arguments.into_iter().chain(more.iter().map(Into::into)))
    };
    with("int8", &[]).fails_with_hint(1, &["interrupted", "other settings"], "--restart");
    with("int8", &["--restart", "--json"]).json();
    let fresh = job.out.with_file_name("fresh");
    run(args!["compress", job.model, "-o", fresh, "--format", "int8", "--json"]).json();
    assert_eq!(contents(&job.out), contents(&fresh), "nothing of the first job is left");
    std::fs::remove_dir_all(&job.out).expect("removed");
    job.interrupt(4);
    write_llama(&job.model, 3);
    let changed = compress(&job.model, &job.out, &job.options, &mut Silent).expect_err("another model");
    assert!(changed.to_string().contains("another model"), "{changed}");
}

/// Waits until the journal has some lines, or the time is up.
fn wait_for_lines(journal: &Path, lines: usize, end: Instant) {
    while Instant::now() < end {
        if std::fs::read(journal).is_ok_and(|text| text.iter().filter(|byte| **byte == b'\n').count() > lines) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_process_is_continued_by_the_next_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, whole) = (folder.path().join("out"), folder.path().join("whole"));
    let arguments = |out: &Path| args!["compress", common::tiny_llama(), "-o", out, "--format", "int4-g32", "--json"];
    run(arguments(&whole)).json();
    for lines in [1, 8, 20, 33] {
        let mut child = program()
            .args(arguments(&out))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the program starts");
        wait_for_lines(&out.join(JOURNAL), lines, Instant::now() + Duration::from_secs(30));
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(!out.join("config.json").exists() || !out.join(JOURNAL).exists(), "complete means no journal");
        if out.join("config.json").exists() {
            break;
        }
    }
    if !out.join("config.json").exists() {
        run(arguments(&out)).json();
    }
    assert_eq!(contents(&out), contents(&whole), "the folder differs from that of an uninterrupted run");
}
