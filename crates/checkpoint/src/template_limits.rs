//! Templates come with checkpoints and are trusted no more than these: how much work and memory one may take.
//!
//! minijinja counts instructions, not bytes, and sixty instructions double a text sixty times. So every
//! expression that makes a new value (operators, filters, calls, slices) is wrapped into a filter that adds up
//! how large the values are; what is printed, be it into a variable, is added up by the formatter. Where the
//! expressions are is taken from minijinja's own parser.

use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most instructions: a conversation needs some thousands, an endless loop must end.
const FUEL: u64 = 10_000_000;

/// The largest text: a conversation has at most some hundred thousand tokens. What splits it into characters takes some
/// thirty times as much.
const LARGEST: u64 = 16 << 20;

/// Bytes of all values that are made and of all that is printed.
const TOTAL: u64 = 512 << 20;

/// The wrapping filter.
const GUARD: &str = "__bounded";

/// The same for sums: a sum of lists whose lengths are not known is refused after some of them.
const SUM: &str = "__bounded_sum";

/// What such a sum counts for.
const UNKNOWN: u64 = 32 << 20;

/// Filters whose result can be much larger than what goes in. The built-in one is called by the second name.
const GROWING: &[(&str, &str)] = &[
    ("replace", "__replace"),
    ("join", "__join"),
    ("indent", "__indent"),
    ("format", "__format"),
    ("batch", "__batch"),
    ("slice", "__slice"),
];

/// Bytes of an item of a list that a filter makes; a list of nothing among them.
const ITEM: u64 = 64;

