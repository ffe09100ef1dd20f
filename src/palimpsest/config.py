"""The configuration: what a scale is made of, the editors' named settings, and the experiments. Read, checked, merged.

Everything that is wrong is reported at once, with key, value and remedy, before any job starts. Standard library, PyYAML
and jsonschema only: the workflow loads this for every job.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from palimpsest.errors import PalimpsestError
from palimpsest.files import read_json
from palimpsest.plain import schema_of, suggest, unwritable

RATIO = (
    "_ratio"  # x and x_ratio are two ways of giving one number: whoever sets one of them takes the other away
)
# What the workflow asks of an editor's class; editors.schema.json has it, so that no editor is imported to plan a scale.
TRAITS = ("needs_statistics", "needs_subject", "needs_decoder", "learns", "shares_targets")


class ConfigError(PalimpsestError):
    """The configuration cannot be used; the text lists every problem found."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(dict.fromkeys(problems))
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__(
            f"{count} in the configuration:\n" + "\n".join(f"  - {problem}" for problem in self.problems)
        )


@dataclass
class Config:
    """A checked configuration.

    Attributes:
        scale: the content of the scale's file, defaults filled in.
        editors: name -> content of `config/editors/{name}.yaml`.
        experiments: name -> content of its entry in `config/experiments/*.yaml`, with `paper` and `group`.
        settings_schema: name -> JSON schema of the editor's settings.
    """

    scale: dict[str, Any]
    editors: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings_schema: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the scale."""
        return str(self.scale["scale"])

    def trait(self, editor: str, name: str) -> bool:
        """One of `TRAITS` of an editor's class."""
        return bool(self.settings_schema[editor].get("traits", {}).get(name))


def repository_root() -> Path:
    """The directory with `config/` and `workflow/`: the checkout this package was installed from."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "workflow" / "schemas").is_dir():
        raise PalimpsestError(
            f"{root} has no workflow/ directory. Experiments are run from a checkout: clone the repository and use `make setup`"
        )
    return root


def use_this_python() -> None:
    """Let `python` in child processes be the running interpreter, whether its environment was activated or not."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def read_yaml(path: Path | str) -> Any:
    """Read a YAML file; a key that is given twice is an error, since the first value would silently be lost; so is one that is
    no text."""
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses repeated keys."""

    def mapping(loader: Any, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]!r} is given twice", node.start_mark
            )
        loader.flatten_mapping(node)
        content = {}
        for key, value in node.value:
            name = loader.construct_object(key, deep=True)
            if not isinstance(name, str):  # on, yes and 1 without quotes
                what = f"the key {name!r:.40} is no text. Put it into quotes"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            content[name] = loader.construct_object(value, deep=True)
        return content

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise ConfigError([f"file {path} cannot be read ({error.strerror}). Check the path"]) from error
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # dates and keys that cannot be, no UTF-8
        raise ConfigError([f"file {path} is not valid YAML: {error}"]) from error


def load_config(scale: Mapping[str, Any] | Path | str, root: Path | None = None) -> Config:
    """Load and check everything a scale needs.

    Args:
        scale: the content of a scale's file (what Snakemake has merged) or the path of one.
        root: the checkout; found from the package when not given.

    Raises:
        ConfigError: with all problems of the file's form; cross references are checked by `experiments.plan`.
    """
    root = root or repository_root()
    content = scale if isinstance(scale, Mapping) else read_yaml(scale) or {}
    if not isinstance(content, Mapping):
        raise ConfigError([f"file {scale} holds {type(content).__name__}, expected keys with values"])
    content = dict(content)
    schemas = root / "workflow" / "schemas"
    problems = check(content, read_json(schemas / "config.schema.json"), "config")
    if problems:
        raise ConfigError(problems)
    fill_defaults(content, read_json(schemas / "config.schema.json"))
    settings_schema = read_json(schemas / "editors.schema.json")["editors"]
    if content["editors"] == "all":
        content["editors"] = list(settings_schema)
    editors, problems = _load_editors(content["editors"], root, settings_schema)
    problems += _scale_settings_problems(content, editors, settings_schema)
    experiments, more = _load_experiments(root)
    if problems or more:
        raise ConfigError(problems + more)
    return Config(content, editors, experiments, settings_schema)


def check(content: Any, schema: Mapping[str, Any], where: str) -> list[str]:
    """Problems of `content` under a JSON schema, each naming key, value and remedy."""
    import jsonschema

    if odd := [f"{where}: {problem}" for problem in unwritable(content)]:
        return odd  # schemas are about JSON
    validator = jsonschema.Draft202012Validator(schema)
    return [
        _explain(error, where)
        for error in sorted(validator.iter_errors(content), key=lambda e: list(map(str, e.path)))
    ]


def fill_defaults(content: Any, schema: Mapping[str, Any], whole: Mapping[str, Any] | None = None) -> None:
    """Write the schema's defaults into `content`, in place."""
    whole = whole or schema
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    if isinstance(content, dict):
        for key, sub in schema.get("properties", {}).items():
            if key not in content and "default" in sub:
                content[key] = json.loads(json.dumps(sub["default"]))
            if key in content:
                fill_defaults(content[key], sub, whole)
        rest = schema.get("additionalProperties")
        if isinstance(rest, dict):
            for key in content:
                if key not in schema.get("properties", {}):
                    fill_defaults(content[key], rest, whole)
    elif isinstance(content, list) and isinstance(schema.get("items"), dict):
        for item in content:
            fill_defaults(item, schema["items"], whole)


