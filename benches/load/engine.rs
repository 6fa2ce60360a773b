//! A small policy engine beside a proxy: Envoy's `ext_authz` over gRPC, decided by regorus.
//!
//! It stands for the sidecar that people run (OPA with its Envoy plugin), and flatters it: the policy
//! is compiled to bytecode, the messages are read without generated code, and nothing is logged.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::server::{self, SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::program::Program;
use regorus::rvm::vm::RegoVM;
use regorus::{Engine, Value};
use serde_json::json;
use tokio::net::TcpStream;

/// The rule that decides.
const ENTRYPOINT: &str = "data.bench.decision";
/// The largest message.
const LARGEST: usize = 1 << 20;

/// Serves until the process ends. Must run on a `LocalSet`.
pub(crate) async fn serve(address: SocketAddr, policy: &Path) -> Result<()> {
    let text = fs::read_to_string(policy).context("cannot read the policy")?;
    let mut engine = Engine::new();
    engine.add_policy("policy.rego".to_owned(), text)?;
    let compiled = engine.compile_with_entrypoint(&ENTRYPOINT.into())?;
    let program = Compiler::compile_from_policy(&compiled, &[ENTRYPOINT])
        .map_err(|error| anyhow!("cannot compile the policy: {error}"))?;
    let listener = super::net::listen(address)?;
    let mut out = io::stdout().lock();
    writeln!(out, "ready {}", listener.local_addr()?)?;
    drop(out);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let program = Arc::clone(&program);
        tokio::task::spawn_local(async move {
            // A proxy that hangs up is its own affair.
            let _ended = converse(stream, program).await;
        });
    }
}

async fn converse(stream: TcpStream, program: Arc<Program>) -> Result<(), h2::Error> {
    let program = Rc::new(program);
    let mut connection = server::Builder::new()
        .max_concurrent_streams(1000)
        .initial_connection_window_size(1 << 24)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        let program = Rc::clone(&program);
        tokio::task::spawn_local(async move {
            let _ended = answer(request, respond, &program).await;
        });
    }
    Ok(())
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    program: &Arc<Program>,
) -> Result<()> {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        message.extend_from_slice(&piece);
        if message.len() > LARGEST {
            return Err(anyhow!("too large"));
        }
    }
    let allowed = message
        .get(5..)
        .and_then(|call| decide(call, program))
        .unwrap_or(false);
    let mut head = Response::new(());
    let json = HeaderValue::from_static("application/grpc");
    head.headers_mut().insert(http::header::CONTENT_TYPE, json);
    let mut stream = respond.send_response(head, false)?;
    // CheckResponse: `status.code` 0, or 7 (PERMISSION_DENIED) and `denied_response.status.code` 403.
    let text: &[u8] = if allowed {
        &[0x0a, 0x00]
    } else {
        &[
            0x0a, 0x02, 0x08, 0x07, 0x12, 0x05, 0x0a, 0x03, 0x08, 0x93, 0x03,
        ]
    };
    let mut frame = BytesMut::with_capacity(5 + text.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(text.len())?);
    frame.put_slice(text);
    stream.send_data(frame.freeze(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)?;
    Ok(())
}

/// The fields of a protobuf message that have a length: their numbers and contents.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let key = varint(&mut message)?;
            match key & 7 {
                0 => drop(varint(&mut message)?),
                1 => message = message.get(8..)?,
                2 => {
                    let length = usize::try_from(varint(&mut message)?).ok()?;
                    let content = message.get(..length)?;
                    message = message.get(length..)?;
                    return Some((key >> 3, content));
                }
                5 => message = message.get(4..)?,
                _ => return None,
            }
        }
    })
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn field(message: &[u8], number: u64) -> Option<&[u8]> {
    fields(message)
        .find(|(found, _)| *found == number)
        .map(|(_, content)| content)
}

/// What the policy says; nothing when the call cannot be understood.
fn decide(call: &[u8], program: &Arc<Program>) -> Option<bool> {
    // CheckRequest.attributes.request.http
    let http = field(field(field(call, 1)?, 4)?, 2)?;
    let (mut method, mut path, mut payload) = ("", "", None);
    for (number, content) in fields(http) {
        match number {
            2 => method = std::str::from_utf8(content).ok()?,
            3 if field(content, 1) == Some(b"x-jwt-payload") => payload = field(content, 2),
            4 => path = std::str::from_utf8(content).ok()?,
            _ => {}
        }
    }
    let claims = URL_SAFE_NO_PAD.decode(payload?.trim_ascii_end()).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let scopes: Vec<_> = claims.get("scope")?.as_str()?.split(' ').collect();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let input = json!({
        "request": { "method": method, "path": path, "raw_query": query },
        "identity": { "subject": claims.get("sub"), "scopes": scopes, "claims": claims },
    });
    let mut machine = RegoVM::new();
    machine.load_program(Arc::clone(program));
    machine.set_input(Value::from_json_str(&input.to_string()).ok()?);
    let decision = machine.execute().ok()?;
    Some(decision["allow"] == Value::Bool(true))
}
