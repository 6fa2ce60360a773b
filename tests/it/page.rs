//! The page for people, in a real browser, before a real gateway with real traffic.

use std::io::Write;
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::support::browser::{Browser, DOWN, ENTER, ESCAPE, UP};
use crate::support::client::{Connection, request};
use crate::support::eventually;
use crate::support::gateway::{ADMIN_TOKEN, Builder, Gateway, World};
use crate::support::program::Program;
use crate::support::upstream::{Next, Upstream};

/// Every section, by its name in the address.
const SECTIONS: [&str; 9] = [
    "overview",
    "decisions",
    "limits",
    "upstreams",
    "keys",
    "candidates",
    "streams",
    "policies",
    "configuration",
];

fn page(gateway: &Gateway) -> String {
    let address = gateway.process.admin_address().unwrap();
    format!("http://{address}/")
}

/// What whoever opens the page for the first time does.
fn log_in(browser: &Browser) {
    browser.says("Admin token");
    browser.types(ADMIN_TOKEN);
    browser.types(ENTER);
    browser.until("the page", "return !document.getElementById('app').hidden");
}

/// How many decisions are in the list.
const ROWS: &str =
    "return document.querySelectorAll('#decisions [role=option]:not([hidden])').length";

/// A world with a limit, and an upstream that streams events on `/live`.
fn world() -> World {
    World::with(|builder| {
        builder.with(|document| {
            document["limits"] = json!({"tight": {"by": "subject", "rate": "1/m", "burst": 3}});
            let mut tight = document["routes"][0].clone();
            tight["name"] = json!("tight");
            tight["path"] = json!("/tight/{*rest}");
            tight["limits"] = json!(["tight"]);
            document["routes"].as_array_mut().unwrap().push(tight);
        })
    })
}

