"""The page `/ui` in a real browser, which is told nothing but the server's address."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

pytest.importorskip("selenium", reason="selenium is not installed here")

from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.observing.recent import LastWritten
from adaptc.runtime.server.serving.models import load_model
from adaptc.runtime.server.serving.settings import hash_of
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import HistoryLm, decoder_spec
from tests.models.sessions import session_of
from tests.models.tiny_tokenizer import byte_level, files
from tests.repo import ROOT
from tests.server import chromium
from tests.server.chromium import Page, listening
from tests.server.served import by_hand, classifier, parts_of

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing() or "there is one")

STORED = ROOT / "tests/stored/schema4"
SPEC = decoder_spec(vocab=321, max_tokens=400, eos=(1,))
KEY = "0123456789abcdef"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium.chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def parts() -> Iterator[ServerParts]:
    """A server with a bundle of each kind: with gates, stitched, dense, and of modalities."""
    stored = [load_model(STORED / name, name, threads=1) for name in ("gated", "stitched")]
    made = parts_of(*stored, by_hand("dense", spec=SPEC), classifier())
    yield made
    made.models.close()


@pytest.fixture(scope="module")
def url(parts: ServerParts) -> Iterator[str]:
    with listening(parts) as found:
        yield found


class Slow:
    """A server whose model takes its time for a token, one request at a time, so that a busy machine sees it."""

    def __init__(self, seconds: float) -> None:
        self.parts = parts_of(by_hand(lm=HistoryLm(SPEC, before=lambda: time.sleep(seconds)), spec=SPEC))


class ScriptedLm(HistoryLm):
    """A model that writes one text, whatever it is asked."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__(SPEC)
        self.ids, self.at = ids, 0

    def _run(self, feeds: Arrays, outputs: Arrays) -> None:
        super()._run(feeds, outputs)
        self.at = 0 if feeds["input_ids"].shape[1] > 1 else self.at + 1
        outputs["logits"][:] = np.arange(SPEC.vocab_size) == self.ids[min(self.at, len(self.ids) - 1)]


def last_of(parts: ServerParts, model: str) -> LastWritten:
    found = parts.recent.last[model]
    assert isinstance(found, LastWritten)
    return found


def cells(where: WebElement, kind: str) -> set[tuple[int, int]]:
    """(row, column) of all cells of a kind that the skip map in an element draws."""
    found = set()
    for path in where.find_elements("css selector", f"path.{kind}"):
        for each in (path.get_attribute("d") or "").split("z")[:-1]:
            column, row = each.partition("h")[0].removeprefix("M").split()
            found.add((int(row), int(column)))
    return found


@pytest.mark.parametrize("width", [1280, 390])
def test_it_shows_every_kind_of_bundle_and_complains_of_nothing(driver: Chrome, url: str, width: int) -> None:
    page = Page(driver, url, width, dark=width == 390)
    for model, shown, chat in (
        ("stitched", "KV cache", "the router decides"),
        ("dense", "KV cache", "it always runs whole"),
        ("views", "Without dear", "No chat here: views answers inputs and writes no text; /v1/infer is for it."),
        ("gated", "Blocks skipped", "fast\nbalanced\ndense"),
    ):
        page.choose(model)
        page.shows("#tiles", shown)
        page.shows("#chat", chat)
        assert len(page.all("#charts svg")) == (2 if model == "views" else 4)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert page.text("#connection") == "live"
    assert page.complaints() == []
    assert all(each.startswith((f"{url}/ui", "data:")) for each in page.asked())


def test_everything_that_can_be_used_has_a_name(driver: Chrome, url: str) -> None:
    page = Page(driver, url)
    for model in ("gated", "stitched"):
        page.choose(model)
        page.until(lambda: page.all("#message"))
        driver.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
        used = [each for each in page.all("button, input, select, textarea, [role]") if each.is_displayed()]
        assert len(used) >= 9
        for each in used:
            if each.get_attribute("role") not in ("status", "alert"):
                assert each.accessible_name, each.get_attribute("outerHTML")


