"""Library: what there is, and bringing more: folders, zips, files, paths, and refusals in the server's own sentence."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser.inspecting import ready
from browser.serving import Served

pytestmark = pytest.mark.browser


@pytest.fixture
def library(page: Page, served: Served) -> Page:
    page.goto(f"{served.base}/#/library")
    expect(page.get_by_role("heading", name="Bring your own")).to_be_visible()
    return page


def remove(page: Page, id: str) -> None:
    page.locator(f'.checkpoint[data-id="{id}"]').get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(f'.checkpoint[data-id="{id}"]')).to_have_count(0)


def uploaded(page: Page) -> str:
    made = page.locator(".checkpoint:has(.chip.upload)")
    expect(made).to_have_count(1)
    return made.get_attribute("data-id") or ""


def test_a_folder_is_uploaded_traced_and_deleted(library: Page, text_checkpoint: Path) -> None:
    library.get_by_label("A folder to upload").set_input_files(text_checkpoint)
    id = uploaded(library)
    made = library.locator(f'.checkpoint[data-id="{id}"]')
    expect(made).to_contain_text("2 × 4")
    made.get_by_role("button", name="Trace new text").click()
    dialog = library.get_by_role("dialog")
    dialog.get_by_label("Your text").fill("def fox(x): return the lazy dog\n" * 8)
    dialog.get_by_role("button", name="Trace it").click()
    library.wait_for_url(re.compile("#/inspect/"), timeout=120_000)
    ready(library)
    assert "fox" in "".join(library.locator("moe-text .tok").all_inner_texts())
    expect(library.locator(".check summary")).to_contain_text("capture")
    expect(library.locator("moe-trace-form textarea")).to_be_visible()
    library.get_by_role("link", name="Library").click()
    remove(library, id)


def test_a_zip_is_uploaded(library: Page, text_checkpoint: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", text_checkpoint.parent, text_checkpoint.name)
    library.get_by_label("A zip or a safetensors file to upload").set_input_files(archive)
    remove(library, uploaded(library))


def test_a_dropped_folder_is_uploaded(library: Page, text_checkpoint: Path) -> None:
    """Dropped files come as entries of a file system; here they are made of the same bytes."""
    files = {path.name: list(path.read_bytes()) for path in text_checkpoint.iterdir() if path.is_file()}
    library.evaluate(
        """async (files) => {
            const { dropped } = await import('/lib/drop.js');
            const made = (name) => new File([new Uint8Array(files[name])], name);
            const file = (name) => ({ isFile: true, name, file: (give) => give(made(name)) });
            const names = Object.keys(files);
            const folder = { isFile: false, name: 'dropped', createReader: () => {
                const left = [[file(names[0])], names.slice(1).map(file), []];
                return { readEntries: (give) => give(left.shift()) };
            } };
            const given = await dropped({ items: [{ webkitGetAsEntry: () => folder }], files: [] });
            if (given.some(({ path }) => !path.startsWith('dropped/'))) throw new Error('paths are lost');
            document.querySelector('moe-upload').send(given);
        }""",
        files,
    )
    remove(library, uploaded(library))


def test_a_path_is_opened_in_place_and_its_files_stay(library: Page, text_checkpoint: Path) -> None:
    library.get_by_label("Path on this machine").fill(str(text_checkpoint))
    library.get_by_role("button", name="Open path").click()
    made = library.locator(".checkpoint:has(.chip.path)")
    expect(made).to_have_count(1)
    remove(library, made.get_attribute("data-id") or "")
    assert (text_checkpoint / "model.safetensors").is_file()


def test_a_pickle_in_disguise_is_refused_in_a_sentence(library: Page, expected: list[str], tmp_path: Path) -> None:
    expected.append("400")
    bad = tmp_path / "model.safetensors"
    bad.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    library.get_by_label("A zip or a safetensors file to upload").set_input_files(bad)
    refusal = library.locator(".refusal")
    expect(refusal).to_be_visible()
    words = refusal.inner_text()
    assert words.endswith(".") and len(words) > 20 and "Traceback" not in words
    expect(library.locator(".checkpoint:has(.chip.upload)")).to_have_count(0)


def test_a_path_that_is_not_there_is_refused_in_a_sentence(library: Page, expected: list[str]) -> None:
    expected.append("400")
    library.get_by_label("Path on this machine").fill("/nowhere/at/all")
    library.get_by_role("button", name="Open path").click()
    expect(library.locator(".refusal")).to_contain_text("/nowhere/at/all")


def test_presets_say_what_they_show_and_how_long_they_take(library: Page) -> None:
    presets = library.locator(".preset")
    expect(presets.first).to_be_visible()
    for preset in presets.all():
        expect(preset.get_by_role("button", name="Start")).to_be_visible()
        assert re.search(r"about \d+ (s|min)", preset.inner_text())
