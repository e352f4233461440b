"""`python -m training`: screens to patches, patches to runs, runs to bundles; each with its figures."""

from typing import NoReturn

from rich.console import Console

from engine import EngineError
from training.cli import app, bundles, data, maps, runs, screens, studies

# whose commands the app has once they are imported
__all__ = ["app", "bundles", "data", "main", "maps", "runs", "screens", "studies"]


def main() -> None:
    """Run the command line; what the user can mend is one line, not a traceback."""
    try:
        app(standalone_mode=True)
    except ModuleNotFoundError as error:
        _end(f"{error}: `pip install '.[training]'` brings what training needs", error)
    except (ValueError, OSError, EngineError) as error:
        _end(str(error), error)


def _end(text: str, error: Exception) -> NoReturn:
    Console(stderr=True).print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(2) from error


if __name__ == "__main__":
    main()
