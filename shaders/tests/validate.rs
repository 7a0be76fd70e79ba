//! Every variant is valid WGSL and can be written for every driver's language, without a GPU.

mod checked;

use checked::checked;
use halfbyte_shaders::Variant;
use naga::ShaderStage;
use naga::back::pipeline_constants::process_overrides;
use naga::back::{hlsl, msl, spv};
use naga::valid::ModuleInfo;

/// Languages that a variant cannot be written in, and why.
fn exempt(_variant: Variant, _language: &str) -> Option<&'static str> {
    None
}

fn write(language: &str, module: &naga::Module, info: &ModuleInfo) -> Result<usize, String> {
    let entry = "main".to_owned();
    match language {
        "SPIR-V" => {
            let options =
                spv::Options { lang_version: (1, 3), fake_missing_bindings: true, ..spv::Options::default() };
            let stage = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry };
            spv::write_vec(module, info, &options, Some(&stage))
                .map(|words| words.len() * 4)
                .map_err(|e| e.to_string())
        }
        "MSL" => {
            let options =
                msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..msl::Options::default() };
            let stage = msl::PipelineOptions {
                entry_point: Some((ShaderStage::Compute, entry)),
                ..msl::PipelineOptions::default()
            };
            let (text, translated) =
                msl::write_string(module, info, &options, &stage).map_err(|error| error.to_string())?;
            translated
                .entry_point_names
                .into_iter()
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| e.to_string())?;
            Ok(text.len())
        }
        _ => {
            let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..hlsl::Options::default() };
            let stage = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, entry)) };
            let mut text = String::new();
            let reflected = hlsl::Writer::new(&mut text, &options, &stage)
                .write(module, info, None)
                .map_err(|error| error.to_string())?;
            reflected
                .entry_point_names
                .into_iter()
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| e.to_string())?;
            Ok(text.len())
        }
    }
}

#[test]
fn every_variant_is_valid_and_can_be_written() {
    let variants = Variant::all();
    assert!(variants.len() > 100, "{} variants", variants.len());
    for variant in variants {
        let name = variant.name();
        let source = variant.wgsl().unwrap_or_else(|error| panic!("{name}: {error}"));
        let (module, info) = checked(&name, &source, variant.flags);
        let stage = Some((ShaderStage::Compute, "main"));
        let (module, info) = process_overrides(&module, &info, stage, &Default::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        for language in ["SPIR-V", "MSL", "HLSL"] {
            let written = write(language, &module, &info);
            match (exempt(variant, language), written) {
                (None, Ok(bytes)) => assert!(bytes > 500, "{name} in {language}: {bytes} bytes"),
                (None, Err(error)) => panic!("{name} in {language}: {error}"),
                (Some(reason), Err(error)) => println!("{name} not in {language}: {reason} ({error})"),
                (Some(reason), Ok(_)) => panic!("{name} can be written in {language} after all: {reason}"),
            }
        }
    }
}
