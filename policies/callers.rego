# METADATA
# title: Callers
# description: |
#   Who the caller is, in the words that policies use. What a token does not say, its bearer does not
#   have: each rule is undefined, or empty, where the claim is missing.
package callers

# Roles are granted by the issuer; a token without them has none.
default roles := []

roles := input.identity.claims.roles

staff if "clerk" in roles

staff if "admin" in roles

# The login was made with a second factor.
second_factor if input.identity.claims.acr == "urn:example:mfa"

# What the route is for: `labels` in gateway.yaml.
action := input.route.labels.action

# The scope that the purpose needs. A purpose that data.yaml does not list needs one that nobody has.
default needed_scope := "none"

needed_scope := data.scopes[action]

scope_granted if needed_scope in input.identity.scopes

# The certificate was verified against the listener's authorities; the list says who it may be.
known_partner if data.partners[input.source.tls.client_certificate.spiffe_id]
