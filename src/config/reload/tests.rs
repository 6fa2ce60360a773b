use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::config::load;
use crate::metrics::Metrics;

const GOOD: &str = "\
listeners: { local: { address: \"127.0.0.1:0\", plaintext: true } }
upstreams: { orders: { endpoints: [\"http://127.0.0.1:9500\"] } }
routes:
  - { name: read, path: /orders, authn: [anonymous], policy: public, upstream: orders }
";

struct Bench {
    folder: tempfile::TempDir,
    live: Arc<Live>,
    reloader: Arc<Reloader>,
    installed: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.yaml");
        std::fs::write(&file, GOOD).unwrap();
        Self::at(folder, file)
    }

    fn at(folder: tempfile::TempDir, file: PathBuf) -> Self {
        let loaded = load(&file, None, &Arc::new(Metrics::default())).unwrap();
        let live = Arc::new(Live::new(loaded.snapshot));
        let installed = Arc::new(AtomicUsize::new(0));
        let install = {
            let (live, installed) = (Arc::clone(&live), Arc::clone(&installed));
            move |snapshot: Snapshot, _: &Document, _| {
                if snapshot
                    .routes
                    .iter()
                    .any(|route| &*route.name == "uninstallable")
                {
                    return Err("cannot listen".to_owned());
                }
                live.replace(snapshot);
                installed.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        };
        let reloader = Reloader::new(file, Arc::clone(&live), Box::new(install), Box::new(|_| {}));
        Self {
            folder,
            live,
            reloader,
            installed,
        }
    }

    fn write(&self, text: &str) {
        std::fs::write(self.folder.path().join("gateway.yaml"), text).unwrap();
    }

    /// Waits until another revision is in force.
    async fn changed(&self, from: &str) -> Arc<str> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let revision = Arc::clone(&self.live.current().revision);
            if &*revision != from {
                return revision;
            }
            assert!(Instant::now() < deadline, "nothing was reloaded");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn unchanged_files_are_no_reload() {
    let bench = Bench::new();
    bench.write(GOOD);
    assert!(matches!(
        bench.reloader.reload().await,
        Outcome::Unchanged { .. }
    ));
    assert_eq!(bench.installed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_broken_document_changes_nothing_and_says_why() {
    let bench = Bench::new();
    let before = Arc::clone(&bench.live.current().revision);
    bench.write(&GOOD.replace("upstream: orders", "upstream: nowhere"));
    let Outcome::Refused { problems } = bench.reloader.reload().await else {
        panic!("it was not refused")
    };
    assert_eq!(problems[0].line, Some(4));
    assert_eq!(bench.live.current().revision, before);
    bench.write(GOOD);
    assert!(matches!(
        bench.reloader.reload().await,
        Outcome::Unchanged { .. }
    ));
}

#[tokio::test]
async fn what_cannot_be_installed_changes_nothing() {
    let bench = Bench::new();
    let before = Arc::clone(&bench.live.current().revision);
    bench.write(&GOOD.replace("read", "uninstallable"));
    assert!(matches!(
        bench.reloader.reload().await,
        Outcome::Refused { .. }
    ));
    assert_eq!(bench.live.current().revision, before);
}

#[tokio::test]
async fn a_good_document_replaces_the_old_and_tells_what_changed() {
    let bench = Bench::new();
    bench.write(&GOOD.replace("name: read", "name: write"));
    let Outcome::Replaced {
        revision, changes, ..
    } = bench.reloader.reload().await
    else {
        panic!("it was not replaced")
    };
    assert!(changes.contains("routes +write -read"), "{changes}");
    assert_eq!(bench.live.current().revision, revision);
}

#[tokio::test]
async fn reloads_asked_for_at_once_are_made_once() {
    let bench = Bench::new();
    bench.write(&format!("{GOOD}# more\n"));
    let (one, two) = tokio::join!(bench.reloader.reload(), bench.reloader.reload());
    assert!(matches!(one, Outcome::Replaced { .. }) ^ matches!(two, Outcome::Replaced { .. }));
    assert_eq!(bench.installed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_file_renamed_over_the_old_one_is_noticed() {
    let bench = Bench::new();
    let before = Arc::clone(&bench.live.current().revision);
    let watch = tokio::spawn(Arc::clone(&bench.reloader).watch());
    let other = bench.folder.path().join("new.yaml");
    for round in ["# one\n", "# two\n"] {
        let before = Arc::clone(&bench.live.current().revision);
        std::fs::write(&other, format!("{GOOD}{round}")).unwrap();
        std::fs::rename(&other, bench.folder.path().join("gateway.yaml")).unwrap();
        bench.changed(&before).await;
    }
    assert_ne!(bench.live.current().revision, before);
    watch.abort();
}

#[tokio::test]
async fn a_mounted_volume_that_swaps_its_link_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_path_buf();
    let version = |name: &str, text: &str| {
        std::fs::create_dir(root.join(name)).unwrap();
        std::fs::write(root.join(name).join("gateway.yaml"), text).unwrap();
    };
    version("..1", GOOD);
    version("..2", &format!("{GOOD}# two\n"));
    let link =
        |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
    link("..1", "..data");
    link("..data/gateway.yaml", "gateway.yaml");
    let bench = Bench::at(folder, root.join("gateway.yaml"));
    let before = Arc::clone(&bench.live.current().revision);
    let watch = tokio::spawn(Arc::clone(&bench.reloader).watch());
    link("..2", "..data_tmp");
    std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    bench.changed(&before).await;
    watch.abort();
}

#[test]
fn only_changes_near_the_files_concern_them() {
    let files = [
        PathBuf::from("/etc/p/gateway.yaml"),
        PathBuf::from("/etc/p/policies"),
    ];
    for (path, expected) in [
        ("/etc/p/gateway.yaml", true),
        ("/etc/p/policies/a/b.rego", true),
        ("/etc/p/..data", true),
        ("/etc/p/audit.log", false),
        ("/etc/p/gateway.yaml~", false),
    ] {
        assert_eq!(concerns(Path::new(path), &files), expected, "{path}");
    }
}
