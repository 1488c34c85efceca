"""Runs lm-evaluation-harness with our model class: python -m launch.harness run --model jaxlab
--model_args workdir=runs/demo --tasks piqa; all other arguments are the harness's own."""

from jaxlab.config import InputError
from launch import entry


def main(*_) -> int:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise InputError("launch.harness needs the package lm-eval: pip install 'jaxlab[harness]'") from error
    import jaxlab.interop.harness  # noqa: F401, registers the class

    cli_evaluate()
    return 0


if __name__ == "__main__":
    entry.exit_with(list, main)
