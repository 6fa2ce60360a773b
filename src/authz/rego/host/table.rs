//! The table of all functions, by name.

use aws_lc_rs::{digest, hmac};

use super::Purity::{PerRequest, Pure, TestOnly, Time};
use super::jwt::{Algorithm, Kind};
use super::{Host, crypto, general, graph, jwt, machine, net, text};

macro_rules! hosts {
    ($($name:literal, $arity:literal, $purity:ident, $call:expr;)*) => {
        /// All functions of the host, in the order of their names.
        pub(in crate::authz) static HOSTS: &[Host] = &[$(Host {
            name: $name,
            arity: $arity,
            purity: $purity,
            call: $call,
            machine: |_, _, args, _| machine($call, args),
        }),*];
    };
}

hosts! {
    "__builtin_sets.union", 2, Pure, general::ours;
    "and", 2, Pure, |a| general::operate(a, '&');
    "array.flatten", 1, Pure, general::flatten;
    "bits.lsh", 2, Pure, general::shift_left;
    "concat", 2, Pure, text::concat;
    "crypto.hmac.equal", 2, Pure, crypto::equal;
    "crypto.hmac.md5", 2, Pure, crypto::authenticate_md5;
    "crypto.hmac.sha1", 2, Pure, |a| crypto::authenticate(a, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY);
    "crypto.hmac.sha256", 2, Pure, |a| crypto::authenticate(a, hmac::HMAC_SHA256);
    "crypto.hmac.sha512", 2, Pure, |a| crypto::authenticate(a, hmac::HMAC_SHA512);
    "crypto.md5", 1, Pure, crypto::md5_hash;
    "crypto.sha1", 1, Pure, |a| crypto::hash(a, &digest::SHA1_FOR_LEGACY_USE_ONLY);
    "crypto.sha256", 1, Pure, |a| crypto::hash(a, &digest::SHA256);
    "div", 2, Pure, |a| general::operate(a, '/');
    "glob.match", 3, Pure, text::glob;
    "graph.reachable", 2, Pure, graph::reachable;
    "graph.reachable_paths", 2, Pure, graph::reachable_paths;
    "internal.member_2", 2, Pure, general::member_2;
    "internal.member_3", 3, Pure, general::member_3;
    "internal.template_string", 1, Pure, text::template;
    "io.jwt.decode", 1, Pure, jwt::decoded;
    "io.jwt.decode_verify", 2, Time, jwt::decode_verify;
    "io.jwt.encode_sign", 3, PerRequest, jwt::encode_sign;
    "io.jwt.encode_sign_raw", 3, PerRequest, jwt::encode_sign_raw;
    "io.jwt.verify_eddsa", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Ed, 0));
    "io.jwt.verify_es256", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Es, 256));
    "io.jwt.verify_es384", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Es, 384));
    "io.jwt.verify_es512", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Es, 512));
    "io.jwt.verify_hs256", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Hs, 256));
    "io.jwt.verify_hs384", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Hs, 384));
    "io.jwt.verify_hs512", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Hs, 512));
    "io.jwt.verify_ps256", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Ps, 256));
    "io.jwt.verify_ps384", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Ps, 384));
    "io.jwt.verify_ps512", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Ps, 512));
    "io.jwt.verify_rs256", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Rs, 256));
    "io.jwt.verify_rs384", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Rs, 384));
    "io.jwt.verify_rs512", 2, Pure, |a| jwt::verify(a, Algorithm(Kind::Rs, 512));
    "json.is_valid", 1, Pure, text::is_json;
    "json.marshal", 1, Pure, |a| text::written(a, "json.marshal");
    "json.marshal_with_options", 2, Pure, |a| text::written(a, "json.marshal_with_options");
    "json.patch", 2, Pure, general::patch;
    "json.unmarshal", 1, Pure, general::unmarshal;
    "minus", 2, Pure, |a| general::operate(a, '-');
    "mul", 2, Pure, |a| general::operate(a, '*');
    "net.cidr_contains_matches", 2, Pure, net::contains_matches;
    "net.cidr_expand", 1, Pure, net::expand;
    "net.cidr_intersects", 2, Pure, net::intersects;
    "net.cidr_merge", 1, Pure, net::merge;
    "numbers.range", 2, Pure, general::range;
    "numbers.range_step", 3, Pure, general::range_step;
    "opa.runtime", 0, Pure, jwt::runtime;
    "or", 2, Pure, |a| general::operate(a, '|');
    "plus", 2, Pure, |a| general::operate(a, '+');
    "rand.intn", 2, PerRequest, general::intn;
    "regex.find_all_string_submatch_n", 3, Pure, |a| text::matched(a, "regex.find_all_string_submatch_n", 0, 1);
    "regex.find_n", 3, Pure, |a| text::matched(a, "regex.find_n", 0, 1);
    "regex.globs_match", 2, Pure, text::globs_match;
    "regex.is_valid", 1, Pure, text::is_valid;
    "regex.match", 2, Pure, |a| text::matched(a, "regex.match", 0, 1);
    "regex.replace", 3, Pure, text::regex_replace;
    "regex.split", 2, Pure, |a| text::matched(a, "regex.split", 0, 1);
    "regex.template_match", 4, Pure, |a| text::matched(a, "regex.template_match", 0, 1);
    "rem", 2, Pure, |a| general::operate(a, '%');
    "replace", 3, Pure, text::replace;
    "split", 2, Pure, text::split;
    "sprintf", 2, Pure, text::sprintf;
    "strings.any_prefix_match", 2, Pure, |a| text::any_match(a, "strings.any_prefix_match");
    "strings.any_suffix_match", 2, Pure, |a| text::any_match(a, "strings.any_suffix_match");
    "strings.count", 2, Pure, text::count;
    "strings.replace_n", 2, Pure, text::replace_n;
    "time.now_ns", 0, Time, general::now;
    "to_number", 1, Pure, |a| general::number(a, "to_number");
    "trace", 1, TestOnly, general::trace;
    "units.parse", 1, Pure, |a| general::number(a, "units.parse");
    "units.parse_bytes", 1, Pure, |a| general::number(a, "units.parse_bytes");
    "uuid.rfc4122", 1, PerRequest, general::uuid;
    "yaml.is_valid", 1, Pure, general::is_yaml;
    "yaml.unmarshal", 1, Pure, general::unmarshal_yaml;
}
