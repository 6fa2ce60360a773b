//! The page for people: a shell, a stylesheet, a script and an icon, all inside the program.
//!
//! The shell holds no data and needs no token. The script asks the listener's other pages and writes
//! what they say as text, never as markup; the policy sent along allows no markup from strings at all.

use http::header::{ACCEPT, HeaderMap};
use http::{Method, StatusCode};

use super::{Page, pages};

/// The content type of the shell, by which its headers are chosen.
pub(super) const HTML: &str = "text/html; charset=utf-8";

/// What the shell may load and do: its own files, and asking where it came from. Scripts cannot turn
/// strings into markup or code (`require-trusted-types-for`), and no form is ever sent by the browser.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; \
    frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const SHELL: &str = include_str!("index.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const ICON: &str = include_str!("icon.svg");

/// The part of the page at `path`, if there is one. The root is the page for whoever accepts HTML.
pub(super) fn find(method: &Method, path: &str, headers: &HeaderMap) -> Option<Page> {
    let (content_type, text) = match path {
        "/" if wants_html(headers) => (HTML, SHELL),
        "/page" => (HTML, SHELL),
        "/page.css" => ("text/css; charset=utf-8", STYLE),
        "/page.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "/icon.svg" => ("image/svg+xml", ICON),
        _ => return None,
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Some(pages::wrong_method());
    }
    Some(pages::page(StatusCode::OK, content_type, text.to_owned()))
}

/// Whether the client names HTML among what it accepts. `*/*` alone is no browser.
fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let html = parts
                .next()
                .is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
            let refused = parts.any(|part| {
                part.split_once('=').is_some_and(|(name, value)| {
                    name.eq_ignore_ascii_case("q") && value.parse() == Ok(0.0_f32)
                })
            });
            html && !refused
        })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn who_accepts_html_by_name_gets_the_page_at_the_root() {
        let html = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            wants_html(&headers)
        };
        assert!(html("text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(html("application/json, Text/HTML;q=0.5"));
        assert!(!html("*/*") && !html("application/json"));
        assert!(!html("text/html;q=0") && !html("text/*"));
        assert!(!wants_html(&HeaderMap::new()));
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_has_nothing_inline() {
        assert!(!SHELL.contains("http://") && !SHELL.contains("https://"));
        assert!(!SHELL.contains("style=") && !SHELL.contains("<style"));
        assert_eq!(SHELL.matches("<script").count(), 1);
        assert!(SHELL.contains(r#"<script src="page.js"></script>"#));
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
        for banned in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!SCRIPT.contains(banned), "{banned}");
        }
    }
}
