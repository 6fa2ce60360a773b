//! A `.tar.gz`, or a folder, to the files in it; and back.
//!
//! Nothing is ever written where an entry says. Still its names are judged as if it were, since they
//! become paths of `data`: relative, without `..`, each once. One `/` or `./` in front is what
//! `opa build` and `tar` write, and means nothing. The archive is read as a stream, and what is
//! taken is counted before it is kept. Only files and folders are entries: a link, a device or a sparse
//! file has no place in a bundle. Behind the end of the archive there is nothing but padding, and
//! behind the end of the gzip member nothing at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use super::fault::{Fault, Kind};

/// Most entries of an archive, folders and extended headers included.
pub(super) const MAX_ENTRIES: usize = 10_000;
/// Longest name of an entry, in bytes.
pub(super) const MAX_NAME: usize = 512;
/// Most folders one inside the other.
pub(super) const MAX_FOLDERS: usize = 32;
/// Longest extended header, in bytes.
const MAX_EXTENSION: u64 = 16 * 1024;
/// The unit of a tar archive.
const BLOCK: usize = 512;

/// How much of an archive is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Bytes as they come.
    pub(super) packed: u64,
    /// Bytes after decompression, headers and padding included.
    pub(super) unpacked: u64,
}

/// For so many unpacked bytes there may be one value in the documents. Values take about ten times as
/// much memory as the shortest ones take in a file.
const BYTES_OF_VALUE: u64 = 8;

impl Bounds {
    /// How many values the documents may hold.
    pub(super) fn values(&self) -> usize {
        usize::try_from(self.unpacked / BYTES_OF_VALUE).unwrap_or(usize::MAX)
    }
}

/// The files of a bundle by name, without a leading slash.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// The decompressed archive, counted.
struct Stream<'b> {
    decoder: GzDecoder<&'b [u8]>,
    left: u64,
    bounds: &'b Bounds,
}

impl Stream<'_> {
    /// Fills `block`; how much of it, when the stream ends before.
    fn fill(&mut self, block: &mut [u8]) -> Result<usize, Fault> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.decoder.read(rest) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    self.left = u64::try_from(read)
                        .ok()
                        .and_then(|read| self.left.checked_sub(read))
                        .ok_or_else(|| too_large(self.bounds))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(truncated());
                }
                Err(error) => {
                    let message = format!("it cannot be decompressed: {error}");
                    return Err(Fault::new(Kind::Archive, message)
                        .help("a bundle is a gzipped tar archive"));
                }
            }
        }
        Ok(filled)
    }

    /// `size` bytes and their padding.
    fn content(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        // Before anything is made room for.
        let size = usize::try_from(size)
            .ok()
            .filter(|_| size <= self.left)
            .ok_or_else(|| too_large(self.bounds))?;
        let mut content = Vec::new();
        let mut block = [0; 16 * BLOCK];
        let mut left = size.next_multiple_of(BLOCK);
        while left > 0 {
            let want = left.min(block.len());
            let Some(part) = block.get_mut(..want) else {
                return Err(truncated());
            };
            if self.fill(part)? < want {
                return Err(truncated());
            }
            content.extend_from_slice(part);
            left -= want;
        }
        content.truncate(size);
        content.shrink_to_fit();
        Ok(content)
    }
}

fn too_large(bounds: &Bounds) -> Fault {
    let message = format!("it holds more than {} bytes unpacked", bounds.unpacked);
    Fault::new(Kind::TooLarge, message).help("make it smaller, or raise `max_unpacked`")
}

fn truncated() -> Fault {
    Fault::new(
        Kind::Archive,
        "it ends in the middle: the archive is incomplete",
    )
}

