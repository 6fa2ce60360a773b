use super::series::WORDS;
use super::*;

fn value(text: &str, series: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn every_line_is_well_formed_open_metrics() {
    let metrics = Metrics::default();
    metrics.route("orders").request(
        Some(200),
        Some(Duration::from_millis(2)),
        Duration::from_millis(3),
        10,
    );
    metrics.refused("orders", "denied");
    metrics.connection_opened("public");
    metrics.handshake_finished("public", "TLSv1.3", true);
    metrics.handshake_failed("public", "timeout");
    metrics
        .policy("orders")
        .decided("allow", Some(Duration::from_micros(12)));
    metrics
        .policy("orders")
        .decided("deny", Some(Duration::from_micros(12)));
    metrics.jwks_fetch("dev", "timeout");
    metrics.jwks_keys("dev", 2, Some(clock::now()));
    metrics.token_cache("dev", "hit");
    metrics.issuer("dev").token_cache("hit");
    metrics.policy("orders").looked_up(Lookup::Miss);
    metrics.policy("orders").looked_up(Lookup::Miss);
    metrics.upstream_in_flight("orders", 1);
    metrics.upstream_in_flight("orders", -1);
    metrics.upstream_connected("orders", Duration::from_millis(1));
    metrics.upstream_attempt("orders", "answered");
    metrics.reload(true);
    metrics.in_force("abc");
    let text = metrics.encode();
    assert!(text.ends_with("# EOF\n"));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect(line);
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap();
        assert!(
            name.starts_with("portcullis_") || name.starts_with("process_"),
            "{line}"
        );
        assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
    }
    let get = |series: &str| value(&text, series);
    assert_eq!(
        get(r#"portcullis_requests_total{route="orders",status="2xx"}"#),
        Some(1.0)
    );
    assert_eq!(
        get(r#"portcullis_decisions_total{policy="orders",outcome="deny"}"#),
        Some(1.0)
    );
    assert_eq!(
        get(r#"portcullis_config_revision{revision="abc"}"#),
        Some(1.0)
    );
    assert_eq!(
        get(r#"portcullis_upstream_in_flight{upstream="orders"}"#),
        Some(0.0)
    );
    assert_eq!(
        get(r#"portcullis_token_cache_total{issuer="dev",outcome="hit"}"#),
        Some(2.0)
    );
    assert_eq!(
        get(r#"portcullis_decision_cache_total{policy="orders",outcome="miss"}"#),
        Some(2.0)
    );
    assert!(get("process_resident_memory_bytes").unwrap() > 1e6);
    let open = get("process_open_fds").unwrap();
    assert!(open >= 3.0 && get("process_max_fds").is_none_or(|most| most >= open));
    assert!(get("process_cpu_seconds_total").is_some());
    assert!(get("process_start_time_seconds").is_some());
    assert_eq!(text.matches("# EOF").count(), 1);
}

#[test]
fn times_are_shown_in_seconds_with_their_buckets() {
    let metrics = Metrics::default();
    let took = [7, 7_000_000];
    for micros in took {
        metrics
            .policy("p")
            .decided("allow", Some(Duration::from_micros(micros)));
    }
    let text = metrics.encode();
    let get = |le: &str| {
        let series =
            format!("portcullis_decision_duration_seconds_bucket{{policy=\"p\",le=\"{le}\"}}");
        let labels =
            format!("portcullis_decision_duration_seconds_bucket{{le=\"{le}\",policy=\"p\"}}");
        value(&text, &series).or_else(|| value(&text, &labels))
    };
    for (le, count) in [
        ("0.000005", 0.0),
        ("0.00001", 1.0),
        ("0.00025", 1.0),
        ("0.01", 1.0),
        ("+Inf", 2.0),
    ] {
        let shown = get(le).or_else(|| get(&format!("{:e}", le.parse::<f64>().unwrap())));
        assert_eq!(shown, Some(count), "{le}: {text}");
    }
    let sum = r#"portcullis_decision_duration_seconds_sum{policy="p"}"#;
    assert_eq!(value(&text, sum), Some(7.000_007));
    let count = r#"portcullis_decision_duration_seconds_count{policy="p"}"#;
    assert_eq!(value(&text, count), Some(2.0));
}

#[test]
fn more_words_than_are_remembered_are_counted_all_the_same() {
    let metrics = Metrics::default();
    let words: Vec<&'static str> = (0..WORDS * 2)
        .map(|word| &*format!("w{word}").leak())
        .collect();
    for _ in 0..3 {
        for &word in &words {
            metrics.upstream_attempt("u", word);
        }
    }
    let text = metrics.encode();
    for word in words {
        let series =
            format!(r#"portcullis_upstream_attempts_total{{upstream="u",outcome="{word}"}}"#);
        assert_eq!(value(&text, &series), Some(3.0), "{series}");
    }
}

#[test]
fn handles_of_one_gateway_never_count_for_another() {
    let (first, second) = (Metrics::default(), Metrics::default());
    let count = |metrics: &Metrics| {
        metrics
            .route("r")
            .request(Some(204), None, Duration::ZERO, 0);
    };
    count(&first);
    count(&second);
    count(&second);
    let series = r#"portcullis_requests_total{route="r",status="2xx"}"#;
    assert_eq!(value(&first.encode(), series), Some(1.0));
    assert_eq!(value(&second.encode(), series), Some(2.0));
}

#[test]
fn a_label_cannot_break_out_of_its_quotes() {
    let metrics = Metrics::default();
    metrics.limited("a\"} 1\nevil");
    let text = metrics.encode();
    assert!(!text.lines().any(|line| line.starts_with("evil")), "{text}");
}

#[test]
fn only_the_revision_in_force_is_shown() {
    let metrics = Metrics::default();
    metrics.in_force("one");
    metrics.in_force("two");
    let text = metrics.encode();
    assert!(!text.contains("revision=\"one\""));
    assert!(text.contains("revision=\"two\""));
}
