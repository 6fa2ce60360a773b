//! Networks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use regorus::Value;

use super::args::{any, elements, few, spent, text, wrong};
use super::{Answer, Failed, MAX_ELEMENTS, engines};

/// Most pairs of networks that are compared.
pub(super) const MAX_PAIRS: usize = 1_000_000;

fn network(text: &str) -> Result<IpNet, Failed> {
    match text.parse::<IpNet>() {
        Ok(network) => Ok(network.trunc()),
        Err(_) => wrong("was given a text that is no network"),
    }
}

/// A network, or an address as the network of it alone.
fn network_or_address(text: &str) -> Result<IpNet, Failed> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => network(text),
    }
}

/// A network; an address stands for the network of its class (RFC 791), as in OPA.
fn classful(text: &str) -> Result<IpNet, Failed> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            let bits = match address.octets() {
                [0..=127, ..] => 8,
                [128..=191, ..] => 16,
                [192..=223, ..] => 24,
                _ => return wrong("was given an address without a length and without a class"),
            };
            match Ipv4Net::new(address, bits) {
                Ok(network) => Ok(IpNet::V4(network.trunc())),
                Err(_) => wrong("was given a text that is no network"),
            }
        }
        Ok(IpAddr::V6(_)) => wrong("was given an address of IPv6 without a length"),
        Err(_) => network(text),
    }
}

pub(super) fn expand(args: &[Value]) -> Answer {
    let network = network(text(args, 0)?)?;
    let host_bits = u32::from(network.max_prefix_len()) - u32::from(network.prefix_len());
    let count = 1usize.checked_shl(host_bits).filter(|_| host_bits < 32);
    if count.is_none_or(|count| count > MAX_ELEMENTS) {
        return spent(format!("makes more than {MAX_ELEMENTS} addresses"));
    }
    engines("net.cidr_expand", args)
}

pub(super) fn intersects(args: &[Value]) -> Answer {
    let (one, other) = (network(text(args, 0)?)?, network(text(args, 1)?)?);
    Ok(Value::from(one.contains(&other) || other.contains(&one)))
}

/// Keys and texts: the key of a text is the text, that of an element its place. Whether the texts are
/// networks is asked when they are compared, as in OPA: beside nothing all are.
fn listed(value: &Value) -> Result<Vec<(Value, &str)>, Failed> {
    fn one(key: Value, value: &Value) -> Result<(Value, &str), Failed> {
        let text = match value {
            Value::Array(parts) => parts.first(),
            other => Some(other),
        };
        match text {
            Some(Value::String(text)) => Ok((key, text)),
            _ => wrong("takes networks as texts, or as arrays that begin with one"),
        }
    }
    match value {
        Value::String(_) => Ok(vec![one(value.clone(), value)?]),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| one(Value::from(index), item))
            .collect(),
        Value::Set(items) => items.iter().map(|item| one(item.clone(), item)).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(key, item)| one(key.clone(), item))
            .collect(),
        _ => wrong("takes networks"),
    }
}

pub(super) fn contains_matches(args: &[Value]) -> Answer {
    let (networks, addresses) = (listed(any(args, 0)?)?, listed(any(args, 1)?)?);
    if networks.is_empty() || addresses.is_empty() {
        return Ok(Value::new_set());
    }
    if networks.len().saturating_mul(addresses.len()) > MAX_PAIRS {
        return spent(format!("compares more than {MAX_PAIRS} pairs"));
    }
    let read = |texts: Vec<(Value, &str)>| -> Result<Vec<(Value, IpNet)>, Failed> {
        let each = texts.into_iter();
        each.map(|(key, text)| Ok((key, network_or_address(text)?)))
            .collect()
    };
    let (networks, addresses) = (read(networks)?, read(addresses)?);
    let mut found = BTreeSet::new();
    for (key, network) in &networks {
        for (other, address) in &addresses {
            if network.contains(address) {
                found.insert(Value::from(vec![key.clone(), other.clone()]));
            }
        }
        few(found.len())?;
    }
    Ok(Value::from(found))
}

pub(super) fn merge(args: &[Value]) -> Answer {
    let items = elements(args, 0)?;
    few(items.len())?;
    let mut four: Vec<Ipv4Net> = Vec::new();
    let mut six: Vec<Ipv6Net> = Vec::new();
    for item in items {
        let Value::String(item) = item else {
            return wrong("takes networks as texts");
        };
        match classful(item)? {
            IpNet::V4(network) => four.push(network),
            IpNet::V6(network) => six.push(network),
        }
    }
    let merged = Ipv4Net::aggregate(&four)
        .into_iter()
        .map(|network| Value::from(network.to_string()))
        .chain(
            Ipv6Net::aggregate(&six)
                .into_iter()
                .map(|network| Value::from(network.to_string())),
        )
        .collect::<BTreeSet<Value>>();
    Ok(Value::from(merged))
}
