from __future__ import annotations

import html.parser
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from reports import KINDS, NASTY, comparison, pruning, task

from onnxprune.reports.html import to_html
from onnxprune.reports.report import Count, FrozenRow, GroupRow, Interval, LatencyChange, SensitivityRow, Validation

PAGES = sorted(set(KINDS) - {"history"})


class Seen(html.parser.HTMLParser):
    """What a browser sees of a page: elements, their attributes, and text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_whole(kind: str) -> None:
    seen = Seen(to_html(KINDS[kind]("conv1.weight")))
    assert seen.open == []
    assert seen.tags.count("h1") == 1
    assert "conv1.weight" in seen.text or kind == "bench"


def test_the_page_of_a_pruning_shows_all_of_it() -> None:
    text = " ".join(Seen(to_html(pruning())).text.split())
    for part in (
        "8 of 20 units were cut, in 1 of 2 groups", "exact cut, proved", "Warning", "676 k", "50.0 % of 1.35 M",
        "−50.0 %", "210 kB", "0.25 ms", "1.60×", "was 99.0 %; change −2.5 to +0.5 points", "Top-1 agreement", "8 / 16",
        "Sensitivity", "Accuracy by class", "−5.0 points", "+1.5 points", "Frozen", "Softmax", "others stay",
        "3.0e-07 from the original", "onnxprune conv1.weight --ratio 0.5", "ab" * 32, "load 0.1, cut 0.2",
    ):  # fmt: skip
        assert part in text, part


def test_a_page_shows_what_was_not_done() -> None:
    report = pruning(
        validation=None, output=None, latency=None, task=None, sensitivity=(), warnings=(), notes=(), command=""
    )
    text = Seen(to_html(report)).text
    assert "not validated" in text
    assert "not written" in text
    assert "Latency" not in text
    assert "--ratio 0.5" in text  # from the options
    assert "approximate cut" in to_html(pruning(validation=Validation(("cpu",), None, 1e-3, (), ())))


def test_exactness_is_told_apart() -> None:
    for exact, says in ((True, "exact cut"), (False, "not the cut of its plan"), (None, "exactness not checked")):
        assert says in Seen(to_html(comparison(exact=exact))).text


def test_a_slow_or_unclear_model_is_not_praised() -> None:
    slow = LatencyChange(0.2, 0.4, 0.5, Interval(0.4, 0.6), 0.01, True)
    assert 'class="chip bad">0.50×' in to_html(pruning(latency=slow))
    unclear = LatencyChange(0.2, 0.2, 1.0, Interval(0.9, 1.1), 0.2, False)
    assert "not conclusive" in to_html(pruning(latency=unclear))


def test_bars_are_as_long_as_what_is_kept() -> None:
    groups = (GroupRow("a", 8, 2, (), 1, 1), GroupRow("b", 0, 0, (), 1, 1))
    assert 'class="bar cut" title="6 of 8 kept"><i style="width:75.00%">' in to_html(pruning(groups=groups))


def test_divergence_at_the_cut_is_read_off_the_curve() -> None:
    rows = (SensitivityRow("conv1.weight", 16, (0, 4, 12), (0.0, 0.01, 0.03)),)
    assert "<span>0.02</span>" in to_html(pruning(sensitivity=rows))


def test_what_is_no_number_is_shown_as_such() -> None:
    odd = LatencyChange(0.0, math.nan, math.inf, Interval(math.nan, math.nan), math.nan, False)
    text = to_html(pruning(value=math.nan, latency=odd, macs=Count(0, 0), size=Count(0, 5)))
    assert "width:nan" not in text
    assert "width:inf" not in text


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_no_name_becomes_markup(name: str, kind: str) -> None:
    plain, text = Seen(to_html(KINDS[kind]("plain"))), to_html(KINDS[kind](name))
    seen = Seen(text)
    assert seen.open == []
    assert set(seen.tags) <= set(plain.tags)
    assert {(tag, attribute) for tag, attribute, _ in seen.attributes} <= {(t, a) for t, a, _ in plain.attributes}
    assert {v for _, a, v in seen.attributes if a in ("class", "style")} <= {
        v for _, a, v in plain.attributes if a in ("class", "style")
    }
    assert all(c == "\n" or c.isprintable() for c in text)
    assert len(text) < 400_000
    if name.strip() and len(name) < 100 and name.isprintable() and kind not in ("bench", "gate"):
        assert name in seen.text


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_asks_nothing_of_the_network(kind: str) -> None:
    text = to_html(KINDS[kind]("//evil.example"))
    seen = Seen(text)
    assert not {"script", "iframe", "img", "object", "embed", "base", "form", "a"} & set(seen.tags)
    links = [
        (tag, a, v) for tag, a, v in seen.attributes if a in ("href", "src", "srcset", "data", "action", "xlink:href")
    ]
    assert links == [("link", "href", "data:,")]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in next(v for t, a, v in seen.attributes if (t, a) == ("meta", "content"))


def test_many_rows_are_folded_and_then_cut_short() -> None:
    report = pruning(
        groups=pruning().groups[:1] * 1500,
        frozen=tuple(FrozenRow(f"n{k}", "Op", f"why {k}", 1, ()) for k in range(1200)),
        task=None,
    )
    text = to_html(report)
    assert text.count("<details>") == 2
    assert "1,460 more" in text
    assert text.count("The other 500 are in the JSON report.") == 1
    assert text.count("The other 200 are in the JSON report.") == 1
    assert text.count("<tr>") < 2010


def test_the_same_report_gives_the_same_page() -> None:
    assert to_html(pruning()) == to_html(pruning())


def test_a_page_fits_where_it_is_shown() -> None:
    assert len(to_html(pruning(task=task("t")))) < 60_000


# -------------------------------------------------------------------------------------------------- in a browser
def browser() -> str:
    """Returns the system's Chromium; without one the test is skipped."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")


def requests(log: Path) -> set[str]:
    """Returns the addresses that a page asked for, from a browser's log of its network, without its own."""
    events = [
        event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8", errors="replace"))["events"]
    ]
    found = {event["url"] for event in events if event.get("initiator", "not an origin") != "not an origin"}
    return {url for url in found if not url.startswith(("file:", "data:"))}


def opened(page: Path, folder: Path) -> tuple[str, str, set[str]]:
    """Returns the page as Chromium understands it, what stands in the console, and what it asked of the network."""
    log = folder / "net.json"
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr", "--v=0",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode(errors="replace"), "\n".join(console), requests(log)


@pytest.mark.slow
def test_chromium_opens_a_page_without_errors_and_without_a_request(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(to_html(pruning("<img src=http://evil.example/a.png onerror=console.error(1)>")), encoding="utf-8")
    dom, console, asked = opened(page, tmp_path)
    assert "Accuracy by class" in dom
    assert "<polyline" in dom
    assert "&lt;img src=http://evil.example" in dom
    assert console == ""
    assert asked == set()


@pytest.mark.slow
def test_chromium_would_have_told(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('told')</script><img src='http://127.0.0.1:9/x.png'>", encoding="utf-8")
    _, console, asked = opened(page, tmp_path)
    assert "told" in console
    assert any(re.match(r"http://127\.0\.0\.1:9/", url) for url in asked)
