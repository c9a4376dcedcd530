"""The journal: whatever moment a search dies at, the next one goes on."""

from __future__ import annotations

from pathlib import Path

from quantize.scheme import Form, Scheme
from quantize.search.journal import Journal
from quantize.search_report import CandidateResult, Status

SCHEME = Scheme(form=Form.QDQ)
RESULT = CandidateResult(name="a", status=Status.MEASURED, reason="", scheme=SCHEME, metric=0.9, p50_us=12.5)


def test_what_was_found_is_there_again_with_its_file(tmp_path: Path) -> None:
    first = Journal(tmp_path / "s", key="k")
    first.begin(SCHEME.key)
    first.end(SCHEME.key, RESULT, b"model")
    first.keep_calibration(b"ranges")
    first.close()

    again = Journal(tmp_path / "s", key="k")

    assert again.is_resumed
    assert again.result(SCHEME.key) == RESULT
    assert again.content(SCHEME.key) == b"model"
    assert again.calibration() == b"ranges"
    assert not again.killed_the_process(SCHEME.key)


def test_another_search_finds_nothing_of_it(tmp_path: Path) -> None:
    first = Journal(tmp_path / "s", key="k")
    first.end(SCHEME.key, RESULT, b"model")
    first.keep_calibration(b"ranges")
    first.close()

    other = Journal(tmp_path / "s", key="other data")

    assert not other.is_resumed
    assert other.result(SCHEME.key) is None
    assert other.content(SCHEME.key) is None
    assert other.calibration() is None


def test_a_torn_last_line_is_dropped_and_spoils_nothing_after_it(tmp_path: Path) -> None:
    first = Journal(tmp_path / "s", key="k")
    first.end("one", RESULT, None)
    first.close()
    path = tmp_path / "s" / "journal.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(lines[-1])):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        again = Journal(tmp_path / "s", key="k")
        assert again.result("one") is None or cut == len(lines[-1]) - 1
        again.end("two", RESULT, None)
        again.close()
        assert Journal(tmp_path / "s", key="k").result("two") == RESULT


def test_a_damaged_candidate_is_built_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s", key="k")
    journal.end(SCHEME.key, RESULT, b"model")
    (file,) = (tmp_path / "s" / "candidates").iterdir()
    file.write_bytes(b"modem")

    assert journal.content(SCHEME.key) is None


def test_a_candidate_that_twice_took_the_process_with_it_is_to_blame(tmp_path: Path) -> None:
    for _ in range(2):
        journal = Journal(tmp_path / "s", key="k")
        assert not journal.killed_the_process("bad")
        journal.begin("bad")
        journal.close()

    assert Journal(tmp_path / "s", key="k").killed_the_process("bad")


def test_a_candidate_that_was_left_on_request_is_not_to_blame(tmp_path: Path) -> None:
    for _ in range(5):
        journal = Journal(tmp_path / "s", key="k")
        journal.begin("slow")
        journal.leave("slow")
        journal.close()

    again = Journal(tmp_path / "s", key="k")
    assert again.was_interrupted("slow")
    assert not again.killed_the_process("slow")


def test_a_finished_search_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s", key="k")
    journal.end(SCHEME.key, RESULT, b"model")
    journal.remove()

    assert not (tmp_path / "s").exists()
