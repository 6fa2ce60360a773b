//! Builtins whose work the engine's clock cannot stop.
//!
//! The engine looks at the clock between instructions, never inside a builtin, and does not count
//! memory. So a builtin may be called only if a bound on its work can be read from the source;
//! what gives another answer each time, or reaches outside, may not be called at all.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use regorus::Value;
use regorus::unstable::{Expr, Ref};

/// Most elements of a range or an expanded network.
pub(in crate::authz) const MAX_ELEMENTS: u64 = 10_000;
/// Longest text that a builtin may put in place of every match.
pub(in crate::authz) const MAX_REPLACEMENT: usize = 64;
/// Longest regular expression or glob.
pub(in crate::authz) const MAX_PATTERN: usize = 1024;
/// Widest field of a format.
const MAX_WIDTH: u32 = 256;
/// Furthest shift to the left, bits.
const MAX_SHIFT: u64 = 1024;

/// Why a call is refused, and what to write instead.
pub(in crate::authz) type Refused = (String, &'static str);

/// Judges one call of a builtin by its arguments.
pub(in crate::authz) fn judge(name: &str, args: &[Ref<Expr>]) -> Result<(), Refused> {
    let arg = |index: usize| args.get(index).map(AsRef::as_ref);
    let never = |why: &str, help: &'static str| Err((format!("`{name}` {why}"), help));
    match name {
        "time.now_ns" => never(
            "reads a clock of its own",
            "use `input.request.received_at_ns`, the request's one clock reading",
        ),
        "rand.intn" | "uuid.rfc4122" => never(
            "answers differently each time, so that no decision could be repeated",
            "use `input.request.id`, which is random and recorded",
        ),
        "http.send" | "net.lookup_ip_addr" | "opa.runtime" | "rego.parse_module" => never(
            "reaches outside the decision",
            "bring what it would fetch as data beside the policy, or as a claim",
        ),
        "print" | "trace" => never(
            "writes what the policy sees to the log",
            "print in `*_test.rego` files; say why in the answer's `reason`",
        ),
        "graph.reachable_paths" => never(
            "can take exponential time",
            "`graph.reachable` answers whether there is a path",
        ),
        "numbers.range" | "numbers.range_step" => match (integer(arg(0)), integer(arg(1))) {
            (Some(from), Some(to))
                if from.abs_diff(to) <= MAX_ELEMENTS
                    && (name == "numbers.range" || integer(arg(2)).is_some_and(|s| s > 0)) =>
            {
                Ok(())
            }
            _ => never(
                "is bounded only when both ends are numbers in the source, at most 10000 apart",
                "compare with `<=` instead of asking for membership in a range",
            ),
        },
        "net.cidr_expand" => match string(arg(0)).and_then(addresses) {
            Some(count) if count <= MAX_ELEMENTS => Ok(()),
            _ => never(
                "is bounded only for a network in the source of at most 10000 addresses",
                "`net.cidr_contains(network, address)` asks the same without listing it",
            ),
        },
        "bits.lsh" => match integer(arg(1)) {
            Some(shift) if u64::try_from(shift).is_ok_and(|shift| shift <= MAX_SHIFT) => Ok(()),
            _ => never(
                "is bounded only when the shift is a number in the source, at most 1024",
                "write the shift as a number",
            ),
        },
        // `1e999999999` in a header would be computed digit by digit.
        "to_number" | "units.parse" | "units.parse_bytes" => match string(arg(0)) {
            Some(text) if text.bytes().all(|b| !matches!(b, b'e' | b'E')) => Ok(()),
            _ => never(
                "takes hours and gigabytes for a text such as `1e999999999`",
                "`json.unmarshal` reads a number from text, and fails on those out of range",
            ),
        },
        "sprintf" => match string(arg(0)) {
            Some(format) => widths(format).map_err(|why| {
                (
                    format!("`sprintf` {why}"),
                    "leave the width out, or keep it below 256",
                )
            }),
            None => never(
                "is bounded only when the format is a text in the source",
                "write the format as a literal",
            ),
        },
        "strings.count" => match string(arg(1)) {
            Some(part) if !part.is_empty() => Ok(()),
            _ => never(
                "brings the engine down when the part to count is empty",
                "write the part as a literal that is not empty",
            ),
        },
        "concat" => short(name, arg(0), "the delimiter"),
        "replace" => short(name, arg(2), "the replacement"),
        "strings.replace_n" => match arg(0) {
            Some(Expr::Object { fields, .. })
                if fields.iter().all(|(_, _, new)| {
                    string(Some(new)).is_some_and(|new| new.len() <= MAX_REPLACEMENT)
                }) =>
            {
                Ok(())
            }
            _ => never(
                "is bounded only when the patterns are an object of short texts in the source",
                "write the patterns as a literal object",
            ),
        },
        "regex.replace" => {
            pattern(name, arg(1))?;
            short(name, arg(2), "the replacement")
        }
        "regex.match"
        | "regex.find_n"
        | "regex.is_valid"
        | "regex.split"
        | "regex.template_match"
        | "regex.find_all_string_submatch_n"
        | "glob.match" => pattern(name, arg(0)),
        _ => Ok(()),
    }
}

fn short(name: &str, arg: Option<&Expr>, what: &str) -> Result<(), Refused> {
    match string(arg) {
        Some(text) if text.len() <= MAX_REPLACEMENT => Ok(()),
        _ => Err((
            format!(
                "`{name}` is bounded only when {what} is a text in the source of at most {MAX_REPLACEMENT} bytes"
            ),
            "write it as a literal",
        )),
    }
}

/// Patterns come from the source or from data, never from the request: a client that chooses the
/// pattern chooses the work.
fn pattern(name: &str, arg: Option<&Expr>) -> Result<(), Refused> {
    match arg {
        Some(expr) if rooted_in_data(expr) => Ok(()),
        _ if string(arg).is_some_and(|pattern| pattern.len() <= MAX_PATTERN) => Ok(()),
        _ => Err((
            format!(
                "`{name}` is bounded only when the pattern is a text in the source of at most {MAX_PATTERN} bytes, or comes from data"
            ),
            "write the pattern as a literal, or name it in place: `data.patterns[_]`",
        )),
    }
}

fn rooted_in_data(expr: &Expr) -> bool {
    match expr {
        Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } => match refr.as_ref() {
            Expr::Var { span, .. } => span.text() == "data",
            inner => rooted_in_data(inner),
        },
        _ => false,
    }
}

