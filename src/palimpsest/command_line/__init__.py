"""What stands behind the command line, `palimpsest/cli.py`.

commands               what the subcommands do
parts                  what they are built of
listing                `palimpsest list`
spec_help, spec_words  the keys of each SPEC for `--help`
"""
