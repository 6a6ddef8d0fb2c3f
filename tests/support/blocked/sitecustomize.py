"""On PYTHONPATH: refuses the imports that BLOCKED_IMPORTS names, as if they were not installed."""

import os
import sys


class _Refuse:
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not in this image", name=name)


sys.meta_path.insert(0, _Refuse(set(os.environ["BLOCKED_IMPORTS"].split(","))))  # noqa: TID251
