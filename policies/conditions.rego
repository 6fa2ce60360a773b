# METADATA
# title: Conditions
# description: |
#   When, from where and with what somebody works: facts that any policy may ask for. Each of them holds
#   only when it is known to hold. A missing certificate or an unknown address is never good enough.
package conditions

# METADATA
# description: It is a working day in the office, and the office is open.
during_office_hours if {
	now := [input.request.received_at_ns, data.office.zone]
	time.weekday(now) in data.office.days
	clock := time.clock(now)
	clock[0] >= data.office.opens
	clock[0] < data.office.closes
}

# METADATA
# description: The request comes from one of the office's networks.
in_office_network if {
	some network in data.office.networks
	net.cidr_contains(network, input.source.address)
}

# METADATA
# description: |
#   The connection bears the certificate of a company device, and the device is the caller's own. The
#   gateway has verified the certificate; the list says whose it is.
on_own_device if {
	device := data.devices[input.source.tls.client_certificate.spiffe_id]
	device.owner == input.identity.subject
}

# METADATA
# description: Either is enough to be taken for somebody at work.
at_work if in_office_network

at_work if on_own_device
