import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gaussiank_lab.metric import Metric
from gaussiank_lab.report.page import headline, report_html, setting, write_figures, write_report
from gaussiank_lab.report.records import read_records
from gaussiank_lab.report.summary import summary_rows

WriteRun = Callable[..., Path]
VOID = {"meta", "wbr", "br", "link", "img"}


class Page(HTMLParser):
    """Collects what a browser would load, the table's cells, and whether the tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("href", "src", "srcset", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


def append(run_dir: Path, record: dict[str, object]) -> Path:
    with (run_dir / "records.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    return run_dir


def test_report_is_written_where_asked_and_leaves_nothing_else(write_run: WriteRun, tmp_path: Path) -> None:
    run_dir = write_run(("dense", "topk"))
    assert write_report(run_dir) == run_dir / "report.html"
    assert sorted(path.name for path in run_dir.iterdir()) == ["records.jsonl", "report.html"]
    out = write_report(run_dir, tmp_path / "new" / "page.html")
    assert out.read_bytes() == (run_dir / "report.html").read_bytes()
    out.write_text("old")
    write_report(str(run_dir), str(out))
    assert out.read_bytes() == (run_dir / "report.html").read_bytes()


def test_a_report_that_fails_leaves_the_old_one(write_run: WriteRun) -> None:
    run_dir = write_run(("dense", "topk"))
    write_report(run_dir).write_text("old")
    with (run_dir / "records.jsonl").open("a") as file:
        file.write("oops\n")
    with pytest.raises(ValueError, match="must be a JSON object"):
        write_report(run_dir)
    assert (run_dir / "report.html").read_text() == "old"
    assert len(list(run_dir.iterdir())) == 2


def test_table_holds_the_rows_of_the_summary(write_run: WriteRun) -> None:
    records = read_records(write_run(("dense", "topk", "gaussiank:mode=published")))
    page = Page(report_html(records))
    assert page.rows[1:] == [list(row) for row in summary_rows(records)]
    assert [re.sub("\u00ad", "", cell) for cell in page.rows[0]] == [
        "method", "accuracy%", "kept/k", "sent/step", "compression", "stepms", "computems", "selectms", "commms",
    ]  # fmt: skip


def test_page_loads_nothing(write_run: WriteRun) -> None:
    html = report_html(read_records(write_run()))
    page = Page(html)
    assert page.tags.count("svg") == 5
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"@import|https?:|url\((?!#)", html)


def test_ids_are_unique_on_the_page(write_run: WriteRun) -> None:
    ids = re.findall(r'\bid="([^"]*)"', report_html(read_records(write_run())))
    assert ids
    assert len(ids) == len(set(ids))


def test_page_says_how_it_was_made(write_run: WriteRun) -> None:
    text = Page(report_html(read_records(write_run()))).text
    for part in ("gaussiank train --model lenet5", "a processor", "2.13.0", "61,706", "0.05", "9f2ce7ab",
                 "lenet5 on fashion-mnist, 4 workers, density 0.001, seed 0"):  # fmt: skip
        assert part in text


def test_what_comes_from_records_is_escaped(write_run: WriteRun) -> None:
    hostile = "</title></svg><script>alert('&')</script>"
    run = {
        "command": hostile,
        "started": [hostile],
        "machine": {hostile: hostile},
        "config": {hostile: hostile, "model": hostile, "deep": {"x": hostile}},
        "torch": hostile,
    }
    page = Page(report_html(read_records(write_run((hostile, "dense"), run=run))))
    assert "script" not in page.tags
    assert page.rows[1][0] == hostile
    assert page.text.count(hostile) >= 8


def test_broken_unicode_is_written_as_a_reference(write_run: WriteRun) -> None:
    html = write_report(write_run(("\ud800", "dense"))).read_text(encoding="utf-8")
    assert "&#55296;" in html


@pytest.mark.parametrize(
    ("methods", "diverged", "sentence"),
    [
        (("dense", "topk", "randomk"), None, "topk reached 84.1 % with 241x less traffic than dense (87.0 %)."),
        (("topk", "dense"), "dense", "topk reached 84.1 % with 241x less traffic than dense (diverged)."),
        (("dense", "topk", "randomk"), "topk", "randomk reached 75.0 % with 241x less traffic than dense (87.0 %)."),
        (("topk",), None, "topk reached 84.1 % with 241x less traffic than a dense all-reduce."),
        (("dense",), None, "dense reached 87.0 %, sending 370 kB per worker and step."),
        (("topk",), "topk", "Every method that finished diverged."),
        ((), None, "No method finished in this run."),
    ],
)
def test_headline(write_run: WriteRun, methods: tuple[str, ...], diverged: str | None, sentence: str) -> None:
    assert headline(read_records(write_run(methods, diverged=diverged))).replace("\u00a0", " ") == sentence


def test_a_run_of_language_is_reported_in_its_own_unit(write_run: WriteRun) -> None:
    metric = Metric("loss", "loss", "nats/byte", about="Mean surprise <in nats>.")
    run_dir = write_run(("dense",), run={"metric": metric.as_record()})
    for name, loss in (("topk", 0.61), ("randomk", 0.7), ("dgc", None)):  # less is better, and nothing is worst
        append(run_dir, {"kind": "method", "method": name, "loss": loss, "sent_bytes": 1000, "accuracy": 0.9})
    records = read_records(run_dir)
    page = Page(report_html(records))
    sentence = "topk reached 0.610 nats/byte with 370x less traffic than dense (0.500 nats/byte)."
    assert headline(records).replace("\u00a0", " ") == sentence
    assert page.rows[0][1] == "lossnats/byte"
    assert [row[1] for row in page.rows[1:]] == ["0.500", "0.610", "0.700", "diverged"]
    assert "Loss for traffic" in page.text
    assert "Mean surprise <in nats>." in page.text
    assert "accuracy" not in page.text


@pytest.mark.parametrize(
    ("sent_bytes", "sentence"),
    [
        (740_472.0, "topk reached 80.0 % with 2.0x the traffic of dense (87.0 %)."),
        (0.0, "topk reached 80.0 % and dense 87.0 %."),
        (None, "topk reached 80.0 % and dense 87.0 %."),
    ],
)
def test_headline_never_claims_a_saving_that_was_not_measured(
    write_run: WriteRun, sent_bytes: float | None, sentence: str
) -> None:
    record = {"kind": "method", "method": "topk", "accuracy": 0.8, "sent_bytes": sent_bytes}
    run_dir = append(write_run(("dense",)), record)
    assert headline(read_records(run_dir)).replace("\u00a0", " ") == sentence


def test_one_worker_sends_nothing_and_still_has_a_report(write_run: WriteRun) -> None:
    run_dir = write_run((), run={"config": {"workers": 1}})
    silent = {"method": "topk", "step": 1, "sent_bytes": 0.0, "dense_bytes": 0.0}
    append(run_dir, {"kind": "step", "loss": 1.0, **silent})
    append(run_dir, {"kind": "eval", "accuracy": 0.5, **silent})
    append(run_dir, {"kind": "method", "accuracy": 0.5, "compression": None, **silent})
    page = Page(report_html(read_records(run_dir)))
    assert "topk reached 50.0\u00a0%." in page.text
    assert page.rows[1][4] == "–"
    assert page.tags.count("svg") == 2  # accuracy and loss over steps


def test_single_method_that_keeps_all_has_no_empty_figure(write_run: WriteRun) -> None:
    page = Page(report_html(read_records(write_run(("dense",)))))
    assert page.tags.count("svg") == 4
    assert "no data" not in page.text


def test_troubles_of_a_run_are_said(write_run: WriteRun) -> None:
    run_dir = write_run(("dense", "topk", "dgc"), diverged="topk", unfinished="dgc")
    with (run_dir / "records.jsonl").open("a") as file:
        file.write('{"kind": "st')
    text = Page(report_html(read_records(run_dir))).text
    assert "topk diverged: a loss was not finite." in text
    assert "Not finished: dgc." in text
    assert "The last record was cut short" in text


def test_figures_stand_alone_and_are_the_same_bytes_each_time(write_run: WriteRun, tmp_path: Path) -> None:
    once, again = (write_figures(write_run(name=name), tmp_path / f"{name} figures") for name in ("one", "two"))
    assert [path.name for path in once] == [
        "metric-over-bytes.svg",
        "metric-over-steps.svg",
        "loss-over-steps.svg",
        "kept-over-steps.svg",
        "time-per-step.svg",
    ]
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    for path in once:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10


def test_rounds_of_local_steps_are_told_and_drawn(write_run: WriteRun, tmp_path: Path) -> None:
    plain = report_html(read_records(write_run(name="plain")))
    assert "Rounds of local steps" not in plain
    run_dir = write_run(("dense", "local"))
    with (run_dir / "records.jsonl").open("a") as file:
        for step in (10, 20):
            record = {"kind": "round", "method": "local", "step": step, "fragment": 0, "sent_bytes": 2000 * step}
            norms = {"difference_norm": 1 / step, "residual_norm": step, "round_s": 0.04, "waited_s": 0.01}
            file.write(json.dumps({**record, **norms}) + "\n")
    page = report_html(read_records(run_dir))
    assert "local: 2 rounds, 30.0 kB sent by a worker and 40.0 ms in the median, 75 % of it overlapped." in page
    assert "Rounds of local steps" in page
    drawn = {path.name for path in write_figures(run_dir, tmp_path / "figures")}
    assert "norms-over-rounds.svg" in drawn


def test_run_with_only_a_run_record(write_run: WriteRun) -> None:
    page = Page(report_html(read_records(write_run((), run={"config": {"methods": ["topk"]}}))))
    assert "No method finished in this run." in page.text
    assert "Not finished: topk." in page.text
    assert "svg" not in page.tags
    assert "table" not in page.tags


def test_run_record_may_lack_everything_but_its_format(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"kind": "run", "format": 1}\n')
    records = read_records(tmp_path)
    assert setting(records) == ""
    assert "No method finished in this run." in Page(report_html(records)).text


@pytest.mark.parametrize(
    ("length", "shown", "hidden"),
    [
        ({"epochs": 12, "steps": 60}, "steps 60", "epochs"),
        ({"epochs": 12, "steps": None}, "epochs 12", "steps"),
        ({"epochs": 12, "steps": "none | 60"}, "epochs 12, steps none | 60", None),
    ],
)
def test_a_run_has_one_length(write_run: Callable[..., Path], length: dict[str, Any], shown: str, hidden: str) -> None:
    run_dir = write_run(("dense",), run={"config": {"model": "fnn3", "dataset": "mnist", **length}})
    records = read_records(run_dir)
    assert setting(records) == f"fnn3 on mnist, {shown}"
    assert hidden is None or f"<dt>{hidden}</dt>" not in report_html(records)
