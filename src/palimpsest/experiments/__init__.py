"""From experiments, declared in data, to the runs that they need.

resolve       a scale's file -> a `Plan`: resolved runs and figures
places        which model is edited on which data set, and which figures show the runs of several experiments
shared        what several runs share: searches of target vectors, trainings of editors
figure_specs  what drawers are told
preflight     what a plan would ask for in vain, or write over
checks, pins  what is wrong with a scale's file: names, numbers, methods that coincide; hub models without a commit
"""

from palimpsest.experiments.resolve import Figure, Plan, PlannedRun, plan

__all__ = ["Figure", "Plan", "PlannedRun", "plan"]
