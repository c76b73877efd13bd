"""The style of plots, which a file in the working folder does not choose."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_style_in_the_working_folder_is_not_taken(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: red\n")
    code = (
        "from diablo_ds.files.figures import figure_class\n"
        "import matplotlib; figure_class()\n"
        "print(matplotlib.rcParams['text.usetex'], matplotlib.rcParams['figure.facecolor'])\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False white\n"
    named = {**os.environ, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    done = subprocess.run(command, env=named, capture_output=True, text=True, check=True)
    assert done.stdout == "True red\n"


def test_a_notebooks_backend_does_not_matter(monkeypatch):
    code = "from diablo_ds.files.figures import figure_class; figure_class()"
    monkeypatch.setenv("MPLBACKEND", "module://of_a_notebook")
    subprocess.run([sys.executable, "-c", code], check=True)
