//! Memory that another process really takes: in a control group, in the middle of a text, blocks move out to the disk
//! before the kernel kills, and the text stays the same.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "the tasks use more of it")]
#[path = "../xtask/src/cgroup.rs"]
mod cgroup;
mod reference;

use cgroup::Group;
use halfbyte::{CausalLm, EventKind, Flow, GenerateOptions, LoadOptions, ModelSource, SampleParams, Silent};
use reference::float32;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const TEST: &str = "what_another_process_takes_moves_blocks_out";
/// What a process of this test is: the model, or the one that takes memory.
const ROLE: &str = "HALFBYTE_TEST_PRESSED";
const LIMIT: u64 = 640 << 20;
/// What the other process leaves: less than the headroom, a twentieth of the limit.
const LEFT: u64 = 20 << 20;
const PROMPT: [u32; 4] = [5, 17, 300, 2];

#[test]
fn what_another_process_takes_moves_blocks_out() {
    match std::env::var(ROLE).ok().as_deref() {
        None => in_a_group(),
        Some(role) => match role.split_once(' ') {
            Some(("model", cache)) => model(Path::new(cache)),
            Some((_, bytes)) => hold(bytes.parse().unwrap()),
            None => panic!("{role}"),
        },
    }
}

/// Runs the model in a group, unless none can be made.
fn in_a_group() {
    let group = match Group::new("halfbyte-pressed", LIMIT) {
        Ok(group) => group,
        Err(why) => {
            // Past the capture of the test harness: a skip is to be seen.
            let line = format!("\nSKIPPED {TEST}: {why}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    // The 4-bit form that the disk is read from is made outside: that needs room for an embedding in 16 bits.
    let on_disk = LoadOptions { device_map: "disk".parse().unwrap(), ..options(folder.path()) };
    drop(load(&on_disk));
    let outcome = group
        .command(&std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(ROLE, format!("model {}", folder.path().display()))
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&outcome.stdout));
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    assert_eq!(group.oom_kills(), Ok(0));
}

fn options(cache: &Path) -> LoadOptions {
    LoadOptions {
        max_memory: [("wgpu:0".to_owned(), 0)].into(),
        context: Some(256),
        cache_dir: Some(cache.to_path_buf()),
        ..float32()
    }
}

fn load(options: &LoadOptions) -> CausalLm {
    CausalLm::load(&ModelSource::Synthetic("llama-160m".into()), options, &mut Silent).unwrap()
}

/// Writes a text undisturbed, then once more while another process takes what is left.
fn model(cache: &Path) {
    let mut model = load(&options(cache));
    let greedy = SampleParams { temperature: 0.0, ..model.default_sampling() };
    let what = GenerateOptions { max_new_tokens: 48, sample: greedy };
    let wanted = model.generate_ids(&PROMPT, &what, &mut |_| Flow::Continue).unwrap().token_ids;
    assert!(model.events().is_empty(), "{:?}", model.events());
    let before = model.blocks_on("cpu");

    let mut other = None;
    let mut tokens = 0;
    let found = model.generate_ids(&PROMPT, &what, &mut |_| {
        tokens += 1;
        if tokens == 8 {
            other = Some(Other::new(LIMIT - LEFT - halfbyte::private_resident().unwrap()));
        }
        Flow::Continue
    });
    assert_eq!(found.unwrap().token_ids, wanted);
    let events = model.events();
    println!("{events:#?}");
    assert!(events.iter().any(|event| event.kind == EventKind::MemoryShort), "{events:?}");
    assert!(model.blocks_on("cpu") < before, "{:?}", model.device_map());
    for row in model.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes, "{row:?}");
    }
    drop(other);
}

/// Another process that holds memory until this is dropped.
struct Other(std::process::Child);

impl Other {
    fn new(bytes: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(ROLE, format!("hold {bytes}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("held")), "the other process is gone");
        Self(child)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Holds memory until nobody is at the other end of stdin any more.
fn hold(bytes: usize) {
    let memory = std::hint::black_box(vec![1u8; bytes]);
    println!("held {}", memory.len());
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).unwrap();
    // The one that asked has closed its end of stdout, too.
    std::process::exit(0);
}
