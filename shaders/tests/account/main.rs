//! A static account of every variant, from naga's IR and without a GPU: what a thread loads of the weights
//! and how far apart neighbours' loads are, what it looks up for a weight, barriers, buffers, workgroup
//! memory.
//!
//! The shader is run for a few threads by `machine`, which writes down every access. Widths, distances and
//! counts are exact for the sizes that it is given here, and these are those that the wgpu backend gives to
//! a GPU.

mod arithmetic;
#[path = "../checked/mod.rs"]
mod checked;
mod gates;
mod machine;
mod settings;
mod sheet;
mod value;

use halfbyte_shaders::Variant;
use settings::Settings;
use sheet::Sheet;
use std::fmt::Write;

/// One line a variant, for one row of activations on a GPU with subgroups of 32.
#[test]
fn every_variant_has_its_account() {
    let mut text = String::new();
    for variant in Variant::all() {
        let sheet = Sheet::of(variant, &Settings::gpu(variant));
        writeln!(text, "{}: {sheet}", variant.name()).unwrap();
    }
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("account", text);
    });
}