/// Renders a template within the limits. `environment` is what it may use.
pub(crate) fn render(
    mut environment: Environment<'_>,
    syntax: SyntaxConfig,
    source: &str,
    context: BTreeMap<&str, Value>,
) -> Result<String, Error> {
    let (guarded, longest_raw) = guarded(source, syntax)?;
    let spent = Spent::default();
    // Plain text between the tags costs an instruction, however long it is.
    environment.set_fuel(Some(FUEL.min(2 * TOTAL / longest_raw.max(1))));
    let counter = spent.clone();
    environment.add_filter(GUARD, move |value: Value| counter.value(value));
    let counter = spent.clone();
    environment.add_filter(SUM, move |value: Value| {
        if value.kind() == ValueKind::Iterable && value.len().is_none() {
            counter.add(UNKNOWN)?;
        }
        counter.value(value)
    });
    let counter = spent.clone();
    environment.set_formatter(move |out, state, value| {
        counter.add(size(value))?;
        minijinja::escape_formatter(out, state, value)
    });
    environment.add_filter("__replace", minijinja::filters::replace);
    environment.add_filter("__join", minijinja::filters::join);
    environment.add_filter("__indent", minijinja::filters::indent);
    environment.add_filter("__format", minijinja::filters::format);
    environment.add_filter("__batch", minijinja::filters::batch);
    environment.add_filter("__slice", minijinja::filters::slice);
    for &(name, built_in) in GROWING {
        let counter = spent.clone();
        environment.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            counter.add(grown(name, &args))?;
            state.apply_filter(built_in, &args)
        });
    }
    environment.set_unknown_method_callback(move |state, value, method, args| {
        let all: Vec<Value> = [value.clone()].into_iter().chain(args.iter().cloned()).collect();
        // `', '.join(list)`, but `list|join(', ')`.
        match (method, &all[..]) {
            ("join", [joiner, list, ..]) => spent.add(grown("join", &[list.clone(), joiner.clone()]))?,
            ("replace" | "format", _) => spent.add(grown(method, &all))?,
            _ => {}
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    environment.template_from_str(&guarded)?.render(context)
}

/// Bytes so far.
#[derive(Clone, Default)]
struct Spent(Arc<AtomicU64>);

impl Spent {
    fn value(&self, value: Value) -> Result<Value, Error> {
        self.add(size(&value)).map(|()| value)
    }

    fn add(&self, bytes: u64) -> Result<(), Error> {
        let before = self.0.fetch_add(bytes.min(TOTAL + 1), Ordering::Relaxed);
        if bytes > LARGEST || before.saturating_add(bytes) > TOTAL {
            let problem = format!(
                "it makes more text than a conversation can need ({} MiB at once, {} MiB in all)",
                LARGEST >> 20,
                TOTAL >> 20
            );
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        Ok(())
    }
}

/// Bytes of a text; of a list something for each of its items, if their number is known.
fn size(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => text.len() as u64,
        None => value.len().unwrap_or(0) as u64 * size_of::<Value>() as u64,
    }
}

/// The most bytes that a filter can make of its arguments.
fn grown(filter: &str, args: &[Value]) -> u64 {
    let text = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
    let own = text(0).len() as u64;
    match filter {
        "replace" => {
            let times = text(0).matches(text(1)).count() as u64;
            own.saturating_add(times.saturating_mul(text(2).len() as u64))
        }
        "join" => {
            let joiner = text(1).len() as u64;
            let items = args.first().and_then(|list| list.try_iter().ok());
            // Lists are no longer than what was paid for them.
            items.into_iter().flatten().fold(0, |sum: u64, item| sum.saturating_add(size(&item) + joiner))
        }
        // Each width and each precision is a number of the text.
        "format" => {
            let numbers = text(0).split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
            let widths = numbers.map(|digits| digits.parse().unwrap_or(u64::MAX));
            widths.fold(own, u64::saturating_add)
        }
        "batch" | "slice" => most(args).saturating_mul(ITEM),
        _ => {
            let lines = 1 + text(0).matches('\n').count() as u64;
            own.saturating_add(most(args).saturating_mul(lines))
        }
    }
}

/// The largest whole number among arguments, those with names included, which come last as a map.
fn most(args: &[Value]) -> u64 {
    let named = args.last().filter(|last| last.is_kwargs());
    let names = named.and_then(|map| map.try_iter().ok()).into_iter().flatten();
    let values = names.filter_map(|name| named?.get_item(&name).ok());
    values
        .chain(args.iter().cloned())
        .filter_map(|value| u64::try_from(value.as_i64()?).ok())
        .max()
        .unwrap_or(0)
}

/// The template with its expressions wrapped, and the length of its longest plain text.
fn guarded(source: &str, syntax: SyntaxConfig) -> Result<(String, u64), Error> {
    let bad = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let tree = serde_json::to_value(parse(source, "<string>", syntax)?).map_err(bad)?;
    let mut found = Found::default();
    found.walk(&tree);
    let mut marks: Vec<(usize, Option<&str>)> = Vec::new();
    for &(begin, end, guard) in &found.expressions {
        marks.extend([(begin, None), (end, Some(guard))]);
    }
    // In the order of the tree where they are at one place.
    marks.sort_by_key(|&(place, _)| place);
    let mut out = String::with_capacity(source.len() + marks.len() * (GUARD.len() + 4));
    let mut at = 0;
    for (place, guard) in marks {
        // Spans are of this source; a place that is none would be minijinja's mistake.
        let between = source.get(at..place);
        out += between.ok_or_else(|| Error::new(ErrorKind::SyntaxError, "an expression without a place"))?;
        at = place;
        match guard {
            None => out += "((",
            Some(guard) => out.extend([")|", guard, ")"]),
        }
    }
    out += &source[at..];
    Ok((out, found.longest_raw))
}

/// What is looked for in the parsed template.
#[derive(Default)]
struct Found {
    /// Where expressions that make new values begin and end, and how they are wrapped; inner ones first.
    expressions: Vec<(usize, usize, &'static str)>,
    longest_raw: u64,
}

impl Found {
    fn walk(&mut self, node: &serde_json::Value) {
        match node {
            serde_json::Value::Array(items) => items.iter().for_each(|item| self.walk(item)),
            serde_json::Value::Object(fields) => {
                let (inner, span) = (&node["inner"][0], &node["inner"][1]);
                let guard = match (node["expr"].as_str(), inner["op"].as_str()) {
                    (Some("BinOp"), Some("Add")) => Some(SUM),
                    (Some("BinOp"), Some("Concat" | "Mul")) => Some(GUARD),
                    (Some("Filter" | "Call" | "Slice"), _) => Some(GUARD),
                    _ => None,
                };
                if let Some(raw) = inner["raw"].as_str() {
                    self.longest_raw = self.longest_raw.max(raw.len() as u64);
                }
                for (name, field) in fields {
                    self.walk(field);
                    // The filters of a filter block have no value before them to be wrapped with.
                    if name == "inner" && node["stmt"] == "FilterBlock" {
                        self.expressions.retain(|&(begin, end, _)| !within(begin, end, &inner["filter"]));
                    }
                }
                if let (Some(guard), Some(begin), Some(end)) = (guard, begin(node), place(span, "end_offset"))
                {
                    self.expressions.push((begin, end, guard));
                }
            }
            _ => {}
        }
    }
}

fn place(span: &serde_json::Value, key: &str) -> Option<usize> {
    usize::try_from(span[key].as_u64()?).ok()
}

/// Where an expression begins: the span of a filter or a call begins after what it is applied to. Parentheses
/// around that may stay outside: those that are added with them make up for it.
fn begin(node: &serde_json::Value) -> Option<usize> {
    match node {
        serde_json::Value::Array(items) => items.iter().filter_map(begin).min(),
        serde_json::Value::Object(fields) => {
            let own = place(node, "start_offset").filter(|_| place(node, "end_offset") != Some(0));
            fields.values().filter_map(begin).chain(own).min()
        }
        _ => None,
    }
}

/// Whether an expression is in the span of a node.
fn within(first: usize, end: usize, node: &serde_json::Value) -> bool {
    begin(node).is_some_and(|begin| begin <= first) && place(&node["inner"][1], "end_offset") >= Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str) -> Result<String, Error> {
        render(Environment::new(), SyntaxConfig::default(), source, BTreeMap::from([("m", "hello".into())]))
    }

    #[test]
    fn guards_change_nothing() {
        for (source, wanted) in [
            ("{{ 'a' ~ m ~ ('b' ~ 'c') }}", "ahellobc"),
            ("{{ (1 + 2) * 3 }}-{{ 'é' + m|upper + 'ß' }}", "9-éHELLOß"),
            ("{{ m[1:3] }}{{ m|trim|upper|replace('L', 'r') }}", "elHErrO"),
            ("{{ [1, 2]|join('-') }}{{ ', '.join(['x', 'y']) }}{{ m.split('l')|length }}", "1-2x, y3"),
            ("{% filter upper|trim %} a{{ m ~ 'x' }} {% endfilter %}", "AHELLOX"),
            ("{% macro f(x) %}[{{ x ~ x }}]{% endmacro %}{{ f(m[:1] ~ '!') }}", "[h!h!]"),
            (
                "{% set ns = namespace(a='') %}{% for i in range(3) %}{% set ns.a = ns.a ~ i %}{% endfor %}{{ ns.a }}",
                "012",
            ),
            ("{% set x %}{{ m }}{% endset %}{{ 'y' if x is defined and m|length == 5 else 'n' }}", "y"),
            ("{% call(x) g(1) %}{{ x }}{% endcall %}{% macro g(a) %}{{ caller(a + 1) }}{% endmacro %}", ""),
            ("{{ '%03d|%s'|format(7, 2000000000) }}{{ '{:>4}'.format('ab') }}", "007|2000000000  ab"),
            (
                "{{ [1, 2, 3]|batch(2, 0)|list }}{{ [1, 2, 3]|slice(2)|list }}",
                "[[1, 2], [3, 0]][[1, 2], [3]]",
            ),
            ("{{ 'a\\nb'|indent(width=2, first=true) }}", "  a\n  b"),
            ("{{ none|default('d', true) ~ absent|default('e') }}{{ -m|length + 6 }}", "de1"),
        ] {
            match rendered(source) {
                Ok(text) => assert_eq!(text, wanted, "{source}"),
                // A macro that is not there yet is an error with and without guards.
                Err(error) => {
                    assert!(Environment::new().render_str(source, ()).is_err(), "{source}: {error}")
                }
            }
        }
    }

    #[test]
    fn what_grows_without_end_is_refused() {
        let repeat = |body: &str| format!("{{% for i in range(60) %}}{body}{{% endfor %}}");
        let ns = "{% set ns = namespace(x='aaaaaaaa', l=[1]) %}";
        let doubling = "{% set ns.x = ns.x ~ ns.x %}";
        for source in [
            format!("{ns}{}", repeat(doubling)),
            format!("{ns}{}", repeat("{% set ns.x = ns.x + ns.x %}")),
            format!("{ns}{}", repeat("{% set ns.x = ns.x * 8 %}")),
            format!("{ns}{}", repeat("{% set ns.x = [ns.x, ns.x]|join %}")),
            format!("{ns}{}", repeat("{% set ns.x = ''.join([ns.x, ns.x]) %}")),
            format!("{ns}{}", repeat("{% set ns.x = ns.x|replace('a', 'aa') %}")),
            format!("{ns}{}", repeat("{% set ns.x = ns.x.replace('a', 'aa') %}")),
            format!("{ns}{}", repeat("{% set ns.x = '%s%s'|format(ns.x, ns.x) %}")),
            format!("{ns}{}", repeat("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}")),
            format!("{ns}{}", repeat("{% set ns.l = ns.l + [1, 2] + ns.l %}")),
            format!("{ns}{}", repeat("{% set ns.l = [ns.l, ns.l]|sum(start=[]) %}")),
            format!("{ns}{}", repeat("{% set ns.l = (ns.l + [1])|map('string') + ns.l|reject('none') %}")),
            "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('aa') }}".to_owned(),
            "{{ 'a\\n'|indent(2000000000) }}".to_owned(),
            "{{ 'a\\n'|indent(width=2000000000) }}".to_owned(),
            "{{ '%2000000000d'|format(1) }}".to_owned(),
            "{{ '%.2000000000f'|format(1) }}".to_owned(),
            "{{ '{:2000000000}'.format(1) }}".to_owned(),
            "{{ '{:99999999999999999999999}'.format(1) }}".to_owned(),
            "{{ [1]|slice(100000000000) }}".to_owned(),
            "{{ [1]|batch(100000000000, 'x') }}".to_owned(),
            "{{ [1]|batch(count=100000000000, fill_with='x') }}".to_owned(),
            // Each not too large, all together too large.
            format!(
                "{ns}{}{}",
                doubling.repeat(20),
                "{% for i in range(9999) %}{% set ns.l = ns.l + [ns.x ~ i] %}{% endfor %}"
            ),
            format!("{ns}{}{}", doubling.repeat(20), "{% for i in range(9999) %}{{ ns.x }}{% endfor %}"),
            format!(
                "{{% for i in range(99999) %}}{{% for i in range(9999) %}}{}{{% endfor %}}{{% endfor %}}",
                "a".repeat(9999)
            ),
        ] {
            let error = rendered(&source).unwrap_err().to_string();
            let known = ["more text than", "too large", "out of fuel", "recursion"];
            assert!(
                known.iter().any(|part| error.contains(part)),
                "{}: {error}",
                &source[..source.len().min(200)]
            );
        }
    }
}
