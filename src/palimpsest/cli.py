"""The command line. Every rule of the workflow is one of these commands, so any job can be pasted into a terminal."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from palimpsest import __version__, interruption
from palimpsest.command_line import commands, listing
from palimpsest.command_line.parts import (
    Parser,
    add,
    add_out,
    add_path,
    add_seed,
    add_spec,
    add_threads,
    whole,
)
from palimpsest.errors import PalimpsestError

_EPILOG = """
The usual way in is the workflow: `snakemake --cores all` makes everything, `snakemake comeba_fig4` one figure,
`snakemake -n` says what would be done and why. Each rule calls one of the commands above; `snakemake -np TARGET` prints
the commands with their SPECs, to be pasted into a terminal. SPEC is JSON, or @FILE with JSON in it; the help of each
command lists its keys. Errors name file, record and field, and what to do.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 good, 1 refused or not edited, 2 wrong usage, 128 + n stopped by signal n)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        stream=sys.stderr,
        format="%(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # a page for every font that is put into a pdf
    if not hasattr(options, "command"):
        _parser().print_help()
        return 2
    _limit_threads(getattr(options, "threads", None))
    try:
        with interruption.listening():
            status = options.command(options)
    except PalimpsestError as error:
        print(f"palimpsest: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        # The first is torch's own, named here without loading torch.
        if type(error).__name__ not in ("OutOfMemoryError", "MemoryError"):
            raise
        first = (str(error).splitlines() or [""])[0]
        print(
            f"palimpsest: out of memory ({first:.200}). Give the job more, or ask less of it: fewer `batch_tokens` or a smaller "
            "batch, dtype bfloat16. What was saved stays: the same command goes on from there",
            file=sys.stderr,
        )
        return 1
    except interruption.Interrupted as ending:
        print(f"palimpsest: {ending}", file=sys.stderr)
        return ending.status
    except BrokenPipeError:  # who reads the output has gone: the work may not be done
        sys.stderr.close()
        return 141
    return status if isinstance(status, int) else 0


def _limit_threads(threads: int | None) -> None:
    """Before torch or numpy is imported: their pools are sized once."""
    if threads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)


def _torch_threads(options: argparse.Namespace) -> None:
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="palimpsest",
        description="Edit language models again and again, measure what was gained and lost, and draw the papers' figures.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"palimpsest {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="verbose log")
    groups = parser.add_subparsers(title="commands", metavar="COMMAND")
    _data_commands(groups)
    _model_commands(groups)
    _run_commands(groups)
    _reader_commands(groups)
    return parser


def _data_commands(groups: argparse._SubParsersAction) -> None:
    world = add(
        groups, "world",
        lambda o: commands.run_world(commands.read_spec(o.spec, "--settings"), o.seed, o.out, o.kind),
        "Generate a world: records to edit in the real upstream schemas, and what a model reads to know them.",
        "Offline. Writes manifest.json and, by --kind:\n"
        "  facts        counterfact.json, zsre.json, facts.jsonl, text.txt, corpus.txt\n"
        "  qa           questions for lifelong editing: zsre.jsonl, nq.jsonl, pairs.jsonl, impl_dev.json, zsre_yn_dev.txt\n"
        "  labels       court cases for lifelong editing: scotus_{upstream,tuning,stream}.csv, pairs.jsonl\n"
        "  biographies  for lifelong editing: wikibio.jsonl, wiki_bio_concepts.txt, facts.jsonl, text.txt, corpus.txt\n"
        "  claims       fact checking: fever-{train,dev}-kilt.jsonl, vitaminc_{train,dev}.jsonl, pairs.jsonl\n"
        "  sentiment    replies in a dialogue: blender_{train,val,test}.json, facts.jsonl, text.txt, corpus.txt",
    )  # fmt: skip
    add_spec(world, "sizes of the world; {} for the defaults", "--settings")
    add_seed(world, "everything random follows from it")
    world.add_argument(
        "--kind",
        choices=sorted(commands.WORLDS),
        default="facts",
        help="facts; qa, labels, biographies: worlds of the lifelong tasks; claims; sentiment (default facts)",
    )
    add_out(world)

    source = add(
        groups, "source", lambda o: commands.run_source(commands.read_spec(o.spec), o.out),
        "Prepare real files for pre-training a small model.",
        "Facts (CounterFact, ZsRE), claims (FEVER, VitaminC), the records of a lifelong task (key task), or text alone.\n"
        "Real files are looked up by absolute path or under the directory named by PALIMPSEST_DATA.",
    )  # fmt: skip
    add_spec(source, "which records and which text")
    add_out(source)

    dataset = add(
        groups, "dataset", lambda o: commands.run_dataset(commands.read_spec(o.spec), o.source, o.out),
        "Read and validate a data set of edits.",
        "Reads the upstream forms of CounterFact, ZsRE, FEVER, VitaminC (evidence), SERAC's conversations and\n"
        "passages of a text (MEND), plain or gzipped,\n"
        "from a file, a source or a pinned hub id. With the key task it cuts a stream for lifelong editing and its probes\n"
        "(probes.jsonl); with reserve or learning it also writes learning.jsonl, for editors that learn.\n"
        "A malformed record is refused with file, record and field before anything heavy starts.",
    )  # fmt: skip
    add_spec(dataset, "reader or task, and where the records are")
    add_path(dataset, "--source", "directory of a generated or prepared source", required=False)
    add_out(dataset, "directory for edits.jsonl and manifest.json")


