"""Decides whether three counts of the same greetings agree: of client, server and log."""

from greeterd.bench.model import Counts, Fault


def disagreement(counts: Counts, fault: Fault = "none") -> str:
    """Return in words, with the numbers, how the counts contradict each other; empty if not.

    A server logs a greeting, counts it, and then answers or closes, in this order; so what the
    client saw end in order is counted and logged, and what it did not see end may be.  A worker
    that is killed between two of these steps has logged more than it has counted.
    """
    client, board, log = counts.client, counts.scoreboard, counts.log
    most = client + counts.uncertain
    numbers = f"client {client}"
    numbers += f" (and {counts.uncertain} uncertain)" if counts.uncertain else ""
    numbers += f", scoreboard {board}" if board is not None else ""
    numbers += f", log {log}" if log is not None else ""
    for count in (board, log):
        if count is not None and not client <= count <= most:
            return f"the counts disagree: {numbers}"
    if board is not None and log is not None:
        killed = fault == "killed" and board <= log
        if board != log and not killed:
            return f"the counts disagree: {numbers}"
    return ""
