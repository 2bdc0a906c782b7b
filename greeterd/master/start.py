"""Starts the daemon, or goes on as one in a new image: the sockets, the lock, then the master."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from greeterd.config.schema import Config
from greeterd.errors import ConfigError, GreeterdError
from greeterd.master.generations import fixed_settings, prepare_log_dir, require_files
from greeterd.master.master import ConfigSource, Master
from greeterd.master.systemd.activation import SocketAssignment
from greeterd.master.systemd.receive import bind_by, receive
from greeterd.master.upgrade.preflight import run_preflight
from greeterd.master.upgrade.reexec import inherited_state, is_preflight
from greeterd.master.upgrade.state import UpgradeState
from greeterd.sockets.address import parse_address
from greeterd.sockets.listener import resolve as resolve_address
from greeterd.system import signals
from greeterd.system.daemonize import Readiness, launch
from greeterd.system.pidfile import PidLock, prepare_run_dir
from greeterd.system.privileges import resolve


def run(
    config: Config,
    *,
    directory: Path,
    reload: Callable[[], Config],
    config_file: Path | None = None,
) -> int:
    """Run the daemon with this configuration; return its exit code when it has ended.

    `directory` is where it was started; `reload` returns the configuration anew, and raises a
    GreeterdError when that is wrong.

    In a process that was a daemon's master already, go on as that daemon's new image.
    """
    state = inherited_state()
    sockets = receive(config) if state is None else SocketAssignment(listeners=state.listeners)
    config, reload = bind_by(sockets.listeners, config, reload)
    if state is not None:
        if config.daemonize:
            os.chdir("/")
        changed = state.differences(fixed_settings(config))
        if changed:
            raise ConfigError(f"only a restart changes {', '.join(changed)}")
        if is_preflight():
            prepare_run_dir(config.run_dir)  # what the next start would refuse is told now
            PidLock.adopt(state.lock_fd, config.run_dir).close()
            require_files(config)
            run_preflight(config, state)
            return 0
    else:  # else it was tried before the exec; now a refusal would end what serves
        require_files(config)
    given = sockets.listeners
    # Names are looked up while TERM ends this process, and nobody knows its pid.
    names = config.bind if given is None or None in given.shared else ()
    resolved = {name: resolve_address(parse_address(name)) for name in names}
    source = ConfigSource(reload, config_file, directory, sockets, resolved)
    return launch(
        lambda readiness: _serve(config, source, readiness, state),
        detach=config.daemonize and state is None,
        umask=config.umask,
    )


def _serve(
    config: Config, source: ConfigSource, readiness: Readiness, state: UpgradeState | None
) -> int:
    identity = resolve(config.user, config.group)  # this may take long, too
    try:
        prepare_log_dir(config, identity)
    except GreeterdError:
        if state is None:
            raise  # else the workers that serve go on; those that cannot write their logs say why
    signals.hold()  # from here on nothing waits, and the lock's file tells our pid
    if state is None:
        lock = PidLock.acquire(config.run_dir)
    else:
        lock = PidLock.adopt(state.lock_fd, config.run_dir)
        with suppress(GreeterdError):  # such as a full disk: the pid is in the file already
            lock.publish()
    try:
        master = Master(config, source, readiness, lock=lock, identity=identity, predecessor=state)
        try:
            return master.run()
        except Exception as error:
            master.log_crash(error)
            raise
        finally:
            master.close()
    finally:
        lock.release()
