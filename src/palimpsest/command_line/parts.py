"""What the subcommands of the command line are built of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from palimpsest.command_line import spec_help, spec_words
from palimpsest.plain import SEEDS

MOST_THREADS = 4096


class Parser(argparse.ArgumentParser):
    """Lists the keys of the command's SPEC below the options; found only when help is asked for."""

    spec_flag: str | None = None

    def format_help(self) -> str:
        """The usual help, and the keys."""
        keys = spec_help.text(self.prog.split()[-1], self.spec_flag) if self.spec_flag else ""
        return super().format_help() + keys


def add(groups: argparse._SubParsersAction, name: str, function, help: str, description: str) -> Parser:
    """A subcommand with its help, its example (`spec_words.EXAMPLES`) and the function that carries it out."""
    example = f"Example: palimpsest {name} {spec_words.EXAMPLES[name]}"
    parser = groups.add_parser(
        name,
        help=help,
        description="\n".join([help, "", *([description] if description else []), example]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def add_spec(parser: Parser, text: str, flag: str = "--spec") -> None:
    """The SPEC, whose keys the help lists."""
    parser.spec_flag = flag
    parser.add_argument(
        flag, dest="spec", required=True, metavar="SPEC", help=f"JSON or @FILE: {text}; keys below"
    )


def add_out(parser: argparse.ArgumentParser, text: str = "directory for the results") -> None:
    """Where the results go."""
    add_path(parser, "--out", text)


def add_path(parser: argparse.ArgumentParser, flag: str, text: str, required: bool = True) -> None:
    """An option that is a file or a directory."""
    parser.add_argument(flag, type=Path, default=None, required=required, help=text)


def whole(least: int, most: int) -> Callable[[str], int]:
    """What an option that is a whole number between bounds (both count) is read by."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r:.40} is no whole number from {least} to {most}. Give one of these"
            )
        return number

    return read


def add_seed(parser: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    """What everything random follows from; 0 when it is left out."""
    said = text if required else f"{text} (default 0)"
    parser.add_argument("--seed", type=whole(*SEEDS), default=0, required=required, metavar="N", help=said)


def add_threads(parser: argparse.ArgumentParser, default: str = "the library's") -> None:
    """How many threads linear algebra may use."""
    text = f"threads for linear algebra (default: {default})"
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), default=None, metavar="N", help=text)
