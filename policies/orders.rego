# METADATA
# title: Orders
# description: |
#   May this caller do this with orders, now?
#
#   The gateway asks for `data.orders.decision` on every request of a route with `policy: orders`.
#   What is in `input` is described in README.md under "Policies"; what the routes of gateway.yaml
#   say of themselves is in `input.route.labels`. Only `"allow": true` lets a request through: an
#   undefined answer, an error or a spent budget is a refusal.
#
#   Nobody but the record sees `reason`; the client reads `message`.
package orders

import data.callers.action
import data.callers.known_partner
import data.callers.needed_scope
import data.callers.roles
import data.callers.scope_granted
import data.callers.second_factor

default decision := {
	"allow": false,
	"reason": "orders.not_permitted",
	"message": "You are not allowed to do this.",
}

# The first branch that applies decides.
decision := {"allow": true, "reason": "orders.partner"} if {
	action == "partner"
	known_partner
} else := {
	"allow": false,
	"reason": "orders.unknown_partner",
	"message": "This certificate is not registered as a partner.",
} if {
	action == "partner"
} else := {
	"allow": false,
	"reason": "orders.scope_missing",
	"message": sprintf("The token lacks the scope %s.", [needed_scope]),
} if {
	needed_scope != "none"
	not scope_granted
} else := {
	# Known, and permitted after a stronger login: the client gets 401 and is told so (RFC 9470).
	"allow": false,
	"reason": "orders.step_up",
	"message": "This needs a login with a second factor.",
	"step_up": {"acr_values": ["urn:example:mfa"], "max_age": 900},
} if {
	action == "admin"
	"admin" in roles
	not second_factor
} else := {"allow": true, "reason": grant} if {
	grant != "none"
} else := {
	"allow": false,
	"reason": "orders.not_owner",
	"message": "This order belongs to somebody else.",
} if {
	action == "read"
	"customer" in roles
}

# Why a caller may go on.
default grant := "none"

grant := "orders.admin" if {
	scope_granted
	"admin" in roles
} else := "orders.clerk" if {
	scope_granted
	action == "read"
	"clerk" in roles
} else := "orders.live" if {
	scope_granted
	action == "live"
} else := "orders.owner" if {
	scope_granted
	action == "read"
	data.owners[input.route.params.id] == input.identity.subject
} else := "orders.customer" if {
	scope_granted
	action == "create"
	"customer" in roles
}
