use super::*;

const BOUNDS: Bounds = Bounds {
    packed: 1 << 20,
    unpacked: 4 << 20,
};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::best());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// One entry of a tar archive, as it was told.
fn entry_of(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
    let mut block = [0u8; BLOCK];
    block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    block[156] = kind;
    block[257..263].copy_from_slice(b"ustar\0");
    summed(&mut block);
    let mut out = block.to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn summed(block: &mut [u8; BLOCK]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = entries.concat();
    out.extend_from_slice(&[0; 2 * BLOCK]);
    out
}

fn one(name: &str, kind: u8, content: &[u8]) -> Result<Files, Fault> {
    unpack(
        &gzip(&tar(&[entry_of(name.as_bytes(), kind, content)])),
        &BOUNDS,
    )
}

#[track_caller]
fn refused(outcome: Result<Files, Fault>, kind: Kind, words: &str) {
    let fault = outcome.expect_err(words);
    let text = fault.to_string();
    assert_eq!(fault.kind, kind, "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn what_is_packed_is_unpacked_and_a_leading_slash_means_nothing() {
    let long = format!("{}/{}/data.json", "d".repeat(80), "e".repeat(60));
    let files: Files = [
        ("data.json", "{}"),
        ("a/policy.rego", "package a"),
        (long.as_str(), "[1]"),
        ("empty", ""),
    ]
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .into();
    let packed = pack(&files).unwrap();
    assert_eq!(unpack(&packed, &BOUNDS).unwrap(), files);
    assert_eq!(pack(&files).unwrap(), packed);
    for name in ["data.json", "/data.json", "./data.json"] {
        assert!(
            one(name, b'0', b"{}").unwrap().contains_key("data.json"),
            "{name}"
        );
    }
    // As GNU tar writes folders.
    let folders = tar(&[
        entry_of(b"./", b'5', b""),
        entry_of(b"./a/", b'5', b""),
        entry_of(b"./a/data.json", b'0', b"{}"),
    ]);
    assert_eq!(unpack(&gzip(&folders), &BOUNDS).unwrap().len(), 1);
}

#[test]
fn names_that_lead_elsewhere_or_can_be_written_in_two_ways_are_refused() {
    for (name, words) in [
        ("../data.json", "leads out of the bundle"),
        ("a/../../data.json", "leads out of the bundle"),
        ("/../data.json", "leads out of the bundle"),
        ("//etc/passwd", "is absolute"),
        ("a//data.json", "can be written in another way"),
        ("a/./data.json", "can be written in another way"),
        ("././data.json", "can be written in another way"),
        ("", "can be written in another way"),
        ("a\\data.json", "backslash"),
        ("a\ndata.json", "control character"),
        (&"a/".repeat(40).replace("a/a/", "a/b/"), "folders deep"),
    ] {
        let kind = if name.ends_with('/') { b'5' } else { b'0' };
        refused(one(name, kind, b""), Kind::Archive, words);
    }
    refused(
        unpack(&gzip(&tar(&[entry_of(b"a\xff.json", b'0', b"")])), &BOUNDS),
        Kind::Archive,
        "not UTF-8",
    );
    let twice = [
        entry_of(b"data.json", b'0', b"1"),
        entry_of(b"/data.json", b'0', b"2"),
    ];
    refused(
        unpack(&gzip(&tar(&twice)), &BOUNDS),
        Kind::Archive,
        "data.json: the name occurs twice",
    );
}

#[test]
fn only_files_and_folders_are_entries() {
    for (kind, words) in [
        (b'1', "a hard link"),
        (b'2', "a symbolic link"),
        (b'3', "a device"),
        (b'4', "a device"),
        (b'6', "a pipe"),
        (b'7', "neither a file nor a folder"),
        (b'S', "neither a file nor a folder"),
        (b'K', "neither a file nor a folder"),
    ] {
        refused(one("x", kind, b""), Kind::Archive, words);
    }
    refused(
        one("x/", b'5', b"content"),
        Kind::Archive,
        "a folder with content",
    );
}

fn record(text: &str) -> Vec<u8> {
    let mut length = text.len() + 3;
    while format!("{length} {text}\n").len() != length {
        length = format!("{length} {text}\n").len();
    }
    format!("{length} {text}\n").into_bytes()
}

#[test]
fn extended_headers_give_names_and_nothing_else() {
    let long = format!("{}/data.json", "x".repeat(120));
    let path = record(&format!("path={long}"));
    let good = tar(&[
        entry_of(b"pax_global_header", b'g', &record("comment=0123abcd")),
        entry_of(b"PaxHeaders/x", b'x', &[record("mtime=1.5"), path].concat()),
        entry_of(b"short", b'0', b"{}"),
    ]);
    assert!(unpack(&gzip(&good), &BOUNDS).unwrap().contains_key(&long));
    let gnu = tar(&[
        entry_of(b"././@LongLink", b'L', format!("{long}\0").as_bytes()),
        entry_of(b"short", b'0', b"{}"),
    ]);
    assert!(unpack(&gzip(&gnu), &BOUNDS).unwrap().contains_key(&long));
    for (kind, text, words) in [
        (b'x', "path=../../x", "leads out"),
        (b'x', "size=99", "another size"),
        (b'x', "linkpath=/etc/passwd", "another size"),
        (b'x', "GNU.sparse.major=1", "sparse"),
        (b'g', "path=data.json", "another size"),
    ] {
        let bad = tar(&[
            entry_of(b"h", kind, &record(text)),
            entry_of(b"x", b'0', b""),
        ]);
        refused(unpack(&gzip(&bad), &BOUNDS), Kind::Archive, words);
    }
    for damaged in [
        "5 path=x\n",
        "99 path=x\n",
        "path=x\n",
        "7 pathx\n",
        "8 path=xy",
    ] {
        let bad = tar(&[
            entry_of(b"h", b'x', damaged.as_bytes()),
            entry_of(b"x", b'0', b""),
        ]);
        refused(unpack(&gzip(&bad), &BOUNDS), Kind::Archive, "damaged");
    }
    let huge = vec![b'a'; 20_000];
    let bad = tar(&[entry_of(b"h", b'x', &huge)]);
    refused(
        unpack(&gzip(&bad), &BOUNDS),
        Kind::Archive,
        "longer than 16384 bytes",
    );
    let alone = tar(&[entry_of(b"h", b'L', b"name")]);
    refused(unpack(&gzip(&alone), &BOUNDS), Kind::Archive, "incomplete");
}

#[test]
fn a_bomb_is_stopped_at_its_bound() {
    // Zeros compress a thousandfold: the archive is small, what is in it is not.
    let bomb = gzip(&tar(&[entry_of(b"data.json", b'0', &vec![0; 64 << 20])]));
    assert!(bomb.len() < 100_000);
    refused(
        unpack(&bomb, &BOUNDS),
        Kind::TooLarge,
        "more than 4194304 bytes unpacked",
    );
    // Padding behind the end counts as well.
    let mut padded = tar(&[entry_of(b"data.json", b'0', b"{}")]);
    padded.resize(64 << 20, 0);
    refused(unpack(&gzip(&padded), &BOUNDS), Kind::TooLarge, "unpacked");
    // A header may announce what is not there.
    let mut block: [u8; BLOCK] = entry_of(b"data.json", b'0', b"")[..BLOCK]
        .try_into()
        .unwrap();
    block[124..135].copy_from_slice(b"77777777777");
    summed(&mut block);
    refused(unpack(&gzip(&block), &BOUNDS), Kind::TooLarge, "unpacked");
    refused(
        unpack(&vec![0; (1 << 20) + 1], &BOUNDS),
        Kind::TooLarge,
        "larger than 1048576 bytes",
    );
}

#[test]
fn a_million_entries_are_too_many() {
    let entries: Vec<Vec<u8>> = (0..=MAX_ENTRIES)
        .map(|at| entry_of(format!("{at}").as_bytes(), b'0', b""))
        .collect();
    let bounds = Bounds {
        packed: 64 << 20,
        unpacked: 64 << 20,
    };
    refused(
        unpack(&gzip(&tar(&entries)), &bounds),
        Kind::TooLarge,
        "more than 10000 entries",
    );
    assert!(unpack(&gzip(&tar(&entries[1..])), &bounds).is_ok());
}

#[test]
fn an_archive_is_whole_and_nothing_follows_it() {
    let good = tar(&[entry_of(b"data.json", b'0', b"{\"a\": 1}")]);
    let packed = gzip(&good);
    assert!(unpack(&packed, &BOUNDS).is_ok());
    // However much of a download is missing.
    for length in 0..packed.len() {
        assert!(
            unpack(&packed[..length], &BOUNDS).is_err(),
            "{length} bytes"
        );
    }
    for length in (0..good.len()).step_by(256) {
        assert!(
            unpack(&gzip(&good[..length]), &BOUNDS).is_err(),
            "{length} bytes of tar"
        );
    }
    let mut more = packed.clone();
    more.extend_from_slice(b"x");
    refused(
        unpack(&more, &BOUNDS),
        Kind::Archive,
        "behind the end of the gzip data",
    );
    let second = [packed.clone(), packed.clone()].concat();
    refused(
        unpack(&second, &BOUNDS),
        Kind::Archive,
        "behind the end of the gzip data",
    );
    let hidden = [good.clone(), entry_of(b"other", b'0', b"")].concat();
    refused(
        unpack(&gzip(&hidden), &BOUNDS),
        Kind::Archive,
        "behind the end of the archive",
    );
    let mut flipped = packed;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    assert!(unpack(&flipped, &BOUNDS).is_err());
    refused(
        unpack(b"not gzip at all", &BOUNDS),
        Kind::Archive,
        "decompressed",
    );
    refused(
        unpack(&gzip(&[7; 2048]), &BOUNDS),
        Kind::Archive,
        "no tar archive",
    );
}

#[test]
fn a_folder_is_read_as_an_archive_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put(".manifest", "{}");
    put("a/data.json", "{}");
    put(".git/config", "x");
    put(".hidden.rego", "x");
    let files = gather(folder.path(), &BOUNDS).unwrap();
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        [".manifest", "a/data.json"]
    );
    let small = Bounds {
        packed: 1,
        unpacked: 3,
    };
    refused(gather(folder.path(), &small), Kind::TooLarge, "unpacked");
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("data.json")).unwrap();
    refused(
        gather(folder.path(), &BOUNDS),
        Kind::Archive,
        "neither a file nor a folder",
    );
}
