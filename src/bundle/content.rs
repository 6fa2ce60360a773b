//! What is in a bundle: its manifest, its modules, its data, each where it may be.
//!
//! The manifest says which parts of `data` the bundle owns (`roots`): packages of its modules and its
//! documents must lie in them, so that several bundles can be told apart. Of the files only those are
//! read that OPA reads: modules (`.rego`) and documents called `data.json`, `data.yaml` or `data.yml`,
//! which fill `data` at the path of their folder. Where OPA would take a file for something that it is
//! not called (`other.manifest`), the bundle is refused: it would mean two things.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::archive::Files;
use super::fault::{Fault, Kind};
use super::signature::{SIGNATURES, Signed};
use crate::document::{self, Allowance, Unreadable, Value, object};
use crate::schema::ContentDigest;

/// The file with the manifest.
const MANIFEST: &str = ".manifest";
/// Most roots of a bundle.
const MAX_ROOTS: usize = 1_000;
/// Longest revision, in bytes.
const MAX_REVISION: usize = 256;
/// The member of `metadata` that rises with every bundle, where the publisher wants to tell.
pub(super) const SEQUENCE: &str = "sequence";

/// A part of `data` that a bundle owns: the segments of its path, none for all of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Root(Vec<String>);

impl Root {
    /// Whether this path lies in it.
    pub fn holds(&self, path: &[String]) -> bool {
        path.starts_with(&self.0)
    }

    /// Whether both own the same value somewhere.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.holds(&other.0) || other.holds(&self.0)
    }

    /// The segments of its path.
    pub fn path(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.join("/"))
    }
}

/// One module.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name in the bundle.
    pub path: String,
    /// Its package, without `data`.
    pub package: Vec<String>,
    /// Its text.
    pub text: Arc<str>,
}

/// One revision of a bundle: verified as configured, read, and not judged yet.
#[derive(Debug)]
pub struct Content {
    /// SHA-256 over the files in it.
    pub digest: ContentDigest,
    /// What the publisher calls it; may be empty.
    pub revision: String,
    /// What it owns.
    pub roots: Vec<Root>,
    /// Rises with every bundle of a publisher who says so in `metadata.sequence`.
    pub sequence: Option<u64>,
    /// Live modules and tests, in the order of their names.
    pub modules: Vec<Module>,
    /// Its documents, merged.
    pub data: Value,
    /// Documents, with what each fills, to name them when two bundles clash.
    pub documents: Vec<String>,
    /// Files that mean nothing here.
    pub ignored: usize,
    /// Bytes as it came.
    pub packed: usize,
    /// Bytes of all files.
    pub unpacked: usize,
    /// What its signature says; `None` when no signature was asked for.
    pub signed: Option<Signed>,
}

impl Content {
    /// What the publisher calls it, or how its content is told apart when it says nothing.
    pub fn label(&self) -> String {
        if self.revision.is_empty() {
            format!("sha256:{}", self.digest)
        } else {
            self.revision.clone()
        }
    }

    /// Reads the files of a bundle whose signature, if one is asked for, is verified. Its documents may
    /// hold so many values together.
    ///
    /// # Errors
    /// [`Fault`], naming the file.
    pub(super) fn read(
        files: &Files,
        packed: usize,
        signed: Option<Signed>,
        values: usize,
    ) -> Result<Self, Fault> {
        let manifest = Manifest::read(files)?;
        let allowance = Allowance::of(values);
        let mut content = Self {
            digest: digest(files),
            revision: manifest.revision,
            roots: manifest.roots,
            sequence: manifest.sequence,
            modules: Vec::new(),
            data: Value::new_object(),
            documents: Vec::new(),
            ignored: 0,
            packed,
            unpacked: files.values().map(Vec::len).sum(),
            signed,
        };
        let mut filled: Vec<(String, Value)> = Vec::new();
        for (name, bytes) in files {
            match kind(name)? {
                What::Manifest | What::Signatures => {}
                What::Other => content.ignored += 1,
                What::Module => content.module(name, bytes)?,
                What::Json => {
                    let value = document::from_json_within(bytes, &allowance);
                    content.document(name, value, &mut filled)?;
                }
                What::Yaml => {
                    let value = document::from_yaml_within(bytes, &allowance);
                    content.document(name, value, &mut filled)?;
                }
            }
        }
        let live = content
            .modules
            .iter()
            .any(|module| !module.path.ends_with("_test.rego"));
        if live && manifest.old_rego {
            return Err(Fault::of(
                Kind::Unsupported,
                MANIFEST,
                "its modules are Rego version 0, and only version 1 is taken",
            )
            .help("rewrite them with `opa fmt --write --v0-v1`, and build with `rego_version` 1"));
        }
        content.documents = filled.into_iter().map(|(name, _)| name).collect();
        Ok(content)
    }