fn stream_events(upstream: &Upstream) {
    upstream.answer(|seen, stream| {
        if !seen.path().starts_with("/live") {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
            return match stream.write_all(answer) {
                Ok(()) => Next::KeepAlive,
                Err(_) => Next::Close,
            };
        }
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut sent = stream.write_all(head);
        while sent.is_ok() {
            sent = stream.write_all(b"9\r\ndata: x\n\n\r\n");
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
        Next::Close
    });
}

/// An open stream of a caller.
fn open_stream(gateway: &Gateway, path: &str, token: &str) -> Connection {
    let mut connection = gateway.connect();
    let bearer = format!("Bearer {token}");
    connection.send(request("GET", path, &[("authorization", &bearer)]));
    connection
}

#[test]
fn a_decision_is_found_and_opened_with_the_keyboard_alone() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let world = world();
    let token = world.token("alice");
    let poor = {
        let mut claims = world.issuer.claims("mallory");
        claims["scope"] = json!("nothing");
        world.key.token(&claims)
    };
    for nth in 0..5 {
        world.gateway.bearer(&format!("/orders/{nth}"), &token);
    }
    world.gateway.bearer("/orders/secret", &poor);
    world.gateway.get("/orders/none", &[]);

    browser.open(&page(&world.gateway));
    log_in(&browser);
    browser.says("Ready");
    browser.types("2");
    browser.until("seven decisions", &format!("{ROWS} === 7"));
    browser.says("orders/secret");

    // What comes is on top, without anybody asking.
    world.gateway.bearer("/orders/later", &token);
    browser.until("the one that came", "return document.querySelector('#decisions [role=option]').innerText.includes('/orders/later')");

    browser.types("/");
    browser.types("decision:deny");
    browser.until(
        "one denial",
        "return document.querySelectorAll('#decisions [role=option]:not([hidden])').length === 1",
    );
    browser.says("mallory");
    let address = browser.run("return location.hash", &[]);
    assert_eq!(address, "#/decisions?q=decision%3Adeny");
    browser.types(ESCAPE);
    browser.until(
        "all again",
        "return document.querySelectorAll('#decisions [role=option]:not([hidden])').length === 8",
    );
    browser.types("mallory");
    browser.until(
        "the words",
        "return document.querySelectorAll('#decisions [role=option]:not([hidden])').length === 1",
    );
    browser.types(DOWN);
    browser.types(ENTER);
    browser
        .says("mallory through app at 127.0.0.1 asked for GET /orders/secret on the route open.");
    browser.says("The policy gate said no: policy.denied");
    browser.says("does not hold");
    browser.says("\"orders:read\" in input.identity.scopes");
    browser.says("[\"nothing\"]");
    browser.until("it to be chosen", "return document.querySelector('#decisions [aria-selected=true]') && document.getElementById('decisions').getAttribute('aria-activedescendant')");

    // With the detail open the arrows go on through the list.
    browser.types("/");
    browser.types(ESCAPE);
    browser.until(
        "all again",
        "return document.querySelectorAll('#decisions [role=option]:not([hidden])').length === 8",
    );
    browser.run("document.getElementById('decisions').focus()", &[]);
    browser.types(UP);
    browser.until(
        "another detail",
        "return !document.querySelector('.detail h2').innerText.includes('secret')",
    );
    browser.types(ESCAPE);
    browser.until(
        "it to be closed",
        "return document.querySelector('.detail').hidden",
    );
    let focused = browser.run("return document.activeElement.id", &[]);
    assert_eq!(focused, "decisions");

    // While the list has the focus it holds still, and says what waits.
    browser.types(DOWN);
    world.gateway.bearer("/orders/waits", &token);
    browser.says("Show 1 new one");
    let first = browser.run(
        "return document.querySelector('#decisions [role=option]').innerText",
        &[],
    );
    assert!(!first.to_string().contains("waits"), "{first}");
    browser.click(".news");
    browser.until(
        "it to be shown",
        "return document.querySelector('#decisions [role=option]').innerText.includes('waits')",
    );

    for (nth, section) in SECTIONS.iter().enumerate() {
        browser.run("document.activeElement.blur()", &[]);
        browser.types(&(nth + 1).to_string());
        browser.until(
            section,
            &format!("return location.hash.startsWith('#/{section}')"),
        );
    }
    browser.types("?");
    browser.until(
        "the shortcuts",
        "return document.getElementById('help').open",
    );
    browser.types(ESCAPE);
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn what_a_request_says_is_text_and_never_markup() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let world = world();
    stream_events(&world.upstream);
    let evil = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=2</script>{{7*7}}'\"`";
    let token = world.token(evil);
    let bearer = format!("Bearer {token}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("user-agent", "<svg onload=window.hacked=3>"),
    ];
    let path = "/orders/%3Cscript%3Ewindow.hacked=4%3C%2Fscript%3E%22%3E%3Cimg%20src=x%20onerror=window.hacked=5%3E";
    let path = path.replace("%2F", "");
    assert_eq!(
        world
            .gateway
            .get(&format!("{path}?q=<b>x</b>"), &headers)
            .status,
        400
    );
    assert_eq!(
        world
            .gateway
            .get(&format!("{path}?q=%3Cb%3E"), &headers)
            .status,
        200
    );
    let stream = open_stream(&world.gateway, &format!("/live{path}"), &token);

    browser.open(&page(&world.gateway));
    log_in(&browser);
    browser.says("Ready");
    browser.open(&format!("{}#/decisions", page(&world.gateway)));
    browser.until(
        "the decision",
        "return document.querySelectorAll('#decisions [role=option]').length >= 1",
    );
    browser.says("onerror=");
    browser.run(
        "document.querySelector('#decisions [role=option]').click()",
        &[],
    );
    browser.says("asked for");
    browser.run(
        "document.querySelectorAll('details').forEach((one) => { one.open = true; })",
        &[],
    );
    browser.says("<svg onload=window.hacked=3>");
    browser.says("<img src=x onerror=\"window.hacked=1\">");
    browser.open(&format!("{}#/streams", page(&world.gateway)));
    browser.says("/live/orders/");
    // A filter is text, too, and so is the address.
    let hash = "#/decisions?q=%3Cimg%20src%3Dx%20onerror%3Dwindow.hacked%3D6%3E&id=%3Cscript%3Ewindow.hacked%3D7%3C/script%3E";
    browser.open(&format!("{}{hash}", page(&world.gateway)));
    browser.says("there is no such decision");
    let found = browser.run(
        "return [window.hacked ?? null, document.querySelectorAll('img:not([src=\"icon.svg\"]), #app script, #app svg[onload], #app b b').length]",
        &[],
    );
    assert_eq!(found, json!([null, 0]));
    let refused: Vec<String> = browser
        .console()
        .into_iter()
        .filter(|line| !line.contains("404"))
        .collect();
    assert_eq!(refused, [""; 0]);

    // And if markup were made after all, the browser would not take it.
    let taken = browser.run(
        "try { document.body.innerHTML = '<i>x</i>'; return 'taken'; } catch (error) { return error.name; }",
        &[],
    );
    assert_eq!(taken, "TypeError");
    drop(stream);
}

