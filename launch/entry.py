"""What every launcher has in common: the config flag, and bad input answered with one line."""

import os
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from jaxlab.config import InputError, default, flatten

_CONFIG = config_flags.DEFINE_config_file("config", None, "experiment: a file of configs/", lock_config=True)
flags.mark_flag_as_required("config")


def run(main: Callable[[ConfigDict, Console], int]) -> None:
    """Exits with main(config, console)'s status; bad input exits with 2 and one line on stderr."""
    try:
        flags.FLAGS(sys.argv)
        config = _CONFIG.value
        _check_keys(config)
    except Exception as error:  # absl, ml_collections and the config file raise many kinds
        _fail(_flag_error(error))
    try:
        sys.exit(main(config, Console()))
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno is None:
            raise
        _fail(f"{error.filename or 'writing'}: {os.strerror(error.errno)}")


def _check_keys(config: ConfigDict) -> None:
    """A config file may change defaults, not add or lose keys."""
    found, known = flatten(config), flatten(default())
    for key in [*found, *known]:
        if (key in found) != (key in known):
            raise InputError(f"config: {'unknown' if key in found else 'missing'} key {key}")


def _flag_error(error: Exception) -> str:
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    if isinstance(error, AttributeError | KeyError):  # an override of a key that does not exist
        return "unknown config key " + " ".join(lines).strip("\"'").replace("\\'", "").replace("'", "")
    return " ".join(lines)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
