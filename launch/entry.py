"""What every launcher has in common: the config flag, and bad input answered with one line."""

import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from jaxlab.config import InputError, check, default, flatten

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def with_huge_pages() -> None:
    """Starts this process again, as it was started, with glibc asking for huge pages, unless GLIBC_TUNABLES is set.

    On CPU XLA maps its temporaries anew in every step, and with pages of 4 KiB a fifth of the step is page faults.
    glibc reads the setting only at the start of a process; other C libraries ignore it.
    """
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | HUGE_PAGES)


def run(main: Callable[[ConfigDict, Console], int]) -> None:
    """Exits with the status of main(config, console), the config that of the flag --config; see `run_actions`."""
    holder = config_flags.DEFINE_config_file("config", None, "experiment: a file of configs/", lock_config=True)
    flags.mark_flag_as_required("config")

    def read_config():
        config = _read_config(sys.argv, holder)
        check(config)
        return config

    _exit_with(lambda: main(read_config(), Console()))


def run_actions(main: Callable[[list[str], Console], int]) -> None:
    """Exits with the status of main(words, console), words being what is left of the command line when the flags have
    been read; bad input exits with 2 and one line on stderr."""

    def words():
        try:
            return flags.FLAGS(sys.argv)[1:]
        except flags.Error as error:
            raise InputError(str(error)) from error

    _exit_with(lambda: main(words(), Console()))


def _exit_with(status: Callable[[], int]) -> None:
    try:
        sys.exit(status())
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno is None:
            raise
        _fail(f"{error.filename or 'writing'}: {os.strerror(error.errno)}")
    except KeyboardInterrupt:
        sys.exit(130)


def _read_config(argv: list[str], holder) -> ConfigDict:
    """The config file with the command line's changes; a file may change defaults, not add or lose keys."""
    known = flatten(default())
    for argument in argv[1:]:
        if argument.startswith("--config."):
            _check_key(argument.removeprefix("--config.").partition("=")[0], known)
        file = argument.removeprefix("--config=").partition(":")[0]
        if argument.startswith("--config=") and not Path(file).is_file():
            raise InputError(f"--config={file}: there is no such file")
    try:
        flags.FLAGS(argv)
        config = holder.value
        found = flatten(config)
    except Exception as error:  # absl, ml_collections and the config file raise many kinds
        raise InputError(_flag_error(error)) from error
    for key in found:
        _check_key(key, known)
    for key in known:
        if key not in found:
            raise InputError(f"config: missing key {key}; start from jaxlab.config.default()")
    return config


def _check_key(key: str, known: dict) -> None:
    if key not in known:
        near = max(known, key=lambda k: difflib.SequenceMatcher(None, key, k).ratio())
        raise InputError(f"config: unknown key {key}; the nearest is {near}")


def _flag_error(error: Exception) -> str:
    if isinstance(error, flags.Error):
        return re.sub(r"Error whilst parsing config file:.*\n(?=\S)", "", str(error).rstrip(), flags=re.DOTALL)
    return f"--config: {type(error).__name__}: {error}"


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
