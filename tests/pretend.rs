//! Devices that are taken to be smaller than they are.

mod reference;

use halfbyte::{CausalLm, Error, LoadOptions, ModelSource, Silent};
#[cfg(feature = "wgpu")]
use halfbyte::{Flow, GenerateOptions, SampleParams};
use reference::float32;

fn stories() -> ModelSource {
    ModelSource::Bundled("stories".into())
}

fn pretend(device: &str, bytes: u64, device_map: &str) -> LoadOptions {
    LoadOptions {
        device_map: device_map.parse().unwrap(),
        pretend_memory: [(device.to_owned(), bytes)].into(),
        context: Some(128),
        chunk: 8,
        ..float32()
    }
}

#[test]
fn a_cpu_that_is_said_to_be_small_refuses_and_says_why() {
    let fits = |bytes| halfbyte::plan(&stories(), &pretend("cpu", bytes, "cpu"), &mut Silent).unwrap();
    let plan = fits(64 << 20);
    assert!(plan.fits);
    let needed = plan.devices[0].planned_bytes;
    // A tenth is left to others, as it would be.
    let plan = fits(needed);
    assert!(!plan.fits);
    assert!(plan.devices[0].budget_bytes.unwrap() < needed);
    assert_eq!(plan.devices[0].budget_source, "--pretend-memory less 10 %");
    let refused = CausalLm::load(&stories(), &pretend("cpu", needed, "cpu"), &mut Silent);
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
}

/// The logits of many tokens take more than a small model: where the host has no room for both, blocks go to the disk
/// first, and where they cannot, that is said before anything is computed.
#[test]
fn logits_make_way_for_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..500).map(|at| at * 7 % 300 + 3).collect();
    let load = |memory: Option<u64>, disk: u64| {
        // A file is looked at with every chunk: by the eighth, blocks would come back.
        let file = folder.path().join("memory");
        let told = memory.map(|bytes| std::fs::write(&file, format!("cpu={bytes}\n")).unwrap());
        let options = LoadOptions {
            max_memory: [("wgpu:0".to_owned(), 0), ("disk".to_owned(), disk)].into(),
            pretend_memory_file: told.map(|()| file),
            cache_dir: Some(folder.path().to_path_buf()),
            // No smaller chunks are tried: what they free would do.
            chunk: 8,
            ..float32()
        };
        CausalLm::load(&stories(), &options, &mut Silent).unwrap()
    };
    let mut roomy = load(None, 0);
    let wanted = roomy.logits(&ids).unwrap();
    let (held, answer) = (roomy.memory()[0].measured_bytes, size_of_val(&wanted[..]) as u64);
    assert!(roomy.events().is_empty());
    drop(roomy);
    // Room for the model and its headroom, and for two thirds of the answer.
    let memory = Some(held * 11 / 10 + answer * 2 / 3);
    let mut small = load(memory, 1 << 40);
    let before = small.blocks_on("cpu");
    assert_eq!(small.logits(&ids).unwrap(), wanted);
    println!("{:#?}", small.events());
    assert!(small.blocks_on("cpu") < before, "{:?}", small.device_map());
    assert!(small.events()[0].text.contains("the logits of 500 tokens take"), "{:?}", small.events());
    // The answer is another's by now, and they come back.
    assert_eq!(small.logits(&ids[..100]).unwrap(), wanted[..wanted.len() / 5]);
    assert_eq!(small.blocks_on("cpu"), before, "{:?}", small.events());
    drop(small);
    let mut stuck = load(memory, 0);
    let refused = stuck.logits(&ids).unwrap_err().to_string();
    assert!(refused.contains("nothing can move out: ask for fewer tokens"), "{refused}");
    assert_eq!(stuck.logits(&ids[..50]).unwrap().len(), wanted.len() / 10);
}

#[test]
#[cfg(feature = "wgpu")]
fn a_gpu_that_is_said_to_be_small_shares_with_the_cpu() {
    let mut whole =
        CausalLm::load(&stories(), &pretend("wgpu:0", 1 << 30, "sequential"), &mut Silent).unwrap();
    let wanted = text(&mut whole);
    let all = whole.memory()[0].planned_bytes;
    assert_eq!(whole.blocks_on("cpu"), 0);
    drop(whole);
    let options = pretend("wgpu:0", all, "sequential");
    let mut model = CausalLm::load(&stories(), &options, &mut Silent).unwrap();
    assert!(model.blocks_on("wgpu:0") > 0 && model.blocks_on("cpu") > 0, "{:?}", model.device_map());
    for row in model.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes, "{row:?}");
        assert!(row.device != "wgpu:0" || row.measured_bytes < all, "{row:?} of {all}");
    }
    assert_eq!(text(&mut model), wanted);
}

/// What the model says greedily.
#[cfg(feature = "wgpu")]
fn text(model: &mut CausalLm) -> String {
    let how = GenerateOptions { max_new_tokens: 8, sample: SampleParams::default() };
    model.generate("Once there was", &how, &mut |_| Flow::Continue).unwrap().text
}

/// A file of `--pretend-memory`, gone when dropped.
#[cfg(feature = "wgpu")]
struct Watched(tempfile::TempDir);

#[cfg(feature = "wgpu")]
impl Watched {
    fn new(bytes: u64) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.set(bytes);
        file
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("memory")
    }

    fn set(&self, bytes: u64) {
        std::fs::write(self.path(), format!("wgpu:0={bytes}\n")).unwrap();
    }

    fn options(&self) -> LoadOptions {
        LoadOptions {
            device_map: "sequential".parse().unwrap(),
            pretend_memory_file: Some(self.path()),
            context: Some(128),
            chunk: 8,
            ..float32()
        }
    }
}

