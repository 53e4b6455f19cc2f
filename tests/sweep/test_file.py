"""Sweep files: what they say, what they may not say, and the bundled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moescope.errors import InputError
from moescope.sweep import SWEEPS, folder_name, read_sweep, sweep_presets
from moescope.sweep.grid import build
from moescope.sweep.names import MetricName

FILE = """
title = "Two"
base = "clusters"
seeds = [3, 4]
metrics = ["eval_loss", "mutual_information"]

[set]
optim.steps = 7
optim.warmup = 1

[variants.here]
label = "as it is"
[variants.there]
model.router = "topk_softmax"
model.router_config.k = 1
"optim.batch" = 9

[[claims]]
metric = "mutual_information:cluster"
variant = "there"
against = "here"
direction = "higher"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my-sweep.toml"
    path.write_text(text)
    return path


def test_a_file_becomes_cells_seed_by_seed(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path, FILE))
    assert (sweep.name, sweep.config.title, sweep.config.against) == ("my-sweep", "Two", "here")
    grid = build(sweep, {"optim.lr": 0.5})
    assert [cell.name for cell in grid.cells] == ["here-s3", "there-s3", "here-s4", "there-s4"]
    first, second, *_ = (cell.config for cell in grid.cells)
    assert (first["seed"], first["optim"]["steps"], first["optim"]["lr"]) == (3, 7, 0.5)
    assert first["model"]["router_config"] == {"capacity_factor": 8.0}
    assert second["model"]["router_config"] == {"k": 1} and second["optim"]["batch"] == 9
    assert first["data"]["seed"] == second["data"]["seed"] == 0
    assert len(grid.notes) == 1 and "optim.batch is 9, not 128" in grid.notes[0] and grid.leaky == ()


def test_a_base_may_be_a_file_beside_it_or_a_table(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[model]\nd_model = 32\nnum_heads = 2\n")
    beside = read_sweep(written(tmp_path, 'base = "run.toml"\n[variants.a]\n'))
    assert build(beside, {}).cells[0].config["model"]["d_model"] == 32
    inline = read_sweep(written(tmp_path, "[base]\nmodel.d_model = 64\n[variants.a]\n"))
    assert build(inline, {}).cells[0].config["model"]["d_model"] == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "not TOML"),
        ('base = "clusters"\n', "no table"),
        ('base = "clusters"\n[variants]\n', "at least one"),
        ('base = "clusters"\n[variants]\na = 1\n', "not a table"),
        ('base = "clusters"\n[variants.A]\n', "'A' is no name"),
        ('base = "clusters"\nseeds = [0, 0]\n[variants.a]\n', "twice"),
        ('base = "clusters"\nmetrics = ["loss of hair"]\n[variants.a]\n', "not the name of a metric"),
        ('base = "clusters"\nmetrics = ["maxvio.nothing"]\n[variants.a]\n', "no detail"),
        ('base = "clusters"\nreference = "b"\n[variants.a]\n', "the variants are a"),
        ('base = "clusters"\nodd = 1\n[variants.a]\n', "odd"),
        (FILE.replace('against = "here"', 'against = "nowhere"'), "the variants are here, there"),
        (FILE.replace('against = "here"', 'against = "there"'), "with itself"),
        (FILE.replace('"mutual_information:cluster"', '"maxvio"'), "not among"),
        (FILE.replace('"higher"', '"within"'), "margin above 0"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        read_sweep(written(tmp_path, text))
    assert words in str(error.value) and "\n" not in str(error.value).strip()


def test_a_variant_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    for settings in ("seed = 1", 'model.router = "nix"', "model.odd = 1"):
        text = f'base = "clusters"\n[variants.fine]\n[variants.bad]\n{settings}\n'
        with pytest.raises(InputError, match="'bad'"):
            build(read_sweep(written(tmp_path, text)), {})


def test_the_seed_is_the_sweeps_to_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--seeds"):
        build(read_sweep(written(tmp_path, 'base = "clusters"\n[variants.a]\n')), {"seed": 5})
    with pytest.raises(InputError, match="--seeds"):
        build(read_sweep(written(tmp_path, 'base = "clusters"\n[set]\nseed = 5\n[variants.a]\n')), {})


def test_each_seed_may_draw_its_own_data(tmp_path: Path) -> None:
    for fresh, expected in (("false", [9, 9]), ("true", [3, 4])):
        text = f'base = "clusters"\nseeds = [3, 4]\nfresh_data = {fresh}\n[set]\ndata.seed = 9\n[variants.a]\n'
        cells = build(read_sweep(written(tmp_path, text)), {}).cells
        assert [cell.config["seed"] for cell in cells] == [3, 4]
        assert [cell.config["data"]["seed"] for cell in cells] == expected


def test_names_of_metrics() -> None:
    whole = MetricName.parse("mutual_information.corrected:my label")
    assert (whole.name, whole.detail, whole.label) == ("mutual_information", "corrected", "my label")
    assert MetricName.parse("eval_loss@40").step == 40
    excess = MetricName.parse("evals.corrupted.excess")
    assert (excess.eval, excess.part) == ("corrupted", "excess")


def test_the_same_command_means_the_same_folder(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path, FILE))
    assert folder_name(sweep, {}, None) == "my-sweep"
    shorter = folder_name(sweep, {"optim.steps": 3}, None)
    assert shorter == folder_name(sweep, {"optim.steps": 3}, None) != folder_name(sweep, {"optim.steps": 3}, (0,))
    assert shorter.startswith("my-sweep-")


@pytest.mark.parametrize("name", SWEEPS)
def test_a_bundled_sweep_can_be_run(name: str) -> None:
    config = sweep_presets()[name]
    assert config.title and config.description and config.seconds and len(config.seeds) >= 3
    grid = build(read_sweep(name), {})
    shapes: list[Any] = [cell.config["data"] for cell in grid.cells]
    if config.fresh_data:  # how the same rule does on data that differ: seeds and variants draw their own
        assert all(cell.config["data"]["seed"] == cell.seed for cell in grid.cells)
    else:
        assert all(shape == shapes[0] for shape in shapes) and grid.notes == ()
