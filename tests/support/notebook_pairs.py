"""The pairs of guides/notebooks: NAME.py, in jupytext's percent format, is edited; NAME.ipynb is made from it.

    python tests/support/notebook_pairs.py        writes every NAME.ipynb that has a NAME.py

The cells of the two are the same. A cell's id in the .ipynb is the id that its line in the .py gives, so that making it again
changes no more than was edited.
"""

from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "bidora_jax" / "guides" / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def made(source: Path) -> str:
    """The text of the notebook that a percent file stands for, without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    for cell in notebook.cells:
        cell.id, cell.metadata = cell.metadata["id"], NotebookNode()
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    for path in SOURCES:
        path.with_suffix(".ipynb").write_text(made(path), encoding="utf-8")
