# METADATA
# title: Refunds
# description: |
#   May this caller give the money for an order back, now? Those who may read any order may not yet do
#   that: it takes a scope of its own, office hours, and a place or a device of the company. Beyond that,
#   nobody refunds an order of their own.
package refunds

import data.callers
import data.conditions

default decision := {
	"allow": false,
	"reason": "refunds.not_permitted",
	"message": "You are not allowed to do this.",
}

# The first branch that applies decides, and every refusal has a reason of its own.
decision := {
	"allow": false,
	"reason": "refunds.scope_missing",
	"message": "The token lacks the scope orders:refund.",
} if {
	not callers.scope_granted
} else := {
	"allow": false,
	"reason": "refunds.not_staff",
	"message": "Refunds are given by staff.",
} if {
	not callers.staff
} else := {
	"allow": false,
	"reason": "refunds.own_order",
	"message": "Somebody else has to refund this order.",
} if {
	own_order
} else := {
	"allow": false,
	"reason": "refunds.not_at_work",
	"message": "Refunds are given from the office or from a company device.",
} if {
	not conditions.at_work
} else := {
	"allow": false,
	"reason": "refunds.closed",
	"message": "Refunds are given during office hours.",
} if {
	not conditions.during_office_hours
} else := {
	"allow": false,
	"reason": "refunds.step_up",
	"message": "This needs a login with a second factor.",
	"step_up": {"acr_values": ["urn:example:mfa"], "max_age": 900},
} if {
	not callers.second_factor
} else := {"allow": true, "reason": "refunds.staff"} if {
	known_order
}

known_order if data.owners[input.route.params.id]

own_order if data.owners[input.route.params.id] == input.identity.subject
