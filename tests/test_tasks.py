"""Each task on a fixture in its true layout, one's own tables, and every way in which a data file can be bad."""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path

import pytest

import minibert
from minibert import datasets, tasks
from minibert.errors import ConfigError, DataError, MinibertError
from minibert.tasks.glue import TASKS
from minibert.tasks.table import labels_told, read_pairs, table

GLUE = Path(__file__).parent / "fixtures" / "glue"

# task, split, rows, labels' names in the file's order (None where the file has none)
C, E, N = "contradiction", "entailment", "neutral"
NLI = [E, C, N, C, E, N, E, C, N, N]
RTE = ["not_entailment" if label != E else E for label in NLI]
QNLI = [E if i in (0, 2, 4, 5, 7) else "not_entailment" for i in range(10)]
ALTERNATE = ["1", "0"] * 5
STS = [5.0, 1.2, 4.75, 0.4, 5.0, 2.6, 4.8, 2.0, 4.2, 1.75]
WNLI = list("1110101001")
XNLI = [E, C, N, C, E, N, C, E, N, N]
LAYOUTS = [
    ("cola", ALTERNATE, ALTERNATE[::-1]),
    ("sst-2", ALTERNATE, ALTERNATE[::-1]),
    ("mrpc", ALTERNATE, ALTERNATE[::-1]),
    ("sts-b", STS, STS[::-1]),
    ("qqp", ALTERNATE[:8], ALTERNATE[7::-1]),
    ("mnli", NLI, NLI),
    ("qnli", QNLI, QNLI[::-1]),
    ("rte", RTE, RTE[::-1]),
    ("wnli", WNLI, WNLI[::-1]),
    ("xnli", XNLI, XNLI[:5]),
]


def labels_of(task: tasks.Task, split: str) -> list[str | float | None]:
    examples = task.read(split, GLUE)
    if task.regression:
        return [example.label for example in examples]
    return [None if example.label is None else task.labels[int(example.label)] for example in examples]


@pytest.mark.parametrize(("name", "train", "dev"), LAYOUTS)
def test_each_layout_is_read(name: str, train: list, dev: list) -> None:
    task = tasks.get(name)
    assert labels_of(task, "train") == train
    assert labels_of(task, "dev") == dev
    assert set(labels_of(task, "test")) == ({None} if name != "xnli" else {E, C, N})
    for split in task.splits:
        assert task.path(split, GLUE).is_file()
        for example in task.read(split, GLUE):
            assert example.text_a
            assert (example.text_b is not None) == task.pairs
            assert not any(mark in example.text_a + (example.text_b or "") for mark in "\ufeff\r\n\t")


@pytest.mark.parametrize(
    ("name", "split", "row", "id", "text_a", "text_b"),
    [
        ("cola", "train", 4, "4", '"Wait, who painted the fence?', None),
        ("cola", "dev", 9, "9", "The ferry left the harbour before the fog came down.", None),  # no newline after it
        ("cola", "test", 0, "0", "The ferry left the harbour before the fog came down.", None),  # has a header
        ("sst-2", "dev", 9, "9", "a warm , funny and oddly moving portrait of two brothers ", None),
        ("mrpc", "train", 3, "3", 'He called it " a quiet success .', "A critic called it a loud failure ."),
        ("mrpc", "dev", 0, "0", "The museum bought 12 paintings .", None),
        ("mrpc", "test", 8, "8", "Rain delayed the launch &amp; the parade .", None),  # entities stay as they are
        ("sts-b", "train", 1, "1", "Prices rose 3.1 percent in the north .", None),
        ("qqp", "train", 4, "4", "Why is the sky blue?", "Why does the sky look blue?"),  # after two short rows
        ("mnli", "dev-mismatched", 9, "9", "A man is tuning a piano in an empty hall.", "A piano is being tuned."),
        ("mnli", "test-mismatched", 0, "0", "The report has 40 pages.", "The report is short."),
        ("qnli", "train", 7, "7", 'Which 5" gun was used?', 'The ship carried one 5" gun.'),
        ("ax", "dev", 3, "3", "'No,' she said, \"not yet.", "She agreed at once."),
        ("ax", "test", 3, "3", "'No,' she said, \"not yet.", "She agreed at once."),
        ("xnli", "dev", 3, "3", "她说“还没到时候。", "她马上同意了。"),  # the English rows before it are left out
    ],
)  # fmt: skip
def test_single_rows(name: str, split: str, row: int, id: str, text_a: str, text_b: str | None) -> None:
    example = tasks.get(name).read(split, GLUE)[row]
    assert (example.id, example.text_a) == (id, text_a)
    assert text_b is None or example.text_b == text_b


