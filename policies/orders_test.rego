# Each rule that begins with `test_` states a promise of orders.rego.
package orders_test

import data.orders

token(subject, roles, scopes) := {
	"method": "jwt",
	"subject": subject,
	"scopes": scopes,
	"claims": {"sub": subject, "roles": roles},
}

alice := token("alice", ["customer"], ["orders:read", "orders:write"])

bob := token("bob", ["clerk"], ["orders:read"])

carol := token("carol", ["admin"], ["orders:read", "orders:write", "orders:admin"])

carol_mfa := object.union(carol, {"claims": {"roles": ["admin"], "acr": "urn:example:mfa"}})

request(identity, action, params) := {
	"version": 1,
	"identity": identity,
	"source": {"address": "192.0.2.7", "tls": {"client_certificate": null}},
	"route": {"name": action, "params": params, "labels": {"action": action}},
}

partner(spiffe_id) := {
	"version": 1,
	"identity": {"method": "client_certificate", "scopes": [], "claims": {}},
	"source": {"tls": {"client_certificate": {"spiffe_id": spiffe_id}}},
	"route": {"name": "partner", "params": {}, "labels": {"action": "partner"}},
}

test_owners_read_their_orders if {
	answer := orders.decision with input as request(alice, "read", {"id": "1001"})
	answer == {"allow": true, "reason": "orders.owner"}
}

test_owners_do_not_read_the_orders_of_others if {
	answer := orders.decision with input as request(alice, "read", {"id": "1002"})
	not answer.allow
	answer.reason == "orders.not_owner"
}

test_unknown_orders_belong_to_nobody if {
	answer := orders.decision with input as request(alice, "read", {"id": "9999"})
	not answer.allow
}

test_clerks_read_every_order if {
	answer := orders.decision with input as request(bob, "read", {"id": "1002"})
	answer == {"allow": true, "reason": "orders.clerk"}
}

test_who_may_read_may_follow if {
	answer := orders.decision with input as request(bob, "live", {})
	answer == {"allow": true, "reason": "orders.live"}
}

test_who_may_not_read_may_not_follow if {
	stranger := token("stranger", ["clerk"], [])
	answer := orders.decision with input as request(stranger, "live", {})
	answer.reason == "orders.scope_missing"
}

test_clerks_do_not_create_orders if {
	answer := orders.decision with input as request(bob, "create", {})
	answer.reason == "orders.scope_missing"
}

test_customers_create_orders if {
	answer := orders.decision with input as request(alice, "create", {})
	answer == {"allow": true, "reason": "orders.customer"}
}

test_a_role_without_its_scope_is_not_enough if {
	weak := token("carol", ["admin"], ["orders:read"])
	answer := orders.decision with input as request(weak, "admin", {})
	answer.reason == "orders.scope_missing"
}

test_a_scope_without_its_role_is_not_enough if {
	odd := token("mallory", [], ["orders:admin"])
	answer := orders.decision with input as request(odd, "admin", {})
	answer.reason == "orders.not_permitted"
}

test_admins_are_asked_for_a_second_factor if {
	answer := orders.decision with input as request(carol, "admin", {})
	not answer.allow
	answer.step_up.acr_values == ["urn:example:mfa"]
}

test_admins_with_a_second_factor_go_on if {
	answer := orders.decision with input as request(carol_mfa, "admin", {})
	answer == {"allow": true, "reason": "orders.admin"}
}

test_registered_partners_go_on if {
	answer := orders.decision with input as partner("spiffe://example.test/service/payments")
	answer == {"allow": true, "reason": "orders.partner"}
}

test_other_certificates_are_refused if {
	answer := orders.decision with input as partner("spiffe://example.test/device/alice-laptop")
	answer.reason == "orders.unknown_partner"
}

test_strangers_get_nothing if {
	answer := orders.decision with input as request(null, "read", {"id": "1001"})
	not answer.allow
}

test_routes_without_a_purpose_get_nothing if {
	answer := orders.decision with input as object.union(
		request(carol_mfa, "admin", {}),
		{"route": {"labels": {"action": "unheard_of"}}},
	)
	not answer.allow
}
