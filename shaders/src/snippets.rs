//! The files of `wgsl/snippets`, by the name that `#include` uses.

/// The snippet `name`.
pub(crate) fn snippet(name: &str) -> Option<&'static str> {
    Some(match name {
        "act" => include_str!("../wgsl/snippets/act.wgsl"),
        "dense" => include_str!("../wgsl/snippets/dense.wgsl"),
        "epilogue" => include_str!("../wgsl/snippets/epilogue.wgsl"),
        "heads" => include_str!("../wgsl/snippets/heads.wgsl"),
        "kv" => include_str!("../wgsl/snippets/kv.wgsl"),
        "kv_tile" => include_str!("../wgsl/snippets/kv_tile.wgsl"),
        "new_record" => include_str!("../wgsl/snippets/new_record.wgsl"),
        "places" => include_str!("../wgsl/snippets/places.wgsl"),
        "queries" => include_str!("../wgsl/snippets/queries.wgsl"),
        "random" => include_str!("../wgsl/snippets/random.wgsl"),
        "reduce" => include_str!("../wgsl/snippets/reduce.wgsl"),
        "weights" => include_str!("../wgsl/snippets/weights.wgsl"),
        _ => return None,
    })
}
