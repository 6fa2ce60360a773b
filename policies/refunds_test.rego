# Each rule that begins with `test_` states a promise of refunds.rego.
package refunds_test

import data.refunds

# A Thursday in January: Berlin is an hour ahead of UTC.
at_work := "2026-01-15T09:30:00Z"

clerk := {
	"method": "jwt",
	"subject": "bob",
	"scopes": ["orders:refund"],
	"claims": {"roles": ["clerk"], "acr": "urn:example:mfa"},
}

# A request that is allowed; tests change one thing about it.
good := {
	"version": 1,
	"request": {"received_at_ns": time.parse_rfc3339_ns(at_work)},
	"identity": clerk,
	"source": {"address": "10.20.3.4", "tls": {"client_certificate": null}},
	"route": {
		"name": "refund-order",
		"params": {"id": "1001"},
		"labels": {"action": "refund"},
	},
}

but(change) := object.union(good, change)

test_staff_at_work_refund if {
	refunds.decision.allow with input as good
}

# One thing is wrong, and the reason says which.
test_refused[reason] if {
	some reason, change in {
		"refunds.scope_missing": {"identity": {"scopes": ["orders:read"]}},
		"refunds.not_staff": {"identity": {"claims": {"roles": ["customer"]}}},
		"refunds.own_order": {"identity": {"subject": "alice"}},
		"refunds.not_at_work": {"source": {"address": "192.0.2.7"}},
		"refunds.closed": {"request": {"received_at_ns": time.parse_rfc3339_ns("2026-01-15T17:00:00Z")}},
		"refunds.step_up": {"identity": {"claims": {"acr": "urn:example:password"}}},
		"refunds.not_permitted": {"route": {"params": {"id": "9999"}}},
	}
	answer := refunds.decision with input as but(change)
	answer.allow == false
	answer.reason == reason
}

test_the_second_factor_is_asked_for if {
	answer := refunds.decision with input as but({"identity": {"claims": {"acr": "urn:example:password"}}})
	answer.step_up.acr_values == ["urn:example:mfa"]
}

test_strangers_get_nothing if {
	answer := refunds.decision with input as but({"identity": null})
	answer.reason == "refunds.scope_missing"
}
