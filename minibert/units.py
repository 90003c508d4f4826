"""The unit of a regression's labels: training sees them as deviations from their mean, users as they stand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minibert.bert import Bert
from minibert.checkpoint import names
from minibert.errors import DataError
from minibert.evaluation import Split
from minibert.tasks import Example, Task
from minibert.tasks.table import TableTask

WEIGHT, BIAS = names.HEAD
FINEST = 0.1  # of the deviation: between two of float32's numbers about the mean


@dataclass(frozen=True)
class Unit:
    """A label is `mean` and so many times `deviation`: the training labels' own, so that a run finds them again."""

    mean: float
    deviation: float

    def standard(self, data: Split) -> Split:
        """The data with their labels as training sees them."""
        labels = (data.labels.astype(np.float64) - self.mean) / self.deviation
        return dataclasses.replace(data, labels=labels.astype(np.float32))

    def standard_head(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The head among a model's arrays, whose outputs are in the labels' unit, as training goes on with it."""
        return _head(arrays, 1 / self.deviation, -self.mean / self.deviation)

    def restore(self, bert: Bert) -> None:
        """Folds the unit into the head of a trained model: from now on its outputs are in that of the labels."""
        arrays = bert.arrays()
        bert.fill(arrays | _head(arrays, self.deviation, self.mean))


def _head(arrays: Mapping[str, np.ndarray], factor: float, summand: float) -> dict[str, np.ndarray]:
    """The classifier whose output is that of the one in `arrays`, times `factor`, plus `summand`."""
    weight, bias = (arrays[name].astype(np.float64) * factor for name in (WEIGHT, BIAS))
    return {WEIGHT: weight.astype(np.float32), BIAS: (bias + summand).astype(np.float32)}


def of_labels(task: Task, examples: Sequence[Example]) -> Unit | None:
    """The unit of these training examples; None where labels are learnt as they stand: classes, and STS-B, as
    transformers does. DataError where there is nothing to learn, or float32 cannot tell what.
    """
    if not (task.regression and isinstance(task, TableTask)):
        return None
    given = np.array([example.label for example in examples], np.float64)
    where = f"{task.files['train']}: column {task.label!r}"
    if not np.ptp(given):
        raise DataError(f"{where} holds the one number {given[0]:g}; it needs two or more")
    labels = given.astype(np.float32).astype(np.float64)
    mean = math.fsum(labels) / len(labels)  # exact sums: a run may be resumed on another machine
    deviation = math.sqrt(math.fsum((labels - mean) ** 2) / len(labels))
    if (step := np.spacing(np.float32(abs(mean)))) > FINEST * deviation:
        raise DataError(
            f"{where}: its numbers, {given.min():.15g} to {given.max():.15g}, differ too little for their size: in "
            f"float32 they go by steps of {step:g}; subtract {given.min():.15g} from each"
        )
    return Unit(mean, deviation)
