"""Shows before an upgrade that the new image can take over: all of a start but serving.

`PreflightProcess` is the running master's side: it starts the new image as a child, with the same
upgrade state as at the exec that is to follow.  `run_preflight` is what that child does; its exit
code is the answer, and the last line of its standard error is the reason.
"""

import os
import selectors
import signal
import subprocess
from contextlib import ExitStack
from functools import partial
from typing import Final

from greeterd.config.schema import Config
from greeterd.errors import StartError
from greeterd.master.children import Child, fork
from greeterd.master.escrow import Escrow
from greeterd.master.generations import prepare_log_dir
from greeterd.master.log import MasterLog
from greeterd.master.upgrade.reexec import Program
from greeterd.master.upgrade.serialize import adopt_scoreboard
from greeterd.master.upgrade.state import UpgradeState, write_state
from greeterd.sockets import rights
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.ids import DISPATCHER, Generation, SlotIndex, WorkerId, name_of
from greeterd.system import signals
from greeterd.system.daemon_log import DaemonLog, open_daemon_log
from greeterd.system.files import open_memory
from greeterd.system.inheritance import PREFLIGHT
from greeterd.system.privileges import resolve
from greeterd.system.signals import SignalPipe
from greeterd.worker import main
from greeterd.worker.channel import Channel
from greeterd.worker.context import DispatcherContext, WorkerContext
from greeterd.worker.conversation import Conversation
from greeterd.worker.counters import spare_row
from greeterd.worker.messages import FailedMessage, Message, ReadyMessage

MAX_REASON_BYTES: Final = 4096


class PreflightProcess:
    """The child in which the new image shows that it can start.

    It leads a process group, so that a child of its own that hangs ends with it.  The kernel kills
    it when this process ends, whose listeners it holds.
    """

    def __init__(self, state: UpgradeState, program: Program) -> None:
        """Start it.  Raises: OSError if it cannot be executed."""
        self.stderr = ""
        """The end of what it has written to standard error, once there is a verdict."""
        self._program = program
        with ExitStack() as undo:
            self._stderr_fd = open_memory("greeterd-preflight")
            undo.callback(os.close, self._stderr_fd)
            state_fd = write_state(state)
            try:
                self._process = subprocess.Popen(
                    program.argv,
                    executable=program.executable,
                    cwd=program.start_directory,
                    env=program.environment(state_fd) | {PREFLIGHT: "1"},
                    pass_fds=[*state.fds(), state_fd],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._stderr_fd,
                    process_group=0,
                    # Safe here: the master has no threads, whose locks the child could find taken.
                    preexec_fn=partial(signals.die_with_parent, signal.SIGKILL, os.getpid()),  # noqa: PLW1509
                )
            finally:
                os.close(state_fd)
            undo.pop_all()

    @property
    def pid(self) -> int:
        """The child's."""
        return self._process.pid

    def verdict(self) -> str | None:
        """Return why the new image cannot start, empty when it can, None while it tries."""
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        self.kill()  # what it has left behind, before wait() lets the number be another's
        code = self._process.wait()
        size = os.fstat(self._stderr_fd).st_size
        tail = os.pread(self._stderr_fd, MAX_REASON_BYTES, max(0, size - MAX_REASON_BYTES))
        os.close(self._stderr_fd)
        if code == 0:
            return ""
        self.stderr = tail.decode("utf-8", "backslashreplace").strip()
        lines = self.stderr.splitlines()
        last = lines[-1].removeprefix("greeterd: ") if lines else "it said nothing"
        how = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return self._program.explain(f"the new image cannot start ({how}): {last}")

    def kill(self) -> None:
        """Kill it and its own children; `verdict` is still to be asked."""
        os.killpg(self.pid, signal.SIGKILL)


def run_preflight(config: Config, state: UpgradeState) -> None:
    """Start a worker for each slot, which leaves as soon as it could serve.

    Blocks for at most `start_timeout` a worker.

    Raises:
        GreeterdError: one of them could not start, or something else that the master needs.

    """
    identity = resolve(config.user, config.group)
    prepare_log_dir(config, identity)
    MasterLog(config, identity).file.close()
    log = open_daemon_log(path=None, format="json", level=config.log_level)
    escrow = Escrow(config, inherited=state.listeners)
    adopt_scoreboard(state)  # after the exec it would be too late to find that it cannot be
    generation = Generation(state.last_generation + 1)
    for slot in state.slots:
        spawn = Spawn(WorkerId(slot.index), SlotIndex(slot.index), 0, generation)
        answer = _try_worker(spawn, config, escrow, log)
        if isinstance(answer, FailedMessage):
            raise StartError(f"{name_of(slot.index)} did not start: {answer.reason}")
        if not isinstance(answer, ReadyMessage):
            raise StartError(f"{name_of(slot.index)} ended, or said nothing, before it was ready")


def _try_worker(spawn: Spawn, config: Config, escrow: Escrow, log: DaemonLog) -> Message | None:
    """Fork a worker; return its first message, or None if it ends or the time is up before."""
    answers: list[Message] = []

    def on_message(_child: Child, message: Message, fds: list[int]) -> None:
        rights.close_all(fds)
        answers.append(message)

    def run_worker(channel: Channel, pipe: SignalPipe, log_lock: int) -> int:
        context = WorkerContext(
            slot=spawn.slot,
            generation=spawn.generation,
            config=config,
            addresses=escrow.addresses,
            listeners=escrow.for_slot(spawn.slot),
            handoff=DispatcherContext({}, {}) if spawn.slot == DISPATCHER else None,
            # The slot's own rows belong to the worker that serves meanwhile.
            row=spare_row(),
            log_lock=log_lock,
            identity=resolve(config.user, config.group),
            channel=channel,
            signals=pipe,
            daemon_log=log,
            log=log.logger,
            rehearsal=True,
        )
        return main.main(context)

    with selectors.DefaultSelector() as selector:
        listeners = escrow.for_slot(spawn.slot) or []
        keep = [log.fd, *(sock.fileno() for sock in listeners)]
        conversation = Conversation(listeners=0 if listeners else len(escrow.addresses))
        child = fork(spawn, run_worker, keep=keep, conversation=conversation, log=log.logger)
        child.listen(selector, on_message)
        while not answers and child.hung_up is None:
            ready = selector.select(config.start_timeout)
            if not ready:
                return None  # the whole process ends now, and the worker with its channel
            for key, mask in ready:
                key.data(mask)
        os.waitpid(child.pid, 0)
    return answers[0] if answers else child.failure
