"""The site: these pages, the notebooks as they are stored, the reference from the docstrings. `make site` builds it."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import lit_eve  # noqa: E402
import lit_eve.models  # noqa: E402 - registers EVE with transformers

project = "lit_eve"
version = release = lit_eve.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]

# Pages have the links and anchors that GitHub gives them.
myst_heading_anchors = 3
suppress_warnings = ["myst.strikethrough"]

# Notebooks are shown as they are stored.
nb_execution_mode = "off"
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
(HERE / "notebooks").mkdir()
for notebook in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
    text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")  # here they lie within docs
    (HERE / "notebooks" / notebook.name).write_text(text, encoding="utf-8")

# So are the results of the ablations.
shutil.rmtree(HERE / "results", ignore_errors=True)
shutil.copytree(ROOT / "experiments" / "results", HERE / "results")
text = (ROOT / "experiments" / "RESULTS.md").read_text(encoding="utf-8").replace("](../docs/", "](")
(HERE / "results.md").write_text(text, encoding="utf-8")

# Docstrings are in Google's form; their text is reStructuredText.
autodoc_default_options = {"members": True}
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of Lightning refer to its own pages
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # "Returns: what: more of it" keeps its order
default_role = "code"  # `name` in a docstring

html_theme = "furo"
html_title = "lit_eve"
html_copy_source = html_show_copyright = False


def setup(app):
    """Links to the results lead to their copy; and docstrings of attributes stay as they are.

    Napoleon would read "(A, L): what it is" of an attribute as its type.
    """
    written = {}

    def read(app, page, source):
        source[0] = source[0].replace("](../experiments/RESULTS.md", "](results.md")

    def before(app, what, name, obj, options, lines):
        written[name] = [*lines]

    def after(app, what, name, obj, options, lines):
        if what in ("attribute", "property", "data"):
            lines[:] = written[name]

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", before, priority=1)
    app.connect("autodoc-process-docstring", after, priority=999)