/// The memory of a device shrinks and grows in the middle of a text, as if another process took it and gave
/// it back: layers move out and return, and the text is that of a machine where nothing happened.
#[test]
#[cfg(feature = "wgpu")]
fn layers_move_out_of_a_device_that_shrinks_and_return_when_it_grows() {
    use halfbyte::EventKind;
    let plenty = 1 << 30;
    let file = Watched::new(plenty);
    let generate = |model: &mut CausalLm, at: &mut dyn FnMut(usize)| {
        let (mut pieces, mut text) = (0, String::new());
        let how = GenerateOptions { max_new_tokens: 48, sample: SampleParams::default() };
        let done = model.generate("Once there was", &how, &mut |piece| {
            text += piece;
            pieces += 1;
            at(pieces);
            Flow::Continue
        });
        assert_eq!(text, done.unwrap().text, "each token once");
        text
    };
    let mut model = CausalLm::load(&stories(), &file.options(), &mut Silent).unwrap();
    let wanted = generate(&mut model, &mut |_| ());
    assert!(model.events().is_empty(), "{:?}", model.events());
    let (home, all) = (model.device_map(), model.memory()[0].planned_bytes);
    assert_eq!(model.blocks_on("cpu"), 0);
    for round in 0..2 {
        let before = model.events().len();
        let text = generate(&mut model, &mut |piece| match piece {
            6 => file.set(all),
            16 => file.set(all - all / 4),
            26 => file.set(plenty),
            _ => {}
        });
        assert_eq!(text, wanted, "round {round}");
        let events = &model.events()[before..];
        let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
        assert_eq!(
            kinds,
            [EventKind::MemoryShort, EventKind::MemoryShort, EventKind::MemoryBack],
            "{events:#?}"
        );
        let [out, further, back] = events else { unreachable!() };
        assert!(out.text.contains("moved from wgpu:0 to cpu"), "{out:?}");
        assert!(further.text.contains("moved from wgpu:0 to cpu"), "{further:?}");
        assert!(back.text.contains("moved from cpu to wgpu:0"), "{back:?}");
        assert_eq!(model.device_map(), home, "round {round}");
        for row in model.memory() {
            assert_eq!(row.planned_bytes, row.measured_bytes, "{row:?}");
        }
    }
    // Between requests, too; and a device that comes and goes every few tokens is left alone.
    file.set(all);
    let before = model.events().len();
    assert_eq!(generate(&mut model, &mut |_| ()), wanted);
    assert_eq!(model.events().len(), before + 1);
    let text = generate(&mut model, &mut |piece| file.set(if piece % 4 < 2 { plenty } else { all }));
    assert_eq!((text, model.events().len()), (wanted, before + 1), "{:#?}", model.events());
}

/// Texts that are continued together move in their middle, too.
#[test]
#[cfg(feature = "wgpu")]
fn a_batch_goes_on_where_its_layers_went() {
    let file = Watched::new(1 << 30);
    let prompts = ["Once there was", "The little dog", "A"];
    let how = GenerateOptions { max_new_tokens: 24, sample: SampleParams::default() };
    let options = LoadOptions { sequences: 2, ..file.options() };
    let ids = |model: &mut CausalLm| -> Vec<Vec<u32>> {
        let texts = model.generate_batch(&prompts, &how).unwrap();
        texts.into_iter().map(|text| text.token_ids).collect()
    };
    let mut model = CausalLm::load(&ModelSource::Bundled("stories".into()), &options, &mut Silent).unwrap();
    let wanted = ids(&mut model);
    assert!(model.events().is_empty());
    // Another thread takes the memory while the texts are written.
    let (all, path) = (model.memory()[0].planned_bytes, file.path());
    let other = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        std::fs::write(path, format!("wgpu:0={all}\n")).unwrap();
    });
    let mut rounds = 0;
    while model.events().is_empty() && rounds < 100 {
        assert_eq!(ids(&mut model), wanted, "round {rounds}");
        rounds += 1;
    }
    other.join().unwrap();
    assert!(model.blocks_on("cpu") > 0, "{:#?}", model.events());
    assert_eq!(ids(&mut model), wanted);
}

/// A device that leaves no room for anything is nothing to stop a text for: what it holds it has.
#[test]
#[cfg(feature = "wgpu")]
fn a_device_that_shrinks_to_nothing_gives_up_everything_or_says_that_it_cannot() {
    let file = Watched::new(1 << 30);
    let mut model = CausalLm::load(&stories(), &file.options(), &mut Silent).unwrap();
    let wanted = text(&mut model);
    file.set(0);
    assert_eq!(text(&mut model), wanted);
    assert_eq!(model.blocks_on("wgpu:0"), 0, "{:#?}", model.events());
    assert!(model.events()[0].text.contains("model.embed_tokens to lm_head moved"), "{:#?}", model.events());
    // Where a device map leaves no other place, the text goes on and the event says so, once.
    file.set(1 << 30);
    let only = LoadOptions { device_map: "wgpu:0".parse().unwrap(), ..file.options() };
    let mut model = CausalLm::load(&stories(), &only, &mut Silent).unwrap();
    file.set(0);
    assert_eq!((text(&mut model), text(&mut model)), (wanted.clone(), wanted));
    assert_eq!(model.events().len(), 1, "{:#?}", model.events());
    assert!(model.events()[0].text.contains("nothing can move out"), "{:#?}", model.events());
}

#[test]
fn a_watched_file_that_says_nothing_is_named() {
    let options = LoadOptions { pretend_memory_file: Some("nowhere".into()), ..LoadOptions::default() };
    let error = CausalLm::load(&stories(), &options, &mut Silent).unwrap_err();
    assert!(error.to_string().starts_with("--pretend-memory @nowhere: "), "{error}");
}
