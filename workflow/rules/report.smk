# `snakemake --report report.zip` after a run gathers figures, captions, logs and timings. Its texts are in workflow/report/.
