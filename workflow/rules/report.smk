# `snakemake --report report.zip` after a run gathers figures, captions, logs and timings; the texts are in workflow/report/.
report: "../report/workflow.rst"