@pytest.mark.parametrize("budget", [0.0, 0.85])
def test_a_chat_streams_at_the_budget_of_the_slider(
    driver: Chrome, url: str, parts: ServerParts, budget: float
) -> None:
    page = Page(driver, url)
    page.choose("gated")
    answer = page.say("w1 w2 w3", budget)
    last = last_of(parts, "gated")
    assert last.budget == budget
    assert last.ran is not None
    assert len(answer.find_elements("css selector", ".text span")) > 3  # each piece came by itself
    trace = answer.find_element("css selector", ".trace").text.replace("\xa0", " ")
    assert last.times.skipped is not None
    assert f"{round(last.times.skipped * 100)} % of blocks skipped" in trace
    assert f"budget {budget:.2f}" in trace
    assert f"{last.new_tokens} tokens" in trace
    assert "tokens/s" in trace
    assert "first token" in trace
    shades = {each.get_attribute("class") for each in answer.find_elements("css selector", ".text span[class]")}
    assert bool(shades - {"t0"}) == bool((~last.ran).any())
    # The map below the answer and the one of the last request both show what the trace says.
    answer.find_element("css selector", "summary").click()
    count, gates = last.ran.shape
    first = last.new_tokens - count
    skipped = {(gate, first + token) for token, gate in zip(*np.nonzero(~last.ran), strict=True)}
    page.until(lambda: cells(page.one("#last"), "skipped") == skipped)
    for where in (answer, page.one("#last")):
        assert cells(where, "skipped") == skipped
        assert len(cells(where, "ran")) == count * gates - len(skipped)
        picture = where.find_element("css selector", "svg[data-layers]")
        assert picture.get_attribute("data-layers") == str(gates)
        assert picture.get_attribute("data-tokens") == str(last.new_tokens)
    assert page.complaints() == []


def test_a_budget_that_nobody_moved_is_not_asked_for(driver: Chrome, url: str, parts: ServerParts) -> None:
    page = Page(driver, url)
    page.choose("gated")
    page.shows(".budget", "1.00, as compiled")
    page.one(".controls summary").click()
    limit = page.all(".controls input[type=number]")[1]
    limit.clear()
    limit.send_keys("5")
    page.say("w1")
    first = last_of(parts, "gated")
    assert (first.budget, first.new_tokens) == (None, 5)
    page.say("w2", 0.5)
    second = last_of(parts, "gated")
    assert second.budget == 0.5
    assert second.prompt_tokens > first.prompt_tokens + 5  # the first question and its answer are before the second
    page.one(".budget button").click()
    page.one(".buttons .plain").click()
    page.say("w4")
    assert last_of(parts, "gated").budget is None


def test_a_route_can_be_chosen_and_is_told(driver: Chrome, url: str, parts: ServerParts) -> None:
    from selenium.webdriver.support.ui import Select

    page = Page(driver, url)
    page.choose("stitched")
    page.until(lambda: page.all("#route"))
    Select(page.one("#route")).select_by_value("short")
    answer = page.say("w1 w2 w3")
    assert "route short" in answer.text
    assert last_of(parts, "stitched").routes == ((0, "short"),)
    page.shows("#last-facts dl", "route\nshort")
    page.shows("#last-facts tbody", "short\n1")


def test_what_a_model_writes_is_text(driver: Chrome) -> None:
    tokenizer = Tokenizer(files(byte_level()))
    ids = [*tokenizer.encode(HOSTILE, special=False), 1]
    session = session_of(ScriptedLm(ids).engine, SPEC, tokenizer)
    parts = parts_of(by_hand("hostile", session=session, spec=SPEC))
    with listening(parts) as url:
        page = Page(driver, url)
        answer = page.say(HOSTILE)
        page.until(lambda: page.text("#last-facts dl").startswith("ended\njust now"))
        time.sleep(0.1)
        assert answer.find_element("css selector", ".text").text == HOSTILE
        assert page.one(".said.user .text").text == HOSTILE
        assert driver.title == "adaptc serve"
        assert page.all("img") == []
        assert len(page.all("script")) == 1
        assert page.complaints() == []
        assert all(each.startswith((f"{url}/ui", f"{url}/v1/chat/")) for each in page.asked())


def test_an_answer_is_shown_as_it_comes_and_can_be_stopped(driver: Chrome) -> None:
    slow = Slow(0.15)
    with listening(slow.parts) as url:
        page = Page(driver, url)
        page.begin("x")
        lengths = {page.until(lambda: len(page.text(".said.assistant .text")) or None)}
        while len(lengths) < 4:
            assert page.one(".log").get_attribute("aria-busy") == "true"
            lengths.add(len(page.text(".said.assistant .text")))
        page.one(".buttons button:not([hidden]):not(.plain)").click()
        page.until(lambda: page.text(".trace") == "stopped")
        page.until(lambda: slow.parts.entrance.inside("hand") == 0)
        assert page.one(".log").get_attribute("aria-busy") == "false"


