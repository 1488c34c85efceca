"""Writes a trained model as a folder of transformers: python -m launch.export --config=configs/demo.py
--workdir=runs/demo --to=exported/demo"""

import logging
from pathlib import Path

from absl import flags

from launch import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)
_TO = flags.DEFINE_string("to", None, "folder to write", required=True)
_DTYPE = flags.DEFINE_string("dtype", "float32", "of the tensors: float32 or bfloat16")


def main(config, console) -> int:
    from jaxlab.data.store import load_tokenizer  # a second of imports, after the flags have been read
    from jaxlab.interop.hugging_face import export
    from jaxlab.interop.workdir import newest_params
    from jaxlab.train.build import build

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Orbax: what matters of it is raised
    run = build(config)
    params = newest_params(run, _WORKDIR.value)
    export(_TO.value, params, run.program.model.c, load_tokenizer(config.data.store), _DTYPE.value)
    for path in sorted(Path(_TO.value).iterdir()):
        console.print(f"{path}  {path.stat().st_size:,} bytes", highlight=False)
    return 0


if __name__ == "__main__":
    entry.run(main)
