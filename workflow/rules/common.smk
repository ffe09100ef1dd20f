# What all rules share: the plan of this scale, digests of the code, names of files. Functions only; the logic they call is
# plain Python with unit tests (src/palimpsest/experiments, config.py, provenance.py).
import functools
import json
import sys
from pathlib import Path

from snakemake.logging import logger

ROOT = Path(str(workflow.current_basedir)).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from palimpsest import experiments, warm
from palimpsest.command_line.commands import PAIR_FAMILIES, WORLDS
from palimpsest.config import ConfigError, read_yaml, use_this_python
from palimpsest.data.real_files import content_digest, file_digests, missing_files
from palimpsest.experiments.figure_specs import dataset_titles
from palimpsest.experiments.pins import refused, warning
from palimpsest.experiments.places import can_learn, fisher_spec, wants_fisher
from palimpsest.experiments.preflight import foreign_runs, lacking, lacking_models
from palimpsest.experiments.shared import models_in
from palimpsest.figures import outputs as figure_suffixes
from palimpsest.provenance import digest_of_run, source_digest
from palimpsest.published import experiments_judged

# A scale is one complete file. The default is loaded only when none was given: Snakemake merges configuration files, and
# a default underneath would leak mini runs into another scale's graph.
if "scale" not in config:
    config.update(read_yaml(ROOT / "config" / "mini.yaml"))

try:
    PLAN = experiments.plan(config, ROOT)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

UNPINNED = PLAN.unpinned()
if UNPINNED and workflow.is_main_process:
    logger.warning(warning(UNPINNED))
if PLAN.notes and workflow.is_main_process:
    logger.warning("\n".join(PLAN.notes))
if workflow.is_main_process and (said := lacking(PLAN.scale, PLAN.models_used())):
    logger.warning(said)

# The package is not installed in the conda environments, and activating one clears PYTHONPATH. This runs afterwards.
shell.prefix(f"export PYTHONPATH='{ROOT}/src'; ")
# Without conda, `python` is the one that runs Snakemake, whether its environment was activated or not.
use_this_python()

FIGURES = PLAN.scale["figures"]
TOY = f"results/toy/{PLAN.scale['scale']}/toy.json"
DEVICE_GPUS = 0 if PLAN.scale["device"] == "cpu" else 1


def one_of(names):
    """A wildcard constraint; nothing matches when there are no names."""
    return "|".join(map(str, names)) or "(?!)"


def spec_json(spec):
    """A spec as it stands on the command line and in Snakemake's record of parameters."""
    return json.dumps(spec, sort_keys=True, ensure_ascii=True)


def job(kind, key, default):
    """Memory or time of a kind of job, from the configuration's `jobs`."""
    return PLAN.scale["jobs"].get(kind, {}).get(key, default)


digest = functools.cache(source_digest)


def code(*modules, published=()):
    """A parameter function: digest of the modules a job can reach, and of the printed numbers (.csv), claims (.yaml) it reads."""
    printed = sorted((ROOT / "src" / "palimpsest" / "published").iterdir())
    files = tuple(file for file in printed if file.suffix in published)
    return lambda wildcards: digest(*modules, files=files)


def kinds(section, kind):
    """Names of the sources or models of one kind."""
    return [
        name for name, entry in PLAN.scale[section].items() if entry["kind"] == kind
    ]


def worlds(*wanted):
    """Names of the generated sources of some kinds of world."""
    return [
        name
        for name in kinds("sources", "world")
        if PLAN.scale["sources"][name]["world"] in wanted
    ]


def real_streams(*tasks):
    """Names of the sources made of real records for some lifelong tasks."""
    return [
        name
        for name in kinds("sources", "lifelong")
        if PLAN.scale["sources"][name]["lifelong"]["task"] in tasks
    ]


# Real sources of claims, data sets with something to learn from, those of lifelong tasks, and models that are trained on pairs of prompt and answer.
REAL_CLAIMS = [
    name
    for name in kinds("sources", "real")
    if PLAN.scale["sources"][name]["real"]["reader"] in ("fever", "evidence")
]
TO_LEARN_FROM = [name for name in PLAN.scale["datasets"] if can_learn(PLAN.scale, name)]
STREAMS = [name for name, entry in PLAN.scale["datasets"].items() if entry.get("task")]
PAIR_MODELS = [
    name
    for name in kinds("models", "pretrained")
    if PLAN.scale["models"][name]["family"] in PAIR_FAMILIES
]


def others(names, left_out):
    """Names that are not among some."""
    return [name for name in names if name not in left_out]


def dataset_dir(dataset):
    """Data sets are named by scale: two scales may call different ones by the same name."""
    return f"results/datasets/{PLAN.scale['scale']}-{dataset}"


wildcard_constraints:
    source=one_of(PLAN.scale["sources"]),
    dataset=one_of(PLAN.scale["datasets"]),
    model=one_of(PLAN.scale["models"]),
    run=one_of(PLAN.runs),
    search=one_of(PLAN.searches()),
    trained=one_of(PLAN.trainings()),
    seed=r"\d+",
    figure=one_of(PLAN.figures),
