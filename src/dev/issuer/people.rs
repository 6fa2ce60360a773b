//! Who is known to the development issuer.

use subtle::ConstantTimeEq as _;

/// The audience of tokens when none is asked for: the one `gateway.yaml` wants.
pub const AUDIENCE: &str = "https://api.example.test";
/// The client that may ask for tokens of any user.
pub const CLIENT_ID: &str = "portcullis-cli";
/// Its secret. Good for nothing but the development issuer on this machine.
pub const CLIENT_SECRET: &str = "development-only";

/// A user, or a client that acts for itself.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) name: &'static str,
    secret: Option<&'static str>,
    /// Whether it may ask for tokens of users.
    pub(super) may_name_users: bool,
    /// What it may be granted, space-separated.
    pub(super) scopes: &'static str,
    pub(super) roles: &'static [&'static str],
    pub(super) email: Option<&'static str>,
    pub(super) tenant: Option<&'static str>,
}

const USERS: [Subject; 3] = [
    Subject {
        name: "alice",
        secret: None,
        may_name_users: false,
        scopes: "orders:read orders:write",
        roles: &["customer"],
        email: Some("alice@example.test"),
        tenant: Some("acme"),
    },
    Subject {
        name: "bob",
        secret: None,
        may_name_users: false,
        scopes: "orders:read",
        roles: &["clerk"],
        email: Some("bob@example.test"),
        tenant: Some("acme"),
    },
    Subject {
        name: "carol",
        secret: None,
        may_name_users: false,
        scopes: "orders:read orders:write orders:admin",
        roles: &["admin"],
        email: Some("carol@example.test"),
        tenant: Some("acme"),
    },
];

const CLIENTS: [Subject; 2] = [
    Subject {
        name: CLIENT_ID,
        secret: Some(CLIENT_SECRET),
        may_name_users: true,
        scopes: "orders:read",
        roles: &[],
        email: None,
        tenant: None,
    },
    Subject {
        name: "reporting",
        secret: Some("reporting-development-only"),
        may_name_users: false,
        scopes: "orders:read",
        roles: &["service"],
        email: None,
        tenant: Some("acme"),
    },
];

/// The user of that name.
pub(super) fn user(name: &str) -> Option<&'static Subject> {
    USERS.iter().find(|user| user.name == name)
}

/// The client of that name, if the secret is its own.
pub(super) fn client(id: &str, secret: &str) -> Option<&'static Subject> {
    let client = CLIENTS.iter().find(|client| client.name == id)?;
    let right = client.secret?.as_bytes().ct_eq(secret.as_bytes());
    bool::from(right).then_some(client)
}
