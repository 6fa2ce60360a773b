//! What a policy's text says, before anything of it runs.
//!
//! `load` finds and reads its files; `guard` looks at bare text for what would harm the parser.
//! `syntax` helps to read the engine's tree, on which `check` (with `graph`) finds recursion and
//! depth, `hazard` calls that may not be made, `expansion` values without end, and `reads` all that a
//! decision can depend on, with `times` for the clock. `templates` and `rewrite` make a text that the
//! engine answers as OPA does, by the means of `edit`; `rewrite` asks `kinds` and `variables` what stands where. What any of them finds is a `remark`.

pub(in crate::authz) mod check;
pub(in crate::authz) mod edit;
pub(in crate::authz) mod expansion;
pub(in crate::authz) mod graph;
pub(in crate::authz) mod guard;
pub(in crate::authz) mod hazard;
pub(in crate::authz) mod kinds;
pub(in crate::authz) mod lint;
pub(in crate::authz) mod load;
pub(in crate::authz) mod reads;
pub(in crate::authz) mod remark;
pub(in crate::authz) mod rewrite;
pub(in crate::authz) mod size;
pub(in crate::authz) mod syntax;
pub(in crate::authz) mod templates;
pub(in crate::authz) mod times;
pub(in crate::authz) mod types;
mod variables;