/// Reads a `.tar.gz`.
///
/// # Errors
/// [`Fault`], naming the entry.
pub(super) fn unpack(bytes: &[u8], bounds: &Bounds) -> Result<Files, Fault> {
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bounds.packed {
        let message = format!("it is larger than {} bytes", bounds.packed);
        return Err(Fault::new(Kind::TooLarge, message).help("raise `max_size`"));
    }
    // Error pages come in the place of bundles, and are not to be called incomplete.
    if !bytes.is_empty() && !bytes.starts_with(b"\x1f\x8b") {
        let message = "it cannot be decompressed: it is no gzip data";
        return Err(Fault::new(Kind::Archive, message).help("a bundle is a gzipped tar archive"));
    }
    let mut stream = Stream {
        decoder: GzDecoder::new(bytes),
        left: bounds.unpacked,
        bounds,
    };
    let mut files = Files::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut entries = 0usize;
    // From an extended header, for the entry behind it.
    let mut long: Option<String> = None;
    loop {
        let mut block = [0; BLOCK];
        match stream.fill(&mut block)? {
            BLOCK => {}
            _ => return Err(truncated()),
        }
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        entries += 1;
        if entries > MAX_ENTRIES {
            let message = format!("it has more than {MAX_ENTRIES} entries");
            return Err(Fault::new(Kind::TooLarge, message));
        }
        let header = Header::read(&block)?;
        match header.kind {
            b'x' | b'g' | b'L' => {
                if header.size > MAX_EXTENSION {
                    let message =
                        format!("an extended header is longer than {MAX_EXTENSION} bytes");
                    return Err(Fault::of(Kind::Archive, &header.name, message));
                }
                let content = stream.content(header.size)?;
                match header.kind {
                    b'L' => {
                        long = Some(text(content.split(|b| *b == 0).next().unwrap_or_default())?)
                    }
                    b'x' => long = pax(&content, true)?.or(long),
                    _ => drop(pax(&content, false)?),
                }
            }
            b'0' | 0 | b'5' => {
                let said = long.take().unwrap_or(header.name);
                // Old archives tell a folder by its name.
                let folder = header.kind == b'5' || said.ends_with('/');
                let name = judged(&said, folder)?;
                if folder && header.size > 0 {
                    return Err(Fault::of(Kind::Archive, &said, "a folder with content"));
                }
                let content = stream.content(header.size)?;
                if folder {
                    continue;
                }
                if !seen.insert(name.clone()) {
                    return Err(Fault::of(Kind::Archive, &name, "the name occurs twice"));
                }
                files.insert(name, content);
            }
            other => {
                let what = match other {
                    b'1' => "a hard link",
                    b'2' => "a symbolic link",
                    b'3' | b'4' => "a device",
                    b'6' => "a pipe",
                    _ => "neither a file nor a folder",
                };
                let name = long.take().unwrap_or(header.name);
                return Err(Fault::of(Kind::Archive, &name, format!("it is {what}"))
                    .help("a bundle holds files and folders only"));
            }
        }
    }
    // The end is two empty blocks; more of them are padding.
    let mut block = [0; BLOCK];
    let mut ends = 1;
    loop {
        let filled = stream.fill(&mut block)?;
        if block.iter().take(filled).any(|byte| *byte != 0) {
            return Err(Fault::new(
                Kind::Archive,
                "there is something behind the end of the archive",
            ));
        }
        ends += usize::from(filled == BLOCK);
        if filled < BLOCK {
            break;
        }
    }
    if ends < 2 || long.is_some() {
        return Err(truncated());
    }
    if !stream.decoder.into_inner().is_empty() {
        return Err(Fault::new(
            Kind::Archive,
            "there is something behind the end of the gzip data",
        ));
    }
    Ok(files)
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    fn read(block: &[u8; BLOCK]) -> Result<Self, Fault> {
        let field = |from: usize, to: usize| block.get(from..to).unwrap_or_default();
        let filled = |from, to| {
            field(from, to)
                .split(|b| *b == 0)
                .next()
                .unwrap_or_default()
        };
        let bad = || {
            Fault::new(Kind::Archive, "it is no tar archive: a header is damaged")
                .help("a bundle is a gzipped tar archive")
        };
        // The sum counts its own field as blanks.
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u64::from(*byte)
                }
            })
            .sum();
        if octal(field(148, 156)) != Some(sum) {
            return Err(bad());
        }
        let mut name = text(filled(0, 100))?;
        if field(257, 263) == b"ustar\0" {
            let prefix = text(filled(345, 500))?;
            if !prefix.is_empty() {
                name = format!("{prefix}/{name}");
            }
        }
        let size = octal(field(124, 136))
            .ok_or_else(|| Fault::of(Kind::Archive, &name, "its size cannot be read"))?;
        let kind = *block.get(156).ok_or_else(bad)?;
        Ok(Self { name, size, kind })
    }
}

/// A number as tar writes it: octal digits, blanks and NUL around them.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    u64::from_str_radix(digits, 8)
        .ok()
        .filter(|_| !digits.starts_with('+'))
}

fn text(bytes: &[u8]) -> Result<String, Fault> {
    String::from_utf8(bytes.to_vec()).map_err(|_| {
        let shown = String::from_utf8_lossy(bytes);
        Fault::of(Kind::Archive, &shown, "the name is not UTF-8")
    })
}

/// The name in an extended header (POSIX pax). What else changes how an entry is read is refused.
fn pax(mut content: &[u8], own: bool) -> Result<Option<String>, Fault> {
    let bad = || Fault::new(Kind::Archive, "an extended header is damaged");
    let mut name = None;
    while !content.is_empty() {
        let blank = content.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let length: usize = content
            .get(..blank)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .ok_or_else(bad)?;
        let record = content.get(blank + 1..length).ok_or_else(bad)?;
        content = content.get(length..).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = (record.get(..equals), record.get(equals + 1..));
        let (Some(key), Some(value)) = (key, value) else {
            return Err(bad());
        };
        match key {
            b"path" if own => name = Some(text(value)?),
            b"path" | b"size" | b"linkpath" => {
                return Err(Fault::new(
                    Kind::Archive,
                    "an extended header gives another size, link or name",
                ));
            }
            _ if key.starts_with(b"GNU.sparse") => {
                return Err(Fault::new(Kind::Archive, "it holds a sparse file"));
            }
            _ => {}
        }
    }
    Ok(name)
}

