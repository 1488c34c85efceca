"""lm-evaluation-harness with our model class: python -m launch.harness run --model jaxlab
--model_args workdir=runs/demo --tasks piqa; all other arguments are the harness's own."""

import sys

from jaxlab.config import InputError


def main() -> int:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        print("error: launch.harness needs the package lm-eval: pip install 'jaxlab[harness]'", file=sys.stderr)
        return 2
    import jaxlab.interop.harness  # noqa: F401, registers the class

    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