def test_load_is_shown_while_it_lasts_and_in_latency_after(driver: Chrome) -> None:
    slow = Slow(0.06)
    body = {"prompt": [3, 1, 4], "max_tokens": 50, "temperature": 0}
    with listening(slow.parts) as url:
        page = Page(driver, url)
        page.until(lambda: page.tile("Running") == "Running\n0 of 1\n0 waiting, 0 in the last minute")
        assert page.tile("First token") == "First token\n–\nnone in the last minute"
        asking = [
            threading.Thread(target=httpx.post, args=(f"{url}/v1/completions",), kwargs={"json": body, "timeout": 60})
            for _ in range(3)
        ]
        for each in asking:
            each.start()
        page.until(lambda: re.match(r"Running\n1 of 1\n[12] waiting", page.tile("Running")))
        page.until(lambda: page.tile("Tokens per second").splitlines()[1] not in ("–", "0"))
        for each in asking:
            each.join()
        page.until(lambda: "0 of 1" in page.tile("Running") and "3 in the last minute" in page.tile("Running"))
        [median] = [tile.splitlines()[1] for tile in (page.tile("Time per token"),)]
        assert 60 <= float(median.removesuffix(" ms")) < 600
        assert page.one("#charts svg path.c1").get_attribute("d")
        assert "waiting 0" in page.text("#charts .legend")


@contextmanager
def with_key() -> Iterator[str]:
    with listening(parts_of(by_hand(), keys=frozenset({hash_of(KEY)}))) as url:
        yield url


def test_a_key_is_asked_for_and_a_wrong_one_is_told(driver: Chrome) -> None:
    with with_key() as url:
        page = Page(driver, url)
        field = page.until(lambda: page.one("#key-text") if page.one("#key").is_displayed() else None)
        assert not page.one("#main").is_displayed()
        assert page.text("#key-wrong") == ""
        field.send_keys("wrong-wrong-wrong\n")
        page.until(lambda: page.text("#key-wrong") == "The server does not know this key.")
        field.send_keys("with a space\n")
        page.until(lambda: page.text("#key-wrong").startswith("A key has letters, digits and signs"))
        field.clear()
        field.send_keys(KEY + "\n")
        page.until(lambda: page.one("#main").is_displayed())
        assert "tokens" in page.say("x").find_element("css selector", ".trace").text
        assert not [each for each in page.asked() if KEY in each]
        assert KEY not in driver.page_source
        driver.refresh()
        page.until(lambda: page.one("#main").is_displayed())  # the tab knows it still
        page.one("#forget").click()
        page.until(lambda: page.one("#key").is_displayed())


def test_a_server_that_is_gone_is_missed_and_found_again(driver: Chrome) -> None:
    with listening(parts_of(by_hand(spec=SPEC))) as url:
        page = Page(driver, url)
        page.say("x")
    page.until(lambda: page.text("#connection") == "not reached")
    assert page.text("#trouble").startswith("No answer from the server since")
    page.begin("y")
    page.until(lambda: page.text(".trace .bad") == "The server does not answer.")
    assert page.one("#message").get_attribute("value") == "y"  # it need not be written again
    with listening(parts_of(by_hand(spec=SPEC)), int(url.rpartition(":")[2])):
        page.until(lambda: page.text("#connection") == "live")
        assert not page.one("#trouble").is_displayed()
        page.say("")
        page.until(lambda: page.text("#last-facts dl").startswith("ended\njust now"))


def test_a_server_that_drains_says_so(driver: Chrome) -> None:
    parts = parts_of(by_hand())
    with listening(parts) as url:
        page = Page(driver, url)
        page.until(lambda: page.one("#main").is_displayed())
        parts.entrance.draining = True
        page.until(lambda: page.text("#trouble") == "The server is ending, and takes no further request.")
        assert "it is ending and takes no further request" in page.say("x").text


def test_nobody_asks_while_nobody_looks(driver: Chrome, url: str) -> None:
    page = Page(driver, url)
    page.until(lambda: page.one("#main").is_displayed())
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    try:
        time.sleep(0.5)
        page.asked()
        time.sleep(2.2)
        assert page.asked() == set()
    finally:
        driver.close()
        driver.switch_to.window(first)
    page.until(lambda: f"{url}/ui/state" in " ".join(page.asked()))
