"""A chat server on loopback that answers in the documented schema, or fails as it is told to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT_TOKENS, ANSWER_TOKENS = 7, 3


@dataclass
class Reply:
    """One response; what is not set is a good answer's."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    kind: str = "application/json"
    wait_s: float = 0.0
    hang_up: bool = False  # the connection is closed with no response
    cut: int | None = None  # only so many bytes are sent of those announced


def completion(
    text: str | None, *, finish: str = "stop", usage: bool = True, **choice: Any
) -> dict[str, Any]:
    """A chat completion object."""
    message = {"role": "assistant", "content": text, "refusal": None, **choice.pop("message", {})}
    counts = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS}
    counts["total_tokens"] = PROMPT_TOKENS + ANSWER_TOKENS
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, **choice}],
        **({"usage": counts} if usage else {}),
    }


def logprobs(*tokens: tuple[str, float, list[tuple[str, float]]]) -> dict[str, Any]:
    """The log-probabilities of a choice: for each token its own and the largest."""

    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    return {
        "content": [
            {**entry(text, value), "top_logprobs": [entry(*other) for other in top]}
            for text, value, top in tokens
        ],
        "refusal": None,
    }


def answer_to(body: dict[str, Any]) -> str:
    """What the server says to a request."""
    return f"so: {body['messages'][-1]['content']}"


class FaultServer:
    """Counts what it is asked, and answers by a script.

    Attributes:
        script: From the number of the request (0, 1, …) and its body to a reply, or to the text
            of a good answer; None for the usual one.
        asked: How often each last message came.
        keys: The Authorization headers seen.
        bodies: The bodies seen; ``headers`` and ``times`` (of arrival) are in the same order.
        most_in_flight: The largest number of requests at work at once.
    """

    def __init__(
        self, script: Callable[[int, dict[str, Any]], Reply | dict[str, Any] | None] | None = None
    ) -> None:
        self.script = script or (lambda number, body: None)
        self.asked: Counter[str] = Counter()
        self.keys: Counter[str | None] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        """How often it was asked."""
        return sum(self.asked.values())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                with server.lock:
                    number = server.requests
                    server.asked[body["messages"][-1]["content"]] += 1
                    server.keys[self.headers["Authorization"]] += 1
                    server.headers.append(str(self.headers))
                    server.bodies.append(body)
                    server.times.append(time.monotonic())
                    server.in_flight += 1
                    server.most_in_flight = max(server.most_in_flight, server.in_flight)
                try:
                    reply = server.script(number, body)
                    if isinstance(reply, Reply):
                        self.send(reply, body)
                    else:
                        content = completion(answer_to(body)) if reply is None else reply
                        self.send(Reply(body=json.dumps(content)), body)
                finally:
                    with server.lock:
                        server.in_flight -= 1

            def send(self, reply: Reply, body: dict[str, Any]) -> None:
                time.sleep(reply.wait_s)
                if reply.hang_up:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                text = json.dumps(completion(answer_to(body))) if reply.body is None else reply.body
                data = text.encode()
                lines = {"Content-Type": reply.kind, "Content-Length": str(len(data))}
                head = "".join(f"{k}: {v}\r\n" for k, v in {**lines, **reply.headers}.items())
                if reply.cut is not None:
                    data, self.close_connection = data[: reply.cut], True
                try:  # head and body in one packet
                    self.wfile.write(f"HTTP/1.1 {reply.status} .\r\n{head}\r\n".encode() + data)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def serving(
    script: Callable[[int, dict[str, Any]], Reply | dict[str, Any] | None] | None = None,
) -> Iterator[FaultServer]:
    """A server for the length of a block."""
    server = FaultServer(script)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
