"""Where things are in a checkout: no test counts how many folders it lies below the top."""

from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = PROJECT / "docs"
FUNCTION_EXAMPLES: Final = PROJECT / "examples" / "functions"
