//! A real headless Chromium, driven through chromedriver by the WebDriver protocol (W3C).

use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::Connection;
use super::tools;

/// Keys as WebDriver spells them.
pub const ENTER: &str = "\u{e007}";
pub const ESCAPE: &str = "\u{e00c}";
pub const DOWN: &str = "\u{e015}";
pub const UP: &str = "\u{e013}";

/// One browser at a time: each takes half a gigabyte.
static ONE: Mutex<()> = Mutex::new(());

/// A browser with one window; ends when it is dropped.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _turn: MutexGuard<'static, ()>,
}

/// How often chromedriver is started until it has a port.
const ATTEMPTS: usize = 10;

/// A driver with what it says further, and its port; `None` when it found none.
fn driving(program: &Path) -> Option<(Child, Lines<BufReader<ChildStdout>>, u16)> {
    let mut driver = Command::new(program)
        .arg("--port=0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, port) = line.split_once("started successfully on port ")?;
        port.trim_end_matches('.').parse::<u16>().ok()
    });
    if port.is_none() {
        driver.kill().ok();
        driver.wait().unwrap();
    }
    Some((driver, lines, port?))
}

impl Browser {
    /// A browser, or the reason to skip said.
    pub fn start() -> Option<Self> {
        let chromium = tools::chromium()?;
        let driver = tools::program("chromedriver")?;
        let turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // It takes a port of one address family, and gives up when the other's is taken.
        let (driver, lines, port) = (0..ATTEMPTS)
            .find_map(|_| driving(&driver))
            .expect("chromedriver tells its port");
        // Read for ever, so that it never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser = Self {
            driver,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            session: String::new(),
            _turn: turn,
        };
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": chromium, "args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-background-networking", "--window-size=1360,860",
            ]},
        }}});
        let opened = browser.command("POST", "/session", &wanted);
        let id = opened["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("/session/{id}");
        Some(browser)
    }

    #[track_caller]
    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        let request = format!(
            "{method} {}{path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.session,
            self.address,
            body.len()
        );
        let mut connection = Connection::plain(self.address);
        if let Connection::Plain(stream) = &connection {
            let patience = Some(Duration::from_secs(60));
            stream.set_read_timeout(patience).unwrap();
        }
        let answer = connection
            .send(request)
            .answer()
            .expect("the driver answers");
        let value = answer.json()["value"].clone();
        assert_eq!(answer.status, 200, "{method} {path}: {value}");
        value
    }

    #[track_caller]
    pub fn open(&self, url: &str) {
        self.command("POST", "/url", &json!({ "url": url }));
    }

    /// What a function's body gives; `arguments` are its arguments.
    #[track_caller]
    pub fn run(&self, script: &str, arguments: &[Value]) -> Value {
        let call = json!({ "script": script, "args": arguments });
        self.command("POST", "/execute/sync", &call)
    }

    /// As [`Browser::run`], for a promise.
    #[track_caller]
    pub fn wait_for_promise(&self, script: &str) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1]; (async () => {{ {script} }})().then(done, (e) => done('failed: ' + e));"
        );
        let call = json!({ "script": script, "args": [] });
        self.command("POST", "/execute/async", &call)
    }

    /// What is to be read on the page, hidden parts left out.
    #[track_caller]
    pub fn text(&self) -> String {
        let text = self.run("return document.body.innerText", &[]);
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a script gives something true, and gives it.
    #[track_caller]
    pub fn until(&self, what: &str, script: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let value = self.run(script, &[]);
            if !matches!(value, Value::Null | Value::Bool(false)) && value != json!(0) {
                return value;
            }
            assert!(
                Instant::now() < deadline,
                "waited too long for {what}; the page says:\n{}\nand the console {:?}",
                self.text(),
                self.console()
            );
            std::thread::park_timeout(Duration::from_millis(30));
        }
    }

    /// Waits until the page says this somewhere.
    #[track_caller]
    pub fn says(&self, text: &str) {
        let script = format!("return document.body.innerText.includes({})", json!(text));
        self.until(&format!("the words {text:?}"), &script);
    }

    /// Types, wherever the focus is.
    #[track_caller]
    pub fn types(&self, text: &str) {
        let strokes: Vec<Value> = text
            .chars()
            .flat_map(|key| {
                let key = key.to_string();
                [
                    json!({"type": "keyDown", "value": key}),
                    json!({"type": "keyUp", "value": key}),
                ]
            })
            .collect();
        let source = json!({"type": "key", "id": "keyboard", "actions": strokes});
        self.command("POST", "/actions", &json!({ "actions": [source] }));
    }

    /// Clicks on the first element that a selector finds, as a mouse does.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let wanted = json!({ "using": "css selector", "value": selector });
        let element = self.command("POST", "/element", &wanted);
        let id = element.as_object().unwrap().values().next().unwrap();
        let path = format!("/element/{}/click", id.as_str().unwrap());
        self.command("POST", &path, &json!({}));
    }

    /// Chooses a colour scheme, as the system would.
    pub fn scheme(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({ "features": features }),
        );
    }

    pub fn size(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    #[track_caller]
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let call = json!({ "cmd": command, "params": parameters });
        self.command("POST", "/goog/cdp/execute", &call)
    }

    /// What the console has said since it was last asked: errors, refusals by policy, failed requests.
    #[track_caller]
    pub fn console(&self) -> Vec<String> {
        let log = self.command("POST", "/se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().unwrap().iter();
        entries
            .filter(|entry| entry["level"] != "DEBUG" && entry["level"] != "INFO")
            .map(|entry| entry["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// A picture of the window, into the folder that `PORTCULLIS_SCREENSHOTS` names.
    pub fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("PORTCULLIS_SCREENSHOTS") else {
            return;
        };
        let picture = self.command("GET", "/screenshot", &Value::Null);
        let bytes = STANDARD.decode(picture.as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }

    /// What axe-core finds wrong for people who use assistive technology; `None` when it is not there.
    pub fn accessibility(&self) -> Option<Vec<String>> {
        let script: PathBuf = tools::axe()?;
        let script = std::fs::read_to_string(script).unwrap();
        self.run(&format!("{script}; return true"), &[]);
        let found = self.wait_for_promise(
            "const found = await axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'] });
             return found.violations.map((v) => v.id + ': ' + v.help + ': ' + v.nodes.slice(0, 4).map((n) => n.target.join(' ') + ' ' + (n.any[0] ? n.any[0].message : '')).join(' | '));",
        );
        let found = found.as_array().unwrap_or_else(|| panic!("axe: {found}"));
        Some(found.iter().map(Value::to_string).collect())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // The browser ends with its session; a driver that is killed first leaves it behind.
            let end = format!(
                "DELETE {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
                self.session, self.address
            );
            let _ = Connection::plain(self.address).send(end).answer();
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
