//! What every variant must keep to, and shaders that do not.

use crate::settings::{Settings, decodes, four_bits};
use crate::sheet::Sheet;
use halfbyte_shaders::{Flag, Flags, Kernel, Variant};

/// WebGPU's default limits.
fn fits(sheet: &Sheet) -> Result<(), String> {
    if sheet.buffers > 8 {
        return Err(format!("{} storage buffers", sheet.buffers));
    }
    if sheet.workgroup > 16 << 10 {
        return Err(format!("{} bytes of workgroup memory", sheet.workgroup));
    }
    if sheet.threads > 256 {
        return Err(format!("{} threads", sheet.threads));
    }
    Ok(())
}

/// Weights come in loads of 16 bytes, neighbours next to each other; a last load that is not needed may be
/// the same for all. A weight is decoded by one read of a table at most.
fn streams(sheet: &Sheet) -> Result<(), String> {
    let weights = sheet.weights.as_ref().ok_or("no weights are loaded")?;
    if weights.widths.iter().any(|&width| width != 16) {
        return Err(format!("loads of {:?} bytes", weights.widths));
    }
    let (all, apart): (usize, usize) =
        (weights.strides.values().sum(), weights.strides.get(&Some(16)).copied().unwrap_or(0));
    let same = weights.strides.get(&Some(0)).copied().unwrap_or(0);
    if apart + same != all || 4 * same > all {
        return Err(format!("neighbours' loads are {:?} bytes apart", weights.strides));
    }
    if weights.table_reads > 1.0 {
        return Err(format!("{} table reads a weight", weights.table_reads));
    }
    Ok(())
}

/// Cached codes come in loads of 16 bytes, neighbours next to each other; a last load that is not needed may be the same
/// for all. To each there is one load of a scale at most, of 4 bytes, or none where there are no scales.
fn streams_the_cache(sheet: &Sheet, scaled: bool) -> Result<(), String> {
    let keys = sheet.keys.as_ref().ok_or("no keys are loaded")?;
    let of = |bytes: u32| keys.widths.get(&bytes).copied().unwrap_or(0);
    let all: usize = keys.widths.values().sum();
    if of(16) == 0 || of(4) + of(16) != all || of(4) > if scaled { of(16) } else { 0 } {
        return Err(format!("loads of keys by their bytes: {:?}", keys.widths));
    }
    if keys.strides.keys().any(|stride| !matches!(stride, Some(0 | 16)))
        || !keys.strides.contains_key(&Some(16))
    {
        return Err(format!("neighbours' loads are {:?} bytes apart", keys.strides));
    }
    Ok(())
}

#[test]
fn every_wide_attention_streams_its_cache() {
    let wide = |variant: &Variant| variant.kernel == Kernel::Attend && variant.flags.has(Flag::Wide);
    let variants: Vec<Variant> = Variant::all().into_iter().filter(wide).collect();
    assert!(variants.len() > 20, "{} variants", variants.len());
    for variant in variants {
        for (dtype, head_dim) in [(1, 64), (1, 128), (2, 64), (2, 128), (3, 64), (3, 128)] {
            let sheet = Sheet::of(variant, &Settings::attention(variant, dtype, head_dim));
            streams_the_cache(&sheet, dtype > 1)
                .unwrap_or_else(|error| panic!("{}, type {dtype}, {head_dim}: {error}", variant.name()));
        }
    }
}

/// Attention over q8 with `from` replaced by `to`, and what the gate says of it.
fn attention_mutant(from: &str, to: &str) -> Result<(), String> {
    let flags = Flags::of(&[Flag::Rope, Flag::Fresh, Flag::Parts, Flag::Wide]);
    let variant = Variant { kernel: Kernel::Attend, flags };
    let source = variant.wgsl().unwrap();
    assert!(source.contains(from), "the shader has no {from} to change");
    let settings = Settings::attention(variant, 2, 64);
    streams_the_cache(&Sheet::of_source("mutant", &source.replace(from, to), flags, &settings), true)
}

#[test]
fn caches_that_do_not_stream_are_found() {
    assert_eq!(attention_mutant("fn main(", "fn main("), Ok(()));
    // Scales within the records, which are padded to 80 bytes.
    let error = attention_mutant("head + slot * CODE_WORDS + word", "head + slot * 20u + word");
    assert!(error.as_ref().is_err_and(|error| error.contains("None: ")), "{error:?}");
    let at = "let at = word_at(head_base, slot, 4u * load) / 4u;";
    let error =
        attention_mutant(at, &format!("if (!value) {{ return four_words(value, slot, load); }}\n{at}"));
    assert!(error.as_ref().is_err_and(|error| error.contains("{4: ")), "{error:?}");
}