def test_the_diagnostic_set_has_labels_in_one_of_its_files() -> None:
    ax = tasks.get("AX")
    assert labels_of(ax, "dev") == NLI
    assert labels_of(ax, "test") == [None] * 10
    assert ax.labels == tasks.get("mnli").labels
    with pytest.raises(ConfigError, match="no split 'train'"):
        ax.read("train", GLUE)


def test_label_orders_are_googles() -> None:
    assert tasks.get("mnli").labels == tasks.get("xnli").labels == ("contradiction", "entailment", "neutral")
    assert tasks.get("rte").labels == tasks.get("qnli").labels == ("entailment", "not_entailment")
    assert tasks.get("mrpc").labels == ("0", "1")
    assert tasks.get("sts-b").labels == () and tasks.get("sts-b").regression and tasks.get("sts-b").num_outputs == 1


def test_names() -> None:
    assert [task.name for task in TASKS] == [
        "cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "qnli", "rte", "wnli", "ax", "xnli"
    ]  # fmt: skip
    assert tasks.get("SST2") is tasks.get("sst_2") is tasks.get("SST-2")
    assert tasks.get("mnli").dev_splits == ("dev", "dev-mismatched")
    with pytest.raises(ConfigError, match=r"no task 'mprc'; did you mean mrpc\?"):
        tasks.get("mprc")


