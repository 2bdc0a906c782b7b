"""Signals as bytes on a pipe: heard once or counted, and kept through an exec."""

import subprocess
import sys

PRELUDE = """\
import os, select, signal, sys
from greeterd.system import signals
def me(number): os.kill(os.getpid(), number)
def names(pipe): return " ".join(number.name for number in pipe.read())
"""


def run(code: str) -> str:
    """Run a program of its own, for handlers are a process's; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_signal_that_came_many_times_is_heard_once_but_those_that_count() -> None:
    said = run("""
pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
for number in [signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR1, signal.SIGINT] * 3:
    me(number)
print(names(pipe))
print(names(pipe) or "nothing")
""")
    assert said == "SIGHUP SIGTTIN SIGUSR1 SIGINT SIGTTIN SIGINT SIGTTIN SIGINT\nnothing\n"


def test_what_was_heard_and_not_handled_goes_on_to_the_next_program_of_the_process() -> None:
    said = run("""
if len(sys.argv) == 1:
    pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
    me(signal.SIGHUP)
    signals.hold()
    pipe.put_back()
    me(signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "again"])
pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
print(names(pipe) or "nothing")
signals.release()
print(*sorted(names(pipe).split()))
""")
    assert said == "nothing\nSIGHUP SIGTERM\n"


def test_what_was_put_back_is_heard_again_when_there_is_no_next_program() -> None:
    said = run("""
pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
me(signal.SIGUSR2)
signals.hold()
pipe.put_back()
print(names(pipe) or "nothing")
signals.release()
print(names(pipe))
""")
    assert said == "nothing\nSIGUSR2\n"


def test_blocked_signals_are_heard_afterwards() -> None:
    said = run("""
pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
with signals.blocked():
    me(signal.SIGTERM)
    print(names(pipe) or "nothing")
print(names(pipe))
pipe.close()
""")
    assert said == "nothing\nSIGTERM\n"


def test_a_worker_hears_term_alone_and_shares_no_pipe_with_the_master() -> None:
    said = run("""
ours = signals.SignalPipe(signals.MASTER_SIGNALS)
with signals.blocked():
    pid = os.fork()
    if pid == 0:
        pipe = signals.become_worker()
        for number in signals.MASTER_SIGNALS:
            if number is not signal.SIGCHLD:
                me(number)
        print(names(pipe), flush=True)
        os._exit(0)
os.waitpid(pid, 0)
print(names(ours))
""")
    assert said == "SIGTERM\nSIGCHLD\n"
