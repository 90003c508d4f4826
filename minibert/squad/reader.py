"""BERT with the head of run_squad.py: for every token, how likely an answer starts there and how likely it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from minibert import batch, ops
from minibert.autograd import Tensor, untaped
from minibert.batch import Batch
from minibert.bert import Bert
from minibert.config import BertConfig
from minibert.kernels.devices import Device
from minibert.policies import Policy
from minibert.random import Key
from minibert.squad.spans import Top
from minibert.tokenizer import Features

BATCH = 16  # windows computed at a time outside training, at most


class Reader(Bert):
    """Two outputs a token, straight from the last layer: no pooler, no dropout of its own.

    A batch's labels are the first and the last token of each window's answer, (S, 2) int32; both 0, [CLS], mean that
    the window has none.
    """

    def __init__(self, config: BertConfig, device: Device):
        super().__init__(config, 2, device)

    def _head_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"qa_outputs.weight": (2, self.config.hidden_size), "qa_outputs.bias": (2,)}

    def logits(self, batch: Batch, key: Key | None = None, policy: Policy | None = None) -> Tensor:
        """(T, 2): start and end, in the device's float type."""
        x, p = self.encode(batch, key, policy), self.head
        return ops.linear(x, p["qa_outputs.weight"], p["qa_outputs.bias"], self.device.float_type)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean of both cross entropies over each window's tokens: (S,)."""
        starts, ends = batch.labels
        return ops.span_cross_entropy(logits, batch.offsets, starts, ends)


def tops(reader: Reader, windows: Iterable[Features], n: int) -> Iterator[Top]:
    """The n highest logits of each window, batch by batch: all that is kept of them.

    Windows may come in any parts: batches are those of all windows together, and so are their bits.
    """
    device, n = reader.device, min(n, reader.config.max_position_embeddings)  # a window has no more
    together = batch.regrouped(windows, BATCH, reader.at_once)
    if device.backend == "tpu":
        from minibert.tpu import inference

        for some in together:
            reader.check(some)
            yield inference.tops(reader, some, n, BATCH)
        return
    with device.session(), untaped():
        for some in together:
            reader.check(some)
            part = batch.pack(device, some, range(len(some)), None)
            logits = reader.logits(part).data
            values = device.empty((len(part), 2, n), device.float_type, "activations")
            places = device.empty((len(part), 2, n), "int32", "activations")
            firsts = device.empty((len(part), 2), device.float_type, "activations")
            device.top_logits.forward(values, places, logits, part.offsets)
            device.take_rows.forward(firsts, logits, part.firsts)
            yield Top(*(device.numpy(found).copy() for found in (values, places, firsts)))
