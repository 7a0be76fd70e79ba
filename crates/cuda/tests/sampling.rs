//! Draws on the device are the host's: from the same logits, the same tokens.

use halfbyte_backend::conformance::SeededWeights;
use halfbyte_backend::random::Stream;
use halfbyte_backend::{
    Answer, Backend, Caps, DType, Draw, Embed, Format, Head, Input, Kind, LinearShape, Output, Place, Pre,
    Program, Purpose, Reg, Rows, SampleParams, Segment, Step, Stretch, Want, WantId, sample,
};
use halfbyte_cuda::{CubeBackend, WgpuRuntime};
use pollster::block_on;

const VOCABULARY: usize = 3001;

/// An embedding and a head: logits differ from token to token.
fn stretch() -> Stretch {
    let table = |name: &str| Want {
        name: name.into(),
        purpose: Purpose::Embeddings,
        kind: Kind::Linear(LinearShape::single(Segment {
            tensor: format!("{name}.weight"),
            rows: VOCABULARY,
            cols: 64,
            format: Format::Dense(DType::F32),
            bias: None,
            transposed: false,
        })),
    };
    let (out, pre) = (Reg(0), Pre::default());
    let embed = Embed { table: WantId(0), scale: 1.0, positions: None, types: None, norm: None, out };
    let head = Head { input: out, pre, weight: WantId(1), scale: 1.0, softcap: None };
    Stretch {
        wants: vec![table("table"), table("head")],
        steps: vec![Step::Embed(embed), Step::Head(head)],
        widths: vec![64],
        ..Stretch::default()
    }
}

fn submit(program: &mut dyn Program, token: u32, position: u32, output: Output<'_>) -> Answer {
    let places = [Place { sequence: 0, position, token_type: 0 }];
    block_on(program.submit(&Rows { input: Input::Tokens(&[token]), places: &places, output }).unwrap())
        .unwrap()
}

#[test]
fn hundreds_of_draws_are_the_hosts() {
    let backend =
        CubeBackend::<WgpuRuntime>::open().expect("this test needs a wgpu adapter; Mesa's lavapipe will do");
    let stretch = stretch();
    let slots = block_on(backend.reserve(&stretch.wants)).unwrap();
    let weights = SeededWeights::new(11);
    for (want, &slot) in stretch.wants.iter().zip(&slots) {
        block_on(backend.upload(slot, want, &weights)).unwrap();
    }
    let mut program = block_on(backend.compile(&stretch, &slots, Caps { rows: 1, outputs: 1 })).unwrap();
    assert!(program.samples());

    let mut stream = Stream::new(5);
    let mut tokens = Vec::new();
    for round in 0..300u32 {
        let token = stream.below(VOCABULARY) as u32;
        let params = SampleParams {
            temperature: [0.0, 0.3, 1.0, 2.5][stream.below(4)],
            top_k: [0, 0, 1, 20, 2000][stream.below(5)],
            top_p: [1.0, 0.95, 0.3][stream.below(3)],
            repetition_penalty: [1.0, 1.2][stream.below(2)],
            seed: stream.bits(),
        };
        let Answer::Logits(mut logits) = submit(program.as_mut(), token, round, Output::Logits(&[0])) else {
            panic!("no logits")
        };
        let named: Vec<u32> = (0..round % 50).map(|i| (i * 61) % VOCABULARY as u32).collect();
        let seen: Vec<u32> = named.iter().copied().chain([token]).collect();
        let wanted = sample(&mut logits, &seen, &params, u64::from(round) + 1);
        let output = Output::Sample { rows: &[0], draws: &[Draw { params, seen: Some(&named) }] };
        assert_eq!(
            submit(program.as_mut(), token, round, output),
            Answer::Tokens(vec![wanted]),
            "round {round}, {params:?}"
        );
        tokens.push(wanted);
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert!(tokens.len() > 100, "only {} different tokens", tokens.len());
}
