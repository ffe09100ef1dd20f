"""What docs/your_own_edits.md shows works as it is printed there."""

import json
import re
from pathlib import Path

import pytest
import yaml

from palimpsest import experiments
from palimpsest.data.readers import read_source

PAGE = Path(__file__).parents[2] / "docs" / "your_own_edits.md"


def block(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found


def test_the_record_of_the_page_is_read(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(block("json"), encoding="utf-8")
    _, reading = read_source({"reader": "counterfact", "file": str(path)})
    [edit] = reading.edits
    [raw] = json.loads(block("json"))
    assert (edit.prompt, edit.subject, edit.target) == (raw["prompt"], raw["subject"], raw["target_new"])
    assert list(edit.rephrasings) == [raw["rephrase_prompt"]]
    assert [(probe.prompt, probe.answer) for probe in edit.locality] == [
        (raw["locality_prompt"], raw["locality_ground_truth"])
    ]


def test_the_scale_of_the_page_is_complete():
    plan = experiments.plan(yaml.safe_load(block("yaml")))
    methods = {run.spec["editor"] for run in plan.runs.values()}
    assert methods == {"ft", "memit", "comeba_hk", "grace", "retrieval"}
    assert list(plan.figures) == ["comeba_table2"]


@pytest.mark.parametrize("key", ["device", "sources"])
def test_what_a_scale_leaves_out_has_its_default(key):
    content = yaml.safe_load(block("yaml"))
    del content[key]
    if key == "sources":
        del content["models"]["gpt2"]["corpus"]
        content["experiments"]["comeba_table2"]["methods"] = ["ft", "grace"]
    plan = experiments.plan(content)
    assert plan.scale["device"] == "cpu" or key != "device"
    assert plan.scale["claims"] == {"models": {}, "draws": 1000, "level": 0.95}
    assert len(plan.runs) == len(content["experiments"]["comeba_table2"]["methods"])
