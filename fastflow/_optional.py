"""Libraries that only an extra installs: imported when first needed, missed in words that help."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: dotted name of the module.
        extra: the extra of this package that installs it.

    Returns:
        The module.

    Raises:
        ImportError: the library is not installed; the message names the extra. Errors from inside an installed
            library pass unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise ImportError(f'{library} is not installed; get it with: pip install "fastflow[{extra}]"') from None
