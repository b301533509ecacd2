"""Does anything that a model wrote run in answers.html? Asks a real browser, headless.

    python tests/browser.py [chromium]      the browser's command

Hostile strings stand in every field that data or a model fills. Each would set the title,
add an element or open an address if the page took it as anything but text.
"""
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import opct  # noqa: E402
import torch  # noqa: E402

HOSTILE = [
    "<script>document.title='run'</script>", "</script><script>document.title='run'",
    "<img src=x onerror=\"document.title='run'\">", "<svg onload=\"document.title='run'\">",
    "<a href=\"javascript:document.title='run'\">x</a>", "<style>*{display:none}</style>",
    "<iframe src=\"javascript:parent.document.title='run'\"></iframe>", "<!--", "{{DATA}}",
    "\u202eright to left\u2066", "\u2028", "' onmouseover='document.title=1' x='", "${1+1}"]
EXPECTED = ({"p", "b", "span", "div"}, {"class", "style", "title"},  # elements, attributes
            "Answers before and after")

def page_of(texts, out):
    """Write the page of a run whose data and answers are these texts."""
    run, share = object.__new__(opct.Run), opct.interval([True, False], [0, 1])
    run.cfg, run.out, run.log, run.began = opct.Config(model=texts[1]), Path(out), [{}], 0.0
    run.model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    answers = [{"clean": x, "wrapped": x, "clean_verdict": x, "wrapped_verdict": x,
                "tokens": [[x, 0.5]]} for x in texts]
    pairs = [opct.Pair(opct.chat(x), opct.chat(x), {"id": x, "answer": x}, x, "unseen")
             for x in texts]
    side = {"unseen": {"consistency": share, "kl": share}, "answers": answers}
    run.results(pairs, dict(side), dict(side))
    return (Path(out) / "answers.html").as_uri()

def main():
    with tempfile.TemporaryDirectory() as folder:
        dom = subprocess.run(
            [*(sys.argv[1:] or ["chromium"]), "--headless", "--no-sandbox", "--disable-gpu",
             "--virtual-time-budget=3000", "--dump-dom", page_of(HOSTILE, folder)],
            capture_output=True, text=True, check=True).stdout
    body = dom.split("<main>")[1].split("</main>")[0]
    tags = re.findall(r"<[^>]*>", body)  # in text the browser writes "<" as "&lt;"
    names = {x for tag in tags for x in re.findall(r' ([\w-]+)="', tag)}
    found = {*re.findall(r"<(\w+)", body)}, names
    found = *found, re.search("<title>(.*?)</title>", dom)[1]
    print(len(HOSTILE), *found)
    if found != EXPECTED or body.count('class="row"') != len(HOSTILE):
        raise SystemExit("more than text in the page, or an answer is missing")

if __name__ == "__main__":
    main()
