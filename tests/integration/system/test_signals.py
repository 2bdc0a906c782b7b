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


def test_prodding_interrupts_a_wait_and_then_ends() -> None:
    said = run("""
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
with signals.prodded():
    print(signal.getitimer(signal.ITIMER_REAL)[1], select.select([pipe], [], [], 20)[0] == [pipe])
print(names(pipe) or "nothing")
print(signal.getitimer(signal.ITIMER_REAL))
print(signal.getsignal(signal.SIGALRM).name)
print(signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, {}))
""")
    assert said == "0.02 True\nnothing\n(0.0, 0.0)\nSIG_IGN\nTrue\n"


def test_a_program_that_cleans_up_is_interrupted_by_each_signal_that_ends_it() -> None:
    said = run("""
signals.terminate_as_interrupt()
for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
    try:
        me(number)
    except KeyboardInterrupt:
        print(number.name)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signals.terminate_as_interrupt()
me(signal.SIGHUP)
print("ignored")
""")
    assert said == "SIGTERM\nSIGQUIT\nSIGHUP\nignored\n"


def test_a_child_ends_with_its_parent() -> None:
    said = run("""
ready, ready_writer = os.pipe()
alive, alive_writer = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        signals.die_with_parent(signal.SIGKILL)
        os.write(ready_writer, b"x")
        signal.pause()
    os.read(ready, 1)
    os._exit(0)
os.close(alive_writer)  # the child's child holds the last one
print(os.read(alive, 1) or "ended")
orphan = os.fork()
if orphan == 0:
    signals.die_with_parent(signal.SIGKILL, os.getpid())
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(orphan, 0)[1]))
""")
    assert said == "ended\n-9\n"


def test_closing_a_pipe_leaves_nothing_open() -> None:
    said = run("""
before = os.listdir("/proc/self/fd")
pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
print(len(pipe.fds), pipe.fds[0] == pipe.fileno())
pipe.close()
print(os.listdir("/proc/self/fd") == before)
me(signal.SIGHUP)
""")
    assert said == "2 True\nTrue\n"
