"""An OpenAI-compatible server that counts what it is asked: a real HTTP server in a thread."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeOpenAI:
    """`answer` turns a prompt into text; `refuse` gives a status for the n-th request (from 0), or None."""

    def __init__(self, answer: Callable[[str], str], refuse=lambda number: None, seconds: float = 0.0) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.num_requests = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number, outer.num_requests = outer.num_requests, outer.num_requests + 1
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                status = refuse(number)
                if status is not None:
                    return self.reply(status, {"error": {"message": f"refused with {status}"}})
                chat = self.path.endswith("/chat/completions")
                prompt = body["messages"][0]["content"] if chat else body["prompt"]
                with outer.lock:
                    outer.asked[prompt] += 1
                time.sleep(seconds)
                text = answer(prompt)
                choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
                usage = {"prompt_tokens": 100, "completion_tokens": 10}
                return self.reply(200, {"choices": [choice], "usage": usage})

            def reply(self, status, content):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", "0.01")
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
