"""A client that behaves: python -m tests.floods.probe PORT

It sends a line over one connection every now and then, and waits for it to come back, until its standard input ends.
Then it prints how long that took: a list of seconds.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

PAUSE = 0.02  # seconds between two lines
PATIENCE = 60  # so long may one take


def main() -> None:
    took = []
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print("connected", flush=True)
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            began = time.perf_counter()
            sock.sendall(b"a line\n")
            answer = b""
            while not answer.endswith(b"\n"):
                piece = sock.recv(100)
                if not piece:
                    sys.exit("the server hung up")
                answer += piece
            took.append(time.perf_counter() - began)
    print(json.dumps(took))


if __name__ == "__main__":
    main()
