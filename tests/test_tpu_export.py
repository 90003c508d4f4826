"""minibert tpu export: its programs give the engine's numbers with nothing but jax and numpy; bad input is one line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import models
from commands import assert_one_line, contents, environment, make_checkpoint, minibert_in_process
from minibert import checkpoint
from minibert.kernels import devices
from minibert.model import outputs
from minibert.training import Trainer

pytest.importorskip("jax")
pytest.importorskip("flatbuffers")

from minibert.tpu import batches, run  # noqa: E402 - they need jax

LENGTH, BATCH = 40, 4
OWN = {"program", "parameters.safetensors", "manifest.json", "run.py", "flatbuffers.zip", "example.npz"}
# All that jax needs, and so the whole of an environment that has jax and numpy.
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum")
# Half the time of compiling, and numbers are the same to rounding.
ALONE = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": None, "XLA_FLAGS": "--xla_backend_optimization_level=0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' small classifier as a checkpoint, and a prediction and an update exported from it."""
    root = tmp_path_factory.mktemp("export")
    checkpoint.save(root / "checkpoint", models.CONFIG, models.arrays())
    for what in ("predict", "train"):
        done = minibert_in_process("tpu", "export", "--what", what, "--checkpoint", root / "checkpoint",
                                   "--max-seq-length", str(LENGTH), root / what)  # fmt: skip
        assert done.code == 0, done.err
        assert done.out == f"{root / what}: python {root / what}/run.py {root / what}/example.npz RESULTS.npz\n"
        assert {path.name for path in (root / what).iterdir()} == OWN
    assert {path.name for path in root.iterdir()} == {"checkpoint", "predict", "train"}
    return root


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return models.trainer(batch_size=BATCH)


