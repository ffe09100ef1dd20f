# Which job goes first. Papers take turns: what the first one's tables and figures need (in the order of the scale's
# experiments) is done before what only the next one's need, so that they are there after a part of the time.

QUICK = 1_000_000  # seconds long, and many jobs wait for it
FIGURE, MODEL, SHARED = 3000, 2000, 1000  # within a turn; runs have less


def in_turn(level, runs):
    """Priority of a job that some runs (names) wait for, or of a figure of theirs; `level` counts within a turn."""
    turn = min((PLAN.turns[run] for run in runs), default=0)
    return QUICK - 10_000 * (1 + turn) + level


def runs_with(**wanted):
    """Names of the runs whose spec has the wanted values."""
    return {run for run, _ in PLAN.run_seeds(**wanted)}


def model_turn(wildcards):
    """A model: the one that most runs wait for goes first."""
    runs = runs_with(model=wildcards.model)
    return in_turn(MODEL + min(999, len(runs)), runs)


def statistics_turn(wildcards):
    """What all runs that edit a model share."""
    return in_turn(SHARED, runs_with(model=wildcards.model))


def pair_turn(wildcards):
    """What the runs that edit a model on a data set share: the gate, the Fisher information."""
    runs = runs_with(model=wildcards.model, dataset=wildcards.dataset)
    return in_turn(SHARED, runs)


def training_turn(wildcards):
    """A training, which several runs edit with."""
    runs = [
        name
        for name, run in PLAN.runs.items()
        if run.training and run.training.name == wildcards.trained
    ]
    return in_turn(SHARED, runs)


def search_turn(wildcards):
    """A search of target vectors, which several runs share."""
    runs = [name for name, run in PLAN.runs.items() if run.targets == wildcards.search]
    return in_turn(SHARED, runs)


def run_turn(wildcards):
    """Long runs first, so that no core waits at the end for the last one."""
    edits = PLAN.runs[wildcards.run].spec["edits"]
    return in_turn(min(999, edits), [wildcards.run])


def figure_turn(wildcards):
    """A table or figure is drawn as soon as its runs are there."""
    return in_turn(FIGURE, PLAN.figures[wildcards.figure].runs)


def claims_turn(wildcards):
    """Verdicts too."""
    figures = claims_figures(wildcards).values()
    return in_turn(FIGURE, {run for figure in figures for run in figure.runs})
