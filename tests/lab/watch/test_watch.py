"""The page about a run that goes on: what it follows, what it says, and who may ask."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.conftest import eval_record, method_record, run_record, step_record

from gaussiank_lab.records import RECORDS_NAME, RecordWriter
from gaussiank_lab.watch.server import make_server
from gaussiank_lab.watch.state import POINTS, state_of
from gaussiank_lab.watch.tail import RecordTail


def step(number: int, **changes: Any) -> dict[str, Any]:
    return step_record("topk", number, **changes)


def test_tail_reads_what_is_new_and_waits_for_whole_lines(tmp_path: Path) -> None:
    tail = RecordTail(tmp_path)
    assert not tail.look()
    path = tmp_path / RECORDS_NAME
    path.write_bytes(b'{"kind": "run"}\n{"kind": "st')
    assert tail.look()
    assert [record["kind"] for record in tail.records] == ["run"]
    with path.open("ab") as file:
        file.write(b'ep"}\nnot json\n[1]\n{"kind": "eval"}\n')
    assert tail.look()
    assert not tail.look()
    assert [record["kind"] for record in tail.records] == ["run", "step", "eval"]


def test_tail_begins_anew_when_a_resumed_run_has_other_records(tmp_path: Path) -> None:
    tail = RecordTail(tmp_path)
    with RecordWriter(tmp_path) as writer:
        writer.write(run_record())
        kept = writer.path.read_bytes()
        for number in range(1, 5):
            writer.write(step(number))
    tail.look()
    with RecordWriter(tmp_path, kept) as writer:
        for number in range(1, 9):
            writer.write(step(number, loss=9.0))
    assert tail.look()
    assert [record["loss"] for record in tail.records[1:]] == [9.0] * 8


def test_state_says_where_a_run_is() -> None:
    records = [run_record(("topk", "dense")), {"kind": "begin", "method": "topk", "steps": 1000, "done": 0}]
    records += [step(number) for number in range(1, 501)]
    records += [eval_record("topk", 500, 1000, ema_accuracy=0.7)]
    records += [{"kind": "checkpoint", "method": "topk", "step": 500, "size_bytes": 2_500_000, "seconds": 0.02}]
    state = state_of(records)
    topk, dense = state["methods"]
    assert state["headline"] == "topk: step 500 of 1,000, about 9 s left"  # 500 steps of 18.3 ms
    assert (topk["state"], topk["done"], topk["steps"]) == ("running", 500, 1000)
    assert topk["metric"] == "59.1 % (average of weights 70.0 %)"
    assert (topk["kept"], topk["sent"], topk["compression"], topk["step_ms"]) == ("1.00", "1.54 kB", "241x", "18.3")
    assert dense["state"] == "waiting"
    assert state["checkpoint"] == "topk after step 500: 2.50 MB in 20.0 ms"
    assert len(topk["loss_curve"]) <= POINTS
    assert topk["metric_curve"] == [[500.0, pytest.approx(59.1)]]
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    mean = sum(point[1] for point in topk["loss_curve"]) / len(topk["loss_curve"])
    assert mean == pytest.approx(sum(losses) / len(losses), rel=0.01)
    longer = state_of([*records, {"kind": "begin", "method": "topk", "steps": 2000, "done": 500}])
    assert longer["headline"].startswith("topk: step 500 of 2,000")


def test_state_says_finished_diverged_and_nothing_yet() -> None:
    assert state_of([])["headline"] == "Waiting for the first step"
    diverged = [run_record(("topk",)), step(1, loss=None)]
    assert state_of(diverged)["methods"][0]["loss"] == "diverged"
    assert state_of(diverged)["methods"][0]["loss_curve"] == []
    assert state_of([*diverged, method_record("topk", 1)])["headline"] == "Finished"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    with RecordWriter(tmp_path) as writer:
        writer.write(run_record(("<b>topk",)))
    with make_server(tmp_path, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int, path: str, host: str | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_server_gives_the_page_and_the_state_to_this_machine_alone(served: int) -> None:
    answer, page = get(served, "/")
    assert answer.status == 200
    assert page.startswith(b"<!doctype html>")
    assert b"http:" not in page.replace(b"http://www.w3.org/2000/svg", b"")  # refers to nothing outside
    assert b"https:" not in page
    assert b"innerHTML" not in page  # names from records are texts, never markup
    assert "default-src 'none'" in (answer.getheader("Content-Security-Policy") or "")
    answer, body = get(served, "/state.json", f"localhost:{served}")
    assert answer.status == 200
    assert json.loads(body)["methods"][0]["name"] == "<b>topk"
    assert get(served, "/../records.jsonl")[0].status == 404
    assert get(served, "/state.json", "elsewhere.example")[0].status == 403


def test_a_port_that_is_taken_or_none_is_refused(served: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^port must be free, got {served} .*\. Give another, or 0 for any\.$"):
        make_server(tmp_path, served)
    with pytest.raises(ValueError, match=r"^port must be free, got 70000"):
        make_server(tmp_path, 70_000)