def test_what_can_be_trained_is_what_training_names() -> None:
    with pytest.raises(ConfigError) as to_train:
        tasks.get("sqaud", to_train=True)
    told = str(to_train.value)
    assert "; did you mean squad? (known: cola, " in told and ", xnli, squad, squad2" in told and "ax," not in told
    with pytest.raises(ConfigError, match="no task 'sqaud' .* wnli, ax, xnli, and table"):
        tasks.get("sqaud")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("squad", r'squad: answers questions: train it with minibert finetune squad, .*finetune_squad\("squad"\)'),
        ("SQuAD2", r'SQuAD2: answers questions: .*finetune_squad\("squad2"\)'),
        ("table", r'table: is made of your own files: give train and dev, in Python minibert.finetune\("table", train'),
    ],
)
def test_tasks_that_are_trained_elsewhere_say_where(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        minibert.finetune(name)


def test_short_rows_of_qqp_are_skipped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(tasks.get("qqp").read("train", GLUE)) == 8
    assert "2 rows have too few columns, first line 6: skipped" in caplog.text


@pytest.mark.parametrize("folder", ["MRPC", "mrpc", "glue/MRPC", "glue/mrpc"])
def test_data_dir_is_the_tasks_folder_or_the_one_above(tmp_path: Path, folder: str) -> None:
    shutil.copytree(GLUE / "MRPC", tmp_path / folder)
    for data_dir in (tmp_path / folder, (tmp_path / folder).parent):
        assert len(tasks.get("mrpc").read("train", data_dir)) == 10


def damaged(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return tmp_path


HEADER = b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
GOOD = b"1\t10\t20\tone\ttwo\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train.tsv: empty"),
        (b" \n\n", "train.tsv: empty"),
        (HEADER, "no rows below the header"),
        (b"\xef\xbb\xbf" + HEADER, "no rows below the header"),
        (GOOD + GOOD, "line 1: no column '#1 String'"),
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", "line 1: no column '#1 String'"),
        (b"index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb\n", "line 1: no column 'Quality'"),
        (HEADER + GOOD + b"1\t10\t20\tone", "no newline at the end: cut off"),
        (HEADER + GOOD + b"1\t10\t20\tone\tsome of tw", "no newline at the end: cut off"),
        (HEADER + GOOD + b"1\t10\t20\tone\n" + GOOD, "line 3: 4 of 5 columns"),
        (HEADER + GOOD + b"\n" + GOOD, "line 3: 1 of 5 columns"),
        (HEADER + GOOD + b"2\t10\t20\tone\ttwo\n", r"line 3: unknown label '2' \(known: 0, 1\)"),
        (HEADER + GOOD + b"\t10\t20\tone\ttwo\n", "line 3: unknown label ''"),
        (HEADER + GOOD + b"1\t10\t20\to\xffe\ttwo\n", "line 3: not UTF-8"),
        (HEADER + GOOD + b"1\t10\t20\to\0e\ttwo\n", "line 3: a NUL byte"),
        ((HEADER + GOOD).decode().encode("utf-16"), "line 1: UTF-16, .* save it as UTF-8"),
        (b"\xfe\xff" + (HEADER + GOOD).decode().encode("utf-16-be"), "line 1: UTF-16"),
        ((HEADER + GOOD).decode().encode("utf-16-le"), "line 1: a NUL byte"),
    ],
)
def test_a_bad_file_gets_one_line_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    data_dir = damaged(tmp_path, "MRPC/train.tsv", content)
    with pytest.raises(DataError, match=message) as error:
        tasks.get("mrpc").read("train", data_dir)
    assert str(tmp_path / "MRPC" / "train.tsv") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_or_folder_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.tsv: no such file; .*--data-dir MRPC/ or the folder that holds it"):
        tasks.get("mrpc").read("train", tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        tasks.get("mrpc").read("train", tmp_path / "nowhere")
    (tmp_path / "MRPC" / "train.tsv").mkdir(parents=True)
    with pytest.raises(DataError, match="train.tsv: is a folder; give a file"):
        tasks.get("mrpc").read("train", tmp_path)
    path = write(tmp_path / "a.csv", "text,label\na,0\nb,1\n")
    with pytest.raises(DataError, match=r"a.csv: is a file, not a folder; give --data-dir MRPC/"):
        tasks.get("mrpc").read("train", path)
    with pytest.raises(DataError, match=r"a.csv: is a file, not a folder; give one with train-v1.1.json"):
        datasets.squad_files("squad", path)
    for read in (table, read_pairs):
        with pytest.raises(DataError, match="dir.tsv: is a folder; give a file"):
            (tmp_path / "dir.tsv").mkdir(exist_ok=True)
            read(tmp_path / "dir.tsv")


@pytest.mark.parametrize(("missing", "option"), [("text_a", "--text-a"), ("text_b", "--text-b"), ("label", "--label")])
def test_a_column_that_is_missing_is_told_on_the_header_with_its_option(
    tmp_path: Path, missing: str, option: str
) -> None:
    columns = {"text_a": "question", "text_b": "answer", "label": "verdict", missing: "none"}
    path = write(tmp_path / "a.csv", "question,answer,verdict\na,b,0\n")
    with pytest.raises(DataError) as error:
        table(dev=path, labels=["0", "1"], **columns).read("dev")
    told = f"line 1: no column 'none' (there are: question, answer, verdict); name the right one with {option}"
    assert told in str(error.value)


def test_an_id_that_is_missing_is_told_on_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,0\n")
    with pytest.raises(DataError, match=r"line 1: no column 'key' .*; rename the right one"):
        table(test=path, labels=["0", "1"], id="key").read("test")
    assert table(test=write(path, "text,other\na,0\n"), labels=["0", "1"]).read("test")[0].label is None


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("sts-b", "STS-B/train.tsv", b"sentence1\tsentence2\tscore\na\tb\tx\n", "line 2: the label 'x' is no number"),
        ("sts-b", "STS-B/train.tsv", b"sentence1\tsentence2\tscore\na\tb\tnan\n", "line 2: the label 'nan' is no num"),
        ("rte", "RTE/train.tsv", b"sentence1\tsentence2\tlabel\na\tb\tentail\n", "line 2: unknown label 'entail'"),
        ("rte", "RTE/train.tsv", b"sentence1\tsentence2\tlabel\na\tb\tentailment", "no newline at the end: cut off"),
        ("sts-b", "STS-B/train.tsv", b"sentence1\tsentence2\tscore\na\tb\t4", "no newline at the end: cut off"),
        ("wnli", "WNLI/train.tsv", b"sentence1\tsentence2\tlabel\na\tb", "line 2: 2 of 3 columns: the file is cut off"),
        ("qqp", "QQP/train.tsv", b"question1\tquestion2\tis_duplicate\na\tb\t1\na\tb", "line 3: 2 of 3 .*cut off"),
        ("cola", "CoLA/train.tsv", b"x\t1\t\tGood.\nx\t1\n", "line 2: 2 of 4 columns"),
        ("xnli", "XNLI/xnli.dev.tsv", b"language\tgold_label\tsentence1\tsentence2\nen\tneutral\ta\tb\n",
         "no rows with language = zh"),
    ],
)  # fmt: skip
def test_bad_rows_of_other_tasks(tmp_path: Path, name: str, file: str, content: bytes, message: str) -> None:
    split = "dev" if "dev" in file else "train"
    with pytest.raises(DataError, match=message):
        tasks.get(name).read(split, damaged(tmp_path, file, content))