/// The text of a string literal.
pub(in crate::authz) fn string(expr: Option<&Expr>) -> Option<&str> {
    match expr? {
        Expr::String { value, .. } | Expr::RawString { value, .. } => {
            value.as_string().ok().map(AsRef::as_ref)
        }
        _ => None,
    }
}

fn integer(expr: Option<&Expr>) -> Option<i64> {
    match expr? {
        Expr::Number {
            value: Value::Number(number),
            ..
        } => number.as_i64(),
        Expr::UnaryExpr { expr, .. } => integer(Some(expr))?.checked_neg(),
        _ => None,
    }
}

fn addresses(network: &str) -> Option<u64> {
    let network: ipnet::IpNet = network.parse().ok()?;
    let host_bits = u32::from(network.max_prefix_len()) - u32::from(network.prefix_len());
    1u64.checked_shl(host_bits).filter(|_| host_bits < 64)
}

fn widths(format: &str) -> Result<(), String> {
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        let mut width: u32 = 0;
        while let Some(&c) = chars.peek() {
            if let Some(digit) = c.to_digit(10) {
                width = width.saturating_mul(10).saturating_add(digit);
            } else if c.is_numeric() {
                return Err("has a width in digits other than 0 to 9".to_owned());
            } else if c != '.' {
                break;
            }
            chars.next();
        }
        if width > MAX_WIDTH {
            return Err(format!("asks for a field of {width} characters"));
        }
        chars.next();
    }
    Ok(())
}
