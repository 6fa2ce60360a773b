# A policy of ordinary size: sixty lines of roles, scopes, hours, networks, devices and fresh logins.
# The benches evaluate it; it is written as one would write it who has never heard of them.
package sixty

default allow := false

method_action := {
	"GET": "read",
	"HEAD": "read",
	"POST": "write",
	"PUT": "write",
	"PATCH": "write",
	"DELETE": "admin",
}

claims := input.identity.claims

action := method_action[input.request.method]

resource := input.request.segments[0]

needed_scope := concat(":", [resource, action])

granted contains permission if {
	some role in claims.roles
	some permission in data.roles[role].permissions
}

has_scope if needed_scope in input.identity.scopes

has_role if needed_scope in granted

has_role if concat(":", [resource, "*"]) in granted

in_hours if {
	clock := time.clock(input.request.received_at_ns)
	clock[0] >= data.hours.start
	clock[0] < data.hours.end
}

in_hours if "on-call" in claims.groups

trusted_network if {
	some network in data.networks[claims.tenant]
	net.cidr_contains(network, input.source.address)
}

device_ok if {
	claims.device.managed
	claims.device.disk_encrypted
	claims.device.posture_score >= data.posture.min_score
	claims.device.os in data.posture.supported_os
}

owns_tenant if input.request.segments[1] == "tenants"

owns_tenant if input.request.headers["x-tenant"] == claims.tenant

mfa_fresh if input.request.received_at_ns - claims.auth_time_ns < data.posture.mfa_max_age_ns

sensitive if startswith(resource, "admin")

sensitive if action == "admin"

allow if {
	input.identity.method == "jwt"
	has_scope
	has_role
	owns_tenant
	in_hours
	device_ok
	not sensitive
	trusted_network
}

allow if {
	sensitive
	input.identity.method == "jwt"
	has_role
	device_ok
	trusted_network
	mfa_fresh
	"mfa" in claims.amr
}
