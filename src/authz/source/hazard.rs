//! Builtins that may not be called at all: those that reach outside of the decision, or whose work
//! has no bound. What can be bounded where it is called is bounded there, by `rego::host`.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use regorus::unstable::Expr;

/// Why a call is refused, and what to write instead.
pub(in crate::authz) type Refused = (String, &'static str);

/// Judges a call of a builtin.
pub(in crate::authz) fn judge(name: &str) -> Result<(), Refused> {
    let (why, help) = match name {
        "http.send" | "net.lookup_ip_addr" => (
            "reaches outside the decision",
            "bring what it would fetch as data beside the policy, or as a claim",
        ),
        "rego.parse_module" | "rego.metadata.chain" | "rego.metadata.rule" => (
            "reads policies, which is no question about a request",
            "write what it would find as data",
        ),
        "graph.reachable_paths" => (
            "can take exponential time",
            "`graph.reachable` answers whether there is a path",
        ),
        "json.match_schema" | "json.verify_schema" => (
            "compiles a schema for each decision",
            "ask for the members that matter: `is_string(input.identity.claims.dept)`",
        ),
        "strings.render_template" => (
            "runs a template language of its own",
            "use `sprintf` or a template string",
        ),
        "walk" | "print" => return Ok(()),
        name if name.starts_with("graphql.") => (
            "parses a language of its own",
            "let the service judge its queries, or its route",
        ),
        name if name.starts_with("providers.aws.") => {
            ("signs requests of its own", "a decision makes none")
        }
        name if name.starts_with("crypto.x509.") || name == "crypto.parse_private_keys" => (
            "is not offered",
            "the client's certificate is read and verified before the policy is asked: `input.source.tls`",
        ),
        _ => return Ok(()),
    };
    Err((format!("`{name}` {why}"), help))
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