def merge_settings(*layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Later layers win; of x and x_ratio only the one set last survives."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in (layer or {}).items():
            if value is not None:
                merged.pop(_other_way(key), None)
            merged[key] = value
    return merged


def editor_settings(
    config: Config, editor: str, variant: str, model: str, protocol: str | None
) -> dict[str, Any]:
    """Settings of a named variant for one model and protocol, before sweeps and without the dataclass's defaults.

    Order, later wins: the file's `settings`, its `protocols`, the `settings` of the model's preset, its `protocols`, what the
    scale says at the model, then the variant's `settings` and its entry for the preset, then the scale's `settings`: those of
    the editor, then those of the variant.

    Args:
        model: its name at this scale.
        protocol: None for the training of an editor: `protocols` do not count.
    """
    content, named = config.editors[editor], config.scale["models"][model]
    preset = named.get("preset") or model
    own = content.get("models", {}).get(preset, {})
    chosen = content["variants"][variant]
    return merge_settings(
        content.get("settings"),
        content.get("protocols", {}).get(protocol),
        own.get("settings"),
        own.get("protocols", {}).get(protocol),
        named.get("settings", {}).get(editor),
        chosen.get("settings"),
        chosen.get("models", {}).get(preset),
        config.scale.get("settings", {}).get(editor),
        config.scale.get("settings", {}).get(f"{editor}:{variant}"),
    )


def without_scale_settings(config: Config) -> Config:
    """The same without the scale's `settings`, which may level variants on purpose (few steps in smoke runs)."""
    return replace(config, scale={**config.scale, "settings": {}})


def complete_settings(config: Config, editor: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of the editor's dataclass, so that a run's spec states everything."""
    properties = config.settings_schema[editor]["properties"]
    taken = {_other_way(name) for name, value in settings.items() if value is not None}
    complete = {}
    for name, entry in properties.items():
        if name in settings:
            complete[name] = settings[name]
        elif name in taken and _may_be_null(entry):
            complete[name] = None
        elif "default" in entry:
            complete[name] = entry["default"]
    return complete


def _other_way(name: str) -> str:
    return name.removesuffix(RATIO) if name.endswith(RATIO) else name + RATIO


def _may_be_null(entry: Mapping[str, Any]) -> bool:
    return any(option.get("type") == "null" for option in entry.get("anyOf", ()))


def _load_editors(names: list[str], root: Path, schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    folder, problems, editors = root / "config" / "editors", [], {}
    form = read_json(root / "workflow" / "schemas" / "editor_file.schema.json")
    for name in names:
        if name not in schema:
            problems.append(
                f"editors: {name!r} is not one of {', '.join(schema)}{suggest(name, schema)}. "
                "For a new editor run `palimpsest schema --write` once its file exists"
            )
            continue
        path = folder / f"{name}.yaml"
        content: dict[str, Any] = read_yaml(path) if path.is_file() else {"editor": name, "title": name}
        found = check(content, form, f"config/editors/{name}.yaml")
        if not found and content["editor"] != name:
            found = [
                f"config/editors/{name}.yaml: editor is {content['editor']!r}, but the file is named {name!r}"
            ]
        if not found:
            content["variants"] = {"default": {}, **content.get("variants", {})}
            found = _settings_problems(name, content, schema[name])
        problems += found
        editors[name] = content
    return editors, problems


def _settings_problems(name: str, content: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Check every block of settings in an editor's file against the editor's dataclass."""
    partial = {**schema, "required": []}
    blocks = {"settings": content.get("settings", {})}
    for protocol, block in content.get("protocols", {}).items():
        blocks[f"protocols.{protocol}"] = block
    for model, entry in content.get("models", {}).items():
        blocks[f"models.{model}.settings"] = entry.get("settings", {})
        for protocol, block in entry.get("protocols", {}).items():
            blocks[f"models.{model}.protocols.{protocol}"] = block
    for variant, entry in content["variants"].items():
        blocks[f"variants.{variant}.settings"] = entry.get("settings", {})
        for model, block in entry.get("models", {}).items():
            blocks[f"variants.{variant}.models.{model}"] = block
    return [
        problem
        for where, block in blocks.items()
        for problem in check(block, partial, f"config/editors/{name}.yaml, {where}")
    ]


def _scale_settings_problems(
    scale: Mapping[str, Any], editors: Mapping[str, Any], schema: Mapping[str, Any]
) -> list[str]:
    """Problems of the settings of editors that the scale states itself, for all its models, for one, or for a variant."""
    places = {"settings": scale.get("settings", {})}
    places |= {
        f"models.{name}.settings": entry.get("settings", {}) for name, entry in scale["models"].items()
    }
    found = []
    for place, blocks in places.items():
        for method, block in blocks.items():
            name, named, variant = method.partition(":")
            if name not in scale["editors"]:
                found.append(f"{place}: {name!r} is not one of `editors`{suggest(name, scale['editors'])}")
            elif named and place != "settings":
                found.append(f"{place}: {method!r} names a variant; these stand in the scale's `settings`")
            elif named and variant not in (known := editors.get(name, {}).get("variants", {})):
                found.append(f"{place}: {name} has no variant {variant!r}{suggest(variant, known)}")
            elif name in schema:
                found += check(block, {**schema[name], "required": []}, f"{place}.{method}")
    return found


def _load_experiments(root: Path) -> tuple[dict[str, Any], list[str]]:
    form = read_json(root / "workflow" / "schemas" / "experiments.schema.json")
    experiments: dict[str, Any] = {}
    problems: list[str] = []
    for path in sorted((root / "config" / "experiments").glob("*.yaml")):
        content = read_yaml(path)
        where = f"config/experiments/{path.name}"
        found = check(content, form, where)
        problems += found
        if found:
            continue
        for name, entry in content["experiments"].items():
            if name in experiments:
                problems.append(f"{where}: the experiment {name!r} is declared twice. Give it another name")
            experiments[name] = {**entry, "paper": content["paper"], "group": content["group"]}
    return experiments, problems


def _explain(error: Any, where: str) -> str:
    place = ".".join(str(part) for part in error.path)
    prefix = f"{where}: {place}" if place else where
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(known), key=str)
        names = ", ".join(map(repr, unknown))
        return (
            f"{prefix}: unknown key {names}{suggest(str(unknown[0]), known)}. Known keys: {', '.join(known)}"
        )
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{prefix}: the key {', '.join(map(repr, missing))} is missing. Add it (config/README.md explains every key)"
    if error.validator == "enum":
        return f"{prefix} = {error.instance!r}: expected one of {', '.join(map(repr, error.validator_value))}"
    remedy = error.schema.get("description", "config/README.md explains every key")
    return f"{prefix} = {json.dumps(error.instance, default=str)[:120]}: {error.message[:200]}. {remedy}"


def settings_schema_of(editor: type) -> dict[str, Any]:
    """JSON schema of an editor's settings, made from its dataclass, with what the workflow asks of its class (`TRAITS`) and, if
    it learns, what may differ from its training.

    Raises:
        SettingsError: a field has a type that a configuration file cannot state.
    """
    kind = editor.settings_type  # type: ignore[attr-defined]
    schema = {**schema_of(kind), "traits": {name: bool(getattr(editor, name, False)) for name in TRAITS}}
    if schema["traits"]["learns"]:
        schema["edit_time"] = sorted(getattr(kind, "EDIT_TIME", ()))
    return schema
