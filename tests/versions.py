"""Run all tests; keep the versions of the packages that they ran on, and the outcome.

    python tests/versions.py [--write data/results/versions.json]

The file has one row per set of versions, the newest outcome.
"""
import argparse
import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = "torch", "transformers", "tokenizers", "numpy", "pytest"

class Outcome:
    """Told by pytest when the tests are done."""

    def pytest_sessionfinish(self, session):
        self.tests, self.failed = session.testscollected, session.testsfailed

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write")
    args, more = parser.parse_known_args()  # more: flags of pytest
    outcome, began = Outcome(), time.time()
    code = pytest.main(["-q", str(ROOT / "tests"), *more], plugins=[outcome])
    import opct  # not before conftest.py has set the environment
    row = {name: importlib.metadata.version(name) for name in PACKAGES}
    new = {"python": platform.python_version(), **row, "tests": outcome.tests,
           "failed": outcome.failed, "seconds": round(time.time() - began)}
    if args.write:
        path = Path(args.write)
        old = json.loads(path.read_text())["rows"] if path.exists() else []
        rows = [r for r in old if {**r, **row} != r] + [new]
        text = json.dumps({"rows": rows, "versions": opct.VERSIONS}, indent=1)
        path.write_text(text + "\n")
    print(json.dumps(new))
    return code

if __name__ == "__main__":
    sys.exit(main())