@pytest.mark.parametrize(
    ("name", "split", "rows"),
    [("mrpc", "train", 3668), ("mrpc", "dev", 408), ("mrpc", "test", 1725), ("cola", "train", 8551),
     ("cola", "dev", 1043), ("cola", "test", 1063), ("rte", "train", 2490), ("rte", "dev", 277),
     ("rte", "test", 3000), ("sts-b", "train", 5749), ("sts-b", "dev", 1500), ("sts-b", "test", 1379)],
)  # fmt: skip
def test_real_files(shared: Path, name: str, split: str, rows: int) -> None:
    task = tasks.get(name)
    examples = task.read(split, shared / "data" / "glue")
    assert len(examples) == rows
    assert all((example.label is None) == (split == "test") for example in examples)
    assert all(example.text_a and (example.text_b or not task.pairs) for example in examples)
    if name == "mrpc" and split == "dev":
        assert sum(example.label == 1 for example in examples) == 279


# One's own tables


CSV = 'id,first,second,verdict\n7,"He said ""no"", twice",b,yes\n8,"two\nlines",d,no\n'


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_with_quotes(tmp_path: Path, encoding: str, newline: str) -> None:
    path = write(tmp_path / "a.csv", CSV.replace("\n", newline), encoding)
    task = table(path, text_a="first", text_b="second", label="verdict", id="id")
    first, second = task.read("train")
    assert task.labels == ("no", "yes") and task.pairs and task.metrics == ("accuracy", "f1")
    assert (first.id, first.text_a, first.text_b, first.label) == ("7", 'He said "no", twice', "b", 1)
    assert (second.id, second.text_a, second.label) == ("8", f"two{newline}lines", 0)
    assert task.path("train") == path


