"""What the tests of tools.predict share: a program run, and a camera that serves its frames by HTTP on this machine."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tools.predict.__main__ import main as predict

BITS, BLOCK = 10, 8  # a frame's number, as black and white blocks in its first rows


def numbered(scene, number):
    """A frame (H×W×3 uint8) that shows its number."""
    bits = number >> np.arange(BITS) & 1
    frame = scene.copy()
    frame[:BLOCK, : BITS * BLOCK] = 255 * bits.repeat(BLOCK)[None, :, None]
    return frame


def number_of(frame):
    """The number that a frame shows."""
    blocks = frame[:BLOCK, : BITS * BLOCK].reshape(BLOCK, BITS, BLOCK, 3).mean(axis=(0, 2, 3))
    return int(((blocks > 127) << np.arange(BITS)).sum())


@pytest.fixture
def config(tmp_path, write_config):
    """Path of the tiny experiment's yaml."""
    return write_config(tmp_path)


@pytest.fixture
def run(tmp_path, config, capfd):
    """run(*argv) of tools.predict into tmp_path/out, in this process: code, out and err."""

    def call(*argv):
        capfd.readouterr()
        code = predict(["-cfg", str(config), "-o", str(tmp_path / "out"), *map(str, argv)])
        captured = capfd.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def camera(draw_scene, tmp_path):
    """A server of motion JPEG at 30 frames a second.

    camera.url("endless") goes on for ever, "short" ends after 5 frames, "stalling" falls silent after 5, "page" is no
    video, "nothing" says nothing, and "NAME.mp4" is that file of tmp_path. camera.sent: numbers of frames sent so far.
    """
    scene, closing, found = draw_scene(0)[0], threading.Event(), SimpleNamespace(sent=0)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            what = self.path.partition("?")[0].strip("/")
            if what.endswith(".mp4"):
                self.reply("video/mp4", (tmp_path / what).read_bytes())
            elif what == "page":
                self.reply("text/html", b"<html>log in</html>")
            elif what in ("endless", "short", "stalling", "nothing"):
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                self.stream(what)
            else:
                self.send_error(404)

        def reply(self, kind, data):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def stream(self, what):
            number = 0
            while not closing.is_set():
                if what == "nothing" or (what == "stalling" and number == 5):
                    closing.wait()
                elif what == "short" and number == 5:
                    return
                number += 1
                data = cv2.imencode(".jpg", numbered(scene, number)[..., ::-1])[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + data + b"\r\n")
                except OSError:  # the reader has gone
                    return
                found.sent = number
                time.sleep(1 / 30)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = lambda what: f"http://127.0.0.1:{server.server_address[1]}/{what}"
    yield found
    closing.set()
    server.shutdown()
    server.server_close()
