import subprocess
import sys

WITHOUT = """
import sys
sys.modules["ipywidgets"] = None
import mxlab as mx
try:
    mx.Explorer
except ImportError as error:
    print(error)
"""


def test_without_ipywidgets_the_error_names_the_extra():
    said = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "the widgets need ipywidgets: pip install 'mxlab[lab]'"
