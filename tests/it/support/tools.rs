//! Real clients and servers from package registries. A test that needs one that is not there is
//! skipped by name with the reason; under CI it fails instead.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The path of a program, or the reason to skip.
pub fn program(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|p| p.is_file())
    });
    found.or_else(|| skip(&format!("{name} is not installed")))
}

/// A Python with `grpcio` and `websockets`.
pub fn python() -> Option<PathBuf> {
    let python = std::env::var_os("PORTCULLIS_PYTHON").map(PathBuf::from);
    python.or_else(|| skip("PORTCULLIS_PYTHON names no Python with grpcio and websockets"))
}

/// A Chromium, by `PORTCULLIS_CHROMIUM` or its Debian name.
pub fn chromium() -> Option<PathBuf> {
    match std::env::var_os("PORTCULLIS_CHROMIUM") {
        Some(path) => Some(path.into()),
        None => program("chromium"),
    }
}

/// The script of npm `axe-core`, which looks for barriers.
pub fn axe() -> Option<PathBuf> {
    let script = std::env::var_os("PORTCULLIS_AXE").map(PathBuf::from);
    script.or_else(|| skip("PORTCULLIS_AXE names no axe.min.js of npm axe-core"))
}

/// The folder in which npm `oidc-provider` is installed.
pub fn oidc_provider() -> Option<PathBuf> {
    let folder = std::env::var_os("PORTCULLIS_OIDC_PROVIDER_DIR").map(PathBuf::from);
    folder.or_else(|| skip("PORTCULLIS_OIDC_PROVIDER_DIR names no folder with npm oidc-provider"))
}

fn skip<T>(reason: &str) -> Option<T> {
    assert!(
        std::env::var("CI").is_err(),
        "this test must run in CI: {reason}"
    );
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past the harness, which would show it only if the test failed.
    let _ = writeln!(std::io::stderr(), "skipped {name}: {reason}");
    None
}

/// A child that answers each line with a line; killed when dropped.
pub struct Script {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Script {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.output.read_line(&mut line).unwrap() > 0,
            "the script ended"
        );
        line.trim().to_owned()
    }

    #[track_caller]
    pub fn ask(&mut self, command: &serde_json::Value) -> serde_json::Value {
        writeln!(self.input, "{command}").unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
