"""Reading recipes: syntax, `extends`, `--set`, and how they are merged."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.config import bundled_recipes, load_recipe, read_json
from muomni.config.loader import as_change, find_recipe, merge
from muomni.errors import ConfigError

MINIMAL = '{"data": {"train": "book.txt"}, "max_steps": 100}'


def write(folder: Path, text: str | bytes, name: str = "recipe.json") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    return str(caught.value)


# Syntax


def test_comments_and_trailing_commas(tmp_path: Path) -> None:
    text = '\ufeff{ // a\n "data": {"train": ["a.txt", /* b */ "b//c.txt",],},\n "max_steps": 100,\n}'
    recipe = load_recipe(str(write(tmp_path, text)))
    assert [source.path for source in recipe.data.train] == ["a.txt", "b//c.txt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "b" 2}', 'recipe.json:2:6: not valid JSON: unexpected "2"'),
        ('{\n "a": {\n', "recipe.json:3:1: not valid JSON: unexpected end of input"),
        ('{"a": {"b": 1, "b": 2}}', 'recipe.json: not valid JSON: duplicate key "b"'),
        ("", "recipe.json: is empty"),
        ("[1]", "recipe.json: holds a list, not an object"),
        (b'{"a": "\xff"}', "recipe.json: is not UTF-8 text (byte 7)"),
        (b"\x00" * 300_000, "recipe.json: is larger than 256 KiB"),
        (r'{"a": "\ud83d"}', r"recipe.json: not valid JSON: half a character in '\ud83d'"),
        ("[" * 100_000, "recipe.json: not valid JSON: brackets nested too deep"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_json(write(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_json(tmp_path / "none.json")


# Finding recipes


def test_an_unknown_name_suggests_one() -> None:
    with pytest.raises(ConfigError, match="did you mean text-tiny"):
        find_recipe("text-tny")
    with pytest.raises(ConfigError, match="there are .*text-nano, text-tiny"):
        find_recipe("zzz")


def test_the_schema_is_not_a_recipe() -> None:
    assert "recipe.schema" not in bundled_recipes()
    with pytest.raises(ConfigError):
        find_recipe("recipe.schema")


def test_odd_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        find_recipe(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        find_recipe("x" * 5000)


@pytest.mark.parametrize("name", [name for name in bundled_recipes() if name != "speak-tiny"])
def test_bundled_recipes_want_only_data(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(name)
    assert str(caught.value).endswith(
        f"{name}.json: data.train is missing: say `--set data.train=FILE`, or write it into the recipe"
    )
    recipe = load_recipe(name, ["data.train=book.txt"])
    assert recipe.name == name
    assert recipe.data.train[0].path == "book.txt"


# extends


def test_extends_lays_over(tmp_path: Path) -> None:
    write(tmp_path, '{"data": {"train": ["a", "b"], "seq_len": 64}, "max_steps": 100, "batch_size": 2}', "base.json")
    write(tmp_path, '{"extends": "base.json", "data": {"train": "c"}, "seed": 5}', "middle.json")
    top = write(tmp_path, '{"extends": "middle.json", "batch_size": 3}')
    recipe = load_recipe(str(top))
    assert [source.path for source in recipe.data.train] == ["c"]  # a list is replaced whole
    assert (recipe.data.seq_len, recipe.batch_size, recipe.seed, recipe.max_steps) == (64, 3, 5, 100)


def test_extends_a_bundled_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(str(write(tmp_path, '{"extends": "text-nano", "data": {"train": "x"}}')))
    assert recipe.model.preset == "nano"


def test_extends_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="extends: x+: cannot be read"):
        load_recipe(str(write(tmp_path, json.dumps({"extends": "x" * 5000}))))


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, '{"extends": "b.json"}', "a.json")
    write(tmp_path, json.dumps({"extends": f"../{tmp_path.name}/a.json"}), "b.json")
    said = error_of(tmp_path / "a.json")
    assert "extends itself" in said
    assert said.count("->") == 2


def test_extends_what_is_not_there(tmp_path: Path) -> None:
    said = error_of(write(tmp_path, '{"extends": "nothing"}'))
    assert "recipe.json: extends: no recipe 'nothing'" in said
    assert "extends = 5" in error_of(write(tmp_path, '{"extends": 5}'))


def test_the_later_of_two_excluding_keys_wins(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(str(path), ["epochs=2", "model.init_from=runs/a"])
    assert (recipe.max_steps, recipe.epochs) == (None, 2)
    assert load_recipe(str(path), ["epochs=2", "max_steps=70"]).epochs is None
    assert (recipe.model.preset, recipe.model.init_from) == (None, "runs/a")


# --set


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("a=1", {"a": 1}),
        ("a.b=1e-3", {"a": {"b": 1e-3}}),
        ("a=true", {"a": True}),
        ("a=null", {"a": None}),
        ('a=["x", 2]', {"a": ["x", 2]}),
        ("a={b: 1}", {"a": {"b": 1}}),
        ("a=runs/x", {"a": "runs/x"}),
        ("a=//server/x", {"a": "//server/x"}),
        ("a=b=c", {"a": "b=c"}),
        ('a="5"', {"a": "5"}),
        (r'a="\ud83d\ude00"', {"a": "😀"}),
        ("a=", {"a": ""}),
    ],
)
def test_set_values(override: str, change: dict[str, object]) -> None:
    assert as_change(override) == change


@pytest.mark.parametrize("override", ["", "a", "=1", "a..b=1", ".a=1"])
def test_set_without_key(override: str) -> None:
    with pytest.raises(ConfigError, match="write it as key=value"):
        as_change(override)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), min_size=1, max_size=4)


@given(path=keys, value=json_values)
def test_set_takes_any_json(path: list[str], value: object) -> None:
    found = as_change(f"{'.'.join(path)}={json.dumps(value)}")
    for part in path:
        found = found[part]
    assert found == value
    assert type(found) is type(value)


# merge

objects = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        st.integers() | st.lists(st.integers(), max_size=2), lambda i: st.dictionaries(st.sampled_from("abc"), i)
    ),
)


@given(objects, objects, objects)
def test_merge_rules(first: dict[str, object], second: dict[str, object], third: dict[str, object]) -> None:
    before = json.dumps([first, second])
    merged = merge(first, second)
    assert json.dumps([first, second]) == before  # neither is changed
    assert merge(first, {}) == first
    assert merge({}, first) == first
    assert merge(merged, second) == merged
    assert set(merged) == set(first) | set(second)
    for key, value in second.items():
        if not isinstance(value, dict):
            assert merged[key] == value
    assert merge(merge({}, second), third) == merge(second, third)


@pytest.mark.parametrize("value", ['["\\udcff.jsonl"]', '["\udcff.jsonl"]'])
def test_a_name_that_is_not_utf_8_is_told(value: str) -> None:
    with pytest.raises(ConfigError, match="--set: data.train = .*must be UTF-8: rename the file or folder"):
        as_change(f"data.train={value}")
