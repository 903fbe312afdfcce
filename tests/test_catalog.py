"""The table of all methods: read from files, equal to what the rooms say when they are imported, with nothing empty."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import eckart
from eckart import catalog
from eckart.adapters import ADAPTERS, PROMPTS, AdapterConfig, LoRAConfig, get_config, make_config
from eckart.catalog import ROOMS, check_options, find_adapter, read_room

SOURCE = Path(eckart.__file__).parent
PLUGIN = '''
"""One method."""
from eckart.adapters import LoRAConfig, register_adapter
import not_installed_anywhere

@register_adapter("{slug}", title={title}, paper="Nobody, 2026", arxiv="2601.00001", trains="B", saves="B")
class {slug}Config(LoRAConfig):
    """LoRA, again.

    More of it.
    """
    extra: int = 3
'''


def test_every_method_of_every_room_is_listed_once_by_family_and_slug() -> None:
    rows = eckart.methods()
    assert [(row.family, row.slug) for row in rows] == sorted({(row.family, row.slug) for row in rows})
    assert all(all(dataclasses.astuple(row)) for row in rows)
    assert [row for family in ROOMS for row in eckart.methods(family)] == rows
    assert {row.family for row in rows} == set(ROOMS)


def test_a_room_with_methods_is_in_the_list_of_rooms() -> None:
    inits = {path.parent.name: path.read_text("utf-8") for path in SOURCE.glob("*/__init__.py")}
    assert {room for room, text in inits.items() if "\nMETHODS" in text} | {
        "adapters",
        "federated",
        "training",
    } == set(ROOMS)


@pytest.mark.parametrize("slug", sorted([*ADAPTERS, *PROMPTS]))
def test_adapters_are_read_as_they_are_registered(slug: str) -> None:
    config = get_config(slug)
    method = find_adapter(slug)
    assert method.info == catalog.MethodInfo(
        slug=config.slug,
        name=config.title,
        family=config.family,
        paper=config.paper,
        arxiv=config.arxiv,
        knob=config.knob,
        trains=config.trains,
        saves=config.saves,
        summary=(config.__doc__ or "").splitlines()[0],
    )
    assert method.aliases == config.aliases
    assert all(find_adapter(f" {name.upper()} ") == method for name in (slug, *config.aliases))
    assert set(method.options) == {field.name for field in dataclasses.fields(config) if field.init}


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in ("adapters", "training")])
def test_other_rooms_are_read_as_they_are_imported(room: str) -> None:
    listed = importlib.import_module(f"eckart.{room}").METHODS
    rows = [dataclasses.asdict(method.info) for method in read_room(room)]
    assert sorted(rows, key=lambda row: row["slug"]) == sorted(listed, key=lambda row: row["slug"])
    assert {row["family"] for row in rows} == {room}


def test_reading_loads_neither_torch_nor_peft() -> None:
    code = "import sys, eckart; eckart.methods(); assert not {'torch', 'peft', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_recovery_rows_name_an_estimator_and_a_hyper_parameter_of_it() -> None:
    for row in eckart.methods("recovery"):
        assert row.knob in getattr(eckart.recovery, row.name)().get_params()


def test_unknown_family_is_refused() -> None:
    with pytest.raises(
        eckart.InputError,
        match="unknown family 'pets': known are adapters, compression, federated, layers",
    ):
        eckart.methods("pets")


@pytest.mark.parametrize("name", ["lorra", "sv-fit", "zzzzzz", ""])
def test_unknown_methods_are_refused_in_the_words_of_the_registry(name: str) -> None:
    with pytest.raises(eckart.InputError) as here:
        find_adapter(name)
    with pytest.raises(eckart.InputError) as there:
        get_config(name)
    assert str(here.value) == str(there.value)


@pytest.mark.parametrize(
    ("slug", "option", "value"),
    [
        ("lora", "r", 0),
        ("lora", "r", 2.5),
        ("lora", "r", "two"),
        ("lora", "r", True),
        ("lora", "lora_alpha", "x"),
        ("lora", "dropout", float("nan")),
        ("lora", "use_rslora", 1),
        ("lora", "rank", 3),
        ("svfit", "param", "linear"),
    ],
)
def test_options_are_refused_in_the_words_of_the_config(slug: str, option: str, value: object) -> None:
    with pytest.raises(eckart.InputError) as here:
        check_options(find_adapter(slug), {option: value})
    with pytest.raises(eckart.InputError) as there:
        make_config(slug, **{option: value})
    assert str(here.value) == str(there.value)


@pytest.mark.parametrize(
    ("slug", "options"),
    [
        ("lora", {"r": 4, "lora_alpha": 8, "dropout": 0, "use_rslora": True, "inference_mode": False}),
        ("lora", {"r": None, "target_modules": ["q"], "seed": 3, "route": "folded"}),
        ("svfit", {"energy": 0.9, "param": "log", "nonneg": True}),
        ("bone", {"variant": "bat", "r": 8}),
    ],
)
def test_options_that_the_config_takes_pass(slug: str, options: dict[str, object]) -> None:
    make_config(slug, **options)
    check_options(find_adapter(slug), options)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package outside the tree, in a directory to import from, whose entry point names its module ``methods``."""
    package = tmp_path / "eckart_plugin_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    points = [EntryPoint("plugin", "eckart_plugin_of_a_test.methods", "eckart.adapters")]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalog, "entry_points", lambda group: points if group == "eckart.adapters" else [])
    yield package / "methods.py"
    assert not {name for name in sys.modules if name.startswith("eckart_plugin_of_a_test")}


def test_methods_of_other_packages_are_read_without_importing_them(plugin: Path) -> None:
    plugin.write_text(PLUGIN.format(slug="other", title='"Other"'))
    method = find_adapter("other")
    assert (method.info.name, method.info.knob, method.info.summary) == ("Other", "r", "LoRA, again.")
    assert {"extra", "lora_alpha", "dropout", "task_type"} <= set(method.options)
    assert method.info in eckart.methods("adapters")


def test_methods_of_other_packages_that_cannot_be_read_are_left_to_the_registry(plugin: Path) -> None:
    plugin.write_text(PLUGIN.format(slug="other", title='"Ot" + "her".lower()'))
    assert [row.slug for row in eckart.methods("adapters")] == sorted([*ADAPTERS, *PROMPTS])


def test_a_method_that_a_script_registers_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Mine(LoRAConfig):
        """Mine."""

        mine: int = 1

    Mine.slug = "mine"
    monkeypatch.setitem(ADAPTERS, "mine", Mine)
    assert "mine" in find_adapter("mine").options
    assert [row.summary for row in eckart.methods("adapters") if row.slug == "mine"] == ["Mine."]
    assert issubclass(Mine, AdapterConfig)