#[test]
fn every_section_shows_what_the_gateway_knows_in_light_and_dark() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let nowhere = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let world = World::with(|builder| {
        builder.file("next.rego", "package gate\n\ndefault allow := false\n");
        builder.with(|document| {
            document["candidates"] = json!({"next": {"of": "gate", "files": ["next.rego"]}});
            document["limits"] = json!({"tight": {"by": "subject", "rate": "1/m", "burst": 3}});
            document["upstreams"]["dead"] = json!({"endpoints": [format!("http://{nowhere}")]});
            for (name, upstream) in [("tight", "main"), ("broken", "dead")] {
                let mut route = document["routes"][0].clone();
                route["name"] = json!(name);
                route["path"] = json!(format!("/{name}/{{*rest}}"));
                route["upstream"] = json!(upstream);
                if name == "tight" {
                    route["limits"] = json!(["tight"]);
                }
                document["routes"].as_array_mut().unwrap().push(route);
            }
        })
    });
    stream_events(&world.upstream);
    let token = world.token("alice");
    for _ in 0..6 {
        world.gateway.bearer("/tight/x", &token);
        world.gateway.bearer("/broken/x", &token);
    }
    let stream = open_stream(&world.gateway, "/live/1", &world.token("bob"));
    eventually("what would flip", || {
        let told = world.gateway.admin("GET", "/candidates").json();
        (told["candidates"][0]["denies"].as_u64() > Some(0)).then_some(())
    });
    eventually("the stream", || {
        let told = world.gateway.admin("GET", "/streams").json();
        (told["open"] == 1 && told["streams"][0]["bytes_out"].as_u64() > Some(0)).then_some(())
    });

    browser.open(&page(&world.gateway));
    log_in(&browser);
    let expected: [(&str, &[&str]); 9] = [
        (
            "overview",
            &["Nothing needs anybody", "tight", "broken", "rate_limited"],
        ),
        (
            "decisions",
            &["limited", "failed", "allowed", "alice", "/tight/x"],
        ),
        (
            "limits",
            &["tight", "1/m, 3 at once", "subject", "Show the requests"],
        ),
        ("upstreams", &["dead", "put aside", "main", "answers"]),
        ("keys", &["main", "fresh", "k1", "believed"]),
        (
            "candidates",
            &["next", "beside", "would deny", "GET /tight/"],
        ),
        ("streams", &["events", "GET /live/1", "bob", "min"]),
        ("policies", &["gate", "No bundles"]),
        (
            "configuration",
            &["entrypoint: data.gate.allow", "Secrets are references"],
        ),
    ];
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        let ground = browser.run(
            "return getComputedStyle(document.body.parentElement).backgroundColor",
            &[],
        );
        let dark = ground == "rgb(17, 23, 26)";
        assert_eq!(dark, scheme == "dark", "{ground}");
        for (section, words) in expected {
            browser.open(&format!("{}#/{section}", page(&world.gateway)));
            for word in words {
                browser.says(word);
            }
            browser.picture(&format!("{section}-{scheme}"));
            if let Some(barriers) = browser.accessibility() {
                assert_eq!(barriers, [""; 0], "{section}, {scheme}");
            }
        }
        // With one decision open.
        browser.open(&format!("{}#/decisions", page(&world.gateway)));
        browser.until("a decision", ROWS);
        browser.run(
            "document.querySelector('#decisions [role=option]').click()",
            &[],
        );
        browser.says("asked for");
        if let Some(barriers) = browser.accessibility() {
            assert_eq!(barriers, [""; 0], "one decision, {scheme}");
        }
        browser.types(ESCAPE);
    }
    let limits = world.gateway.admin("GET", "/limits").json();
    let tight = limits["limits"]
        .as_array()
        .unwrap()
        .iter()
        .find(|limit| limit["name"] == "tight");
    assert_eq!(tight.unwrap()["turned_away"], 3);
    assert_eq!(tight.unwrap()["routes"], json!(["tight"]));

    // The switch is stronger than the system, and is remembered.
    browser.scheme("light");
    browser.types("t");
    browser.types("t");
    browser.open(&page(&world.gateway));
    browser.says("Dark");
    let ground = browser.run(
        "return getComputedStyle(document.documentElement).backgroundColor",
        &[],
    );
    assert_eq!(ground, "rgb(17, 23, 26)");
    assert_eq!(browser.console(), [""; 0]);
    drop(stream);
}