    /// Whether a path of `data` lies in one of the roots.
    pub fn owns(&self, path: &[String]) -> bool {
        self.roots.iter().any(|root| root.holds(path))
    }

    fn module(&mut self, name: &str, bytes: &[u8]) -> Result<(), Fault> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            Fault::of(Kind::Content, name, "the module is not UTF-8").at(Some((line, 1)))
        })?;
        let package = package(text).ok_or_else(|| {
            Fault::of(
                Kind::Content,
                name,
                "the module does not begin with its package",
            )
            .help("its first words must be such as `package orders.authz`")
        })?;
        if !self.owns(&package) {
            let shown = package.join(".");
            return Err(self.outside(name, &format!("the package `{shown}`")));
        }
        self.modules.push(Module {
            path: name.to_owned(),
            package,
            text: text.into(),
        });
        Ok(())
    }

    fn document(
        &mut self,
        name: &str,
        value: Result<Value, Unreadable>,
        filled: &mut Vec<(String, Value)>,
    ) -> Result<(), Fault> {
        let value = value.map_err(|error| {
            Fault::of(Kind::Content, name, error.message).at(error.line.zip(error.column))
        })?;
        let mut folders: Vec<String> = name.split('/').map(ToOwned::to_owned).collect();
        folders.pop();
        if folders.is_empty() && !matches!(value, Value::Object(_)) {
            return Err(Fault::of(Kind::Content, name, "the data is not an object")
                .help("at the top of a bundle its members become members of `data`"));
        }
        let rooted = folders
            .iter()
            .rev()
            .fold(value, |value, folder| object([(folder.as_str(), value)]));
        let mut path = Vec::new();
        self.inside(&rooted, &mut path, name)?;
        match document::merge(&mut self.data, &rooted) {
            Ok(()) => {
                filled.push((name.to_owned(), rooted));
                Ok(())
            }
            Err(mut path) => {
                path.reverse();
                let other = filled
                    .iter()
                    .find(|(_, value)| {
                        path.iter()
                            .try_fold(value, |value, key| document::member(value, key))
                            .is_some()
                    })
                    .map_or("another file", |(name, _)| name.as_str());
                let message = format!("`data.{}` is also given by {other}", path.join("."));
                Err(Fault::of(Kind::Content, name, message))
            }
        }
    }

    /// That a document lies in the roots: below each member that is outside there is one, or an
    /// object on the way to one.
    fn inside(&self, value: &Value, path: &mut Vec<String>, name: &str) -> Result<(), Fault> {
        if self.owns(path) {
            return Ok(());
        }
        let leads = self.roots.iter().any(|root| root.path().starts_with(path));
        if !leads || !matches!(value, Value::Object(_)) {
            let shown = format!("`data.{}`", path.join("."));
            return Err(self.outside(name, &shown));
        }
        for member in document::names(value) {
            path.push(member.to_owned());
            self.inside(
                document::member(value, member).unwrap_or(&Value::Null),
                path,
                name,
            )?;
            path.pop();
        }
        Ok(())
    }

    fn outside(&self, name: &str, what: &str) -> Fault {
        let roots: Vec<String> = self.roots.iter().map(ToString::to_string).collect();
        Fault::of(
            Kind::Manifest,
            name,
            format!("{what} lies outside the bundle's roots"),
        )
        .help(format!(
            "the manifest's `roots` are: [{}]",
            roots.join(", ")
        ))
    }
}

/// What a file of a bundle is for.
enum What {
    Manifest,
    Signatures,
    Module,
    Json,
    Yaml,
    Other,
}

