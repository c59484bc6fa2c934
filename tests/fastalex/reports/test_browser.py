"""The page in a real browser: no errors, every image is drawn, and what is clicked answers."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

BEFORE = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message || event.target.tagName)), true);
addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective + " " + event.blockedURI));
console.error = (...words) => problems.push(words.join(" "));
window.alert = () => problems.push("a name was run as a script");
</script>"""

# Clicks, and writes what it saw into the page, from where --dump-dom brings it here.
AFTER = """<script>
addEventListener("load", async () => {
  const seen = {}, column = (table, index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  const table = document.querySelector(".sortable"), heads = table.tHead.rows[0].cells;
  const head = (text) => [...heads].findIndex((cell) => cell.textContent.startsWith(text));
  seen.sorts = [];
  for (const name of ["top-1", "top-1", "class", "class", "most often"]) {
    heads[head(name)].querySelector("button").click();
    seen.sorts.push([name, heads[head(name)].ariaSort, column(table, head(name)).map((text) => text.trim())]);
  }
  seen.sorted_heads = document.querySelectorAll("[aria-sort]").length;
  seen.panels = [];
  for (const button of document.querySelectorAll("[data-cell]")) {
    button.click();
    const panel = button.closest("section").querySelector(".images");
    seen.panels.push([button.title, panel.querySelector("h4").textContent, panel.querySelectorAll("li").length,
                      Number(button.textContent), button.ariaPressed]);
  }
  const chart = document.querySelector("[data-chart='1']"), box = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right - 15, clientY: box.top + 20}));
  seen.values = [...chart.parentNode.querySelectorAll(".values div")].map((line) => line.textContent);
  await Promise.all([...document.images].map((image) => image.decode().catch(() => 0)));
  seen.images = document.images.length;
  seen.missing = [...document.images].filter((image) => !image.naturalWidth).map((image) => image.alt);
  seen.too_wide = document.documentElement.scrollWidth - innerWidth;
  seen.problems = problems;
  document.body.insertAdjacentHTML("beforeend", "<p id=outcome></p>");
  document.getElementById("outcome").textContent = JSON.stringify(seen);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_page_works_in_a_browser_on_a_phone(page, tmp_path):
    assert BROWSER is not None
    text = page.read_text(encoding="utf-8")
    copy = tmp_path / "page.html"
    copy.write_text(text.replace("<title>", BEFORE + "<title>", 1).replace("</body>", AFTER + "</body>", 1))
    seen = outcome(BROWSER, copy, tmp_path / "profile")
    assert seen["problems"] == []
    assert seen["missing"] == []
    assert seen["images"] > 40
    assert seen["too_wide"] <= 0
    # Numbers start with the highest, names with the first; a second click turns the order round.
    (_, down, highest), (_, up, lowest), (_, first, names), (_, last, turned), (_, _, taken) = seen["sorts"]
    assert (down, up, first, last) == ("descending", "ascending", "ascending", "descending")
    assert [float(value) for value in highest] == sorted(map(float, highest), reverse=True)
    assert [float(value) for value in lowest] == sorted(map(float, lowest))
    assert names == turned[::-1]
    assert len(set(names)) == 3
    confused = [name for name in taken if name]
    assert taken == [*sorted(confused), *[""] * (3 - len(confused))]  # classes without errors come last
    assert 0 < len(confused) < 3
    assert seen["sorted_heads"] == 1
    assert seen["panels"]
    for title, heading, shown, count, pressed in seen["panels"]:
        assert " ".join(heading.split()) == " ".join(title.split())
        assert (shown, pressed) == (count, "true")
    assert sum(count for *_, count, _ in seen["panels"]) == 18  # both runs
    assert [line for line in seen["values"] if "validation" in line] == [
        "one, validation, epoch 3: 50",
        "t&w#o <b>, validation, epoch 3: 50",
    ]


def outcome(browser: str, page: Path, profile: Path) -> dict:
    """Open a page in a window of a phone's width, and return what its script has written."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--no-first-run"]
    command += ["--window-size=500,900", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=170, check=True)
    found = re.search(r'<p id="outcome">(.*?)</p>', done.stdout.decode(), re.DOTALL)
    assert found, done.stderr.decode()[-2000:]
    return json.loads(unescape(found[1]))
