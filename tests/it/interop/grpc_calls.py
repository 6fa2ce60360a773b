"""A gRPC echo server and a client that makes every kind of call, for the interop tests.

usage: grpc_calls.py serve            prints its port
       grpc_calls.py call PORT TOKEN  prints one JSON object with what came back"""
import concurrent.futures
import json
import sys

import grpc


def echo(request, context):
    context.set_trailing_metadata((("x-trailer", "yes"),))
    return b"echo " + request


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "told to: " + request.decode())


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def total(requests, context):
    return str(sum(int(r) for r in requests)).encode()


def chat(requests, context):
    for request in requests:
        yield b"re " + request


def wait(request, context):
    context.add_callback(lambda: None)
    while context.is_active():
        concurrent.futures.wait([], timeout=0.05)
        import threading
        threading.Event().wait(0.05)
    return b""


class Handler(grpc.GenericRpcHandler):
    METHODS = {
        "/demo.Echo/Unary": grpc.unary_unary_rpc_method_handler(echo),
        "/demo.Echo/Fail": grpc.unary_unary_rpc_method_handler(fail),
        "/demo.Echo/Wait": grpc.unary_unary_rpc_method_handler(wait),
        "/demo.Echo/Count": grpc.unary_stream_rpc_method_handler(count),
        "/demo.Echo/Total": grpc.stream_unary_rpc_method_handler(total),
        "/demo.Echo/Chat": grpc.stream_stream_rpc_method_handler(chat),
    }

    def service(self, details):
        return self.METHODS.get(details.method)


def serve():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=[Handler()])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


def outcome(call):
    try:
        return call()
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"


def call(port, token):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.default_authority", "api.example.test")])
    metadata = (("authorization", "Bearer " + token),)
    rpc = {"metadata": metadata, "timeout": 20}
    unary, first = channel.unary_unary("/demo.Echo/Unary").with_call(b"hello", **rpc)
    answers = {
        "unary": unary.decode(),
        "trailers": dict(first.trailing_metadata()).get("x-trailer"),
        "server_stream": [m.decode() for m in channel.unary_stream("/demo.Echo/Count")(b"5", **rpc)],
        "client_stream": channel.stream_unary("/demo.Echo/Total")(iter([b"1", b"2", b"3"]), **rpc).decode(),
        "both": [m.decode() for m in channel.stream_stream("/demo.Echo/Chat")(iter([b"a", b"b"]), **rpc)],
        "status": outcome(lambda: channel.unary_unary("/demo.Echo/Fail")(b"x", **rpc)),
        "deadline": outcome(lambda: channel.unary_unary("/demo.Echo/Wait")(b"", metadata=metadata, timeout=1)),
        "without_token": outcome(lambda: channel.unary_unary("/demo.Echo/Unary")(b"x", timeout=20)),
    }
    print(json.dumps(answers))


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else call(sys.argv[2], sys.argv[3])
