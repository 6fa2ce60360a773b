package conditions_test

import data.conditions

at(time_of_day) := {"request": {"received_at_ns": time.parse_rfc3339_ns(time_of_day)}}

test_office_hours[time_of_day] if {
	some time_of_day, open in {
		"2026-01-15T06:59:59Z": false,
		"2026-01-15T07:00:00Z": true, # Thursday, 8:00 in Berlin
		"2026-01-15T16:59:59Z": true,
		"2026-01-15T17:00:00Z": false,
		"2026-07-15T06:00:00Z": true, # Wednesday, 8:00 in Berlin, in summer
		"2026-07-15T16:00:00Z": false,
		"2026-01-17T10:00:00Z": false, # Saturday
	}
	given := at(time_of_day)
	found := [true | conditions.during_office_hours with input as given]
	count(found) == count([true | open])
}

test_unknown_time_is_closed if {
	not conditions.during_office_hours with input as {}
}

test_networks[address] if {
	some address, inside in {
		"10.20.3.4": true,
		"2001:db8:20::1": true,
		"10.21.0.1": false,
		"192.0.2.7": false,
	}
	found := [true | conditions.in_office_network with input as {"source": {"address": address}}]
	count(found) == count([true | inside])
}

device(spiffe_id, subject) := {
	"identity": {"subject": subject},
	"source": {
		"address": "192.0.2.7",
		"tls": {"client_certificate": {"spiffe_id": spiffe_id}},
	},
}

laptop := "spiffe://example.test/device/bob-laptop"

test_own_device_is_at_work if conditions.at_work with input as device(laptop, "bob")

test_device_of_another_is_not if {
	not conditions.at_work with input as device(laptop, "mallory")
}

test_unlisted_device_is_not if {
	not conditions.at_work with input as device("spiffe://example.test/device/lost-laptop", "bob")
}

test_no_certificate_is_no_device if {
	given := {"identity": {"subject": "bob"}, "source": {"address": "192.0.2.7", "tls": null}}
	not conditions.at_work with input as given
}