def _model_commands(groups: argparse._SubParsersAction) -> None:
    def pretrain(o: argparse.Namespace) -> None:
        commands.run_pretrain(commands.read_spec(o.spec), o.source, o.out, o.threads or 1)

    parser = add(groups, "pretrain", pretrain, "Pre-train a small model on a source.",
                  "Resumes from its last checkpoint. "
                  "Writes hub format, manifest.json and training.csv (the loss curve).")  # fmt: skip
    add_spec(parser, "family, sizes and training settings")
    add_path(parser, "--source", "directory with facts.jsonl and text.txt; t5 and bert: with pairs.jsonl")
    add_out(parser)
    add_threads(parser, "1")

    parser = add(groups, "convert", _print_converted, "Convert a model's PyTorch weights to safetensors, once.",
                  "For hub models that have pytorch_model.bin and spiece.model only; everything else here reads\n"
                  "safetensors and tokenizer.json. torch's restricted reader builds tensors and runs nothing; a file\n"
                  "that needs more is refused.\n"
                  "Use the result with `kind: path`. SentencePiece files need the extra t5.")  # fmt: skip
    parser.add_argument(
        "source", metavar="SOURCE", help="directory with config.json and pytorch_model.bin, or ID@COMMIT"
    )
    parser.add_argument(
        "--tokenizer",
        default=None,
        metavar="PLACE",
        help="directory or ID@COMMIT, for a source that has none",
    )
    add_out(parser, "directory for config.json, model.safetensors, tokenizer.json, converted.json")
    add_threads(parser)

    parser = add(groups, "model", lambda o: commands.run_model(commands.read_spec(o.spec), o.out),
                  "Describe a model made elsewhere, or make a random stand-in.", "Writes manifest.json.")  # fmt: skip
    add_spec(parser, "kind path | hub | random, and where or what it is")
    add_out(parser, "directory for manifest.json")
    add_threads(parser)

    def gate(o: argparse.Namespace) -> None:
        _torch_threads(o)
        commands.run_gate(commands.read_spec(o.spec), o.model, o.dataset, o.source, o.out, o.known)

    parser = add(groups, "gate", gate, "Ask whether a model can be edited at the subject, and what it knows.",
                  "Measures recall, the target-vector ceiling of each block and the state swap; a model without a critical\n"
                  "path recalls facts perfectly and still cannot be edited where subject-based editors write.")  # fmt: skip
    add_spec(parser, "mode refuse | warn, thresholds, sizes")
    add_path(parser, "--model", "model directory")
    add_path(parser, "--dataset", "data set directory")
    add_path(parser, "--source", "source the model was pre-trained on", required=False)
    add_path(parser, "--known", "file for the edits whose truth the model knows")
    add_out(parser, "file for the verdict")
    add_threads(parser)

    def statistics(o: argparse.Namespace) -> None:
        _torch_threads(o)
        commands.run_statistics(commands.read_spec(o.spec), o.model, o.corpus, o.out)

    parser = add(groups, "statistics", statistics, "Collect the covariance of keys, or Fisher information.",
                  "The covariance, all layers in one pass, is what ROME, MEMIT and COMEBA-HK need; cached by model, corpus and\n"
                  "token budget; resumes. With \"kind\": \"fisher\", diagonal Fisher information over prompts and answers, for\n"
                  "ft_ewc:upstream.")  # fmt: skip
    add_spec(parser, "what is collected, of which layers")
    add_path(parser, "--model", "model directory")
    corpus = "text, one passage a line; Fisher: JSON lines with prompt and answer (probes.jsonl, pairs.jsonl)"
    add_path(parser, "--corpus", corpus)
    add_out(parser)
    add_threads(parser)

    def train_editor(o: argparse.Namespace) -> None:
        _torch_threads(o)
        commands.run_train_editor(commands.read_spec(o.spec), o.seed, o.model, o.dataset, o.out)

    parser = add(groups, "train-editor", train_editor, "Train an editor that learns before it edits (MEND, SERAC).",
                  "Cached by model, data, settings and seed; resumes. "
                  "Writes weights.safetensors, trained.json, training.csv.")  # fmt: skip
    add_spec(parser, "editor, settings, and how the model is loaded (dtype, device)")
    add_seed(parser, "everything random follows from it")
    add_path(parser, "--model", "model directory")
    add_path(parser, "--dataset", "data set directory with learning.jsonl, or such a file")
    add_out(parser, "directory for the trained editor")
    add_threads(parser)


