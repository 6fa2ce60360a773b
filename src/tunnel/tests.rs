use std::future::pending;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, timeout};

use super::frames::{Side, close};
use super::relay::PIECE;
use super::*;

/// One end of a pipe as a client's.
struct Pipe {
    io: DuplexStream,
    reset: Arc<std::sync::atomic::AtomicBool>,
}

impl Near for Pipe {
    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn reset(&mut self) {
        self.reset.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

impl tokio::io::AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

struct Running {
    client: DuplexStream,
    upstream: DuplexStream,
    stop: Option<oneshot::Sender<Stop>>,
    task: JoinHandle<Ended>,
    reset: Arc<std::sync::atomic::AtomicBool>,
    received: std::rc::Rc<std::cell::Cell<u64>>,
}

const LIMITS: Limits = Limits {
    idle: Duration::from_millis(400),
    total: Duration::from_millis(1500),
};

fn relay(kind: Kind, room: usize) -> Running {
    let (client, near) = duplex(room);
    let (upstream, far) = duplex(room);
    let (stop, stopped) = oneshot::channel();
    let reset = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let near = Pipe {
        io: near,
        reset: Arc::clone(&reset),
    };
    let counts = Counts::default();
    let received = std::rc::Rc::clone(&counts.received);
    let stop_on = Box::pin(async move {
        match stopped.await {
            Ok(stop) => stop,
            Err(_) => pending().await,
        }
    });
    let relay = Relay::new(near, far, kind, LIMITS, counts, stop_on);
    Running {
        client,
        upstream,
        stop: Some(stop),
        task: tokio::task::spawn_local(relay),
        reset,
        received,
    }
}

impl Running {
    fn stop(&mut self, stop: Stop) {
        assert!(self.stop.take().unwrap().send(stop).is_ok());
    }

    async fn ended(self) -> Ended {
        let Self { task, .. } = self;
        timeout(Duration::from_secs(10), task)
            .await
            .unwrap()
            .unwrap()
    }

    fn was_reset(&self) -> bool {
        self.reset.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

async fn read(stream: &mut DuplexStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

/// What is still said until the end of the stream.
async fn rest(stream: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

fn unmasked(frame: &[u8]) -> Vec<u8> {
    let masked = frame[6..].iter().zip(frame[2..6].iter().cycle());
    masked.map(|(byte, mask)| byte ^ mask).collect()
}

#[test]
fn bytes_pass_both_ways_and_each_direction_ends_by_itself() {
    local(async {
        let mut tunnel = relay(Kind::Bytes, 100);
        tunnel.client.write_all(b"up").await.unwrap();
        assert_eq!(read(&mut tunnel.upstream, 2).await, b"up");
        tunnel.client.shutdown().await.unwrap();
        assert_eq!(rest(&mut tunnel.upstream).await, b"");
        // Half closed: the other direction goes on.
        tunnel.upstream.write_all(b"down").await.unwrap();
        assert_eq!(read(&mut tunnel.client, 4).await, b"down");
        tunnel.upstream.shutdown().await.unwrap();
        assert_eq!(rest(&mut tunnel.client).await, b"");
        assert_eq!(tunnel.ended().await, Ended::Complete);
    });
}

#[test]
fn who_takes_nothing_stops_the_other_side_and_not_the_other_direction() {
    local(async {
        let mut tunnel = relay(Kind::Bytes, 1000);
        // Nobody reads at the upstream: its pipe, one piece, and the client's pipe are all there is.
        let flood = vec![1; 10 * PIECE];
        let wrote = timeout(Duration::from_millis(200), tunnel.client.write_all(&flood)).await;
        assert!(wrote.is_err());
        let taken = usize::try_from(tunnel.received.get()).unwrap();
        assert!(taken <= 1000 + PIECE, "{taken}");
        tunnel.upstream.write_all(b"down").await.unwrap();
        assert_eq!(read(&mut tunnel.client, 4).await, b"down");
        assert_eq!(read(&mut tunnel.upstream, taken).await, flood[..taken]);
    });
}

#[test]
fn silence_and_age_end_a_tunnel() {
    local(async {
        for kind in [Kind::Bytes, Kind::WebSocket] {
            let began = Instant::now();
            let mut tunnel = relay(kind, 1000);
            let said = rest(&mut tunnel.client).await;
            let websocket = kind == Kind::WebSocket;
            assert_eq!(said.is_empty(), !websocket);
            if websocket {
                assert_eq!(said, close(Side::Upstream, 1001, "idle_timeout"));
            }
            let took = began.elapsed();
            assert!(took >= LIMITS.idle && took < LIMITS.total, "{took:?}");
            assert_eq!(tunnel.ended().await, Ended::Idle);
        }
        let began = Instant::now();
        let mut tunnel = relay(Kind::WebSocket, 1000);
        let (client, upstream) = (&mut tunnel.client, &mut tunnel.upstream);
        let goodbye = close(Side::Upstream, 1001, "total_timeout");
        let mut said = Vec::new();
        // Somebody always says something.
        while timeout(LIMITS.idle / 4, client.read_buf(&mut said))
            .await
            .map_or(1, |n| n.unwrap())
            > 0
        {
            let _ = upstream.write_all(&[0x89, 0]).await;
        }
        assert!(said.ends_with(&goodbye));
        assert!(began.elapsed() >= LIMITS.total);
        assert_eq!(tunnel.ended().await, Ended::Total);
    });
}

#[test]
fn a_lapse_is_said_between_two_frames_to_both_sides() {
    local(async {
        let mut tunnel = relay(Kind::WebSocket, 1000);
        tunnel
            .client
            .write_all(&[0x82, 0x80, 1, 2, 3, 4])
            .await
            .unwrap();
        assert_eq!(read(&mut tunnel.upstream, 6).await.len(), 6);
        // A frame of five bytes, of which two are there.
        tunnel.upstream.write_all(&[0x82, 5, 1, 2]).await.unwrap();
        assert_eq!(read(&mut tunnel.client, 4).await, [0x82, 5, 1, 2]);
        tunnel.stop(Stop::lapsed("revoked"));
        // Behind the frame comes another one, and none of it passes.
        tokio::task::yield_now().await;
        tunnel
            .client
            .write_all(&[0x82, 0x80, 1, 2, 3, 4])
            .await
            .unwrap();
        tunnel
            .upstream
            .write_all(&[3, 4, 5, 0x82, 1, 9])
            .await
            .unwrap();
        let said = rest(&mut tunnel.client).await;
        let goodbye = close(Side::Upstream, 1008, "revoked");
        assert_eq!(said, [&[3, 4, 5], &goodbye[..]].concat());
        let said = rest(&mut tunnel.upstream).await;
        assert_eq!(said[..2], [0x88, 0x80 | 9]);
        assert_eq!(unmasked(&said), b"\x03\xe9revoked");
        assert!(!tunnel.was_reset());
        assert_eq!(tunnel.ended().await, Ended::Lapsed);
    });
}

#[test]
fn a_frame_without_end_does_not_keep_a_tunnel_open() {
    local(async {
        let mut tunnel = relay(Kind::WebSocket, 1000);
        tunnel.upstream.write_all(&[0x82, 100, 1]).await.unwrap();
        assert_eq!(read(&mut tunnel.client, 3).await.len(), 3);
        // The client's is open too: nothing more of it passes, and no Close is put into it.
        tunnel
            .client
            .write_all(&[0x82, 0x84, 1, 2, 3, 4, 5])
            .await
            .unwrap();
        assert_eq!(read(&mut tunnel.upstream, 7).await.len(), 7);
        let began = Instant::now();
        tunnel.stop(Stop::lapsed("expired"));
        assert_eq!(rest(&mut tunnel.upstream).await, b"");
        assert_eq!(rest(&mut tunnel.client).await, b"");
        assert!(began.elapsed() <= Duration::from_millis(1100));
        assert!(tunnel.was_reset());
        assert_eq!(tunnel.ended().await, Ended::Lapsed);
    });
}

#[test]
fn a_client_that_reads_nothing_does_not_keep_a_tunnel_open() {
    local(async {
        let mut tunnel = relay(Kind::WebSocket, 10);
        tunnel.upstream.write_all(&[0x82, 20]).await.unwrap();
        tunnel.upstream.write_all(&[1; 20]).await.unwrap();
        let began = Instant::now();
        tunnel.stop(Stop::lapsed("denied"));
        let Running { task, .. } = tunnel;
        assert_eq!(task.await.unwrap(), Ended::Lapsed);
        assert!(began.elapsed() <= Duration::from_millis(1100));
    });
}

#[test]
fn who_has_said_close_is_not_told_again() {
    local(async {
        let mut tunnel = relay(Kind::WebSocket, 1000);
        let goodbye = close(Side::Upstream, 1000, "");
        tunnel.upstream.write_all(&goodbye).await.unwrap();
        assert_eq!(read(&mut tunnel.client, goodbye.len()).await, goodbye);
        tunnel.stop(Stop::lapsed("denied"));
        assert_eq!(rest(&mut tunnel.client).await, b"");
        assert_eq!(tunnel.ended().await, Ended::Lapsed);
    });
}

#[test]
fn close_frames_pass_and_the_end_is_in_order() {
    local(async {
        let mut tunnel = relay(Kind::WebSocket, 1000);
        let ours = close(Side::Client, 1000, "bye");
        tunnel.client.write_all(&ours).await.unwrap();
        assert_eq!(read(&mut tunnel.upstream, ours.len()).await, ours);
        let theirs = close(Side::Upstream, 1000, "bye");
        tunnel.upstream.write_all(&theirs).await.unwrap();
        tunnel.upstream.shutdown().await.unwrap();
        assert_eq!(rest(&mut tunnel.client).await, theirs);
        tunnel.client.shutdown().await.unwrap();
        assert_eq!(tunnel.ended().await, Ended::Complete);
    });
}

#[test]
fn who_hangs_up_without_a_word_ends_the_other_side() {
    local(async {
        let mut tunnel = relay(Kind::WebSocket, 1000);
        tunnel.client.shutdown().await.unwrap();
        assert_eq!(rest(&mut tunnel.upstream).await, b"");
        let began = Instant::now();
        assert_eq!(tunnel.ended().await, Ended::ClientGone);
        assert!(began.elapsed() <= Duration::from_secs(3));

        let mut tunnel = relay(Kind::WebSocket, 1000);
        tunnel.upstream.shutdown().await.unwrap();
        assert_eq!(rest(&mut tunnel.client).await, b"");
        assert_eq!(tunnel.ended().await, Ended::UpstreamBroke);
    });
}

#[test]
fn what_is_no_websocket_does_not_pass() {
    local(async {
        let mut tunnel = relay(Kind::WebSocket, 1000);
        let request = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
        tunnel.client.write_all(request).await.unwrap();
        let said = rest(&mut tunnel.client).await;
        assert_eq!(said, close(Side::Upstream, 1002, ""));
        let said = rest(&mut tunnel.upstream).await;
        assert_eq!(said[0], 0x88, "{said:?}");
        assert_eq!(unmasked(&said), b"\x03\xe9");
        assert_eq!(tunnel.ended().await, Ended::Violation);
    });
}

#[test]
fn a_tunnel_of_bytes_ends_at_once_and_not_in_order() {
    local(async {
        let mut tunnel = relay(Kind::Bytes, 1000);
        tunnel.stop(Stop::drained());
        assert_eq!(rest(&mut tunnel.client).await, b"");
        assert!(tunnel.was_reset());
        assert_eq!(tunnel.ended().await, Ended::Drained);
    });
}

#[test]
fn an_idle_tunnel_is_small() {
    // Without the lease, the record and the sockets, which are elsewhere.
    let size = size_of::<super::Running<tokio::net::TcpStream, ()>>();
    assert!(size <= 768, "{size} bytes");
}