fn kind(name: &str) -> Result<What, Fault> {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let hidden = || folder.split('/').any(|part| part.starts_with('.'));
    Ok(match file {
        MANIFEST if folder.is_empty() => What::Manifest,
        SIGNATURES if folder.is_empty() => What::Signatures,
        _ if file.ends_with(MANIFEST) || file.ends_with("signatures.json") => {
            return Err(Fault::of(
                Kind::Manifest,
                name,
                "OPA would take the file for the bundle's manifest or signature",
            )
            .help(
                "these are called `.manifest` and `.signatures.json`, at the top of the bundle",
            ));
        }
        "patch.json" => {
            return Err(Fault::of(Kind::Unsupported, name, "it is a delta bundle")
                .help("only whole bundles are taken: publish snapshots"));
        }
        _ if file.ends_with(".wasm") => {
            return Err(
                Fault::of(Kind::Unsupported, name, "its policies are WebAssembly")
                    .help("build it without `--target wasm`: modules are compiled here"),
            );
        }
        _ if file.ends_with(".rego") => What::Module,
        "data.json" | "data.yaml" | "data.yml" if hidden() => {
            return Err(Fault::of(
                Kind::Content,
                name,
                "data in a folder that begins with a dot: OPA fills another path with it",
            ));
        }
        "data.json" => What::Json,
        "data.yaml" | "data.yml" => What::Yaml,
        _ => What::Other,
    })
}

/// What a manifest says.
struct Manifest {
    revision: String,
    roots: Vec<Root>,
    sequence: Option<u64>,
    /// Modules are Rego version 0.
    old_rego: bool,
}

impl Manifest {
    fn read(files: &Files) -> Result<Self, Fault> {
        let mut manifest = Self {
            revision: String::new(),
            roots: vec![Root(Vec::new())],
            sequence: None,
            old_rego: false,
        };
        let Some(text) = files.get(MANIFEST) else {
            return Ok(manifest);
        };
        let wrong = |message: String| Fault::of(Kind::Manifest, MANIFEST, message);
        let document = document::from_json(text)
            .map_err(|error| wrong(error.message).at(error.line.zip(error.column)))?;
        if !matches!(document, Value::Object(_)) {
            return Err(wrong("it is not an object".to_owned()));
        }
        // Absent and null are one for Go.
        let member =
            |name| document::member(&document, name).filter(|value| **value != Value::Null);
        if let Some(revision) = member("revision") {
            let text = document::text(revision)
                .ok_or_else(|| wrong("`revision` is not text".to_owned()))?;
            if text.len() > MAX_REVISION || text.chars().any(char::is_control) {
                return Err(wrong(format!(
                    "`revision` is longer than {MAX_REVISION} bytes, or holds control characters"
                )));
            }
            manifest.revision = text.to_string();
        }
        if let Some(roots) = member("roots") {
            manifest.roots = read_roots(roots)?;
        }
        match member("rego_version") {
            None => {}
            Some(version) => match version.as_u64() {
                Ok(1) => {}
                Ok(0) => manifest.old_rego = true,
                _ => return Err(wrong("`rego_version` is neither 0 nor 1".to_owned())),
            },
        }
        if let Some(versions) = member("file_rego_versions") {
            if !matches!(versions, Value::Object(_)) {
                return Err(wrong("`file_rego_versions` is not an object".to_owned()));
            }
            for pattern in document::names(versions) {
                let version = document::member(versions, pattern).map(Value::as_u64);
                match version {
                    Some(Ok(1)) => {}
                    Some(Ok(0)) => manifest.old_rego = true,
                    _ => {
                        let shown = pattern.escape_debug();
                        return Err(wrong(format!(
                            "the version of `{shown}` is neither 0 nor 1"
                        )));
                    }
                }
            }
        }
        match member("wasm") {
            None => {}
            Some(wasm) if document::items(wasm).is_some_and(<[_]>::is_empty) => {}
            Some(_) => {
                return Err(
                    Fault::of(Kind::Unsupported, MANIFEST, "its policies are WebAssembly")
                        .help("build it without `--target wasm`: modules are compiled here"),
                );
            }
        }
        if let Some(metadata) = member("metadata") {
            if !matches!(metadata, Value::Object(_)) {
                return Err(wrong("`metadata` is not an object".to_owned()));
            }
            if let Some(sequence) = document::member(metadata, SEQUENCE) {
                let number = sequence.as_u64().map_err(|_| {
                    wrong(format!("`metadata.{SEQUENCE}` is not a whole number"))
                        .help("it tells which of two bundles is newer")
                })?;
                manifest.sequence = Some(number);
            }
        }
        Ok(manifest)
    }
}