def test_tsv_and_jsonl_tables(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", 'sentence\tlabel\n"open\t10\nb\t9\nc\t10\n')
    task = table(tsv)
    assert task.labels == ("9", "10") and not task.pairs  # in the order of numbers
    assert [(e.text_a, e.label) for e in task.read("train")] == [('"open', 1), ("b", 0), ("c", 1)]
    lines = [{"text_a": "x", "text_b": "y", "label": True}, {"text_a": "z", "text_b": "", "label": False}]
    jsonl = write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    task = table(jsonl)
    assert task.labels == ("false", "true")
    assert [(e.text_a, e.text_b, e.label) for e in task.read("train")] == [("x", "y", 1), ("z", "", 0)]


def test_csv_may_have_semicolons(tmp_path: Path) -> None:
    text = 'id;text;label\r\n7;"a; ""b"", c";1,5\r\n8;d, e;2\r\n'
    path = write(tmp_path / "a.csv", text, "utf-8-sig")
    assert [(e.id, e.text_a, e.label) for e in table(path).read("train")] == [("7", 'a; "b", c', 0), ("8", "d, e", 1)]
    assert table(path).labels == ("1,5", "2")
    found = [("7", 'a; "b", c', None), ("8", "d, e", None)]
    assert predicted(text) == found == [(e.id, e.text_a, e.text_b) for e in read_pairs(path)]
    mixed = write(tmp_path / "b.csv", "text,a;b,label\nx;y,0,0\nz,1,1\n")
    assert [e.text_a for e in table(mixed).read("train")] == ["x;y", "z"]


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_rows_of_delimiters_alone_are_skipped(tmp_path: Path, name: str, mark: str) -> None:
    path = write(tmp_path / name, "id,text,label\n,,\n7,a,0\n,,\n\n8,b,1\n,,\n,\n".replace(",", mark))
    assert [(e.id, e.text_a) for e in table(path).read("train")] == [("7", "a"), ("8", "b")]
    assert [(e.id, e.text_a) for e in read_pairs(path)] == [("7", "a"), ("8", "b")]


def test_text_a_alone_is_a_task_of_single_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sentence1,sentence2,label\na,b,0\nc,d,1\n")
    assert table(path, text_a="sentence2").read("train")[0].text_b is None
    assert table(path).read("train")[0].text_b == "b"


def test_regression_only_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,0.5\nb,2\nc,0.5\n")
    assert table(path).labels == ("0.5", "2")
    task = table(path, regression=True)
    assert task.labels == () and task.metrics == ("rmse", "pearson", "spearman")
    assert [example.label for example in task.read("train")] == [0.5, 2.0, 0.5]


def test_a_long_cell(tmp_path: Path) -> None:
    text = "many words " * 20_000
    (tmp_path / "train.csv").write_text(f"text,label\n{text},a\nfew,b\n")
    assert table(tmp_path / "train.csv").read("train")[0].text_a.strip() == text.strip()


def test_numbers_stand_in_their_order_unless_there_is_one_without(tmp_path: Path) -> None:
    for labels, wanted in ((("10", "9", "-1"), ("-1", "9", "10")), (("10", "9", "nan", "2"), ("10", "2", "9", "nan"))):
        rows = "".join(f"text {i},{label}\n" for i, label in enumerate(labels))
        (tmp_path / "train.csv").write_text(f"text,label\n{rows}")
        assert table(tmp_path / "train.csv").labels == wanted


def test_no_labels_are_needed_to_predict(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "sentence1\tsentence2\na\tb\n")
    task = table(test=path, labels=("no", "yes"))
    assert task.splits == ("test",) and task.read("test")[0].label is None
    with pytest.raises(ConfigError, match="no training file to find the labels in"):
        table(test=path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\na,0\nb\nc,1\n", "line 3: 1 columns where the header has 2"),
        ("a.csv", "text,label\na,0\nb,c,1\n", "line 3: 3 columns where the header has 2"),
        ("a.csv", 'text,label\na,0\n"b,1\nc,1\n', "line 3: .*check the quotes"),
        ("a.csv", "text,text\na,0\n", "column 'text' stands twice"),
        ("a.csv", "text,label\n", "no rows below the header"),
        ("a.csv", "", "empty"),
        (
            "a.csv",
            "words,label\na,0\n",
            r"no column of texts is known \(there are: words, label\); name .*--text-a .* sentence1 and .*, text$",
        ),
        ("a.csv", "text,class\na,0\n", r"line 1: no column 'label' \(there are: text, class\); .*with --label"),
        ("a.tsv", "text;label\na;0\n", "the header is one column, 'text;label'; a .csv needs commas or semicolons"),
        ("a.csv", "text;label\na;0\nb\n", "line 3: 1 columns where the header has 2"),
        ("a.csv", "text\tlabel\na\t0\n", r"the header is one column, 'text\\tlabel'; .* a .tsv tabs"),
        ("a.tsv", "text,label\na,0\n", "the header is one column, 'text,label'; .* a .tsv tabs"),
        ("a.csv", "a text,0\n", "no rows below the header, which is the first row"),
        ("a.csv", "text,label\na,0\nb,\n", "line 3: empty label"),
        ("a.csv", "text,label\na,0\nb,0\n", "holds the one label '0'"),
        ("a.csv", 'text,label\na,0\nb,"1\t2"\n', "line 3: a tab or line end in the label"),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": "1\\n2"}\n', "line 2: a tab or line end"),
        ("a.csv", "text,label\n" + "".join(f"a,{i}\n" for i in range(30)), "holds 30 labels in 30 rows"),
        ("a.tsv", "text\tlabel\na\t0\nb\t1\tx\n", "line 3: 3 columns where the header has 2"),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "b",\n', "line 2: not JSON"),
        ("a.jsonl", '{"text": "a", "label": 0}\n["b", 1]\n', "line 2: not an object"),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"label": 1}\n', "line 2: no column 'text'"),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\n{"text": "\\ud83d", "label": 1}\n',
            "line 2: 'text' holds a lone",
        ),
        ("a.xlsx", "PK", "unknown kind of file"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(MinibertError, match=message) as error:
        table(path).read("train")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_label_that_only_dev_has(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\na,no\nb,yes\n")
    dev = write(tmp_path / "dev.csv", "text,label\na,no\nb,maybe\n")
    with pytest.raises(DataError, match=r"dev.csv: line 3: unknown label 'maybe' \(known: no, yes\)"):
        table(train, dev).read("dev")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["bad"] * 2 + ["good"] * 3, ["labels: bad 2, good 3"]),
        (["good", "Good", "bad"] * 2, ["labels: Good 2, bad 2, good 2",
                                       "note: the labels 'Good' and 'good' differ in case or spaces only"]),
        (["a  b", "a b", "ab", "c", "c"], ["labels: a  b 1, a b 1, ab 1, c 2",
                                           "note: the labels 'a  b' and 'a b' and 'ab' differ in case or spaces only",
                                           "note: a single row has the label 'a  b', 'a b', 'ab'"]),
        ([i for i in range(15)] * 2, ["labels: " + ", ".join(f"{i} 2" for i in range(12)) + " ... (15 labels)"]),
    ],
)  # fmt: skip
def test_the_labels_that_were_found_are_told(tmp_path: Path, labels: list, told: list[str]) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"a,{label}\n" for label in labels))
    task = table(path)
    assert list(labels_told(task, task.read("train"))) == told


