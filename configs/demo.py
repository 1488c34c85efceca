"""Trains a 1.3M-parameter decoder on English news text, in a few minutes on two CPU cores.

python -m launch.prepare --config=configs/demo.py
python -m launch.train --config=configs/demo.py --workdir=runs/demo
"""

from jaxlab.config import default


def get_config():
    c = default()
    c.tokens = 1_800_000
    c.model.update(num_layers=4, d_model=128, num_heads=4, num_kv_heads=4, head_dim=32, d_ff=512, context=128)
    c.batch.update(tokens=2_048, context=128)
    c.schedule.update(peak_lr=2.0**-6, warmup_tokens=60_000)
    c.evaluate.every_tokens = 300_000
    c.checkpoint.every_tokens = 300_000
    return c
