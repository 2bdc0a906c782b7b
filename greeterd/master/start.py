"""Starts the daemon, or continues it as its new image: sockets, pid file, then the master."""

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
from greeterd.sockets.address import Address, parse_address
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

    `directory` is where it was started; `reload` reads the configuration anew, and raises a
    GreeterdError when that is wrong.

    In a process that was a daemon's master already, continue as that daemon's new image; or only
    show that this would succeed (see `upgrade.preflight`), and return 0.

    Raises:
        GreeterdError: it cannot start.

    """
    state = inherited_state()
    sockets = receive(config) if state is None else SocketAssignment(listeners=state.listeners)
    config, reload = bind_by(sockets.listeners, config, reload)
    if state is None:
        require_files(config)
    else:
        _require_same_settings(config, state)
        if is_preflight():
            _run_preflight(config, state)
            return 0
        # Whatever else could be refused was checked by the preflight: after the exec, a refusal
        # would end a daemon that serves.
    source = ConfigSource(reload, config_file, directory, sockets, _look_up(config, sockets))
    return launch(
        lambda readiness: _serve(config, source, readiness, state),
        detach=config.daemonize and state is None,
        umask=config.umask,
    )


def _require_same_settings(config: Config, state: UpgradeState) -> None:
    if config.daemonize:
        os.chdir("/")
    if changed := state.differences(fixed_settings(config)):
        raise ConfigError(f"only a restart changes {', '.join(changed)}")


def _run_preflight(config: Config, state: UpgradeState) -> None:
    prepare_run_dir(config.run_dir)  # not needed now, but the next start would be refused
    PidLock.adopt(state.lock_fd, config.run_dir).close()
    require_files(config)
    run_preflight(config, state)


def _look_up(config: Config, sockets: SocketAssignment) -> dict[str, Address]:
    """Return the addresses of the names in `bind` that are to be opened.

    This may take long, so it happens while TERM still ends this process by its default action.
    """
    listeners = sockets.listeners
    names = config.bind if listeners is None or None in listeners.shared else ()
    return {name: resolve_address(parse_address(name)) for name in names}


def _serve(
    config: Config, source: ConfigSource, readiness: Readiness, state: UpgradeState | None
) -> int:
    identity = resolve(config.user, config.group)  # this may take long, too
    try:
        prepare_log_dir(config, identity)
    except GreeterdError:
        if state is None:
            raise
        # At an upgrade go on: workers serve, and those that cannot write their logs say why.
    # From here on nothing waits long, and others find our pid in the pid file: signals are for the
    # master's loop.
    signals.hold()
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
