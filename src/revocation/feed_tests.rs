//! A feed that was not heard is stale, and so is one that was not heard for too long.

use std::path::Path;

use super::*;
use crate::clock;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_feed_is_stale_until_it_is_heard_and_again_when_it_is_silent() {
    let now = clock::now();
    let feed = Feed::new("list", Some(MINUTE), None);
    assert!(feed.is_stale(now));
    assert_eq!(feed.status(now).age_seconds, None);
    assert!(feed.failed("no such host"));
    assert!(!feed.failed("no such host"), "that is no news");
    feed.heard(now);
    assert!(!feed.is_stale(now + MINUTE));
    assert_eq!(feed.status(now + MINUTE).age_seconds, Some(60));
    assert_eq!(feed.status(now).last_error, None);
    assert_eq!(feed.look(now), (false, true));
    assert_eq!(feed.look(now), (false, false));
    let late = now + MINUTE + Duration::from_millis(2);
    assert!(feed.is_stale(late));
    assert_eq!(feed.look(late), (true, true));
}

#[test]
fn what_ends_by_itself_is_silent_from_then_on() {
    let now = clock::now();
    let feed = Feed::new("list", Some(10 * MINUTE), None);
    feed.heard_until(now, Some(now + MINUTE));
    assert!(!feed.is_stale(now + MINUTE / 2));
    assert!(feed.is_stale(now + MINUTE));
    // A reload hears nothing anew, and forgets nothing.
    let again = Feed::new("list", Some(10 * MINUTE), Some(&feed));
    assert!(!again.is_stale(now) && again.is_stale(now + MINUTE));
    assert!(Feed::new("other", Some(MINUTE), Some(&feed)).is_stale(now));
    assert!(!Feed::new("push", None, None).is_stale(now));
}

#[test]
fn a_clock_that_was_set_back_makes_no_feed_fresh() {
    let now = clock::now();
    let feed = Feed::new("list", Some(10 * MINUTE), None);
    feed.heard(now);
    assert!(!feed.is_stale(now - MINUTE), "a correction is none");
    let back = now - 2 * MINUTE;
    assert!(feed.is_stale(back));
    feed.heard(back);
    assert!(!feed.is_stale(back), "heard by the clock of now");
}

#[test]
fn a_routes_rule_says_all_that_it_needs_and_no_more() {
    let compile = |text: &str| {
        let config: RouteRevocationConfig = serde_yaml::from_str(text).unwrap();
        let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
        let rule = config.compile(&mut cx);
        assert_eq!(rule.is_none(), cx.errors() > 0);
        rule
    };
    assert_eq!(compile("{}"), Some(StaleRule::Refuse));
    assert_eq!(compile("when_stale: allow"), Some(StaleRule::Allow));
    assert_eq!(
        compile("{ when_stale: shorten, shorten_to: 5m }"),
        Some(StaleRule::Shorten(5 * MINUTE))
    );
    assert_eq!(compile("when_stale: shorten"), None);
    assert_eq!(compile("{ when_stale: shorten, shorten_to: 0s }"), None);
    assert_eq!(compile("shorten_to: 5m"), None);
}