def _run_commands(groups: argparse._SubParsersAction) -> None:
    def targets(o: argparse.Namespace) -> None:
        _torch_threads(o)
        commands.run_targets(commands.read_spec(o.spec), o.seed, o.model, o.dataset, o.out, o.known)

    parser = add(groups, "targets", targets, "Search the target vectors of many edits on the untouched model.",
                  "Single-round runs of different methods, lambdas and batch sizes share them (run --targets).")  # fmt: skip
    add_spec(parser, "edits, options of the sample, settings of the search")
    add_seed(parser, "of the sample and the contexts", required=True)
    add_path(parser, "--model", "model directory")
    add_path(parser, "--dataset", "data set directory")
    add_path(parser, "--known", "which edits the model knows", required=False)
    add_out(parser, "directory for targets.safetensors and targets.json")
    add_threads(parser, "OMP_NUM_THREADS, else 1")

    def run(o: argparse.Namespace) -> None:
        _torch_threads(o)
        inputs = {
            key: getattr(o, key)
            for key in ("statistics", "gate", "known", "text", "targets", "trained", "answers")
        }
        commands.run_run(commands.read_spec(o.spec), o.seed, o.model, o.dataset, o.out, o.code, **inputs)

    parser = add(groups, "run", run, "Execute one run: edit, evaluate, write result tables.",
                  "Checkpoints between batches and resumes. `palimpsest list experiments` says what there is; "
                  "`snakemake -np TARGET`\nprints the commands of its runs with their specs.")  # fmt: skip
    add_spec(parser, "resolved run: protocol, editor, settings, sizes")
    add_seed(parser, "varies sample, order, contexts and the editor's randomness", required=True)
    for flag, text in (
        ("--model", "model directory"), ("--dataset", "data set directory"), ("--statistics", "directory of the covariance"),
        ("--gate", "the model's gate file"), ("--known", "which edits the model knows"), ("--text", "text for the drift meter"),
        ("--targets", "target vectors searched beforehand, for single-round runs"),
        ("--trained", "what train-editor wrote, for editors that learn"),
        ("--answers", "keeps the unedited model's answers here, for all runs that ask the same"),
    ):  # fmt: skip
        add_path(parser, flag, text, required=flag in ("--model", "--dataset"))
    parser.add_argument("--code", help="digest of the source, as the workflow has it (default: worked out)")
    add_out(parser)
    add_threads(parser, "OMP_NUM_THREADS, else 1")

    parser = add(groups, "figure", lambda o: commands.run_figure(o.name, commands.read_spec(o.spec), o.runs, o.out),
                  "Draw one figure or table from finished runs.",
                  "Nothing is computed again: result files in, pictures and numbers out.")  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="stem of the files, such as comeba_fig4")
    add_spec(parser, "drawer, title, methods, models, data sets, options")
    parser.add_argument(
        "--runs", type=Path, nargs="*", default=[], metavar="DIR", help="results/runs/RUN/seed=N directories"
    )
    add_out(parser, "directory for the figure")

    parser = add(groups, "toy", lambda o: commands.run_toy(commands.read_spec(o.spec), o.out),
                  "Compute GRACE's illustrative figure: a small classifier, edited and fine-tuned.",
                  "Writes toy.json.")  # fmt: skip
    add_spec(parser, "seeds, and settings that differ from the defaults")
    add_out(parser)

    parser = add(groups, "claims", lambda o: commands.run_claims(commands.read_spec(o.spec), o.results, o.out),
                  "Judge the papers' claims on finished runs.",
                  "Verdicts: holds, fails, undecided, not run, as printed.")  # fmt: skip
    add_spec(parser, "experiments and their runs")
    add_path(parser, "--results", "directory that holds runs/")
    add_out(parser, "directory for claims.csv and claims.md")

    parser = add(groups, "gallery", lambda o: commands.run_gallery(o.figures, o.out, o.only, o.results),
                  "Copy the finished pictures and tables into the documentation.",
                  "Writes README.md, an index with the captions. What `make gallery` calls after a run at scale mini; other\n"
                  "scales have galleries of their own, below docs/gallery.")  # fmt: skip
    add_path(parser, "--figures", "directory the workflow has drawn into")
    add_path(parser, "--results", "directory that holds runs/, to name their commits", required=False)
    parser.add_argument(
        "--only", nargs="*", default=None, metavar="NAME", help="these figures and tables (default all)"
    )
    add_out(parser, "directory of the gallery")


