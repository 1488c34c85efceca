"""A small decoder learns modern English from news text.

python -m launch.prepare --config=configs/demo.py
python -m launch.train --config=configs/demo.py --workdir=runs/demo
"""

from jaxlab.config import default


def get_config():
    c = default()
    return c