@pytest.fixture(scope="module")
def inputs(folder: Path, trainer: Trainer) -> list[Path]:
    """Two batches of the trainer, as files of inputs."""
    (stage,), paths = trainer.stages, []
    for step in range(2):
        padded = batches.pad(stage.data.features, stage.numbers(step), stage.data.labels, LENGTH, BATCH)
        scalars = {"seed": trainer.settings.seed, "step": step, "rate": stage.rate(step)}
        paths.append(folder / f"batch-{step}.npz")
        np.savez(paths[-1], **padded, **scalars)
    return paths


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Python with nothing but jax and what jax needs on its path: no site-packages, no checkout."""
    site = tmp_path_factory.mktemp("site")
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        assert found and found.origin
        for pattern in (name, f"{name}.libs", f"{name}-*.dist-info"):
            for path in Path(found.origin).parents[1].glob(pattern):
                (site / path.name).symlink_to(path)
    code = (
        f"import sys, runpy, importlib.util; sys.path.append({str(site)!r}); sys.argv = sys.argv[1:]; "
        "assert not any(map(importlib.util.find_spec, ('minibert', 'flatbuffers', 'numba', 'safetensors'))); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return [sys.executable, "-I", "-S", "-c", code]


def call(python: list[str], folder: Path, *paths: Path) -> list[dict]:
    done = subprocess.run([*python, str(folder / "run.py"), *map(str, paths)], capture_output=True, text=True,
                          cwd=folder.parent, env=environment(ALONE))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_run_py_is_short_and_a_copy(folder: Path) -> None:
    source = Path(run.__file__).read_bytes()
    assert len(source.splitlines()) < 75 and b"minibert." not in source
    assert (folder / "train" / "run.py").read_bytes() == (folder / "predict" / "run.py").read_bytes() == source


def test_the_manifest_tells_all_that_goes_in_and_comes_out(folder: Path) -> None:
    manifest = json.loads((folder / "train" / "manifest.json").read_text())
    assert manifest["platforms"] == ["tpu", "cpu", "cuda"] and manifest["what"] == "train"
    assert manifest["config"] == models.CONFIG.to_dict() and {"jax", "numpy"} <= manifest["versions"].keys()
    assert manifest["inputs"]["ids"] == {"shape": ["b", LENGTH], "dtype": "int32"}
    assert manifest["inputs"]["rate"] == {"shape": [], "dtype": "float32"}
    assert manifest["results"] == {name: {"shape": [], "dtype": "float32"} for name in ("loss", "norm")}
    qkv = "encoder.layer/attention.self.qkv.weight"
    assert manifest["state"][f"params/{qkv}"] == manifest["state"][f"m/{qkv}"] == {
        "shape": [2, 72, 24], "dtype": "float32",
    }  # fmt: skip
    stored = run.tensors(folder / "train" / "parameters.safetensors")
    assert stored.keys() == {name for name in manifest["state"] if name.startswith("params/")}
    weights = models.arrays()
    expected = [weights[f"encoder.layer.1.attention.self.{part}.weight"] for part in ("query", "key", "value")]
    np.testing.assert_array_equal(stored[f"params/{qkv}"][1], np.concatenate(expected))


def test_a_prediction_has_the_engine_s_numbers(folder: Path, alone: list[str], inputs: list[Path]) -> None:
    split = models.split()
    more = folder / "three.npz"
    np.savez(more, **batches.pad(split.features, range(3), None, LENGTH, 3))  # another batch size
    lines = call(alone, folder / "predict", inputs[0], more, folder / "logits.npz")
    with np.load(folder / "logits.npz") as file:
        (name,) = file.files
        logits = file[name]
    assert name == "logits" and logits.shape == (BATCH + 3, 3)
    np.testing.assert_allclose([row for line in lines for row in line["logits"]], logits, rtol=1e-6)
    bert = models.bert(devices.open("cpu"))
    (stage,) = models.trainer(batch_size=BATCH).stages
    expected = outputs(bert, split.features)[[*stage.numbers(0), 0, 1, 2]]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_training_has_the_engine_s_numbers(
    folder: Path, alone: list[str], inputs: list[Path], trainer: Trainer
) -> None:
    lines = call(alone, folder / "train", *inputs, folder / "trained.npz")
    for step, line in enumerate(lines):
        done = trainer.step(step)
        np.testing.assert_allclose([*line["loss"], *line["norm"]], [done.loss, done.norm], rtol=1e-4)
    with np.load(folder / "trained.npz") as file:
        assert file["loss"].shape == (2,)
        got = file["state/params/encoder.layer/intermediate.dense.weight"]
    before = np.stack([models.arrays()[f"encoder.layer.{i}.intermediate.dense.weight"] for i in range(2)])
    after = np.stack([models.weights(trainer)[f"encoder.layer.{i}.intermediate.dense.weight"] for i in range(2)])
    assert np.abs(got - after).max() <= 1e-3 * np.abs(after - before).max()


def test_run_exported_does_the_same(folder: Path, inputs: list[Path]) -> None:
    done = minibert_in_process("tpu", "run-exported", folder / "predict", inputs[0], folder / "again.npz")
    assert done.code == 0 and json.loads(done.out)["inputs"] == str(inputs[0])
    with np.load(folder / "again.npz") as file:
        assert file["logits"].shape == (BATCH, 3)


@pytest.mark.slow
def test_a_fresh_environment_of_jax_and_numpy_suffices(folder: Path, inputs: list[Path], tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    done = subprocess.run([python, "-m", "pip", "install", "-q", "jax", "numpy"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"jax and numpy cannot be installed: {done.stderr[-200:]}")
    call([str(python)], folder / "predict", inputs[0], folder / "fresh.npz")
    call([sys.executable], folder / "predict", inputs[0], folder / "here.npz")
    with np.load(folder / "fresh.npz") as fresh, np.load(folder / "here.npz") as here:
        np.testing.assert_allclose(fresh["logits"], here["logits"], rtol=0, atol=1e-6)
    call([str(python)], folder / "train", inputs[0], folder / "fresh.npz")


def test_a_reader_and_a_run_are_exported_as_what_they_are(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "reader", models.CONFIG, {
        name: array for name, array in models.arrays().items() if not name.startswith(("pooler", "classifier"))
    } | {"qa_outputs.weight": np.ones((2, 24), np.float32), "qa_outputs.bias": np.zeros(2, np.float32)})  # fmt: skip
    done = minibert_in_process("tpu", "export", "--what", "predict", "--checkpoint", tmp_path / "reader",
                               tmp_path / "out")  # fmt: skip
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["spans"] is True and manifest["max_seq_length"] == models.CONFIG.max_position_embeddings
    assert manifest["results"] == {"logits": {"shape": ["b", 40, 2], "dtype": "float32"}}


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "no-head")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    before = contents(tmp_path)

    def refused(*arguments: str | Path, say: str, code: int = 1) -> None:
        done = minibert_in_process("tpu", "export", "--checkpoint", tmp_path / "no-head", *arguments)
        assert_one_line(done, code, say)
        assert contents(tmp_path) == before

    refused("--what", "predict", tmp_path / "out", say="has no head to predict with")
    refused("--what", "train", tmp_path / "full", say="is there already; give a new folder")
    refused("--what", "train", "gs://bucket/out", say="is written to a local folder")
    refused("--what", "train", "--max-seq-length", "33", tmp_path / "out", say="give 3 to 32")
    refused(tmp_path / "out", say="--what", code=2)
    refused("--what", "train", "--checkpoint", "no-such", tmp_path / "out", say="no-such")
    refused("--what", "train", tmp_path / "full" / "mine" / "out", say="cannot write")


def test_bad_inputs_are_one_line(folder: Path, tmp_path: Path) -> None:
    predict = folder / "predict"
    with np.load(predict / "example.npz") as file:
        arrays = dict(file)
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "missing.npz", ids=arrays["ids"])
    np.savez(tmp_path / "short.npz", **arrays | {"ids": arrays["ids"][:, :7]})
    np.savez(tmp_path / "fewer.npz", **arrays | {"ids": arrays["ids"][:1]})
    whole = (predict / "example.npz").read_bytes()
    np.savez(tmp_path / "large.npz", **arrays | {"ids": arrays["ids"] + 10**6})
    np.savez(tmp_path / "halves.npz", **arrays | {"lengths": arrays["lengths"] + 0.5})
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    for name, say in (("text", "is no .npz file with the arrays ids, segments, lengths"), ("missing", "segments"),
                      ("half", "half.npz is no .npz file"), ("large", "ids are from 0 to"),
                      ("halves", "lengths has numbers that are no int32"),
                      ("short", "Shape mismatch"), ("fewer", "do not match"), ("absent", "absent.npz")):  # fmt: skip
        path = tmp_path / f"{name}.npz"
        done = minibert_in_process("tpu", "run-exported", predict, path, tmp_path / "results.npz")
        assert_one_line(done, 1, say)
        assert not list(tmp_path.glob("results.npz*"))
    assert_one_line(minibert_in_process("tpu", "run-exported", tmp_path, path, path), 1, "manifest.json")
    assert_one_line(minibert_in_process("tpu", "run-exported", predict, path), 2, "INPUTS")


def test_a_damaged_program_is_not_run(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "predict").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    program = bytearray((tmp_path / "program").read_bytes())
    program[len(program) // 2] ^= 1
    (tmp_path / "program").write_bytes(program)
    done = minibert_in_process("tpu", "run-exported", tmp_path, tmp_path / "example.npz", tmp_path / "results.npz")
    assert_one_line(done, 1, "program is damaged: export again")
