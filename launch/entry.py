"""What all launchers share: the config flag, and one line of error for bad input."""

import io
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console

from jaxlab.config import InputError, RunFailed, check, check_keys, default, flatten, from_text
from jaxlab.files import first_line, local

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def with_huge_pages() -> None:
    """Restarts this process with the same arguments and with huge pages in glibc, unless GLIBC_TUNABLES is set.

    On CPU XLA allocates its temporaries anew in every step, and with pages of 4 KiB a fifth of the step goes into page
    faults. glibc reads the setting only when a process starts; other C libraries ignore it.
    """
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | HUGE_PAGES)


def run(main: Callable[[ConfigDict, Console], int]) -> None:
    """Exits with the status of main(config, console), with the config of the flag --config; see `run_actions`."""
    experiment = flags.DEFINE_string("config", None, "experiment: FILE.py of configs/, or FILE.py:ARGUMENTS")
    flags.mark_flag_as_required("config")

    def read_config():
        arguments, changes = split(sys.argv[1:])
        if words := _words(arguments):
            raise InputError(f"{words[0]}: only flags are understood, values after =")
        return read(experiment.value, changes)

    exit_with(read_config, main)


def run_actions(main: Callable[[list[str], Console], int]) -> None:
    """Exits with the status of main(words, console), where words are the arguments that are not flags. Bad input exits
    with status 2 and one line on stderr, a run that fails with status 1 and one line."""
    exit_with(lambda: _words(sys.argv[1:]), main)


def console(**options) -> Console:
    """A console that prints text literally: [square brackets] and :colons: have no special meaning."""
    return Console(markup=False, emoji=False, **options)


def split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """(other arguments, {key: text} of --config.KEY=TEXT or --config.KEY TEXT). Raises InputError for a key without a
    value or with two."""
    rest, changes, words = [], {}, iter(arguments)
    for argument in words:
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if argument == "--":
            rest += [argument, *words]
        elif not match:
            rest.append(argument)
        else:
            key, text = match.groups()
            if text is None and (text := next(words, "--")).startswith("--"):
                raise InputError(f"--config.{key}: must have a value, as in --config.{key}=VALUE")
            if key in changes:
                raise InputError(f"--config.{key}={text}: is there twice, before as {changes[key]}")
            changes[key] = text
    return rest, changes


def read(experiment: str, changes: dict[str, str]) -> ConfigDict:
    """The checked config of FILE.py or FILE.py:ARGUMENTS, with changes {key: text}. Raises InputError for any error in
    it; a file may change values, but not add or remove keys."""
    name, colon, arguments = experiment.partition(":")
    path = local(name, "--config")
    if not path.is_file():
        raise InputError(f"--config={name}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    try:
        get_config = runpy.run_path(str(path))["get_config"]
        returned = get_config(arguments) if colon else get_config()
        if not isinstance(returned, ConfigDict):
            raise InputError(f"get_config returned {type(returned).__name__}; must return jaxlab.config.default()")
        values = flatten(returned)
    except KeyboardInterrupt:
        raise
    except InputError as error:
        raise InputError(f"--config={experiment}: {error}") from error
    except BaseException as error:  # anything that the file does, exit() included
        raise InputError(f"--config={experiment}: {_said(error)}") from error
    check_keys(values)
    config = default()
    config.update_from_flattened_dict(values | {key: from_text(key, text) for key, text in changes.items()})
    check(config)
    return config.lock()


def _said(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args == ("get_config",):
        return "has no function get_config"
    return f"{type(error).__name__}: {first_line(error)}"


def _words(arguments: list[str]) -> list[str]:
    """Reads the flags and returns the other arguments. Raises InputError, also for a flag that is given twice."""
    for name in flags.FLAGS:
        flags.FLAGS[name].allow_overwrite = False
    try:
        return flags.FLAGS([sys.argv[0], *arguments])[1:]
    except (flags.Error, UnicodeError) as error:
        raise InputError(str(error)) from error


def exit_with(read: Callable[[], object], main: Callable[[object, Console], int]) -> None:
    """Exits with the status of main(read(), console). Expected errors are printed as one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may not be encodable for the terminal
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = read()
        for name in ("absl", "asyncio"):  # their messages: errors are raised as well and printed in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        code = main(arguments, console())
        sys.stdout.flush()
        sys.exit(code)
    except InputError as error:
        _fail(str(error))
    except RunFailed as error:
        from jaxlab import parallel  # imports jax, which has run by now

        sys.exit(parallel.fail(f"{error}; what was saved before is kept"))
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        _fail(f"{where or 'reading or writing'}: {error.strerror or first_line(error)}")
    except UnicodeError as error:
        _fail(f"text that cannot be read or written: {first_line(error)}")
    except MemoryError as error:
        _fail(f"out of memory: {first_line(error)}", status=1)
    except RuntimeError as error:  # raised by XLA, on any device
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _fail(f"out of memory: {first_line(error)}", status=1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, status: int = 2) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
