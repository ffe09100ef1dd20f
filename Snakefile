# The front door. A lone include would lose the default target, so it is named here.
include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
    localrule: True