def _reader_commands(groups: argparse._SubParsersAction) -> None:
    parser = add(groups, "list", _print_list, "Show what there is.", "")
    parser.add_argument("kind", choices=listing.KINDS, help="what to list")
    parser.add_argument("--json", action="store_true", help="as JSON: a list of objects with `name`")
    parser.add_argument(
        "--scale", default=None, help="whose figures, data sets, models and experiments (default mini)"
    )

    parser = add(groups, "edit", _print_edit, "Edit a model once and ask it.",
                  "Nothing is kept unless --save says where. The names of the example are of scale mini's world.")  # fmt: skip
    parser.add_argument(
        "--model", required=True, help="model directory, or hub id with its commit: org/name@COMMIT"
    )
    parser.add_argument("--editor", required=True, help="see `palimpsest list editors`")
    parser.add_argument("--prompt", required=True, help="text the new answer follows")
    parser.add_argument("--target", required=True, help="new answer")
    parser.add_argument("--subject", default=None, help="what the prompt is about, as written in it")
    parser.add_argument(
        "--preset", default=None, metavar="NAME",
        help="config/editors/EDITOR.yaml's settings for a model such as mini-gpt2 (default: the editor's, for the paper's model)",
    )  # fmt: skip
    parser.add_argument(
        "--settings", default="{}", metavar="JSON",
        help="settings of the editor, over those of --preset: JSON or @FILE; `palimpsest schema` lists them",
    )  # fmt: skip
    add_path(
        parser,
        "--statistics",
        "directory of the model's covariance, for editors that need it",
        required=False,
    )
    add_path(parser, "--trained", "directory that train-editor wrote, for editors that learn", required=False)
    ask = "prompts to continue before and after (repeatable)"
    parser.add_argument("--ask", action="append", default=[], metavar="PROMPT", help=ask)
    parser.add_argument(
        "--tokens", type=whole(1, 10**6), default=8, metavar="N", help="length of the answers (default 8)"
    )
    parser.add_argument("--save", default=None, metavar="DIR", help="keep the editor's state there")
    add_seed(parser, "seed of the editor")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto (default cpu)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_threads(parser)

    parser = add(groups, "schema", _print_schema, "Show or write the schema of the editors' settings.",
                  "Run with --write after the settings of an editor have changed; a test compares the two.")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="write workflow/schemas/editors.schema.json")


def _print_list(options: argparse.Namespace) -> None:
    if options.scale and options.kind in listing.SCALELESS:
        print(f"palimpsest: --scale is not used: {options.kind} are the same at every scale", file=sys.stderr)
    entries = listing.list_kind(options.kind, options.scale or "mini")
    if options.json:
        print(json.dumps(entries, indent=2, ensure_ascii=False, default=str))
    else:
        print(listing.table(options.kind, entries))


def _print_edit(options: argparse.Namespace) -> int:
    edit = {"prompt": options.prompt, "target": options.target, "subject": options.subject}
    keys = ("preset", "statistics", "trained", "tokens", "save", "seed", "device")
    more = {key: getattr(options, key) for key in keys}
    settings = commands.read_spec(options.settings, "--settings")
    result = commands.edit_once(options.model, options.editor, edit, settings, options.ask, **more)
    if options.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return int(bool(result["failed"]))
    for failure in result["failed"]:
        print(f"not edited: {failure['reason']}")
    for answer in result["answers"]:
        print(
            f"{answer['prompt']}\n  before: {answer['before'].strip()}\n  after:  {answer['after'].strip()}"
        )
    return int(bool(result["failed"]))


def _print_converted(options: argparse.Namespace) -> None:
    made = commands.run_convert(options.source, options.out, options.tokenizer)
    print(f"wrote {options.out}: {made['tensors']} tensors, fingerprint {made['fingerprint']}")


def _print_schema(options: argparse.Namespace) -> None:
    path = (
        commands.repository_root() / "workflow" / "schemas" / "editors.schema.json" if options.write else None
    )
    schema = commands.write_settings_schema(path)
    print(f"wrote {path}" if path else json.dumps(schema, indent=2))


if __name__ == "__main__":
    sys.exit(main())
