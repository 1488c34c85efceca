"""Layers whose spectrum has collapsed, by the metrics of a run's rows: {"post/METRIC/LAYER": value}."""

# A layer collapses where fewer than two directions' worth of variance is left (two equal ones have hard rank 2), or
# where under 1 % of the directions hold all of it. A spectrum i^-1.5 of 1,024 has 5.4 and 0.953.
HARD_RANK, CONCENTRATION = 2, 0.99
# So it is, for a while, of sound layers too: as long as a model learns no more than how frequent tokens are. Of the 325
# runs of results/spectral/laptop, 264 ended well below the entropy of single tokens and 61 did not; 97 and 58 of them
# were below a threshold at some time, 10 and 40 for so long that tokens grew by this factor.
LASTING = 8


def collapsed(row: dict) -> set[int]:
    """The layers whose down projection is fed from too few directions, of a row of metrics; NaN is too few."""
    layers = [int(key.rpartition("/")[2]) for key in row if key.startswith("post/hard_rank/")]
    return {
        i
        for i in layers
        if not row[f"post/hard_rank/{i}"] > HARD_RANK or not row[f"post/concentration/{i}"] < CONCENTRATION
    }


class Watch:
    """watch(row of metrics, the row before or {}) -> lines on it: its ranges over layers, and layers that have
    collapsed for so long that tokens have grown by LASTING, or have recovered from that. Each is named once."""

    def __init__(self):
        self._since, self._named = {}, set()  # {layer: tokens at which it had collapsed}

    def __call__(self, row: dict, before: dict) -> list[str]:
        if not self._since:  # of a run that was resumed
            self._since = dict.fromkeys(collapsed(before), before.get("tokens"))
        self._since = {i: self._since.get(i, row["tokens"]) for i in collapsed(row)}
        lasting = {i for i, tokens in self._since.items() if row["tokens"] >= LASTING * tokens or i in self._named}
        lines = [ranges(row)]
        for i in sorted(lasting ^ self._named):
            figures = f"hard rank {row[f'post/hard_rank/{i}']:.2f}, concentration {row[f'post/concentration/{i}']:.3f}"
            said = f"layer {i} recovered"
            if i in lasting:
                said = f"warning: layer {i} has collapsed since {self._since[i]:,} tokens"
            lines.append(f"{said}: {figures}")
        self._named = lasting
        return lines


def ranges(row: dict) -> str:
    """A line on a row of metrics: its ranges over layers."""

    def layers(name):
        return [value for key, value in row.items() if key.startswith(f"post/{name}/")]

    hard, soft = layers("hard_rank"), layers("soft_rank")
    return (
        f"hard rank {min(hard):.1f} to {max(hard):.1f}, soft {min(soft):.1f} to {max(soft):.1f}; "
        f"{min(layers('tokens_per_dimension')):.1f} tokens a dimension"
    )
