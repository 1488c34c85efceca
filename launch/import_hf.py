"""Starts a run from the parameters in a folder of transformers: python -m launch.import_hf --config=configs/mine.py
--from=FOLDER --workdir=runs/mine; launch.train with the same config and workdir then trains on from them."""

from absl import flags

from jaxlab.files import local
from launch import entry

_FROM = flags.DEFINE_string("from", None, "folder with config.json and safetensors", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run to start", required=True)


def main(config, console) -> int:
    from jaxlab.data.store import load_tokenizer  # a second of imports, after the flags have been read
    from jaxlab.interop.hugging_face import load
    from jaxlab.interop.tokenizer import check_tokenizer
    from jaxlab.interop.workdir import start_from
    from jaxlab.train.build import build
    from jaxlab.train.log import say

    workdir, folder = local(_WORKDIR.value, "workdir"), local(_FROM.value, "from")
    run = build(config)
    check_tokenizer(load_tokenizer(config.data.store), folder)
    start_from(run, workdir, *load(folder), source=str(folder))
    say(console, f"{workdir}/checkpoints/0: the parameters of {folder}")
    return 0


if __name__ == "__main__":
    entry.run(main)