#[test]
fn a_gateway_without_anything_says_what_to_do() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let gateway = Builder::open(&Upstream::start()).start();
    browser.open(&page(&gateway));
    log_in(&browser);
    let curl = "curl -i http://127.0.0.1:";
    let expected: [(&str, &[&str]); 7] = [
        ("overview", &["No request has come yet"]),
        ("decisions", &["No decision was made yet", curl]),
        ("limits", &["No limits are configured", "per-subject:"]),
        ("keys", &["No issuers are configured", "discovery: true"]),
        (
            "candidates",
            &["Nothing is tried beside the policies", "candidates:"],
        ),
        ("streams", &["No stream is open"]),
        ("policies", &["No policies are configured", "entrypoint:"]),
    ];
    for (section, words) in expected {
        browser.open(&format!("{}#/{section}", page(&gateway)));
        for word in words {
            browser.says(word);
        }
    }
    browser.open(&format!("{}#/decisions?q=status:nonsense", page(&gateway)));
    browser.says("a status is written");
    browser.open(&format!("{}#/decisions?q=route:lost", page(&gateway)));
    browser.says("No decision is as asked for");
    browser.open(&format!("{}#/decisions/", page(&gateway)));
    browser.says("No decision was made yet");
    gateway.get("/first", &[]);
    browser.says("/first");
}

#[test]
fn nothing_is_wider_than_a_telephone() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let world = world();
    stream_events(&world.upstream);
    let long = "x".repeat(300);
    world
        .gateway
        .bearer(&format!("/orders/{long}"), &world.token(&long));
    let stream = open_stream(
        &world.gateway,
        &format!("/live/{long}"),
        &world.token(&long),
    );
    browser.size(360, 740);
    browser.open(&page(&world.gateway));
    log_in(&browser);
    for section in SECTIONS {
        browser.open(&format!("{}#/{section}", page(&world.gateway)));
        browser.until(section, "return document.querySelector('#counted') && document.querySelector('#counted').innerText");
        let wide = browser.run(
            "return document.documentElement.scrollWidth - innerWidth",
            &[],
        );
        assert_eq!(wide, 0, "{section}");
        browser.picture(&format!("{section}-telephone"));
    }
    browser.open(&format!("{}#/decisions", page(&world.gateway)));
    browser.until("a decision", ROWS);
    browser.run(
        "document.querySelector('#decisions [role=option]').click()",
        &[],
    );
    browser.says("asked for");
    let wide = browser.run(
        "return [document.documentElement.scrollWidth - innerWidth, document.querySelector('.detail').scrollWidth - document.querySelector('.detail').clientWidth]",
        &[],
    );
    assert_eq!(wide, json!([0, 0]));
    drop(stream);
}

