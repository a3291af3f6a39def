"""Importing this says what to install where a package of the extra `lab` is missing."""

from importlib.util import find_spec

PACKAGES = ("PIL", "datasets", "filelock", "matplotlib", "mlxtend", "pandas", "pyarrow", "tabulate", "tqdm")

for _name in PACKAGES:
    if find_spec(_name) is None:
        raise ModuleNotFoundError(
            f'this part of wmlib.lab needs {_name}, which is not installed: pip install "wmlib[lab]"', name=_name
        )
