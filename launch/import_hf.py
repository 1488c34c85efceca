"""Starts a run from a folder of transformers: python -m launch.import_hf --config=configs/mine.py --from=FOLDER
--workdir=runs/mine; then launch.train with the same config and workdir goes on from there."""

from pathlib import Path

from absl import flags

from launch import entry

_FROM = flags.DEFINE_string("from", None, "folder with config.json and safetensors", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run to start", required=True)


def main(config, console) -> int:
    from jaxlab.data.store import load_tokenizer  # a second of imports, after the flags have been read
    from jaxlab.interop.hugging_face import load
    from jaxlab.interop.tokenizer import check_tokenizer
    from jaxlab.interop.workdir import start_from
    from jaxlab.train.build import build

    run = build(config)
    check_tokenizer(load_tokenizer(config.data.store), Path(_FROM.value))
    start_from(run, _WORKDIR.value, *load(_FROM.value), source=_FROM.value)
    console.print(f"{_WORKDIR.value}/checkpoints/0: the parameters of {_FROM.value}")
    return 0


if __name__ == "__main__":
    entry.run(main)
