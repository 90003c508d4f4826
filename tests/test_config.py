"""BertConfig: what is read, what is refused, what transformers reads back."""

from __future__ import annotations

import dataclasses
import json

import pytest

from minibert import models
from minibert.config import FORMAT_KEY, BertConfig, ignored_keys, is_own
from minibert.errors import ConfigError

# google-research/bert's bert_config.json: no model_type, no layer_norm_eps, pooler settings nobody reads
GOOGLE = {
    "attention_probs_dropout_prob": 0.1, "directionality": "bidi", "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 512, "num_attention_heads": 12, "num_hidden_layers": 12,
    "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128, "pooler_type": "first_token_transform", "type_vocab_size": 2,
    "vocab_size": 21128,
}  # fmt: skip


def test_google_config() -> None:
    config = BertConfig.from_dict(GOOGLE, "bert_config.json")
    assert (config.vocab_size, config.layer_norm_eps, config.gelu) == (
        21128,
        1e-12,
        "erf",
    )
    assert config.head_dropout == 0.1 and config.classifier_dropout is None
    assert ignored_keys(GOOGLE) == ()


def test_packaged_shapes() -> None:
    base, large, minilm = models.config("base"), models.config("large"), models.config("minilm")
    assert (base.hidden_size, base.num_hidden_layers, base.num_attention_heads) == (768, 12, 12)
    assert (large.hidden_size, large.num_hidden_layers, large.intermediate_size) == (1024, 24, 4096)
    assert (minilm.hidden_size, minilm.num_attention_heads, minilm.intermediate_size) == (384, 12, 1536)
    for config in map(models.config, ("tiny", "mini", "small", "medium")):
        assert config.hidden_size == 64 * config.num_attention_heads
    words = models.VOCAB.read_text(encoding="utf-8").splitlines()
    assert len(words) == base.vocab_size and words[101] == "[CLS]"
    with pytest.raises(ConfigError, match="no model shape 'huge'"):
        models.config("huge")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "roberta"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"hidden_act": "relu"},
        {"hidden_act": ["gelu"]},
        {"pruned_heads": {"0": [1]}},
        {"quantization_config": {"bits": 8}},
        {"problem_type": "multi_label_classification"},
        {"hidden_size": 770},
        {"hidden_size": "768"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 10**12},
        {"num_attention_heads": True},
        {"vocab_size": None},
        {"vocab_size": 30522.0},
        {"hidden_dropout_prob": 1},
        {"hidden_dropout_prob": 0.999995},
        {"attention_probs_dropout_prob": -0.1},
        {"layer_norm_eps": 0},
        {"layer_norm_eps": float("nan")},
        {"pad_token_id": 21128},
        {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"0": "a", "1": "a"}},
        {"id2label": {"0": "a", "1": 7}},
        {"id2label": {"0": ["a"], "1": "b"}, "label2id": {"b": 1}},
        {"id2label": {"0": "a\nb", "1": "c"}},
        {"id2label": {"0": "a\tb", "1": "c"}},
        {"id2label": {"0": "\ud800", "1": "c"}},
        {"layer_norm_eps": 10**400},
        {"hidden_dropout_prob": -(10**400)},
        {"id2label": ["a", "b"]},
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}},
        {"id2label": {"0": "a", "1": "b"}, "problem_type": "regression"},
        {"num_labels": -1},
    ],
    ids=str,
)
def test_refused(change: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        BertConfig.from_dict({**GOOGLE, **change}, "here/config.json")
    text = str(caught.value)
    assert text.startswith("here/config.json: ") and "\n" not in text and next(iter(change)) in text


def test_missing_key() -> None:
    with pytest.raises(ConfigError, match="x: hidden_size is missing"):
        BertConfig.from_dict({k: v for k, v in GOOGLE.items() if k != "hidden_size"}, "x")


def test_unknown_keys_are_errors_in_our_files_and_listed_in_others() -> None:
    raw = {**GOOGLE, "warp": 9, "weft": 1}
    assert BertConfig.from_dict(raw, "x").hidden_size == 768
    assert ignored_keys(raw) == ("warp", "weft")
    ours = {**BertConfig.from_dict(GOOGLE, "x").to_dict(), "warp": 9}
    assert is_own(ours)
    with pytest.raises(ConfigError, match="x: unknown setting warp"):
        BertConfig.from_dict(ours, "x", own=True)
    # transformers keeps our mark and adds its own keys when it saves what it read from us
    assert not is_own({**ours, "transformers_version": "5.0.0"})


def test_another_format_of_ours() -> None:
    raw = {**BertConfig.from_dict(GOOGLE, "x").to_dict(), FORMAT_KEY: 2}
    with pytest.raises(ConfigError, match="update minibert"):
        BertConfig.from_dict(raw, "x", own=True)


@pytest.mark.parametrize("labels, problem", [((), None), (("no", "yes"), None), (("score",), "regression")])
def test_round_trip(labels: tuple[str, ...], problem: str | None) -> None:
    config = dataclasses.replace(
        models.config("mini"),
        id2label=labels,
        problem_type=problem,
        hidden_act="gelu_new",
        classifier_dropout=0.3,
    )
    raw = json.loads(json.dumps(config.to_dict()))
    assert BertConfig.from_dict(raw, "x", own=True) == config
    assert ignored_keys(raw) == ()


def test_older_num_labels() -> None:
    assert BertConfig.from_dict({**GOOGLE, "num_labels": 3}, "x").id2label == (
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    )