/// The name of an entry, if it is good.
fn judged(said: &str, folder: bool) -> Result<String, Fault> {
    let bad = |why: &str| Fault::of(Kind::Archive, said, format!("the name {why}"));
    if said.len() > MAX_NAME {
        return Err(bad(&format!("is longer than {MAX_NAME} bytes")));
    }
    let name = said
        .strip_prefix("./")
        .or_else(|| said.strip_prefix('/'))
        .unwrap_or(said);
    let name = if folder {
        name.strip_suffix('/').unwrap_or(name)
    } else {
        name
    };
    // The folder of the bundle itself.
    if folder && (name.is_empty() || name == ".") {
        return Ok(String::new());
    }
    if name.starts_with('/') {
        return Err(bad("is absolute"));
    }
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err(bad("has a backslash or a control character in it"));
    }
    let mut folders = 0;
    for part in name.split('/') {
        folders += 1;
        match part {
            ".." => return Err(bad("leads out of the bundle")),
            "" | "." => return Err(bad("can be written in another way")),
            _ => {}
        }
    }
    if folders > MAX_FOLDERS {
        return Err(bad(&format!("lies more than {MAX_FOLDERS} folders deep")));
    }
    Ok(name.to_owned())
}

/// Reads a folder as if it were an archive. Names that begin with a dot are left out, but for those
/// that mean something in a bundle.
///
/// # Errors
/// [`Fault`], naming the file.
pub(super) fn gather(folder: &Path, bounds: &Bounds) -> Result<Files, Fault> {
    let mut files = Files::new();
    let mut left = bounds.unpacked;
    walk(folder, "", &mut files, &mut left, bounds)?;
    Ok(files)
}

fn walk(
    folder: &Path,
    prefix: &str,
    files: &mut Files,
    left: &mut u64,
    bounds: &Bounds,
) -> Result<(), Fault> {
    let cannot = |name: &str, error: &io::Error| {
        Fault::of(Kind::Disk, name, format!("cannot be read: {error}"))
    };
    let entries = fs::read_dir(folder).map_err(|error| match prefix {
        "" => cannot(&folder.display().to_string(), &error),
        below => cannot(below, &error),
    })?;
    for entry in entries {
        let entry = entry.map_err(|error| cannot(prefix, &error))?;
        let Ok(own) = entry.file_name().into_string() else {
            let shown = entry.path().display().to_string();
            return Err(Fault::of(Kind::Archive, &shown, "the name is not UTF-8"));
        };
        if own.starts_with('.') && !matches!(own.as_str(), ".manifest" | ".signatures.json") {
            continue;
        }
        let name = format!("{prefix}{own}");
        let kind = entry.metadata().map_err(|error| cannot(&name, &error))?;
        let name = judged(&name, kind.is_dir())?;
        if files.len() >= MAX_ENTRIES {
            let message = format!("it has more than {MAX_ENTRIES} files");
            return Err(Fault::new(Kind::TooLarge, message));
        }
        if kind.is_dir() {
            walk(&entry.path(), &format!("{name}/"), files, left, bounds)?;
        } else if kind.is_file() {
            let mut content = Vec::new();
            fs::File::open(entry.path())
                .and_then(|file| file.take(left.saturating_add(1)).read_to_end(&mut content))
                .map_err(|error| cannot(&name, &error))?;
            *left = u64::try_from(content.len())
                .ok()
                .and_then(|size| left.checked_sub(size))
                .ok_or_else(|| too_large(bounds))?;
            files.insert(name, content);
        } else {
            return Err(
                Fault::of(Kind::Archive, &name, "it is neither a file nor a folder")
                    .help("a bundle holds files and folders only"),
            );
        }
    }
    Ok(())
}

/// Writes a `.tar.gz` of these files; equal files give equal bytes.
///
/// # Errors
/// When a name is too long for a tar archive.
pub(super) fn pack(files: &Files) -> io::Result<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    for (name, content) in files {
        entry(&mut out, name, content)?;
    }
    out.write_all(&[0; 2 * BLOCK])?;
    out.finish()
}

fn entry(out: &mut impl Write, name: &str, content: &[u8]) -> io::Result<()> {
    // As `opa build` writes it.
    let name = format!("/{name}");
    let (prefix, name) = if name.len() <= 100 {
        ("", name.as_str())
    } else {
        let split = name
            .match_indices('/')
            .map(|(at, _)| at)
            .find(|at| *at > 0 && *at <= 155 && name.len() - at - 1 <= 100)
            .ok_or_else(|| {
                io::Error::other(format!("the name {name} is too long for a tar archive"))
            })?;
        let (prefix, rest) = name.split_at(split);
        (prefix, rest.trim_start_matches('/'))
    };
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        block
            .iter_mut()
            .skip(at)
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
    };
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    block
        .iter_mut()
        .skip(148)
        .zip(sum.as_bytes())
        .for_each(|(to, from)| *to = *from);
    out.write_all(&block)?;
    out.write_all(content)?;
    let padding = content.len().next_multiple_of(BLOCK) - content.len();
    out.write_all(vec![0; padding].as_slice())
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