def test_of_a_regression_the_range_and_the_mean_are_told(tmp_path: Path) -> None:
    task = table(write(tmp_path / "a.csv", "text,label\na,50000\nb,4600000\nc,90000\n"), regression=True)
    assert list(labels_told(task, task.read("train"))) == ["labels: 50000 to 4600000, in the mean 1580000"]


@pytest.mark.parametrize("text", ['[{"review": "a", "verdict": "x"}]\n', '[\n{"review": "a", "verdict": "x"}\n]\n'])
def test_a_json_array_is_told_the_line_that_the_table_needs(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.json", text)
    with pytest.raises(DataError, match=r'line 1: .* each line needs one object, {"review": ..., "verdict": ...}'):
        table(path, text_a="review", label="verdict")
    with pytest.raises(DataError, match=r'line 1: .* one object, {"sentence1": ..., "sentence2": ...}'):
        table(path)
    with pytest.raises(DataError, match=r'line 1: .* one object, {"review": ..., "reply": ...}'):
        list(read_pairs(path, columns={"text_a": "review", "text_b": "reply", "label": "verdict", "id": None}))


# Texts to predict


def predicted(text: str | bytes, **columns: str | None) -> list[tuple[str, str, str | None]]:
    stream = io.BytesIO(text) if isinstance(text, bytes) else io.StringIO(text)
    return [(e.id, e.text_a, e.text_b) for e in read_pairs(stream, columns=columns)]


def test_streams_to_predict() -> None:
    assert predicted("a\tb\nc\td") == [("0", "a", "b"), ("1", "c", "d")]
    assert predicted("just one\n\nlast\n") == [("0", "just one", None), ("1", "", None), ("2", "last", None)]
    assert predicted(b"\xef\xbb\xbfid\tsentence1\tsentence2\r\nx\ta\tb\r\n") == [("x", "a", "b")]
    assert predicted("sentence\nhello\n") == [("0", "hello", None)]
    assert predicted('{"sentence1": "a", "sentence2": "b", "id": 5}\n\n{"sentence": "c"}\n') == [
        ("5", "a", "b"),
        ("1", "c", None),
    ]
    assert predicted('"quoted\tb\n') == [("0", '"quoted', "b")]
    assert predicted("") == []
    for first in ('{ "text": "a"}', ' \t{"text":"a"}', '{\t"text" : "a"}'):
        assert predicted(first + "\n") == [("0", "a", None)]
    for first in ("{ x | x > 0 }", "{a} is a set"):
        assert predicted(first + "\n") == [("0", first, None)]


def test_csv_is_known_by_its_header() -> None:
    own = {"text_a": "review", "text_b": None, "label": "verdict", "id": None}
    assert predicted('id,text,label\n7,"a, ""b""",x\n\n8,c,y\n') == [("7", 'a, "b"', None), ("8", "c", None)]
    assert predicted(b'\xef\xbb\xbf"review","verdict"\r\n"two\r\nlines",x\r\n', **own) == [("0", "two\nlines", None)]
    assert predicted("Sentence1,SENTENCE2\na,b\n") == [("0", "a", "b")]
    with pytest.raises(DataError, match="<stdin>: line 2: 3 columns where the header has 2"):
        predicted("text,label\na,b,c\n")
    with pytest.raises(DataError, match="<stdin>: line 3: .*check the quotes of the row that starts there"):
        predicted('text,label\na,b\n"c,d\n')
    # A tab makes a line tsv, and prose is prose: a space follows its commas.
    assert predicted("sentence1\tsentence2,text\n") == [("0", "sentence1", "sentence2,text")]
    for prose in ("Text, please", "review, text", 'what is a "text', "one, two"):
        assert predicted(f"{prose}\nb\n", **own) == [("0", prose, None), ("1", "b", None)]


def test_the_case_of_columns_does_not_count(tmp_path: Path) -> None:
    for name, text in (
        ("a.csv", "ID,Text,Label\n7,a,x\n8,b,y\n"),
        ("a.tsv", "Id\tTEXT\tLABEL\n7\ta\tx\n8\tb\ty\n"),
        ("a.jsonl", '{"ID": "7", "Text": "a", "Label": "x"}\n{"ID": "8", "Text": "b", "Label": "y"}\n'),
    ):
        path = write(tmp_path / name, text)
        task = table(path)
        assert [(e.id, e.text_a, e.label) for e in task.read("train")] == [("7", "a", 0), ("8", "b", 1)]
        assert task.columns == {"text_a": "text", "text_b": None, "label": "label", "id": None}
        assert [(e.id, e.text_a) for e in read_pairs(path, columns=task.columns)] == [("7", "a"), ("8", "b")]
        assert table(test=path, labels=["x", "y"]).read("test")[1].label == 1
        own = {"text_a": "tExt", "label": "laBel"}
        assert [e.text_a for e in table(path, **own).read("train")] == ["a", "b"]
    # Where a file has both spellings the very one counts.
    both = write(tmp_path / "both.csv", "Text,text,TEXT,label\na,b,c,x\nd,e,f,y\n")
    for column, found in (("Text", "a"), ("text", "b"), ("TEXT", "c"), (None, "b")):
        assert table(both, text_a=column).read("train")[0].text_a == found
    with pytest.raises(DataError, match="line 1: column 'text' stands twice"):
        table(write(both, "Text,TEXT,label\na,b,x\n"))


def test_the_columns_that_a_run_was_told_of_come_first() -> None:
    own = {"text_a": "question", "text_b": "answer", "label": "verdict", "id": "number"}
    assert predicted("question\tanswer\na\tb\n\nc\td\n", **own) == [("0", "a", "b"), ("1", "c", "d")]
    assert predicted(" number\tanswer\tsentence\tquestion\tverdict\n7\tb\tx\ta\t?\n", **own) == [("7", "a", "b")]
    assert predicted('{"question": "a", "answer": "b"}\n', **own) == [("0", "a", "b")]
    assert predicted("sentence1\tsentence2\na\tb\n", **own) == [("0", "a", "b")]
    assert predicted("a\tb\n", **own) == [("0", "a", "b")]
    # A text alone; of what has no header both columns are texts, whatever they are called inside.
    assert predicted("sentence2\tsentence1\na\tb\n", text_a="sentence2", text_b=None) == [("0", "a", None)]
    assert predicted("a\tb\n", text_a="sentence2", text_b=None) == [("0", "a", "b")]
    with pytest.raises(DataError, match=r"line 1: no question and answer, nor .* \(there are: words\)"):
        predicted('{"words": "a"}\n', **own)


def test_a_stream_is_read_as_it_comes() -> None:
    def lines():
        yield b"a\tb\n"
        raise AssertionError("the second line was asked for before the first was used")

    first = next(read_pairs(lines()))
    assert (first.text_a, first.text_b) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\tb\nc\n", "<stdin>: line 2: 1 columns, not 2"),
        (b"a\tb\tc\n", "<stdin>: line 1: 3 columns and no header"),
        (b"a\n\xff\n", "<stdin>: line 2: not UTF-8"),
        (b"a\n\xff\xfeb\0\n", "<stdin>: line 2: a NUL byte"),
        ("text,label\r\na,b\r\n".encode("utf-16"), "<stdin>: line 1: UTF-16"),
        (b"a\nb\0\n", "<stdin>: line 2: a NUL byte"),
        (b'{"sentence": "a"}\n{"words": "a"}\n', "<stdin>: line 2: no sentence"),
        (b'{"sentence": "a"}\nb\n', "<stdin>: line 2: not JSON"),
        (b'{ "sentence": "a"\n{"sentence": "b"}\n', "<stdin>: line 1: not JSON"),
        (b"sentence1\tsentence1\tsentence2\na\tb\tc\n", "<stdin>: line 1: column 'sentence1' stands twice"),
        (b"sentence1\tsentence2\na\n", "<stdin>: line 2: 1 columns where the header has 2"),
    ],
)
def test_bad_streams(text: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        predicted(text)


def test_files_to_predict(tmp_path: Path) -> None:
    (found,) = read_pairs(write(tmp_path / "p.csv", 'sentence1,sentence2\n"a, b",c\n'))
    assert (found.text_a, found.text_b) == ("a, b", "c")
    assert len(list(read_pairs(GLUE / "MRPC" / "test.tsv"))) == 10  # a header that is known without being told
    with pytest.raises(DataError, match="no such file"):
        list(read_pairs(tmp_path / "missing.tsv"))


@pytest.mark.parametrize("typo", ["3_5", "\u0663", "0x3"])
def test_a_number_is_written_in_decimal_digits(tmp_path, typo):
    path = write(tmp_path / "train.csv", f"text,score\na,3.5\nb,{typo}\n")
    with pytest.raises(DataError, match="line 3: the label .* is no number"):
        table(train=path, label="score", regression=True).read("train")


def test_an_empty_line_of_csv_is_none_of_its_rows(tmp_path):
    for text in ("text\nhello\n\nworld\n", "\ntext\nhello\nworld\n\n", "\n\ntext;id\nhello;1\nworld;2\n"):
        assert [e.text_a for e in read_pairs(write(tmp_path / "one.csv", text))] == ["hello", "world"]


def test_of_a_pair_the_missing_half_is_named(tmp_path):
    with pytest.raises(DataError, match="'sentence1' is there, and 'sentence2' is missing"):
        list(read_pairs(write(tmp_path / "half.jsonl", '{"sentence1": "a"}\n')))
    with pytest.raises(DataError, match="no body, nor sentence1"):
        list(read_pairs(write(tmp_path / "half.jsonl", '{"question": "a"}\n'), columns={"text_a": "body"}))


def test_errors_name_the_line_that_the_header_is_on(tmp_path):
    with pytest.raises(DataError, match="line 3: column 'text' stands twice"):
        list(read_pairs(write(tmp_path / "one.csv", "\n\ntext,text\na,b\n")))
    with pytest.raises(DataError, match="line 4: 3 columns where the header has 2"):
        list(read_pairs(write(tmp_path / "one.csv", "\n\ntext,id\na,b,c\n")))
