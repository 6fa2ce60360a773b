//! Listening sockets: one per worker on each address, joined by `SO_REUSEPORT`.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

/// Connections that the kernel completes for us before we accept them; it lowers this to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// When the kernel begins to ask a silent peer whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Whether another socket on the address may be one of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Only our own sockets may share it: somebody else's is found and reported.
    Exclusive,
    /// One of our own has the port, so somebody else's cannot be told apart.
    Shared,
}

/// Binds `count` sockets to one address. With port 0 the first socket picks the port.
pub(super) fn bind(
    address: SocketAddr,
    count: usize,
    sharing: Sharing,
) -> io::Result<Vec<TcpListener>> {
    if sharing == Sharing::Exclusive && address.port() != 0 {
        // `SO_REUSEPORT` would let us share the address with another process of this user without
        // a word, and each would get a part of the connections.
        let probe = open(address)?;
        probe.bind(&address.into())?;
    }
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let socket = open(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        let listener = TcpListener::from(socket);
        address = listener.local_addr()?;
        sockets.push(listener);
    }
    // Only now, when nothing can fail any more: from here on the kernel completes connections.
    for listener in &sockets {
        SockRef::from(listener).listen(BACKLOG)?;
    }
    Ok(sockets)
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Connections of the last process may still be in TIME-WAIT. A port that the kernel is to pick
    // has none, and there the option would let it pick one that another socket has bound and does
    // not listen on yet: two gateways that start at once would share it.
    socket.set_reuse_address(address.port() != 0)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Prepares an accepted connection: small answers leave at once, dead peers are noticed, and what
/// the kernel holds for a peer that takes nothing is given up.
pub(super) fn tune(stream: &TcpStream, write_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(write_timeout))?;
    #[cfg(not(target_os = "linux"))]
    let _ = write_timeout;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_port_and_strangers_do_not() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let ours = bind(any, 3, Sharing::Exclusive).unwrap();
        let address = ours[0].local_addr().unwrap();
        assert!(
            ours.iter()
                .all(|socket| socket.local_addr().unwrap() == address)
        );
        let error = bind(address, 1, Sharing::Exclusive).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(bind(address, 1, Sharing::Shared).is_ok());
    }
}