#[test]
fn every_variant_fits_the_default_limits() {
    for variant in Variant::all() {
        let sheet = Sheet::of(variant, &Settings::gpu(variant));
        fits(&sheet).unwrap_or_else(|error| panic!("{}: {error}", variant.name()));
    }
}

/// In the shapes that the backend gives it on a GPU. Dense weights in 32 bits, which few checkpoints have, take two
/// loads a lane.
#[test]
fn every_decode_variant_streams_its_weights() {
    let mut decoding = 0;
    for variant in Variant::all().into_iter().filter(|&variant| decodes(variant)) {
        for (lanes, columns) in [(32, 1), (16, 4), (8, 8)] {
            let dtypes: &[u32] = if four_bits(variant) { &[0] } else { &[1, 2] };
            for &dtype in dtypes {
                let sheet = Sheet::of(variant, &Settings::decode(variant, lanes, columns, dtype));
                streams(&sheet).and(fits(&sheet)).unwrap_or_else(|error| {
                    panic!("{}, {columns} columns, {lanes} lanes, type {dtype}: {error}", variant.name())
                });
                decoding += 1;
            }
        }
    }
    assert!(decoding > 100, "{decoding} decode variants");
}

/// The decode product with `from` replaced by `to`, and what the gates say of it.
fn mutant(from: &str, to: &str) -> Result<(), String> {
    let flags = Flags::of(&[Flag::Q4, Flag::Norm, Flag::Subgroups]);
    let variant = Variant { kernel: Kernel::NormLinear, flags };
    let source = variant.wgsl().unwrap();
    assert!(source.contains(from), "the shader has no {from} to change");
    let sheet = Sheet::of_source("mutant", &source.replace(from, to), flags, &Settings::gpu(variant));
    fits(&sheet).and(streams(&sheet))
}

#[test]
fn the_unchanged_shader_passes() {
    assert_eq!(mutant("fn main(", "fn main("), Ok(()));
}

#[test]
fn loads_of_four_bytes_are_found() {
    let error = mutant("Codes(weights[at.x],", "Codes(vec4<u32>(weights[at.x].x, weights[at.x].y, 0u, 0u),");
    assert_eq!(error, Err("loads of {4, 16} bytes".into()));
}

#[test]
fn columns_next_to_each_other_instead_of_lanes_are_found() {
    let error = mutant("Codes(weights[at.x],", "Codes(weights[group * ROWS + rows.x],");
    assert!(error.as_ref().is_err_and(|error| error.contains("Some(1024): ")), "{error:?}");
}

#[test]
fn two_table_reads_a_weight_are_found() {
    let error = mutant("entry(code.x)", "entry(code.x) * entry((code.x + 1u) & 15u)");
    assert_eq!(error, Err("1.25 table reads a weight".into()));
}

#[test]
fn a_table_in_private_memory_counts_too() {
    let two = "entry(code.x) * private_book[code.x & 15u]";
    let flags = Flags::of(&[Flag::Q4]);
    let variant = Variant { kernel: Kernel::NormLinear, flags };
    let source = variant.wgsl().unwrap().replace("entry(code.x)", two);
    let source = format!("var<private> private_book: array<f32, 16>;\n{source}");
    let sheet = Sheet::of_source("mutant", &source, flags, &Settings::gpu(variant));
    assert_eq!(streams(&sheet), Err("1.25 table reads a weight".into()));
}

#[test]
fn too_much_workgroup_memory_is_found() {
    let error = mutant("override STAGED: u32 = 576u;", "override STAGED: u32 = 1024u;");
    assert!(error.as_ref().is_err_and(|error| error.ends_with("bytes of workgroup memory")), "{error:?}");
}

#[test]
fn nine_buffers_are_found() {
    let more: String = (8..16)
        .map(|i| format!("@group(0) @binding({i}) var<storage, read> more_{i}: array<u32>;\n"))
        .collect();
    let error = mutant("override THREADS", &format!("{more}override THREADS"));
    assert!(error.as_ref().is_err_and(|error| error.ends_with("storage buffers")), "{error:?}");
}