fn read_roots(roots: &Value) -> Result<Vec<Root>, Fault> {
    let wrong = |message: String| Fault::of(Kind::Manifest, MANIFEST, message);
    let items =
        document::items(roots).ok_or_else(|| wrong("`roots` is not a list of texts".to_owned()))?;
    if items.len() > MAX_ROOTS {
        return Err(wrong(format!("there are more than {MAX_ROOTS} roots")));
    }
    let mut read: Vec<Root> = Vec::with_capacity(items.len());
    for item in items {
        let text = document::text(item)
            .ok_or_else(|| wrong("`roots` is not a list of texts".to_owned()))?;
        let trimmed = text.trim_matches('/');
        let path: Vec<String> = if trimmed.is_empty() {
            Vec::new()
        } else {
            trimmed.split('/').map(ToOwned::to_owned).collect()
        };
        if path
            .iter()
            .any(|part| matches!(part.as_str(), "" | "." | ".."))
        {
            let shown = text.escape_debug();
            return Err(wrong(format!("the root \"{shown}\" is no path of `data`")));
        }
        read.push(Root(path));
    }
    // Sorted by their paths, one that holds another stands right before it.
    let mut sorted: Vec<&Root> = read.iter().collect();
    sorted.sort();
    for pair in sorted.windows(2) {
        if let [first, second] = pair
            && first.overlaps(second)
        {
            return Err(wrong(format!("the roots {first} and {second} overlap")));
        }
    }
    Ok(read)
}

/// SHA-256 over names and contents, each with its length.
fn digest(files: &Files) -> ContentDigest {
    let parts: BTreeMap<&str, ContentDigest> = files
        .iter()
        .map(|(name, content)| (name.as_str(), ContentDigest::of(content)))
        .collect();
    let mut all = Vec::new();
    for (name, content) in parts {
        all.extend_from_slice(&u64::try_from(name.len()).unwrap_or(u64::MAX).to_be_bytes());
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(content.as_bytes());
    }
    ContentDigest::of(&all)
}

/// The package of a module, without `data`; `None` when it does not begin with one in the usual form.
pub fn package(text: &str) -> Option<Vec<String>> {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        match rest.strip_prefix('#') {
            Some(comment) => rest = comment.split_once('\n').map_or("", |(_, rest)| rest),
            None => break,
        }
    }
    let after = rest.strip_prefix("package")?;
    rest = after.trim_start_matches([' ', '\t']);
    if rest.len() == after.len() {
        return None;
    }
    let name = |text: &str| -> Option<usize> {
        let length = text
            .bytes()
            .take_while(|b| b.is_ascii_alphanumeric() || *b == b'_')
            .count();
        let begins = text.bytes().next().is_some_and(|b| !b.is_ascii_digit());
        (length > 0 && begins).then_some(length)
    };
    let mut path = Vec::new();
    let (first, mut rest) = rest.split_at_checked(name(rest)?)?;
    path.push(first.to_owned());
    loop {
        if let Some(after) = rest.strip_prefix('.') {
            let (part, after) = after.split_at_checked(name(after)?)?;
            path.push(part.to_owned());
            rest = after;
        } else if let Some(after) = rest.strip_prefix("[\"") {
            let (part, after) = after.split_once("\"]")?;
            if part.contains(['"', '\\', '\n']) {
                return None;
            }
            path.push(part.to_owned());
            rest = after;
        } else {
            break;
        }
    }
    // The end of the line, a comment, or another statement: nothing that goes on with the path.
    let next = rest.chars().next();
    next.is_none_or(|c| matches!(c, ' ' | '\t' | '\r' | '\n' | '#' | ';'))
        .then_some(path)
        .filter(|_| !rest.trim_start_matches([' ', '\t']).starts_with(['.', '[']))
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;
