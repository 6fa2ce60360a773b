//! Portcullis: a reverse-proxy API gateway and zero-trust policy enforcement point.
//!
//! It stands in front of services. It terminates TLS and mutual TLS, proves who is calling, asks a
//! Rego policy whether this caller may do this now, limits the rate, and forwards what is allowed
//! with identity headers that the service can trust. What is not allowed gets one clear answer, and
//! everything leaves one record that says why.
//!
//! # The way of a request
//!
//! ```text
//! accept → TLS / mTLS → HTTP/1.1 · HTTP/2       server, listener, tls
//!   → canonical request                          request
//!   → route                                      route
//!   → screen: limits by address                  limit
//!   → authenticate                               authn
//!   → is it still theirs                         revocation
//!   → authorize                                  authz      → a Permit, or a Denial
//!   → admit: limits by verified caller           limit
//!   → forward                                    upstream
//!   → record                                     audit
//! ```
//!
//! [`gateway`] holds this list as code: a total outer function that always answers and always
//! records, and a fallible inner one that returns on the first refusal. There are no middleware
//! towers and no type maps, because the order of the security steps is the most important fact of
//! the program. Every way to be turned away is a [`refusal::Refusal`], and only that room chooses
//! status, code and challenge.
//!
//! # Where to look
//!
//! | to… | open |
//! | --- | --- |
//! | see what happens to a request | [`gateway`] |
//! | know why somebody got a 403, 429 or 502 | [`refusal`], then the stage it names |
//! | add a way to prove who one is | [`authn`] |
//! | see what policies can know | [`authz::input`]; of bodies: [`intake`] |
//! | see which headers reach a service | [`upstream::headers`] |
//! | see which route takes a request | [`route`] |
//! | learn what a key of `gateway.yaml` does | the struct in the room it belongs to; the root is [`config::Document`] |
//! | know what a reload changes | [`snapshot`], [`config::reload`] |
//! | see what ends a permission early | [`revocation`]; what tells of it is the [`epoch`] |
//! | see how an open stream ends with its permission | [`lease`]; WebSocket and `CONNECT`: [`tunnel`] |
//! | check what is recorded | [`audit`] |
//! | see how it is told why a policy said no | [`authz::workbench::why`]; of a record: [`audit::why`] |
//! | try policies, or ask who may what | [`policy`] |
//! | try a policy on live traffic | [`candidate`] |
//! | bound a fetch from outside | [`fetch`]; policies from outside: [`bundle`] |
//! | see how the process starts and ends | [`run`] |
//!
//! # Directions
//!
//! A room may name only rooms to its left:
//!
//! ```text
//! clock · epoch · metrics · schema · document · body · tls · kept · fetch · bundle · request · telemetry ·
//! authn · revocation · authz · candidate · limit · upstream · intake · refusal · lease · audit · tunnel · listener ·
//! route · snapshot · admin ·
//! config · gateway · server · policy · run · dev · main
//! ```
//!
//! A stage may use the products of earlier stages and has never heard of later ones; stages never
//! call each other, only [`gateway`] does. An outside library has one room: rustls in [`tls`],
//! reqwest in [`fetch`], jsonwebtoken in [`authn`] (and where assertions are signed), regorus in
//! [`authz`] and [`document`], governor in [`limit`], redis in [`revocation`], YAML in [`config`] and
//! the scalars of [`schema`].
//!
//! # Threads
//!
//! Requests are served by worker threads, one runtime each, that share nothing on the hot path but
//! the [`snapshot::Snapshot`] behind an atomic pointer: connection pools, policy machines and
//! buffers belong to one worker. A control thread does everything that is not a request: fetching
//! keys, watching files, collecting stale counters, the admin listener. A slow admin call can never
//! delay a request.
//!
//! # Invariants
//!
//! Below each: the tests in `tests/it/` that try to break it, as `topic::name`.
//!
//! 1. Nothing is forwarded without a [`Permit`](authz::Permit), and only the policy stage can make
//!    one: a type, not a convention.
//!    - `policy::only_a_literal_yes_allows`
//!    - `architecture::only_the_policy_room_makes_permits`
//! 2. Unknown means no: an unknown configuration key, an undefined rule, a dead issuer, an empty
//!    method list. There is no permissive default. A route without authentication or without policy
//!    does not load; an open route says so.
//!    - `policy::errors_of_the_engine_deny`
//!    - `candidates::a_candidate_is_compared_behind_the_answer_and_changes_none`
//!    - `bundles::before_the_first_bundle_nobody_is_let_in_and_then_it_decides_and_changes`
//!    - `bundles::a_bundle_must_be_signed_as_configured_and_is_never_silently_older`
//!    - `keys::without_keys_nobody_is_let_in_and_readiness_says_why`
//!    - `reload::a_bad_reload_changes_nothing_and_says_where_it_is_bad`
//! 3. One canonical request. The path we match, the path the policy sees and the path the upstream
//!    gets are the same bytes. What is ambiguous is refused, or normalised by an explicit setting
//!    of the route.
//!    - `path::the_policy_sees_the_path_that_is_forwarded`
//!    - `path::no_spelling_of_a_denied_path_reaches_the_upstream`
//!    - `smuggling::ambiguous_lengths_are_refused_and_the_connection_closes`
//!    - `envoy::a_body_that_can_be_read_in_two_ways_is_refused`
//! 4. A header we own never arrives from outside, under any spelling.
//!    - `headers::identity_headers_come_from_the_token_alone`
//!    - `headers::connection_cannot_nominate_what_we_write`
//!    - `envoy::headers_that_only_the_gateway_writes_are_not_the_policys`
//!    - `h2::identity_headers_do_not_arrive_under_any_spelling_or_in_trailers`
//! 5. One request, one snapshot of the configuration, one clock reading, one audit record.
//!    - `audit::every_request_has_exactly_one_record`
//!    - `reload::a_hundred_reloads_under_load_drop_nothing`
//! 6. Clients never see an internal message; logs, traces and policy input never hold a secret.
//!    - `forward::an_unreachable_upstream_is_a_502_that_tells_nothing`
//!    - `audit::no_record_and_no_log_holds_a_credential`
//!    - `policy::the_input_holds_the_request_and_no_credential`
//!    - `envoy::the_input_holds_no_secret`
//! 7. A bad reload changes nothing but a log line, a metric and the admin answer. A good one drops
//!    no request.
//!    - `reload::a_bad_reload_changes_nothing_and_says_where_it_is_bad`
//!    - `reload::a_hundred_reloads_under_load_drop_nothing`
//!    - `bundles::what_is_broken_or_hostile_changes_nothing_but_what_is_told_of_it`
//!    - `bundles::bundles_change_under_load_without_a_failed_request`
//! 8. Permission ages: what was allowed ends when its credential does, or when the policy wants to
//!    be asked again, also in the middle of a body.
//!    - `promises::a_stream_ends_when_its_token_does`
//!    - `leases::a_change_between_the_check_and_the_stream_is_not_missed`
//!    - `leases::a_policy_that_now_says_no_ends_that_stream_and_no_other`
//!    - `candidates::open_streams_are_judged_and_compared_again_and_by_the_policy_when_it_goes_back`
//!    - `leases::a_long_upload_is_refused_in_its_middle`
//!    - `promises::a_stream_is_judged_again_when_the_policy_wants_to_be_asked`
//!    - `authn::a_cached_token_still_expires`
//!    - `replicas::what_one_replica_revokes_ends_open_streams_on_another`
//!    - `certificates::a_certificate_revoked_after_its_connection_opened_serves_no_further_request`
//!    - `certificates::open_streams_end_with_the_certificate_and_those_of_others_go_on`
//! 9. Every outside wait has a deadline, every outside body a size, every map that a client can
//!    feed a bound.
//!    - `forward::a_silent_upstream_is_a_504_within_the_routes_bound`
//!    - `forward::bodies_over_the_bound_are_refused_with_413`
//!    - `tls::junk_and_silence_on_the_tls_port_do_not_starve_good_clients`
//!    - `keys::a_storm_of_unknown_kids_costs_the_issuer_little_and_good_callers_nothing`
//! 10. A verified token's cached result never outlives its key, its expiry, or its revocation.
//!     - `keys::a_removed_key_ends_cached_tokens_too`
//!     - `keys::a_kid_reused_for_another_key_ends_cached_tokens_too`
//!     - `authn::a_cached_token_still_expires`
//!     - `revocation::each_kind_ends_a_token_that_was_just_let_in_and_no_other`
//!     - `revocation::what_was_revoked_is_so_after_a_restart_and_what_was_lifted_is_not`
//!     - `feeds::a_logout_token_ends_its_session_and_no_other`
//!     - `replicas::what_one_replica_revokes_every_replica_refuses_within_a_second`
//!
//! # As a library
//!
//! The crate is the program's own; its one use from outside is to check or run a configuration:
//!
//! ```no_run
//! use portcullis::run::{Options, Process};
//!
//! let process = Process::start(Options::new("gateway.yaml"))?;
//! println!("{:?}", process.addresses());
//! process.shutdown();
//! # Ok::<(), portcullis::run::StartError>(())
//! ```

pub mod admin;
pub mod ascii;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod body;
pub mod bundle;
pub mod candidate;
pub mod clock;
pub mod config;
pub mod dev;
pub mod document;
pub mod epoch;
pub mod fetch;
pub mod gateway;
pub mod intake;
mod kept;
pub mod lease;
pub mod limit;
pub mod listener;
pub mod metrics;
pub mod policy;
pub mod refusal;
pub mod request;
pub mod revocation;
pub mod route;
pub mod run;
pub mod schema;
pub mod server;
pub mod snapshot;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod upstream;
