"""Joins two network namespaces by a link with delay, jitter and loss, in user space.

The stand-in for netem, which not every kernel has. Run by tests.system.link as
`python -m tests.system.link_forwarder PID_A PID_B ...`; the namespaces are those of the two
processes. Prints `up` when the link carries packets, and ends at the end of its standard input.
Each packet is held for `delay` plus a random part of `jitter`, so jitter reorders packets, as it
does in netem. No packet is early; on a busy machine one may be late.
"""

import argparse
import ctypes
import fcntl
import heapq
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from pathlib import Path

# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000

NAME = "link0"
BURST = 64  # packets taken from one side before the other has its turn
LONGEST = 65536  # bytes of a packet


def open_end(namespace: Path, tun: Path, network: str) -> int:
    """Enter the namespace for good, and return the descriptor of a TUN device made in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as file:
        if libc.setns(file.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    end = os.open(tun, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", NAME.encode(), IFF_TUN | IFF_NO_PI))
    for command in (
        "link set lo up",
        f"addr add {network} dev {NAME}",
        # The default queue of 500 packets would add losses of its own under load.
        f"link set {NAME} txqueuelen 10000 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    return end


def forward(one: int, other: int, *, delay: float, jitter: float, loss: float) -> None:
    """Carry packets both ways until standard input ends."""
    chance = random.Random(0)
    peers = {one: other, other: one}
    held: list[tuple[float, int, int, bytes]] = []  # due (monotonic), number, to, packet
    number = 0
    selector = selectors.DefaultSelector()
    for descriptor in (one, other, sys.stdin.fileno()):
        selector.register(descriptor, selectors.EVENT_READ)
    while True:
        patience = max(0.0, held[0][0] - time.monotonic()) if held else None
        for key, _ in selector.select(patience):
            if key.fd not in peers:
                return
            for packet in take(key.fd):
                if chance.random() >= loss:
                    due = time.monotonic() + delay + jitter * chance.random()
                    heapq.heappush(held, (due, number, peers[key.fd], packet))
                    number += 1
        while held and held[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(held)
            try:
                os.write(to, packet)
            except BlockingIOError:
                continue  # a full device loses packets, as a full router does


def take(descriptor: int) -> list[bytes]:
    """Return the packets that are there, a burst at most."""
    packets: list[bytes] = []
    try:
        while len(packets) < BURST:
            packets.append(os.read(descriptor, LONGEST))
    except BlockingIOError:
        pass
    return packets


def main() -> None:
    """Set the link up and carry packets until told otherwise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pids", type=int, nargs=2)
    parser.add_argument("--networks", nargs=2, required=True, help="address/length of each end")
    parser.add_argument("--tun", type=Path, required=True, help="the TUN clone device")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, one way")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds, at most")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets, 0 to 1")
    chosen = parser.parse_args()
    one, other = (
        open_end(Path(f"/proc/{pid}/ns/net"), chosen.tun, network)
        for pid, network in zip(chosen.pids, chosen.networks, strict=True)
    )
    print("up", flush=True)
    forward(one, other, delay=chosen.delay, jitter=chosen.jitter, loss=chosen.loss)


if __name__ == "__main__":
    main()
