//! A bad reload changes nothing; a good one drops nothing; leaving drops nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use crate::support::client::request;
use crate::support::eventually;
use crate::support::gateway::{Builder, World};
use crate::support::upstream::Upstream;

#[test]
fn a_bad_reload_changes_nothing_and_says_where_it_is_bad() {
    let upstream = Upstream::start();
    let mut gateway = Builder::open(&upstream).start();
    let revision = |gateway: &crate::support::gateway::Gateway| {
        gateway.admin("GET", "/status").json()["revision"].clone()
    };
    let before = revision(&gateway);
    let answer = gateway.reload(|document| {
        document["routes"][0]["upstreem"] = json!("main");
        document["routes"][1]["upstream"] = json!("mian");
        document["head_timeout"] = json!("30 sec");
    });
    assert!(answer.status >= 400);
    let text = answer.text();
    for part in ["upstreem", "mian", "head_timeout"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert_eq!(revision(&gateway), before);
    assert_eq!(gateway.get("/a", &[]).status, 200);
}

#[test]
fn a_changed_file_is_noticed() {
    let world = World::with(|builder| builder.policy("package gate\n\nallow := true\n"));
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let policy = world.gateway.folder.path().join("gate.rego");
    let fresh = world.gateway.folder.path().join(".gate.rego.new");
    std::fs::write(&fresh, "package gate\n\nallow := false\n").unwrap();
    std::fs::rename(&fresh, &policy).unwrap();
    eventually("the new policy", || {
        (world.gateway.bearer("/a", &token).status == 403).then_some(())
    });
}

#[test]
fn a_hundred_reloads_under_load_drop_nothing() {
    let upstream = Upstream::start();
    let mut gateway = Builder::open(&upstream).start();
    let address = gateway.address();
    let done = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for kept in [true, false] {
            let (done, served) = (&done, &served);
            scope.spawn(move || {
                let mut connection = crate::support::client::Connection::plain(address);
                while !done.load(Ordering::SeqCst) {
                    if !kept {
                        connection = crate::support::client::Connection::plain(address);
                    }
                    connection.send(request("GET", "/a", &[]));
                    let answer = connection.answer().expect("a reload dropped a request");
                    assert_eq!(answer.status, 200);
                    served.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..100 {
            let answer = gateway.reload(|document| {
                document["routes"][0]["labels"] = json!({"round": round.to_string()});
            });
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(served.load(Ordering::SeqCst) > 50);
}

#[test]
fn listeners_come_and_go_with_a_reload() {
    let upstream = Upstream::start();
    let mut gateway = Builder::open(&upstream).start();
    let local = gateway.address();
    let answer = gateway.reload(|document| {
        document["listeners"]["second"] = json!({"address": "127.0.0.1:0", "plaintext": true});
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    let second = gateway.listener("second");
    let mut connection = crate::support::client::Connection::plain(second);
    connection.send(request("GET", "/a", &[]));
    assert_eq!(connection.answer().unwrap().status, 200);
    // An address that is taken is a problem, not half a reload.
    let answer = gateway.reload(|document| {
        document["listeners"]["third"] =
            json!({"address": upstream.address.to_string(), "plaintext": true});
    });
    assert!(answer.status >= 400, "{}", answer.text());
    let answer = gateway.reload(|document| {
        document["listeners"]
            .as_object_mut()
            .unwrap()
            .remove("third");
        document["listeners"]
            .as_object_mut()
            .unwrap()
            .remove("second");
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    eventually("the listener's end", || {
        std::net::TcpStream::connect(second).is_err().then_some(())
    });
    assert_eq!(gateway.address(), local);
    assert_eq!(gateway.get("/a", &[]).status, 200);
}

#[test]
fn shutting_down_finishes_what_was_begun_and_records_it() {
    let gate = std::sync::Arc::new(std::sync::Barrier::new(2));
    let held = std::sync::Arc::clone(&gate);
    let upstream = Upstream::with(move |seen, stream| {
        if seen.path() == "/slow" {
            held.wait();
            held.wait();
        }
        let _ =
            std::io::Write::write_all(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
        crate::support::upstream::Next::KeepAlive
    });
    let gateway = Builder::open(&upstream).start();
    let address = gateway.address();
    let mut slow = gateway.connect();
    slow.send(request("GET", "/slow", &[]));
    gate.wait();
    let audit = gateway.folder.path().join("audit.jsonl");
    let folder = gateway.folder;
    let process = gateway.process;
    let leaving = std::thread::spawn(move || process.shutdown());
    eventually("the end of accepting", || {
        std::net::TcpStream::connect(address).is_err().then_some(())
    });
    gate.wait();
    let answer = slow.answer().expect("the answer was cut");
    assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
    assert_eq!(answer.header("connection"), Some("close"));
    leaving.join().unwrap();
    let records = std::fs::read_to_string(audit).unwrap();
    assert_eq!(records.lines().count(), 1, "{records}");
    drop(folder);
}
