"""The page of the gallery: in which order, under which headings, with what said once. That it is whole: test_figures.py."""

from __future__ import annotations

import re

from palimpsest.command_line import commands
from palimpsest.figures import gallery
from palimpsest.figures.captions import scale_words
from palimpsest.files import write_text


def test_the_page_is_grouped_by_papers_and_says_the_scale_once(tmp_path):
    source, target = tmp_path / "figures", tmp_path / "gallery"
    about = scale_words("mini")
    for name in ("comeba_fig10", "comeba_fig3", "serac_table", "mine"):
        write_text(source / f"{name}.caption.md", f"**Figure of {name}.** {about} Forty edits.\n")
    write_text(source / "claims_grace.md", "# Claims and verdicts\n\narXiv 2211.11031 v5. Some hold.\n")
    write_text(target / "mini-zsre" / "README.md", "# Gallery\n")
    papers = {"comeba_fig3": "comeba_hk", "comeba_fig10": "comeba_hk", "serac_table": "serac"}
    gallery.collect(source, target, papers=papers)
    page = (target / "README.md").read_text(encoding="utf-8")
    assert page.count(about) == 1 and page.index(about) < page.index("\n## ")
    assert "**Figure of mine.** Forty edits." in page
    assert re.findall(r"^###? (\w.*)$", page, re.MULTILINE) == [
        "COMEBA-HK", "comeba_fig3", "comeba_fig10", "SERAC", "serac_table", "Further figures", "mine",
    ]  # fmt: skip
    assert "* [comeba_fig3](#comeba_fig3): Figure of comeba_fig3\n* [comeba_fig10](#comeba_fig10)" in page
    assert "**GRACE**\n\n* [The claims and their verdicts: arXiv 2211.11031 v5](claims_grace.md)" in page
    assert "[mini-zsre](mini-zsre/README.md)" in page and "--out docs/gallery/mini-zsre`" in page
    assert (target / "mini-zsre" / "README.md").exists()


def test_every_figure_has_a_paper():
    papers = commands._papers_of_figures()
    assert {"comeba_fig4", "grace_toy", "mend_table", "serac_sweep"} <= set(papers)
    assert set(papers.values()) < set(gallery.PAPERS)


def test_a_page_of_another_scale_names_its_own_command(tmp_path):
    write_text(tmp_path / "figures" / "mini-zsre" / "comeba_fig4.caption.md", "**Figure 4.** Few.\n")
    gallery.collect(tmp_path / "figures" / "mini-zsre", tmp_path / "gallery")
    page = (tmp_path / "gallery" / "README.md").read_text(encoding="utf-8")
    assert (
        "`palimpsest gallery --figures figures/mini-zsre --results results --out docs/gallery/mini-zsre`"
        in page
    )
    assert scale_words("mini-zsre") not in page and "Other scales" not in page
