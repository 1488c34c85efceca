"""Writes a trained model as a folder that transformers opens: python -m launch.export --config=configs/demo.py
--workdir=runs/demo --to=exported/demo"""

from absl import flags

from jaxlab.files import local
from launch import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)
_TO = flags.DEFINE_string("to", None, "folder to write", required=True)
_DTYPE = flags.DEFINE_string("dtype", "float32", "type of the tensors: float32 or bfloat16")


def main(config, console) -> int:
    from jaxlab.data.store import load_tokenizer  # a second of imports, after the flags have been read
    from jaxlab.interop.hugging_face import check_export, export
    from jaxlab.interop.workdir import newest_params
    from jaxlab.train.build import build
    from jaxlab.train.log import say

    workdir, folder = local(_WORKDIR.value, "workdir"), local(_TO.value, "to")
    run, tokenizer = build(config), load_tokenizer(config.data.store)
    model = run.program.model.c
    check_export(folder, model, tokenizer, _DTYPE.value)
    export(folder, newest_params(run, workdir), model, tokenizer, _DTYPE.value)
    for path in sorted(folder.iterdir()):
        say(console, f"{path}  {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    entry.run(main)
