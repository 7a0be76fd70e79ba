//! A machine without an NVIDIA driver: everything works, and says that CUDA is absent.

mod command;

use command::halfbyte;

#[test]
fn without_a_driver_cuda_is_absent_and_nothing_else() {
    let listed = halfbyte(&["devices", "--json"]).ok();
    let json = listed.json();
    let devices = json["devices"].as_array().unwrap();
    if devices.iter().any(|device| device["device"].as_str().unwrap().starts_with("cuda:")) {
        println!("there is a CUDA device here: nothing is absent");
        return;
    }
    let absent = json["absent"].as_array().unwrap();
    let about = |line: &&serde_json::Value| line.as_str().unwrap().to_lowercase().contains("cuda");
    assert_eq!(absent.iter().filter(about).count(), 1, "{json}");

    let run = ["run", "--prompt", "Once", "--max-new-tokens", "2"];
    halfbyte(&[&run[..], &["--device-map", "auto"]].concat()).ok();
    let named = halfbyte(&[&run[..], &["--device-map", "cuda:0"]].concat());
    let words =
        if cfg!(feature = "cuda") { "CUDA was not found" } else { "built without the feature `cuda`" };
    named.refused_with(&["there is no cuda:0 here", words]);
    halfbyte(&["doctor", "--device", "cuda:0"]).refused_with(&["there is no cuda:0 here", words]);
}
