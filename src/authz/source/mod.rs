//! What a policy's text says, before anything of it runs.
//!
//! `load` finds and reads its files; `guard` looks at bare text for what would harm the parser.
//! `syntax` helps to read the engine's tree, on which `check` (with `graph`) finds recursion and
//! depth, `hazard` calls whose work has no bound, `negation` what may be undefined under a `not`, and
//! `reads` all that a decision can depend on. What any of them finds is a `remark`.

pub(in crate::authz) mod check;
pub(in crate::authz) mod graph;
pub(in crate::authz) mod guard;
pub(in crate::authz) mod hazard;
pub(in crate::authz) mod load;
pub(in crate::authz) mod negation;
pub(in crate::authz) mod reads;
pub(in crate::authz) mod remark;
pub(in crate::authz) mod syntax;
