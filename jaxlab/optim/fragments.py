"""Streaming DiLoCo's fragments (2501.18512): which parameters are synchronised together, and after which steps.

A fragment is a tree of the parameters' structure that says what belongs to it. Leaves below `blocks`, and where
shapes differ below `blocks_3` from layer 3 and so on, have a leading axis of stacked layers: theirs are int arrays of
places along it, or False for none. All others are True or False, whole.
"""

import re
from collections import defaultdict
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

SPLITS = ("strided", "sequential", "balanced")


class Event(NamedTuple):
    """What happens to a fragment after an inner step: its outer gradient is sent; one that was sent is received and
    applied; or both at once, sync."""

    kind: Literal["send", "receive", "sync"]
    fragment: int


def fragments(params: Any, count: int, how: str = "strided", stacked: str = "blocks") -> list[Any]:
    """`count` fragments of `params` (arrays or their shapes): for each, the tree of what belongs to it.

    how: `strided` (layer l in fragment l mod count, the paper's choice) or `sequential` (runs of layers), both with
    everything outside the layers in the first fragment; or `balanced` by bytes: layers and other leaves, the largest
    first, each to the lightest fragment. Raises ValueError for an unknown `how` and for more fragments than layers
    (balanced: than layers and other leaves).
    """
    layers, others = _sizes(params, stacked)
    units = layers | others if how == "balanced" else layers
    if how not in SPLITS:
        raise ValueError(f"how={how!r}: must be one of {', '.join(SPLITS)}")
    if not 1 <= count <= max(1, len(units)):
        raise ValueError(f"count={count}: must be 1 to {len(units)} for {how} fragments of {len(layers)} layers")
    if how == "balanced":
        home = _balanced(units, count)
    else:
        layer_home = (lambda i: i % count) if how == "strided" else (lambda i: i * count // len(layers))
        home = {i: layer_home(i) for i in layers} | dict.fromkeys(others, 0)

    def fragment(p):
        @cache
        def places(first, count):
            own = np.array([i for i in range(count) if home[first + i] == p])
            return own if len(own) else False

        def belongs(path, leaf):
            first = _first_layer(path, stacked)
            return home[path] == p if first is None else places(first, leaf.shape[0])

        return jax.tree_util.tree_map_with_path(belongs, params)

    return [fragment(p) for p in range(count)]


def take(tree: Any, fragment: Any, axis: int = 0) -> Any:
    """The leaves of a fragment, layers cut out along `axis` (1 for replicas); None where nothing belongs to it."""

    def cut(own, leaf):
        if isinstance(own, np.ndarray):
            return leaf[(slice(None),) * axis + (_layers(own),)]
        return leaf if own else None

    return jax.tree.map(cut, fragment, tree)


def put(tree: Any, fragment: Any, part: Any, axis: int = 0) -> Any:
    """The tree with a fragment's leaves replaced by those of `part`."""

    def replaced(own, leaf, new):
        if isinstance(own, np.ndarray):
            return leaf.at[(slice(None),) * axis + (_layers(own),)].set(new)
        return new if own else leaf

    return jax.tree.map(replaced, fragment, tree, part)


def due(step: int, sync_every: int, count: int) -> list[int]:
    """Fragments to synchronise after inner step `step` (from 1): fragment p at multiples of H plus its offset p H / P,
    so that communication spreads evenly over a round.

    2501.18512 has the offset with both signs; this is the sign of its example (H = 100, P = 2: the second fragment at
    150, not 50), so that none is synchronised before H steps of its own, and its first round is longer by its offset.
    """
    return [p for p in range(count) if step >= sync_every and step % sync_every == p * sync_every // count]


def events(step: int, *, sync_every: int, fragments: int, overlap: int = 0, last: bool = False) -> list[Event]:
    """What happens after inner step `step` (from 1), in order.

    A fragment that is due is synchronised at once or, with `overlap` = tau > 0, sent, and received tau steps later;
    what arrives precedes what leaves. After the `last` step everything under way is received, in the order it was
    sent, and every fragment synchronised, since each has been trained since it was last sent: no trailing part of a
    round is lost. A function of its arguments alone: a run that resumes in mid-round asks the same again.
    Raises ValueError unless 1 <= fragments <= sync_every and 0 <= overlap < sync_every.
    """
    if not 1 <= fragments <= sync_every:
        raise ValueError(f"fragments={fragments}: must be 1 to sync_every={sync_every}")
    if not 0 <= overlap < sync_every:
        raise ValueError(f"overlap={overlap}: must be 0 or more steps, and below sync_every={sync_every}")
    sent = range(max(step - overlap, sync_every), step if last else step - overlap + 1) if overlap else ()
    arriving = [Event("receive", p) for s in sent for p in due(s, sync_every, fragments)]
    leaving = range(fragments) if last else due(step, sync_every, fragments)
    return arriving + [Event("send" if overlap and not last else "sync", p) for p in leaving]


def _layers(own: np.ndarray) -> slice | np.ndarray:
    """As a slice where layers are evenly spaced: compilers cut and copy slices more cheaply than they gather."""
    step = own[1] - own[0] if len(own) > 1 else 1
    return slice(own[0], own[-1] + 1, step) if (np.diff(own) == step).all() else own


def _sizes(params: Any, stacked: str) -> tuple[dict, dict]:
    """Bytes of ({layer: bytes}, {path of any other leaf: bytes})."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    layers, others = defaultdict(int), {}
    for path, leaf in leaves:
        size, first = leaf.size * leaf.dtype.itemsize, _first_layer(path, stacked)
        if first is None:
            others[path] = size
        else:
            for i in range(leaf.shape[0]):
                layers[first + i] += size // leaf.shape[0]
    return dict(sorted(layers.items())), others


def first_layer(name: str, stacked: str = "blocks") -> int | None:
    """The first layer of a stack of layers, by the stack's name: 0 for `blocks`, 3 for `blocks_3`. None for a name
    that is not a stack's."""
    match = re.fullmatch(rf"{stacked}(?:_(\d+))?", name)
    return int(match[1] or 0) if match else None


def _first_layer(path, stacked: str) -> int | None:
    return first_layer(str(getattr(path[0], "key", "")), stacked)


def _balanced(sizes: dict, count: int) -> dict:
    """{unit: fragment}, greedy: the largest unit left to the lightest fragment; equals in their order."""
    home, load = {}, [0] * count
    for unit in sorted(sizes, key=sizes.get, reverse=True):
        home[unit] = int(np.argmin(load))
        load[home[unit]] += sizes[unit]
    return home
