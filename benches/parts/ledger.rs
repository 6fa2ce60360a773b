//! What the audit ledger costs the thread that writes it: a page of records with their checksums, the
//! chain, the block that closes them, and the write to the file; and a seal on top.

use criterion::{Criterion, Throughput};
use portcullis::audit::{KeepConfig, LedgerConfig, ledger};
use portcullis::schema::{Size, Span};

use crate::cpu::CpuTime;

pub(crate) fn bench(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("ledger");
    for (name, length) in [("records of 1 KiB", 1024), ("records of 3 KiB", 3072)] {
        // A page, as the writer gets it from a worker.
        let count = 64 * 1024 / length;
        let line = format!(
            "{{\"version\":2,\"text\":\"{}\"}}\n",
            "x".repeat(length - 24)
        );
        let page = line.repeat(count);
        group.throughput(Throughput::Elements(count.try_into().unwrap()));
        for (what, seal_every) in [
            ("append", Span::seconds(60)),
            ("append and seal", Span::seconds(0)),
        ] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("key.pem"), key()).unwrap();
            let mut sink = ledger(&LedgerConfig {
                folder: folder.path().join("records"),
                key: Some(folder.path().join("key.pem")),
                seal_every,
                // The disk's own time is not ours.
                sync: Span::seconds(3600),
                segment: Size::mib(64),
                keep: KeepConfig {
                    size: Some(Size::mib(512)),
                    time: None,
                },
            })
            .unwrap();
            group.bench_function(format!("{what}, page of {name}"), |bencher| {
                bencher.iter(|| {
                    assert_eq!(sink.write(page.as_bytes()).unwrap(), page.len());
                    if seal_every == Span::seconds(0) {
                        sink.refresh().unwrap();
                    }
                });
            });
        }
    }
    group.finish();
}

fn key() -> String {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)
        .unwrap()
        .serialize_pem()
}
