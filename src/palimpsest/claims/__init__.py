"""Which sentences of a paper hold for the runs at hand? Claims are data (published/claims_*.yaml); these modules judge them.

`judge` is the way in. `means` judges what stands in means over records, with the `statistics` of several cells; `streams`
what lifelong runs show, in the `quantities` of a stream. `verdicts` has the rule, `report` writes the tables.
"""
