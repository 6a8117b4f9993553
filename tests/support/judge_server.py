"""An OpenAI-compatible server of the tests: it answers as it is told and keeps what it was asked."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeServer:
    """answer(request body) -> text, or (status, text of the body, headers)."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]):
        self.answer, self.asked, self.headers = answer, [], []
        self.lock = threading.Lock()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.asked.append({"path": self.path} | body)
                    server.headers.append(dict(self.headers))
                said = server.answer(body)
                if isinstance(said, str):
                    said = (200, json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}), {})
                status, text, headers = said
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        return Handler


@contextmanager
def judge_server(answer: Callable[[dict[str, Any]], Any]) -> Iterator[tuple[str, JudgeServer]]:
    """(URL with /v1, server)"""
    judge = JudgeServer(answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), judge.handler())
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def slowly(_: dict[str, Any]) -> str:
    time.sleep(0.5)
    return "too late"
