"""Checks that the data of a fit are columns of numbers, with errors that name the column and the row."""

import numpy as np

from jaxlab.config import InputError


def columns(values: dict, positive=()) -> list[np.ndarray]:
    """The columns [n] of {name: numbers [n]} as float64.

    Raises InputError, naming the column and its first bad row, for values that are not finite numbers (texts and truth
    values are not numbers), for values not above 0 in columns named in `positive`, and for different lengths.
    """
    checked = {name: _column(name, column, name in positive) for name, column in values.items()}
    first, *_ = checked
    for name, column in checked.items():
        if column.shape != checked[first].shape:
            raise InputError(f"{name} has shape {column.shape}: must be that of {first}, {checked[first].shape}")
    return list(checked.values())


def _column(name: str, values, positive: bool) -> np.ndarray:
    try:
        column = np.asarray(values)
    except ValueError:  # rows of different lengths
        column = np.empty(len(values), object)
    if np.ma.is_masked(values):
        raise InputError(f"{name} has masked rows: leave them out of all columns")
    if column.ndim != 1:
        raise InputError(f"{name} has shape {column.shape}: must be one column")
    if not len(column):
        raise InputError(f"{name} is empty: must have a value in each row")
    if column.dtype.kind not in "iuf":  # one text makes texts of all numbers: check the original values
        column = np.array([_number(name, row, value) for row, value in enumerate(values)])
    column = column.astype(np.float64)
    for row in np.flatnonzero(~(np.isfinite(column) & ((column > 0) | (not positive))))[:1]:
        raise InputError(f"{name}, row {row}: {column[row]} must be finite{' and above 0' if positive else ''}")
    return column


def _number(name: str, row: int, value) -> float:
    try:
        if not isinstance(value, str | bytes | bool | np.bool_):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name}, row {row}: {str(value)[:60]!r} is not a number") from None


def check_given(names, values: dict, what: str = "input") -> None:
    """Raises InputError for the first of the names that is not among the values."""
    for name in names:
        if name not in values:
            raise InputError(f"{what} {name!r} is missing: there are {', '.join(map(str, values)) or 'none'}")


def check_level(level: float) -> None:
    """Raises InputError unless 0 < level < 1."""
    if not (isinstance(level, int | float) and 0 < level < 1):
        raise InputError(f"level={level}: must be between 0 and 1, as in 0.95")


def relative_weights(weights, y: np.ndarray) -> np.ndarray:
    """Weights [n] of the rows of y as multiples of their mean; ones for None. InputError as `columns`."""
    if weights is None:
        return np.ones_like(y)
    _, weights = columns({"y": y, "weights": weights}, {"weights"})
    return weights / weights.mean()


def explained(squares, target, weights) -> float:
    """R^2: 1 - sum of the weighted squared residuals over that of the target around its weighted mean; nan if
    the target is the same in every row."""
    spread = np.sum(weights * (target - np.average(target, weights=weights)) ** 2)
    return float(1 - np.sum(squares) / spread) if np.ptp(target) > 0 else np.nan
