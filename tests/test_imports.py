"""Threads that need heavy packages at the same moment all get them whole."""

from __future__ import annotations

import subprocess
import sys

THREADS = """
import threading
from moescope.imports import import_models, import_views

def card():
    import_models()
    from moescope.adapters.ours import inspect_ours

def run():
    import_models()
    from moescope.train.config import load_run_config

def picture():
    import_views()
    from moescope.figures.cards import findings
    from moescope.projection import project

wrong = []

def go(work):
    try:
        barrier.wait()
        work()
    except BaseException as error:
        wrong.append(repr(error))

works = [card, run, picture, run, card, picture]
barrier = threading.Barrier(len(works))
threads = [threading.Thread(target=go, args=(work,)) for work in works]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(wrong)
"""


def test_first_imports_from_many_threads_do_not_disturb_each_other() -> None:
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.strip() == "[]"


def test_views_do_not_import_torch() -> None:
    code = "import sys; from moescope.imports import import_views; import_views(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
