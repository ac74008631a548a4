"""The notebooks run unchanged, and show a report and a plot."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_the_report_and_a_plot(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # notebooks are committed without outputs
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    data = [output["data"] for output in outputs if "data" in output]
    assert any("image/png" in one for one in data)
    [report] = [one["text/html"] for one in data if "<iframe" in one.get("text/html", "")]
    assert "Unlearning report" in report
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed.count("  unlearned ") == 3
    assert printed.count("Gorran Ibsley?") + printed.count("Cassia Gilroy?") + printed.count("Gorran Ibsley born") >= 3
    assert not any("<progress" in one.get("text/html", "") for one in data)  # unlora replaces this bar
    assert "Failed to load" not in printed
    assert "Setting accelerator" not in printed
