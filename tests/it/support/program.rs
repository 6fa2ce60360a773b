//! The gateway as its users start it: the binary, with its own process, signals and exit code.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::client::{Answer, Connection, request};
use super::gateway::{ADMIN, Builder};

/// The program itself, with its own process, signals and exit code.
pub struct Program {
    pub child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub builder: Builder,
}

/// Starts the binary in a folder.
pub fn spawn(folder: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What `portcullis policy …` says in a folder.
pub fn policy_in(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .arg("policy")
        .args(arguments)
        .current_dir(folder)
        .env_remove("PORTCULLIS_CONFIG")
        .output()
        .unwrap()
}

impl Program {
    pub fn start(builder: Builder) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.arg("run");
        Self::by(builder, command)
    }

    /// Starts it by a command that becomes it.
    pub fn by(builder: Builder, mut command: Command) -> Self {
        let config = serde_json::to_string_pretty(&builder.document).unwrap();
        builder.file("gateway.yaml", config);
        let mut child = command
            .current_dir(builder.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Read for ever, so that the program never waits for us.
        let mut log = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let mut listening = |name: &str| {
            let line = lines.next().expect("the program ended");
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[..2], ["listening", name], "{line}");
            words[2].parse().unwrap()
        };
        let (address, admin) = (listening("local"), listening("admin"));
        let running = lines.next().unwrap();
        assert!(
            running.contains("revision ") && running.contains(" worker"),
            "{running}"
        );
        Self {
            child,
            address,
            admin,
            builder,
        }
    }

    /// Ends it, if it has not ended, and starts it anew in the same folder.
    pub fn again(mut self) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let builder = Builder {
            document: self.builder.document.clone(),
            folder: std::mem::replace(&mut self.builder.folder, TempDir::new().unwrap()),
        };
        Self::start(builder)
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([&format!("-{name}"), &id])
                .status()
                .unwrap()
                .success()
        );
    }

    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not end");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    pub fn admin(&self, path: &str) -> Answer {
        let host = self.admin.to_string();
        Connection::plain(self.admin)
            .send(request(
                "GET",
                path,
                &[("host", &host), ("authorization", ADMIN)],
            ))
            .answer()
            .unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
