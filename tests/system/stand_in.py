"""A daemon that can misbehave: proof for the harness, which the real one cannot give.

`python -m tests.system.stand_in BEHAVIOUR --bind HOST:0 --log-dir DIR --run-dir DIR ...` speaks the
daemon's log language; BEHAVIOUR is serve, die, mute or litter (leaves a deaf process in a session
of its own behind, as a daemonized master would be).
"""

import argparse
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path

DEAF = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (3, 15)]; signal.pause()"


def say(event: str, **fields: object) -> None:
    """Write one record of the daemon log."""
    sys.stderr.write(json.dumps({"level": "info", "event": event, **fields}) + "\n")
    sys.stderr.flush()


def serve(listener: socket.socket, greetings: Path) -> None:
    """Greet, one connection at a time, until SIGTERM or SIGQUIT."""
    wakeup, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno())
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)  # noqa: TID251 -- a program of its own
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wakeup, selectors.EVENT_READ)
    say("ready", addresses=["{}:{}".format(*listener.getsockname())])
    while all(key.fileobj is not wakeup for key, _ in selector.select()):
        client, _ = listener.accept()
        with client, client.makefile("rb") as stream, greetings.open("a") as log:
            name = stream.read().decode()
            log.write(json.dumps({"event": "greeting", "name": name}) + "\n")
            client.sendall(f"Hello, {name}\n".encode())


def main() -> int:
    """Behave as told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour", choices=["serve", "die", "mute", "litter"])
    parser.add_argument("--bind")
    parser.add_argument("--log-dir", type=Path)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--log-format")
    chosen = parser.parse_args()
    chosen.log_dir.mkdir()
    if chosen.behaviour == "die":
        say("cannot listen", address=chosen.bind)
        return 69
    if chosen.behaviour == "mute":
        signal.pause()
    if chosen.behaviour == "litter":
        child = subprocess.Popen([sys.executable, "-c", DEAF], start_new_session=True)
        say("littered", pid=child.pid)
    host, _, port = chosen.bind.rpartition(":")
    with socket.create_server((host, int(port))) as listener:
        serve(listener, chosen.log_dir / "worker-1.log")
    say("stopped", pid=os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main())
