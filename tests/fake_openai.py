"""An OpenAI-compatible server that counts the prompts it receives: a real HTTP server in a thread."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeOpenAI:
    """`answer` turns a prompt into text, or into bytes that are sent in place of a completion; `refuse` gives a status
    for the n-th request (from 0), 0 to drop its connection, or None."""

    def __init__(
        self,
        answer: Callable[[str], str | bytes],
        refuse=lambda number: None,
        seconds: float = 0.0,
        retry_after: str = "0.01",
    ) -> None:
        self.received: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.headers: list[Message] = []
        self.times: list[float] = []
        self.num_requests = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number, outer.num_requests = outer.num_requests, outer.num_requests + 1
                    outer.bodies.append(body)
                    outer.headers.append(self.headers)
                    outer.times.append(time.monotonic())
                status = refuse(number)
                if status == 0:
                    return self.connection.shutdown(socket.SHUT_RDWR)
                if status is not None:
                    return self.reply(status, {"error": {"message": f"refused with {status}"}})
                chat = self.path.endswith("/chat/completions")
                turns = [turn["content"] for turn in body.get("messages", []) if turn["role"] == "user"]
                prompt = turns[0] if chat else body["prompt"]
                with outer.lock:
                    outer.received[prompt] += 1
                time.sleep(seconds)
                text = answer(prompt)
                if isinstance(text, bytes):
                    return self.reply(200, text)
                choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
                usage = {"prompt_tokens": 100, "completion_tokens": 10}
                return self.reply(200, {"choices": [choice], "usage": usage})

            def reply(self, status, content):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", retry_after)
                if 300 <= status < 400:
                    self.send_header("Location", f"{outer.url}/completions")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args): ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@contextmanager
def serving(*args, **kwargs):
    fake = FakeOpenAI(*args, **kwargs)
    thread = threading.Thread(target=fake.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
