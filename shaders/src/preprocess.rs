//! `#include "snippet"` and `#if FLAG … #else … #endif`, each on a line of its own.

use crate::kernel::{Flag, Flags};
use crate::snippets::snippet;

/// A defect in a shader file, or a variant that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShaderError {
    /// Flags that contradict each other.
    #[error("no such shader variant: {0}")]
    Illegal(String),
    /// A directive that cannot be followed.
    #[error("{file}.wgsl, line {line}: {what}")]
    Directive {
        /// The file, without its ending.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// One `#if` that is open: whether its text is wanted, and whether `#else` was seen.
struct Branch {
    wanted: bool,
    turned: bool,
}

/// The text of `source` (named `file`) with all directives followed. A snippet is included once, where
/// it is first asked for. `enable` lines, which must come first, follow from the flags.
pub(crate) fn render(file: &str, source: &str, flags: Flags) -> Result<String, ShaderError> {
    let mut out = String::with_capacity(4 * source.len());
    if flags.has(Flag::F16) {
        out.push_str("enable f16;\n");
    }
    let mut included = Vec::new();
    append(file, source, flags, &mut included, &mut out)?;
    Ok(out)
}

fn append(
    file: &str,
    source: &str,
    flags: Flags,
    included: &mut Vec<String>,
    out: &mut String,
) -> Result<(), ShaderError> {
    let mut open: Vec<Branch> = Vec::new();
    let mut last = 0;
    for (index, line) in source.lines().enumerate() {
        last = index + 1;
        let broken = |what: String| ShaderError::Directive { file: file.to_owned(), line: index + 1, what };
        let mut words = line.trim().splitn(2, ' ');
        let (word, rest) = (words.next().unwrap_or(""), words.next().unwrap_or("").trim());
        let wanted = open.iter().all(|branch| branch.wanted);
        match word {
            "#if" => {
                let flag = Flag::from_name(rest).ok_or_else(|| broken(format!("unknown flag {rest}")))?;
                open.push(Branch { wanted: flags.has(flag), turned: false });
            }
            "#else" => {
                let branch = open.last_mut().filter(|branch| !branch.turned);
                let branch = branch.ok_or_else(|| broken("#else without #if".into()))?;
                (branch.wanted, branch.turned) = (!branch.wanted, true);
            }
            "#endif" => {
                open.pop().ok_or_else(|| broken("#endif without #if".into()))?;
            }
            "#include" if !wanted => {}
            "#include" => {
                let name = rest.trim_matches('"');
                if !included.iter().any(|seen| seen == name) {
                    let text = snippet(name).ok_or_else(|| broken(format!("no snippet {name}")))?;
                    included.push(name.to_owned());
                    append(name, text, flags, included, out)?;
                }
            }
            _ if word.starts_with('#') => return Err(broken(format!("unknown directive {word}"))),
            _ if wanted => {
                out.push_str(line);
                out.push('\n');
            }
            _ => {}
        }
    }
    if open.is_empty() {
        return Ok(());
    }
    Err(ShaderError::Directive { file: file.to_owned(), line: last, what: "#if without #endif".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str, flags: &[Flag]) -> Result<String, ShaderError> {
        render("test", source, Flags::of(flags))
    }

    #[test]
    fn branches_nest() {
        let source = "#if Q4\na\n#if BIAS\nb\n#else\nc\n#endif\n#else\nd\n#endif\ne";
        assert_eq!(rendered(source, &[Flag::Q4]).unwrap(), "a\nc\ne\n");
        assert_eq!(rendered(source, &[Flag::Q4, Flag::Bias]).unwrap(), "a\nb\ne\n");
        assert_eq!(rendered(source, &[Flag::Bias]).unwrap(), "d\ne\n");
    }

    #[test]
    fn snippets_come_once() {
        let once = rendered("#include \"act\"", &[]).unwrap();
        assert_eq!(rendered("#include \"act\"\n#include \"act\"", &[]).unwrap(), once);
    }

    #[test]
    fn broken_directives_are_named() {
        for (source, wanted) in [
            ("x\n#if NOPE\n#endif", "test.wgsl, line 2: unknown flag NOPE"),
            ("#if Q4", "test.wgsl, line 1: #if without #endif"),
            ("#endif", "test.wgsl, line 1: #endif without #if"),
            ("#else", "test.wgsl, line 1: #else without #if"),
            ("#include \"nope\"", "test.wgsl, line 1: no snippet nope"),
            ("#define X", "test.wgsl, line 1: unknown directive #define"),
        ] {
            assert_eq!(rendered(source, &[]).unwrap_err().to_string(), wanted);
        }
    }
}
