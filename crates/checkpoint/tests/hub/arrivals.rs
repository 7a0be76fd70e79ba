//! Models that are quantized while they arrive.

use super::*;
use halfbyte_checkpoint::hub::{Arrived, Away, Found, find};
use halfbyte_checkpoint::{CheckpointError, WriteOptions, write_quantized};
use halfbyte_hub_stand_in::{Fault, Rule, Site};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

const MODEL: &str = "llama_bf16_sharded";

/// Less than the weights, more than any tensor.
const WINDOW: u64 = 60_000;

struct Bench {
    hub: StandIn,
    cache: tempfile::TempDir,
    out: tempfile::TempDir,
    /// What `quantize` makes of the same files on the disk.
    wanted: BTreeMap<String, Vec<u8>>,
    /// The tensors: shard, first and last byte.
    tensors: Vec<(String, u64, u64)>,
}

impl Bench {
    fn new() -> Bench {
        let local = Checkpoint::open(&fixture(MODEL)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        write_quantized(&local, &dir.path().join("x"), &write_options(), &mut |_, _, _| {}).unwrap();
        let tensors = local.index.iter().map(|tensor| {
            let file = Path::new(&local.index.files()[tensor.file]).file_name().unwrap().to_str().unwrap();
            (file.to_owned(), tensor.begin, tensor.end)
        });
        Bench {
            hub: serve(MODEL),
            cache: tempfile::tempdir().unwrap(),
            out: tempfile::tempdir().unwrap(),
            wanted: contents(&dir.path().join("x")),
            tensors: tensors.collect(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.out.path().join("four-bit")
    }

    fn away(&self) -> Box<Away> {
        let options = HubOptions { window: Some(WINDOW), ..options(&self.hub, self.cache.path()) };
        match find("org/name", &options, &mut ()).unwrap() {
            Found::Away(away) => away,
            Found::Here(dir) => panic!("it is in {}", dir.display()),
        }
    }

    fn quantize(&self) -> Result<Arrived, CheckpointError> {
        self.away().quantize(&self.dir(), &write_options(), &mut (), &mut |_, _, _| {})
    }

    /// Ends it as soon as `tensors` tensors have been written.
    fn interrupted_after(&self, tensors: usize) {
        let mut written = 0;
        let mut count = |name: &str, _, _| {
            written += usize::from(!name.is_empty());
            // Not an error, which could be tidied up after: nothing runs any more, as after a kill.
            if written == tensors {
                resume_unwind(Box::new("interrupted"));
            }
        };
        let away = self.away();
        let mut run = || away.quantize(&self.dir(), &write_options(), &mut (), &mut count);
        assert!(catch_unwind(AssertUnwindSafe(&mut run)).is_err());
    }

    /// The ranges of weights that were asked for since the log was last forgotten.
    fn fetched(&self) -> Vec<(String, u64, u64)> {
        let ranges = self.hub.requests().into_iter().filter(|request| request.site == Site::Cdn);
        ranges
            .filter_map(|request| {
                let (first, last) = request.range?;
                // The header's range, not a tensor's.
                (first > 0).then_some((request.file?, first, last? + 1))
            })
            .collect()
    }

    fn is_as_from_disk(&self) {
        assert_eq!(contents(&self.dir()), self.wanted);
    }
}

/// Several shards, so that a run can end between two of them.
fn write_options() -> WriteOptions {
    WriteOptions { max_shard_bytes: 60_000, ..WriteOptions::default() }
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect()
}

#[test]
fn the_same_bytes_as_from_the_disk_and_no_original_is_kept() {
    let bench = Bench::new();
    let arrived = bench.quantize().unwrap();
    bench.is_as_from_disk();
    assert!(arrived.report.shards > 2, "{arrived:?}");

    let weights: u64 = bench.tensors.iter().map(|(_, begin, end)| end - begin).sum();
    let largest = bench.tensors.iter().map(|(_, begin, end)| end - begin).max().unwrap();
    assert!(arrived.most_held <= WINDOW + largest && WINDOW + largest < weights / 2, "{arrived:?}");
    assert!(arrived.most_held > largest, "it fetches ahead: {arrived:?}");

    // Every byte of every tensor once.
    let fetched = bench.fetched();
    assert_eq!(fetched.iter().map(|(_, from, to)| to - from).sum::<u64>(), weights);
    let blobs = bench.cache.path().join("models--org--name/blobs");
    for entry in std::fs::read_dir(blobs).unwrap().map(Result::unwrap) {
        assert_eq!(entry.file_name().len(), 40, "only small files: {entry:?}");
    }
    assert!(bench.cache.path().join("models--org--name/refs/main").exists());
}

#[test]
fn an_interruption_at_any_tensor_is_gone_on_with() {
    let bench = Bench::new();
    for done in 1..=bench.tensors.len() {
        bench.hub.forget();
        bench.interrupted_after(done);
        bench.hub.forget();
        bench.quantize().unwrap();
        bench.is_as_from_disk();
        let again: Vec<_> = bench.fetched();
        for (file, begin, end) in &bench.tensors[..done] {
            let twice =
                again.iter().find(|(from_file, from, to)| from_file == file && from < end && begin < to);
            assert_eq!(twice, None, "tensor at {begin} of {file} was done");
        }
        std::fs::remove_dir_all(bench.dir()).unwrap();
    }
}

#[test]
fn interrupted_after_every_tensor_it_still_gets_there() {
    let bench = Bench::new();
    for _ in 1..bench.tensors.len() {
        bench.interrupted_after(1);
    }
    bench.quantize().unwrap();
    bench.is_as_from_disk();
}

#[test]
fn what_was_written_is_believed_only_as_far_as_its_hashes_agree() {
    let bench = Bench::new();
    bench.interrupted_after(9);
    let parts = contents(&bench.dir());
    let (name, bytes) = parts.iter().find(|(name, _)| name.ends_with(".part")).unwrap();
    let mut spoiled = bytes.clone();
    let at = spoiled.iter().rposition(|byte| *byte != 0).unwrap();
    spoiled[at] ^= 1;
    std::fs::write(bench.dir().join(name), spoiled).unwrap();
    bench.quantize().unwrap();
    bench.is_as_from_disk();

    // A line of the journal that was not written to its end.
    std::fs::remove_dir_all(bench.dir()).unwrap();
    bench.interrupted_after(5);
    let parts = contents(&bench.dir());
    let (name, bytes) =
        parts.iter().rfind(|(name, bytes)| name.ends_with(".journal") && !bytes.is_empty()).unwrap();
    std::fs::write(bench.dir().join(name), &bytes[..bytes.len() - 7]).unwrap();
    bench.quantize().unwrap();
    bench.is_as_from_disk();
}

#[test]
fn connections_that_break_cost_no_byte_twice() {
    let bench = Bench::new();
    bench.hub.misbehave(Rule::new(Fault::Cut(5_000), "model-0000").at(Site::Cdn).after(4).times(6));
    bench.quantize().unwrap();
    bench.is_as_from_disk();
    let weights: u64 = bench.tensors.iter().map(|(_, begin, end)| end - begin).sum();
    let tensors =
        bench.hub.requests().into_iter().filter(|one| one.site == Site::Cdn && one.range.unwrap().0 > 0);
    assert_eq!(tensors.map(|request| request.sent).sum::<u64>(), weights);
}

#[test]
fn damage_is_found_and_nothing_is_made_of_it() {
    let bench = Bench::new();
    let (file, _, end) = bench.tensors.last().unwrap().clone();
    for interrupted in [false, true] {
        if interrupted {
            // In the middle of the shard: the hash goes on, too.
            bench.interrupted_after(bench.tensors.len() - 2);
        }
        bench.hub.misbehave(Rule::new(Fault::Corrupt(end - 3), &file).at(Site::Cdn));
        let error = bench.quantize().unwrap_err().to_string();
        assert!(error.contains("arrived damaged") && error.contains(&file), "{error}");
        assert!(!bench.dir().exists());
        bench.hub.behave();
    }
    bench.quantize().unwrap();
    bench.is_as_from_disk();
}

#[test]
fn a_server_that_fails_says_so_and_keeps_what_is_done() {
    let bench = Bench::new();
    bench.hub.misbehave(Rule::new(Fault::Status(404, None), "model-00003").at(Site::Cdn).after(1));
    bench.hub.misbehave(Rule::new(Fault::Status(404, None), "model-00003").at(Site::Hub).after(2));
    let error = bench.quantize().unwrap_err().to_string();
    assert!(error.contains("has no model-00003-of-00004.safetensors (404)"), "{error}");
    bench.hub.behave();
    bench.hub.forget();
    bench.quantize().unwrap();
    bench.is_as_from_disk();
    assert!(bench.fetched().iter().all(|(file, ..)| !file.starts_with("model-00001")));
}
