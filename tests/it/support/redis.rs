//! A real Redis on a free port.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::eventually;
use super::tools::program;

/// A running server without any file; ends when it is dropped.
pub struct Redis {
    program: PathBuf,
    pub port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// `None` where it is not installed and need not be.
    pub fn start(arguments: &[&str]) -> Option<Self> {
        let program = program("redis-server")?;
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut redis = Self {
            program,
            port,
            arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
            child: None,
        };
        redis.restart();
        Some(redis)
    }

    /// Ends it at once, as a crash does: what it held is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again, empty.
    pub fn restart(&mut self) {
        self.kill();
        let child = Command::new(&self.program)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("redis-server", || {
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    /// Runs a command; its raw answer, as far as it came at once.
    pub fn run(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        stream.write_all(command.as_bytes()).unwrap();
        let mut answer = vec![0; 64 << 10];
        let length = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    /// Sends the process a signal.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let done = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