#[test]
fn a_token_opens_a_session_and_nothing_is_shown_before_and_after_it() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let gateway = Builder::open(&Upstream::start()).start();
    gateway.get("/confidential", &[]);
    browser.open(&format!("{}#/decisions", page(&gateway)));
    browser.says("Admin token");
    let barriers = browser.accessibility();
    assert_eq!(barriers.unwrap_or_default(), [""; 0]);
    browser.picture("login");
    browser.types("not the token at all");
    browser.types(ENTER);
    browser.says("That is not the token.");
    let typed = browser.run("return document.getElementById('token').selectionEnd", &[]);
    assert_eq!(typed, 20, "what was typed is selected, to be replaced");
    browser.types(ADMIN_TOKEN);
    browser.types(ENTER);
    browser.says("/confidential");

    // The cookie cannot be read by the page, nor is the token anywhere in it.
    let seen = browser.run("return document.cookie + JSON.stringify(localStorage) + document.documentElement.outerHTML", &[]);
    let seen = seen.as_str().unwrap();
    assert!(
        !seen.contains(ADMIN_TOKEN) && !seen.contains("portcullis-admin-"),
        "{seen}"
    );
    let cookies = browser.devtools("Network.getCookies", &json!({"urls": [page(&gateway)]}));
    let cookie = &cookies["cookies"][0];
    assert_eq!(cookie["httpOnly"], true);
    assert_eq!(cookie["sameSite"], "Strict");

    // It is still open when the page is loaded anew, and in another section.
    browser.open("about:blank");
    browser.open(&format!("{}#/configuration", page(&gateway)));
    browser.says("drain_timeout");
    assert!(!browser.text().contains(ADMIN_TOKEN));

    browser.click("#logout");
    browser.says("You are logged out.");
    assert!(!browser.text().contains("drain_timeout"));
    browser.open("about:blank");
    browser.open(&page(&gateway));
    browser.says("Admin token");

    // A changed token ends all sessions.
    browser.types(ADMIN_TOKEN);
    browser.types(ENTER);
    browser.says("Ready");
    gateway.file_in("admin-token", "another-token-of-the-admin-listener");
    assert!(gateway.process.reload().is_some());
    browser.says("The session has ended. Log in again.");
}

#[test]
fn a_gateway_without_a_token_says_so_and_shows_nothing_else() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let builder = Builder::open(&Upstream::start());
    let gateway = builder
        .with(|document| document["admin"] = json!({"address": "127.0.0.1:0"}))
        .start();
    gateway.get("/confidential", &[]);
    browser.open(&format!("{}#/decisions", page(&gateway)));
    browser.says("no admin token is configured");
    browser.says("openssl rand -hex 32");
    let field = browser.run("return document.getElementById('token').offsetParent", &[]);
    assert_eq!(field, Value::Null, "there is nothing to type");
    assert!(!browser.text().contains("/confidential"));
    assert_eq!(browser.accessibility().unwrap_or_default(), [""; 0]);
}

#[test]
fn a_gateway_that_goes_away_is_missed_and_shown_again_when_it_is_back() {
    let Some(browser) = Browser::start() else {
        return;
    };
    // Free a moment ago, and asked for again by the next process.
    let free = || {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    };
    let (admin, address) = (free(), free());
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream).with(|document| {
        document["admin"]["address"] = json!(admin.to_string());
        document["listeners"]["local"]["address"] = json!(address.to_string());
    });
    let mut program = Program::start(builder);
    let get = |path: &str| {
        let sent = request("GET", path, &[("connection", "close")]);
        assert_eq!(
            Connection::plain(address)
                .send(sent)
                .answer()
                .unwrap()
                .status,
            200
        );
    };
    get("/before");
    browser.open(&format!("http://{admin}/#/decisions"));
    log_in(&browser);
    browser.says("/before");
    browser.says("Ready");
    program.signal("TERM");
    program.end();
    browser.says("The gateway has not answered since");
    browser.says("Not reachable");
    browser.says("/before");
    browser.picture("gone");
    let program = program.again();
    // Another process knows no session of the one before.
    browser.says("The session has ended. Log in again.");
    log_in(&browser);
    browser.says("Ready");
    browser.until(
        "the alarm to end",
        "return !document.body.innerText.includes('has not answered')",
    );
    get("/after");
    browser.says("/after");
    drop(program);
}
